"""Puts features, network and step rule together into an optimizer."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.optimizers.blocks import count_blocks, map_blocks, to_blocks
from metaopt.optimizers.features import Features, normalise
from metaopt.optimizers.network import GATES, LSTM, CellState, forward, fuse, gate_values, init_cells, init_params
from metaopt.optimizers.placement import explicit_mesh, laid_out_by_xla, last_axis_over, shardings, spread, vary_with
from metaopt.optimizers.step_rules import Step, StepRule
from metaopt.trees import leaf_sizes, ravel_tasks, save_residuals
from metaopt.types import Explore, MetaParams, Observe, Optimizer, PyTree


class CoordinatewiseState(NamedTuple):
    """State of all tasks at once; columns are tasks·D, the coordinates of a task side by side.

    Where they are many, features and cells are [blocks, ..., columns of a block], the last block padded.
    """

    count: jax.Array  # [] int32, updates done
    features: Any  # averages, [tasks, D] each
    cells: tuple[CellState, ...]  # [hidden, columns] each
    rule: Any  # log α, [tasks, 1] or [tasks, D]


def coordinatewise(
    features: Features,
    rule: StepRule,
    *,
    hidden_size: int,
    num_layers: int,
    input_units: int = 0,
    noise: Literal["none", "exploring"] = "none",
) -> Optimizer:
    """One LSTM with shared weights on every coordinate, each with its own hidden state (Andrychowicz et al. 2016).

    Computes in float32, or in the wider of φ's types; steps come back in each leaf's own type.
    """
    if hidden_size < 1 or num_layers < 1:
        raise ValueError(f"`hidden_size` ({hidden_size}) and `num_layers` ({num_layers}) must be at least 1.")
    if input_units < 0:
        raise ValueError(f"`input_units` ({input_units}) must be at least 1, or 0 for no input layer.")
    network = LSTM(hidden_size, num_layers, rule.heads, input_units)

    def init(key: jax.Array) -> MetaParams:
        return init_params(network, features.size, key)

    def network_step(shared: Any, inputs: Any, memory: Any) -> tuple[jax.Array, Any]:
        weights, count = shared
        gradient, unit = inputs
        statistics, cells = memory
        columns, statistics = features.apply(gradient, count, statistics, unit)
        # Few numbers next to the network's own: the reverse pass reads them instead of computing them anew.
        x = save_residuals(jnp.stack(columns).reshape(features.size, -1))
        outputs, cells = forward(weights, x, cells)
        return outputs, (statistics, cells)

    def new_state(tasks: int, dim: int, dtype: Any, devices: int = 1) -> CoordinatewiseState:
        num_blocks, block = count_blocks(tasks * dim, devices)
        if num_blocks == 1:
            memory = features.init((tasks, dim), dtype), init_cells(network, block, dtype)
        else:
            one = features.init((block,), dtype), init_cells(network, block, dtype)
            memory = jax.tree.map(lambda leaf: jnp.zeros((num_blocks, *leaf.shape), leaf.dtype), one)
        statistics, cells = memory
        return CoordinatewiseState(jnp.zeros((), jnp.int32), statistics, cells, rule.init((tasks, dim), dtype))

    def bind_tasks(meta_params: MetaParams) -> optax.GradientTransformationExtraArgs:
        weights, dtype = fuse(network, meta_params), _dtype(meta_params)

        def init_state(params: PyTree) -> CoordinatewiseState:
            leaves = jax.tree.leaves(params)
            return new_state(leaves[0].shape[0] if leaves else 1, sum(leaf_sizes(params)), dtype)

        def update(
            updates: PyTree,
            state: Any,
            params: PyTree | None = None,
            *,
            key: jax.Array | None = None,
            explore: Explore = False,
            **extra_args: Any,
        ) -> tuple[PyTree, Any]:
            if not sum(leaf_sizes(updates)):
                return updates, state
            gradient, unravel = ravel_tasks(updates, dtype)
            tasks, dim = gradient.shape
            shared = (weights, state.count + 1)
            memory = (state.features, state.cells)
            num_blocks, block = _layout(state)
            if num_blocks == 1:
                outputs, memory = network_step(shared, (gradient, None), memory)
            else:
                inputs = (to_blocks(gradient, num_blocks, block), to_blocks(normalise(gradient), num_blocks, block))
                outputs, memory = map_blocks(network_step, shared, inputs, memory)
                outputs = jnp.moveaxis(outputs, 1, 0).reshape(len(rule.heads), -1)[:, : tasks * dim]
            step = Step(state.count + 1, key, explore, leaf_sizes(updates))
            g, rule_state = rule.apply(save_residuals(outputs).reshape(-1, tasks, dim), state.rule, step)
            statistics, cells = memory
            return unravel(g), CoordinatewiseState(state.count + 1, statistics, cells, rule_state)

        return optax.GradientTransformationExtraArgs(init_state, update)

    def bind(meta_params: MetaParams) -> optax.GradientTransformationExtraArgs:
        tx = bind_tasks(meta_params)

        def init_state(params: PyTree) -> Any:
            dim = _coordinates(params)
            mesh = explicit_mesh(params)
            if mesh is None:
                state = new_state(1, dim, _dtype(meta_params))
                return vary_with(state, meta_params, params)._replace(count=state.count)
            axes, devices = spread(mesh, params)
            make = functools.partial(new_state, 1, dim, _dtype(meta_params), devices)
            out = jax.tree.map(lambda leaf: last_axis_over(mesh, axes, leaf), jax.eval_shape(make))
            # Jitted, so that no device ever holds the whole of it.
            build = jax.jit(lambda params: laid_out_by_xla(lambda params: make(), out, params), keep_unused=True)
            return build(params)

        def update(
            updates: PyTree,
            state: Any,
            params: PyTree | None = None,
            *,
            key: jax.Array | None = None,
            **extra_args: Any,
        ) -> tuple[PyTree, Any]:
            def one(tx: Any, updates: PyTree, state: Any, key: jax.Array | None) -> tuple[PyTree, Any]:
                keys = None if key is None else key[None]
                steps, state = tx.update(rows_of(updates), state, key=keys, **extra_args)
                return from_rows(steps, updates), state

            mesh = explicit_mesh(updates)
            if mesh is None:
                varying = vary_with(state, meta_params, updates, state)._replace(count=state.count)
                return one(tx, updates, varying, key)
            out = shardings(mesh, (updates, state))
            # φ goes in as an argument: what was computed from it outside has types of the other kind.
            return laid_out_by_xla(
                lambda phi, *args: one(bind_tasks(phi), *args), out, meta_params, updates, state, key
            )

        return optax.GradientTransformationExtraArgs(init_state, update)

    return Optimizer(init, bind, bind_tasks, noise, observe=_observe(features, network))


def _dtype(meta_params: MetaParams) -> Any:
    return jnp.result_type(jnp.float32, *jax.tree.leaves(meta_params))


def _layout(state: CoordinatewiseState) -> tuple[int, int]:
    """(blocks, columns of each)."""
    *blocks, _, columns = state.cells[0].c.shape
    return (blocks[0] if blocks else 1), columns


def _coordinates(tree: PyTree) -> int:
    return sum(math.prod(jnp.shape(leaf)) * (1 + jnp.iscomplexobj(leaf)) for leaf in jax.tree.leaves(tree))


def rows_of(tree: PyTree) -> list[jax.Array]:
    """The leaves as those of a single task, [1, ...]; the two parts of a complex one are two leaves.

    Raises:
      ValueError: a leaf of whole numbers, in which a step would be rounded away.
    """
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None) or jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"the gradient at {jax.tree_util.keystr(path) or 'its only leaf'} is of type {dtype}, in which a step "
                "would be rounded away; leave such leaves out with optax.masked, or make them floating."
            )
        leaf = jnp.asarray(leaf)
        parts = (leaf.real, leaf.imag) if jnp.issubdtype(dtype, jnp.complexfloating) else (leaf,)
        rows += [part[None] for part in parts]
    return rows


def from_rows(rows: list[jax.Array], like: PyTree) -> PyTree:
    """The leaves that `rows_of` made of a tree `like` this one, as such a tree again."""
    parts = (row[0] for row in rows)

    def one(leaf: Any) -> jax.Array:
        part = next(parts)
        return jax.lax.complex(part, next(parts)) if jnp.iscomplexobj(leaf) else part

    return jax.tree.map(one, like)


def _observe(features: Features, network: LSTM) -> Observe:
    """The network followed from the gradients alone: nothing hangs on how the optimizer lays out its state."""

    def init(meta_params: MetaParams, shape: tuple[int, int]) -> Any:
        zeros = jnp.zeros((*shape, network.hidden_size), jnp.float32)
        return features.init(shape, jnp.float32), [(zeros, zeros)] * network.num_layers

    def apply(meta_params: MetaParams, gradient: jax.Array, sample: jax.Array, count: jax.Array, state: Any) -> Any:
        statistics, cells = state
        columns, statistics = features.apply(gradient[:, sample], count, statistics, normalise(gradient)[:, sample])
        inputs = jnp.stack(columns, axis=-1)
        gates, cells = gate_values(meta_params, inputs, cells)
        return inputs, gates, (statistics, cells)

    return Observe(features.names, GATES, ("g",), init, apply)
