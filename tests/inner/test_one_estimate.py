"""One estimate a step serves objective and next step: in expectation the same as a batch for each of the two."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import sgd
from tests.toys import noisy_bowl

T, TASKS = 4, 40_000
LOG_RATE = jnp.log(0.3)
FAMILY = noisy_bowl()
OBJECTIVES: dict[str, Any] = {
    "mean": lambda loss, initial: jnp.mean(loss, axis=0),
    "last": lambda loss, initial: loss[-1],
    "relative": lambda loss, initial: jnp.mean(loss, axis=0) / initial,
}


def carried(objective: str, second_order: bool, keys: jax.Array, log_rate: jax.Array) -> jax.Array:
    """[tasks] the objective as `unroll` has it."""
    tx = bind_tasks(sgd(), {"learning_rate": log_rate})
    task, state = reset(tx, FAMILY, keys)
    _, trace = unroll(tx, FAMILY, task, state, length=T, second_order=second_order)
    return OBJECTIVES[objective](trace.loss, trace.initial_loss)


def by_hand(loss_stream: int, objective: str, second_order: bool, keys: jax.Array, log_rate: jax.Array) -> jax.Array:
    """[tasks] the same runs, written out, with the losses on a batch of their own: stream 2 of the step, as it was.

    Stream 0 is the batch that the step was taken on.
    """

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        task_key, init_key, run_key, loss_key = jax.random.split(key, 4)
        task = FAMILY.sample(task_key, ())
        params = FAMILY.init(init_key, task)
        initial, losses = FAMILY.loss(params, task, FAMILY.batch(loss_key, task, ())), []
        for t in range(T):
            key = jax.random.fold_in(run_key, t)
            gradient = jax.grad(FAMILY.loss)(params, task, FAMILY.batch(jax.random.fold_in(key, 0), task, ()))
            params = params - jnp.exp(log_rate) * (gradient if second_order else jax.lax.stop_gradient(gradient))
            losses.append(FAMILY.loss(params, task, FAMILY.batch(jax.random.fold_in(key, loss_stream), task, ())))
        return jnp.stack(losses), initial

    loss, initial = jax.vmap(one)(keys)
    return OBJECTIVES[objective](loss.T, initial)


@cache
def samples(objective: str, second_order: bool) -> dict[str, np.ndarray]:
    """name -> [value and gradient, tasks], on the same tasks, starts and steps for all three."""
    keys = jax.random.split(jax.random.key(0), TASKS)

    def both(fn: Any) -> np.ndarray:
        of_rate = partial(fn, objective, second_order, keys)
        # Tasks have nothing in common but the rate: forward mode gives each its own derivative.
        return np.stack(jax.jit(lambda rate: jax.jvp(of_rate, (rate,), (jnp.ones_like(rate),)))(LOG_RATE))

    return {"carried": both(carried), "apart": both(partial(by_hand, 2)), "same": both(partial(by_hand, 0))}


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_value_and_gradient_are_those_of_separate_batches_in_expectation(objective: str, second_order: bool) -> None:
    found = samples(objective, second_order)
    difference = found["carried"] - found["apart"]
    error = difference.std(axis=1) / np.sqrt(TASKS)
    assert (np.abs(difference.mean(axis=1)) < 4 * error).all(), difference.mean(axis=1) / error
    # The check has power: a loss on the batch that the step was taken on differs by far more.
    other = found["same"] - found["apart"]
    assert (np.abs(other.mean(axis=1)) > 8 * error).all(), other.mean(axis=1) / error
