"""Differentiating a window of an inner run: what the back-propagating estimators share."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from metaopt.batching import pick_segment_lengths
from metaopt.estimators.windows import Method, Run, Schedule, Sums, start_run, windowed
from metaopt.trees import FAILURE_FACTOR
from metaopt.types import Key, MetaGradient, MetaParams, Objective, Optimizer, PyTree, TaskFamily, Trace, UnrollState
from metaopt.unroll import ObjectiveBatch, StateGradient, bind_tasks, unroll


def reverse_mode_gradient(
    optimizer: Optimizer,
    objective: Objective,
    schedule: Schedule,
    *,
    explore: bool,
    state_gradient: StateGradient,
    second_order: bool,
    objective_batch: ObjectiveBatch,
) -> MetaGradient:
    """Reverse-mode gradient of the objective; the carry is cut between windows and goes on with the values it has.

    Raises:
      ValueError: the objective's losses carry no gradient.
    """
    if objective_batch == "none":
        raise ValueError("`objective_batch=none` carries no gradient; use fresh, same or full.")

    def gradient(meta_params: MetaParams, family: TaskFamily, memory: PyTree, keys: Key, run: Run) -> tuple[Sums, Run]:
        def total(meta_params: MetaParams) -> tuple[jax.Array, tuple[Sums, Run]]:
            final, trace = unroll(
                bind_tasks(optimizer, meta_params),
                family,
                run.task,
                run.state,
                length=schedule.unroll_length,
                explore=explore,
                state_gradient=state_gradient,
                second_order=second_order,
                objective_batch=objective_batch,
                segment_lengths=segment_lengths(schedule, run.state),
            )
            sums = alive_sums(final.alive, objective(trace), trace)
            return sums.loss, (sums, Run(run.task, final))

        gradient, (sums, run_on) = jax.grad(total, has_aux=True)(meta_params)
        return sums._replace(gradient=gradient), run_on

    return windowed(Method(partial(start_run, optimizer), gradient), objective, schedule)


def segment_lengths(schedule: Schedule, state: UnrollState) -> tuple[int, ...]:
    """How a chunk's unroll is cut to keep within the schedule's memory."""

    def num_bytes(tree: PyTree) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    state_bytes = num_bytes((state.params, state.opt_state, state.oracle_state))
    # Beside the state: the gradient, the objective's slope, up to ten features and the network's outputs.
    step_bytes = state_bytes + 14 * num_bytes(state.params)
    budget = None if schedule.memory is None else int(schedule.memory * 2**30)
    return pick_segment_lengths(schedule.unroll_length, state_bytes, step_bytes, budget)


def alive_sums(alive: jax.Array, loss: jax.Array, trace: Trace) -> Sums:
    """What the metrics need of a chunk: sums over the tasks where `alive` [tasks] holds; `loss` is the objective's."""

    def alive_sum(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(alive, values, 0.0))

    return Sums(
        gradient=(),
        alive=alive_sum(jnp.ones_like(trace.initial_loss)),
        loss=alive_sum(loss),
        last_loss=alive_sum(trace.loss[-1]),
        step_length=alive_sum(jnp.mean(trace.update_norm, axis=0)),
        initial_loss=alive_sum(trace.initial_loss),
        failed=alive_sum(jnp.any(trace.loss > FAILURE_FACTOR * trace.initial_loss, axis=0).astype(loss.dtype)),
    )
