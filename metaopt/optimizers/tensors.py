"""Every tensor of a tree in rows of one matrix, so that a thousand leaves take as few operations as ten.

A tensor begins a row of its own and fills as many as it needs, the last one padded with zeros. Sums over a tensor are
sums over its rows, and what is known of a tensor is spread to them by a matrix of ones and zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

WIDEST = 4096  # coordinates of a row, where there are tensors larger than that
ROW_COST = 16  # of a row beside its coordinates, in coordinates
FOLDED = 2**16  # entries of a matrix up to which XLA may compute it beforehand
TINY = 1e-30  # squares below this count as zero
FEW = 64  # leaves each of which XLA may compile for itself


class Layout(NamedTuple):
    """Where each tensor's coordinates are; tensors without any are left out."""

    sizes: tuple[int, ...]
    width: int

    @property
    def rows(self) -> tuple[int, ...]:
        """Of each tensor."""
        return tuple(-(-size // self.width) for size in self.sizes)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return sum(self.rows), self.width

    def matrix(self, leaves: Sequence[jax.Array], dtype: jnp.dtype) -> jax.Array:
        """The leaves, of any shapes and types, as [rows, width]."""
        parts = []
        for leaf, size, rows in zip((leaf for leaf in leaves if leaf.size), self.sizes, self.rows, strict=True):
            parts.append(leaf.reshape(-1).astype(dtype))
            if spare := rows * self.width - size:  # and no `pad`, an operation of its own for each leaf
                parts.append(jnp.zeros(spare, dtype))
        return jnp.concatenate(parts).reshape(self.shape)

    def leaves(self, matrix: jax.Array, like: Sequence[jax.Array], true: jax.Array) -> list[jax.Array]:
        """The leaves that `matrix` was made of, in shapes and types of `like`; `true` is known at run time alone."""
        flat, starts = matrix.reshape(-1), (np.cumsum([0, *self.rows]) * self.width)[:-1]
        if len(starts) > FEW:  # out of a branch, for XLA then compiles one program for all leaves of a size
            starts = jax.lax.cond(true, lambda: [*map(jnp.asarray, starts)], lambda: [jnp.zeros((), int)] * len(starts))
        rest = iter(starts)

        def one(leaf: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice(flat, (next(rest),), (leaf.size,)) if leaf.size else leaf
            return part.reshape(leaf.shape).astype(leaf.dtype)

        return [one(leaf) for leaf in like]

    def owners(self, dtype: jnp.dtype, true: jax.Array) -> jax.Array | None:
        """[rows, tensors] of ones and zeros: whose a row is. None where it is each tensor's only one."""
        tensors = len(self.sizes)
        if self.shape[0] == tensors:
            return None
        owner = jnp.asarray(np.repeat(np.arange(tensors), self.rows))
        if owner.size * tensors > FOLDED:
            owner = jnp.where(true, owner, 0)
        return (owner[:, None] == jnp.arange(tensors)).astype(dtype)


def layout_of(sizes: Sequence[int]) -> Layout:
    """The layout of tensors with so many coordinates, in rows of the width that costs least."""
    sizes = tuple(size for size in sizes if size)
    longest = max(sizes, default=1)
    widths = {2**power for power in range(3, int(math.log2(WIDEST)) + 1)} | ({longest} if longest <= WIDEST else set())

    def cost(width: int) -> tuple[int, int]:
        rows = sum(-(-size // width) for size in sizes)
        return rows * (width + ROW_COST + len(sizes) // 4), width

    return Layout(sizes, min(widths, key=cost))


def over_tensors(owners: jax.Array | None, x: jax.Array) -> jax.Array:
    """[rows, ...] -> [tensors, ...], summed over each tensor's rows."""
    return x if owners is None else jnp.matmul(owners.T, x, precision="highest")


def to_rows(owners: jax.Array | None, x: jax.Array) -> jax.Array:
    """[tensors, ...] -> [rows, ...], each tensor's to all of its rows."""
    return x if owners is None else jnp.matmul(owners, x, precision="highest")


@jax.custom_jvp
def sums(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """Each term summed over its last axis; in one pass over what they are computed from, where `sum` takes one each."""
    zeros = tuple(jnp.zeros((), term.dtype) for term in terms)

    def add(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(a + b for a, b in zip(left, right, strict=True))

    return tuple(jax.lax.reduce(terms, zeros, add, (terms[0].ndim - 1,)))


@sums.defjvp
def _sums_jvp(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array]
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    return sums(*primals), tuple(jnp.sum(tangent, axis=-1) for tangent in tangents)


def inverse_root(square: jax.Array) -> jax.Array:
    """1/√x; 0, with gradient 0, where x counts as zero."""
    nonzero = square > TINY
    return jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)
