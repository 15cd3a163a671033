"""The inner loop's one step, and what it begins from. Arrays have a leading task axis; families are vmapped here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from metaopt.inner.binding import Bound, as_set
from metaopt.oracles.gradient import minibatch
from metaopt.tasks.checks import check_family
from metaopt.tasks.hyper import with_hyper
from metaopt.trees import LARGEST, inner_product, save_residuals, select_tasks, task_norm, usable_tasks, usual_rules
from metaopt.types import (
    Estimate,
    Explore,
    Key,
    OracleState,
    Params,
    PyTree,
    Scored,
    Split,
    Task,
    TaskFamily,
    UnrollState,
)

StateGradient = Literal["full", "stopped"]
# Where f(θ_t) of the objective is taken: `fresh` is the estimate that the next step is taken from, at no cost; the
# training or validation data in full cost a second evaluation a step.
ObjectiveBatch = Literal["fresh", "full", "validation"]
_SPLITS: dict[str, Split] = {"full": "train", "validation": "validation"}


def check_objective_batch(name: str) -> None:
    """Refuses what is no `ObjectiveBatch`.

    Raises:
      ValueError: with what to take instead.
    """
    if name in ("same", "none"):
        raise ValueError(
            f"`objective_batch={name}` is gone: a step's loss and the next step's gradient are one estimate now; "
            "leave it out, or take full."
        )
    if name not in get_args(ObjectiveBatch):
        raise ValueError(f"`objective_batch` is {name!r}; give one of {', '.join(get_args(ObjectiveBatch))}.")


# ----- estimates ------------------------------------------------------------------------------------------------------


def _estimates(
    family: TaskFamily, task: Task, params: Params, oracle_state: OracleState, keys: Key, free: PyTree = None
) -> tuple[Estimate, OracleState]:
    """The oracle's word on every task, at `params` and under free hyperparameters, if any, both [tasks, ...]."""
    oracle = family.oracle or minibatch()

    def one(
        task: Task, params: Params, oracle_state: OracleState, key: Key, free: PyTree
    ) -> tuple[Estimate, OracleState]:
        return oracle.estimate(with_hyper(family, free), task, params, oracle_state, key)

    return jax.vmap(one)(task, params, oracle_state, keys, free)


def _free_of_each(tx: optax.GradientTransformationExtraArgs, family: TaskFamily, num_tasks: int) -> PyTree:
    """[tasks, ...] a copy of the family's hyperparameters in φ for every task; None where φ holds none of its."""
    if not isinstance(tx, Bound) or as_set(tx, family) is family:
        return None
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_tasks, *jnp.shape(leaf))), tx.hyper)


# (alive [tasks], an estimate, what moves) -> the estimate, differentiable in what moves
Turn = Callable[[jax.Array, Estimate, dict[str, PyTree]], Estimate]


def _turning(
    run: Callable[[dict[str, PyTree]], tuple[Estimate, OracleState]], moving: dict[str, PyTree]
) -> tuple[Estimate, OracleState, Turn]:
    """`run(moving)`, and how its estimate turns with `moving`, leaves [tasks, ...], of which the dead are cut off.

    Where a task dies little may be finite, and a derivative that is not would make nan of all it meets: of θ before,
    and of hyperparameters that the tasks share.
    """
    if not moving:
        return *run({}), lambda alive, found, live: found

    def numbers(moving: dict[str, PyTree]) -> tuple[Any, tuple[Estimate, OracleState]]:
        found, after = run(moving)
        return (found.gradient, found.value), (found, after)

    _, slope, (found, after) = jax.linearize(numbers, jax.lax.stop_gradient(moving), has_aux=True)

    def turn(alive: jax.Array, found: Estimate, live: dict[str, PyTree]) -> Estimate:
        still = jax.tree.map(jnp.zeros_like, live)
        gradient, value = found.gradient, found.value
        for name, leaves in live.items():
            offset = jax.tree.map(lambda leaf: leaf - jax.lax.stop_gradient(leaf), leaves)
            by_gradient, by_value = slope({**still, name: select_tasks(alive, offset, still[name])})
            gradient = jax.tree.map(jnp.add, gradient, by_gradient)
            if value is not None:  # whose slope in θ is the estimate's gradient, whatever the oracle makes it of
                value = value + by_value if name == "free" else _with_slope(value, found.gradient, leaves)
        return select_tasks(alive, found._replace(gradient=gradient, value=value), found)

    return found, after, turn


def _usable(estimate: Estimate) -> jax.Array:
    """[tasks] bool; a value that is not there cannot be at fault."""
    return usable_tasks((estimate.gradient, estimate.value))


def _of_the_alive(alive: jax.Array, estimate: Estimate) -> Estimate:
    """Zeros for the dead: a zero times infinity anywhere in the reverse pass would be nan for every task."""
    return select_tasks(alive, estimate, jax.tree.map(jnp.zeros_like, estimate))


