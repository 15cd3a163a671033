"""Differentiating windows of an inner run: the machinery that the back-propagating estimators share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.batching import pick_chunk_size, sum_over_chunks, task_mesh
from metaopt.objectives import SCALE_FREE
from metaopt.trees import leaf_sizes
from metaopt.types import (
    Families,
    Key,
    MetaGradient,
    MetaParams,
    Metrics,
    Objective,
    Optimizer,
    Task,
    TaskFamily,
    UnrollState,
)
from metaopt.unroll import ObjectiveBatch, StateGradient, bind_tasks, reset, unroll


class Window(NamedTuple):
    """An inner run between two windows; leaves are [chunks, ...]."""

    task: Task
    state: UnrollState


class Sums(NamedTuple):
    """Sums over the alive tasks of a chunk, then of all chunks and devices; [] but for the gradient."""

    gradient: MetaParams
    alive: jax.Array  # how many
    loss: jax.Array  # the objective
    last_loss: jax.Array  # f at the window's end
    step_length: jax.Array  # ‖g_t‖ averaged over the window
    initial_loss: jax.Array  # f(θ_0)


def check_windows(horizon: int, unroll_length: int) -> None:
    """Refuses windows that do not fill the horizon.

    Raises:
      ValueError: with the nearest horizons that would do.
    """
    if horizon % unroll_length:
        below = horizon - horizon % unroll_length
        near = " or ".join(str(n) for n in (below, below + unroll_length) if n > 0)
        raise ValueError(f"`horizon` ({horizon}) must be a multiple of `unroll_length` ({unroll_length}); try {near}.")


def windowed_gradient(
    optimizer: Optimizer,
    objective: Objective,
    *,
    num_tasks: int,
    horizon: int,
    unroll_length: int,
    explore: bool,
    state_gradient: StateGradient,
    second_order: bool,
    objective_batch: ObjectiveBatch,
    chunk_size: int | None,
    num_devices: int | None,
) -> MetaGradient:
    """Reverse-mode gradient of the objective over one window of `unroll_length` steps a meta-step.

    The carry is cut between windows and goes on with the values it has; after `horizon` steps all tasks are drawn anew.
    Tasks come in equal numbers from every family, each family's gradient scaled by 1/mean f(θ_0) unless the objective
    is free of scale; with a single task a meta-step one family is drawn. Dead tasks are left out of the mean.

    Raises:
      ValueError: `horizon` is not a multiple of `unroll_length`.
    """
    check_windows(horizon, unroll_length)
    balanced = objective not in SCALE_FREE

    def chunking(family: TaskFamily, tasks: int) -> tuple[int, int]:
        task = jax.eval_shape(family.sample, jax.random.key(0), family.data)
        params = jax.eval_shape(family.init, jax.random.key(0), task)
        dim = sum(leaf_sizes(jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), params)))
        devices = task_mesh(tasks, num_devices).size
        size = pick_chunk_size(tasks // devices, dim, chunk_size)
        return tasks // size, size

    def chunk_keys(key: Key, family: TaskFamily, tasks: int) -> Key:
        return jax.random.split(key, tasks).reshape(chunking(family, tasks))

    def start(meta_params: MetaParams, family: TaskFamily, keys: Key) -> Window:
        return Window(*reset(bind_tasks(optimizer, meta_params), family, keys))

    def tasks_each(families: Families) -> int:
        if num_tasks != 1 and num_tasks % len(families):
            raise ValueError(
                f"`num_tasks` ({num_tasks}) must be a multiple of the number of families ({len(families)}), or 1."
            )
        return max(1, num_tasks // len(families))

    def init(key: Key, meta_params: MetaParams, families: Families) -> tuple[Window, ...]:
        if unroll_length == horizon:
            return ()
        windows = []
        for index, family in enumerate(families):
            keys = chunk_keys(jax.random.fold_in(key, index), family, tasks_each(families))
            windows.append(jax.lax.map(lambda keys, family=family: start(meta_params, family, keys), keys))
        return tuple(windows)

    def chunk_gradient(
        shared: tuple[MetaParams, TaskFamily], chunk: tuple[Key, Window | None]
    ) -> tuple[Sums, Window | None]:
        meta_params, family = shared
        keys, window = chunk
        if window is None:
            current = start(meta_params, family, keys)
        else:
            done = window.state.step[0] >= horizon
            current = jax.lax.cond(done, lambda: start(meta_params, family, keys), lambda: window)
        task, state = jax.lax.stop_gradient(current)

        def total(meta_params: MetaParams) -> tuple[jax.Array, tuple[Sums, Window | None]]:
            final, trace = unroll(
                bind_tasks(optimizer, meta_params),
                family,
                task,
                state,
                length=unroll_length,
                explore=explore,
                state_gradient=state_gradient,
                second_order=second_order,
                objective_batch=objective_batch,
            )

            def alive_sum(values: jax.Array) -> jax.Array:
                return jnp.sum(jnp.where(final.alive, values, 0.0))

            sums = Sums(
                gradient=(),
                alive=alive_sum(jnp.ones_like(trace.initial_loss)),
                loss=alive_sum(objective(trace)),
                last_loss=alive_sum(trace.loss[-1]),
                step_length=alive_sum(jnp.mean(trace.update_norm, axis=0)),
                initial_loss=alive_sum(trace.initial_loss),
            )
            return sums.loss, (sums, None if window is None else Window(task, final))

        gradient, (sums, window) = jax.grad(total, has_aux=True)(meta_params)
        return sums._replace(gradient=gradient), window

    def family_means(
        key: Key, meta_params: MetaParams, family: TaskFamily, window: Window | None, tasks: int
    ) -> tuple[Sums, Window | None]:
        """Means over alive tasks (`alive` stays a count) and the window's end."""
        chunks = (chunk_keys(key, family, tasks), window)
        mesh = task_mesh(tasks, num_devices)
        sums, window = sum_over_chunks(chunk_gradient, mesh, (meta_params, family), chunks)
        means = jax.tree.map(lambda leaf: leaf / jnp.maximum(sums.alive, 1.0), sums)
        return means._replace(alive=sums.alive), window

    def estimate(
        key: Key, meta_params: MetaParams, state: tuple[Window, ...], families: Families
    ) -> tuple[MetaParams, tuple[Window, ...], Metrics]:
        tasks = tasks_each(families)
        windows: Sequence[Any] = state or (None,) * len(families)

        def one(index: int) -> tuple[Sums, Window | None]:
            family_key = jax.random.fold_in(key, index)
            return family_means(family_key, meta_params, families[index], windows[index], tasks)

        def branch(index: int) -> tuple[Sums, tuple[Any, ...]]:
            means, window = one(index)
            return means, (*state[:index], window, *state[index + 1 :]) if state else ()

        if num_tasks == 1 and len(families) > 1:
            picked = jax.random.randint(jax.random.fold_in(key, len(families)), (), 0, len(families))
            branches = [lambda index=index: branch(index) for index in range(len(families))]
            means, state = jax.lax.switch(picked, branches)
            return _combine([means], balanced), state, _metrics([means], tasks)
        means, windows = zip(*(one(index) for index in range(len(families))), strict=True)
        gradient = _combine(means, balanced and len(families) > 1)
        return gradient, windows if state else (), _metrics(means, tasks)

    return MetaGradient(init, estimate)


