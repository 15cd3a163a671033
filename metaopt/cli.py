"""The command `metaopt`. jax and the rest are imported when a command needs them, so that help comes at once."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from metaopt import __version__

HELP = """\
usage: metaopt COMMAND ...

Meta-learning of optimizers in JAX.

commands:
  train EXPERIMENT [--field value ...]      meta-train into a run folder, evaluate, write the report
  train --resume RUN                        go on with a run
  launch EXPERIMENT [--processes N] [...]   train in processes of this CPU, one a core
  evaluate RUN_OR_NAME ... [--tasks F ...] [--horizon T ...]
                                            learned optimizers beside tuned baselines
  report RUN ...                            one page, report.html, that opens offline
  doctor RUN_OR_EXPERIMENT                  examine meta-gradients, gates, inputs and steps; advice
  replay CAPSULE                            show again, to the bit, how a task blew up
  list [NAME ...]                           everything that can be named; with a name, its options

`metaopt COMMAND --help` tells more; `metaopt --version` prints the version.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0: done, 1: a failure, 2: a user's mistake, 128 + signal."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        return _fail(f"command {command!r} is unknown{hint} Known: {', '.join(COMMANDS)}.")
    return _in_job(lambda: _run(COMMANDS[command], rest))


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


def _run(command: Callable[[list[str]], None], arguments: list[str]) -> int:
    try:
        # These need jax: imported late, and inside the block, so that Ctrl-C during the import ends quietly too.
        from metaopt.experiment import UserError
        from metaopt.runs import processes
        from metaopt.runs.interrupts import Interrupted

        try:
            command(arguments)
        except UserError as error:
            return _fail(str(error))
        except Interrupted as error:
            print(f"metaopt: {' '.join(str(error).split())}", file=sys.stderr)
            return error.exit_status
        except (RuntimeError, MemoryError) as error:
            if type(error).__name__ == "Diverged":
                return _fail(str(error), 1)
            if isinstance(error, processes.LostProcess):
                # Under `metaopt launch` the launcher, who knows which process it was, says so.
                return processes.LOST_STATUS if processes.launched() else _fail(str(error), 1)
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                return _fail(_out_of_memory(error), 1)
            raise
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output has gone; Python must not complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0


def _out_of_memory(error: Exception) -> str:
    lines = str(error).removeprefix("RESOURCE_EXHAUSTED: ").splitlines()
    cause = f" ({lines[0].rstrip('.')})" if lines else ""
    return f"out of memory{cause}; lower --num-tasks, in training also --chunk-size, or take a smaller task."


def _fail(message: str, status: int = 2) -> int:
    print(f"metaopt: error: {' '.join(message.split())}", file=sys.stderr)
    return status


# ----- commands -------------------------------------------------------------------------------------------------------


