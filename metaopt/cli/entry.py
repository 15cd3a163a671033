"""The command `metaopt`: help, errors, exit statuses. jax is imported when a command needs it: help comes at once."""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from metaopt import __version__, files, streams
from metaopt.cli import commands
from metaopt.errors import MetaoptWarning, printable

HELP = """\
usage: metaopt COMMAND ...

Meta-learning of optimizers in JAX.

commands:
  train EXPERIMENT [--field value ...]      meta-train into a run folder, evaluate, write the report
  train --resume RUN                        go on with a run
  train --from RUN [--field value ...]      repeat a run in a new folder; says what differs from then
  launch EXPERIMENT --sweep FIELD=A,B [--seeds N] [--where local|slurm]
                                            many runs, as many at once as there are cores, or on a cluster
  status [SWEEP_OR_RUN ...]                 where runs stand, live in a terminal
  cancel SWEEP_OR_RUN ...                   save and stop; `resume SWEEP_OR_RUN` goes on
  evaluate RUN_OR_NAME ... [--tasks F ...] [--horizon T ...]
                                            learned optimizers beside tuned baselines
  benchmark OPTIMIZER ... [--suite S]       scores on a suite of tasks, beside tuned and untuned baselines
  report RUN_OR_SWEEP ... [--out PAGE]      one page that opens offline: of a run, or comparing several
  runs [FOLDER ...] [--where FIELD=VALUE]   list run folders; `runs compare`, `rename` and `delete` them
  doctor RUN_OR_EXPERIMENT                  examine meta-gradients, gates, inputs and steps; advice
  inspect RUN_OR_NAME_OR_OPTAX              what an optimizer learned: its rate, momentum, response, paths
  replay CAPSULE                            show again, to the bit, how a task blew up
  dashboard [RUN ...]                       runs on a local web page that follows them
  export RUN ... --to csv|parquet|tensorboard|wandb
                                            what they logged, for other programs
  list [NAME ...]                           everything that can be named; with a name, its options

Every command takes `--plugin FILE_OR_MODULE`, again for several: your own tasks, optimizers, ... (docs/extending.md).
`metaopt COMMAND --help` tells more; `metaopt --version` prints the version.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0: done, 1: a failure, 2: a user's mistake, 128 + signal."""
    streams.prepare()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell of a home that it cannot write to
    try:
        status = _main(sys.argv[1:] if arguments is None else arguments)
        try:
            sys.stdout.flush()  # what cannot be printed is noticed here, not by Python when all is over
        except OSError as error:
            streams.to_nowhere(sys.stdout)
            return status or _not_written(error)
    except BrokenPipeError:  # the reader of our output has gone
        streams.to_nowhere(sys.stdout)
        return 128 + signal.SIGPIPE
    except OSError as error:
        return _not_written(error)
    return status


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    command, *rest = arguments
    if command not in commands.COMMANDS:
        close = difflib.get_close_matches(command, commands.COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        return _fail(f"command {command!r} is unknown{hint} Known: {', '.join(commands.COMMANDS)}.")
    return _in_job(lambda: _run(command, rest))


def _in_job(run: Callable[[], int]) -> int:
    """A process that fails among others ends at once: at Python's exit jax would wait for the others."""

    def joined() -> bool:
        processes = sys.modules.get("metaopt.runs.processes")
        return processes is not None and processes.joined()

    try:
        status = run()
    except Exception:
        if not joined():
            raise
        traceback.print_exc()
        status = 1
    if joined():
        sys.modules["metaopt.runs.processes"].abandon(status)
    return status


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Python's warnings as `metaopt: warning: ...`, each once."""
    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        own = issubclass(category, MetaoptWarning)
        line = f"warning: {message}" if own else f"warning: {category.__name__}: {message} ({filename}:{lineno})"
        if line not in told:
            told.add(line)
            _tell(line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _run(command: str, arguments: list[str]) -> int:
    with _warnings_in_one_line():
        return _run_command(command, arguments)


def _run_command(command: str, arguments: list[str]) -> int:
    try:
        os.getcwd()
    except OSError:
        return _fail("the current folder is gone; change to one that is there.")
    try:
        # These need jax: imported late, and inside the block, so that Ctrl-C during the import ends quietly too.
        from metaopt import plugins
        from metaopt.errors import UserError
        from metaopt.registry import UnknownEntry
        from metaopt.runs import faults, own_entries, processes
        from metaopt.runs.interrupts import Interrupted

        try:
            commands.run(command, plugins.take([files.written_out(word) for word in arguments]))
        except UnknownEntry as error:
            return _fail(own_entries.explained(error, [command, *arguments]))
        except UserError as error:
            return _fail(str(error))
        except Interrupted as error:
            _tell(str(error))
            return error.exit_status
        except (RuntimeError, MemoryError) as error:
            told = isinstance(error, (faults.NotWritten, processes.LostProcess))
            if told or type(error).__name__ == "Diverged":
                return _fail(str(error), 1)
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                return _fail(_out_of_memory(error), 1)
            raise
        except OSError as error:
            # pathlib asks the system about whatever a person named, and raises for this alone.
            if error.errno == errno.ENAMETOOLONG and any(str(error.filename) in word for word in arguments):
                return _fail(f"{str(error.filename)[:60]}... is longer than the name of any file; give another.")
            return _not_written(error)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    return 0


def _out_of_memory(error: Exception) -> str:
    lines = str(error).removeprefix("RESOURCE_EXHAUSTED: ").splitlines()
    cause = f" ({lines[0].rstrip('.')})" if lines else ""
    return f"out of memory{cause}; lower --num-tasks, in training also --chunk-size, or take a smaller task."


def _not_written(error: OSError) -> int:
    """The line for a disk that takes no more, whatever was written to it; raises what is about something else."""
    trouble = files.disk_trouble(error)
    if trouble is None:
        raise error
    named = isinstance(error.filename, str | bytes)
    where = os.fsdecode(error.filename) if named else "cannot write the output"
    return _fail(f"{where}: {trouble}; mend that and give the command again.", 1)


def _fail(message: str, status: int = 2) -> int:
    _tell(f"error: {message}")
    return status


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"metaopt: {printable(' '.join(message.split()))}", file=sys.stderr)
