"""A sweep as a job array of Slurm, by submitit: each job trains one run, and queues again when it has to give way."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from metaopt import files, plugins
from metaopt.errors import UserError
from metaopt.launch import sweep_folder
from metaopt.launch.jobs import Job, how_it_ended
from metaopt.launch.sweep_folder import SLURM_JOBS, Sweep
from metaopt.runs import folder
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
    """What a job does, as submitit calls it: trains a run, and on SIGUSR2 saves and is queued again."""

    def __init__(self, run: str, plugins: Sequence[str] = ()) -> None:
        self.run, self.plugins = run, list(plugins)
        self._job: Job | None = None
        self._terminated: float | None = None  # when SIGTERM came; monotonic

    def __call__(self) -> str:
        run = Path(self.run)
        if sweep_folder.is_cancelled(run):
            return "cancelled"
        # submitit lets SIGTERM pass; the run is to save and stop.
        before = signal.signal(signal.SIGTERM, self._note_termination)
        try:
            return self._train(run)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _train(self, run: Path) -> str:
        # Within the job's own session, where all of Slurm's ways of tracking processes find it.
        self._job = Job(run, plugins=self.plugins, own_session=False)
        while (status := self._job.poll()) is None:
            time.sleep(POLL_SECONDS)
            if self._terminated is not None and time.monotonic() > self._terminated + OWN_SIGNAL_SECONDS:
                self._terminated = float("inf")
                self._job.send_signal(signal.SIGTERM)
        if status in STOPPED and not sweep_folder.is_cancelled(run):
            # It gave way, as Slurm had all processes do: what queues the job again comes next, SIGUSR2 for submitit or
            # the end by Slurm itself. A job that ended by itself before would count as failed.
            self._wait_for_the_end()
        if sweep_folder.is_cancelled(run):
            return "cancelled"
        if status:
            raise RuntimeError(f"{self.run} {how_it_ended(status)}; see {run / sweep_folder.LOG}")
        return "finished"

    def _wait_for_the_end(self) -> None:
        until = time.monotonic() + GIVE_WAY_SECONDS
        while time.monotonic() < until:
            time.sleep(POLL_SECONDS)

    def checkpoint(self) -> Any:
        """Called by submitit in its handler of SIGUSR2: returns, saved, what is to be queued."""
        from submitit.helpers import DelayedSubmission

        if self._job is not None:
            until = time.monotonic() + OWN_SIGNAL_SECONDS
            while not self._job.is_gone() and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            self._job.send_signal(signal.SIGUSR2)
            while not self._job.is_gone():
                time.sleep(POLL_SECONDS)
            sweep_folder.note_job(Path(self.run), state="requeued", ended=sweep_folder.now())
        return DelayedSubmission(Training(self.run, self.plugins))

    def _note_termination(self, signum: int, frame: FrameType | None) -> None:
        self._terminated = self._terminated or time.monotonic()


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
        if name == "time":
            found["timeout_min"] = minutes(text)
        elif name == "cpus":
            found["cpus_per_task"] = _count(name, text)
        elif name == "gpus":
            found["gpus_per_node"] = _count(name, text)
        elif name == "mem":
            found["mem_gb"] = _gigabytes(text)
        elif name in known:
            found[f"slurm_{name}"] = _value(text)
        else:
            others[name] = _value(text)
    if others:
        found["slurm_additional_parameters"] = others
    return found


def minutes(text: str) -> int:
    """`90`, `1:30:00` or `2-12:00`, as sbatch has them, in minutes, rounded up.

    Raises:
      UserError: none of these.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise UserError(f"--time ({text!r}) must be minutes, or [DAYS-]HOURS:MINUTES:SECONDS.")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, mins, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, mins, seconds = parts
    else:
        hours, mins, seconds = 0, *(*parts, 0)[:2]
    total = (int(days or 0) * 24 + hours) * 60 + mins + (seconds > 0)
    if total < 1:
        raise UserError(f"--time ({text!r}) must be at least a minute.")
    return total


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--{name} ({text!r}) must be a number from 1 on.")
    return int(text)


def _gigabytes(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:[gG][bB]?)?", text)
    if match is None or not float(match[1]):
        raise UserError(f"--mem ({text!r}) must be a number of gigabytes, for example 16GB.")
    return float(match[1])


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text


# ----- submitting and cancelling --------------------------------------------------------------------------------------


def begin(sweep: Sweep, at_once: int | None, *, cluster: str = "slurm") -> str:
    """Submits what a sweep has to do and is not queued already; returns what was done, in words.

    Raises:
      UserError: submitit or Slurm is missing, or Slurm refuses.
    """
    if cluster == "slurm":
        check(sweep.slurm)
    alive = queued() if cluster == "slurm" else set()
    known = job_ids(sweep)
    to_do = [row.name for row in sweep.read_runs() if row.state in TO_DO]
    waiting = [name for name in to_do if known.get(name) in alive]
    names = [name for name in to_do if name not in waiting]
    still = f"{len(waiting)} queued already" if waiting else ""
    if not names:
        return still or "nothing is left to do"
    jobs = submit(sweep, names, at_once, cluster=cluster)
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
    try:
        executor = submitit.AutoExecutor(sweep.path.resolve() / "slurm", cluster=cluster, **options)
        executor.update_parameters(**asked)
        with executor.batch():
            return [executor.submit(Training(str(sweep.run(name).resolve()), plugins.words())) for name in names]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"Slurm did not take the jobs: {text}; mend it in {sweep.path / folder.SWEEP} "
                        f"(`slurm`) and go on with `metaopt resume {sweep.path}`.") from None  # fmt: skip


def job_ids(sweep: Sweep) -> dict[str, str]:
    """Run -> the id of the job it was last submitted as."""
    return {str(name): str(job) for name, job in files.read_object(sweep.path / SLURM_JOBS).items()}


def queued() -> set[str]:
    """The ids of this user's jobs that wait or run; empty where Slurm does not tell."""
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"],
            capture_output=True, text=True, timeout=QUERY_SECONDS, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return set()
    return set(asked.stdout.split())


def cancel(sweep: Sweep, names: list[str]) -> None:
    """Ends the jobs of these runs, wherever they are."""
    known = job_ids(sweep)
    ids = [known[name] for name in names if name in known]
    if ids:
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # gone already; the marks stay
            subprocess.run(["scancel", *ids], capture_output=True, timeout=QUERY_SECONDS, check=False)
