"""Where runs stand, read from their folders alone: config.json, state.json, metrics.jsonl, and a sweep's notes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from metaopt import files
from metaopt.launch import sweep_folder
from metaopt.launch.jobs import how_it_ended
from metaopt.runs import folder
from metaopt.runs.metrics import parse_row
from metaopt.runs.state import RunState, read_state

# waiting: not begun. lost: its process ended without a word. The others as in state.json.
TO_DO = ("waiting", "interrupted", "cancelled", "failed", "lost")  # what `metaopt resume` begins or goes on with
ACTIVE = ("running", "waiting")
TAIL_BYTES = 1 << 17  # of metrics.jsonl; four times as much, and so on, until there is a validation in it
MOST_BYTES = 1 << 23
LOOK_BACK = 1000  # meta-steps, for the time that is left


class Progress(NamedTuple):
    """What the end of a metrics.jsonl tells."""

    meta_step: int = 0
    meta_loss: float | None = None  # mean over the last chunk
    rate: float | None = None  # meta-steps a second, in the last chunk
    pace: float | None = None  # seconds a meta-step of late, with all that comes between
    validation: dict[str, float] = {}  # "1x" -> median loss, of the latest


class Standing(NamedTuple):
    """Where one run stands."""

    name: str
    path: Path
    state: str
    meta_step: int
    num_meta_steps: int | None
    progress: Progress
    note: str  # why, in one line, or what it is doing

    @property
    def seconds_left(self) -> float | None:
        if self.state != "running" or self.progress.pace is None or self.num_meta_steps is None:
            return None
        return (self.num_meta_steps - self.meta_step) * self.progress.pace


class Reader:
    """Reads runs again and again, and a metrics.jsonl only when it has grown."""

    def __init__(self) -> None:
        self._progress: dict[Path, tuple[tuple[int, int], Progress]] = {}
        self._configs: dict[Path, tuple[int | None, int, bool]] = {}

    def run(self, path: Path, name: str | None = None) -> Standing:
        """Where a run stands; `name`: what it is called, the path otherwise. Never raises for what is in the folder."""
        run, job = read_state(path), sweep_folder.read_job(path)
        steps, every, validates = self._config(path)
        steps = run.num_meta_steps or steps
        progress = self._read_progress(path, every, validates)
        state, note = _state(path, run, job, progress, steps)
        meta_step = progress.meta_step if state in ("running", "lost", "finished", "diverged") else run.meta_step
        if state == "lost":
            note = f"{note}; goes on from meta-step {run.meta_step}" if run.meta_step else f"{note}; nothing is saved"
        return Standing(name or str(path), path, state, meta_step, steps, progress, note)

    def sweep(self, sweep: sweep_folder.Sweep) -> list[Standing]:
        """All runs of a sweep, in its order."""
        jobs = files.read_object(sweep.path / sweep_folder.SLURM_JOBS)
        standings = [self.run(sweep.run(name), name) for name in sweep.runs]
        return [
            one._replace(note=f"Slurm's job {jobs[one.name]}" + (f", {one.note}" if one.note else ""))
            if one.state == "waiting" and one.name in jobs
            else one
            for one in standings
        ]

    def _config(self, path: Path) -> tuple[int | None, int, bool]:
        """(num_meta_steps, log.every, whether it validates)."""
        if path not in self._configs:
            held = files.read_object(path / folder.CONFIG)

            def number(record: str, name: str) -> int | None:
                inside = held.get(record) if record else held
                value = inside.get(name) if isinstance(inside, dict) else None
                return value if isinstance(value, int) else None

            steps, every = number("", "num_meta_steps"), number("log", "every") or 50
            self._configs[path] = steps, every, number("validation", "every") != 0
        return self._configs[path]

    def _read_progress(self, path: Path, every: int, validates: bool) -> Progress:
        file = path / folder.METRICS
        try:
            seen = os.stat(file)
        except OSError:
            return Progress()
        mark = (seen.st_size, seen.st_mtime_ns)
        if path not in self._progress or self._progress[path][0] != mark:
            self._progress[path] = mark, read_progress(file, every, validates)
        return self._progress[path][1]


def _state(path: Path, run: RunState, job: dict[str, Any], progress: Progress, steps: int | None) -> tuple[str, str]:
    """(state, note)."""
    if run.state == "running":
        doing = "" if progress.meta_step < (steps or 0) else "evaluating"
        return "running", doing if progress.meta_step else "compiling"
    if run.state == "finished":
        return "finished", ""
    if sweep_folder.job_lives(job):
        return "running", "starting"
    if run.state == "diverged":
        return "diverged", run.reason or ""
    if sweep_folder.is_cancelled(path):
        return "cancelled", ""
    if job.get("state") == "requeued":
        return "waiting", "queued again"
    status = job.get("exit_status")
    status = status if isinstance(status, int) else 0
    # It may have failed before it could say so in state.json; and it may have been resumed by hand since.
    if 0 < status < 128 and str(job.get("ended")) >= (run.time or ""):
        return "failed", str(job.get("error") or run.reason or how_it_ended(status))
    if run.state == "lost":
        return "lost", how_it_ended(status) if status else "its process is gone"
    if run.state != "unknown":
        return run.state, run.reason or ""
    if status == -9 or job.get("state") == "running":
        return "lost", how_it_ended(status) if status else "its process is gone"
    if status:
        return "interrupted", "before it began"
    return _state_of_old(path, progress, steps)


def _state_of_old(path: Path, progress: Progress, steps: int | None) -> tuple[str, str]:
    """Of a run without a state.json."""
    if not progress.meta_step:
        return "waiting", ""
    if (path / folder.EVALUATION).is_file() and progress.meta_step == steps:
        return "finished", ""
    saved = folder.last_checkpoint(path)
    return ("interrupted", "") if saved == progress.meta_step else ("lost", "its process is gone")


def read_progress(file: Path, every: int, validates: bool = True) -> Progress:
    """The latest rows of a metrics.jsonl.

    Args:
      every: meta-steps of a chunk.
      validates: whether there is a validation to be found.
    """
    size, length = file.stat().st_size, TAIL_BYTES
    while True:
        with open(file, "rb") as stream:
            stream.seek(max(0, size - length))
            lines = stream.read().split(b"\n")[1 if size > length else 0 : -1]  # whole lines only
        training = [line for line in lines if b'"kind": "train"' in line]
        validations = [line for line in lines if b'"kind": "validation"' in line][-1:]
        if (training and (validations or not validates)) or length >= min(size, MOST_BYTES):
            break
        length *= 4
    rows = [row for row in map(parse_row, training[-every:]) if row is not None]
    validation = next((row for row in map(parse_row, validations) if row is not None), {})
    if not rows:
        return Progress(validation=_medians(validation))
    losses = [_number(row.get("meta_loss")) for row in rows]
    seconds = _number(rows[-1].get("time/meta_step"))
    recent = [parse_row(line) for line in training[-LOOK_BACK:][:every]]
    began = recent[0] is not None and recent[0]["meta_step"] == 1
    earlier = recent[-1 if began else 0] or rows[0]  # the first chunk holds the time of compiling
    steps = rows[-1]["meta_step"] - earlier["meta_step"]
    span = _number(rows[-1].get("time/elapsed")) - _number(earlier.get("time/elapsed"))
    return Progress(
        meta_step=rows[-1]["meta_step"],
        meta_loss=sum(losses) / len(losses),
        rate=1 / seconds if seconds > 0 else None,
        pace=span / steps if steps > 0 and span > 0 else seconds if seconds > 0 else None,
        validation=_medians(validation),
    )


def _number(value: Any) -> float:
    """metrics.jsonl writes infinity as "inf" and nan as null."""
    try:
        return float("nan") if value is None else float(value)
    except (TypeError, ValueError):
        return float("nan")


def _medians(row: dict[str, Any]) -> dict[str, float]:
    """`validation/10x/median` -> {"10x": ...}."""
    parts = ((name.split("/"), value) for name, value in row.items())
    found = {words[1]: _number(value) for words, value in parts if words[0] == "validation" and words[2:] == ["median"]}
    return {name: value for name, value in found.items() if name.endswith("x")}
