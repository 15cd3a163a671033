"""The process that trains one run of a sweep, `metaopt train --resume RUN`, and what becomes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from metaopt import plugins
from metaopt.launch import sweep_folder
from metaopt.launch.sweep_folder import LOG
from metaopt.runs import children
from metaopt.runs.state import how_it_ended

LONGEST_ERROR = 500  # characters


def metaopt_command(*words: str) -> list[str]:
    """A command of metaopt as this process would run it, with the plugins that it was given."""
    return [sys.executable, "-m", "metaopt", *words, *plugins.words()]


def command_of(run: Path) -> list[str]:
    """The command that begins a run or goes on with it. Asked for where the sweep is launched, not on Slurm's nodes."""
    return metaopt_command("train", "--resume", str(run))


class Job:
    """Begins a run or goes on with it; its folder holds the log, and in job.json how it ended.

    The process ends with this one, whatever ends this one; what it saved stays.

    Args:
      command: of `command_of`.
      cores: the process's own; None: all.
      own_session: out of the reach of the terminal's Ctrl-C, which then comes by way of the parent.
    """

    def __init__(
        self, run: Path, command: Sequence[str], *, cores: list[int] | None = None, own_session: bool = True
    ) -> None:
        self.run = run
        self._status: int | None = None
        self._started = sweep_folder.now()
        with open(run / LOG, "ab") as log:
            self._log_from = log.tell()
            # Nobody is left to note how it ended, or to keep it company, when the launcher is killed.
            self._process = children.start(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=own_session
            )
        if cores:
            os.sched_setaffinity(self._process.pid, cores)
        sweep_folder.note_job(run, state="running", pid=self._process.pid, started=self._started)

    def poll(self) -> int | None:
        """The exit status once the process has ended, None before; -n: by signal n."""
        if self._status is None and self._process.poll() is not None:
            self._status = self._process.returncode
            error = self._error() if self._status else None
            times = {"started": self._started, "ended": sweep_folder.now()}
            sweep_folder.note_job(self.run, state="ended", exit_status=self._status, error=error, **times)
        return self._status

    def is_gone(self) -> bool:
        """Whether the process has ended; for signal handlers, where `poll` may have been interrupted half-way."""
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:
            return True

    def send_signal(self, signum: int) -> None:
        self._process.send_signal(signum)  # does nothing to a process that has ended

    def _error(self) -> str:
        """What it said last, in one line."""
        with open(self.run / LOG, "rb") as log:
            log.seek(self._log_from)
            return last_words(log.read())[:LONGEST_ERROR] or how_it_ended(self._status or 0)


def last_words(output: bytes) -> str:
    """The last of metaopt's own lines in a process's output, else the last line at all."""
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("metaopt: ")] or lines or [""]
    return said[-1].removeprefix("metaopt: ").removeprefix("error: ").strip()
