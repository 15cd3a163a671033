"""What a coordinatewise network meets along inner runs: its inputs, its gates, the lengths of its steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset, step
from metaopt.trees import ravel_tasks
from metaopt.types import Key, MetaParams, Observe, Optimizer, TaskFamily, UnrollState

SATURATED = 0.05  # a gate in (0, 1) this close to an end, or tanh's output beyond 1 minus this, hardly moves


class InnerRuns(NamedTuple):
    """Inner runs step by step; `inputs` and `saturated` are None for an optimizer that is not to be observed."""

    loss: jax.Array  # [steps, tasks] after each step, as the next step's gradient is estimated
    initial_loss: jax.Array  # [tasks]
    lower_bound: jax.Array  # [tasks]; nan where it is not known
    update_norm: jax.Array  # [steps, tasks] ‖g_t‖, 0 once a task is dead
    alive: jax.Array  # [steps, tasks]
    inputs: jax.Array | None  # [steps, tasks, coordinates, inputs], on a sample of the coordinates
    saturated: jax.Array | None  # [steps, tasks, layers, gates i f g o] share of activations


def watch(
    optimizer: Optimizer,
    meta_params: MetaParams,
    family: TaskFamily,
    keys: Key,
    *,
    horizon: int,
    explore: bool,
    num_coordinates: int,
) -> InnerRuns:
    """Runs tasks, keys [tasks], for `horizon` steps and keeps what the network saw of a sample of the coordinates."""
    tx, follow = bind_tasks(optimizer, meta_params), optimizer.observe
    task, state = reset(tx, family, keys)
    tasks, dim = ravel_tasks(state.params, jnp.float32)[0].shape
    # The same for every task; drawn, for a stride would pick out rows of a weight matrix.
    sample = jax.random.permutation(jax.random.key(0), dim)[:num_coordinates]

    def one_step(carry: tuple[UnrollState, Any], count: jax.Array) -> tuple[tuple[UnrollState, Any], tuple[Any, ...]]:
        before, followed = carry
        seen = stuck = None
        if follow is not None:
            gradient, _ = ravel_tasks(before.estimate.gradient, jnp.float32)
            seen, gates, followed = follow.apply(meta_params, gradient, sample, count, followed)
            stuck = saturation(gates, follow)
        after, record = step(tx, family, task, before, explore=explore)
        return (after, followed), (record.loss, record.update_norm, record.alive, seen, stuck)

    followed = None if follow is None else follow.init(meta_params, (tasks, len(sample)))
    counts = jnp.arange(1, horizon + 1, dtype=jnp.int32)
    _, (loss, norm, alive, seen, gates) = jax.lax.scan(one_step, (state, followed), counts)
    return InnerRuns(loss, state.initial_loss, state.lower_bound, norm, alive, seen, gates)


def saturation(layers: list[dict[str, jax.Array]], follow: Observe) -> jax.Array:
    """[tasks, layers, gates] share of activations [tasks, coordinates, hidden] that are near an end of their range."""

    def share(name: str, values: jax.Array) -> jax.Array:
        near = jnp.abs(values) if name in follow.signed else jnp.maximum(values, 1 - values)
        return jnp.mean(near > 1 - SATURATED, axis=(1, 2))

    return jnp.stack([jnp.stack([share(name, layer[name]) for name in follow.gates], -1) for layer in layers], 1)
