"""state.json and job.json: what a run folder tells those who look at it, and the words for where a run stands."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metaopt import files
from metaopt.runs import folder

STATES = ("running", "finished", "interrupted", "diverged", "failed")  # what state.json says
# What else a run can be: not begun; told to end; its process gone without a word; no state.json that tells, or no
# config.json that can be read.
ALL_STATES = (*STATES, "waiting", "cancelled", "lost", "unknown", "unreadable")
TO_DO = ("waiting", "interrupted", "cancelled", "failed", "lost", "unknown")  # what `metaopt resume SWEEP` goes on with
ACTIVE = ("running", "waiting")


class RunState(NamedTuple):
    """What state.json says, and what the lock of the folder says of it."""

    state: str  # one of STATES; "lost": its process ended without a word, as after kill -9; "unknown": there is no file
    meta_step: int  # what a resumption goes on from
    num_meta_steps: int | None  # asked for
    pid: int | None
    host: str | None
    reason: str | None  # one line, where it is not finished
    time: str | None  # of the last change, UTC


def read_state(path: Path) -> RunState:
    """The state of a run folder. Never raises: whatever is missing or broken is None."""
    held = files.read_object(path / folder.STATE)

    def entry(name: str, kind: type) -> Any:
        value = held.get(name)
        return value if isinstance(value, kind) and not isinstance(value, bool) else None

    state = entry("state", str) if entry("state", str) in STATES else "unknown"
    pid, host = entry("pid", int), entry("host", str)
    locked = folder.is_locked(path)
    if locked is None:  # a file system without locks: on its own host, the process
        locked = state == "running" and (host != platform.node() or pid is None or _alive(pid))
    if locked:
        state = "running"
    elif state == "running":
        state = "lost"
    meta_step, steps = entry("meta_step", int), entry("num_meta_steps", int)
    if state in ("running", "lost", "unknown") or meta_step is None:
        meta_step = folder.last_checkpoint(path) or 0
    return RunState(state, meta_step, steps, pid, host, entry("reason", str), entry("time", str))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


# ----- job.json: the process that trains a run of a sweep, and how that ended; written by its parent ------------------

JOB = "job.json"


def read_job(run: Path) -> dict[str, Any]:
    """What job.json holds; nothing where it is missing or broken."""
    return files.read_object(run / JOB)


def job_lives(job: Mapping[str, Any]) -> bool:
    """Whether the process of a job.json is there; on another host, whether it was begun in the last five minutes."""
    if job.get("state") != "running":
        return False
    if job.get("host") != platform.node():  # by then training has locked the folder, which is seen from here
        with contextlib.suppress(TypeError, ValueError):
            began = datetime.datetime.fromisoformat(str(job.get("started")))
            return (datetime.datetime.now(datetime.UTC) - began).total_seconds() < 300
        return False
    try:
        words = Path(f"/proc/{job.get('pid')}/cmdline").read_bytes()
    except OSError:
        return False
    return b"metaopt" in words  # and not another process that got its number


def how_it_ended(status: int) -> str:
    """`ended by SIGKILL` or `ended with exit status 1`."""
    try:
        return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    except ValueError:
        return f"ended by signal {-status}"


def standing(path: Path, told: RunState, *, meta_step: int, num_meta_steps: int | None) -> tuple[str, str]:
    """(one of ALL_STATES but "unreadable", why or what it is doing) of a run, from all that its folder holds.

    Args:
      told: as `read_state` gives it.
      meta_step: of the last row of its metrics.
    """
    job = read_job(path)
    if told.state == "running":
        doing = "" if meta_step < (num_meta_steps or 0) else "evaluating"
        return "running", doing if meta_step else "compiling"
    if told.state == "finished":
        return "finished", ""
    if job_lives(job):
        return "running", "starting"
    if told.state == "diverged":
        return "diverged", told.reason or ""
    if (path / folder.CANCELLED).exists():
        return "cancelled", ""
    if job.get("state") == "requeued":
        return "waiting", "queued again"
    status = job.get("exit_status")
    status = status if isinstance(status, int) else 0
    gone = how_it_ended(status) if status else "its process is gone"
    gone += f"; goes on from meta-step {told.meta_step}" if told.meta_step else "; nothing is saved"
    # It may have failed before it could say so in state.json; and it may have been resumed by hand since.
    if 0 < status < 128 and str(job.get("ended")) >= (told.time or ""):
        return "failed", str(job.get("error") or told.reason or how_it_ended(status))
    if told.state == "lost":
        return "lost", gone
    if told.state != "unknown":
        return told.state, told.reason or ""
    if status == -signal.SIGKILL or job.get("state") == "running":
        return "lost", gone
    if status:
        return "interrupted", "before it began"
    if not meta_step:
        return "waiting", ""
    evaluated = (path / folder.EVALUATION).is_file() and meta_step == num_meta_steps
    return ("finished", "") if evaluated else ("unknown", f"its {folder.STATE} does not tell")  # of an older version


# ----- writing --------------------------------------------------------------------------------------------------------


def write_state(path: Path, state: str, *, num_meta_steps: int, reason: str | None = None) -> None:
    """Writes state.json; a disk that takes nothing is no reason to end a run."""
    held = {
        "version": 1,
        "state": state,
        "meta_step": folder.last_checkpoint(path) or 0,
        "num_meta_steps": num_meta_steps,
        "pid": os.getpid(),
        "host": platform.node(),
        "reason": reason,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    try:
        files.write_json(path / folder.STATE, held)
    except OSError:  # on a full disk there is still room in the place of the old one
        with contextlib.suppress(OSError), open(path / folder.STATE, "r+", encoding="utf-8") as file:
            file.write(json.dumps(held) + "\n")
            file.truncate()


@contextlib.contextmanager
def told(path: Path, *, num_meta_steps: int, ends: Mapping[type[BaseException], str]) -> Iterator[None]:
    """state.json says "running" within the block, and after it how the block ended.

    Args:
      ends: the state that an exception leaves; "failed" after any other.
    """
    write_state(path, "running", num_meta_steps=num_meta_steps)
    try:
        yield
    except BaseException as error:
        state = next((state for kind, state in ends.items() if isinstance(error, kind)), "failed")
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        write_state(path, state, num_meta_steps=num_meta_steps, reason=reason)
        raise
    write_state(path, "finished", num_meta_steps=num_meta_steps)
