"""Differentiating a window of an inner run: truncated back-propagation and the reparameterised policy gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metaopt.estimators.windows import How, Method, Run, Schedule, Sums, start_run, whole_chunk, windowed
from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import pick_segment_lengths
from metaopt.inner.step import ObjectiveBatch, StateGradient
from metaopt.inner.unroll import unroll
from metaopt.registry import ESTIMATORS
from metaopt.trees import FAILURE_FACTOR
from metaopt.types import Key, MetaGradient, MetaParams, Objective, Optimizer, PyTree, TaskFamily, Trace, UnrollState


@ESTIMATORS.register(differentiates=True, noise="never")
def truncated_backprop(
    optimizer: Optimizer,
    objective: Objective,
    schedule: Schedule,
    *,
    state_gradient: StateGradient = "full",
    second_order: bool = False,
    objective_batch: ObjectiveBatch = "fresh",
    staggered: bool = False,
    clip_task_norm: float | None = None,
) -> MetaGradient:
    """dL/dφ by reverse mode over windows of `unroll_length` steps; `unroll_length == horizon` is the full gradient.

    The thesis's BP model. ∇_t counts as a constant unless `second_order` (Andrychowicz et al. 2016). Exact for L under
    `second_order` and a full window; otherwise biased, by the dropped second derivatives and by what lies beyond the
    window. Cost: one unroll forward and about three back. Beyond the schedule's memory the unroll is cut into segments,
    for one more forward pass each time.

    Args:
      state_gradient: `stopped` drops the path by which a step changes later states, as in `reparameterised`.
      objective_batch: see `metaopt.inner.unroll.unroll`.
      staggered: chunks of tasks begin at different ages.
      clip_task_norm: the most that the norm of one task's gradient is, before the mean over tasks; one that is not
        finite counts as 0. Where one task in a hundred explodes it is the whole mean otherwise. A bias, towards what
        most tasks ask for.

    Raises:
      ValueError: `clip_task_norm` is not above 0.
    """
    how = How(explore=False, objective_batch=objective_batch, differentiates=True)
    schedule = dataclasses.replace(schedule, staggered=staggered)
    return _reverse_mode(optimizer, objective, schedule, how, state_gradient, second_order, clip_task_norm)


@ESTIMATORS.register(differentiates=True, noise="needed")
def reparameterised(
    optimizer: Optimizer,
    objective: Objective,
    schedule: Schedule,
    *,
    state_gradient: StateGradient = "full",
    second_order: bool = False,
    objective_batch: ObjectiveBatch = "fresh",
    staggered: bool = False,
    clip_task_norm: float | None = None,
) -> MetaGradient:
    """∇_φ L = E_ξ Σ_t ∇_φ f(θ_t(φ, ξ)): noise first, then the gradient through step length and direction.

    The thesis's RL model. The inner run is an MDP with state (θ, ∇), action g and reward -f(θ + g).
    `state_gradient="stopped"` is the thesis's formula as printed, Σ_t ∇_φ a_t · ∇f(s_t + a_t), which drops the path by
    which an action changes later states; `full` is the total derivative. Unbiased for E_ξ L under `full`,
    `second_order` and a full window. Cost: one unroll forward and about three back.

    Raises:
      ValueError: the optimizer has no step noise, or `clip_task_norm` is not above 0.
    """
    if not optimizer.explores:
        raise ValueError(
            "needs an optimizer that draws step noise, such as lstm with noise=per_step; use truncated_backprop for "
            "others."
        )
    how = How(explore=True, objective_batch=objective_batch, differentiates=True)
    schedule = dataclasses.replace(schedule, staggered=staggered)
    return _reverse_mode(optimizer, objective, schedule, how, state_gradient, second_order, clip_task_norm)


def _reverse_mode(
    optimizer: Optimizer,
    objective: Objective,
    schedule: Schedule,
    how: How,
    state_gradient: StateGradient,
    second_order: bool,
    clip_task_norm: float | None,
) -> MetaGradient:
    """The objective's gradient; the carry is cut between windows and goes on with the values it has."""
    if clip_task_norm is not None and not clip_task_norm > 0:
        raise ValueError(f"`clip_task_norm` ({clip_task_norm}) must be above 0; try 1.")

    def of_tasks(meta_params: MetaParams, family: TaskFamily, run: Run, segments: tuple[int, ...]) -> tuple[Sums, Run]:
        def total(meta_params: MetaParams) -> tuple[jax.Array, tuple[Sums, Run]]:
            final, trace = unroll(
                bind_tasks(optimizer, meta_params),
                family,
                run.task,
                run.state,
                length=schedule.unroll_length,
                explore=how.explore,
                state_gradient=state_gradient,
                second_order=second_order,
                objective_batch=how.objective_batch,
                segment_lengths=segments,
            )
            sums = alive_sums(final.alive, objective(trace), trace)
            return sums.loss, (sums, Run(run.task, final))

        gradient, (sums, run_on) = jax.grad(total, has_aux=True)(meta_params)
        return sums._replace(gradient=gradient), run_on

    def of_chunk(meta_params: MetaParams, family: TaskFamily, memory: PyTree, keys: Key, run: Run) -> tuple[Sums, Run]:
        return of_tasks(meta_params, family, run, segment_lengths(schedule, run.state))

    if clip_task_norm is None:
        return windowed(Method(partial(start_run, optimizer), of_chunk, how, unrolls=whole_chunk), schedule)

    # Chunks of groups, each a task alone, which has a gradient of its own.
    def start(meta_params: MetaParams, family: TaskFamily, keys: Key) -> Run:
        return jax.vmap(lambda keys: start_run(optimizer, meta_params, family, keys))(keys)

    def of_groups(meta_params: MetaParams, family: TaskFamily, memory: PyTree, keys: Key, run: Run) -> tuple[Sums, Run]:
        segments = segment_lengths(schedule, run.state)
        each, run_on = jax.vmap(lambda run: of_tasks(meta_params, family, run, segments))(run)
        clipped = jax.vmap(lambda gradient: _clipped(gradient, clip_task_norm))(each.gradient)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), each._replace(gradient=clipped)), run_on

    def unrolls(meta_params: MetaParams, keys: Key, run: Run | None) -> Iterator[tuple[MetaParams, Key, Any]]:
        for group, own in enumerate(keys):
            yield (
                meta_params,
                own,
                None if run is None else tuple(jax.tree.map(lambda leaf, group=group: leaf[group], run)),
            )

    return windowed(Method(start, of_groups, how, group_size=lambda dim, tasks: 1, unrolls=unrolls), schedule)


