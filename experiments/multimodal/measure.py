"""Runs on functions of many minima: what was reached at the end of every hundred steps, in one go or begun anew."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import compiler_options, matmul_precision
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers.langevin import langevin
from metaopt.types import Key, MetaParams, Optimizer, TaskFamily

SEGMENT = 100  # steps


class Reached(NamedTuple):
    """At the end of every segment, [segments, points of the grid, tasks]."""

    found: Any  # bool: in the cell of the global minimum
    gap: Any  # f - b over that at the first start; inf where the run is dead


def with_restarts(family: TaskFamily, restart: jax.Array) -> TaskFamily:
    """The same tasks from starts of the number `restart`; number 0 has starts of its own too."""
    metrics = family.metrics
    assert metrics is not None
    return dataclasses.replace(
        family,
        data=restart,
        sample=lambda key, number: (family.sample(key, family.data), number),
        init=lambda key, task: family.init(jax.random.fold_in(key, task[1]), task[0]),
        batch=lambda key, task, number: (),
        loss=lambda params, task, batch: family.loss(params, task[0], batch),
        eval_batch=lambda task, number, split: (),
        metrics=lambda params, task, batch: metrics(params, task[0], batch),
    )


@functools.partial(jax.jit, static_argnames=("optimizer", "length", "segments"), compiler_options=compiler_options())
def _measure(
    optimizer: Optimizer,
    grid: MetaParams,
    family: TaskFamily,
    keys: Key,
    anew: jax.Array,
    *,
    length: int,
    segments: int,
) -> Reached:
    def one(meta_params: MetaParams) -> Reached:
        tx = bind_tasks(optimizer, meta_params)

        def start(number: jax.Array) -> tuple[Any, Any]:
            task, state = reset(tx, with_restarts(family, number), keys)
            # Noise of its own too.
            return task, state._replace(key=jax.vmap(lambda key: jax.random.fold_in(key, number))(state.key))

        zero = jnp.int32(0)
        task, first = start(zero)
        runs = with_restarts(family, zero)
        scale = first.initial_loss - first.lower_bound

        def body(state: Any, number: jax.Array) -> tuple[Any, Reached]:
            state = jax.tree.map(lambda old, new: jnp.where(anew, new, old), state, start(number)[1])
            state, trace = unroll(tx, runs, task, state, length=length)
            ends: Callable[..., Any] = runs.metrics  # pyright: ignore[reportAssignmentType]
            found = jax.vmap(lambda params, task: ends(params, task, ())["global"])(state.params, task)
            gap = jnp.where(state.alive, (trace.loss[-1] - state.lower_bound) / scale, jnp.inf)
            return state, Reached((found > 0) & state.alive, gap)

        return jax.lax.scan(body, first, jnp.arange(segments))[1]

    with matmul_precision("highest"):
        found, gap = jax.vmap(one)(grid)
    return Reached(jnp.moveaxis(found, 0, 1), jnp.moveaxis(gap, 0, 1))


def measure(
    optimizer: Optimizer, grid: MetaParams, family: TaskFamily, key: Key, *, tasks: int, steps: int, anew: bool
) -> Reached:
    """Every φ of the grid on the same tasks and starts.

    Args:
      anew: the run begins anew, from another start of the same task, at every hundredth step.
    """
    keys = jax.random.split(key, tasks)
    segments = max(1, steps // SEGMENT)
    how = {"length": steps // segments, "segments": segments}
    return Reached(*map(np.asarray, _measure(optimizer, grid, family, keys, jnp.asarray(anew), **how)))


def best_of(reached: Reached) -> Reached:
    """Of runs begun anew, the one that ended lowest: [points, tasks]."""
    best = reached.gap.argmin(axis=0)[None]
    return Reached(*(np.take_along_axis(part, best, axis=0)[0] for part in reached))


# ----- hand-designed, settings as φ: one program for a whole grid ------------------------------------------------


@functools.cache
def dynamics(steps: int) -> Optimizer:
    """Langevin dynamics of step h and temperature T · end^(t/steps); with `falls` h goes linearly to 0."""

    def bind(phi: Any) -> optax.GradientTransformationExtraArgs:
        return langevin(
            lambda n: phi["h"] * (1 - phi["falls"] * n / steps), lambda n: phi["T"] * phi["end"] ** (n / steps)
        )

    return Optimizer(lambda key: {}, bind, noise="always")


ADAM = Optimizer(lambda key: {}, lambda phi: optax.with_extra_args_support(optax.adam(phi["h"])))

RATES = tuple(10 ** (k / 2) for k in range(-8, 9))
HOT = tuple(10 ** (k / 2) for k in range(-2, 6))
SETTINGS = ("h", "T", "end", "falls")
# method -> rows of (h, T, end, falls), each searched whole
GRIDS: dict[str, list[tuple[float, float, float, float]]] = {
    "SGD": [(h, 0.0, 1.0, 0.0) for h in RATES],
    "SGD, falling rate": [(h, 0.0, 1.0, 1.0) for h in RATES],
    "Langevin": [(h, T, 1.0, 0.0) for h in RATES for T in HOT],  # noqa: N806
    "annealing": [(h, T, *cool) for h in RATES for T in HOT for cool in ((1e-1, 1.0), (1e-3, 0.0), (1e-3, 1.0))],
}  # fmt: skip
ADAM_GRID = [(10 ** (k / 4),) for k in range(-16, 13)]


def as_phi(rows: list[tuple[float, ...]]) -> dict[str, jax.Array]:
    """Rows of settings as a grid of φ."""
    columns = np.array(rows, np.float32).T
    return {name: jnp.asarray(column) for name, column in zip(SETTINGS, columns, strict=False)}
