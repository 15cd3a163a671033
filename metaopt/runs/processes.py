"""One run trained by the processes that `srun` or `mpirun` started: joining, what the first does for all, a loss."""

from __future__ import annotations

import importlib.util
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from metaopt.errors import UserError
from metaopt.runs.folder import last_checkpoint, resume_command

# Variables of those who start processes: how many, which one is this, how many are on this machine, which one there.
STARTERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),  # mpirun of MPICH and its kin
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "", "SLURM_LOCALID"),  # last: mpirun may start its own helpers by srun
)
# Where one of these is, jax finds the first process by itself: given by hand, Open MPI before 5, srun.
FOUND_BY_JAX = ("JAX_COORDINATOR_ADDRESS", "OMPI_MCA_orte_hnp_uri", "SLURM_STEP_NODELIST")
NOT_FOUND = (
    "the {} processes of this job do not find one another; `pip install mpi4py` for this MPI, or set "
    "JAX_COORDINATOR_ADDRESS=HOST:PORT for all of them, with the host of the first and a free port."
)
HEARTBEAT_SECONDS = 30  # after as long without a sign of life a process counts as lost
MOST_PROCESSES = 4096
PATIENCE_SECONDS = 30 * 24 * 3600  # for the first process's validation; one that dies is noticed by its heartbeat


class LostProcess(RuntimeError):
    """Another process of this job ended, so that this one cannot go on."""


class Job(NamedTuple):
    """Where this process stands among those that train together."""

    num_processes: int
    process: int
    num_here: int | None  # on this machine; None: not told
    process_here: int


def find_job(environment: Mapping[str, str]) -> Job | None:
    """The job that `srun` or `mpirun` started this process for; None where it trains alone. Needs no jax.

    In a batch script or an interactive shell, outside of `srun`, Slurm tells of no step, or of one with a single task.

    Raises:
      UserError: a variable that is no number that it can be, or more processes than any job has.
    """
    for names in STARTERS:
        count, process, count_here, process_here = (_number(name, environment.get(name)) for name in names)
        if count is not None and process is not None:
            if count > MOST_PROCESSES:
                raise UserError(f"{names[0]} is {count}; one run is trained by at most {MOST_PROCESSES} processes.")
            if count > 1 and process >= count:
                raise UserError(f"{names[1]}={process} is not below {names[0]}={count}; unset both, or mend them.")
            return Job(count, process, count_here, process_here or 0) if count > 1 else None
    return None


def _number(name: str, text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise UserError(f"{name} is {text[:40]!r}, which is no number; unset it, or start with `srun` or `mpirun`.")
    return None if text is None else int(text)


def devices_each(job: Job, num_devices: int | None) -> int:
    """CPU devices of each process: one, unless more are asked for in all.

    Raises:
      UserError: the processes' shares are not equal.
    """
    each, rest = divmod(num_devices or job.num_processes, job.num_processes)
    if rest:
        raise UserError(
            f"`num_devices` ({num_devices}), in all, must be a multiple of the {job.num_processes} processes."
        )
    return each


def join(job: Job) -> None:
    """Makes the devices of all processes visible to each. Has to come before jax touches a device.

    Raises:
      UserError: nothing tells where the first process is.
      LostProcess: not all of them came.
    """
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Programs with collectives in flight at once can wait for each other for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_enable_preemption_service", False)  # it swallows SIGTERM
    options = {"num_processes": job.num_processes, "process_id": job.process, **_meeting_point(job, os.environ)}
    try:
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except RuntimeError as error:
        what = f"the {job.num_processes} processes of this job did not come together"
        raise LostProcess(f"{what} ({_first_line(error)}); see what the others said.") from None


def _meeting_point(job: Job, environment: Mapping[str, str]) -> dict[str, Any]:
    """What jax has to be told to find the first process: nothing, where it knows the starter's variables itself."""
    if any(name in environment for name in FOUND_BY_JAX):
        return {}
    if job.num_here != job.num_processes:
        if importlib.util.find_spec("mpi4py") is None:
            raise UserError(NOT_FOUND.format(job.num_processes))
        return {"cluster_detection_method": "mpi4py"}
    # A port that all on this machine know: of Open MPI's name for the job, or else of the starter's number.
    port = 61440 + zlib.crc32(environment.get("PMIX_NAMESPACE", str(os.getppid())).encode()) % 4096
    return {
        "coordinator_address": f"127.0.0.1:{port}",
        "coordinator_bind_address": f"127.0.0.1:{port}",
        "local_device_ids": [job.process_here],  # of GPUs: one each, as jax has it where it knows the starter
        "cluster_detection_method": "deactivate",
    }


def joined() -> bool:
    """Whether this process is in a job with others, and has not left it."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    import jax

    return jax.process_index() == 0


def meet(name: str) -> None:
    """Waits until every process has come here, however long the first one's own work takes.

    A collective in its place would give up after half an hour.
    """
    if joined():
        from orbax.checkpoint import multihost

        multihost.sync_global_processes(name, timeout=PATIENCE_SECONDS)


def where_the_first_writes(path: Path) -> Path:
    """The first process's path, in every process; all of them meet here."""
    if not joined():
        return path
    import numpy as np
    from jax.experimental import multihost_utils

    meet("start")
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(os.fsencode(path).ljust(4096, b"\0"), np.uint8))
    return Path(os.fsdecode(bytes(told).rstrip(b"\0")))


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


def lost_message(error: BaseException, path: Path | None) -> str:
    """What to say and to do; `path`: the run's folder, None before this process knew it."""
    what = f"another process of this job was lost ({_first_line(error)})"
    if path is None:
        return f"{what} before training began; see what it said itself."
    return f"{what}; {saved(path)}; go on with `{resume_command(path)}`, in as many processes as you like."


def saved(path: Path) -> str:
    """What there is to go on from, in words."""
    if not path.is_dir():
        return "what was saved is on the first one's machine"
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
