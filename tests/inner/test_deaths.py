"""Death is for good: under minibatches one of which kills and the next would not, in one window and over several."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.estimators import truncated_backprop
from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import estimated_anew, reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import sgd
from metaopt.registry import OPTIMIZERS
from metaopt.tasks.hyper import with_task
from metaopt.trees import usable_tasks
from metaopt.types import Hyper, TaskFamily
from tests.toys import made

TASKS, LENGTH, SHARE = 48, 12, 0.06


def flaky(share: float = SHARE) -> TaskFamily:
    """‖x‖², but infinite on a share of the minibatches, wherever x is: the next one is sound again."""
    return TaskFamily(
        data=(),
        sample=lambda key, data: (),
        init=lambda key, task: 1.0 + jax.random.uniform(key, (2,)),
        batch=lambda key, task, data: jax.random.uniform(key) < share,
        loss=lambda params, task, batch: jnp.where(batch, jnp.inf, 1.0) * jnp.sum(params**2),
        eval_batch=lambda task, data, split: jnp.asarray(False),
        name="flaky",
    )


def deaths(keys: jax.Array) -> np.ndarray:
    """[tasks] the step at which each is dead, by the batches that its key draws; 0: from the start."""

    def bad(key: jax.Array) -> np.ndarray:
        _, _, run_key, loss_key = jax.random.split(key, 4)
        at = jax.vmap(lambda step: jax.random.fold_in(jax.random.fold_in(run_key, step), 0))(jnp.arange(LENGTH + 1))
        drawn = jax.vmap(lambda key: jax.random.uniform(key) < SHARE)
        # f(θ_0) is taken on a batch of its own.
        return drawn(at).at[0].max(drawn(loss_key[None])[0])

    found = np.asarray(jax.vmap(bad)(keys))
    return np.where(found.any(axis=1), found.argmax(axis=1), LENGTH + 1)


@pytest.mark.parametrize("window", [LENGTH, 3, 1])
@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_no_task_comes_back_by_a_sound_minibatch(name: str, window: int) -> None:
    optimizer, family = OPTIMIZERS[name](learning_rate=0.05), flaky()
    tx = bind_tasks(optimizer, optimizer.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(0), TASKS)
    died = deaths(keys)
    # Some from the start, some on the way, some not; and some that would have come back for the rest of the run.
    assert (died == 0).any() and ((died > 0) & (died < LENGTH)).sum() > 5 and (died > LENGTH).sum() > 5
    run = jax.jit(lambda task, state: unroll(tx, family, task, state, length=window))
    task, state = reset(tx, family, keys)
    rows, places = [], [np.asarray(state.params)]
    for _ in range(LENGTH // window):
        state, trace = run(task, state)
        rows.append(trace)
        places.append(np.asarray(state.params))
    loss, alive, moved = (
        np.concatenate([getattr(row, part) for row in rows]) for part in ("loss", "alive", "update_norm")
    )
    expected = np.arange(1, LENGTH + 1)[:, None] < died
    np.testing.assert_array_equal(alive, expected)
    np.testing.assert_array_equal(np.isfinite(loss), expected)
    np.testing.assert_array_equal(moved > 0, expected)
    np.testing.assert_array_equal(np.asarray(state.alive), died > LENGTH)
    if window == 1:
        for step in range(1, LENGTH + 1):
            dead = died <= step
            np.testing.assert_array_equal(places[step][dead], places[step - 1][dead])


def test_an_estimator_counts_the_dead_of_earlier_windows() -> None:
    optimizer, family = sgd(learning_rate=0.05), flaky()
    estimator = made(truncated_backprop, optimizer, num_tasks=TASKS, horizon=LENGTH, unroll_length=3, num_devices=1)
    phi = optimizer.init(jax.random.key(0))
    state, step = estimator.init(jax.random.key(1), phi, (family,)), jax.jit(estimator.estimate)
    died = deaths(jax.random.split(jax.random.fold_in(jax.random.key(1), 0), TASKS))
    for window in range(1, 5):
        gradient, state, metrics = step(jax.random.key(2), phi, state, (family,))
        assert metrics["diverged"] == (died <= 3 * window).sum()
        assert np.isfinite(gradient["learning_rate"])


def test_hyperparameters_that_moved_bring_no_task_back() -> None:
    """The estimate is taken anew at the next window's start, of the dead too, and it may be sound."""

    def loss(params: Any, task: Any, batch: Any, hyper: Any = {"scale": 1.0}) -> jax.Array:  # noqa: B006
        return hyper["scale"] * jnp.sum(params**2)

    family = dataclasses.replace(
        flaky(),
        loss=loss,
        batch=lambda key, task, data: (),
        eval_batch=lambda task, data, split: (),
        hyper={"scale": Hyper(1.0)},
        splits=("train", "validation"),
        validation_loss=lambda params, task, batch: jnp.sum(params**2),
    )
    optimizer = with_task(sgd(learning_rate=0.1), family)
    phi = optimizer.init(jax.random.key(0))
    tx = bind_tasks(optimizer, phi)
    task, state = reset(tx, family, jax.random.split(jax.random.key(0), 4))
    alive = jnp.array([True, False, True, False])
    dead = state._replace(alive=alive)
    other = bind_tasks(optimizer, {**phi, "task": {"scale": jnp.log(2.0)}})
    anew = estimated_anew(other, family, task, dead)
    np.testing.assert_array_equal(anew.alive, alive)
    np.testing.assert_array_equal(anew.estimate.value[~alive], 0.0)
    np.testing.assert_allclose(anew.estimate.value[alive], 2 * state.estimate.value[alive], rtol=1e-6)
    end, trace = unroll(other, family, task, dead, length=3)
    np.testing.assert_array_equal(end.alive, alive)
    assert np.isinf(trace.loss[:, ~alive]).all()
    # And what is not sound under the new numbers dies of them.
    gone = bind_tasks(optimizer, {**phi, "task": {"scale": jnp.float32(80.0)}})
    assert not estimated_anew(gone, family, task, state).alive.any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_infinity_is_not_usable_in_any_type(dtype: str) -> None:
    leaf = jnp.array([[1.0, 2.0], [jnp.inf, 0.0], [jnp.nan, 0.0]], dtype)
    assert usable_tasks({"w": leaf, "n": jnp.arange(3)}).tolist() == [True, False, False]
