"""What the commands do with a sweep: begin it, go on with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from metaopt import files
from metaopt.errors import UserError
from metaopt.launch import grid, local, sweep_folder
from metaopt.launch.options import SweepOptions
from metaopt.launch.sweep_folder import Sweep
from metaopt.runs import folder, own_entries, tables
from metaopt.runs.console import make_console
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
    print(f"sweep folder: {sweep.path}", flush=True)
    _begin(sweep, options.detach, workers)


def _begin(sweep: Sweep, detached: bool, workers: int | None) -> None:
    watch = f"watch it with `metaopt status {sweep.path}`, end it with `metaopt cancel {sweep.path}`"
    if sweep.where == "slurm":
        from metaopt.launch import slurm

        print(f"{slurm.begin(sweep, workers)}; {watch}")
    elif detached:
        local.detach(sweep, workers or 1)
        print(f"in the background; {watch}")
    else:
        local.run(sweep, workers or 1)


def resume(options: SweepOptions) -> None:
    """Goes on with what a sweep, the folder `options.experiment`, has not finished.

    Raises:
      UserError: no sweep, or one that is being run.
      SystemExit: with 1, nothing is left to do and some did not finish.
    """
    sweep = sweep_folder.read(Path(options.experiment))
    if folder.is_locked(sweep.path):
        raise sweep_folder.being_run(sweep.path)
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
