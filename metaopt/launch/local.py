"""A sweep on this machine: so many runs at once, each a process of its own on its own cores."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.launch import machine, sweep_folder
from metaopt.launch.jobs import Job
from metaopt.launch.machine import accelerator, shares
from metaopt.launch.sweep_folder import Sweep
from metaopt.runs import folder, tables
from metaopt.runs.console import make_console, say
from metaopt.runs.index import Run, Seen, read_run
from metaopt.runs.interrupts import SIGNALS, Interrupted
from metaopt.runs.state import TO_DO

POLL_SECONDS = 0.1
REDRAW_SECONDS = 1.0
DETACH_SECONDS = 20.0  # for a launcher in the background to take over the sweep
ON_ACCELERATORS = (
    "jax would take all of this machine's accelerators ({}) in each of {} workers; use --workers 1, "
    "or set JAX_PLATFORMS=cpu."
)


def choose_workers(asked: int | None, num_devices: int = 1) -> int:
    """How many runs at once: as many as there are cores for, one on accelerators, which jax takes all.

    Args:
      num_devices: of the run that asks for most.

    Raises:
      UserError: more than one on accelerators.
    """
    found = accelerator(os.environ, machine.plugins())
    if found and (asked or 1) > 1:
        raise UserError(ON_ACCELERATORS.format(found, asked))
    if found:
        return 1
    return asked or max(1, len(os.sched_getaffinity(0)) // max(1, num_devices))


def run(sweep: Sweep, workers: int, console: Any = None) -> None:
    """Trains every run that is to do, and returns when all have finished.

    Raises:
      UserError: the sweep is being run already.
      SystemExit: with 1, some did not finish; all others did.
      Interrupted: a signal came; what was running is saved.
    """
    with sweep_folder.launching(sweep.path):
        launcher = _Launcher(sweep, workers, console or make_console(tables.WIDE))
        launcher.run()


class _Launcher:
    def __init__(self, sweep: Sweep, workers: int, console: Any) -> None:
        self._sweep = sweep
        self._console = console
        self._seen: Seen = {}
        first = sweep.read_runs(self._seen)
        self._queue = [one.name for one in first if one.state in TO_DO]
        workers = min(workers, len(self._queue)) or 1
        several = len(os.sched_getaffinity(0)) > 1
        self._free: list[list[int] | None] = [cores if several else None for cores in shares(workers)]
        self._jobs: dict[str, tuple[Job, list[int] | None]] = {}
        self._received: int | None = None
        self._told_signal = False
        self._live: Any = None
        self._redrawn = 0.0
        self._left_alone = [one for one in first if one.name not in self._queue]

    def run(self) -> None:
        with self._signals(), self._shown():
            self._tell_of_the_others()
            try:
                while (self._queue and self._received is None) or self._jobs:
                    self._start()
                    time.sleep(POLL_SECONDS)
                    self._tell_signal()
                    self._reap()
                    self._redraw()
            except BaseException:
                for job, _ in self._jobs.values():
                    job.send_signal(signal.SIGTERM)
                raise
            self._redraw(now=True)
        self._finish()

    def _start(self) -> None:
        while self._queue and self._free and self._received is None:
            name = self._queue.pop(0)
            if sweep_folder.is_cancelled(self._sweep.run(name)):
                continue
            cores = self._free.pop(0)
            job = Job(self._sweep.run(name), plugins=plugins.words(), cores=cores)
            self._jobs[name] = job, cores
            if self._received is not None or sweep_folder.is_cancelled(job.run):  # in between; see `ending`
                job.send_signal(signal.SIGTERM)

    def _reap(self) -> None:
        for name, (job, cores) in list(self._jobs.items()):
            if job.poll() is not None:
                del self._jobs[name]
                self._free.append(cores)
                self._tell_end(name)

    # ----- signals ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """A signal has all jobs save and stop, and none begin; a second Ctrl-C stops them at once."""
        # A closed terminal counts as a request to stop, except under nohup.
        hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
        before = {signum: signal.signal(signum, self._handle) for signum in (*SIGNALS, *hangup)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._received is not None and signum != signal.SIGINT:
            return
        passed_on = signal.SIGINT if self._received is not None else signal.SIGTERM
        if self._received is None:
            self._received = signum
        for job, _ in list(self._jobs.values()):
            job.send_signal(passed_on)

    # ----- telling ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        """A table that is kept up to date, in a terminal; elsewhere a line for each end."""
        if not self._console.is_terminal:
            yield
            return
        from rich.live import Live

        with Live(console=self._console, auto_refresh=False, vertical_overflow="ellipsis") as self._live:
            yield

    def _redraw(self, *, now: bool = False) -> None:
        if self._live is None or not (now or time.monotonic() > self._redrawn + REDRAW_SECONDS):
            return
        rows = self._sweep.read_runs(self._seen)
        self._live.update(tables.standings(rows, f"{self._sweep.path}: {tables.counts(rows)}"), refresh=True)
        self._redrawn = time.monotonic()

    def _tell_of_the_others(self) -> None:
        for state, why in (
            ("finished", "finished already"),
            ("diverged", "diverged, and would again"),
            ("running", "running already"),
        ):
            count = sum(one.state == state for one in self._left_alone)
            if count:
                self._say(f"{count} {why}: left alone")

    def _tell_signal(self) -> None:
        """Not in the handler: the signal may have come in the middle of a line."""
        if self._received is not None and not self._told_signal:
            self._told_signal = True
            name = signal.Signals(self._received).name
            self._say(f"{name}: {len(self._jobs)} running, saving and stopping; Ctrl-C again stops at once")

    def _tell_end(self, name: str) -> None:
        if self._live is None:
            one = read_run(self._sweep.run(name), name, self._seen)
            loss = tables.number(one.progress.meta_loss)
            figures = f"meta-step {one.done}" + (f", meta-loss {loss}" if loss else "")
            self._say(f"{name}: {one.state}, {figures}" + (f" ({one.note})" if one.note else ""))

    def _say(self, text: str) -> None:
        say(self._console, text)

    def _finish(self) -> None:
        rows = self._sweep.read_runs(self._seen)
        if not self._console.is_terminal:
            self._console.print(tables.standings(rows))
        self._say(f"{tables.counts(rows)}\nsweep folder: {self._sweep.path}")
        go_on = f"go on with `metaopt resume {self._sweep.path}`"
        if self._received is not None:
            raise Interrupted(self._received, f"stopped; {go_on}")
        error = unfinished(rows, go_on)
        if error:
            print(f"metaopt: error: {error}", file=sys.stderr)
            raise SystemExit(1)


def unfinished(rows: list[Run], go_on: str) -> str | None:
    """What to say of a sweep that has ended and not finished; None where it has."""
    wrong = [row for row in rows if row.state in ("failed", "diverged", "lost")]
    left = [row for row in rows if row.state in ("cancelled", "interrupted")]
    if wrong:
        first = wrong[0]
        log = first.path / sweep_folder.LOG
        message = (
            f"{len(wrong)} of {len(rows)} runs failed; the first, {first.name}, {first.state}: {first.note.rstrip('.')}"
        )
        return f"{message}; see {log}" + (f"; {go_on}." if any(row.state in TO_DO for row in rows) else ".")
    if left:
        return f"{len(left)} of {len(rows)} runs did not finish; {go_on}."
    return None


def detach(sweep: Sweep, workers: int) -> None:
    """Starts a launcher in the background and returns when it has taken over the sweep.

    Raises:
      UserError: it did not.
    """
    log = sweep.path / sweep_folder.LAUNCHER_LOG
    command = [sys.executable, "-m", "metaopt", "resume", str(sweep.path), "--workers", str(workers), *plugins.words()]
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    until = time.monotonic() + DETACH_SECONDS
    while process.poll() is None and not folder.is_locked(sweep.path) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    if process.poll():
        raise UserError(f"the launcher did not start: {last_line(log)}")


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("metaopt: error: ") if lines else f"see {log}"
