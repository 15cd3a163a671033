"""Many columns through a network, a block at a time, so that a block's activations stay in the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metaopt.optimizers.placement import vary_with
from metaopt.types import PyTree

# Columns that go through the network at once, where there are more than twice as many. On CPUs: what their activations
# take fits the second-level cache. On accelerators: many, for their memory's sake alone.
BLOCK, ACCELERATOR_BLOCK = 640, 2**18

# fn(shared, inputs of a block, memory of a block) -> (outputs of a block, its next memory)
BlockFn = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, PyTree]]


def count_blocks(num_columns: int, devices: int = 1) -> tuple[int, int]:
    """How many blocks, of how many columns; a single one up to twice a block. Of several, devices share each evenly."""
    block = BLOCK if jax.default_backend() == "cpu" else ACCELERATOR_BLOCK
    num_blocks = 1 if num_columns <= 2 * block else -(-num_columns // block)
    columns = -(-num_columns // num_blocks)
    return num_blocks, columns if num_blocks == 1 else -(-columns // devices) * devices


def to_blocks(x: jax.Array, num_blocks: int, block: int) -> jax.Array:
    """Any shape -> [blocks, columns of a block], padded with zeros."""
    return jnp.pad(x.reshape(-1), (0, num_blocks * block - x.size)).reshape(num_blocks, block)


def map_blocks(fn: BlockFn, shared: PyTree, inputs: PyTree, memory: PyTree) -> tuple[jax.Array, PyTree]:
    """`fn` on every block; leaves of `inputs`, `memory` and of the results are [blocks, ...].

    The memory is overwritten in place, which a loop that is to be differentiated could not do: its derivative is that
    of an ordinary map, in which a block's activations are computed anew in the reverse pass.
    """
    return _map_blocks(fn, shared, inputs, memory)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _map_blocks(fn: BlockFn, shared: PyTree, inputs: PyTree, memory: PyTree) -> Any:
    num_blocks = jax.tree.leaves(inputs)[0].shape[0]

    def at(tree: PyTree, index: jax.Array) -> PyTree:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree)

    def put(tree: PyTree, part: PyTree, index: jax.Array) -> PyTree:
        return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, index, 0), tree, part)

    def body(index: jax.Array, carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        outputs, memory = carry
        old = at(memory, index)
        zeros = jnp.zeros_like(outputs[0])
        # Always taken: it makes XLA copy the block out before it is overwritten; otherwise all of the memory is copied.
        output, new = jax.lax.cond(index >= 0, lambda: fn(shared, at(inputs, index), old), lambda: (zeros, old))
        return put(outputs, output, index), put(memory, new, index)

    output = jax.eval_shape(fn, shared, at(inputs, jnp.asarray(0)), at(memory, jnp.asarray(0)))[0]
    outputs = vary_with(jnp.zeros((num_blocks, *output.shape), output.dtype), shared, inputs, memory)
    return jax.lax.fori_loop(0, num_blocks, body, (outputs, memory))


@_map_blocks.defjvp
def _map_blocks_jvp(fn: BlockFn, primals: Any, tangents: Any) -> Any:
    def mapped(shared: PyTree, inputs: PyTree, memory: PyTree) -> tuple[jax.Array, PyTree]:
        one = jax.checkpoint(lambda block: fn(shared, *block), prevent_cse=False)
        return jax.lax.map(one, (inputs, memory))

    return jax.jvp(mapped, primals, tangents)
