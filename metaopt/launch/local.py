"""A sweep on this machine: so many runs at once, each a process of its own on its own cores."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

from metaopt.errors import UserError, printable
from metaopt.launch import jobs, sweep_folder
from metaopt.launch.machine import accelerator, plugins, shares
from metaopt.launch.sweep_folder import Sweep
from metaopt.runs import folder, tables
from metaopt.runs.console import make_console, say
from metaopt.runs.index import Run, Seen, read_run
from metaopt.runs.interrupts import Interrupted, handling
from metaopt.runs.state import TO_DO

POLL_SECONDS = 0.1
WORKERS_A_CORE = 8  # beyond that they only take memory from one another
MOST_LISTED = 4  # runs, where all are named
DETACH_SECONDS = 20.0  # for a launcher in the background to take over the sweep
ON_ACCELERATORS = (
    "jax would take all of this machine's accelerators ({}) in each of {} workers; use --workers 1, "
    "or set JAX_PLATFORMS=cpu."
)
LEFT_ALONE = {"finished": "finished already", "diverged": "diverged, and would again", "running": "running already"}


def choose_workers(asked: int | None, num_devices: int = 1) -> int:
    """How many runs at once: as many as there are cores for, one on accelerators, which jax takes all.

    Args:
      num_devices: of the run that asks for most.

    Raises:
      UserError: more than one on accelerators, or more than the cores can serve.
    """
    found = accelerator(os.environ, plugins())
    most = WORKERS_A_CORE * len(os.sched_getaffinity(0))
    if (asked or 1) > most:
        raise UserError(f"--workers {asked} is too many for the cores of this machine; at most {most} are allowed.")
    if found and (asked or 1) > 1:
        raise UserError(ON_ACCELERATORS.format(found, asked))
    return 1 if found else asked or max(1, len(os.sched_getaffinity(0)) // max(1, num_devices))


def run(sweep: Sweep, workers: int, console: Any = None) -> None:
    """Trains every run that is to do, and returns when all have finished.

    Raises:
      UserError: the sweep is being run already.
      SystemExit: with 1, some did not finish; all others did.
      Interrupted: a signal came; what was running is saved.
    """
    with sweep_folder.launching(sweep.path):
        _Launcher(sweep, workers, console or make_console(tables.WIDE)).run()


class _Launcher:
    def __init__(self, sweep: Sweep, workers: int, console: Any) -> None:
        self._sweep, self._console = sweep, console
        self._seen: Seen = {}
        first = sweep.read_runs(self._seen)
        self._queue = [one.name for one in first if one.state in TO_DO]
        several = len(os.sched_getaffinity(0)) > 1
        self._free = [cores if several else None for cores in shares(min(workers, len(self._queue)) or 1)]
        self._jobs: dict[str, tuple[jobs.Job, list[int] | None]] = {}
        self._received: int | None = None
        for state, why in LEFT_ALONE.items():
            if count := sum(one.state == state for one in first):
                say(console, f"{count} {why}: left alone")

    def run(self) -> None:
        told = False
        with handling(self._stop), self._shown():
            try:
                while (self._queue and self._received is None) or self._jobs:
                    self._start()
                    time.sleep(POLL_SECONDS)
                    if self._received is not None and not told:  # not in the handler: it may come within a line
                        told, name = True, signal.Signals(self._received).name
                        running = f"{len(self._jobs)} running, saving and stopping" + _listed(list(self._jobs))
                        waiting = f", {len(self._queue)} waiting will not begin" if self._queue else ""
                        self._say(f"{name}: {running}{waiting}; Ctrl-C again stops at once")
                    self._reap()
            except BaseException:
                self._pass_on(signal.SIGTERM)
                raise
        self._finish()

    def _start(self) -> None:
        while self._queue and self._free and self._received is None:
            name = self._queue.pop(0)
            path = self._sweep.run(name)
            if sweep_folder.is_cancelled(path):
                continue
            cores = self._free.pop(0)
            job = jobs.Job(path, jobs.command_of(path), cores=cores)
            self._jobs[name] = job, cores
            if self._received is not None or sweep_folder.is_cancelled(path):  # in between; see `cancelling`
                job.send_signal(signal.SIGTERM)

    def _reap(self) -> None:
        for name, (job, cores) in list(self._jobs.items()):
            if job.poll() is None:
                continue
            del self._jobs[name]
            self._free.append(cores)
            if not self._console.is_terminal:
                one = read_run(self._sweep.run(name), name, self._seen)
                loss = tables.number(one.progress.meta_loss)
                figures = f"meta-step {one.done}" + (f", meta-loss {loss}" if loss else "")
                self._say(f"{name}: {one.state}, {figures}" + (f" ({one.note})" if one.note else ""))

    def _stop(self, signum: int) -> None:
        """A signal has all jobs save and stop, and none begin; a second Ctrl-C stops them at once."""
        if self._received is None:
            self._received = signum
            self._pass_on(signal.SIGTERM)
        elif signum == signal.SIGINT:
            self._pass_on(signal.SIGINT)

    def _pass_on(self, signum: int) -> None:
        for job, _ in list(self._jobs.values()):
            job.send_signal(signum)

    def _shown(self) -> contextlib.AbstractContextManager[Any]:
        """A table that is kept up to date, in a terminal; elsewhere a line for each end."""
        if not self._console.is_terminal:
            return contextlib.nullcontext()
        from rich.live import Live

        return Live(
            console=self._console, get_renderable=self._table, refresh_per_second=1, vertical_overflow="ellipsis"
        )

    def _table(self) -> Any:
        rows = self._sweep.read_runs(self._seen)
        return tables.standings(rows, f"{self._sweep.path}: {tables.counts(rows)}")

    def _say(self, text: str) -> None:
        say(self._console, text)

    def _finish(self) -> None:
        rows = self._sweep.read_runs(self._seen)
        if not self._console.is_terminal:
            self._console.print(tables.standings(rows))
        self._say(f"{tables.counts(rows)}\nsweep folder: {self._sweep.path}")
        go_on = f"go on with `metaopt resume {self._sweep.path}`"
        if self._received is not None:
            stopped = [row.name for row in rows if row.state in TO_DO]
            others = [row.name for row in rows if row.state == "running"]  # that were running already
            goes = f"{len(others)} running already go on{_listed(others)}" if others else "nothing goes on by itself"
            what = f"stopped: {tables.counts(rows)}; {goes}"
            raise Interrupted(self._received, f"{what}; {go_on}, {len(stopped)} to do{_listed(stopped)}")
        if error := unfinished(rows, go_on):
            print(printable(f"metaopt: error: {error}"), file=sys.stderr)
            raise SystemExit(1)


def _listed(names: list[str]) -> str:
    """` (a, b and 3 more)`, nothing where there are none."""
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f" ({', '.join(names[:MOST_LISTED])}{more})" if names else ""


def unfinished(rows: list[Run], go_on: str) -> str | None:
    """What to say of a sweep that has ended and not finished; None where it has."""
    wrong = [row for row in rows if row.state in ("failed", "diverged", "lost")]
    left = [row for row in rows if row.state in ("cancelled", "interrupted")]
    if wrong:
        first = wrong[0]
        why = f"the first, {first.name}, {first.state}: {first.note.rstrip('.')}; see {first.path / sweep_folder.LOG}"
        to_do = any(row.state in TO_DO for row in rows)
        return f"{len(wrong)} of {len(rows)} runs failed; {why}" + (f"; {go_on}." if to_do else ".")
    return f"{len(left)} of {len(rows)} runs did not finish; {go_on}." if left else None


def detach(sweep: Sweep, workers: int) -> None:
    """Starts a launcher in the background and returns when it has taken over the sweep.

    Raises:
      UserError: it did not.
    """
    log = sweep.path / sweep_folder.LAUNCHER_LOG
    command = jobs.metaopt_command("resume", str(sweep.path), "--workers", str(workers))
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    until = time.monotonic() + DETACH_SECONDS
    while process.poll() is None and not folder.is_locked(sweep.path) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    if process.poll():
        raise UserError(f"the launcher did not start: {jobs.last_words(log.read_bytes()) or f'see {log}'}")
