"""`metaopt cancel`: what is running saves and stops, what is waiting will not begin."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from pathlib import Path

from metaopt import files
from metaopt.errors import UserError, printable
from metaopt.launch import sweep_folder
from metaopt.runs import folder, tables
from metaopt.runs.index import Run, read_run
from metaopt.runs.state import ACTIVE, job_lives, read_job

STOP_SECONDS = 60.0  # to wait for what is running to save


def cancel(paths: list[Path]) -> None:
    """Ends runs and sweeps, and waits a minute for them.

    Raises:
      UserError: a path is neither.
      SystemExit: with 1, something is still running.
    """
    for path in paths:
        if not sweep_folder.is_sweep(path) and not (path / folder.CONFIG).is_file():
            raise UserError(f"{path} is neither a run folder nor a sweep's.")
    running = [row for path in paths for row in _begin(path)]
    told: set[Path] = set()
    until = time.monotonic() + STOP_SECONDS
    while (left := [row for row in running if read_run(row.path).state == "running"]) and time.monotonic() < until:
        # Again where it had not said yet who it is.
        told |= {row.path for row in left if row.path not in told and _ask_to_stop(row.path)}
        time.sleep(0.2)
    for row in running:
        now = read_run(row.path, row.name)
        print(printable(f"{now.name}: {now.state}, meta-step {now.done}"))
    if left:
        print("what still runs stops at the end of its chunk of meta-steps; see `metaopt status`")
        raise SystemExit(1)


def _begin(path: Path) -> list[Run]:
    """Keeps what is waiting in a sweep, one run of a sweep, or a run by itself from beginning; returns what runs."""
    whole = sweep_folder.is_sweep(path)
    parent = path if whole else path.resolve().parent
    if not sweep_folder.is_sweep(parent):
        row = read_run(path)
        running = row.state == "running"
        print(printable(f"{path}: " + ("asked to save and stop" if running else f"not running ({row.state})")))
        return [row] if running else []
    sweep = sweep_folder.read(parent)
    rows = [row for row in sweep.read_runs() if whole or row.name == path.resolve().name]
    active = [row for row in rows if row.state in ACTIVE]
    # A launcher that begins one of them at this moment sees its mark afterwards, or we see what it has begun.
    for row in active:
        files.write_json(row.path / folder.CANCELLED, {"time": sweep_folder.now()})
    if sweep.where == "slurm":
        from metaopt.launch import slurm

        slurm.cancel(sweep, [row.name for row in active])
    running = [row for row in (read_run(row.path, row.name) for row in active) if row.state == "running"]
    others = tables.counts(row for row in rows if row.state not in ACTIVE)
    asked = f"{len(active) - len(running)} waiting cancelled, {len(running)} running asked to save and stop"
    print(printable(f"{path}: {asked}" + (f"; {others} left alone" if others else "")))
    return running


def _ask_to_stop(run: Path) -> bool:
    """SIGTERM to the process that trains a run, where it is one of this host; whether there was one."""
    job, told = read_job(run), files.read_object(run / folder.STATE)
    held = job if job_lives(job) else told if folder.is_locked(run) else {}
    if held.get("state") == "running" and held.get("host") == platform.node() and isinstance(held.get("pid"), int):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(held["pid"], signal.SIGTERM)
            return True
    return False
