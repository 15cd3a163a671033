"""The estimator that an experiment names, with its schedule and its curriculum of horizons."""

from __future__ import annotations

from collections.abc import Sequence

from metaopt.choices import Choice, build, parse_choice
from metaopt.errors import UserError
from metaopt.estimators.curriculum import check_curriculum, log_uniform, stages, with_curriculum
from metaopt.estimators.parts import of_part
from metaopt.estimators.windows import Schedule
from metaopt.experiment import Experiment
from metaopt.registry import OBJECTIVES
from metaopt.types import Families, MetaGradient, Optimizer


def build_estimator(
    experiment: Experiment,
    picked: Choice,
    optimizer: Optimizer,
    families: Families,
    *,
    num_tasks: int | None = None,
    horizon: int | None = None,
    unroll_length: int | None = None,
) -> MetaGradient:
    """The estimator that a choice names, under an experiment's objective, with its schedule or parts of another one.

    Raises:
      UserError: choices that do not fit together.
    """
    objective = parse_choice(experiment.objective)
    traits = OBJECTIVES.traits(objective.name)
    unbounded = [family.name for family in families if family.lower_bound is None]
    if traits.positive and unbounded:
        raise UserError(
            f"objective {objective} needs to know how low a loss can get, and {unbounded[0]} does not say; state its "
            "`lower_bound`, or take --objective mean or last."
        )
    horizon = horizon or experiment.horizon
    try:
        schedule = Schedule(
            num_tasks=num_tasks or experiment.num_tasks,
            horizon=horizon,
            unroll_length=unroll_length or experiment.unroll_length or horizon,
            chunk_size=experiment.chunk_size,
            num_devices=experiment.num_devices,
            memory=experiment.memory,
            balanced=not traits.scale_free,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return of_part(picked, optimizer, build(objective, OBJECTIVES), schedule)


def curriculum_levels(experiment: Experiment) -> tuple[int, ...]:
    """The horizons of the curriculum's stages; () where there are none."""
    curriculum, longest = experiment.curriculum, experiment.horizon
    window = experiment.unroll_length or longest
    try:
        lengths = {"longest": longest, "unroll_length": window, "power": curriculum.power}
        levels = check_curriculum(curriculum.kind, curriculum.horizons, curriculum.shortest, **lengths)
    except ValueError as error:
        raise UserError(str(error)) from error
    if curriculum.kind == "validation" and not experiment.validation.every:
        raise UserError(
            "the curriculum goes on by validation, and `validation.every` is 0; set it, or take kind=fixed."
        )
    return levels


def under_curriculum(estimator: MetaGradient, experiment: Experiment, levels: Sequence[int]) -> MetaGradient:
    """The estimator with the experiment's law of horizons: by `levels`, or drawn where there are none."""
    longest, window = experiment.horizon, experiment.unroll_length or experiment.horizon
    shortest = experiment.curriculum.shortest or window
    draw = stages(levels) if levels else log_uniform(shortest, longest, window, experiment.curriculum.power)
    return with_curriculum(estimator, draw, longest=longest, unroll_length=window)
