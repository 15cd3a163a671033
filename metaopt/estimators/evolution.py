"""Evolution strategies: the meta-gradient from values alone, every task run at φ + σε and φ - σε."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metaopt.estimators.backprop import alive_sums
from metaopt.estimators.windows import How, Method, Schedule, Sums, Unrolls, at_least, start_run, windowed
from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import ObjectiveBatch
from metaopt.inner.unroll import unroll
from metaopt.registry import ESTIMATORS
from metaopt.types import Key, MetaGradient, MetaParams, Objective, Optimizer, Task, TaskFamily, Trace, UnrollState


@ESTIMATORS.register(sides=2, windows=False, unbiased_windows=True, cost=0.7, short="ES")
def evolution_strategies(
    optimizer: Optimizer,
    objective: Objective,
    schedule: Schedule,
    *,
    sigma: float = 0.01,
    tasks_per_perturbation: int | None = None,
    explore: bool = True,
    objective_batch: ObjectiveBatch = "fresh",
) -> MetaGradient:
    """Antithetic evolution strategies over the full horizon: E_ε [L(φ + σε) - L(φ - σε)]/(2σ²) σε, ε ~ N(0, I).

    Rechenberg 1973, Salimans et al. 2017; for learned optimizers Metz et al. 2018. Unbiased for the gradient of the
    smoothed loss E_ε L(φ + σε), second derivatives included. The two sides of a pair see the same task, minibatches and
    noise. Cost: two unrolls forward, nothing back. Variance: about (number of φ)/(number of perturbations) times
    ‖∇L‖², plus the tasks' own. The reported losses are those of the perturbed optimizers.

    Args:
      sigma: σ, the standard deviation of the perturbation of every number in φ.
      tasks_per_perturbation: tasks that share one ε, rounded up to a divisor of a family's tasks; None: as few as
        have 64 columns (tasks times coordinates), below which reading φ costs more than using it, and at most half.
        A device holds whole groups.
      explore: draw the optimizer's step noise, where it has any.

    Raises:
      ValueError: a window shorter than the horizon, or settings out of range.
    """
    horizon = schedule.horizon
    if schedule.unroll_length != horizon:
        raise ValueError(
            f"runs the whole horizon ({horizon}) at once, so `unroll_length` ({schedule.unroll_length}) must be left "
            "out; persistent_evolution_strategies works in windows."
        )
    settings = PairSettings(sigma, tasks_per_perturbation, explore, objective_batch)
    return _pairs_over_windows(optimizer, objective, schedule, settings, persistent=False)


@ESTIMATORS.register(sides=2, unbiased_windows=True, cost=0.7, short="PES")
def persistent_evolution_strategies(
    optimizer: Optimizer,
    objective: Objective,
    schedule: Schedule,
    *,
    sigma: float = 0.01,
    tasks_per_perturbation: int | None = None,
    explore: bool = True,
    objective_batch: ObjectiveBatch = "fresh",
    staggered: bool = False,
    persistent: bool = True,
    clip_difference: float | None = None,
) -> MetaGradient:
    """Persistent ES: E [L_w⁺ - L_w⁻]/(2σ²) ξ_w with ξ_w = σ Σ_{v ≤ w} ε_v, the perturbations since the reset.

    Vicol et al. 2021. Both sides of a pair keep their inner runs from window to window, and ε_v is new in every window.
    Its mean over the windows of a horizon is unbiased for the gradient of the smoothed loss (one ε a window), whatever
    the window's length. Cost: two unrolls of a window forward, nothing back. Variance: that of ES, growing with the
    number of windows as ξ_w does. With one window a horizon it is antithetic ES.

    Args:
      sigma, tasks_per_perturbation, explore: see `evolution_strategies`.
      staggered: groups begin at different ages, so that they reset at different meta-steps; at most half of a
        family's tasks share one ε then.
      persistent: False leaves the earlier windows' perturbations out: truncated ES, cheaper in variance and biased.
      clip_difference: the most that L⁺ - L⁻ counts for a task, either way, and what it counts where one side has
        died; none: as it is, and pairs with a dead side are left out. Where losses explode on one side, or are
        logarithms of next to nothing, few tasks make the gradient otherwise. A bias, small where few differences are
        bounded; where most are, their signs count, and tasks of any scale weigh alike.

    Raises:
      ValueError: a horizon that is shorter than a window or no multiple of it, or settings out of range.
    """
    settings = PairSettings(
        sigma,
        tasks_per_perturbation,
        explore,
        objective_batch,
        halved=staggered,
        clip_difference=clip_difference,
    )
    schedule = dataclasses.replace(schedule, staggered=staggered)
    return _pairs_over_windows(optimizer, objective, schedule, settings, persistent=persistent)


@ESTIMATORS.register(sides=2, unbiased_windows=True, cost=0.7, short="NRES")
def noise_reuse_evolution_strategies(
    optimizer: Optimizer,
    objective: Objective,
    schedule: Schedule,
    *,
    sigma: float = 0.01,
    tasks_per_perturbation: int | None = None,
    explore: bool = True,
    objective_batch: ObjectiveBatch = "fresh",
    staggered: bool = False,
    clip_difference: float | None = None,
) -> MetaGradient:
    """Noise-reuse ES: E [L_w⁺ - L_w⁻]/(2σ²) σε with one ε for all windows of an inner run.

    Li et al. 2023. As `persistent_evolution_strategies`, but that ε is drawn at the reset and kept. Its mean over the
    windows of a horizon is, at a φ that rests, the very number that ES over the whole horizon gives for the same ε:
    unbiased for the gradient of the smoothed loss E_ε L(φ + σε). Cost: two unrolls of a window forward, nothing back.
    Variance: with g_v the window's slope in the φ of window v, ‖Σ_v g_v‖² where persistent ES has w Σ_v ‖g_v‖², which
    is never less. Windows that follow one another see one ε, and their errors do not average out.

    Args:
      sigma, tasks_per_perturbation, explore: see `evolution_strategies`.
      staggered, clip_difference: see `persistent_evolution_strategies`.

    Raises:
      ValueError: a horizon that is shorter than a window or no multiple of it, or settings out of range.
    """
    settings = PairSettings(
        sigma,
        tasks_per_perturbation,
        explore,
        objective_batch,
        halved=staggered,
        reused=True,
        clip_difference=clip_difference,
    )
    schedule = dataclasses.replace(schedule, staggered=staggered)
    return _pairs_over_windows(optimizer, objective, schedule, settings, persistent=False)


def _pairs_over_windows(
    optimizer: Optimizer, objective: Objective, schedule: Schedule, settings: PairSettings, *, persistent: bool
) -> MetaGradient:
    settings.check(schedule.num_tasks)
    gradient = pair_gradient(optimizer, objective, settings, length=schedule.unroll_length, persistent=persistent)
    how = How(settings.explore and optimizer.explores, settings.objective_batch)
    finish = None if settings.clip_difference is None else _over_all_that_count
    method = Method(
        start_pairs(optimizer, settings),
        gradient,
        how,
        settings.group_size,
        sides=2,
        unrolls=both_sides(settings),
        finish=finish,
    )
    return windowed(method, schedule)


# ----- antithetic pairs ----------------------------------------------------------------------------------------------

# A task's key splits into four streams (see `reset`); the first task's fold of this number draws its group's ε.
PERTURBATION = 4
# Columns (tasks times coordinates) that a perturbation needs to fill the vector units.
COLUMNS_SHARED = 64
# What the two sides of a pair have each for themselves; the rest (step, keys, f(θ_0), its bound) they share.
_OWN: Any = dict(params=0, opt_state=0, oracle_state=0, estimate=0, alive=0)
SIDES = UnrollState(**_OWN, step=None, key=None, initial_loss=None, lower_bound=None)  # type: ignore[arg-type]


class Pairs(NamedTuple):
    """The inner runs of a chunk; a group of tasks shares one perturbation."""

    task: Task  # [groups, tasks, ...]
    state: UnrollState  # `SIDES`: [groups, 2, ...], other fields [groups, tasks]
    drift: jax.Array  # [groups, size of φ] Σ σε since the reset, without the window to come; the run's own if `reused`


class PairSettings(NamedTuple):
    """Options of every estimator that perturbs φ."""

    sigma: float
    tasks_per_perturbation: int | None
    explore: bool
    objective_batch: ObjectiveBatch
    halved: bool = False  # whether a family's tasks must make two groups at least
    reused: bool = False  # whether an inner run has one ε for all of its windows
    clip_difference: float | None = None  # the most that L⁺ - L⁻ counts, either way

    def check(self, num_tasks: int) -> None:
        """Raises ValueError for settings that cannot serve."""
        if not self.sigma > 0:
            raise ValueError(f"`sigma` ({self.sigma}) must be above 0; try 0.01.")
        if self.clip_difference is not None and not self.clip_difference > 0:
            raise ValueError(f"`clip_difference` ({self.clip_difference}) must be above 0; try 1.")
        shared = self.tasks_per_perturbation
        if shared is not None and not 1 <= shared <= num_tasks:
            raise ValueError(f"`tasks_per_perturbation` ({shared}) must lie between 1 and `num_tasks` ({num_tasks}).")

    def group_size(self, dim: int, tasks: int) -> int:
        """Tasks of a family's `tasks` that share a perturbation: the smallest divisor with enough columns, or as asked.

        All of them only where that is asked for: a second perturbation halves the variance, and a second device needs
        a group too.
        """
        size = at_least(self.tasks_per_perturbation or -(-COLUMNS_SHARED // dim), tasks)
        if self.halved and tasks < 2:
            raise ValueError("needs at least 2 tasks of each family, for two perturbations; raise `num_tasks`.")
        split = tasks > 1 and (self.halved or self.tasks_per_perturbation is None)
        return max(n for n in range(1, tasks) if tasks % n == 0) if split and size == tasks else size


def start_pairs(optimizer: Optimizer, settings: PairSettings) -> Callable[[MetaParams, TaskFamily, Key], Pairs]:
    """`start` of a method: both sides of a pair begin at the same θ_0 of the same task."""

    def start(meta_params: MetaParams, family: TaskFamily, keys: Key) -> Pairs:
        task, state = jax.vmap(lambda keys: start_run(optimizer, meta_params, family, keys))(keys)
        twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], axis=1), state)
        parts: Any = (two if axis == 0 else one for axis, one, two in zip(SIDES, state, twice, strict=True))
        state = UnrollState(*parts)
        drawn = perturbations(settings, meta_params, keys)
        return Pairs(task, state, drawn if settings.reused else jnp.zeros_like(drawn))

    return start


def both_sides(settings: PairSettings) -> Unrolls:
    """`unrolls` of a method that runs pairs: both sides of every group, each with its own φ ± σε."""

    def unrolls(meta_params: MetaParams, keys: Key, pairs: Pairs | None) -> Iterator[tuple[MetaParams, Key, Any]]:
        flat, unravel = ravel_pytree(meta_params)
        steps = perturbations(settings, meta_params, keys, pairs)
        for group, own in enumerate(keys):
            for side, sign in enumerate((1, -1)):
                start = None
                if pairs is not None:
                    task = jax.tree.map(lambda leaf, group=group: leaf[group], pairs.task)
                    start = (task, one_side(pairs.state, group, side))
                yield unravel(flat + sign * steps[group]), own, start

    return unrolls


def one_side(state: UnrollState, group: int, side: int) -> UnrollState:
    """One side of one group's state, as an unroll of its own has it."""

    def take(field: Any, axis: int | None) -> Any:
        return jax.tree.map(lambda leaf: leaf[group] if axis is None else leaf[group, side], field)

    axes: Any = SIDES
    return UnrollState(*(take(field, axis) for axis, field in zip(axes, state, strict=True)))