class StepKeys(NamedTuple):
    """What a step draws from; [tasks], or [length, tasks]."""

    update: Key
    estimate: Key  # of f at the point that the step arrives at


def step_keys(key: Key, first: jax.Array, length: int) -> StepKeys:
    """[length, tasks] the keys of the steps from `first` [tasks] on; those of two windows equal those of one."""
    # Drawn in one go: a hash inside the scan costs as much as a layer of the network.
    steps = first[None] + jnp.arange(length + 1, dtype=jnp.int32)[:, None]
    keys = jax.vmap(jax.vmap(jax.random.fold_in), in_axes=(None, 0))(key, steps)

    def stream(keys: Key, index: int) -> Key:
        return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, index)))(keys)

    return StepKeys(update=stream(keys[:-1], 1), estimate=stream(keys[1:], 0))


# ----- the beginning --------------------------------------------------------------------------------------------------


def lower_bounds(family: TaskFamily, task: Task, num_tasks: int, dtype: Any) -> jax.Array:
    """[tasks] what no loss of a task falls below; nan where it is not known."""
    bound = family.lower_bound
    if bound is None:
        return jnp.full(num_tasks, jnp.nan, dtype)
    if callable(bound):
        return jax.vmap(lambda task: jnp.asarray(bound(task), dtype).reshape(()), axis_size=num_tasks)(task)
    return jnp.full(num_tasks, bound, dtype)


@usual_rules()
def reset(tx: optax.GradientTransformationExtraArgs, family: TaskFamily, keys: Key) -> tuple[Task, UnrollState]:
    """Draws tasks and their starting points, and the estimate there.

    Args:
      tx: a task-batched transformation, see `bind_tasks`.
      keys: [tasks] typed keys; a task's key decides the task, its start, and every minibatch and noise draw of its run.

    Raises:
      ValueError: the family's loss is no real scalar, or its parameters are no real arrays.
    """
    check_family(family)
    family = as_set(tx, family)
    streams = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
    task_keys, init_keys, run_keys, loss_keys = (streams[:, i] for i in range(4))
    task = jax.vmap(family.sample, in_axes=(0, None))(task_keys, family.data)
    params = jax.vmap(family.init)(init_keys, task)
    oracle = family.oracle or minibatch()
    oracle_state = jax.vmap(lambda task, params, key: oracle.init(family, task, params, key))(task, params, loss_keys)

    def initial_loss(task: Task, params: Params, key: Key) -> jax.Array:
        # A batch of its own: f(θ_0) as a divisor would be biased by one shared with the first step.
        return family.loss(params, task, family.batch(key, task, family.data))

    num_tasks = keys.shape[0]
    loss, step = jax.vmap(initial_loss)(task, params, loss_keys), jnp.zeros(num_tasks, jnp.int32)
    first = step_keys(run_keys, step - 1, 1).estimate[0]
    estimate, oracle_state = _estimates(family, task, params, oracle_state, first)
    # An f without a value has none at θ_0 either.
    alive = _usable(estimate) & ((jnp.abs(loss) <= LARGEST) if estimate.value is not None else True)
    state = UnrollState(
        params=params,
        opt_state=tx.init(params),
        oracle_state=oracle_state,
        estimate=_of_the_alive(alive, estimate),
        step=step,
        key=run_keys,
        alive=alive,
        initial_loss=loss,
        lower_bound=lower_bounds(family, task, num_tasks, loss.dtype),
    )
    return task, state


def estimated_anew(
    tx: optax.GradientTransformationExtraArgs, family: TaskFamily, task: Task, state: UnrollState
) -> UnrollState:
    """The state with the estimate of a family whose hyperparameters are φ's, which may have moved since.

    It is that of the same batch, and differentiable in them. Other families' estimates stay as they are.
    """
    free = _free_of_each(tx, family, state.alive.shape[0])
    if free is None:
        return state
    keys, here = step_keys(state.key, state.step - 1, 1).estimate[0], jax.lax.stop_gradient(state.params)
    moving = {"free": free}
    estimate, _, turn = _turning(lambda at: _estimates(family, task, here, state.oracle_state, keys, **at), moving)
    alive = state.alive & _usable(estimate)
    return state._replace(estimate=turn(alive, _of_the_alive(alive, estimate), moving), alive=alive)


# ----- one step -------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """A step as computed, before anything is masked; what `observe` is shown."""

    before: UnrollState
    updates: Params  # [tasks, ...] g_t
    moved: Params  # [tasks, ...] θ_t + g_t
    estimate: Estimate  # of f there


class Record(NamedTuple):
    """What one step reports, [tasks]; see `Trace`."""

    loss: jax.Array
    alive: jax.Array
    update_norm: jax.Array
    log_prob: jax.Array | None
    info: dict[str, jax.Array]
    observed: PyTree


