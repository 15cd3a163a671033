"""`metaopt evaluate`: runs and pretrained optimizers beside tuned baselines on the same tasks."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaopt import files
from metaopt.choices import Choice, parse_choice
from metaopt.cli.arguments import EvaluateArguments
from metaopt.errors import UserError
from metaopt.experiment import explores
from metaopt.experiment.flags import merged_all
from metaopt.microscope.capture import keep_failures
from metaopt.optimizers.noise import with_noise
from metaopt.report.pictures import evaluation_figure
from metaopt.report.run_page import read_config, write_report
from metaopt.report.svg import save_png
from metaopt.runs import folder
from metaopt.runs.console import make_console, say
from metaopt.runs.environment import describe_environment
from metaopt.runs.evaluations import (
    Result,
    check,
    evaluate_all,
    identity,
    place_for_results,
    plan_of,
    print_results,
    read_results,
    stopping_of,
)
from metaopt.runs.train import learned_name
from metaopt.shipped.loading import Trained, find_optimizer, read_optimizer


def evaluate(arguments: EvaluateArguments, console: Any = None) -> Path:
    """Evaluates, prints the tables, writes JSON and pictures. Returns the folder they are in.

    One run's results go into its own folder and its report; those of several, or of a pretrained optimizer, into `out`.

    Raises:
      UserError: no such run, task or baseline, counts below 1, runs of different training horizons, a folder that
        cannot be written, or one whose config.json or evaluation.json is broken.
    """
    console = console or make_console()
    if not arguments.runs:
        raise UserError("name at least one run folder or pretrained optimizer.")
    for flag, value in (("num-tasks", arguments.num_tasks), ("num-devices", arguments.num_devices)):
        if value is not None and value < 1:
            raise UserError(f"--{flag} ({value}) must be at least 1.")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed ({arguments.seed}) must lie between 0 and {2**32 - 1}.")
    trained = _named(arguments.runs)
    runs = {name: arguments.runs[index % len(arguments.runs)] for index, name in enumerate(trained)}
    if arguments.noise:
        trained |= _with_noise(trained)
    _same_training_horizon(trained)
    first = next(iter(trained.values())).experiment
    own = plan_of(first)
    tasks = merged_all(arguments.tasks, first.tasks) or tuple(dict((str(task), task) for task, _ in own).values())
    horizons = arguments.horizon or tuple(dict.fromkeys(horizon for _, horizon in own))
    plan = tuple((task, horizon) for task in tasks for horizon in dict.fromkeys(horizons))
    learned = [one.optimizer for one in trained.values()]
    oracle = _oracle(arguments.oracle, trained)
    stopping = stopping_of(arguments.patience, arguments.check_every)
    how = {"num_tasks": arguments.num_tasks, "optimizers": learned, "oracle": oracle, "early_stopping": stopping}
    check(plan, arguments.baselines, arguments.tuning, **how)
    clashes = sorted(set(trained) & set(arguments.baselines))
    if clashes:
        raise UserError(f"{clashes[0]!r} is a run's name and a baseline's; leave it out of --baselines.")

    single = Path(arguments.runs[0] if len(arguments.runs) == 1 else os.devnull)
    if single.is_dir() and arguments.out is None:  # the report shows these at the end
        read_config(single)
        read_results(single)
    place = place_for_results(single, arguments.out, Path("evaluations"), folder.EVALUATION)
    with place as (path, own):
        say(console, f"results: {path}")
        results = evaluate_all(
            path,
            {name: (one.optimizer, one.meta_params) for name, one in trained.items()},
            plan,
            train_horizon=first.horizon,
            num_tasks=arguments.num_tasks,
            seed=arguments.seed,
            baselines=arguments.baselines,
            tuning=arguments.tuning,
            oracle=oracle,
            early_stopping=stopping,
            num_devices=arguments.num_devices,
            trained={name: one.card.get("meta_step") for name, one in trained.items()},
            experiments={name: dataclasses.replace(one.experiment, oracle=oracle) for name, one in trained.items()},
            look=keep_failures,
            progress=lambda line: say(console, f"  {line}"),
        )
    if not own:
        environment = describe_environment(path.name, tasks)
        files.write_json(path / folder.ENVIRONMENT, {**environment, "runs": runs})
    everything = read_results(path)
    for result in results:
        with files.replacing(path / _picture_name(result, everything)) as part:
            save_png(evaluation_figure(result), part)
    print_results(console, results)
    last = f"report: {write_report(path)}" if own else f"results: {path / folder.EVALUATION}"
    say(console, f"\n{last}")
    return path


def _with_noise(trained: Mapping[str, Trained]) -> dict[str, Trained]:
    """Those that were trained with step noise, with the noise on."""
    noisy = {
        f"{name}, noise on": one._replace(optimizer=with_noise(one.optimizer))
        for name, one in trained.items()
        if explores(one.experiment, one.optimizer)
    }
    if not noisy:
        raise UserError(f"{', '.join(trained)}: trained without step noise; leave --noise out.")
    return noisy


def _oracle(asked: str | None, trained: Mapping[str, Trained]) -> Choice:
    """What is asked for, or that of all runs."""
    if asked is not None:
        return parse_choice(asked)
    oracles = {name: one.experiment.oracle for name, one in trained.items()}
    if len(set(map(str, oracles.values()))) > 1:
        listed = ", ".join(f"{name} {oracle}" for name, oracle in oracles.items())
        raise UserError(f"the optimizers were trained under different oracles ({listed}); say which with --oracle.")
    return next(iter(oracles.values()))


def _same_training_horizon(trained: Mapping[str, Trained]) -> None:
    horizons = {name: one.experiment.horizon for name, one in trained.items()}
    if len(set(horizons.values())) > 1:
        listed = ", ".join(f"{name} {horizon}" for name, horizon in horizons.items())
        raise UserError(
            f"the optimizers were trained at different horizons ({listed}), but an evaluation marks one; evaluate "
            "those of each training horizon by themselves."
        )


def _picture_name(result: Result, everything: list[Result]) -> str:
    """`classifier-hidden_layers-3-500-steps.png`; with a number where evaluation.json holds several such entries."""

    def stem(result: Result) -> str:
        return f"{re.sub(r'[^A-Za-z0-9._]+', '-', result['task'])[:200]}-{result['horizon']}-steps"

    alike = [identity(other) for other in everything if stem(other) == stem(result)]
    number = alike.index(identity(result)) + 1
    return f"{stem(result)}{f'-{number}' if number > 1 else ''}.png"


def _named(runs: tuple[str, ...]) -> dict[str, Trained]:
    """Each optimizer under a short name of its own; of one run alone, its φ by every way to pick it."""
    if len(runs) == 1 and os.path.isdir(runs[0]):  # of a name too long for a file too
        path, own = Path(runs[0]), find_optimizer(runs[0])
        by_step: dict[Any, tuple[str, Trained]] = {}
        for how, file in folder.picks(path, own.experiment).items():
            one = read_optimizer(file)
            by_step.setdefault(one.card.get("meta_step"), (how, one))
        return folder.named(learned_name(path), dict(by_step.values()))
    trained: dict[str, Trained] = {}
    for run in runs:
        path = Path(run)
        found = find_optimizer(run)
        name = learned_name(path) if path.is_dir() else path.stem
        if name in trained or (path.is_dir() and len(runs) > 1):
            name = f"{name}/{path.resolve().name}" if path.is_dir() else str(path)
        if name in trained:
            raise UserError(f"{run} is named twice; name each optimizer once.")
        trained[name] = found
    return trained
