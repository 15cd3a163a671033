"""Paths over a landscape of two parameters: what an evaluation keeps to be looked at, of its first task."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.inner.binding import bind_tasks, judged_params
from metaopt.inner.devices import compiler_options, matmul_precision
from metaopt.inner.step import Seen, reset
from metaopt.inner.unroll import unroll
from metaopt.trees import ravel_tasks, usual_rules
from metaopt.types import Key, MetaParams, Optimizer, TaskFamily

CELLS, KEPT = 65, 201  # of the grid, each way; points of a path at most
LEVELS = np.linspace(0.03, 0.97, 8)  # shares of the picture that lie below the level lines
Entries = Mapping[str, tuple[Optimizer, MetaParams]]


def is_landscape(family: TaskFamily) -> bool:
    """Whether a task's loss is one surface over two parameters."""
    params = jax.eval_shape(lambda key: family.init(key, family.sample(key, family.data)), jax.random.key(0))
    two = sum(leaf.size for leaf in jax.tree.leaves(params)) == 2
    return two and family.batch_size is None and family.oracle is None


@usual_rules()
def landscape(entries: Entries, family: TaskFamily, key: Key, *, horizon: int, num_tasks: int) -> dict[str, Any] | None:
    """Paths of the evaluation's first task by name, and the loss around them; None unless `is_landscape`.

    Args:
      key, horizon, num_tasks: those of `evaluate`, so that starts and noise are those of its curves.

    Returns:
      {"steps" [points], "paths": name -> [points, 2], "x", "y" [cells], "loss" [y, x]}: plain but for arrays.
    """
    if not is_landscape(family):
        return None
    keys = jax.random.split(key, num_tasks)[:1]
    kept = np.unique(np.linspace(0, horizon, min(KEPT, horizon + 1)).round().astype(int))
    paths = {}
    for name, (optimizer, meta_params) in entries.items():
        told = optimizer if optimizer.at_horizon is None else optimizer.at_horizon(horizon)
        paths[name] = np.asarray(_follow(told, meta_params, family, keys, length=horizon))[kept]
    ends = jnp.asarray([next(iter(paths.values()))[0], *(path[-1] for path in paths.values())])
    first, *last = np.asarray(_heights(family, keys, ends))
    fell = [path for path, height in zip(paths.values(), last, strict=True) if height < first]
    centre, reach = _view(fell or [path[:1] for path in paths.values()])  # no path that ran away decides it
    x, y = (np.linspace(middle - reach, middle + reach, CELLS) for middle in centre)
    points = jnp.stack(jnp.meshgrid(jnp.asarray(x), jnp.asarray(y)), axis=-1).reshape(-1, 2)
    loss = np.asarray(_heights(family, keys, points)).reshape(CELLS, CELLS)
    return {"steps": kept, "paths": paths, "x": x, "y": y, "loss": [[float(f"{v:.4g}") for v in row] for row in loss]}


def level_lines(loss: np.ndarray) -> np.ndarray:
    """Heights of level lines that share the picture out evenly, however the loss is scaled; rising, none twice."""
    known = loss[np.isfinite(loss)]
    return np.unique(np.quantile(known, LEVELS)) if len(known) else np.array([])


def _follow(optimizer: Optimizer, meta_params: MetaParams, family: TaskFamily, keys: Key, *, length: int) -> jax.Array:
    """[length + 1, 2] the judged parameters of one task after each step."""

    def seen(step: Seen) -> jax.Array:
        return ravel_tasks(judged_params(optimizer, step.before), jnp.float32)[0][0]

    @functools.partial(jax.jit, compiler_options=compiler_options(runs_once=True))
    def run(meta_params: MetaParams, family: TaskFamily, keys: Key) -> jax.Array:
        tx = bind_tasks(optimizer, meta_params)
        with matmul_precision("highest"):
            task, state = reset(tx, family, keys)
            state, trace = unroll(tx, family, task, state, length=length, observe=seen)
        end = ravel_tasks(judged_params(optimizer, state), jnp.float32)[0]
        return jnp.concatenate([trace.observed, end])

    return run(meta_params, family, keys)


def _view(paths: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """(centre [2], half a side) of a square around most of the points."""
    points = np.concatenate(paths)
    low, high = np.quantile(points[np.isfinite(points).all(axis=1)], (0.01, 0.99), axis=0)
    return (low + high) / 2, 0.6 * float((high - low).max()) or 1.0


def _heights(family: TaskFamily, keys: Key, points: jax.Array) -> jax.Array:
    """[points] the loss of the first task at points [points, 2]."""

    @functools.partial(jax.jit, compiler_options=compiler_options(runs_once=True))
    def heights(family: TaskFamily, keys: Key, points: jax.Array) -> jax.Array:
        streams = jax.random.split(keys[0], 4)  # as `reset` does
        task = family.sample(streams[0], family.data)
        _, unravel = ravel_tasks(jax.tree.map(lambda leaf: leaf[None], family.init(streams[1], task)), jnp.float32)
        batch = family.eval_batch(task, family.data, "train")

        def one(point: jax.Array) -> jax.Array:
            return family.loss(jax.tree.map(lambda leaf: leaf[0], unravel(point[None])), task, batch)

        return jax.lax.map(one, points)

    return heights(family, keys, points)
