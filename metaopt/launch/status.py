"""`metaopt status`: where runs and sweeps stand, once or live, from their folders alone and without jax."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metaopt.errors import UserError
from metaopt.launch import sweep_folder
from metaopt.launch.sweep_folder import Sweep
from metaopt.runs import folder, tables
from metaopt.runs.console import make_console
from metaopt.runs.index import Run, Seen, read_run

HELP = """\
usage: metaopt status [SWEEP_OR_RUN ...] [--once]

Where runs and sweeps stand: state, meta-steps done, meta-loss, validation at each multiple of the horizon, meta-steps a
second, time left; a narrow terminal leaves some out. Without a folder: everything under runs/. Live in a terminal,
until nothing runs or Ctrl-C; once elsewhere or with --once. States: waiting, running, finished; interrupted (saved on a
signal), cancelled, failed, diverged; lost: its process is gone without a word, as after kill -9 or a crash of the
machine; unknown: an older version's; unreadable: its config.json is broken.
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
    watched = find(paths or list(everything(Path("runs"))))
    if not paths and not (watched.sweeps or watched.runs):
        raise UserError("there are no runs under runs/ here; name a run folder or a sweep's.")
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
    """Which of the paths are sweeps and which runs.

    Raises:
      UserError: one is neither.
    """
    sweeps = [sweep_folder.read(path) for path in paths if sweep_folder.is_sweep(path)]
    runs = [path for path in paths if not sweep_folder.is_sweep(path)]
    for path in runs:
        if not path.is_dir():
            raise UserError(f"there is no folder {path}.")
        if not (path / folder.CONFIG).is_file():
            inside = sorted(path.glob(f"*/{folder.CONFIG}")) + sorted(path.glob(f"*/{folder.SWEEP}"))
            hint = f"; did you mean {inside[-1].parent}?" if inside else "."
            raise UserError(f"{path} is neither a run folder nor a sweep's{hint}")
    return Watched(sweeps, runs)


def everything(parent: Path) -> Iterator[Path]:
    """All runs and sweeps that `metaopt train` and `metaopt launch` put in a folder by themselves."""
    for name in (folder.CONFIG, folder.SWEEP):
        yield from sorted(file.parent for file in parent.glob(f"*/*/{name}"))


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
            parts.append(f"nobody runs this sweep; go on with `metaopt resume {sweep.path}`\n")
    if watched.runs:
        rows = [read_run(path, seen=seen) for path in watched.runs]
        active = active or _active(rows, False)
        parts.append(tables.standings(rows))
    return Group(*parts), active


def _active(rows: list[Run], launched: bool) -> bool:
    return any(row.state == "running" or (launched and row.state == "waiting") for row in rows)
