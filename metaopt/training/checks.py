"""Whether the objects of an experiment go together, and own entries fit an inner loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from metaopt.choices import Choice, build, parse_choice
from metaopt.errors import UserError
from metaopt.experiment import Experiment
from metaopt.inner.checks import check_objective, check_optimizer, check_oracle, check_value, first_estimate
from metaopt.registry import ESTIMATORS, OBJECTIVES, OPTIMIZERS, ORACLES, Registry
from metaopt.types import Families, Key, MetaGradient, Optimizer, Split, TaskFamily

SPLITS: tuple[Split, Split] = ("train", "validation")


def check_own_parts(experiment: Experiment, optimizer: Optimizer, families: Families) -> None:
    """Refuses entries of people's own that no inner loop can run on, and an optimizer that misses losses."""
    first, objective = families[0], parse_choice(experiment.objective)
    check_own(OPTIMIZERS, experiment.optimizer, lambda: check_optimizer(optimizer, first))
    check_own(ORACLES, experiment.oracle, lambda: check_oracle(build(experiment.oracle, ORACLES), first))
    check_own(OBJECTIVES, objective, lambda: check_objective(build(objective, OBJECTIVES), optimizer, first))
    flat = [name for name in OPTIMIZERS.traits(experiment.optimizer.name).flat if name in optimizer.tunable]
    if flat and ESTIMATORS.traits(experiment.estimator.name).differentiates:
        raise UserError(
            f"estimator {experiment.estimator.name} never moves {', '.join(flat)} of {experiment.optimizer}, whose "
            "steps have no derivative there; leave them out of `tunes`, or take evolution_strategies."
        )
    for family in families:
        check_value(str(experiment.optimizer), optimizer, family)
        if optimizer.hyper is not None:
            _check_held_out(family)


def _check_held_out(family: TaskFamily) -> None:
    """Refuses hyperparameters that would be chosen by the data that they are trained with."""
    task = family.sample(jax.random.key(0), family.data)
    train, held_out = (jax.tree.leaves(family.eval_batch(task, family.data, split)) for split in SPLITS)
    if [leaf.shape for leaf in train] != [leaf.shape for leaf in held_out]:
        return
    if all(np.array_equal(a, b) for a, b in zip(train, held_out, strict=True)):
        raise UserError(
            f"the validation data of {family.name or 'the family'} are its training data, by which the hyperparameters "
            "that fit most would win; hold some out as `eval_batch`'s validation split."
        )


def check_estimates(experiment: Experiment, optimizer: Optimizer, families: Families) -> bool:
    """Refuses a family without what the oracle draws from, and whatever reads values where the oracle gives none.

    Returns:
      Whether the meta-loss is known: gradients may come without values.

    Raises:
      UserError: one line, with the setting that mends it.
    """
    objective, estimator = parse_choice(experiment.objective).name, experiment.estimator
    entry = ESTIMATORS.entry(estimator.name)
    traits, parameters = entry.traits, inspect.signature(entry.factory).parameters
    default = parameters["second_order"].default if "second_order" in parameters else False
    differentiated = estimator.options.get("second_order", default) is True
    elsewhere = estimator.options.get("objective_batch", "fresh") != "fresh"
    known = True
    for family in families:
        try:
            found = first_estimate(family, differentiated=differentiated)
        except UserError as error:
            raise UserError(f"oracle {experiment.oracle.name!r}: {error}") from error
        if found is None or found.value is not None:
            continue
        known &= elsewhere
        reads = None
        if optimizer.needs_value:
            reads = f"optimizer {experiment.optimizer.name}"
        elif not elsewhere and OBJECTIVES.traits(objective).positive:
            reads = f"objective {objective}"
        elif not elsewhere and (traits.sides > 1 or not traits.differentiates):
            reads = f"estimator {estimator.name}"
        if reads is not None:
            raise UserError(
                f"{reads} reads the values of losses, and oracle {experiment.oracle.name} gives none with its "
                "gradients; set its option exact_value=true, for the family's own value at every step."
            )
    return known


def check_own(registry: Registry[Any], picked: Choice, check: Callable[[], None]) -> None:
    """Runs a check of an entry that does not come with the package; its mistake is the user's, in one line."""
    if registry.entry(picked.name).built_in:  # those of the package are tested
        return
    try:
        check()
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{registry.kind} {picked.name!r}: {error}") from error


def check_fits(estimator: MetaGradient, name: str, optimizer: Optimizer, families: Families, *, bounded: bool) -> None:
    """Refuses choices that do not go together, from shapes alone, before a run has a folder.

    Args:
      bounded: there is a budget for memory, which shows only in the meta-gradient itself.

    Raises:
      UserError: what the estimator refuses.
    """

    def fits(key: Key) -> None:
        meta_params = optimizer.init(key)
        state = estimator.init(key, meta_params, families)
        if bounded:
            estimator.estimate(key, meta_params, state, families)

    try:
        jax.eval_shape(fits, jax.random.key(0))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"estimator {name}: {error}") from error
