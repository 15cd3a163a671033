"""Where metrics go: the run folder's metrics.jsonl, which is the truth, and the console."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from metaopt.evaluation.statistics import jsonable
from metaopt.files import replacing
from metaopt.runs.console import say
from metaopt.runs.metrics import parse_row

Row = dict[str, Any]  # "kind": "train" | "validation", "meta_step", and values by name


class Logger(Protocol):
    """Takes the rows of a chunk, in the order of their meta-steps."""

    def log(self, rows: list[Row]) -> None: ...

    def close(self) -> None: ...


# ----- metrics.jsonl --------------------------------------------------------------------------------------------------


class JsonLines:
    """Appends rows to metrics.jsonl: one object a line, six digits, infinity as "inf", nan as null."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", encoding="utf-8")

    def log(self, rows: list[Row]) -> None:
        lines = [json.dumps(jsonable(row), allow_nan=False, ensure_ascii=False) for row in rows]
        self._file.write("".join(line + "\n" for line in lines))
        self._file.flush()  # whole rows at once: a process killed later loses none

    def sync(self) -> None:
        """On the disk before a checkpoint that counts on these rows."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk has been told of by `log`
            self._file.close()


def read_rows(path: Path) -> Iterator[Row]:
    """The complete rows of a metrics.jsonl; a line that a crash cut off is left out."""
    for line in _lines(path):
        row = _parse(line)
        if row is not None:
            yield row


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:  # names may hold other line separators
        return list(file)


def _parse(line: str) -> Row | None:
    return parse_row(line) if line.endswith("\n") else None


def cut_back(path: Path, meta_step: int, *, validation_due: bool = False) -> int:
    """Drops every row after a meta-step, so that a resumed run neither loses nor doubles one. Returns how many went.

    `validation_due`: the validation at that very meta-step will be done again, so its row goes too.
    """

    def stays(row: Row | None) -> bool:
        if row is None or row["meta_step"] > meta_step:
            return False
        return not (validation_due and row["meta_step"] == meta_step and row.get("kind") == "validation")

    lines = _lines(path)
    kept = [line for line in lines if stays(_parse(line))]
    if len(kept) < len(lines):
        with replacing(path) as part:
            part.write_text("".join(kept), encoding="utf-8")
    return len(lines) - len(kept)


def train_rows(metrics: dict[str, np.ndarray], *, began: float, ended: float) -> list[Row]:
    """A chunk's stacked metrics [steps] as one row a meta-step; the chunk's time is shared out evenly."""
    columns = {name: np.asarray(values).tolist() for name, values in metrics.items()}
    count = len(columns["meta_step"])
    each = max(0.0, ended - began) / count
    return [
        {
            "kind": "train",
            **{name: column[i] for name, column in columns.items()},
            "time/elapsed": round(began + each * (i + 1), 3),
            "time/meta_step": each,
        }
        for i in range(count)
    ]


# ----- the console ----------------------------------------------------------------------------------------------------


class Progress:
    """A progress bar in a terminal, plain lines elsewhere."""

    def __init__(self, console: Any, total: int, done: int = 0) -> None:
        self.console = console
        self._total = total
        self._bar: Any = None
        if self.console.is_terminal:
            self._bar, self._task = self._make_bar(total, done)

    def _make_bar(self, total: int, done: int) -> tuple[Any, Any]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("meta-training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        bar.start()
        return bar, bar.add_task("meta-training", total=total, completed=done, text="compiling ...")

    def log(self, rows: list[Row]) -> None:
        for row in rows:
            if row["kind"] == "validation":
                self.say(f"meta-step {row['meta_step']}: {_validation_text(row)}")
        rows = [row for row in rows if row["kind"] == "train"]
        if not rows:
            return
        done, each = rows[-1]["meta_step"], rows[-1]["time/meta_step"]
        text = _train_text(rows, each)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
        else:
            self.say(f"meta-step {done}/{self._total}  {text}  {_clock((self._total - done) * each)} left")

    def say(self, text: str) -> None:
        """One line above the bar."""
        say(self.console, text)

    def close(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()
            self._bar = None


def _train_text(rows: list[Row], each: float) -> str:
    loss = np.mean([row["meta_loss"] for row in rows])
    text = f"loss {loss:.4g}"
    text += f"  {1 / each:.3g} steps/s" if each > 0 else ""  # a clock may stand still
    diverged = sum(row.get("diverged", 0) for row in rows)
    skipped = sum(row.get("skipped", 0) for row in rows)
    failed = np.mean([row.get("failed", 0) for row in rows])
    text += f"  failed {failed:.0%}" if failed >= 0.005 else ""  # above 10 f(θ_0), or not finite
    text += f"  non-finite {diverged:g}" if diverged else ""
    return text + (f"  skipped {skipped:g}" if skipped else "")


def _validation_text(row: Row) -> str:
    parts = []
    for name in row:
        if name.endswith("/median"):
            where = name.removesuffix("/median")
            failed = row.get(f"{where}/failed")
            text = f"{where.removeprefix('validation/')} {row[name]:.4g}"
            parts.append(text + (f" ({failed:.0%} failed)" if failed else ""))
    return "validation, median loss at " + ", ".join(parts) + (" (best so far)" if row.get("best") else "")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
