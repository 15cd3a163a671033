"""Many inner steps under one scan, whose reverse pass recomputes what is cheap and stores what is few."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metaopt.inner.step import (
    ObjectiveBatch,
    Record,
    Seen,
    StateGradient,
    StepKeys,
    check_objective_batch,
    estimated_anew,
    step,
    step_keys,
)
from metaopt.trees import SAVED, usual_rules
from metaopt.types import Explore, PyTree, Task, TaskFamily, Trace, UnrollState


@usual_rules()
def unroll(
    tx: optax.GradientTransformationExtraArgs,
    family: TaskFamily,
    task: Task,
    state: UnrollState,
    *,
    length: int,
    explore: Explore = False,
    state_gradient: StateGradient = "full",
    second_order: bool = False,
    objective_batch: ObjectiveBatch = "fresh",
    segment_lengths: tuple[int, ...] = (),
    observe: Callable[[Seen], PyTree] | None = None,
) -> tuple[UnrollState, Trace]:
    """Runs `length` inner steps of all tasks, each a `step`.

    Step keys are `fold_in(state.key, state.step)`, so two windows of k steps equal one of 2k. T steps make T estimates,
    beside the one that the state comes with.

    Args:
      tx: a task-batched transformation, see `bind_tasks`.
      task: [tasks, ...]; kept out of the scan's carry, where it would be stored at every step.
      explore: whether the optimizer draws its step noise; `scored`: steps count as constants and the trace holds their
        log-probabilities.
      state_gradient: `full`, or `stopped`: θ is cut at every step, so that an action's effect on later states is
        dropped.
      second_order: keep the gradient of ∇_t with respect to φ; otherwise ∇_t counts as a constant
        (Andrychowicz et al. 2016).
      objective_batch: where f(θ_t) of the trace is taken: `fresh`, the estimate that the next step is taken from, whose
        minibatch was drawn after θ_t, or the `full` training or `validation` data, for a second evaluation a step, at
        the parameters that the optimizer is to be judged at.
      segment_lengths: steps after which the reverse pass finds a stored state to run on from (Chen et al. 2016), then
        those of shorter segments inside; see `metaopt.inner.devices.pick_segment_lengths`.
      observe: is shown every step as computed; the trace holds what it returns, [length, ...].

    Raises:
      ValueError: `explore="scored"` and the optimizer's noise has no density, or an unknown `objective_batch`.
    """
    check_objective_batch(objective_batch)
    state = estimated_anew(tx, family, task, state)

    def body(state: UnrollState, keys: StepKeys) -> tuple[UnrollState, Record]:
        return step(
            tx,
            family,
            task,
            state,
            keys,
            explore=explore,
            state_gradient=state_gradient,
            second_order=second_order,
            objective_batch=objective_batch,
            observe=observe,
        )

    keys = step_keys(state.key, state.step, length)
    # Recomputing the network in the reverse pass is twice as fast as loading what it would have stored, and takes a
    # sixth of the memory; the task's gradients and the noise are few numbers and stay. Unrolling the scan is slower.
    policy = jax.checkpoint_policies.save_only_these_names(SAVED)
    checkpointed = jax.checkpoint(body, prevent_cse=False, policy=policy)
    after, record = _scan_in_segments(checkpointed, state, keys, length, segment_lengths)
    return after, Trace(
        record.loss,
        record.alive,
        record.update_norm,
        state.initial_loss,
        state.lower_bound,
        record.log_prob,
        record.info,
        record.observed,
    )


def _scan_in_segments(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    xs: PyTree,
    length: int,
    segment_lengths: tuple[int, ...],
) -> tuple[PyTree, PyTree]:
    """`lax.scan` over segments, the last one shorter, of which only the ends are stored."""
    if not segment_lengths or segment_lengths[0] >= length:
        return jax.lax.scan(body, carry, xs)
    size, *shorter = segment_lengths
    whole = length - length % size

    def segment(carry: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        return _scan_in_segments(body, carry, xs, len(jax.tree.leaves(xs)[0]), tuple(shorter))

    segment = jax.checkpoint(segment, prevent_cse=False)
    parts = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), xs)
    carry, ys = jax.lax.scan(segment, carry, parts)
    ys = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), ys)
    if whole < length:
        carry, last = segment(carry, jax.tree.map(lambda x: x[whole:], xs))
        ys = jax.tree.map(lambda y, end: jnp.concatenate([y, end]), ys, last)
    return carry, ys
