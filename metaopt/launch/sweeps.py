"""What the commands do with a sweep: begin it, go on with it."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

from metaopt import files
from metaopt.errors import UserError, printable
from metaopt.launch import grid, local, sweep_folder
from metaopt.launch.options import SweepOptions
from metaopt.launch.sweep_folder import Sweep
from metaopt.runs import folder, own_entries, tables
from metaopt.runs.console import make_console
from metaopt.runs.interrupts import Interrupted
from metaopt.runs.state import TO_DO


def start(options: SweepOptions) -> None:
    """Expands, checks and begins a sweep; returns when it is done, detached or submitted.

    Raises:
      UserError: a mistake in the options or in a point; nothing is left behind.
    """
    from metaopt.experiment.flags import parse_experiment
    from metaopt.runs.experiments import load_experiment

    name, base = load_experiment(options.experiment)
    base, out = parse_experiment(list(options.fields), prog=f"metaopt launch {options.experiment}", base=base)
    if out is not None:
        folder.check_free(Path(out))
    fields, seeds = grid.read_grid(options.sweeps, options.seeds)
    grid.refuse_given_twice(fields, options.fields)
    points = grid.expand(base, fields, seeds)
    workers, where = options.workers, "on Slurm"
    if options.where == "local":
        workers = local.choose_workers(workers, max(point.experiment.num_devices or 1 for point in points))
        where = f"{min(workers, len(points))} at once"
    else:
        from metaopt.launch import slurm

        slurm.check(options.slurm)
    grid.check(points)
    title = f"{name}: {len(points)} run{'s' * (len(points) > 1)}, {where}"
    rows = [(point.run, *point.overrides.values()) for point in points]
    make_console(tables.WIDE).print(tables.unboxed(title, ("run", *points[0].overrides), rows))
    if options.dry_run:
        return
    options = dataclasses.replace(options, seeds=seeds)
    sweep = sweep_folder.create(None if out is None else Path(out), name, points, fields, options)
    print(printable(f"sweep folder: {sweep.path}"), flush=True)
    _begin(sweep, options.detach, workers)


def _begin(sweep: Sweep, detached: bool, workers: int | None) -> None:
    watch = f"watch it with `metaopt status {sweep.path}`, end it with `metaopt cancel {sweep.path}`"
    on_ctrl_c = "stopped before any of its runs began"
    try:
        if sweep.where == "slurm":
            from metaopt.launch import slurm

            on_ctrl_c = f"stopped while jobs were being submitted; those that Slurm took go on: {watch}"
            print(printable(f"{slurm.begin(sweep, workers)}; {watch}"))
        elif detached:
            on_ctrl_c = f"the launcher in the background goes on: {watch}"
            local.detach(sweep, workers or 1)
            print(printable(f"in the background; {watch}"))
        else:
            local.run(sweep, workers or 1)
    except KeyboardInterrupt:  # `local.run` has its own way once it has begun
        raise Interrupted(signal.SIGINT, f"{on_ctrl_c}; `metaopt resume {sweep.path}` goes on with the rest") from None


def _lengthen(sweep: Sweep, num_meta_steps: int) -> None:
    """Has every run go on to so many meta-steps, those that have finished too.

    Raises:
      UserError: one of them cannot; all stay as they are.
    """
    from metaopt.experiment.checks import validate

    changed = {}
    for name in sweep.runs:
        path, experiment = folder.open_run(sweep.run(name))
        if folder.is_locked(path):
            raise UserError(f"{path} is being trained, and cannot be lengthened meanwhile; wait for it or end it.")
        changed[path] = validate(folder.lengthened(path, experiment, num_meta_steps))
    for path, experiment in changed.items():
        folder.write_config(path, experiment)


def resume(options: SweepOptions) -> None:
    """Goes on with what a sweep, the folder `options.experiment`, has not finished.

    Raises:
      UserError: no sweep, or one that is being run.
      SystemExit: with 1, nothing is left to do and some did not finish.
    """
    sweep = sweep_folder.read(Path(options.experiment))
    if folder.is_locked(sweep.path):
        raise sweep_folder.being_run(sweep.path)
    if options.num_meta_steps is not None:
        _lengthen(sweep, options.num_meta_steps)
    rows = sweep.read_runs()
    to_do = [row for row in rows if row.state in TO_DO]
    for row in to_do:
        own_entries.check_known(row.path)
    if not to_do:
        print(f"nothing is left to do: {tables.counts(rows)}")
        if local.unfinished(rows, ""):
            raise SystemExit(1)
        return
    if sweep.where != "local" and options.detach:
        raise UserError("--detach is for sweeps on this machine: Slurm's jobs are detached.")
    workers = options.workers or sweep.workers
    if sweep.where == "local":
        counts = [files.read_object(row.path / folder.CONFIG).get("num_devices") for row in to_do]
        workers = local.choose_workers(workers, max(count if isinstance(count, int) else 1 for count in counts))
    for row in to_do:
        (row.path / folder.CANCELLED).unlink(missing_ok=True)
    _begin(sweep, options.detach, workers)
