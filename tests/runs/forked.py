"""Real processes at the price of a fork: children of one process that has imported everything and touched no device.

As a script it is that process: it reads a request a line and answers with a line, both JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

# Sends its own process a signal just before the n-th time that it opens, makes, renames or removes something in the
# run's folder: `folder`, `at` and `signum` are set before.
AT_FILE_EVENT = """
import os, sys
left = [at]
def hook(event, args):
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and args and folder in str(args[0]):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signum)
sys.addaudithook(hook)
"""


class Child:
    """A process that runs `metaopt ARGUMENTS`; what it says goes into the file `said`."""

    def __init__(self, forks: Forks, pid: int, said: Path) -> None:
        self._forks, self.pid, self._said = forks, pid, said
        self._status: int | None = None

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)  # until `wait` it stays a zombie at least: the number is nobody else's

    def ended(self) -> bool:
        if self._status is None:
            self._status = self._forks.ask({"poll": self.pid})
        return self._status is not None

    def wait(self) -> int:
        """The exit status, minus the signal's number where one ended it."""
        if self._status is None:
            self._status = self._forks.ask({"wait": self.pid})
        assert self._status is not None
        return self._status

    @property
    def said(self) -> str:
        return self._said.read_text(encoding="utf-8", errors="replace")


class Forks:
    """The parent of such processes; `close` ends it."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._count = scratch, 0
        environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(scratch / "cache"),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        self._parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(request) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._parent.stdout.readline())

    def start(self, *arguments: str, cwd: Path, before: str = "", **names: Any) -> Child:
        """Args: before: Python code that the child runs first, with `names` set."""
        self._count += 1
        said = self._scratch / f"said_{self._count}.txt"
        said.touch()
        request = {"run": arguments, "cwd": str(cwd), "said": str(said), "before": before, "names": names}
        return Child(self, self.ask(request), said)

    def run(self, *arguments: str, cwd: Path, before: str = "", **names: Any) -> tuple[int, str]:
        """(exit status, what was said)."""
        child = self.start(*arguments, cwd=cwd, before=before, **names)
        return child.wait(), child.said

    def close(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(timeout=30)


def _child(request: dict[str, Any]) -> None:
    """Never returns."""
    status = 1
    try:
        out = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, handle in ((0, nothing), (1, out), (2, out)):
            os.dup2(handle, number)
        os.chdir(request["cwd"])
        # Of its own group, as a job of a shell; with a shell's handlers.
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        exec(request["before"], dict(request["names"]))
        from metaopt.cli.entry import main

        status = main(request["run"])
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve(requests: IO[str], answers: IO[str]) -> None:
    def status(value: int) -> int:
        return os.waitstatus_to_exitcode(value)

    for line in requests:
        request = json.loads(line)
        answer: int | None
        if "run" in request:
            answer = os.fork()
            if answer == 0:
                _child(request)
        elif "wait" in request:
            answer = status(os.waitpid(request["wait"], 0)[1])
        else:
            pid, value = os.waitpid(request["poll"], os.WNOHANG)
            answer = status(value) if pid else None
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder, which holds tests
    import rich.table  # noqa: F401
    import tyro  # noqa: F401
    from jax._src import xla_bridge

    import metaopt.cli.arguments
    import metaopt.cli.evaluate
    import metaopt.runs.train  # noqa: F401

    assert not xla_bridge.backends_are_initialized()
    _serve(sys.stdin, sys.stdout)
