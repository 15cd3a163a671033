"""Curricula: horizons that change during meta-training, around any estimator that works in windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.estimators.windows import Carried
from metaopt.types import Families, Key, MetaGradient, MetaParams, Metrics

# (key, level) -> the horizon of an inner run that begins now, in steps, [] int32
Draw = Callable[[Key, jax.Array], jax.Array]

STEEPEST = 4.0  # power of the law of horizons: beyond it all are the shortest but a few, and float32 underflows
STREAM = 0x40121  # keeps the draws of horizons apart from those of tasks


class Curricular(NamedTuple):
    """An estimator's state under a curriculum."""

    level: jax.Array  # [] int32; set by whoever runs the estimator, before each meta-step
    horizons: tuple[jax.Array, ...]  # a family: [chunks] int32, of the inner runs under way
    carried: tuple[Carried, ...]


def check_curriculum(
    kind: str,
    horizons: Sequence[int],
    shortest: int | None,
    *,
    longest: int,
    unroll_length: int,
    power: float = 1.0,
) -> tuple[int, ...]:
    """The horizons that a `fixed` or `validation` curriculum goes through, `longest` last; () for the other kinds.

    Raises:
      ValueError: the settings do not fit together, or not with the windows.
    """
    if power != 1 and kind != "log_uniform":
        raise ValueError(f"`curriculum.power` ({power:g}) is for log_uniform; leave it out for kind={kind}.")
    if not 0 <= power <= STEEPEST:
        raise ValueError(f"`curriculum.power` ({power:g}) must lie between 0 and {STEEPEST:g}.")
    if kind == "none":
        if horizons or shortest is not None:
            raise ValueError("`curriculum` has horizons but no kind; set `curriculum.kind`, or leave them out.")
        return ()
    if unroll_length >= longest:
        raise ValueError(
            f"a curriculum counts windows, and one window is the whole `horizon` ({longest}); set `unroll_length` "
            "to a part of it."
        )
    multiples = f"multiples of `unroll_length` ({unroll_length}) up to `horizon` ({longest})"
    if kind == "log_uniform":
        if horizons:
            raise ValueError(
                "`curriculum.horizons` is for fixed and validation; log_uniform has `curriculum.shortest`."
            )
        if shortest is not None and (not unroll_length <= shortest <= longest or shortest % unroll_length):
            raise ValueError(f"`curriculum.shortest` ({shortest}) must be one of the {multiples}.")
        return ()
    levels = tuple(dict.fromkeys((*horizons, longest)))
    if shortest is not None:
        raise ValueError(f"`curriculum.shortest` is for log_uniform; a {kind} curriculum has `curriculum.horizons`.")
    if len(levels) < 2:
        raise ValueError(
            f"a {kind} curriculum needs shorter horizons to begin with; set `curriculum.horizons` to {multiples}."
        )
    if levels != tuple(sorted(levels)) or any(level < 1 or level % unroll_length for level in levels):
        listed = " ".join(map(str, horizons))
        raise ValueError(f"`curriculum.horizons` ({listed}) must be rising {multiples}.")
    return levels


def stages(horizons: Sequence[int]) -> Draw:
    """The horizon of the level, the last one's from there on."""

    def draw(key: Key, level: jax.Array) -> jax.Array:
        return jnp.asarray(horizons, jnp.int32)[jnp.clip(level, 0, len(horizons) - 1)]

    return draw


def log_uniform(shortest: int, longest: int, unroll_length: int, power: float = 1.0) -> Draw:
    """A number of windows n, x rounded down, where x has a density in proportion to x^-power.

    With power 1 horizons are log-uniform, and most windows belong to long runs; with 2 each doubling of a run's age has
    about as many windows.
    """
    least, most = shortest // unroll_length, longest // unroll_length
    rest, log_range = 1 - power, math.log((most + 1) / least)

    def draw(key: Key, level: jax.Array) -> jax.Array:
        u = jax.random.uniform(key, (), jnp.float32)
        # x = least (1 + u (range^rest - 1))^(1/rest), in logarithms, which hold where `rest` is nearly 0 too.
        log_x = u * log_range if not rest else jnp.log1p(u * math.expm1(rest * log_range)) / rest
        return unroll_length * jnp.clip(jnp.floor(least * jnp.exp(log_x)).astype(jnp.int32), least, most)

    return draw


def with_curriculum(estimator: MetaGradient, draw: Draw, *, longest: int, unroll_length: int) -> MetaGradient:
    """The same estimator, whose inner runs end after horizons that are drawn as each of them begins.

    A chunk of tasks that has reached its horizon counts as if it had reached the estimator's own, `longest`, and is
    drawn anew. Horizons are traced numbers: a change of level compiles nothing. Where chunks are staggered, their ages
    are spread over their first horizons.

    Args:
      estimator: built with `horizon=longest` and this `unroll_length`, which is shorter.
      draw: see `stages` and `log_uniform`; gives multiples of the window, at most `longest`.
    """

    def draw_all(key: Key, level: jax.Array, steps: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, STREAM), steps.shape[0])
        return jax.vmap(draw, in_axes=(0, None))(keys, level)

    def init(key: Key, meta_params: MetaParams, families: Families) -> Curricular:
        level, horizons, carried = jnp.zeros((), jnp.int32), [], []
        for index, one in enumerate(estimator.init(key, meta_params, families)):
            horizon = draw_all(jax.random.fold_in(key, index), level, _steps(one))
            horizons.append(horizon)
            ages = _steps(one) // unroll_length * horizon // longest * unroll_length
            carried.append(_at(one, ages))
        return Curricular(level, tuple(horizons), tuple(carried))

    def due(key: Key, state: Curricular) -> tuple[list[jax.Array], tuple[Carried, ...]]:
        """The horizons of the inner runs of this meta-step, and what is carried, told when its run is over."""
        horizons, carried = [], []
        for index, (one, horizon) in enumerate(zip(state.carried, state.horizons, strict=True)):
            steps = _steps(one)
            done = steps >= horizon
            fresh = draw_all(jax.random.fold_in(key, index), state.level, steps)
            horizons.append(jnp.where(done, fresh, horizon))
            carried.append(_at(one, jnp.where(done, longest, steps)))
        return horizons, tuple(carried)

    def estimate(
        key: Key, meta_params: MetaParams, state: Curricular, families: Families
    ) -> tuple[MetaParams, Curricular, Metrics]:
        horizons, carried = due(key, state)
        gradient, after, metrics = estimator.estimate(key, meta_params, carried, families)
        metrics = {**metrics, "horizon": jnp.mean(jnp.concatenate(horizons).astype(jnp.float32))}
        return gradient, Curricular(state.level, tuple(horizons), after), metrics

    inner = estimator.batches
    if inner is None:
        return MetaGradient(init, estimate)
    return MetaGradient(init, estimate, lambda key, phi, state, families: inner(key, phi, due(key, state)[1], families))


def _steps(carried: Carried) -> jax.Array:
    """[chunks] inner steps done; the tasks of a chunk go together."""
    steps = carried.run.state.step
    return steps.reshape(steps.shape[0], -1)[:, 0]


def _at(carried: Carried, steps: jax.Array) -> Carried:
    run: Any = carried.run
    step = jnp.broadcast_to(steps.reshape(-1, *(1,) * (run.state.step.ndim - 1)), run.state.step.shape)
    return carried._replace(run=run._replace(state=run.state._replace(step=step)))
