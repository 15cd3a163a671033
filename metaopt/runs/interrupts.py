"""Ctrl-C and the signals of batch systems. Who does something about them does it here."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

# SIGUSR2: submitit's notice before a time limit; SIGHUP: the terminal was closed
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)


class Interrupted(Exception):
    """A signal ended the work; what was done is saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + signum


@contextlib.contextmanager
def handling(handle: Callable[[int], None], signals: Sequence[int] = SIGNALS) -> Iterator[None]:
    """Within the block a signal calls `handle` with its number; under nohup a closed terminal is still no signal.

    Only the main thread may set handlers; in others signals keep their usual effect.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        for signum in signals:
            if not (nohup and signum == signal.SIGHUP):
                before[signum] = signal.signal(signum, lambda signum, frame: handle(signum))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: it was not set by Python


class SignalGuard(contextlib.ExitStack):
    """Within the block the first signal is noted in `received`; a second Ctrl-C stops at once.

    With `at_once` set, the first one raises `KeyboardInterrupt` as well, for work that is repeated rather than saved.

    Args:
      silent: say nothing, and leave the stop to another process of the same job.
    """

    def __init__(self, *, silent: bool = False) -> None:
        super().__init__()
        self.received: int | None = None
        self.at_once = False
        self._silent = silent

    def __enter__(self) -> SignalGuard:
        self.enter_context(handling(self._handle))
        return self

    def _handle(self, signum: int) -> None:
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
