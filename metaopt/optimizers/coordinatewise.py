"""Puts features, network and step rule together into an optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.optimizers.features import Features
from metaopt.optimizers.network import LSTM, CellState, forward, fuse, init_cells, init_params
from metaopt.optimizers.step_rules import Step, StepRule
from metaopt.trees import leaf_sizes, ravel_tasks
from metaopt.types import MetaParams, Optimizer, PyTree


class CoordinatewiseState(NamedTuple):
    """State of all tasks at once; columns are tasks·D, the coordinates of a task side by side."""

    count: jax.Array  # [] int32, updates done
    features: Any  # averages, [tasks, D] each
    cells: tuple[CellState, ...]  # [hidden, columns] each
    rule: Any  # log α, [tasks, 1] or [tasks, D]


def coordinatewise(
    features: Features, rule: StepRule, *, hidden_size: int, num_layers: int, explores: bool = False
) -> Optimizer:
    """One LSTM with shared weights on every coordinate, each with its own hidden state (Andrychowicz et al. 2016).

    Computes in float32, or in the wider of φ's types; steps come back in each leaf's own type.
    """
    if hidden_size < 1 or num_layers < 1:
        raise ValueError(f"`hidden_size` ({hidden_size}) and `num_layers` ({num_layers}) must be at least 1.")
    network = LSTM(hidden_size, num_layers, rule.heads)

    def init(key: jax.Array) -> MetaParams:
        return init_params(network, features.size, key)

    def bind_tasks(meta_params: MetaParams) -> optax.GradientTransformationExtraArgs:
        weights = fuse(network, meta_params)
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(meta_params))

        def init_state(params: PyTree) -> CoordinatewiseState:
            leaves = jax.tree.leaves(params)
            shape = (leaves[0].shape[0] if leaves else 1, sum(leaf_sizes(params)))
            cells = init_cells(network, shape[0] * shape[1], dtype)
            return CoordinatewiseState(
                jnp.zeros((), jnp.int32), features.init(shape, dtype), cells, rule.init(shape, dtype)
            )

        def update(
            updates: PyTree,
            state: Any,
            params: PyTree | None = None,
            *,
            key: jax.Array | None = None,
            explore: bool = False,
            **extra_args: Any,
        ) -> tuple[PyTree, Any]:
            if not jax.tree.leaves(updates):
                return updates, state
            gradient, unravel = ravel_tasks(updates, dtype)
            tasks, dim = gradient.shape
            count = state.count + 1
            columns, feature_state = features.apply(gradient, count, state.features)
            x = jnp.stack(columns).reshape(features.size, tasks * dim)
            outputs, cells = forward(weights, x, state.cells)
            step = Step(count, key, explore, leaf_sizes(updates))
            g, rule_state = rule.apply(outputs.reshape(-1, tasks, dim), state.rule, step)
            return unravel(g), CoordinatewiseState(count, feature_state, cells, rule_state)

        return optax.GradientTransformationExtraArgs(init_state, update)

    def bind(meta_params: MetaParams) -> optax.GradientTransformationExtraArgs:
        tx = bind_tasks(meta_params)

        def init_state(params: PyTree) -> Any:
            return tx.init(_add_axis(params))

        def update(
            updates: PyTree,
            state: Any,
            params: PyTree | None = None,
            *,
            key: jax.Array | None = None,
            **extra_args: Any,
        ) -> tuple[PyTree, Any]:
            keys = None if key is None else key[None]
            steps, state = tx.update(_add_axis(updates), state, key=keys, **extra_args)
            return jax.tree.map(lambda leaf: leaf[0], steps), state

        return optax.GradientTransformationExtraArgs(init_state, update)

    return Optimizer(init, bind, bind_tasks, explores)


def _add_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)
