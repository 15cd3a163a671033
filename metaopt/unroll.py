"""The inner loop: reset, one step, unroll. Every array has a leading task axis; families are vmapped here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from metaopt.oracles import minibatch
from metaopt.trees import KEPT, LARGEST, keep, select_tasks, task_norm, usable_tasks
from metaopt.types import (
    Explore,
    Key,
    MetaParams,
    Optimizer,
    Params,
    PyTree,
    Scored,
    Task,
    TaskFamily,
    Trace,
    UnrollState,
)

StateGradient = Literal["full", "stopped"]
ObjectiveBatch = Literal["fresh", "same", "full", "none"]


def bind_tasks(optimizer: Optimizer, meta_params: MetaParams) -> optax.GradientTransformationExtraArgs:
    """The optimizer's own task-batched form, or vmap of its one-task form."""
    if optimizer.bind_tasks is not None:
        return optimizer.bind_tasks(meta_params)
    tx = optimizer.bind(meta_params)

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        key: jax.Array | None = None,
        value: jax.Array | None = None,
        explore: Explore = False,
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        def one(updates: PyTree, state: PyTree, params: PyTree, key: Any, value: Any) -> tuple[PyTree, PyTree]:
            return tx.update(updates, state, params, key=key, value=value, explore=explore)

        return jax.vmap(one)(updates, state, params, key, value)

    return optax.GradientTransformationExtraArgs(jax.vmap(tx.init), update)


