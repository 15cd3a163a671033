"""A bar of progress in a terminal and in a notebook, and nothing elsewhere. Needs no jax."""

from __future__ import annotations

import contextlib
import html
import time
from types import TracebackType
from typing import Any

from metaopt.errors import printable

EVERY = 0.1  # seconds between two pictures of a notebook's bar


class Bar:
    """What is done of a total, the time left, and a few words.

    Args:
      what: is done.
      done: already.
      console: rich's; None: a new one on standard output.
      quiet: show nothing.
    """

    def __init__(
        self,
        what: str,
        total: int,
        done: int = 0,
        *,
        console: Any = None,
        quiet: bool = False,
        text: str = "compiling ...",
    ) -> None:
        self._what, self._total = what, total
        self._bar: Any = None
        self._display: Any = None
        self._shown_at = 0.0
        self._left: dict[str, str] | None = None  # a notebook's picture that was not shown yet
        if quiet:
            return
        if console is None:
            from rich.console import Console

            console = Console()
        if console.is_jupyter:
            from IPython.display import display  # pyright: ignore[reportMissingImports]

            self._display = display({"text/html": self._html(done, text)}, raw=True, display_id=True)
        elif console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
            said = TextColumn("{task.fields[text]}", markup=False)
            self._bar = Progress(*columns, said, TimeRemainingColumn(), console=console)
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, completed=done, text=text)

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal or a notebook that shows it."""
        return self._bar is not None or self._display is not None

    def update(self, done: int, text: str) -> None:
        """As much is done now."""
        text = printable(text)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
        elif self._display is not None:
            self._left = {"text/html": self._html(done, text)}
            if done >= self._total or time.monotonic() - self._shown_at > EVERY:
                self._show()

    def close(self) -> None:
        """The last picture stays."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()
            self._bar = None
        self._show()

    def _show(self) -> None:
        if self._left is not None:
            self._display.update(self._left, raw=True)
            self._left, self._shown_at = None, time.monotonic()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _html(self, done: int, text: str) -> str:
        words = html.escape(f"{done:,} of {self._total:,}  {text}")
        return f"{html.escape(self._what)} <progress value={done} max={self._total}></progress> {words}"
