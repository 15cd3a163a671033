"""A sweep as a job array of Slurm, by submitit: each job trains one run, and queues again when it has to give way."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metaopt import files
from metaopt.errors import UserError
from metaopt.launch import sweep_folder
from metaopt.launch.jobs import Job, command_of, how_it_ended
from metaopt.launch.sweep_folder import SLURM_JOBS, Sweep
from metaopt.runs import folder
from metaopt.runs.interrupts import handling
from metaopt.runs.state import TO_DO

MISSING = "--where slurm needs submitit; run `pip install 'metaopt-jax[slurm]'`, or leave it out to run here."
NO_SLURM = (
    "--where slurm needs Slurm's commands, and {} is not on PATH; run it where jobs are submitted, or leave it out."
)
MOST_TIMEOUTS = 1000  # a run may reach its time limit as often, and go on: it saves each time
POLL_SECONDS = 0.2
OWN_SIGNAL_SECONDS = 2.0  # for a job to end by the signal that Slurm sends to all its processes, before it is passed on
GIVE_WAY_SECONDS = 120.0  # between SIGTERM and what comes after it; Slurm's KillWait is 30 unless told otherwise
STOPPED = {code for signum in (signal.SIGTERM, signal.SIGUSR2) for code in (-signum, 128 + signum)}  # exit statuses
QUERY_SECONDS = 60


class Training:
    """What a job does, as submitit calls it: trains a run, and on SIGUSR2 saves and is queued again.

    Args:
      command: of `jobs.command_of`, asked for where the sweep was launched.
    """

    def __init__(self, run: str, command: list[str]) -> None:
        self.run, self.command = run, command
        self._job: Job | None = None
        self._terminated: float | None = None  # when SIGTERM came; monotonic

    def __call__(self) -> str:
        if sweep_folder.is_cancelled(Path(self.run)):
            return "cancelled"
        with handling(self._note_termination, [signal.SIGTERM]):  # submitit lets it pass; the run is to save and stop
            return self._train(Path(self.run))

    def _train(self, run: Path) -> str:
        # Within the job's own session, where all of Slurm's ways of tracking processes find it.
        self._job = Job(run, self.command, own_session=False)
        while (status := self._job.poll()) is None:
            time.sleep(POLL_SECONDS)
            if self._terminated is not None and time.monotonic() > self._terminated + OWN_SIGNAL_SECONDS:
                self._terminated = float("inf")
                self._job.send_signal(signal.SIGTERM)
        if status in STOPPED and not sweep_folder.is_cancelled(run):
            # It gave way, as Slurm had all processes do: what queues the job again comes next, SIGUSR2 for submitit or
            # the end by Slurm itself. A job that ended by itself before would count as failed.
            _wait(GIVE_WAY_SECONDS)
        if sweep_folder.is_cancelled(run):
            return "cancelled"
        if status:
            raise RuntimeError(f"{self.run} {how_it_ended(status)}; see {run / sweep_folder.LOG}")
        return "finished"

    def checkpoint(self) -> Any:
        """Called by submitit in its handler of SIGUSR2: returns, saved, what is to be queued."""
        from submitit.helpers import DelayedSubmission

        if self._job is not None:
            _wait(OWN_SIGNAL_SECONDS, self._job)
            self._job.send_signal(signal.SIGUSR2)
            _wait(math.inf, self._job)
            sweep_folder.note_job(Path(self.run), state="requeued", ended=sweep_folder.now())
        return DelayedSubmission(Training(self.run, self.command))

    def _note_termination(self, signum: int) -> None:
        self._terminated = self._terminated or time.monotonic()


def _wait(seconds: float, job: Job | None = None) -> None:
    """Lets time pass, until the job's end where there is one."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not (job is not None and job.is_gone()):
        time.sleep(POLL_SECONDS)


# ----- what is asked of Slurm -----------------------------------------------------------------------------------------


def check(settings: dict[str, str]) -> None:
    """Raises what would go wrong at submission.

    Raises:
      UserError: submitit or Slurm is missing, or a setting is wrong.
    """
    _submitit()
    parameters(settings)
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise UserError(NO_SLURM.format(command))


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(MISSING) from None
    return submitit


