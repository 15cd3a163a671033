"""Tasks over devices (outermost), then over chunks whose residuals fit the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from metaopt.types import PyTree

# Columns (tasks times coordinates) of a chunk: enough to fill the vector units, few enough for the second-level cache.
COLUMNS = 640


def use_cpu_devices(num_devices: int) -> None:
    """Splits this process's CPU into devices, one a core. To be called before jax is first used.

    Dispatch becomes synchronous: two programs with collectives in flight at once can wait for each other for ever when
    there are as few threads as devices.
    """
    jax.config.update("jax_num_cpu_devices", num_devices)
    jax.config.update("jax_cpu_enable_async_dispatch", num_devices == 1)


def task_mesh(num_tasks: int, num_devices: int | None = None) -> Mesh:
    """A mesh with one axis, "tasks".

    Args:
      num_devices: how many of jax's devices to use; None: the most that divide `num_tasks`.

    Raises:
      ValueError: more devices than there are, or a number that does not divide `num_tasks`.
    """
    available = jax.device_count()
    if num_devices is None:
        num_devices = max(n for n in range(1, available + 1) if num_tasks % n == 0)
    if not 1 <= num_devices <= available:
        raise ValueError(f"`num_devices` is {num_devices}; jax sees {available}.")
    if num_tasks % num_devices:
        raise ValueError(f"`num_tasks` ({num_tasks}) must be a multiple of `num_devices` ({num_devices}).")
    return jax.make_mesh((num_devices,), ("tasks",), axis_types=(AxisType.Auto,), devices=jax.devices()[:num_devices])


def pick_chunk_size(num_tasks: int, num_coordinates: int, chunk_size: int | None = None) -> int:
    """Tasks of a chunk: the largest divisor of `num_tasks` that stays within `COLUMNS`, or within what is asked for."""
    most = chunk_size or max(1, COLUMNS // num_coordinates)
    return max(n for n in range(1, num_tasks + 1) if num_tasks % n == 0 and n <= most)


def sum_over_chunks(
    fn: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], mesh: Mesh, shared: PyTree, chunks: PyTree
) -> tuple[PyTree, PyTree]:
    """`fn(shared, chunk) -> (terms, outputs)` for every chunk: the terms summed, the outputs stacked.

    Devices go outermost (a map over chunks outside of the sharding would gather the whole batch on every device), and
    all terms travel in a single all-reduce.

    Args:
      shared: replicated, φ and the family.
      chunks: leaves [num_chunks, ...], a multiple of the mesh's devices.
    """

    def local(shared: PyTree, chunks: PyTree) -> tuple[PyTree, PyTree]:
        if jax.tree.leaves(chunks)[0].shape[0] == 1:
            terms, outputs = fn(shared, jax.tree.map(lambda leaf: leaf[0], chunks))
            return terms, jax.tree.map(lambda leaf: leaf[None], outputs)
        terms, outputs = jax.lax.map(lambda chunk: fn(shared, chunk), chunks)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), terms), outputs

    def on_device(shared: PyTree, chunks: PyTree) -> tuple[PyTree, PyTree]:
        terms, outputs = local(shared, chunks)
        if not jax.tree.leaves(terms):
            return terms, outputs
        flat, unravel = ravel_pytree(terms)
        return unravel(jax.lax.psum(flat, "tasks")), outputs

    if mesh.size == 1:
        return local(shared, chunks)
    # Without check_vma: scans inside start from constants, which vary over no axis.
    sharded: Any = jax.shard_map(
        on_device, mesh=mesh, in_specs=(P(), P("tasks")), out_specs=(P(), P("tasks")), check_vma=False
    )
    return sharded(shared, chunks)


def map_chunks(fn: Callable[[PyTree, PyTree], PyTree], mesh: Mesh, shared: PyTree, chunks: PyTree) -> PyTree:
    """`fn(shared, chunk)` for every chunk, stacked: `sum_over_chunks` without the sum."""
    return sum_over_chunks(lambda shared, chunk: ((), fn(shared, chunk)), mesh, shared, chunks)[1]
