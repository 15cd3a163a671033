"""Antithetic pairs: every task run twice, at φ + σε and φ - σε. What the evolution strategies share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metaopt.estimators.reverse_mode import alive_sums
from metaopt.estimators.windows import Sums, at_least, start_run
from metaopt.types import Key, MetaParams, Objective, Optimizer, Task, TaskFamily, Trace, UnrollState
from metaopt.unroll import ObjectiveBatch, bind_tasks, unroll

# A task's key splits into four streams (see `reset`); the first task's fold of this number draws its group's ε.
PERTURBATION = 4
# Columns (tasks times coordinates) that a perturbation needs to fill the vector units.
COLUMNS_SHARED = 64
# What the two sides of a pair have each for themselves; the rest (step, keys, f(θ_0)) they share.
SIDES = UnrollState(params=0, opt_state=0, oracle_state=0, step=None, key=None, alive=0, initial_loss=None)  # type: ignore


class Pairs(NamedTuple):
    """The inner runs of a chunk; a group of tasks shares one perturbation."""

    task: Task  # [groups, tasks, ...]
    state: UnrollState  # `SIDES`: [groups, 2, ...], other fields [groups, tasks]
    drift: jax.Array  # [groups, size of φ] Σ σε since the reset, without the window to come


class PairSettings(NamedTuple):
    """Options of every estimator that perturbs φ."""

    sigma: float
    tasks_per_perturbation: int | None
    explore: bool
    objective_batch: ObjectiveBatch
    halved: bool = False  # whether a family's tasks must make two groups at least

    def check(self, num_tasks: int) -> None:
        """Raises ValueError for settings that cannot serve."""
        if not self.sigma > 0:
            raise ValueError(f"`sigma` ({self.sigma}) must be above 0; try 0.01.")
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


def start_pairs(optimizer: Optimizer) -> Callable[[MetaParams, TaskFamily, Key], Pairs]:
    """`start` of a method: both sides of a pair begin at the same θ_0 of the same task."""

    def start(meta_params: MetaParams, family: TaskFamily, keys: Key) -> Pairs:
        task, state = jax.vmap(lambda keys: start_run(optimizer, meta_params, family, keys))(keys)
        twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], axis=1), state)
        state = UnrollState(*(two if axis == 0 else one for axis, one, two in zip(SIDES, state, twice, strict=True)))
        flat, _ = ravel_pytree(meta_params)
        return Pairs(task, state, jnp.zeros((state.step.shape[0], flat.size), flat.dtype))

    return start


def perturbations(settings: PairSettings, meta_params: MetaParams, keys: Key) -> jax.Array:
    """[groups, size of φ] σε with ε ~ N(0, I); keys [groups, tasks]."""
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

    A pair with a dead side is left out and counted, so that nothing non-finite reaches φ.
    """

    def gradient(
        meta_params: MetaParams, family: TaskFamily, memory: tuple[()], keys: Key, pairs: Pairs
    ) -> tuple[Sums, Pairs]:
        flat, unravel = ravel_pytree(meta_params)
        step = perturbations(settings, meta_params, keys)
        sides = jax.vmap(jax.vmap(unravel))(jnp.stack([flat + step, flat - step], axis=1))
        final, trace = jax.vmap(
            lambda task, state, sides: run_pair(
                optimizer, settings, family, task, state, sides, length=length, differentiable=False
            )
        )(pairs.task, pairs.state, sides)
        loss, alive = pair_losses(objective, final, trace)
        drift = pairs.drift + step if persistent else step
        difference = jnp.sum(jnp.where(alive, loss[:, 0] - loss[:, 1], 0.0), axis=1)  # [groups]
        total = (difference / (2 * settings.sigma**2)) @ drift
        return pair_sums(alive, loss, trace)._replace(gradient=unravel(total)), Pairs(pairs.task, final, drift)

    return gradient


def pair_losses(objective: Objective, final: UnrollState, trace: Trace) -> tuple[jax.Array, jax.Array]:
    """The objective, [groups, 2, tasks], and where both sides are alive, [groups, tasks]."""
    return jax.vmap(jax.vmap(objective))(trace), jnp.all(final.alive, axis=1)


def pair_sums(alive: jax.Array, loss: jax.Array, trace: Trace) -> Sums:
    """Sums over pairs that are alive, each the mean of its two sides; a pair counts as one task."""

    def one_side(alive: jax.Array, loss: jax.Array, trace: Trace) -> Sums:
        return alive_sums(alive, loss, trace)

    sums = jax.vmap(jax.vmap(one_side, in_axes=(None, 0, 0)))(alive, loss, trace)  # [groups, 2]
    return jax.tree.map(lambda leaf: jnp.sum(jnp.mean(leaf, axis=1)), sums)
