"""Updates wherever the parameters lie: sharded explicitly, or varying over the devices of a `shard_map`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from metaopt.types import PyTree


def vary_with(tree: PyTree, *others: PyTree) -> PyTree:
    """The leaves, varying over every axis that a leaf of `others` varies over, as what a loop carries must.

    Inside of a `shard_map` a constant varies over none, and what is computed from it and the parameters does.
    """
    if AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return tree
    zero = sum((jnp.zeros_like(leaf, jnp.float32, shape=()) for leaf in jax.tree.leaves(others)), jnp.float32(0.0))
    return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), tree)


def explicit_mesh(tree: PyTree) -> AbstractMesh | None:
    """The mesh over which the types of the leaves say how they are sharded; None where they do not."""
    for leaf in jax.tree.leaves(tree):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def spread(mesh: AbstractMesh, tree: PyTree) -> tuple[tuple[str, ...], int]:
    """The explicit axes that some leaf is sharded over, and of how many devices they are."""
    used = set()
    for leaf in jax.tree.leaves(tree):
        for entry in jax.typeof(leaf).sharding.spec:
            used |= {entry} if isinstance(entry, str) else set(entry or ())
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if name in used)
    return axes, math.prod(mesh.shape[name] for name in axes)


def last_axis_over(mesh: AbstractMesh, axes: tuple[str, ...], leaf: Any) -> NamedSharding:
    """The last axis of a leaf over these axes, if it divides; else replicated."""
    fits = axes and leaf.ndim and leaf.shape[-1] % math.prod(mesh.shape[name] for name in axes) == 0
    return NamedSharding(mesh, P(*(None,) * (leaf.ndim - 1), axes) if fits else P())


def shardings(mesh: AbstractMesh, tree: PyTree) -> PyTree:
    """Those of the leaves; replicated where a leaf lies on no mesh."""

    def one(leaf: Any) -> NamedSharding:
        sharding = jax.typeof(leaf).sharding
        return NamedSharding(mesh, P()) if sharding.mesh.empty else sharding

    return jax.tree.map(one, tree)


def laid_out_by_xla(fn: Callable[..., PyTree], out: PyTree, *args: PyTree) -> PyTree:
    """`fn(*args)`, inside of which XLA shards what is computed; `out` are the shardings of the result."""
    return jax.sharding.auto_axes(fn, out_sharding=out)(*args)