def reset(tx: optax.GradientTransformationExtraArgs, family: TaskFamily, keys: Key) -> tuple[Task, UnrollState]:
    """Draws tasks and their starting points.

    Args:
      tx: a task-batched transformation, see `bind_tasks`.
      keys: [tasks] typed keys; a task's key decides the task, its start, and every minibatch and noise draw of its run.
    """
    streams = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
    task_keys, init_keys, run_keys, loss_keys = (streams[:, i] for i in range(4))
    task = jax.vmap(family.sample, in_axes=(0, None))(task_keys, family.data)
    params = jax.vmap(family.init)(init_keys, task)
    oracle = family.oracle or minibatch()
    oracle_state = jax.vmap(lambda task, params, key: oracle.init(family, task, params, key))(task, params, loss_keys)

    def initial_loss(task: Task, params: Params, key: Key) -> jax.Array:
        return family.loss(params, task, family.batch(key, task, family.data))

    loss = jax.vmap(initial_loss)(task, params, loss_keys)
    num_tasks = keys.shape[0]
    state = UnrollState(
        params=params,
        opt_state=tx.init(params),
        oracle_state=oracle_state,
        step=jnp.zeros(num_tasks, jnp.int32),
        key=run_keys,
        alive=jnp.abs(loss) <= LARGEST,
        initial_loss=loss,
    )
    return task, state


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
    differentiable: bool = True,
    segment_lengths: tuple[int, ...] = (),
) -> tuple[UnrollState, Trace]:
    """Runs `length` inner steps of all tasks.

    A task dies at its first loss, gradient or parameter that is not finite (or above 1e15): its parameters freeze, its
    loss reads infinity, and nothing it does reaches a gradient. Step keys are `fold_in(state.key, state.step)`, so
    two windows of k steps equal one of 2k.

    Args:
      tx: a task-batched transformation, see `bind_tasks`.
      task: [tasks, ...]; kept out of the scan's carry, where it would be stored at every step.
      explore: whether the optimizer draws its step noise; `scored`: steps count as constants and the trace holds their
        log-probabilities.
      state_gradient: `full`, or `stopped`: θ is cut at every step, so that an action's effect on later states is
        dropped.
      second_order: keep the gradient of ∇_t with respect to φ; otherwise ∇_t counts as a constant
        (Andrychowicz et al. 2016).
      objective_batch: where f(θ_t) of the trace is taken: on a `fresh` minibatch, the step's own (`same`), the `full`
        training data, or `none`: the value that came with the step's gradient, at θ_{t-1}, which costs nothing and
        carries no gradient.
      differentiable: whether the trace's losses carry a gradient, which costs a reverse pass through the loss a step.
      segment_lengths: steps after which the reverse pass finds a stored state to run on from (Chen et al. 2016), then
        those of shorter segments inside; see `metaopt.batching.pick_segment_lengths`.

    Raises:
      ValueError: `explore="scored"` and the optimizer's noise has no density.
    """
    oracle = family.oracle or minibatch()

    def gradient_at(task: Task, params: Params, oracle_state: Any, key: Key) -> tuple[Any, jax.Array, Any]:
        gradient, value, oracle_state, _ = oracle.estimate(family, task, params, oracle_state, key)
        return gradient, value, oracle_state

    def objective_at(task: Task, params: Params, oracle_state: Any, keys: tuple[Key, Key]) -> tuple[jax.Array, Params]:
        if family.oracle is not None and objective_batch != "full":
            key = keys[0] if objective_batch == "same" else keys[1]
            gradient, value, _ = gradient_at(task, params, oracle_state, key)
            return value, gradient if differentiable else ()
        if objective_batch == "full":
            batch = family.eval_batch(task, family.data, "train")
        else:
            batch = family.batch(keys[0] if objective_batch == "same" else keys[1], task, family.data)
        if not differentiable and not shares:
            return family.loss(params, task, batch), ()
        return jax.value_and_grad(family.loss)(params, task, batch)

    # A deterministic task's f and ∇f at θ_t, taken for the objective, are those that the next step needs.
    shares = (
        family.oracle is None
        and not second_order
        and objective_batch in ("fresh", "same")
        and not jax.tree.leaves(jax.eval_shape(jax.vmap(family.batch, (0, 0, None)), state.key, task, family.data))
    )

    def estimate(state: UnrollState, params: Params, keys: Key) -> tuple[Params, jax.Array, Any, jax.Array]:
        """∇_t, f(θ_t), the oracle's next state, and who is alive."""
        gradient, value, oracle_state = jax.vmap(gradient_at)(task, params, state.oracle_state, keys)
        # Selected before use: a zero times infinity anywhere in the reverse pass would be nan for every task.
        alive = state.alive & usable_tasks((gradient, value))
        gradient, value = select_tasks(alive, (gradient, value), jax.tree.map(jnp.zeros_like, (gradient, value)))
        return gradient, value, oracle_state, alive

    def step(carry: tuple[UnrollState, Any], keys: tuple[Key, Key, Key]) -> tuple[tuple[UnrollState, Any], Any]:
        state, known = carry
        gradient_keys, update_keys, loss_keys = keys
        params = jax.lax.stop_gradient(state.params) if state_gradient == "stopped" else state.params
        if shares:
            (gradient, value), oracle_state, alive = known, state.oracle_state, state.alive
        else:
            at = params if second_order else jax.lax.stop_gradient(params)
            gradient, value, oracle_state, alive = estimate(state, at, gradient_keys)
            gradient, value, alive = keep((gradient, value, alive))
        updates, opt_state = tx.update(gradient, state.opt_state, params, key=update_keys, value=value, explore=explore)
        log_prob = None
        if explore == "scored":
            opt_state, log_prob = _take_score(opt_state)
        moved = optax.apply_updates(params, updates)
        if objective_batch == "none":
            loss = value
            alive = alive & usable_tasks(moved)
        else:
            # The loss enters as its value plus a linear term: the reverse pass meets its gradient, already checked, and
            # never the inside of a loss that overflowed.
            here = jax.lax.stop_gradient(moved)
            loss, slope = jax.vmap(objective_at)(task, here, oracle_state, (gradient_keys, loss_keys))
            alive = alive & usable_tasks((loss, slope, here))
            slope = select_tasks(alive, slope, jax.tree.map(jnp.zeros_like, slope))
            loss, slope, alive = keep((loss, slope, alive))
            known = (slope, jnp.where(alive, loss, 0.0)) if shares else None
        moved = select_tasks(alive, moved, params)
        if objective_batch != "none" and differentiable:
            offset = jax.tree.map(lambda new: new - jax.lax.stop_gradient(new), moved)
            loss = jnp.where(alive, loss + _inner(slope, offset), jnp.inf)
        else:
            loss = jnp.where(alive, jax.lax.stop_gradient(loss), jnp.inf)
        update_norm = jnp.where(alive, jax.lax.stop_gradient(task_norm(updates)), 0.0)
        state = UnrollState(
            params=moved,
            opt_state=opt_state,
            oracle_state=oracle_state,
            step=state.step + 1,
            key=state.key,
            alive=alive,
            initial_loss=state.initial_loss,
        )
        return (state, known), (loss, alive, update_norm, log_prob)

    # Drawn in one go: a hash inside the scan costs as much as a layer of the network.
    steps = state.step + jnp.arange(length, dtype=jnp.int32)[:, None]  # [length, tasks]
    step_keys = jax.vmap(jax.vmap(jax.random.fold_in), in_axes=(None, 0))(state.key, steps)
    streams = tuple(jax.vmap(jax.vmap(lambda key, i=i: jax.random.fold_in(key, i)))(step_keys) for i in range(3))
    # Recomputing the network in the reverse pass is twice as fast as loading what it would have stored, and takes a
    # sixth of the memory; the task's gradients and the noise are few numbers and stay. Unrolling the scan is slower.
    policy = jax.checkpoint_policies.save_only_these_names(KEPT)
    body = jax.checkpoint(step, prevent_cse=False, policy=policy)
    known = None
    if shares:
        gradient, value, _, alive = estimate(state, jax.lax.stop_gradient(state.params), state.key)
        state, known = state._replace(alive=alive), (gradient, value)
    (state, _), (loss, alive, update_norm, log_prob) = _scan_in_segments(
        body, (state, known), streams, length, segment_lengths
    )
    return state, Trace(loss, alive, update_norm, state.initial_loss, log_prob)


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


def _take_score(opt_state: PyTree) -> tuple[PyTree, jax.Array]:
    """Takes `Scored` out of an optimizer's state: the state as it was laid out before, and log p, [tasks]."""

    def is_scored(node: Any) -> bool:
        return isinstance(node, Scored)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_scored)
    scores = [node.log_prob.reshape(node.log_prob.shape[0]) for node in nodes if is_scored(node)]
    if not scores:
        raise ValueError("the optimizer's steps have no density; set its option noise=per_coordinate.")
    bare = jax.tree.map(lambda node: node.state if is_scored(node) else node, opt_state, is_leaf=is_scored)
    return bare, jnp.sum(jnp.stack(scores), axis=0)


def _inner(a: PyTree, b: PyTree) -> jax.Array:
    products = [
        jnp.sum((x * y).reshape(x.shape[0], -1), axis=1)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return sum(products[1:], products[0])
