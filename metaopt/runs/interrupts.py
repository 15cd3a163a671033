"""Ctrl-C and the signals of batch systems: training stops at the next chunk's end, saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

# SIGUSR2: submitit's notice before a time limit; SIGHUP: the terminal was closed
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)


class Interrupted(Exception):
    """A signal ended the work; what was done is saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + signum


class SignalGuard:
    """Within the block the first signal is noted in `received`; a second Ctrl-C stops at once.

    With `at_once` set, the first one raises `KeyboardInterrupt` as well, for work that is repeated rather than saved.

    Args:
      silent: say nothing, and leave the stop to another process of the same job.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.received: int | None = None
        self._silent = silent
        self.at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalGuard:
        # Only the main thread may set handlers; elsewhere signals keep their usual effect.
        if threading.current_thread() is threading.main_thread():
            nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signals = [signum for signum in SIGNALS if not (nohup and signum == signal.SIGHUP)]
            self._before = {signum: signal.signal(signum, self._handle) for signum in signals}
        return self

    def __exit__(self, *error: Any) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: it was not set by Python

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._silent:
            return
        again = self.received is not None
        self.received = self.received or signum
        if self.at_once or (again and signum == signal.SIGINT):
            raise KeyboardInterrupt
        if not again:
            # Not print: the signal may have come in the middle of one.
            name = signal.Signals(signum).name
            text = f"\n{name}: saving at the end of this chunk of meta-steps; Ctrl-C again stops at once\n"
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, text.encode())
