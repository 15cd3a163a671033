"""Small helpers for pytrees whose leaves have a leading task axis."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from metaopt.types import PyTree

# Squares of numbers up to here, summed over a million coordinates, still fit float32; beyond it a value counts as
# non-finite, so that no feature overflows and no reverse pass multiplies zero by infinity.
LARGEST = 1e15
# A run has failed when its loss exceeds this multiple of f(θ_0), both counted from the loss's lower bound.
FAILURE_FACTOR = 10.0

# The checkpoint name of what the reverse pass of an inner step reads instead of computing it anew.
SAVED = "saved"


@contextlib.contextmanager
def usual_rules() -> Iterator[None]:
    """jax as it is without settings of strictness: optax, and people's tasks, are written for that.

    Promotion is numpy's, numbers go to the device unasked, and a key may serve twice, as for the two sides of a pair.
    """
    promotion = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with promotion[0], promotion[1], jax.transfer_guard("allow"), jax.debug_key_reuse(False):
        yield


def save_residuals(tree: PyTree) -> PyTree:
    """Marks the leaves as `SAVED`."""
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, SAVED), tree)


def _flat(leaf: jax.Array) -> jax.Array:
    """[tasks, coordinates], also where there are none of these."""
    return leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:]))


def ravel_tasks(tree: PyTree, dtype: Any) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """The leaves side by side, [tasks, D] in `dtype`, and the function that takes such an array back to the tree."""
    leaves, treedef = jax.tree.flatten(tree)
    flat = [_flat(leaf).astype(dtype) for leaf in leaves]

    def unravel(matrix: jax.Array) -> PyTree:
        parts, start = [], 0
        for leaf in leaves:
            size = math.prod(leaf.shape[1:])
            part = matrix[:, start : start + size]
            parts.append(part.reshape(leaf.shape).astype(leaf.dtype))
            start += size
        return jax.tree.unflatten(treedef, parts)

    return (flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=1)), unravel


def leaf_sizes(tree: PyTree) -> tuple[int, ...]:
    """Coordinates of each leaf, without the leading task axis."""
    return tuple(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(tree))


def usable_tasks(tree: PyTree) -> jax.Array:
    """[tasks] bool: every entry of a task is finite and at most `LARGEST` in magnitude."""
    checks = [  # of float16 in float32, or its infinity would be as large as its `LARGEST`
        jnp.all(jnp.abs(_flat(leaf)).astype(jnp.promote_types(leaf.real.dtype, jnp.float32)) <= LARGEST, axis=1)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.stack(checks).all(axis=0)


def select_tasks(mask: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
    """`yes` for the tasks where `mask` ([tasks] bool) holds, else `no`."""

    def select(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, yes, no)


def task_norm(tree: PyTree) -> jax.Array:
    """[tasks] Euclidean norm over all leaves of each task."""
    squares = [jnp.sum(jnp.square(_flat(leaf)), axis=1) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares))


def inner_product(a: PyTree, b: PyTree) -> jax.Array:
    """[tasks] the inner product over all leaves of each task."""
    products = [jnp.sum(_flat(x * y), axis=1) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return sum(products[1:], products[0])