def perturbations(settings: PairSettings, meta_params: MetaParams, keys: Key, pairs: Pairs | None = None) -> jax.Array:
    """[groups, size of φ] σε with ε ~ N(0, I), of the window to come; keys [groups, tasks]."""
    if settings.reused and pairs is not None:
        return pairs.drift
    flat, _ = ravel_pytree(meta_params)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, PERTURBATION))(keys[:, 0])
    return settings.sigma * jax.vmap(lambda key: jax.random.normal(key, flat.shape, flat.dtype))(keys)


def run_pair(
    optimizer: Optimizer,
    settings: PairSettings,
    family: TaskFamily,
    task: Task,
    state: UnrollState,
    sides: MetaParams,
    *,
    length: int,
    **options: Any,
) -> tuple[UnrollState, Trace]:
    """Both sides of one group in one batch, on the same minibatches and noise; `sides` is φ, leaves [2, ...].

    Returns the state, laid out as it came, and the trace, [2, length, tasks] (f(θ_0) [2, tasks]).
    """

    def side(meta_params: MetaParams, state: UnrollState) -> tuple[UnrollState, Trace]:
        return unroll(
            bind_tasks(optimizer, meta_params),
            family,
            task,
            state,
            length=length,
            explore=settings.explore and optimizer.explores,
            objective_batch=settings.objective_batch,
            **options,
        )

    return jax.vmap(side, in_axes=(0, SIDES), out_axes=(SIDES, 0))(sides, state)


