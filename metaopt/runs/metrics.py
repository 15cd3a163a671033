"""metrics.jsonl, a run's measurements: written, read, followed as it grows, and what its names mean. Needs no jax."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import math
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metaopt.files import read_object, replacing
from metaopt.runs.folder import ENVIRONMENT

Row = dict[str, Any]  # "kind": "train" | "validation", "meta_step", and values by name

# Counted every meta-step: how the estimator of the meta-gradient fares.
HEALTH = ("alive", "diverged", "failed", "clipped", "nonfinite_gradient", "skipped")
LOOK_BACK = 1000  # meta-steps, for the pace of a run

# ----- writing --------------------------------------------------------------------------------------------------------


class JsonLines:
    """Appends rows to metrics.jsonl: one object a line, six digits, infinity as "inf", nan as null."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")  # as in `files.write_json`

    def log(self, rows: list[Row]) -> None:
        from metaopt.evaluation.statistics import jsonable

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


def train_rows(metrics: Mapping[str, Any], *, began: float, ended: float) -> list[Row]:
    """A chunk's stacked metrics, arrays [steps], as one row a meta-step; the chunk's time is shared out evenly."""
    columns = {name: values.tolist() for name, values in metrics.items()}
    each = max(0.0, ended - began) / len(columns["meta_step"])
    return [
        {
            "kind": "train",
            **dict(zip(columns, values, strict=True)),
            "time/elapsed": round(began + each * index, 3),
            "time/meta_step": each,
        }
        for index, values in enumerate(zip(*columns.values(), strict=True), 1)
    ]


def cut_back(path: Path, meta_step: int, *, validation_due: bool = False) -> int:
    """Drops every row after a meta-step, so that a resumed run neither loses nor doubles one. Returns how many went.

    `validation_due`: the validation at that very meta-step will be done again, so its row goes too.
    """

    def stays(line: bytes) -> bool:
        row = parse_row(line) if line.endswith(b"\n") else None
        if row is None or row["meta_step"] > meta_step:
            return False
        return not (validation_due and row["meta_step"] == meta_step and row.get("kind") == "validation")

    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if stays(line)]
    if len(kept) < len(lines):
        with replacing(path) as part:
            part.write_bytes(b"".join(kept))
    return len(lines) - len(kept)


# ----- reading --------------------------------------------------------------------------------------------------------


class Follower:
    """Gives what was added to a JSON-lines file since it was asked last.

    `restarted` tells that the file was cut back or replaced, as on resuming a run: the rows come from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self.restarted = False
        self._path = path
        self._file: tuple[int, int] | None = None  # (device, inode)
        self._position = 0

    def new_rows(self) -> list[Row]:
        """Whole lines only: one that is being written is given when it is complete, one that is no row never."""
        return [row for row in map(parse_row, self.new_lines()) if row is not None]

    def new_lines(self) -> list[bytes]:
        """As `new_rows`, before they are parsed."""
        self.restarted = False
        try:
            with open(self._path, "rb") as file:
                self._begin_anew(file.fileno())
                file.seek(self._position)
                content = file.read()
        except OSError:  # not there yet
            return []
        *whole, part = content.split(b"\n")
        self._position += len(content) - len(part)
        return whole

    def _begin_anew(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        file = (status.st_dev, status.st_ino)
        if file != self._file or status.st_size < self._position:
            self.restarted = self._position > 0
            self._file, self._position = file, 0


def read_rows(path: Path) -> list[Row]:
    """The complete rows of a metrics.jsonl; a line that a crash cut off is left out."""
    return Follower(path).new_rows()


def parse_row(line: bytes | str) -> Row | None:
    """The row in a line of metrics.jsonl; None where there is none, as in a line that is cut off."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("meta_step"), int) else None


class Progress(NamedTuple):
    """What a metrics.jsonl tells in short."""

    meta_step: int = 0
    meta_loss: float | None = None  # mean over the last chunk
    rate: float | None = None  # meta-steps a second, in the last chunk
    pace: float | None = None  # seconds a meta-step of late, with all that comes between
    validation: dict[str, float] = {}  # "1x" -> median loss, of the latest
    best: float | None = None  # the lowest score of a validation, see `score_of`
    best_at: int | None = None  # its meta-step


class Digest:
    """Sums up a metrics.jsonl; asked again, it reads what is new."""

    def __init__(self, path: Path) -> None:
        self._follower = Follower(path)
        self._begin()

    def _begin(self) -> None:
        # A run has a hundred rows of training for each validation: only of these all are parsed.
        self._recent: deque[bytes] = deque(maxlen=LOOK_BACK)
        self._validation: Row = {}
        self._best: tuple[float, int] | None = None

    def progress(self, every: int) -> Progress:
        """Args: `every`: meta-steps of a chunk."""
        lines = self._follower.new_lines()
        if self._follower.restarted:
            self._begin()
        if every > LOOK_BACK and self._recent.maxlen != every:
            self._recent = deque(self._recent, maxlen=every)
        for line in lines:
            if b'"kind": "validation"' not in line:
                self._recent.append(line)
            elif row := parse_row(line):
                self._validation = row
                score = score_of(row)
                if score is not None and (self._best is None or score < self._best[0]):
                    self._best = score, row["meta_step"]
        best, best_at = self._best or (None, None)
        rows = [row for row in map(parse_row, list(self._recent)[-every:]) if row is not None]
        told = Progress(validation=medians(self._validation), best=best, best_at=best_at)
        if not rows:
            return told
        losses = [number(row.get("meta_loss")) for row in rows]
        seconds = number(rows[-1].get("time/meta_step"))
        begun = [row for row in map(parse_row, list(self._recent)[:every]) if row is not None] or rows
        earlier = begun[-1 if begun[0]["meta_step"] == 1 else 0]  # the first chunk holds the time of compiling
        steps = rows[-1]["meta_step"] - earlier["meta_step"]
        span = number(rows[-1].get("time/elapsed")) - number(earlier.get("time/elapsed"))
        return told._replace(
            meta_step=rows[-1]["meta_step"],
            meta_loss=sum(losses) / len(losses),
            rate=1 / seconds if seconds > 0 else None,
            pace=span / steps if steps > 0 and span > 0 else seconds if seconds > 0 else None,
        )


