"""The console: lines as they are, and no end of the work where nobody reads any more. Needs no jax."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any


def make_console(columns: int | None = None) -> Any:
    """rich's console for results: unwrapped lines where it is not a terminal.

    Args:
      columns: for tables: how wide they may be where there is no terminal; in one they are as wide as it is.
    """
    from rich.console import Console

    class Unread(Console):
        def on_broken_pipe(self) -> None:
            # rich ends the program here; a run goes on without a reader, as it does without a terminal.
            self.quiet = True
            _to_nowhere(sys.stdout)

    if columns is None:
        return Unread(soft_wrap=True)
    console = Unread()
    return console if console.is_terminal else Unread(width=columns)


def say(console: Any, text: str) -> None:
    """One line as it is. Where nobody reads any more, as after a terminal was closed, the work goes on in silence."""
    try:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    except OSError:
        _to_nowhere(console.file)


def _to_nowhere(file: Any) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):  # what is no file has no number
        os.dup2(nowhere, file.fileno())
    os.close(nowhere)
