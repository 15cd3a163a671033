"""Processes that do not outlive the one that started them, even where that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

# Asks the kernel for SIGKILL at the parent's death, then becomes the command; a parent that died before it had asked
# is no longer its parent. In a process of its own, since code between fork and exec is not safe beside jax's threads.
_BOUND = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """`subprocess.Popen` of a command that ends with this process, and with the thread that calls this."""
    if not sys.platform.startswith("linux"):  # other kernels have nothing of the kind
        return subprocess.Popen(command, **options)
    return subprocess.Popen([sys.executable, "-ISc", _BOUND, str(os.getpid()), *command], **options)