def _train(arguments: list[str]) -> None:
    from metaopt.experiment import UserError
    from metaopt.runs import arguments as reader
    from metaopt.runs.config import experiment_files, load_experiment

    flags = [word.split("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    if "--resume" in flags:
        _resume(arguments, flags)
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        known = experiment_files()
        print("usage: metaopt train EXPERIMENT [--field value ...]\n       metaopt train --resume RUN\n")
        print("EXPERIMENT is a name, a .py or .json file, or a run folder, and decides the defaults of its fields:")
        print("`metaopt train EXPERIMENT --help` lists them.\n\nNames: " + ", ".join(known))
        if arguments:
            return
        raise UserError("the experiment's name is missing; write `metaopt train EXPERIMENT`.")
    if arguments[0].startswith("-"):
        raise UserError(f"the experiment comes first: `metaopt train EXPERIMENT {arguments[0]} ...`.")
    name, base = load_experiment(arguments[0])
    prog = f"metaopt train {arguments[0]}"
    experiment, out = reader.parse_experiment(arguments[1:], prog=prog, base=base)
    _configure_for_training(experiment.num_devices)
    from metaopt.runs.train import train

    train(experiment, None if out is None else Path(out), name=name)


def _resume(arguments: list[str], flags: list[str]) -> None:
    from metaopt.experiment import UserError
    from metaopt.runs import arguments as reader
    from metaopt.runs.folder import devices_begun_with, open_run

    for flag in flags:
        if flag not in ("--resume", "--num-meta-steps", "--num-devices", "--help"):
            raise UserError(
                f"{flag} cannot change on resuming, only --num-meta-steps and --num-devices; "
                "leave it out or begin a new run."
            )
    if not arguments[0].startswith("-"):
        raise UserError(f"--resume takes the experiment from the run's config.json; leave {arguments[0]!r} out.")
    parsed = reader.parse(reader.ResumeArguments, arguments, prog="metaopt train")
    path, experiment = open_run(Path(parsed.resume))
    # As many as the run was begun on, whatever the cores of this host: so φ stays bitwise the same.
    _configure_for_training(parsed.num_devices, experiment.num_devices or devices_begun_with(path))
    from metaopt.runs.train import resume

    resume(path, num_meta_steps=parsed.num_meta_steps, num_devices=parsed.num_devices)


def _evaluate(arguments: list[str]) -> None:
    from metaopt.runs import arguments as reader

    parsed = reader.parse(reader.EvaluateArguments, arguments, prog="metaopt evaluate")
    configure_jax(parsed.num_devices)
    from metaopt.runs.compare import compare

    compare(parsed)


def _report(arguments: list[str]) -> None:
    from metaopt.experiment import UserError
    from metaopt.runs import arguments as reader

    runs = reader.parse(reader.ReportArguments, arguments, prog="metaopt report").runs
    if not runs:
        raise UserError("name at least one run folder.")
    from metaopt.runs.report import write_report

    for run in runs:
        print(write_report(Path(run)))


def _doctor(arguments: list[str]) -> None:
    from metaopt.runs import arguments as reader

    parsed = reader.parse(reader.DoctorArguments, arguments, prog="metaopt doctor")
    configure_jax(parsed.num_devices)
    from metaopt.runs.diagnose import examine

    examine(parsed)


def _replay(arguments: list[str]) -> None:
    from metaopt.runs import arguments as reader

    parsed = reader.parse(reader.ReplayArguments, arguments, prog="metaopt replay")
    configure_jax(1)
    from metaopt.runs.diagnose import show_again

    if not show_again(Path(parsed.capsule)):
        raise SystemExit(1)


def _list(arguments: list[str]) -> None:
    if any(word in ("-h", "--help") for word in arguments):
        print("usage: metaopt list [NAME ...]\n\nWithout a name: everything that can be named. With: its options.")
        return
    from metaopt.runs.listing import print_entry, print_listing

    for name in arguments:
        print_entry(name)
    if not arguments:
        print_listing()


def _launch(arguments: list[str]) -> None:
    from metaopt.launch import launch

    launch(arguments)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "launch": _launch,
    "evaluate": _evaluate,
    "report": _report,
    "doctor": _doctor,
    "replay": _replay,
    "list": _list,
}


def _configure_for_training(num_devices: int | None, before: int | None = None) -> None:
    """Devices as asked for, else as before; in a job of several processes they are shared out, and it is joined.

    Raises:
      UserError: the processes' shares of the devices are not equal.
      LostProcess: not all processes of the job came.
    """
    from metaopt.runs import processes

    job = processes.find_job(os.environ)
    if job is None:
        configure_jax(num_devices or before)
        return
    if before is not None and before % job.num_processes:
        before = None  # it was begun by fewer processes
    configure_jax(processes.devices_each(job, num_devices or before))
    processes.join(job)


def configure_jax(num_devices: int | None = None) -> None:
    """One CPU device for each core (or as many as asked for), and compiled code kept between runs.

    Has to come before jax touches a device; later it changes nothing.
    """
    import jax

    from metaopt.batching import available_cores, use_cpu_devices

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            use_cpu_devices(num_devices or available_cores())
        except RuntimeError:
            pass  # devices are in use already
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metaopt" / "jax"
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