def _combine(means: Sequence[Sums], scaled: bool) -> MetaParams:
    """Mean of the families' gradients, each over its mean f(θ_0) where there are several to balance."""
    gradients = []
    for mean in means:
        scale = jnp.where(mean.initial_loss > 0, mean.initial_loss, 1.0) if scaled else 1.0
        gradients.append(jax.tree.map(lambda leaf, scale=scale: leaf / scale, mean.gradient))
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *gradients)


def _metrics(means: Sequence[Sums], tasks_each: int) -> Metrics:
    """Scalars of one meta-step; losses are averaged over the families with a task alive, nan where there is none."""

    def shown(mean: Sums, name: str) -> jax.Array:
        return jnp.where(mean.alive > 0, getattr(mean, name), jnp.nan)

    def average(name: str) -> jax.Array:
        return jnp.nanmean(jnp.stack([shown(mean, name) for mean in means]))

    metrics = {
        "meta_loss": average("loss"),
        "last_loss": average("last_loss"),
        "step_length": average("step_length"),
        "alive": sum(mean.alive for mean in means) / (tasks_each * len(means)),
        "diverged": tasks_each * len(means) - sum(mean.alive for mean in means),
    }
    if len(means) > 1:
        metrics |= {f"meta_loss/{index}": shown(mean, "loss") for index, mean in enumerate(means)}
    return metrics