def _clipped(gradient: MetaParams, most: float) -> MetaParams:
    """With a norm of at most `most`; 0 where it is not finite."""
    norm = optax.global_norm(gradient)
    share = jnp.where(jnp.isfinite(norm), most / jnp.maximum(norm, most), 0.0)
    return jax.tree.map(lambda leaf: jnp.where(share > 0, share * leaf, 0.0), gradient)


def segment_lengths(schedule: Schedule, state: UnrollState) -> tuple[int, ...]:
    """How a chunk's unroll is cut to keep within the schedule's memory."""

    def num_bytes(tree: PyTree) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    state_bytes = num_bytes((state.params, state.opt_state, state.oracle_state, state.estimate))
    # Beside the state: the objective's slope, up to ten features and the network's outputs.
    step_bytes = state_bytes + 13 * num_bytes(state.params)
    budget = None if schedule.memory is None else int(schedule.memory * 2**30)
    return pick_segment_lengths(schedule.unroll_length, state_bytes, step_bytes, budget)


def alive_sums(alive: jax.Array, loss: jax.Array, trace: Trace) -> Sums:
    """What the metrics need of a chunk: sums over the tasks where `alive` [tasks] holds; `loss` is the objective's."""

    def alive_sum(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(alive, values, 0.0))

    health = {name: jnp.sum(jnp.mean(jnp.nan_to_num(told * 1.0), axis=0)) for name, told in trace.info.items()}
    if health:
        health["tasks"] = jnp.sum(jnp.ones_like(trace.initial_loss))
    gap = trace.initial_loss - trace.lower_bound  # nan, which nothing is above, where the bound is not known
    return Sums(
        gradient=(),
        alive=alive_sum(jnp.ones_like(trace.initial_loss)),
        loss=alive_sum(loss),
        last_loss=alive_sum(trace.loss[-1]),
        step_length=alive_sum(jnp.mean(trace.update_norm, axis=0)),
        initial_gap=alive_sum(gap),
        failed=alive_sum((jnp.any(trace.loss - trace.lower_bound > FAILURE_FACTOR * gap, axis=0) & (gap > 0)) * 1.0),
        health=health,
    )
