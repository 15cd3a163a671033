"""`metaopt status`: where runs and sweeps stand, once or live, from their folders alone and without jax."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metaopt.errors import UserError
from metaopt.launch import sweep_folder
from metaopt.launch.sweep_folder import Sweep
from metaopt.runs import folder, index, tables
from metaopt.runs.console import make_console
from metaopt.runs.index import Run, Seen, read_run

HELP = """\
usage: metaopt status [SWEEP_OR_RUN_OR_FOLDER ...] [--once]

Where runs and sweeps stand: state, meta-steps done, meta-loss, validation at each multiple of the horizon, meta-steps a
second, time left; a narrow terminal leaves some out. Of any other folder: all that lie below it; without one: all under
runs/. Live in a terminal, until nothing runs or Ctrl-C; once elsewhere or with --once. States: waiting, running,
finished; interrupted (saved on a signal), cancelled, failed, diverged; lost: its process is gone without a word, as
after kill -9 or a crash of the machine; unknown: an older version's; unreadable: its config.json is broken.
"""
REDRAW_SECONDS = 1.0


class Watched(NamedTuple):
    """What is to be shown: whole sweeps, and runs by themselves."""

    sweeps: list[Sweep]
    runs: list[Path]


def status(arguments: list[str]) -> None:
    """The command.

    Raises:
      UserError: a path is neither a run nor a sweep; an unknown option.
    """
    if any(word in ("-h", "--help") for word in arguments):
        print(HELP, end="")
        return
    options = [word for word in arguments if word.startswith("-")]
    if options and set(options) != {"--once"}:
        raise UserError(f"`metaopt status` has no option {min(set(options) - {'--once'})}, only --once.")
    paths = [Path(word) for word in arguments if not word.startswith("-")]
    if not paths and not (Path("runs").is_dir() and any(_below(Path("runs")))):
        raise UserError("there are no runs under runs/ here; name a run folder or a sweep's.")
    watched = find(paths or [Path("runs")])
    console, seen = make_console(tables.WIDE), Seen()
    if not console.is_terminal or options:
        console.print(_shown(watched, seen)[0])
        return
    from rich.live import Live

    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            while True:
                table, active = _shown(watched, seen)
                live.update(table, refresh=True)
                if not active:
                    return
                time.sleep(REDRAW_SECONDS)
    except KeyboardInterrupt:
        pass  # it only looks


def find(paths: list[Path]) -> Watched:
    """The sweeps and runs that the paths are, or that lie below them.

    Raises:
      UserError: there is nothing of either.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no folder {path}.")
        own = [path] if (path / folder.CONFIG).is_file() else list(_below(path))
        if not own:
            raise UserError(f"{path} is neither a run folder nor a sweep's, and holds none.")
        found |= dict.fromkeys(own)
    sweeps = [sweep_folder.read(path) for path in found if sweep_folder.is_sweep(path)]
    return Watched(sweeps, [path for path in found if not sweep_folder.is_sweep(path)])


def _below(root: Path) -> Iterator[Path]:
    """The sweep or run that a folder is, or all that lie below it: of a sweep not its runs, of a run nothing."""
    for place, below, _ in index.walk(root):
        below.sort()
        if sweep_folder.is_sweep(place) or index.is_run(place) or index.is_broken_run(place):
            yield place
            below.clear()


def _shown(watched: Watched, seen: Seen) -> tuple[Any, bool]:
    """(tables, whether anything may change by itself)."""
    from rich.console import Group

    parts, active = [], False
    for sweep in watched.sweeps:
        rows = sweep.read_runs(seen)
        launched = sweep.where == "slurm" or folder.is_locked(sweep.path) is not False
        active = active or _active(rows, launched)
        parts.append(tables.standings(rows, f"{sweep.path}: {tables.counts(rows)}"))
        if not launched and any(row.state == "waiting" for row in rows):
            parts += [tables.cell(f"nobody runs this sweep; go on with `metaopt resume {sweep.path}`"), ""]
    if watched.runs:
        rows = [read_run(path, seen=seen) for path in watched.runs]
        active = active or _active(rows, False)
        parts.append(tables.standings(rows))
    return Group(*parts), active


def _active(rows: list[Run], launched: bool) -> bool:
    return any(row.state == "running" or (launched and row.state == "waiting") for row in rows)
