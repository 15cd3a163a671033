"""An optimizer bound to φ, as the inner loop takes it: on leaves with a leading task axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from metaopt.tasks.hyper import with_hyper
from metaopt.types import Explore, MetaParams, Optimizer, Params, PyTree, TaskFamily, UnrollState


class Bound(optax.GradientTransformationExtraArgs):
    """A task-batched transformation that has more to say to the inner loop than its updates."""

    # (its state, params) -> where losses are to be taken, if not where gradients are
    at: Callable[[PyTree, Params], Params] | None = None
    hyper: dict[str, Any] | None = None  # the free hyperparameters that φ sets the family to


def bind_tasks(optimizer: Optimizer, meta_params: MetaParams) -> optax.GradientTransformationExtraArgs:
    """The optimizer's own task-batched form, or vmap of its one-task form; it knows where it is to be judged."""
    tx = _bind_tasks(optimizer, meta_params)
    if optimizer.eval_params is None and optimizer.hyper is None:
        return tx
    bound = Bound(tx.init, tx.update)
    if optimizer.eval_params is not None:
        bound.at = _eval_params(optimizer)
    if optimizer.hyper is not None:
        bound.hyper = optimizer.hyper(meta_params)
    return bound


def as_set(tx: optax.GradientTransformationExtraArgs, family: TaskFamily) -> TaskFamily:
    """The family with the hyperparameters that the transformation's φ holds for it."""
    return with_hyper(family, tx.hyper) if isinstance(tx, Bound) else family


def _eval_params(optimizer: Optimizer) -> Callable[[PyTree, Params], Params]:
    assert optimizer.eval_params is not None
    return optimizer.eval_params if optimizer.bind_tasks is not None else jax.vmap(optimizer.eval_params)


def _bind_tasks(optimizer: Optimizer, meta_params: MetaParams) -> optax.GradientTransformationExtraArgs:
    if optimizer.bind_tasks is not None:
        return optimizer.bind_tasks(meta_params)
    tx = optimizer.bind(meta_params)

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        key: jax.Array | None = None,
        value: jax.Array | None = None,
        explore: Explore = False,
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        def one(updates: PyTree, state: PyTree, params: PyTree, key: Any, value: Any) -> tuple[PyTree, PyTree]:
            return tx.update(updates, state, params, key=key, value=value, explore=explore)

        return jax.vmap(one)(updates, state, params, key, value)

    return optax.GradientTransformationExtraArgs(jax.vmap(tx.init), update)


def judged_params(optimizer: Optimizer, state: UnrollState) -> Params:
    """[tasks, ...] what losses are to be taken at: the parameters, or what the optimizer makes of them."""
    if optimizer.eval_params is None:
        return state.params
    return _eval_params(optimizer)(state.opt_state, state.params)
