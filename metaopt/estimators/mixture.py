"""The inverse-variance mixture of evolution strategies and reparameterised gradients."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metaopt.estimators.backprop import segment_lengths
from metaopt.estimators.evolution import (
    Pairs,
    PairSettings,
    both_sides,
    pair_sums,
    perturbations,
    run_pair,
    start_pairs,
)
from metaopt.estimators.windows import How, Method, Schedule, Sums, windowed
from metaopt.inner.step import ObjectiveBatch
from metaopt.registry import ESTIMATORS
from metaopt.types import Key, MetaGradient, MetaParams, Objective, Optimizer, PyTree, TaskFamily, Trace, UnrollState

# Beyond this a gradient's square may leave float32.
HUGE = 1e15
# A reparameterised gradient with more than so many times the variance of the other is left out: by weight it would be
# next to nothing, and a memory of calmer meta-steps must not let it in.
WORTHLESS = 1e4


class Moments(NamedTuple):
    """Of one estimator's gradients, one a perturbation, summed; [size of φ]."""

    total: jax.Array  # over tasks
    first: jax.Array  # means over a group's tasks
    second: jax.Array  # and their squares
    lost: jax.Array  # how many means are huge or not finite, and left out of all three


class Variances(NamedTuple):
    """Decaying means of each estimator's variance, [size of φ]; both lack the same factor, which weights do not see."""

    evolution: jax.Array
    reparameterised: jax.Array


