"""Linear and logistic regression on small random data sets, each task its own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.registry import TASKS
from metaopt.tasks.settings import check_batch_size, check_count
from metaopt.types import Data, Key, Params, Scalar, Split, TaskFamily

INPUT_STD = 0.1
NOISE_STD = 0.01


def check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"`density` ({density}) must be above 0 and at most 1.")


def inputs(key: Key, num_examples: int, dim: int, density: float) -> jax.Array:
    """[num_examples, dim]; where entries are left out, the others keep a row's mean square."""
    X = INPUT_STD * jax.random.normal(key, (num_examples, dim))
    if density == 1:
        return X
    return X * jax.random.bernoulli(jax.random.fold_in(key, 1), density, X.shape) / density**0.5


class Observations(NamedTuple):
    """A task, and a batch of it."""

    X: jax.Array  # [examples, dim] N(0, 0.1² I)
    y: jax.Array  # [examples]


@TASKS.register
def linear_regression(num_examples: int = 200, dim: int = 10, batch_size: int = 20, density: float = 1.0) -> TaskFamily:
    """(1/N) Σ_i (y_i - wᵀx_i)², y = ŵᵀx + ε, with x ~ N(0, 0.1² I), ŵ ~ N(0, I), ε ~ N(0, 0.01²) and w_0 ~ N(0, I).

    Parameters are one array [dim]; minibatches are drawn with replacement.

    Args:
      density: share of the entries of x that are not 0; below 1 gradients are sparse, and entries larger, so that a row
        has the same mean square.

    Raises:
      ValueError: a setting is not a positive whole number, `density` not in (0, 1], or `batch_size` exceeds
        `num_examples`.
    """
    check_density(density)
    check_count("num_examples", num_examples)
    check_count("dim", dim)
    check_batch_size(batch_size, num_examples)

    def sample(key: Key, data: Data) -> Observations:
        input_key, truth_key, noise_key = jax.random.split(key, 3)
        X = inputs(input_key, num_examples, dim, density)
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
        evaluated_on=f"all {num_examples:,} examples of each task",
    )


class LabelledExamples(NamedTuple):
    """A task, and a batch of it."""

    X: jax.Array  # [examples, dim] N(0, 0.1² I)
    labels: jax.Array  # [examples] int32


@TASKS.register
def logistic_regression(
    num_examples: int = 200, dim: int = 10, num_classes: int = 2, batch_size: int = 20, density: float = 1.0
) -> TaskFamily:
    """Mean cross-entropy of softmax(Wᵀx), with labels argmax(Ŵᵀx + ε).

    As in linear regression x ~ N(0, 0.1² I), Ŵ ~ N(0, I), ε ~ N(0, 0.01² I) (which makes the labels near the borders
    noisy) and W_0 ~ N(0, I). Parameters are one array [dim, num_classes]; minibatches are drawn with replacement.

    Args:
      density: as in `linear_regression`.

    Raises:
      ValueError: a setting is not a positive whole number, `num_classes` is 1, `density` not in (0, 1], or `batch_size`
        exceeds `num_examples`.
    """
    check_density(density)
    check_count("num_examples", num_examples)
    check_count("dim", dim)
    check_count("num_classes", num_classes, least=2)
    check_batch_size(batch_size, num_examples)

    def sample(key: Key, data: Data) -> LabelledExamples:
        input_key, truth_key, noise_key = jax.random.split(key, 3)
        X = inputs(input_key, num_examples, dim, density)
        truth = jax.random.normal(truth_key, (dim, num_classes))
        scores = X @ truth + NOISE_STD * jax.random.normal(noise_key, (num_examples, num_classes))
        return LabelledExamples(X=X, labels=jnp.argmax(scores, axis=-1).astype(jnp.int32))

    def init(key: Key, task: LabelledExamples) -> Params:
        return jax.random.normal(key, (dim, num_classes))

    def batch(key: Key, task: LabelledExamples, data: Data) -> LabelledExamples:
        rows = jax.random.randint(key, (batch_size,), 0, num_examples)
        return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), task)

    def loss(params: Params, task: LabelledExamples, batch: LabelledExamples) -> Scalar:
        log_probs = jax.nn.log_softmax(batch.X @ params)
        # A product with the one-hot labels: the gradient of an indexed pick is a scatter, slow in a batch of tasks.
        return -jnp.mean(jnp.sum(log_probs * jax.nn.one_hot(batch.labels, num_classes), axis=-1))

    def eval_batch(task: LabelledExamples, data: Data, split: Split) -> LabelledExamples:
        return task

    def metrics(params: Params, task: LabelledExamples, batch: LabelledExamples) -> dict[str, Scalar]:
        return {"accuracy": jnp.mean(jnp.argmax(batch.X @ params, axis=-1) == batch.labels)}

    return TaskFamily(
        data=(),
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics,
        evaluated_on=f"all {num_examples:,} examples of each task",
    )
