"""Uploads in a process of their own, once the server is seen to answer."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from metaopt.runs import children


class Uploader:
    """A command in a process of its own, started when a server answers; asks again as time goes by."""

    def __init__(self, log: Path, *, patience: float, say: Callable[[str], None]) -> None:
        self._log = log  # takes what the command prints; it runs in the folder above
        self._patience = patience
        self._say = say
        self._command: Sequence[str] | None = None  # None: nothing is uploaded
        self._server = self._remedy = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._next_look = 0.0
        self._looks = 0

    def begin(self, command: Sequence[str], server: str, remedy: str) -> None:
        """`remedy` is the command that a person repeats the upload with."""
        self._command, self._server, self._remedy = command, server, remedy
        self.look()

    def look(self) -> None:
        if self._command is None or self._process is not None or time.monotonic() < self._next_look:
            return
        reason = unreachable(self._server)
        if reason is None:
            with open(self._log, "ab") as file:
                # `wandb sync --live` by itself would wait for ever for the end of a run that was killed.
                self._process = children.start(
                    self._command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=self._log.parent
                )
            self._say(f"uploading beside the run, see {self._log}")
        elif self._looks == 0:
            self._say(f"{self._server} does not answer ({reason}); if it stays so, `{self._remedy}` uploads it")
        self._looks += 1
        self._next_look = time.monotonic() + 60.0 * min(self._looks, 10)

    def end(self) -> None:
        """Called when what is uploaded is whole."""
        self.look()
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)  # mostly it needs no longer
        if self._process.poll() is None:
            self._say(f"the upload goes on; if it fails, `{self._remedy}` repeats it")
        elif self._process.returncode:
            self._say(f"the upload failed; `{self._remedy}` repeats it")

    def wait(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def unreachable(server: str, timeout: float = 5.0) -> str | None:
    """Why a server cannot be uploaded to, None where it answers: any answer counts that is no error of its own."""
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(f"{server.rstrip('/')}/healthz", timeout=timeout).close()
    except urllib.error.HTTPError as error:
        return f"status {error.code}" if error.code >= 500 else None
    except Exception as error:  # what urllib raises is manifold
        reason = getattr(error, "reason", None) or error
        return str(getattr(reason, "strerror", None) or reason)
    return None