@ESTIMATORS.register(differentiates=True, sides=2, cost=3.0)
def mixture(
    optimizer: Optimizer,
    objective: Objective,
    schedule: Schedule,
    *,
    sigma: float = 0.01,
    tasks_per_perturbation: int | None = None,
    decay: float = 0.9,
    explore: bool = True,
    second_order: bool = True,
    objective_batch: ObjectiveBatch = "fresh",
    staggered: bool = False,
) -> MetaGradient:
    """w ĝ_ES + (1 - w) ĝ_RP for every number in φ, w = v_RP/(v_ES + v_RP), v the variance of each over perturbations.

    Metz et al. 2018. Both estimate the gradient of E_ε L(φ + σε): ĝ_ES = [L⁺ - L⁻]/(2σ²) σε from the values of an
    antithetic pair, ĝ_RP = (∇L⁺ + ∇L⁻)/2 by back-propagation through the same two runs (σε is what is reparameterised;
    step noise too, where the optimizer has it). Cost: two unrolls forward and about six back, the sum of both.
    Variance: about the lower of the two for every number in φ. Bias over a full window: none while the weights come
    from earlier meta-steps (`decay` above 0); with `decay=0`, the paper's choice, they come from the gradients they
    weigh, which biases by the order of 1/(number of perturbations). Shorter windows truncate both. ĝ_ES stands alone
    while there is no memory, with a single perturbation alive, and where ĝ_RP explodes: one perturbation's is not
    finite, or v_RP is above 10⁴ v_ES, which is then what goes into the memory.

    Args:
      sigma, tasks_per_perturbation, explore: see `evolution_strategies`; at most half of a family's tasks share one ε.
      decay: of the variances, a meta-step.
      second_order: False drops the second derivatives from ĝ_RP alone: the two then differ in what they estimate.
      staggered: see `persistent_evolution_strategies`.

    Raises:
      ValueError: fewer than two perturbations a meta-step, or settings out of range.
    """
    num_tasks, schedule = schedule.num_tasks, dataclasses.replace(schedule, staggered=staggered)
    if num_tasks < 2:
        raise ValueError("needs at least 2 tasks, for two perturbations whose variance it takes; raise `num_tasks`.")
    if tasks_per_perturbation is not None and 2 * tasks_per_perturbation > num_tasks:
        raise ValueError(
            f"`tasks_per_perturbation` ({tasks_per_perturbation}) leaves fewer than two perturbations; "
            f"set it to at most {num_tasks // 2}."
        )
    if not 0 <= decay < 1:
        raise ValueError(f"`decay` ({decay}) must be in [0, 1).")
    settings = PairSettings(sigma, tasks_per_perturbation, explore, objective_batch, halved=True)
    settings.check(num_tasks)

    def one_group(
        family: TaskFamily, task: PyTree, state: UnrollState, sides: MetaParams, segments: tuple[int, ...]
    ) -> tuple[UnrollState, Trace, jax.Array, jax.Array, MetaParams]:
        """State, trace, objective [2, tasks], pairs alive [tasks], and Σ of ∇L over those, leaves [2, ...]."""

        def total(sides: MetaParams) -> tuple[jax.Array, tuple[UnrollState, Trace, jax.Array, jax.Array]]:
            final, trace = run_pair(
                optimizer,
                settings,
                family,
                task,
                state,
                sides,
                length=schedule.unroll_length,
                second_order=second_order,
                segment_lengths=segments,
            )
            loss, alive = jax.vmap(objective)(trace), jnp.all(final.alive, axis=0)
            return jnp.sum(jnp.where(alive, loss, 0.0)), (final, trace, loss, alive)

        gradients, (final, trace, loss, alive) = jax.grad(total, has_aux=True)(sides)
        return final, trace, loss, alive, gradients

    def gradient(
        meta_params: MetaParams, family: TaskFamily, memory: Variances, keys: Key, pairs: Pairs
    ) -> tuple[Sums, Pairs]:
        flat, unravel = ravel_pytree(meta_params)
        step = perturbations(settings, meta_params, keys)
        sides = jax.vmap(jax.vmap(unravel))(jnp.stack([flat + step, flat - step], axis=1))
        segments = segment_lengths(schedule, pairs.state)  # for all groups and both sides together
        run = jax.vmap(lambda task, state, sides: one_group(family, task, state, sides, segments))
        final, trace, loss, alive, gradients = run(pairs.task, pairs.state, sides)
        number = jnp.sum(alive, axis=1, keepdims=True)  # [groups, 1]
        reparameterised = jnp.mean(jax.vmap(jax.vmap(lambda tree: ravel_pytree(tree)[0]))(gradients), axis=1)
        difference = jnp.sum(jnp.where(alive, loss[:, 0] - loss[:, 1], 0.0), axis=1, keepdims=True)
        evolution = difference / (2 * sigma**2) * step

        def moments(totals: jax.Array) -> Moments:
            means = totals / jnp.maximum(number, 1)
            lost = (number > 0) & ~(jnp.abs(means) < HUGE)
            totals, means = (jnp.where((number > 0) & ~lost, values, 0.0) for values in (totals, means))
            sums = [jnp.sum(values, axis=0) for values in (totals, means, jnp.square(means), lost.astype(flat.dtype))]
            return Moments(*sums)

        extra = (moments(evolution), moments(reparameterised), jnp.sum(number > 0).astype(flat.dtype))
        sums = pair_sums(alive, loss, trace)._replace(gradient=meta_params, extra=extra)
        return jax.lax.stop_gradient(sums), pairs._replace(state=final)

    def finish(sums: Sums, memory: Variances) -> tuple[MetaParams, Variances]:
        evolution, reparameterised, groups = sums.extra
        now = Variances(*(_variance(moments, groups) for moments in (evolution, reparameterised)))
        most = WORTHLESS * now.evolution
        exploded = (reparameterised.lost > 0) | (now.reparameterised > most)
        now = now._replace(reparameterised=jnp.where(exploded, most, now.reparameterised))
        seen = (groups > 1) & (evolution.lost == 0)
        mixed = jax.tree.map(lambda old, new: jnp.where(seen, decay * old + (1 - decay) * new, old), memory, now)
        weights = memory if decay else mixed
        both = weights.evolution + weights.reparameterised
        alone = exploded | ~seen | (both == 0)
        share = jnp.where(alone, 1.0, weights.reparameterised / jnp.where(alone, 1.0, both))
        total = share * evolution.total + (1 - share) * reparameterised.total
        unravel = ravel_pytree(sums.gradient)[1]
        return unravel(total / jnp.maximum(sums.alive, 1.0)), mixed

    def initial_memory(meta_params: MetaParams) -> Variances:
        zeros = jnp.zeros_like(ravel_pytree(meta_params)[0])
        return Variances(zeros, zeros)

    method = Method(
        start_pairs(optimizer, settings),
        gradient,
        How(explore and optimizer.explores, objective_batch, differentiates=True),
        settings.group_size,
        sides=2,
        memory=initial_memory,
        finish=finish,
        unrolls=both_sides(settings),
    )
    return windowed(method, schedule)


def _variance(moments: Moments, groups: jax.Array) -> jax.Array:
    """The sample variance over groups, [size of φ]; never below zero, whatever rounding does."""
    mean = moments.first / jnp.maximum(groups, 1.0)
    return jnp.maximum(moments.second - groups * jnp.square(mean), 0.0) / jnp.maximum(groups - 1, 1.0)
