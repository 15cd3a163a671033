"""The console: lines as they are, a bar of progress, and no end of the work where nobody reads. Needs no jax."""

from __future__ import annotations

import math
import sys
from statistics import fmean
from typing import Any

from metaopt.errors import printable
from metaopt.progress import Bar
from metaopt.runs.metrics import Row, number, validation_name
from metaopt.streams import to_nowhere

SHOWN = 3  # families in which runs failed


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
            to_nowhere(sys.stdout)

    if columns is None:
        return Unread(soft_wrap=True)
    console = Unread()
    return console if console.is_terminal else Unread(width=columns)


def say(console: Any, text: str) -> None:
    """One line as it is, with a terminal's escapes shown as such.

    Where nobody reads any more, as after a terminal was closed, the work goes on in silence.
    """
    try:
        console.print(printable(text, keep="\n"), highlight=False, markup=False, soft_wrap=True)
    except OSError:
        to_nowhere(console.file)


def clock(seconds: float | None) -> str:
    """`1:02:03`; nothing where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """Meta-training as a bar in a terminal or a notebook, as plain lines elsewhere."""

    def __init__(self, console: Any, total: int, done: int = 0) -> None:
        self.console = console
        self._total = total
        self._bar = Bar("meta-training", total, done, console=console)

    def log(self, rows: list[Row]) -> None:
        for row in rows:
            if row["kind"] == "validation":
                self.say(f"meta-step {row['meta_step']}: {_validation_text(row)}")
        rows = [row for row in rows if row["kind"] == "train"]
        if not rows:
            return
        done, each = rows[-1]["meta_step"], rows[-1]["time/meta_step"]
        text = _train_text(rows, each)
        if self._bar.is_shown:
            self._bar.update(done, text)
        else:
            self.say(f"meta-step {done}/{self._total}  {text}  {clock((self._total - done) * each)} left")

    def say(self, text: str) -> None:
        """One line above the bar."""
        say(self.console, text)

    def close(self) -> None:
        self._bar.close()


def _train_text(rows: list[Row], each: float) -> str:
    failed = fmean(row.get("failed", 0) for row in rows)
    loss = sum(number(row["meta_loss"]) for row in rows) / len(rows)
    parts = [
        "loss unknown" if math.isnan(loss) else f"loss {loss:.4g}",  # where gradients come without values
        f"{1 / each:.3g} steps/s" if each > 0 else "",  # a clock may stand still
        f"failed {failed:.0%}" if failed >= 0.005 else "",  # see `evaluation.statistics.failed`
    ]
    for name, word in (("diverged", "non-finite"), ("skipped", "skipped")):
        total = sum(row.get(name, 0) for row in rows)
        parts.append(f"{word} {total:g}" if total else "")
    collapsed = fmean(number(row.get("oracle/collapsed", 0)) for row in rows)
    parts.append(f"particles collapsed in {collapsed:.2g} of the estimates" if collapsed else "")
    return "  ".join(filter(None, parts))


def _validation_text(row: Row) -> str:
    """Of several families what they have in common, and those in which runs failed; the rest is in metrics.jsonl."""
    parts, failing = [], {}
    for name in row:
        where, _, what = name.rpartition("/")
        if what != "median":
            continue
        failed = row.get(f"{where}/failed")
        of, family = validation_name(name), where.split("/", 2)[2:]
        if family:  # later ones are of longer horizons
            failing[family[0]] = failed
            continue
        called = where.partition("/")[2] if of is None else f"{of.multiple}x{', averaged' if of.averaged else ''}"
        parts.append(f"{called} {row[name]:.4g}" + (f" ({failed:.0%} failed)" if failed else ""))
    lost = [f"{family} ({failed:.0%} failed)" for family, failed in failing.items() if failed]
    more = f"; {', '.join(lost[:SHOWN])}{', ...' if len(lost) > SHOWN else ''}" if lost else ""
    over = " relative to f(θ_0), geometric mean over families," if failing else ""
    return f"validation, median loss{over} at {', '.join(parts)}{more}" + (" (best so far)" if row.get("best") else "")