def pair_gradient(
    optimizer: Optimizer, objective: Objective, settings: PairSettings, *, length: int, persistent: bool
) -> Callable[..., tuple[Sums, Pairs]]:
    """`gradient` of a method: Σ_tasks (L⁺ - L⁻)/(2σ²) times σε, or times σε summed since the reset if `persistent`.

    A pair with a dead side is left out and counted, so that nothing non-finite reaches φ; under `clip_difference` one
    with a single dead side counts as the most that a pair can, for as long as the other lives: dying costs. Their
    number is `extra`.
    """

    def gradient(
        meta_params: MetaParams, family: TaskFamily, memory: tuple[()], keys: Key, pairs: Pairs
    ) -> tuple[Sums, Pairs]:
        flat, unravel = ravel_pytree(meta_params)
        step = perturbations(settings, meta_params, keys, pairs)
        sides = jax.vmap(jax.vmap(unravel))(jnp.stack([flat + step, flat - step], axis=1))
        final, trace = jax.vmap(
            lambda task, state, sides: run_pair(optimizer, settings, family, task, state, sides, length=length)
        )(pairs.task, pairs.state, sides)
        loss, alive = pair_losses(objective, final, trace)
        drift = pairs.drift + step if persistent else step
        difference, extra = jnp.where(alive, loss[:, 0] - loss[:, 1], 0.0), ()
        if (most := settings.clip_difference) is not None:
            died = final.alive[:, 1] * 1.0 - final.alive[:, 0] * 1.0  # 1: the plus side alone, -1: the minus side
            difference = jnp.where(died != 0, most * died, jnp.clip(difference, -most, most))
            extra = jnp.sum(jnp.abs(died))
        difference = jnp.sum(difference, axis=1)  # [groups]
        total = (difference / (2 * settings.sigma**2)) @ drift
        sums = pair_sums(alive, loss, trace)._replace(gradient=unravel(total), extra=extra)
        return sums, Pairs(pairs.task, final, drift)

    return gradient


def _over_all_that_count(sums: Sums, memory: tuple[()]) -> tuple[MetaParams, tuple[()]]:
    """The mean over pairs that are alive or have one dead side."""
    counted = jnp.maximum(sums.alive + sums.extra, 1.0)
    return jax.tree.map(lambda leaf: leaf / counted, sums.gradient), memory


def pair_losses(objective: Objective, final: UnrollState, trace: Trace) -> tuple[jax.Array, jax.Array]:
    """The objective, [groups, 2, tasks], and where both sides are alive, [groups, tasks]."""
    return jax.vmap(jax.vmap(objective))(trace), jnp.all(final.alive, axis=1)


def pair_sums(alive: jax.Array, loss: jax.Array, trace: Trace) -> Sums:
    """Sums over pairs that are alive, each the mean of its two sides; a pair counts as one task."""

    def one_side(alive: jax.Array, loss: jax.Array, trace: Trace) -> Sums:
        return alive_sums(alive, loss, trace)

    sums = jax.vmap(jax.vmap(one_side, in_axes=(None, 0, 0)))(alive, loss, trace)  # [groups, 2]
    return jax.tree.map(lambda leaf: jnp.sum(jnp.mean(leaf, axis=1)), sums)
