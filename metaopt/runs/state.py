"""state.json: what a run folder tells those who look at it from outside, written whole at every turn of a run."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metaopt import files
from metaopt.runs import folder

STATES = ("running", "finished", "interrupted", "diverged", "failed")


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
