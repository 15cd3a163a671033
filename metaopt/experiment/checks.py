"""Whether the fields of an experiment fit together."""

from __future__ import annotations

from typing import Any

from metaopt.choices import parse_choice
from metaopt.errors import UserError
from metaopt.experiment import Curriculum, Experiment, Log
from metaopt.experiment.plain import from_json, to_json
from metaopt.numbers import MOST_INT, divisors, largest_divisor, out_of_range
from metaopt.registry import OBJECTIVES


def validate(experiment: Experiment, where: str = "the experiment") -> Experiment:
    """The experiment itself, when its fields have their types and fit together.

    Raises:
      UserError: one line that names the field and the remedy.
    """
    experiment = from_json(to_json(experiment), where)
    for name, least in _LEAST.items():
        value = _get(experiment, name)
        if value is not None and value < least:
            raise UserError(f"`{name}` ({value}) must be at least {least}.")
        if value is not None and value > MOST_INT:
            raise UserError(f"`{name}` {out_of_range(value)}")
    for name in (f"meta_optimizer.{name}" for name in ("learning_rate", "clip_norm", "clip_value", "clip_adaptive")):
        value = _get(experiment, name)
        if value is not None and value <= 0:
            raise UserError(f"`{name}` ({value}) must be above 0.")
    if not 0 <= experiment.seed < 2**32:
        raise UserError(f"`seed` ({experiment.seed}) must lie between 0 and {2**32 - 1}.")
    _check_fraction(experiment)
    _check_curriculum_options(experiment.curriculum)
    _check_log(experiment.log)
    if not experiment.tasks:
        raise UserError("`tasks` is empty; name at least one task family.")
    OBJECTIVES.entry(parse_choice(experiment.objective).name)
    try:
        check_windows(experiment.horizon, experiment.unroll_length or experiment.horizon)
    except ValueError as error:
        raise UserError(str(error)) from error
    families = len(experiment.tasks)
    if experiment.num_tasks > 1 and experiment.num_tasks % families:
        near = " or ".join(str(n) for n in _multiples_near(experiment.num_tasks, families))
        raise UserError(
            f"`num_tasks` ({experiment.num_tasks}) must be 1 or a multiple of the number of families ({families}); "
            f"try {near}."
        )
    each, devices = max(1, experiment.num_tasks // families), experiment.num_devices
    if devices is not None and each % devices:
        fitting = _some(divisors(each))
        raise UserError(
            f"`num_devices` ({devices}) must divide the {each} tasks of a family in a meta-step; try {fitting}."
        )
    multiples = experiment.validation.multiples
    if experiment.validation.every and (
        not multiples or min(multiples) < 1 or list(multiples) != sorted(set(multiples))
    ):
        raise UserError(f"`validation.multiples` ({_listed(multiples)}) must be rising counts of at least 1; try 1 10.")
    if any(horizon < 1 for horizon in experiment.evaluation.horizons):
        raise UserError(f"`evaluation.horizons` ({_listed(experiment.evaluation.horizons)}) must be at least 1 each.")
    return experiment


_LEAST = {
    "num_meta_steps": 1,
    "num_tasks": 1,
    "horizon": 1,
    "unroll_length": 1,
    "rescale": 0,
    "companion": 0,
    "min_batch_size": 1,
    "bfloat16": 0,
    "chunk_size": 1,
    "num_devices": 1,
    "checkpoint_every": 1,
    "meta_optimizer.warmup_steps": 0,
    "meta_optimizer.weight_decay": 0,
    "curriculum.every": 1,
    "curriculum.patience": 1,
    "validation.every": 0,
    "validation.num_tasks": 1,
    "evaluation.num_tasks": 1,
    "evaluation.patience": 1,
    "evaluation.check_every": 1,
    "log.every": 1,
}


def _get(experiment: Experiment, name: str) -> Any:
    value: Any = experiment
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _listed(values: tuple[Any, ...]) -> str:
    return " ".join(str(value) for value in values)


def _check_fraction(experiment: Experiment) -> None:
    fraction = experiment.meta_optimizer.final_fraction
    if not 0 <= fraction <= 1:
        raise UserError(f"`meta_optimizer.final_fraction` ({fraction}) must lie between 0 and 1.")
    if experiment.meta_optimizer.schedule == "exponential" and fraction == 0:
        raise UserError("`meta_optimizer.final_fraction` is 0, which an exponential schedule never reaches; try 0.1.")


def _check_curriculum_options(curriculum: Curriculum) -> None:
    for name, kind in (("patience", "validation"), ("every", "fixed")):
        given = getattr(curriculum, name) != getattr(Curriculum(), name)
        if given and curriculum.kind != kind:
            raise UserError(
                f"`curriculum.{name}` is for `curriculum.kind` {kind}, and it is {curriculum.kind}; leave it out or "
                "set the kind."
            )


def _some(values: list[int]) -> str:
    """`1 or 2 or 4`, of many the first and the last."""
    shown = [str(value) for value in values]
    return " or ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-3:]])


def _check_log(log: Log) -> None:
    if log.wandb == "disabled":
        return
    given = [("project", log.project), *(("tags", tag) for tag in log.tags)]
    given += [(name, value) for name in ("entity", "name", "job_type") if (value := getattr(log, name)) is not None]
    for name, value in given:
        if not value.strip():
            raise UserError(f"`log.{name}` is empty, which wandb does not take; give a name, or leave it out.")
    if len(log.project) > 128 or set(log.project) & set("/\\#?%:\r\n"):
        raise UserError(
            f"`log.project` ({log.project[:40]!r}) is no project of wandb; give at most 128 characters without "
            r"/ \ # ? % and :."
        )


def _multiples_near(value: int, of: int) -> list[int]:
    below = value // of * of
    return [near for near in (below, below + of) if near > 0]


def check_windows(horizon: int, unroll_length: int) -> None:
    """Refuses windows that do not fill the horizon.

    Raises:
      ValueError: with the nearest horizons that would do.
    """
    if horizon % unroll_length:
        below = horizon - horizon % unroll_length
        near = " or ".join(str(n) for n in (below, below + unroll_length) if n > 0)
        fits = largest_divisor(horizon, unroll_length)
        raise ValueError(
            f"`horizon` ({horizon}) must be a multiple of `unroll_length` ({unroll_length}); try {near}, or "
            f"`unroll_length` {fits}."
        )
