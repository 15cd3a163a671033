"""What estimators carry from one meta-step to the next, against loops by hand: whose weights, how they decay."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metaopt.estimators import evolution_strategies, mixture, score_function
from metaopt.estimators.evolution import PERTURBATION
from metaopt.estimators.mixture import Variances
from metaopt.estimators.score_function import _others_mean
from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import lstm, sgd
from tests.toys import bowl, made, noisy_bowl, one_bowl

T, GROUPS, SIGMA, DECAY = 3, 4, 0.3, 0.75
SGD = sgd(learning_rate=0.5)
PAIRS: dict[str, Any] = dict(
    num_tasks=GROUPS, horizon=T, unroll_length=T, num_devices=1, tasks_per_perturbation=1, sigma=SIGMA
)


@cache
def steps_of_the_mixture() -> tuple[np.ndarray, list[Any], list[tuple[np.ndarray, np.ndarray]]]:
    """Its gradients and memories over four meta-steps, and each pair's two estimates by hand, [groups] each."""
    estimator, family, phi = made(mixture, SGD, decay=DECAY, **PAIRS), bowl(), SGD.init(jax.random.key(0))
    flat, unravel = ravel_pytree(phi)
    state, step = estimator.init(jax.random.key(1), phi, (family,)), jax.jit(estimator.estimate)

    @jax.jit
    @jax.value_and_grad
    def side(point: jax.Array, key: jax.Array) -> jax.Array:
        tx = bind_tasks(SGD, unravel(point))
        task, state = reset(tx, family, key[None])
        return jnp.mean(unroll(tx, family, task, state, length=T, second_order=True)[1].loss)

    gradients, memories, parts = [], [state[0].memory], []
    for index in range(4):
        key = jax.random.fold_in(jax.random.key(2), index)
        gradient, state, _ = step(key, phi, state, (family,))
        gradients.append(float(ravel_pytree(gradient)[0][0]))
        memories.append(state[0].memory)
        values, slopes = [], []
        for own in jax.random.split(jax.random.fold_in(key, 0), GROUPS):
            shift = SIGMA * jax.random.normal(jax.random.fold_in(own, PERTURBATION), flat.shape)
            (up, rise), (down, fall) = side(flat + shift, own), side(flat - shift, own)
            values.append(float((up - down) * shift[0] / (2 * SIGMA**2)))
            slopes.append(float((rise[0] + fall[0]) / 2))
        parts.append((np.array(values), np.array(slopes)))
    return np.array(gradients), memories, parts


def test_the_mixture_equals_the_loop_by_hand() -> None:
    gradients, memories, parts = steps_of_the_mixture()
    held = np.zeros(2)  # variances of the values' and of the slopes' estimate
    for gradient, before, after, (values, slopes) in zip(gradients, memories[:-1], memories[1:], parts, strict=True):
        np.testing.assert_allclose(np.ravel([before.evolution, before.reparameterised]), held, rtol=1e-3, atol=1e-12)
        weight = held[1] / held.sum() if held.any() else 1.0
        np.testing.assert_allclose(gradient, weight * values.mean() + (1 - weight) * slopes.mean(), rtol=1e-3)
        held = DECAY * held + (1 - DECAY) * np.array([values.var(ddof=1), slopes.var(ddof=1)])
        np.testing.assert_allclose(np.ravel([after.evolution, after.reparameterised]), held, rtol=1e-3)
    # The check has power: weights one way or the other, now's or before's, differ.
    assert 0.02 < held[1] / held.sum() < 0.45 and abs(values.mean() / slopes.mean() - 1) > 0.05


@pytest.mark.parametrize("whole", ["evolution", "reparameterised"])
def test_the_mixture_is_the_part_that_its_memory_knows_to_be_certain(whole: str) -> None:
    """However small the variances remembered are beside the present ones."""
    estimator, values = made(mixture, SGD, decay=0.9, **PAIRS), made(evolution_strategies, SGD, **PAIRS)
    phi, families, key = SGD.init(jax.random.key(0)), (bowl(),), jax.random.fold_in(jax.random.key(2), 0)
    (carried,) = estimator.init(jax.random.key(1), phi, families)
    none, some = jnp.zeros(1), jnp.full(1, 1e-20)
    memory = Variances(none, some) if whole == "evolution" else Variances(some, none)
    gradient = jax.jit(estimator.estimate)(key, phi, (carried._replace(memory=memory),), families)[0]
    expected = jax.jit(values.estimate)(key, phi, (), families)[0]["learning_rate"]
    if whole == "reparameterised":
        expected = steps_of_the_mixture()[2][0][1].mean()
    np.testing.assert_allclose(gradient["learning_rate"], expected, rtol=1e-3)


