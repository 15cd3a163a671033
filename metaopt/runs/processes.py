"""The processes of one job: joining it, what the first of them does for all, waiting for one another, leaving."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from metaopt.errors import UserError
from metaopt.runs.folder import last_checkpoint, resume_command

# How `metaopt launch` tells its processes who they are.
COORDINATOR = "METAOPT_COORDINATOR"
NUM_PROCESSES = "METAOPT_NUM_PROCESSES"
PROCESS = "METAOPT_PROCESS"
RUN_NOTE = "METAOPT_RUN_NOTE"  # a file in which the first process notes the run's folder

LOST_STATUS = 75  # a process's exit status after another one was lost: the launcher looks for that other one
HEARTBEAT_SECONDS = 30  # after as long without a sign of life a process counts as lost
PATIENCE_SECONDS = 30 * 24 * 3600  # for the first process's validation; one that dies is noticed by its heartbeat

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


ON_CPUS = (
    "`metaopt launch` shares out the cores of a machine, and jax would take its accelerators ({}) in every process; "
    "use `metaopt train`, one process for all of them, or set JAX_PLATFORMS=cpu."
)


class LostProcess(RuntimeError):
    """Another process of this job ended, so that this one cannot go on."""


class Job(NamedTuple):
    """Where this process stands among those that train together."""

    num_processes: int
    process: int
    coordinator: str | None  # HOST:PORT; None: jax derives it from Slurm's variables


def find_job(environment: Mapping[str, str]) -> Job | None:
    """The job that `metaopt launch` or `srun` started this process for; None where it trains alone.

    In a batch script or an interactive shell, outside of `srun`, Slurm tells of no step, or of one with a single task.
    """
    if COORDINATOR in environment:
        job = Job(int(environment[NUM_PROCESSES]), int(environment[PROCESS]), environment[COORDINATOR])
    elif all(name in environment for name in SLURM):
        job = Job(int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_PROCID"]), None)
    else:
        return None
    return job if job.num_processes > 1 else None


def devices_each(job: Job, num_devices: int | None) -> int:
    """CPU devices of each process: one, unless more are asked for in all.

    Raises:
      UserError: the processes' shares are not equal.
    """
    if num_devices is None:
        return 1
    if num_devices % job.num_processes:
        raise UserError(
            f"`num_devices` ({num_devices}), in all, must be a multiple of the {job.num_processes} processes."
        )
    return num_devices // job.num_processes


def join(job: Job) -> None:
    """Makes the devices of all processes visible to each. Has to come before jax touches a device.

    Raises:
      UserError: `metaopt launch` on accelerators.
      LostProcess: not all of them came.
    """
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Programs with collectives in flight at once can wait for each other for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # jax's own handler swallows SIGTERM; jax 0.7 has no such setting, and there `SignalGuard` replaces the handler.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    if launched():
        _divert_gloo()
        if job.process == 0:
            threading.Thread(target=_outlive_launcher, name="launcher", daemon=True).start()
    options: dict[str, Any] = {"num_processes": job.num_processes, "process_id": job.process}
    if job.coordinator is not None:
        port = job.coordinator.rpartition(":")[2]
        options |= {
            "coordinator_address": job.coordinator,
            "coordinator_bind_address": f"127.0.0.1:{port}",
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except RuntimeError as error:
        raise LostProcess(f"not all {job.num_processes} processes of this job came ({_first_line(error)}).") from None
    if launched() and jax.default_backend() != "cpu":
        raise UserError(ON_CPUS.format(jax.default_backend()))


def _outlive_launcher() -> None:
    """Stops training, saved, once the launcher is gone: nobody would end this process. The others follow the first."""
    try:
        while os.read(0, 1):  # the launcher holds the other end, and writes nothing
            pass
    except OSError:
        pass
    # Nobody reads the error channel now either.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.kill(os.getpid(), signal.SIGTERM)


class _Terminal(io.FileIO):
    """Standard output that may go away: what is written after the terminal was closed is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(memoryview(data).cast("B"))


def _divert_gloo() -> None:
    """Lets what C++ prints on standard output, as gloo does, go to standard error, where the launcher sifts it."""
    sys.stdout.flush()
    raw = io.BufferedWriter(_Terminal(os.dup(1), "wb"))
    out = io.TextIOWrapper(raw, encoding=sys.stdout.encoding, line_buffering=True)
    os.dup2(2, 1)
    sys.stdout = out


def joined() -> bool:
    """Whether this process is in a job with others, and has not left it."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    import jax

    return jax.process_index() == 0


def launched() -> bool:
    """Whether `metaopt launch` watches over this process."""
    return COORDINATOR in os.environ


def note_run(path: Path) -> None:
    """Tells the launcher, where there is one, in which folder the job trains."""
    note = os.environ.get(RUN_NOTE)
    if note:
        Path(note).write_text(str(path), encoding="utf-8")


def meet(name: str) -> None:
    """Waits until every process has come here, however long the first one's own work takes.

    A collective in its place would give up after half an hour.
    """
    if joined():
        from orbax.checkpoint import multihost

        multihost.sync_global_processes(name, timeout=PATIENCE_SECONDS)


def leave() -> None:
    """Ends the common work, in every process: from here on each goes on, and ends, by itself."""
    if joined():
        import jax

        meet("leave")
        jax.distributed.shutdown()


def lost(error: BaseException) -> bool:
    """Whether an error out of jax means that another process is gone."""
    if not joined() or isinstance(error, UserError):
        return False
    text = str(error).lower()
    signs = ("gloo", "nccl", "coordination", "barrier", "heartbeat", "connection reset", "connection closed", "socket")
    return "resource_exhausted" not in text and any(sign in text for sign in signs)


def lost_message(error: BaseException, path: Path) -> str:
    return (
        f"another process of this job was lost ({_first_line(error)}); {saved(path)}; "
        f"go on with `{resume_command(path)}`."
    )


def saved(path: Path) -> str:
    """What there is to go on from, in words."""
    step = last_checkpoint(path)
    return "no checkpoint was reached" if step is None else f"the last checkpoint is of meta-step {step}"


def abandon(status: int) -> NoReturn:
    """Ends this process without waiting for the others, which would wait for it in turn."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(status)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