@usual_rules()
def step(
    tx: optax.GradientTransformationExtraArgs,
    family: TaskFamily,
    task: Task,
    state: UnrollState,
    keys: StepKeys | None = None,
    *,
    explore: Explore = False,
    state_gradient: StateGradient = "full",
    second_order: bool = False,
    objective_batch: ObjectiveBatch = "fresh",
    observe: Callable[[Seen], PyTree] | None = None,
) -> tuple[UnrollState, Record]:
    """update → θ_{t+1} → estimate there, which is the objective's term and what the next step is taken from.

    A task dies at its first loss, gradient or parameter that is not finite (or above 1e15): its parameters freeze, its
    loss reads infinity, and nothing it does reaches a gradient. The options are those of `unroll`.

    Args:
      tx: a task-batched transformation, see `bind_tasks`.
      keys: [tasks]; default: those of the state's own step, `step_keys`.
      observe: is shown the step as computed; what it returns is in the record.
    """
    if keys is None:
        keys = StepKeys(*(stream[0] for stream in step_keys(state.key, state.step, 1)))
    params, known = state.params, state.estimate
    free = _free_of_each(tx, family, state.alive.shape[0])
    if state_gradient == "stopped":
        params, known = jax.lax.stop_gradient((params, known))
    updates, opt_state = tx.update(
        known.gradient, state.opt_state, params, key=keys.update, value=known.value, explore=explore
    )
    log_prob = None
    if explore == "scored":
        opt_state, log_prob = _take_score(opt_state)
    moved = optax.apply_updates(params, updates)
    # Losses and gradients are taken at a point that counts as a constant, and `_with_slope` puts the derivative back:
    # the reverse pass meets numbers that were checked, and never the inside of a loss that overflowed.
    here = jax.lax.stop_gradient(moved)
    sound = usable_tasks(here)
    # What the estimate is differentiated in, beside f itself in θ.
    moving = {} if free is None else {"free": free}
    moving |= {"params": here} if second_order else {}

    def estimated(at: dict[str, PyTree]) -> tuple[Estimate, OracleState]:
        return _estimates(family, task, at.get("params", here), state.oracle_state, keys.estimate, at.get("free"))

    found, oracle_state, turn = _turning(estimated, moving)
    alive = state.alive & sound & _usable(found)
    elsewhere, judged = None, moved
    if objective_batch != "fresh":
        judged = tx.at(opt_state, moved) if isinstance(tx, Bound) and tx.at is not None else moved
        elsewhere = _on_split(as_set(tx, family), task, jax.lax.stop_gradient(judged), _SPLITS[objective_batch])
        alive = alive & _usable(elsewhere)
        elsewhere = save_residuals(_of_the_alive(alive, elsewhere))
    estimate, alive = save_residuals((_of_the_alive(alive, found), alive))
    kept = select_tasks(alive, moved, params)
    at = kept if judged is moved else select_tasks(alive, judged, params)
    turned = turn(alive, estimate, {**moving, "params": kept} if second_order else moving)
    slope, value = estimate.gradient, turned.value
    if elsewhere is not None:
        slope, value, _ = elsewhere
    # Without a value 0, which over devices varies as `alive` does: its slope does, and jax 0.7 wants them alike.
    loss = jnp.where(alive, jnp.zeros_like(state.initial_loss), 0.0) if value is None else value
    if elsewhere is not None or not second_order or value is None:  # else it has its slope
        loss = _with_slope(loss, slope, at)
    after = UnrollState(
        params=kept,
        opt_state=opt_state,
        oracle_state=oracle_state,
        estimate=turned,
        step=state.step + 1,
        key=state.key,
        alive=alive,
        initial_loss=state.initial_loss,
        lower_bound=state.lower_bound,
    )
    record = Record(
        loss=jnp.where(alive, loss, jnp.inf),
        alive=alive,
        update_norm=jnp.where(alive, jax.lax.stop_gradient(task_norm(updates)), 0.0),
        log_prob=log_prob,
        info=found.info,
        observed=None if observe is None else observe(Seen(state, updates, moved, found)),
    )
    return after, record


@jax.custom_jvp
def _with_slope(value: jax.Array, slope: Params, params: Params) -> jax.Array:
    """`value` [tasks], whose derivative in `params` is `slope`; as a value it costs nothing."""
    return value


@_with_slope.defjvp
def _with_slope_jvp(primals: tuple[Any, Any, Any], tangents: tuple[Any, Any, Any]) -> tuple[jax.Array, jax.Array]:
    value, slope, _ = primals
    return value, inner_product(slope, tangents[2]).astype(value.dtype)  # losses may be wider than θ


def _on_split(family: TaskFamily, task: Task, params: Params, split: Split) -> Estimate:
    """The loss on all of a split, and its gradient."""
    if split not in family.splits:
        raise ValueError(
            f"`objective_batch={split}` needs a {split} split, and {family.name} has {', '.join(family.splits)} alone."
        )

    def one(task: Task, params: Params) -> tuple[jax.Array, Params]:
        return jax.value_and_grad(family.judged_loss)(params, task, family.eval_batch(task, family.data, split))

    value, gradient = jax.vmap(one)(task, params)
    return Estimate(gradient, value)


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