def test_the_mean_of_the_mixture_is_that_of_evolution_strategies() -> None:
    """A ripple makes slopes as noisy as values; two perturbations a meta-step, where a weight sees most of itself."""
    ripple = dataclasses.replace(
        one_bowl(1),
        init=lambda key, task: jnp.ones(1) + 0 * task,
        loss=lambda params, task, batch: jnp.sum(params + jnp.sin(100.0 * params) / 100.0),
    )
    optimizer, families = sgd(learning_rate=0.1), (ripple,)
    phi, keys = optimizer.init(jax.random.key(0)), jax.random.split(jax.random.key(3), 4000)
    settings = {**PAIRS, "num_tasks": 2, "horizon": 1, "unroll_length": 1}

    def draws(make: Any, **options: Any) -> np.ndarray:
        estimator = made(make, optimizer, **settings, **options)
        state = estimator.init(jax.random.key(1), phi, families)
        if state:  # even weights
            state = (state[0]._replace(memory=Variances(jnp.ones(1), jnp.ones(1))),)

        def one(key: jax.Array) -> jax.Array:
            return estimator.estimate(key, phi, state, families)[0]["learning_rate"]

        return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=1000))(keys), np.float64)

    values = draws(evolution_strategies)
    # On the same perturbations, so that what both have in common is taken off.
    before, itself = (draws(mixture, decay=decay) - values for decay in (0.9, 0.0))
    away = [np.abs(x.mean()) / (x.std() / np.sqrt(len(keys))) for x in (before, itself)]
    assert away[0] < 4 and away[1] > 8, away
    assert before.std() > 0.3 * values.std()  # they have not all in common


@pytest.mark.parametrize("windows", [1, 2])
def test_the_moving_average_of_returns_decays_as_by_hand(windows: int) -> None:
    """Each age of an inner run has its own, and one that no task was at stays as it is."""
    optimizer, family = lstm(noise="per_coordinate", hidden_size=2, num_layers=1), noisy_bowl()
    tasks, horizon = 4, T * windows
    settings: dict[str, Any] = dict(num_tasks=tasks, horizon=horizon, unroll_length=T, num_devices=1, chunk_size=tasks)
    estimator = made(score_function, optimizer, baseline="moving_average", decay=DECAY, **settings)
    phi = jax.jit(optimizer.init)(jax.random.key(0))
    state, step = estimator.init(jax.random.key(1), phi, (family,)), jax.jit(estimator.estimate)

    @jax.jit
    def window(task: Any, state: Any) -> Any:
        return unroll(bind_tasks(optimizer, phi), family, task, state, length=T, explore="scored")

    def begin(keys: jax.Array) -> Any:
        return reset(bind_tasks(optimizer, phi), family, keys)

    total, weight = np.zeros(horizon), np.zeros(horizon)
    task, run = begin(jax.random.split(jax.random.fold_in(jax.random.key(1), 0), tasks))
    for index in range(3 * windows):
        key, age = jax.random.fold_in(jax.random.key(2), index), index % windows * T
        if windows == 1 or (age == 0 and index):
            task, run = begin(jax.random.split(jax.random.fold_in(key, 0), tasks))
        run, trace = window(task, run)
        # Of the mean over the window's steps, what comes after each, counted from the start's loss.
        gains = (np.asarray(trace.loss, np.float64) - np.asarray(trace.initial_loss)) / T
        returns = np.cumsum(gains[::-1], axis=0)[::-1].mean(axis=1)
        here = slice(age, age + T)
        total[here] = DECAY * total[here] + (1 - DECAY) * returns
        weight[here] = DECAY * weight[here] + (1 - DECAY)
        _, state, metrics = step(key, phi, state, (family,))
        assert metrics["alive"] == 1
        np.testing.assert_allclose(state[0].memory.total, total, rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(state[0].memory.weight, weight, rtol=1e-5)


def test_the_mean_of_the_others_is_of_those_alive_and_without_oneself() -> None:
    alive = jnp.array([True, True, False, True, False, True])
    returns = jnp.where(alive, jnp.array([[1.0, 2.0, 9.0, 6.0, 9.0, 4.0], [0.0, 3.0, 9.0, 1.0, 9.0, 7.0]]), 0.0)
    # Groups of three: the first has two left, the second two.
    expected = [[2.0, 1.0, 1.5, 4.0, 5.0, 6.0], [3.0, 0.0, 1.5, 7.0, 4.0, 1.0]]
    np.testing.assert_allclose(_others_mean(returns, alive, 3), expected)
    np.testing.assert_allclose(_others_mean(returns[:, 2:4], alive[2:4], 2), [[6.0, 0.0], [1.0, 0.0]])  # no other left