# ----- names and values -----------------------------------------------------------------------------------------------


class ValidationName(NamedTuple):
    """`validation_ema/10x/median`: the median loss of the averaged φ at ten times the training horizon."""

    averaged: bool
    multiple: int
    what: str


@functools.cache
def validation_name(name: str) -> ValidationName | None:
    """What a metric of a validation is of; None for another metric, as for one family's among several."""
    found = re.fullmatch(r"validation(_ema)?/(\d+)x/(\w+)", name)
    return ValidationName(bool(found[1]), int(found[2]), found[3]) if found else None


def _of_medians(row: Mapping[str, Any]) -> Iterator[tuple[ValidationName, float]]:
    for name, value in row.items():
        parsed = validation_name(name)
        if parsed is not None and parsed.what == "median":
            yield parsed, number(value)


def medians(row: Mapping[str, Any]) -> dict[str, float]:
    """`validation/10x/median` -> {"10x": ...}."""
    return {f"{name.multiple}x": value for name, value in _of_medians(row) if not name.averaged}


def score_of(row: Mapping[str, Any]) -> float | None:
    """The number by which a run's best φ is chosen: the median at the longest horizon of a validation.

    Where φ is averaged over meta-steps it is that of the average. None where the row holds none, or an infinite one.
    """
    _, score = max(_of_medians(row), default=(None, math.nan), key=lambda entry: entry[0][:2])
    return score if math.isfinite(score) else None


def number(value: Any) -> float:
    """A value of metrics.jsonl, which writes infinity as "inf" and nan as null; nan for what is no number."""
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return math.nan


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's values as floats: true is 1, "inf" infinity, null nan; `kind` and other words are left out."""
    return {
        name: number(value)
        for name, value in row.items()
        if value is None or isinstance(value, (int, float)) or value in ("inf", "-inf")
    }


def grouped(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's numbers but its meta-step, by names whose part before the slash is the group that dashboards show.

    Groups: `train`, `health` (what is counted of the estimator), `validation`, `time`. A validation's row leaves its
    time of day to the training row of the same meta-step.
    """
    validation = row.get("kind") == "validation"
    values = numbers(row)
    values.pop("meta_step", None)
    if validation:
        values.pop("time/elapsed", None)
    return {_group(name, validation): value for name, value in values.items()}


def _group(name: str, validation: bool) -> str:
    if "/" in name:
        return name
    if validation:
        return f"validation/{name}"
    return f"health/{name}" if name in HEALTH else f"train/{name}"


class Thinner:
    """Means over `stride` neighbouring meta-steps in the place of their rows; other rows pass.

    A tracker has a price for every row, and draws a thousand or so of a curve's points. Groups begin after a multiple
    of the stride, so that a resumed run has the same ones; a group counts as of its last meta-step.
    """

    def __init__(self, stride: int) -> None:
        self._stride = stride
        self._rows: list[dict[str, float]] = []
        self._step = 0

    def add(self, row: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
        """(meta-step, values by grouped names) of what is complete with this row."""
        step, values = row["meta_step"], grouped(row)
        if row.get("kind") == "validation":
            return [*self.rest(), (step, values)]
        self._step = step
        self._rows.append(values)
        return self.rest() if step % self._stride == 0 else []

    def rest(self) -> list[tuple[int, dict[str, float]]]:
        """The group that is not full, if there is one."""
        rows, self._rows = self._rows, []
        if len(rows) <= 1:
            return [(self._step, row) for row in rows]
        names = dict.fromkeys(name for row in rows for name in row)
        parts = {name: [row[name] for row in rows if name in row] for name in names}
        return [(self._step, {name: sum(part) / len(part) for name, part in parts.items()})]


# ----- when -----------------------------------------------------------------------------------------------------------


def begun(path: Path) -> datetime.datetime:
    """When a run began, as its environment.json says; 1970 where it does not."""
    try:
        began = datetime.datetime.fromisoformat(read_object(path / ENVIRONMENT)["started"])
    except (KeyError, TypeError, ValueError):
        return datetime.datetime.fromtimestamp(0, datetime.UTC)
    return began if began.tzinfo else began.replace(tzinfo=datetime.UTC)


def time_of(row: Mapping[str, Any], began: datetime.datetime) -> datetime.datetime:
    """When a row was logged, counting a run's seconds of work alone."""
    elapsed = row.get("time/elapsed")
    return began + datetime.timedelta(seconds=elapsed if isinstance(elapsed, (int, float)) else 0)
