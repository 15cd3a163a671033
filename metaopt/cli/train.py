"""`metaopt train`: a new run, one repeated, or going on with one; with capsules, wandb and the page."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaopt.cli import devices
from metaopt.cli.arguments import ResumeArguments
from metaopt.errors import UserError, printable
from metaopt.experiment import Experiment
from metaopt.experiment.flags import parse, parse_experiment
from metaopt.runs.experiments import experiment_files, load_experiment
from metaopt.runs.folder import devices_begun_with, open_run

if TYPE_CHECKING:
    from metaopt.runs.train import Callbacks

USAGE = """\
usage: metaopt train EXPERIMENT [--field value ...]
       metaopt train --resume RUN
       metaopt train --from RUN [--field value ...]

EXPERIMENT is a name, a .py or .json file, or a run folder, and decides the defaults of its fields:
`metaopt train EXPERIMENT --help` lists them.
"""


def train(words: list[str]) -> None:
    """The command.

    Raises:
      UserError: a mistake in the words or the experiment; nothing is left behind.
    """
    flags = [word.split("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    if "--resume" in flags:
        _resume(words, flags)
    elif "--from" in flags:
        _repeat(words)
    elif not words or words[0] in ("-h", "--help"):
        print(f"{USAGE}\nNames: {', '.join(experiment_files())}")
        if not words:
            raise UserError("the experiment's name is missing; write `metaopt train EXPERIMENT`.")
    elif words[0].startswith("-"):
        raise UserError(f"the experiment comes first: `metaopt train EXPERIMENT {words[0]} ...`.")
    else:
        name, base = load_experiment(words[0])
        experiment, out = parse_experiment(words[1:], prog=f"metaopt train {words[0]}", base=base)
        devices.configure_for_training(experiment.num_devices)
        train_with_everything(experiment, None if out is None else Path(out), name=name)


def _resume(words: list[str], flags: list[str]) -> None:
    for flag in flags:
        if flag not in ("--resume", "--num-meta-steps", "--num-devices", "--help"):
            raise UserError(
                f"{flag} cannot change on resuming, only --num-meta-steps and --num-devices; "
                "leave it out or begin a new run."
            )
    _no_experiment("--resume", words)
    parsed = parse(ResumeArguments, words, prog="metaopt train")
    path, experiment = open_run(Path(parsed.resume))
    # As many as the run was begun on, whatever the cores of this host: so φ stays bitwise the same.
    devices.configure_for_training(parsed.num_devices, experiment.num_devices or devices_begun_with(path))
    resume_with_everything(path, num_meta_steps=parsed.num_meta_steps, num_devices=parsed.num_devices)


def _repeat(words: list[str]) -> None:
    place = next(i for i, word in enumerate(words) if word.split("=")[0] == "--from")
    _, equals, run = words[place].partition("=")
    rest = words[:place] + words[place + (1 if equals else 2) :]
    if not equals:
        run = "".join(words[place + 1 : place + 2])
    if not run or (not equals and run.startswith("-")):
        raise UserError("--from takes a run's folder: `metaopt train --from RUN [--field value ...]`.")
    _no_experiment("--from", rest)
    path, base = open_run(Path(run))
    name, _ = load_experiment(run)
    experiment, out = parse_experiment(rest, prog=f"metaopt train --from {run}", base=base)
    # As many as the run was begun on, whatever the cores of this host: so φ comes out bitwise the same.
    asked = None if experiment.num_devices == base.num_devices else experiment.num_devices
    devices.configure_for_training(asked, experiment.num_devices or devices_begun_with(path))
    from metaopt.runs import processes
    from metaopt.runs.repeating import what_differs

    if processes.is_first():
        print(printable(what_differs(path, experiment)), flush=True)
    train_with_everything(experiment, None if out is None else Path(out), name=name)


def _no_experiment(flag: str, words: list[str]) -> None:
    if words and not words[0].startswith("-"):
        raise UserError(f"{flag} takes the experiment from the run's config.json; leave {words[0]!r} out.")


# ----- what the command adds to a run ---------------------------------------------------------------------------------


def train_with_everything(experiment: Experiment, out: Path | None = None, **options: Any) -> Path:
    """`metaopt.runs.train.train` with divergence capsules, wandb where the experiment asks for it, and the page."""
    from metaopt.runs.train import train

    return train(experiment, out, callbacks=_everything(), **options)


def resume_with_everything(path: Path, **options: Any) -> Path:
    """`metaopt.runs.train.resume` in the same way."""
    from metaopt.runs.train import resume

    return resume(path, callbacks=_everything(), **options)


def _everything() -> Callbacks:
    from metaopt.microscope.capture import CapsuleKeeper, keep_failures
    from metaopt.report.run_page import write_report
    from metaopt.runs.train import Callbacks

    return Callbacks(CapsuleKeeper, _wandb, keep_failures, write_report)


def _wandb(path: Path, experiment: Experiment, say: Callable[[str], None]) -> contextlib.AbstractContextManager[Any]:
    if experiment.log.wandb == "disabled":
        return contextlib.nullcontext()
    from metaopt.sinks.wandb_logger import logging_beside

    return logging_beside(path, experiment.log.wandb, say)
