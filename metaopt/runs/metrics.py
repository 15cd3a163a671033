"""A run's metrics.jsonl read as it grows, and what its metrics are called on a dashboard. Imports nothing heavy."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaopt.files import read_object
from metaopt.runs.folder import ENVIRONMENT

Row = dict[str, Any]

# Counted every meta-step: how the estimator of the meta-gradient fares.
HEALTH = ("alive", "diverged", "failed", "clipped", "nonfinite_gradient", "skipped")


class Follower:
    """Gives the rows of a JSON-lines file that were added since it was asked last.

    `restarted` tells that the file was cut back or replaced, as on resuming a run: the rows come from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self.restarted = False
        self._path = path
        self._file: tuple[int, int] | None = None  # (device, inode)
        self._position = 0

    def new_rows(self) -> list[Row]:
        """Whole lines only: one that is being written is given when it is complete, one that is no row never."""
        self.restarted = False
        try:
            with open(self._path, "rb") as file:
                self._begin_anew(file.fileno())
                file.seek(self._position)
                content = file.read()
        except OSError:  # not there yet
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        rows = (parse_row(line) for line in whole.splitlines())
        return [row for row in rows if row is not None]

    def _begin_anew(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        file = (status.st_dev, status.st_ino)
        if file != self._file or status.st_size < self._position:
            self.restarted = self._position > 0
            self._file, self._position = file, 0


def parse_row(line: bytes | str) -> Row | None:
    """The row in a line of metrics.jsonl; None where there is none, as in a line that is cut off."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("meta_step"), int) else None


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's values as floats: true is 1, "inf" infinity, null nan; `kind` and other words are left out."""
    values: dict[str, float] = {}
    for name, value in row.items():
        if value is None:
            values[name] = float("nan")
        elif isinstance(value, (int, float)) or value in ("inf", "-inf"):
            values[name] = float(value)
    return values


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
