"""The score function (REINFORCE): the thesis's counter-example, unbiased and of far higher variance."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.estimators.backprop import alive_sums, segment_lengths
from metaopt.estimators.windows import How, Method, Run, Schedule, Sums, at_least, start_run, whole_chunk, windowed
from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import COLUMNS
from metaopt.inner.step import ObjectiveBatch
from metaopt.inner.unroll import unroll
from metaopt.registry import ESTIMATORS
from metaopt.types import Key, MetaGradient, MetaParams, Objective, Optimizer, Scored, TaskFamily, Trace

# Tasks whose returns make each other's `per_step` baseline: twice as many would take another 7% off its variance.
BASELINE_TASKS = 8
Baseline = Literal["none", "per_step", "moving_average", "leave_one_out"]


class Average(NamedTuple):
    """The moving average of returns, one for each age of an inner run; [horizon]."""

    total: jax.Array
    weight: jax.Array  # 1 - decay^(meta-steps seen): what the average's start at zero lacks


@ESTIMATORS.register(noise="needed")
def score_function(
    optimizer: Optimizer,
    objective: Objective,
    schedule: Schedule,
    *,
    baseline: Baseline = "per_step",
    rollouts: int = 4,
    decay: float = 0.9,
    objective_batch: ObjectiveBatch = "fresh",
    staggered: bool = False,
) -> MetaGradient:
    """∇_φ L = E Σ_t (R_t - b_t) ∇_φ log p(g_t; φ), R_t the part of the objective that comes after the step g_t.

    Williams 1992. The drawn steps count as constants; φ acts through their density, Π_i Gamma(|g_i|; 2, scale
    α|d_i|/‖d‖), and through the hidden states. Unbiased for the gradient of E_ξ L over a full window, second
    derivatives included; no loss is differentiated. Cost: one unroll forward and about three back. Variance: far above
    the reparameterised gradient's, growing with the window and with the coordinates, infinite as a d_i nears 0.

    R_t counts from f(θ_0): losses before the step, and f(θ_0) in place of those after it, are taken off. On top of that

      none            b_t = 0;
      per_step        the mean of R_t over the other tasks of a group, of up to 8;
      moving_average  a decaying mean of R_t at this age over earlier meta-steps;
      leave_one_out   the mean of R_t over the other runs of the same task (Kool et al. 2019).

    None of them holds the run's own return, so none biases the gradient, as long as no task dies.

    Args:
      rollouts: under `leave_one_out`, runs of each task, rounded up to a divisor of a family's tasks; each counts as
        a task. A device holds whole groups.
      decay: of the moving average, a meta-step.

    Raises:
      ValueError: the optimizer has no noise per coordinate, or settings that do not fit the baseline.
    """
    num_tasks, horizon = schedule.num_tasks, schedule.horizon
    schedule = dataclasses.replace(schedule, staggered=staggered)
    if not _has_density(optimizer):
        if optimizer.explores:
            reason = "one draw a step lies on a ray and has no density); set its option noise=per_coordinate"
        else:
            reason = "the optimizer draws none); take --optimizer lstm:noise=per_coordinate, or another estimator"
        raise ValueError(f"needs noise on every coordinate ({reason}.")
    if baseline in ("per_step", "leave_one_out") and num_tasks < 2:
        raise ValueError(f"baseline={baseline} needs at least 2 tasks; raise `num_tasks` or use moving_average.")
    if baseline == "leave_one_out" and not 2 <= rollouts <= num_tasks:
        raise ValueError(f"`rollouts` ({rollouts}) must lie between 2 and `num_tasks` ({num_tasks}).")
    if not 0 <= decay < 1:
        raise ValueError(f"`decay` ({decay}) must be in [0, 1).")

    def start(meta_params: MetaParams, family: TaskFamily, keys: Key) -> Run:
        """`keys` [groups, tasks], flattened; under `leave_one_out` a group is one task, run several times."""
        if baseline != "leave_one_out":
            return start_run(optimizer, meta_params, family, keys.ravel())
        groups, runs = keys.shape
        run = start_run(optimizer, meta_params, family, jnp.repeat(keys[:, 0], runs))
        own = start_run(optimizer, meta_params, family, keys.ravel()).state.key
        return run._replace(state=run.state._replace(key=own))

    def group_size(dim: int, tasks: int) -> int:
        if baseline not in ("per_step", "leave_one_out"):
            return 1
        if tasks < 2:
            raise ValueError(f"baseline={baseline} needs at least 2 tasks of each family; raise `num_tasks`.")
        if baseline == "leave_one_out":
            return at_least(rollouts, tasks)
        # At most half of the tasks, so that two devices have a group each; a chunk of large tasks stays small.
        most = max(2, min(BASELINE_TASKS, tasks // 2, COLUMNS // dim))
        return max([n for n in range(2, most + 1) if tasks % n == 0], default=at_least(2, tasks))

    def gradient(meta_params: MetaParams, family: TaskFamily, memory: Any, keys: Key, run: Run) -> tuple[Sums, Run]:
        age = run.state.step[0]

        def surrogate(meta_params: MetaParams) -> tuple[jax.Array, tuple[Sums, Run]]:
            final, trace = unroll(
                bind_tasks(optimizer, meta_params),
                family,
                run.task,
                run.state,
                length=schedule.unroll_length,
                explore="scored",
                objective_batch=objective_batch,
                segment_lengths=segment_lengths(schedule, run.state),
            )
            alive = final.alive
            returns = jnp.where(alive, returns_to_go(objective, trace), 0.0)
            if baseline == "moving_average":
                past = jax.tree.map(
                    lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, age, schedule.unroll_length), memory
                )
                advantage = returns - (past.total / jnp.maximum(past.weight, 1e-12))[:, None]
            elif baseline == "none":
                advantage = returns
            else:
                advantage = returns - _others_mean(returns, alive, keys.shape[1])
            assert trace.log_prob is not None
            weight = jax.lax.stop_gradient(jnp.where(alive, advantage, 0.0))
            score = jnp.sum(weight * jnp.where(alive, trace.log_prob, 0.0))
            sums = alive_sums(alive, objective(trace), trace)
            if baseline == "moving_average":
                seen = jnp.sum(returns, axis=1), jnp.full(schedule.unroll_length, sums.alive)
                zeros = jnp.zeros(horizon, returns.dtype)
                at_age = tuple(jax.lax.dynamic_update_slice_in_dim(zeros, part, age, 0) for part in seen)
                sums = sums._replace(extra=jax.lax.stop_gradient(at_age))
            return score, (sums, Run(run.task, final))

        gradient, (sums, end) = jax.grad(surrogate, has_aux=True)(meta_params)
        return sums._replace(gradient=gradient), end

    def initial_memory(meta_params: MetaParams) -> Any:
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(meta_params))
        return Average(jnp.zeros(horizon, dtype), jnp.zeros(horizon, dtype)) if baseline == "moving_average" else ()

    def finish(sums: Sums, memory: Average) -> tuple[MetaParams, Average]:
        total, count = sums.extra
        keep = jnp.where(count > 0, decay, 1.0).astype(total.dtype)
        mean = total / jnp.maximum(count, 1.0)
        memory = Average(keep * memory.total + (1 - keep) * mean, keep * memory.weight + (1 - keep))
        return jax.tree.map(lambda leaf: leaf / jnp.maximum(sums.alive, 1.0), sums.gradient), memory

    method = Method(
        start,
        gradient,
        How(explore=True, objective_batch=objective_batch),
        group_size,
        memory=initial_memory,
        finish=finish if baseline == "moving_average" else None,
        # Where runs share a task, keys alone do not tell which.
        unrolls=None if baseline == "leave_one_out" else whole_chunk,
    )
    return windowed(method, schedule)


def _has_density(optimizer: Optimizer) -> bool:
    """Whether a scored update leaves a `Scored` behind; traced on shapes alone."""
    if not optimizer.explores:
        return False

    def update(key: Key) -> Any:
        tx = bind_tasks(optimizer, optimizer.init(key))
        params = jnp.zeros((1, 2))
        keys = jax.random.split(key, 1)
        return tx.update(params, tx.init(params), params, key=keys, value=jnp.zeros(1), explore="scored")[1]

    state = jax.eval_shape(update, jax.random.key(0))
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Scored))
    return any(isinstance(node, Scored) for node in nodes)


def returns_to_go(objective: Objective, trace: Trace) -> jax.Array:
    """[length, tasks] what each step's future adds to the objective, beyond losses that stay at f(θ_0).

    The objective less the same with the losses from the step on replaced by f(θ_0): for a sum over steps the reward to
    go; for any objective what is taken off depends on earlier steps alone, and leaves the score's mean as it is.
    """
    trace = jax.lax.stop_gradient(trace)
    steps = jnp.arange(trace.loss.shape[0])

    def without_future(t: jax.Array) -> jax.Array:
        return objective(trace._replace(loss=jnp.where(steps[:, None] < t, trace.loss, trace.initial_loss)))

    return objective(trace) - jax.lax.map(without_future, steps)


def _others_mean(returns: jax.Array, alive: jax.Array, group: int) -> jax.Array:
    """The mean of `returns` [length, tasks], 0 for the dead, over the others alive in a group; 0 without any."""
    mine = alive.reshape(-1, group).astype(returns.dtype)
    values = returns.reshape(len(returns), -1, group)
    total = jnp.sum(values, axis=2, keepdims=True) - values
    number = jnp.sum(mine, axis=1, keepdims=True) - mine
    return (total / jnp.maximum(number, 1.0)).reshape(returns.shape)
