"""Matrices and tensors from few factors, and points that stand for rows of a table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.benchmark import sources
from metaopt.benchmark.layers import normals
from metaopt.benchmark.parts import Splits, exact, on_examples
from metaopt.types import Key, Params, Scalar, Task, TaskFamily

# ----- completion of matrices -----------------------------------------------------------------------------------------


def completion() -> TaskFamily:
    """A matrix of 60 by 40 and rank 3 from a third of its entries, all at once, by factors of rank 5."""
    return _completion(60, 40, 3, 5, 800, 400, None, 0.0)


def completion_minibatch() -> TaskFamily:
    """200 by 150 entries of rank 6 in noise, from minibatches: sparse gradients."""
    return _completion(200, 150, 6, 8, 8000, 2000, 128, 0.2)


def _completion(rows, columns, rank, width, num_train, num_test, batch_size, noise) -> TaskFamily:
    def examples(key: Key) -> Splits:
        factor_key, place_key, noise_key = jax.random.split(key, 3)
        left, right = normals(factor_key, (rows, rank), (columns, rank))
        # Every entry at most once, so that no split knows another's.
        places = jax.random.permutation(place_key, rows * columns)[: num_train + num_test]
        row, column = places // columns, places % columns
        values = jnp.sum(left[row] * right[column], axis=1) / rank**0.5
        entries = (row, column, values + noise * jax.random.normal(noise_key, values.shape))
        return {
            "train": tuple(each[:num_train] for each in entries),
            "test": tuple(each[num_train:] for each in entries),
        }

    def init(key: Key) -> Params:
        left, right = normals(key, (rows, width), (columns, width))
        return {"rows": 0.3 * left, "columns": 0.3 * right}

    def loss(params: Params, entries: tuple[jax.Array, jax.Array, jax.Array]) -> Scalar:
        row, column, values = entries
        return jnp.mean((jnp.sum(params["rows"][row] * params["columns"][column], axis=1) - values) ** 2)

    return on_examples(loss, init, examples, batch_size)


# ----- other factorisations -------------------------------------------------------------------------------------------


def tensor_factors() -> TaskFamily:
    """A tensor of 12 by 10 by 8 from four rank-one parts that overlap (CP decomposition)."""

    def sample(key: Key) -> jax.Array:
        common_key, key = jax.random.split(key)
        parts = [
            draw + 0.7 * common  # swamps: columns that are alike
            for draw, common in zip(_three(key, 4), _three(common_key, 1), strict=True)
        ]
        tensor = jnp.einsum("ir,jr,kr->ijk", *parts)
        return tensor / jnp.sqrt(jnp.mean(tensor**2))

    def loss(params: Params, task: jax.Array) -> Scalar:
        return jnp.mean((jnp.einsum("ir,jr,kr->ijk", *params) - task) ** 2)

    return exact(loss, lambda key, task: [0.5 * factor for factor in _three(key, 5)], sample)


def _three(key: Key, rank: int) -> list[jax.Array]:
    return normals(key, (12, rank), (10, rank), (8, rank))


def positive_factors() -> TaskFamily:
    """Positive 50 by 30 entries from positive factors in logarithms, by generalised Kullback-Leibler divergence."""

    def sample(key: Key) -> jax.Array:
        left, right = (jax.random.exponential(each, shape) for each, shape in zip(
            jax.random.split(key), ((50, 5), (5, 30)), strict=True))  # fmt: skip
        return left @ right

    def init(key: Key, task: jax.Array) -> Params:
        return [0.3 * draw for draw in normals(key, (50, 6), (6, 30))]

    def loss(params: Params, task: jax.Array) -> Scalar:
        shown = jnp.exp(params[0]) @ jnp.exp(params[1])
        return jnp.mean(task * (jnp.log(task) - jnp.log(shown)) - task + shown)

    return exact(loss, init, sample, -1e-6)


def phase_retrieval() -> TaskFamily:
    """A signal of 32 numbers from the squares of 256 projections of it, in minibatches (Candès et al. 2015)."""

    def examples(key: Key) -> Splits:
        signal, rows = normals(key, (32,), (320, 32))
        signal = signal / jnp.linalg.norm(signal)
        seen = (rows, (rows @ signal) ** 2)
        return {"train": tuple(each[:256] for each in seen), "test": tuple(each[256:] for each in seen)}

    def loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> Scalar:
        rows, squares = batch
        return jnp.mean(((rows @ params) ** 2 - squares) ** 2)

    return on_examples(loss, lambda key: 32**-0.5 * jax.random.normal(key, (32,)), examples, 32)


# ----- points for rows ------------------------------------------------------------------------------------------------


def neighbours_breast_cancer() -> TaskFamily:
    """Places in a plane for 120 tumours, near ones near (t-SNE, van der Maaten and Hinton 2008)."""
    data = sources.table("breast_cancer")
    x = np.asarray(data.splits["train"].inputs[:120], np.float64)
    distances = np.sum((x[:, None] - x) ** 2, axis=-1)
    widths = np.sort(distances, axis=1)[:, 15:16] / 2
    near = np.exp(-distances / widths) * (1 - np.eye(len(x)))
    near /= near.sum(axis=1, keepdims=True)
    joint = ((near + near.T) / (2 * len(x))).astype(np.float32)

    def init(key: Key) -> Params:
        return 0.1 * jax.random.normal(key, (len(x), 2))

    def loss(params: Params, joint: jax.Array) -> Scalar:
        off = 1 - jnp.eye(len(x))
        weights = off / (1 + _squares(params))
        log_shares = jnp.log(jnp.where(off > 0, weights, 1.0)) - jnp.log(jnp.sum(weights))
        return jnp.sum(jax.scipy.special.xlogy(joint, joint) - joint * log_shares)

    return on_examples(loss, init, {"train": joint}, lower_bound=-1e-5, sources=(data.source,), whole=True)


def scaling() -> TaskFamily:
    """Places in a plane with the distances of 50 points in five dimensions (stress of multidimensional scaling)."""
    num = 50

    def sample(key: Key) -> jax.Array:
        points = jax.random.normal(key, (num, 5)) * jnp.array([2.0, 2.0, 1.0, 0.3, 0.3])
        return jnp.sqrt(_squares(points) + 1e-6)

    def loss(params: Params, task: Task) -> Scalar:
        return jnp.sum((jnp.sqrt(_squares(params) + 1e-6) - task) ** 2) / jnp.sum(task**2)

    return exact(loss, lambda key, task: jax.random.normal(key, (num, 2)), sample)


def _squares(x: jax.Array) -> jax.Array:
    """[n, n] squared distances."""
    return jnp.sum((x[:, None] - x) ** 2, axis=-1)
