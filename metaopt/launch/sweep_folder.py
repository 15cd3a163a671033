"""A sweep on disk: sweep.json and one run folder a point. Whoever runs a point notes in that folder what it does."""

from __future__ import annotations

import contextlib
import datetime
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metaopt import files
from metaopt.errors import UserError
from metaopt.launch.grid import Grid, Point
from metaopt.launch.options import SweepOptions
from metaopt.runs import folder, own_entries
from metaopt.runs.folder import CANCELLED, SWEEP
from metaopt.runs.index import Run, Seen, read_run
from metaopt.runs.state import JOB

LOG = "log.txt"  # in a run folder: what its process has to say
SLURM_JOBS = "slurm.json"  # in a sweep's folder: run -> job id
LAUNCHER_LOG = "launcher.log"  # in a sweep's folder, of a detached launcher


class Sweep(NamedTuple):
    """What sweep.json holds, and where."""

    path: Path
    experiment: str
    where: str
    workers: int | None
    slurm: dict[str, str]
    runs: dict[str, dict[str, str]]  # run folder's name -> its overrides

    def run(self, name: str) -> Path:
        return self.path / name

    def read_runs(self, seen: Seen | None = None) -> list[Run]:
        """Where all its runs stand, in its order; `seen` as for `read_run`."""
        jobs = files.read_object(self.path / SLURM_JOBS)
        runs = [read_run(self.run(name), name, seen) for name in self.runs]
        return [
            run._replace(note=f"Slurm's job {jobs[run.name]}" + (f", {run.note}" if run.note else ""))
            if run.state == "waiting" and run.name in jobs
            else run
            for run in runs
        ]


def create(out: Path | None, name: str, points: list[Point], grid: Grid, options: SweepOptions) -> Sweep:
    """Makes the sweep's folder and all its run folders, which `metaopt train --resume` can begin.

    Args:
      out: the folder; default: the next runs/NAME/sweep-NNN.

    Raises:
      UserError: it is not empty or cannot be written.
    """
    made = folder.new_folder(_next(Path("runs") / name) if out is None else out, Path())
    try:
        for point in points:
            run = made.path / point.run
            run.mkdir()
            folder.write_config(run, point.experiment)
            files.write_json(run / folder.ENVIRONMENT, {"experiment": name, **own_entries.record(point.experiment)})
        held = {
            "version": 1,
            "experiment": name,
            "command": ["metaopt", *sys.argv[1:]],
            "created": now(),
            **{field: getattr(options, field) for field in ("where", "workers", "slurm", "seeds")},
            "fields": grid,
            "points": [{"run": point.run, "overrides": point.overrides} for point in points],
        }
        files.write_json(made.path / SWEEP, held)  # last: a folder with it is whole
    except BaseException:
        made.discard()
        raise
    return read(made.path)


def _next(parent: Path) -> Path:
    taken = [path.name.removeprefix("sweep-") for path in parent.glob("sweep-*")]
    return parent / f"sweep-{max((int(number) for number in taken if number.isdecimal()), default=0) + 1:03}"


def is_sweep(path: Path) -> bool:
    return (path / SWEEP).is_file()


def read(path: Path) -> Sweep:
    """The sweep in a folder.

    Raises:
      UserError: there is none, or its sweep.json is broken.
    """
    if not is_sweep(path):
        raise UserError(f"{path} is no sweep, for it has no {SWEEP}; give the folder that `metaopt launch` printed.")
    held = files.read_json(path / SWEEP)
    try:
        runs = {str(point["run"]): dict(point["overrides"]) for point in held["points"]}
        return Sweep(path, held["experiment"], held["where"], held["workers"], held["slurm"], runs)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / SWEEP} is broken ({type(error).__name__}: {error}); launch the sweep anew.") from None


# ----- notes of jobs --------------------------------------------------------------------------------------------------


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def note_job(run: Path, **held: Any) -> None:
    """Writes job.json; a full disk is no reason to leave the other jobs alone."""
    with contextlib.suppress(OSError):
        files.write_json(run / JOB, {"host": platform.node(), **held})


def is_cancelled(run: Path) -> bool:
    return (run / CANCELLED).exists()


def being_run(sweep: Path) -> UserError:
    return UserError(f"{sweep} is being run already; watch it with `metaopt status {sweep}`.")


@contextlib.contextmanager
def launching(sweep: Path) -> Iterator[None]:
    """Keeps a second launcher out of a sweep.

    Raises:
      UserError: there is one.
    """
    if folder.is_locked(sweep):
        raise being_run(sweep)
    with folder.locked(sweep):
        yield
