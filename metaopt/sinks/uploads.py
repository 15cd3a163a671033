"""Uploads of what wandb logged offline: a process of its own, once the server is seen to answer."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Uploader:
    """`wandb beta sync --live` in a process of its own, started when the server answers; asks again as time goes by."""

    def __init__(self, path: Path, *, patience: float, say: Callable[[str], None]) -> None:
        self._path = path
        self._patience = patience
        self._say = say
        self._server = ""
        self._folder: Path | None = None  # to upload; None: nothing is
        self._process: subprocess.Popen[bytes] | None = None
        self._next_look = 0.0
        self._looks = 0

    def begin(self, folder: Path, server: str) -> None:
        self._folder, self._server = folder, server
        self.look()

    def look(self) -> None:
        if self._folder is None or self._process is not None or time.monotonic() < self._next_look:
            return
        reason = unreachable(self._server)
        if reason is None:
            self._start(self._folder)
        elif self._looks == 0:
            remedy = f"if it stays so, `wandb sync {self._folder}` uploads it"
            self._say(f"wandb: {self._server} does not answer ({reason}); {remedy}")
        self._looks += 1
        self._next_look = time.monotonic() + 60.0 * min(self._looks, 10)

    def _start(self, folder: Path) -> None:
        log = self._path / "wandb" / "upload.log"
        command = [sys.executable, "-P", "-m", "wandb", "beta", "sync", "--live", "--yes", str(folder)]
        with open(log, "ab") as file:
            # In the run's folder, or its logs would land in the user's.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=self._path
            )
        self._say(f"wandb: uploading beside the run, see {log}")

    def end(self) -> None:
        """Called when the offline files are whole."""
        self.look()
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)  # mostly it needs no longer
        if self._process.poll() is None:
            self._say(f"wandb: the upload goes on; if it fails, `wandb sync {self._folder}` repeats it")
        elif self._process.returncode:
            self._say(f"wandb: the upload failed; `wandb sync {self._folder}` repeats it")

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
