"""Random functions in closed form: quadratics, and Rosenbrock's, the thesis's test of transfer."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.registry import TASKS
from metaopt.tasks.settings import check_count
from metaopt.types import Batch, Data, Key, Params, Scalar, Split, TaskFamily

VARIANCE = 0.1  # of every entry of W, b and x_0


class QuadraticTask(NamedTuple):
    W: jax.Array  # [dim, dim]
    b: jax.Array  # [dim]


@TASKS.register
def quadratic(dim: int = 10) -> TaskFamily:
    """f(x) = (1/D) ‖Wx - b‖², with W_ij, b_i and the entries of x_0 from N(0, 0.1), 0.1 a variance.

    Parameters are one array [dim]; the family is deterministic.

    Raises:
      ValueError: `dim` is not a positive whole number.
    """
    check_count("dim", dim)

    def sample(key: Key, data: Data) -> QuadraticTask:
        matrix_key, offset_key = jax.random.split(key)
        return QuadraticTask(W=_normal(matrix_key, (dim, dim)), b=_normal(offset_key, (dim,)))

    def init(key: Key, task: QuadraticTask) -> Params:
        return _normal(key, (dim,))

    def batch(key: Key, task: QuadraticTask, data: Data) -> Batch:
        return ()

    def loss(params: Params, task: QuadraticTask, batch: Batch) -> Scalar:
        return jnp.mean((task.W @ params - task.b) ** 2)

    def eval_batch(task: QuadraticTask, data: Data, split: Split) -> Batch:
        return ()

    return TaskFamily(data=(), sample=sample, init=init, batch=batch, loss=loss, eval_batch=eval_batch)


def _normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    return VARIANCE**0.5 * jax.random.normal(key, shape)


MAX_LOG_STEEPNESS = 3.0  # natural log; 3 decades with base 10 would start above the thesis's figure


class RosenbrockTask(NamedTuple):
    a: jax.Array  # [pairs] N(0, 1)
    b: jax.Array  # [pairs] log b ~ U[0, 3]


@TASKS.register
def rosenbrock(pairs: int = 5) -> TaskFamily:
    """f(x, y) = Σ_i (x_i - a_i)² + b_i (y_i - x_i²)², with a, x_0, y_0 from N(0, I) and natural log b ~ U[0, 3].

    Parameters are {"x": [pairs], "y": [pairs]}; the minimum is 0 at x = a, y = a². The family is deterministic.

    Raises:
      ValueError: `pairs` is not a positive whole number.
    """
    check_count("pairs", pairs)

    def sample(key: Key, data: Data) -> RosenbrockTask:
        centre_key, steepness_key = jax.random.split(key)
        log_b = jax.random.uniform(steepness_key, (pairs,), maxval=MAX_LOG_STEEPNESS)
        return RosenbrockTask(a=jax.random.normal(centre_key, (pairs,)), b=jnp.exp(log_b))

    def init(key: Key, task: RosenbrockTask) -> Params:
        x_key, y_key = jax.random.split(key)
        return {"x": jax.random.normal(x_key, (pairs,)), "y": jax.random.normal(y_key, (pairs,))}

    def batch(key: Key, task: RosenbrockTask, data: Data) -> Batch:
        return ()

    def loss(params: Params, task: RosenbrockTask, batch: Batch) -> Scalar:
        x, y = params["x"], params["y"]
        return jnp.sum((x - task.a) ** 2 + task.b * (y - x**2) ** 2)

    def eval_batch(task: RosenbrockTask, data: Data, split: Split) -> Batch:
        return ()

    return TaskFamily(data=(), sample=sample, init=init, batch=batch, loss=loss, eval_batch=eval_batch)
