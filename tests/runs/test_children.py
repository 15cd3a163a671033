"""What is started to work for a process ends with it, at any moment of its start-up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Starts a process that takes a while to import, and is killed after so many seconds.
PARENT = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from metaopt.runs import children
slow = "import time; print('begun', flush=True); time.sleep(60)"
print(children.start([sys.executable, "-c", slow], start_new_session=True, stdout=sys.stderr).pid, flush=True)
time.sleep(float(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other kernels tell nobody of a parent's death")
@pytest.mark.parametrize("seconds", [0.0, 0.003, 0.01, 0.03, 0.1, 0.5])
def test_a_child_ends_with_a_parent_that_is_killed(seconds: float) -> None:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", PARENT, root, str(seconds)], capture_output=True, text=True, timeout=30, check=False
    )  # its output ends when the child's does
    assert done.returncode == -signal.SIGKILL
    child, until = int(done.stdout), time.monotonic() + 5
    while lives(child) and time.monotonic() < until:
        time.sleep(0.01)
    left = lives(child)
    if left:
        os.kill(child, signal.SIGKILL)
    assert not left and (seconds < 0.5 or done.stderr == "begun\n")
