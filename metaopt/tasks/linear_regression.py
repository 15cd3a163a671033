"""Least squares on small random data sets, each task its own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.tasks.settings import check_batch_size, check_count, label
from metaopt.types import Data, Key, Params, Scalar, Split, TaskFamily

INPUT_STD = 0.1
NOISE_STD = 0.01


class Observations(NamedTuple):
    """A task, and a batch of it."""

    X: jax.Array  # [examples, dim] N(0, 0.1² I)
    y: jax.Array  # [examples]


def linear_regression(num_examples: int = 200, dim: int = 10, batch_size: int = 20) -> TaskFamily:
    """(1/N) Σ_i (y_i - wᵀx_i)², y = ŵᵀx + ε, with x ~ N(0, 0.1² I), ŵ ~ N(0, I), ε ~ N(0, 0.01²) and w_0 ~ N(0, I).

    Parameters are one array [dim]; minibatches are drawn with replacement.

    Raises:
      ValueError: a setting is not a positive whole number, or `batch_size` exceeds `num_examples`.
    """
    check_count("num_examples", num_examples)
    check_count("dim", dim)
    check_batch_size(batch_size, num_examples)

    def sample(key: Key, data: Data) -> Observations:
        input_key, truth_key, noise_key = jax.random.split(key, 3)
        X = INPUT_STD * jax.random.normal(input_key, (num_examples, dim))
        truth = jax.random.normal(truth_key, (dim,))
        return Observations(X=X, y=X @ truth + NOISE_STD * jax.random.normal(noise_key, (num_examples,)))

    def init(key: Key, task: Observations) -> Params:
        return jax.random.normal(key, (dim,))

    def batch(key: Key, task: Observations, data: Data) -> Observations:
        rows = jax.random.randint(key, (batch_size,), 0, num_examples)
        return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), task)

    def loss(params: Params, task: Observations, batch: Observations) -> Scalar:
        return jnp.mean((batch.y - batch.X @ params) ** 2)

    def eval_batch(task: Observations, data: Data, split: Split) -> Observations:
        return task

    return TaskFamily(
        data=(),
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        name=label(linear_regression, num_examples=num_examples, dim=dim, batch_size=batch_size),
        evaluated_on=f"all {num_examples:,} examples of each task",
    )
