"""What the commands do with a sweep: begin it, go on with it."""

from __future__ import annotations

from pathlib import Path

from metaopt import files
from metaopt.errors import UserError
from metaopt.launch import grid, local, sweep_folder
from metaopt.launch.options import SweepOptions, for_resuming
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
    workers = options.workers
    if options.where == "local":
        workers = local.choose_workers(workers, max(point.experiment.num_devices or 1 for point in points))
    else:
        from metaopt.launch import slurm

        slurm.check(options.slurm)
    grid.check(points)
    console = make_console(tables.WIDE)
    title = f"{name}: {len(points)} run{'s' * (len(points) > 1)}, " + (
        f"{min(workers or 1, len(points))} at once" if options.where == "local" else "on Slurm"
    )
    rows = [(point.run, *point.overrides.values()) for point in points]
    console.print(tables.unboxed(title, ("run", *points[0].overrides), rows))
    if options.dry_run:
        return
    sweep = sweep_folder.create(
        None if out is None else Path(out),
        name,
        points,
        grid=fields,
        seeds=seeds,
        where=options.where,
        workers=options.workers,
        slurm=options.slurm,
    )
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


def resume(arguments: list[str]) -> None:
    """Goes on with what a sweep has not finished: `metaopt resume SWEEP [--workers N] [--detach]`.

    Raises:
      UserError: no sweep, or one that is being run.
    """
    name, options = for_resuming(arguments)
    sweep = sweep_folder.read(Path(name))
    if folder.is_locked(sweep.path):
        raise UserError(f"{sweep.path} is being run already; watch it with `metaopt status {sweep.path}`.")
    rows = sweep.read_runs()
    to_do = [row for row in rows if row.state in TO_DO]
    for row in to_do:
        own_entries.check_known(row.path)
    for row in to_do:
        (row.path / folder.CANCELLED).unlink(missing_ok=True)
    if not to_do:
        print(f"nothing is left to do: {tables.counts(rows)}")
        error = local.unfinished(rows, "")
        if error:
            raise SystemExit(1)
        return
    workers = options.workers or sweep.workers
    if sweep.where == "local":
        counts = [files.read_object(row.path / folder.CONFIG).get("num_devices") for row in to_do]
        workers = local.choose_workers(workers, max(count if isinstance(count, int) else 1 for count in counts))
    elif options.detach:
        raise UserError("--detach is for sweeps on this machine: Slurm's jobs are detached.")
    _begin(sweep, options.detach, workers)
