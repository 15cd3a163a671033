"""Hyperparameters of a family as a part of φ: bound to its loss, and kept beside an optimizer's own numbers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from metaopt.types import Key, MetaParams, Optimizer, TaskFamily

# The parts of φ, and what of them an estimator moves.
OPTIMIZER, TASK, BOTH = "optimizer", "task", "both"
Part = Literal["optimizer", "task", "both"]


def free_starts(family: TaskFamily) -> dict[str, jax.Array]:
    """The free numbers that a family's settings start from, by name."""
    starts = {name: jnp.asarray(hyper.start, jnp.float32) for name, hyper in family.hyper.items()}
    return {name: family.hyper[name].bijection.inverse(start) for name, start in starts.items()}


def settings_of(family: TaskFamily, free: dict[str, Any]) -> dict[str, Any]:
    """Free numbers as the settings that they stand for, by name."""
    return {name: hyper.bijection.forward(free[name]) for name, hyper in family.hyper.items()}


def with_hyper(family: TaskFamily, free: dict[str, Any] | None) -> TaskFamily:
    """The family whose loss has these settings: one without hyperparameters, to whoever runs on it.

    A family of other hyperparameters, such as one that is only evaluated on, stays at its own.
    """
    if free is None or not family.hyper or _shapes(free) != _shapes(free_starts(family)):
        return family
    return dataclasses.replace(family, loss=functools.partial(family.loss, hyper=settings_of(family, free)), hyper={})


def _shapes(free: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: jnp.shape(value) for name, value in free.items()}


def with_task(optimizer: Optimizer, family: TaskFamily) -> Optimizer:
    """The optimizer whose φ is {"optimizer": its own, "task": the family's hyperparameters, as free numbers}."""

    def init(key: Key) -> MetaParams:
        return {OPTIMIZER: optimizer.init(key), TASK: free_starts(family)}

    return _of(optimizer, init, lambda phi: phi[OPTIMIZER], lambda phi: phi[TASK])


def one_part(optimizer: Optimizer, meta_params: MetaParams, part: str) -> Optimizer:
    """The optimizer of `with_task` as one whose φ is a part alone, the other held at what it is in `meta_params`."""

    def whole(phi: MetaParams) -> MetaParams:
        return {**meta_params, part: phi}

    hyper = optimizer.hyper
    assert hyper is not None
    return _of(optimizer, lambda key: optimizer.init(key)[part], whole, lambda phi: hyper(whole(phi)))


def _of(
    optimizer: Optimizer,
    init: Callable[[Key], MetaParams],
    own: Callable[[MetaParams], MetaParams],
    hyper: Callable[[MetaParams], dict[str, Any]],
) -> Optimizer:
    """The optimizer under another φ, of which `own` makes its own. What looks into φ by name is left out."""
    bind_tasks, told = optimizer.bind_tasks, optimizer.at_horizon

    def at_horizon(steps: int) -> Optimizer:
        assert told is not None
        now = told(steps)
        return seen if now is optimizer else _of(now, init, own, hyper)

    seen = optimizer._replace(
        init=init,
        bind=lambda phi: optimizer.bind(own(phi)),
        bind_tasks=None if bind_tasks is None else lambda phi: bind_tasks(own(phi)),
        hyper=hyper,
        tunable={},
        observe=None,
        at_horizon=None if told is None else at_horizon,
    )
    return seen
