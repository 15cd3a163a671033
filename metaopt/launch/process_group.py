"""`metaopt launch`: one experiment in several processes of this machine, started, watched and ended together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from metaopt.errors import UserError
from metaopt.inner.devices import available_cores
from metaopt.launch.jobs import how_it_ended
from metaopt.launch.machine import accelerator, plugins, shares
from metaopt.runs import processes
from metaopt.runs.folder import resume_command
from metaopt.runs.interrupts import SIGNALS

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0  # after one process failed, for the others to end by themselves; again after SIGTERM, then SIGKILL
TAIL_LINES = 20
# What jax's C++ parts write for their own developers begins so, and goes on over lines until one of ours.
NOISE = re.compile(r"^(\[Gloo\]|[IWEF]\d{4} \d\d:\d\d:\d\d|WARNING: All log messages before absl|\*\*\* |\s+@ +0x)")
OURS = re.compile(r"^(metaopt: |Traceback |SIG[A-Z0-9]+: |\S+: \w*Warning: )")


def launch(arguments: list[str]) -> None:
    """Runs `metaopt train` in several processes; raises SystemExit with the status to end with, 0 apart.

    Raises:
      UserError: `--processes` is no number, or jax would use accelerators.
    """
    count, rest = _take_processes(arguments)
    found = accelerator(os.environ, plugins())
    if found and count > 1:
        raise UserError(processes.ON_CPUS.format(found))
    idle = _idle_cores(count, rest)
    if idle:
        print(f"metaopt: {idle}", flush=True)
    status = _Group(count, rest).run()
    if status:
        raise SystemExit(status)


def _take_processes(arguments: list[str]) -> tuple[int, list[str]]:
    """(N, the arguments for `metaopt train`)."""
    rest, value, words = [], None, iter(arguments)
    for word in words:
        flag, equals, after = word.partition("=")
        if flag == "--processes":
            value = after if equals else next(words, "")
        else:
            rest.append(word)
    if not rest:
        raise UserError("the experiment's name is missing; write `metaopt launch EXPERIMENT --processes N`.")
    if value is None:
        return available_cores(), rest
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"--processes ({value!r}) must be a number from 1 on.")
    return int(value), rest


def _idle_cores(count: int, rest: list[str]) -> str | None:
    """What to tell of cores without a device; None where all have one, or where the number of devices was decided."""
    cores = available_cores()
    decided = any(word.partition("=")[0].replace("_", "-") in ("--num-devices", "--resume") for word in rest)
    if count >= cores or count == 1 or decided:
        return None
    one = f"{cores} cores, {count} processes with one device each"
    return f"{one}; without --processes, or with `metaopt train`, every core has one."


class _Group:
    """The processes of one job; the first one's output goes to the terminal, that of the others to files."""

    def __init__(self, count: int, arguments: list[str]) -> None:
        self._count = count
        self._arguments = arguments
        self._running: list[subprocess.Popen[str]] = []
        self._ended: list[tuple[int, int]] = []  # (process, status) in the order of their ends
        self._quiet = False  # the launcher speaks now

    def run(self) -> int:
        """Returns the exit status for the whole."""
        with tempfile.TemporaryDirectory(prefix="metaopt-") as scratch, self._passing_signals_on():
            self._scratch = Path(scratch)
            try:
                self._start()
                forwarding = threading.Thread(target=self._forward_errors, daemon=True)
                forwarding.start()
                while len(self._ended) < self._count and not self._failed():
                    time.sleep(POLL_SECONDS)
                    self._look()
                self._end_the_rest()
                forwarding.join(GRACE_SECONDS)
                return self._report()
            finally:
                for process in self._running:
                    if process.poll() is None:
                        process.kill()

    # ----- starting ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        port = _free_port()
        command = [sys.executable, "-m", "metaopt", "train", *self._arguments]
        for index, cores in enumerate(shares(self._count)):
            environment = {
                **os.environ,
                processes.COORDINATOR: f"127.0.0.1:{port}",
                processes.NUM_PROCESSES: str(self._count),
                processes.PROCESS: str(index),
            }
            # In sessions of their own: a Ctrl-C in the terminal comes by way of the launcher.
            options: dict[str, Any] = {"start_new_session": True, "text": True, "errors": "replace"}
            if index == 0:
                environment[processes.RUN_NOTE] = str(self._scratch / "run")
                # By the end of its input it learns of the launcher's end, however sudden.
                options |= {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
                process = subprocess.Popen(command, env=environment, **options)
            else:
                with open(self._log(index), "w") as log:
                    options |= {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                    process = subprocess.Popen(command, env=environment, **options)
            os.sched_setaffinity(process.pid, cores)
            self._running.append(process)

    def _log(self, index: int) -> Path:
        return self._scratch / f"process_{index}.log"

    def _forward_errors(self) -> None:
        stream: IO[str] | None = self._running[0].stderr
        assert stream is not None
        noise = False
        for line in stream:
            noise = bool(NOISE.match(line)) or (noise and not OURS.match(line))
            if self._quiet or noise:
                continue
            try:
                sys.stderr.write(line)
                sys.stderr.flush()
            except (OSError, ValueError):
                self._quiet = True  # nobody reads it; the process must not wait on a full pipe for that

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        """Signals go to the first process, which saves, stops, and has the others stop."""

        def pass_on(signum: int, frame: FrameType | None) -> None:
            if self._running and self._running[0].poll() is None:
                self._running[0].send_signal(signal.SIGTERM if signum == signal.SIGHUP else signum)

        # A closed terminal counts as a request to stop, except under nohup.
        hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
        before = {signum: signal.signal(signum, pass_on) for signum in (*SIGNALS, *hangup)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    # ----- watching and ending ----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Notes who has ended since; those that another's end took along come last."""
        known = {index for index, _ in self._ended}
        new = [(i, p.returncode) for i, p in enumerate(self._running) if i not in known and p.poll() is not None]
        self._ended += sorted(new, key=lambda end: (_follows(end[1]), end[0]))

    def _failed(self) -> bool:
        return any(status for _, status in self._ended)

    def _end_the_rest(self) -> None:
        if not self._failed():
            return
        self._wait(GRACE_SECONDS)  # what the first process has to say for itself is worth waiting for
        self._quiet = True
        self._own_ends = list(self._ended)
        for how in (signal.SIGTERM, signal.SIGKILL):
            for process in self._running:
                if process.poll() is None:
                    process.send_signal(how)
            self._wait(GRACE_SECONDS)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while len(self._ended) < self._count and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            self._look()

    # ----- telling ----------------------------------------------------------------------------------------------------

    def _report(self) -> int:
        if not self._failed():
            return 0
        own = dict(self._own_ends)
        # What the first process ended with for a reason of its own, it has told itself.
        if own.get(0, 0) > 0 and not _follows(own[0]):
            return own[0]
        index, status = min(self._own_ends, key=lambda end: (end[1] == 0, _follows(end[1])))
        silent = [i for i in range(self._count) if i not in own]
        if _follows(status) and silent:
            index, status = silent[0], 0
        output = self._log(index).read_text(errors="replace").splitlines() if index else []
        said = [line for line in output if line.startswith("metaopt: ")]
        if status > 0 and said:
            print(said[-1], file=sys.stderr)
            return status
        if status > 0:
            print("\n".join(output[-TAIL_LINES:]), file=sys.stderr)
        print(f"metaopt: error: {self._message(index, status)}", file=sys.stderr)
        return 1

    def _message(self, index: int, status: int) -> str:
        """What happened to a process and what to do; status 0: it went on without the others hearing of it."""
        how = how_it_ended(status) if status else "did not answer any more"
        message = f"process {index} of {self._count} {how}, and the others were stopped"
        note = self._scratch / "run"
        run = Path(note.read_text(encoding="utf-8")) if note.is_file() else None
        if run is None or not run.is_dir():
            return f"{message}; nothing was saved, begin anew."
        return (
            f"{message}; {processes.saved(run)}; go on with `metaopt launch --resume {run} --processes {self._count}`, "
            f"or in one process with `{resume_command(run)}`."
        )


def _follows(status: int) -> bool:
    """Whether a process ended so because another one had: by its own account, or aborted by jax."""
    return status in (processes.LOST_STATUS, -signal.SIGABRT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
