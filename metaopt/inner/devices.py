"""Tasks over devices (outermost), then over chunks whose residuals fit the cache."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from metaopt.numbers import largest_divisor
from metaopt.types import PyTree

# Columns (tasks times coordinates) of a chunk. On CPUs: enough to fill the vector units, few enough for the
# second-level cache. On accelerators: enough to fill one.
COLUMNS, ACCELERATOR_COLUMNS = 640, 2**17
MOST_CPU_DEVICES = 1024  # each takes threads and memory, whether it is used or not


def use_cpu_devices(num_devices: int) -> None:
    """Splits this process's CPU into devices, one a core. To be called before jax is first used.

    Dispatch becomes synchronous: two programs with collectives in flight at once can wait for each other for ever when
    there are as few threads as devices.
    """
    jax.config.update("jax_num_cpu_devices", min(num_devices, MOST_CPU_DEVICES))  # who asks for more is refused later
    jax.config.update("jax_cpu_enable_async_dispatch", num_devices == 1)


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def compiler_options(*, runs_once: bool = False) -> dict[str, bool | int]:
    """What XLA should know about this machine, for `jax.jit`; nothing on accelerators.

    A program that `runs_once` is not optimised: compiling it takes longer than running it.

    CPUs with 512-bit vectors are used at full width, not at XLA's half; where every core has its device, products are
    not handed to a pool of threads (of these two, a tenth of a meta-step's time each); and LLVM optimises at its second
    level, which takes two thirds of the time to compile for code of the same speed.
    """
    if jax.default_backend() != "cpu":
        return {}
    if runs_once:
        return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    options: dict[str, bool | int] = {"xla_backend_optimization_level": 2}
    try:
        if "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"):
            options["xla_cpu_prefer_vector_width"] = 512
    except OSError:
        pass
    if jax.local_device_count() >= available_cores():
        options["xla_cpu_multi_thread_eigen"] = False
    return options


def matmul_precision(setting: str) -> contextlib.AbstractContextManager[None]:
    """The precision of products traced inside: `highest`, `high` or `default`, see `jax.default_matmul_precision`.

    Accelerators default to tf32 or bfloat16, whose errors a long unroll adds up. CPUs know one precision.
    """
    return contextlib.nullcontext() if jax.default_backend() == "cpu" else jax.default_matmul_precision(setting)


def task_mesh(num_tasks: int, num_devices: int | None = None) -> Mesh:
    """A mesh with one axis, "tasks", over as many devices of every process.

    Args:
      num_devices: how many of jax's devices to use, in all; None: the most that divide `num_tasks`.

    Raises:
      ValueError: more devices than there are, a number that does not divide `num_tasks`, or unequal shares of the
        processes.
    """
    available, processes = jax.device_count(), jax.process_count()
    if num_tasks % processes:
        raise ValueError(f"`num_tasks` ({num_tasks} a family) must be a multiple of the {processes} processes.")
    if num_devices is None:
        num_devices = max(n for n in range(processes, available + 1, processes) if num_tasks % n == 0)
    if not 1 <= num_devices <= available:
        raise ValueError(f"`num_devices` is {num_devices}; jax sees {available}.")
    if num_devices % processes:
        raise ValueError(f"`num_devices` ({num_devices}) must be a multiple of the {processes} processes.")
    if num_tasks % num_devices:
        raise ValueError(f"`num_tasks` ({num_tasks}) must be a multiple of `num_devices` ({num_devices}).")
    each = num_devices // processes
    devices = [device for index in range(processes) for device in jax.local_devices(process_index=index)[:each]]
    return jax.make_mesh((num_devices,), ("tasks",), axis_types=(AxisType.Auto,), devices=devices)


def pick_chunk_size(num_tasks: int, num_coordinates: int, chunk_size: int | None = None) -> int:
    """Tasks of a chunk: the largest divisor of `num_tasks` within the device's columns, or within what is asked for."""
    columns = COLUMNS if jax.default_backend() == "cpu" else ACCELERATOR_COLUMNS
    most = chunk_size or max(1, columns // num_coordinates)
    return largest_divisor(num_tasks, most)


# Residuals beyond this are dearer to store and load on a CPU than a second forward pass is.
CACHED = 128 * 2**20


def total_memory() -> int:
    """Bytes that the machine (within a container's or a Slurm job's limit) or an accelerator has, used or not."""
    device = jax.local_devices()[0]
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**32]
    with contextlib.suppress(OSError, ValueError):  # ValueError: the limit reads "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    with contextlib.suppress(KeyError, ValueError):
        limits.append(int(os.environ["SLURM_MEM_PER_NODE"]) * 2**20)
    return min(limits)


def device_memory() -> int:
    """Bytes that an unroll's residuals may take on a device where nothing else is set: a quarter of what it has.

    Of the memory there is, not of what is free at the moment, so that a resumed run is cut up as it was.
    """
    return total_memory() // 4 // (jax.device_count() if jax.local_devices()[0].platform == "cpu" else 1)


def pick_segment_lengths(length: int, state_bytes: int, step_bytes: int, budget: int | None = None) -> tuple[int, ...]:
    """How to cut an unroll into segments, and these into shorter ones, so that its residuals keep within a budget.

    () is no cut. With n nested cuts memory grows as the (n+1)th root of `length`, for n more forward passes.

    Args:
      state_bytes: a stored state.
      step_bytes: what the reverse pass reads of one step.
      budget: bytes; None: `device_memory()`, and one cut on CPUs where that brings the residuals near the cache.

    Raises:
      ValueError: a budget that was given is too small however the unroll is cut.
    """
    limit = device_memory() if budget is None else budget
    if budget is None and jax.default_backend() == "cpu" and _cut(length, 1, state_bytes, step_bytes)[1] <= CACHED:
        limit = min(limit, CACHED)
    lengths: tuple[int, ...] = ()
    need, cuts = length * step_bytes, 0
    while need > limit and length > 2 ** (cuts + 1):
        cuts += 1
        lengths, need = _cut(length, cuts, state_bytes, step_bytes)
    if need > limit and budget is not None:
        raise ValueError(
            f"`memory` ({budget / 2**30:.3g} GiB) is below the {need / 2**30:.3g} GiB that a chunk needs however its "
            "unroll is cut; raise it, or lower `chunk_size`."
        )
    return lengths


def _cut(length: int, cuts: int, state_bytes: int, step_bytes: int) -> tuple[tuple[int, ...], int]:
    """Nested segments' lengths, and the bytes of their residuals."""
    parts = math.ceil(length ** (1 / (cuts + 1)))
    lengths = tuple(math.ceil(length / parts ** (level + 1)) for level in range(cuts))
    return lengths, parts * (cuts * state_bytes + step_bytes)


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
