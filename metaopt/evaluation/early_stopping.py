"""Early stopping: the parameters that were best on validation data, and the steps that need not have been made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.errors import UserError
from metaopt.evaluation.recording import interval
from metaopt.trees import select_tasks
from metaopt.types import Params, TaskFamily


@dataclass(frozen=True)
class EarlyStopping:
    """Stop after `patience` checks of the validation loss in a row none of which was below the lowest; go back there.

    The first value is that of the start. A loss that is not finite is below nothing.

    Raises:
      UserError: a count below 1.
    """

    patience: int  # checks
    every: int | None = None  # inner steps between checks; None: those between recorded points

    def __post_init__(self) -> None:
        for name in ("patience", "every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` ({value}) must be at least 1.")

    def fitted(self, family: TaskFamily, horizon: int, train_horizon: int | None = None) -> EarlyStopping:
        """With the distance between checks as it is on this family.

        Raises:
          UserError: a family without validation data, or a run too short for a check.
        """
        if "validation" not in family.splits:
            raise UserError(
                f"early stopping needs validation data, and {family.name or 'the family'} has none (only "
                f"{', '.join(family.splits)}); leave `patience` out, or take a family with a validation split."
            )
        every = self.every or interval(family, horizon, train_horizon)
        if every > horizon:
            raise UserError(f"checks every {every} steps leave none within {horizon}; check at most {horizon} apart.")
        return EarlyStopping(self.patience, every)


class Stopped(NamedTuple):
    """What early stopping would have made of every run, [tasks]; the run itself goes on, so that both can be told."""

    step: Any  # steps made until it stopped; the horizon where it never did
    best_step: Any  # of the parameters that are restored
    validation: Any  # the loss there
    final: dict[str, dict[str, Any]]  # as `Curves.final`, at the restored parameters


class Watch(NamedTuple):
    """What the loop carries; [tasks]."""

    best: jax.Array
    params: Params  # there
    best_step: jax.Array  # int32
    bad: jax.Array  # int32, checks in a row that were no better
    stopped: jax.Array  # int32, the step; -1 until then


def begin(value: jax.Array, params: Params) -> Watch:
    """At the start, whose validation losses are `value` [tasks]."""
    zero = jnp.zeros(value.shape, jnp.int32)
    return Watch(jnp.where(jnp.isfinite(value), value, jnp.inf), params, zero, zero, zero - 1)


def look(watch: Watch, patience: int, value: jax.Array, params: Params, step: jax.Array, due: jax.Array) -> Watch:
    """One check at `step` [tasks]; nothing where it is not `due` [] or the run has stopped."""
    going = (watch.stopped < 0) & due
    better = going & (value < watch.best)  # False for nan
    bad = jnp.where(better, 0, watch.bad + going)
    return Watch(
        best=jnp.where(better, value, watch.best),
        params=select_tasks(better, params, watch.params),
        best_step=jnp.where(better, step, watch.best_step),
        bad=bad,
        stopped=jnp.where(going & (bad >= patience), step, watch.stopped),
    )
