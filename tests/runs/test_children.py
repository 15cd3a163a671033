"""What is started to work for a process ends with it, at any moment of its start-up."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Starts a process that takes a while to import, and is killed after so many seconds, or once the other has begun. One
# that outlives it says so in a minute.
PARENT = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from metaopt.runs import children
slow = "import sys, time; print('begun', flush=True); time.sleep(60); print('outlived', file=sys.stderr)"
heard, told = os.pipe()
print(children.start([sys.executable, "-c", slow], start_new_session=True, stdout=told).pid, flush=True)
os.read(heard, 1) if sys.argv[2] == "begun" else time.sleep(float(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other kernels tell nobody of a parent's death")
@pytest.mark.parametrize("when", ["0", "0.003", "0.01", "0.03", "0.1", "begun"])
def test_a_child_ends_with_a_parent_that_is_killed(when: str) -> None:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", PARENT, root, when], capture_output=True, text=True, check=False
    )  # its output ends when the child's does
    assert done.returncode == -signal.SIGKILL and "outlived" not in done.stderr
    while lives(int(done.stdout)):  # it has let go of its output
        time.sleep(0.01)
