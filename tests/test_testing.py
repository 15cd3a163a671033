"""The checks that people call on their own entries: all of ours pass, and what is wrong is said in one sentence."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import testing
from metaopt.estimators import truncated_backprop
from metaopt.registry import ESTIMATORS, OPTIMIZERS, TASKS
from metaopt.tasks import quadratic
from metaopt.types import Bijection, MetaGradient, Optimizer


@pytest.mark.parametrize("name", TASKS)
def test_every_family_passes(name: str) -> None:
    testing.check_task(TASKS[name]())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_passes(name: str) -> None:
    testing.check_optimizer(OPTIMIZERS[name]())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_passes(name: str) -> None:
    testing.check_estimator(name)


def test_a_name_is_not_what_it_names() -> None:
    with pytest.raises(ValueError, match="'quadratic' is no task family; give one"):
        testing.check_task("quadratic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="'adam' is no optimizer; give one"):
        testing.check_optimizer("adam")  # pyright: ignore[reportArgumentType]


BIG = np.ones(5000, np.float32)
FAMILY = quadratic(dim=2)
BAD_FAMILIES: dict[str, dict[str, Any]] = {
    "has to be one number|is to be one number": dict(loss=lambda x, task, batch: x),
    "its gradient is not finite": dict(loss=lambda x, task, batch: jnp.sqrt(0.0 * jnp.sum(x))),
    "close over 5,000 numbers": dict(loss=lambda x, task, batch: jnp.sum(x**2) * jnp.mean(jnp.asarray(BIG) * x[0])),
    "no learning rate of SGD lowers its loss of 1 in": dict(loss=lambda x, task, batch: 1.0 + 0 * jnp.sum(x)),
    "below its `lower_bound`": dict(loss=lambda x, task, batch: jnp.sum(x**2) - 3.0),
    "type is not said": dict(init=lambda key, task: jnp.asarray(1.0), loss=lambda x, task, batch: x**2),
}


@pytest.mark.parametrize(("message", "changes"), BAD_FAMILIES.items())
def test_bad_families(message: str, changes: dict[str, Any]) -> None:
    family = dataclasses.replace(FAMILY, name="mine", **changes)
    with pytest.raises((AssertionError, ValueError), match=message) as caught:
        testing.check_task(family)
    assert "\n" not in str(caught.value)


def optimizer(update: Any = None, init: Any = None, **settings: Any) -> Optimizer:
    def bind(phi: Any) -> optax.GradientTransformationExtraArgs:
        def plain(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            if update is not None:
                return update(phi, updates, state)
            return jax.tree.map(lambda leaf: (-phi["rate"] * leaf).astype(leaf.dtype), updates), state + 1

        return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros((), jnp.int32), plain)

    return Optimizer(init or (lambda key: {"rate": jnp.asarray(0.1, jnp.float32)}), bind, **settings)


def scaled(factor: Any) -> Any:
    return lambda phi, updates, state: (
        jax.tree.map(lambda leaf: (factor * phi["rate"] * leaf).astype(leaf.dtype), updates),
        state,
    )


BAD_OPTIMIZERS: dict[str, Optimizer] = {
    "φ is empty": optimizer(init=lambda key: {}),
    "type is not said": optimizer(init=lambda key: {"rate": 0.1}),
    "φ holds int32": optimizer(init=lambda key: {"rate": jnp.asarray(1, jnp.int32)}),
    "state after a step at its only leaf is float32": optimizer(lambda phi, u, s: (u, s + 0.5)),
    "steps are all zero": optimizer(scaled(0.0)),
    "blows up on a quadratic": optimizer(scaled(300.0)),
    "gradient in φ.*is not finite": optimizer(
        lambda phi, u, s: (jax.tree.map(lambda x: (-0.1 * x + jnp.sqrt(phi["rate"] * 0.0)).astype(x.dtype), u), s)
    ),
    "than those of `bind_tasks` on several": optimizer()._replace(
        bind_tasks=lambda phi: optax.GradientTransformationExtraArgs(
            jax.vmap(lambda params: jnp.zeros((), jnp.int32)), lambda u, s, p=None, **extra: (u, s)
        )
    ),
    "no value of rate lets": optimizer(scaled(1.0), tunable={"rate": Bijection(abs, abs)}),
}


def test_a_good_optimizer_of_few_lines() -> None:
    testing.check_optimizer(optimizer())


@pytest.mark.parametrize(("message", "made"), BAD_OPTIMIZERS.items())
def test_bad_optimizers(message: str, made: Optimizer) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check_optimizer(made)


def spoiled(change: Any) -> Any:
    """A factory whose estimates are changed: (key, φ, gradient, state, metrics) -> the last three."""

    def factory(optimizer: Any, objective: Any, schedule: Any) -> MetaGradient:
        good = truncated_backprop(optimizer, objective, schedule)
        return good._replace(
            estimate=lambda key, phi, state, families: change(key, phi, *good.estimate(key, phi, state, families))
        )

    return factory


def with_nan(key: Any, phi: Any, gradient: Any, state: Any, metrics: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf * jnp.nan, gradient), state, metrics


BAD_ESTIMATORS: dict[str, Any] = {
    "is not finite": with_nan,
    "another structure than φ": lambda key, phi, gradient, state, metrics: ([gradient], state, metrics),
    "its state after a meta-step has another": lambda key, phi, gradient, state, metrics: (
        gradient,
        (state, 1),
        metrics,
    ),
    "lack `meta_loss`": lambda key, phi, gradient, state, metrics: (gradient, state, {}),
    "another key gives the same gradient": lambda key, phi, gradient, state, metrics: (phi, state, metrics),
    "no single numbers": lambda key, phi, g, state, metrics: (g, state, {**metrics, "all": jnp.ones(2)}),
}


@pytest.mark.parametrize(("message", "change"), BAD_ESTIMATORS.items())
def test_bad_estimators(message: str, change: Any) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check_estimator(spoiled(change))