def parameters(settings: dict[str, str]) -> dict[str, Any]:
    """submitit's parameters for the command line's; what submitit does not know goes to sbatch as it is.

    Raises:
      UserError: a value cannot be read.
    """
    from submitit.slurm.slurm import SlurmExecutor

    known = SlurmExecutor._valid_parameters()
    found: dict[str, Any] = {"slurm_job_name": "metaopt", "cpus_per_task": 1, "timeout_min": 60}
    others: dict[str, Any] = {}
    for name, text in settings.items():
        if name in READ:
            key, read, what = READ[name]
            try:
                found[key] = read(text)
            except ValueError:
                raise UserError(f"--{name} ({text!r}) must be {what}.") from None
        elif name in known:
            found[f"slurm_{name}"] = _plain(text)
        else:
            others[name] = _plain(text)
    return found | ({"slurm_additional_parameters": others} if others else {})


def minutes(text: str) -> int:
    """`90`, `1:30:00` or `2-12:00`, as sbatch has them, in minutes, rounded up.

    Raises:
      ValueError: none of these, or no time at all.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ValueError(text)
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    hours, mins, seconds = (*numbers, 0, 0)[:3] if days or len(numbers) == 3 else (0, *numbers, 0)[:3]
    return _positive((int(days or 0) * 24 + hours) * 60 + mins + (seconds > 0))


def _positive(value: Any) -> Any:
    if not 0 < value < math.inf:
        raise ValueError(value)
    return value


def _gigabytes(text: str) -> float:
    return _positive(float(re.sub(r"\s*[gG][bB]?$", "", text)))


def _plain(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text


# Option -> (submitit's name, how it is read, what it must be).
READ: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "time": ("timeout_min", minutes, "minutes, or [DAYS-]HOURS:MINUTES:SECONDS, from one minute on"),
    "cpus": ("cpus_per_task", lambda text: _positive(int(text)), "a number from 1 on"),
    "gpus": ("gpus_per_node", lambda text: _positive(int(text)), "a number from 1 on"),
    "mem": ("mem_gb", _gigabytes, "a number of gigabytes, for example 16GB"),
}


# ----- submitting and cancelling --------------------------------------------------------------------------------------


def begin(sweep: Sweep, at_once: int | None) -> str:
    """Submits what a sweep has to do and is not queued already; returns what was done, in words.

    Raises:
      UserError: submitit or Slurm is missing, or Slurm refuses.
    """
    check(sweep.slurm)
    alive, known = queued(), files.read_object(sweep.path / SLURM_JOBS)
    to_do = [row.name for row in sweep.read_runs() if row.state in TO_DO]
    waiting = [name for name in to_do if known.get(name) in alive]
    names = [name for name in to_do if name not in waiting]
    still = f"{len(waiting)} queued already" if waiting else ""
    if not names:
        return still or "nothing is left to do"
    jobs = submit(sweep, names, at_once, cluster="slurm")
    ids = {name: str(job.job_id) for name, job in zip(names, jobs, strict=True)}
    files.write_json(sweep.path / SLURM_JOBS, {**known, **ids})
    first = ids[names[0]].partition("_")[0]
    return f"{len(names)} submitted as Slurm's job {first}" + (f", {still}" if still else "")


def submit(sweep: Sweep, names: list[str], at_once: int | None, *, cluster: str) -> list[Any]:
    """submitit's jobs for these runs, in their order.

    Args:
      cluster: submitit's: "slurm", or "local" and "debug" for tests.
    """
    submitit = _submitit()
    asked = parameters(sweep.slurm) | ({"slurm_array_parallelism": at_once} if at_once else {})
    options = {"slurm_max_num_timeout": MOST_TIMEOUTS} if cluster == "slurm" else {}
    runs = [sweep.run(name).resolve() for name in names]
    try:
        executor = submitit.AutoExecutor(sweep.path.resolve() / "slurm", cluster=cluster, **options)
        executor.update_parameters(**asked)
        with executor.batch():
            return [executor.submit(Training(str(run), command_of(run))) for run in runs]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"Slurm did not take the jobs: {text}; mend it in {sweep.path / folder.SWEEP} "
                        f"(`slurm`) and go on with `metaopt resume {sweep.path}`.") from None  # fmt: skip


def queued() -> set[str]:
    """The ids of this user's jobs that wait or run; empty where Slurm does not tell."""
    return set(_ask("squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}").split())


def cancel(sweep: Sweep, names: list[str]) -> None:
    """Ends the jobs of these runs, wherever they are."""
    known = files.read_object(sweep.path / SLURM_JOBS)  # run -> the id of the job it was last submitted as
    if ids := [known[name] for name in names if name in known]:
        _ask("scancel", *ids)  # gone already: the marks stay


def _ask(*command: str) -> str:
    """What one of Slurm's commands prints; nothing where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=QUERY_SECONDS, check=True)
        return done.stdout
    except (OSError, subprocess.SubprocessError):
        return ""
