"""Faults from outside, told in one line: a disk that takes no more, another process of the job that is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from metaopt.errors import UserError
from metaopt.files import disk_trouble
from metaopt.runs import processes
from metaopt.runs.folder import resume_command


class NotWritten(RuntimeError):
    """The disk took no more. What was written before stays valid."""


@contextlib.contextmanager
def in_one_line(path: Path | None) -> Iterator[None]:
    """What a full disk or a lost process makes the libraries raise comes out as one line with the remedy.

    Args:
      path: the run's folder; None: this process does not know it yet.
    """
    try:
        yield
    except (UserError, processes.LostProcess, NotWritten):
        raise
    except (RuntimeError, ValueError, OSError) as error:  # by the library that noticed
        if processes.lost(error):
            raise processes.LostProcess(processes.lost_message(error, path)) from None
        trouble = disk_trouble(error)
        if trouble is not None and path is not None:
            raise NotWritten(
                f"cannot write to {path}: {trouble}; {processes.saved(path)}; mend that and go on with "
                f"`{resume_command(path)}`."
            ) from error
        raise
