"""Random quadratics, the first family of the thesis."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.tasks.settings import check_count, label
from metaopt.types import Batch, Data, Key, Params, Scalar, Split, TaskFamily

VARIANCE = 0.1  # of every entry of W, b and x_0


class QuadraticTask(NamedTuple):
    W: jax.Array  # [dim, dim]
    b: jax.Array  # [dim]


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

    name = label(quadratic, dim=dim)
    return TaskFamily(data=(), sample=sample, init=init, batch=batch, loss=loss, eval_batch=eval_batch, name=name)


def _normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    return VARIANCE**0.5 * jax.random.normal(key, shape)
