"""A guard around an optimizer: where its own step does harm, calibrated NadamW makes some steps in its place."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.optimizers.placement import vary_with
from metaopt.optimizers.schedules import Schedule
from metaopt.optimizers.untuned import nadamw_calibrated
from metaopt.trees import LARGEST, usual_rules
from metaopt.types import Optimizer, PyTree

# Without its decay, which is for who trains to choose (`weight_decay` and `mask` of `metaopt.load`).
_FALLBACK = nadamw_calibrated(schedule="constant", weight_decay=0.0)
RATE = 0.1  # its learning rate, and so the longest that its steps are, in RMS a coordinate
_PLATEAU = optax.contrib.ReduceLROnPlateauState
# Warm-up and cosine over each run of its steps, whose length is known where that of the training is not.
_PIECES = 100
_SHAPE = Schedule("warmup_cosine", steps=_PIECES)
# A step explodes when it is so many times as long as the running scale, and longer than calibrated NadamW's longest.
# Learned steps, first small, grow by up to 10 within a few steps on tasks that go well; from one to the next by 2.
STEP_FACTOR = 10.0
# A loss explodes when it is |f| above f, the loss where the optimizer began: at twice f, and failed is ten times f. So
# many mean falls are added, for noise: an explosion has none, and those of white noise are .56 of its deviation.
NOISE_FACTOR = 8.0
MEMORY = 10  # steps of the running means
FIRST = 10  # NadamW's steps after the first trip
# Their number doubles with each trip, unless the optimizer's own steps since the last were so many times as many; then
# it is FIRST again. A rare fault costs less than a twentieth of all steps, and what always fails is soon NadamW.
GOOD = 20
# A step that alone raised the loss by |f| was too long: the optimizer's own are shortened to half of it from then on, a
# bound that doubles after so many. For one that begins anew grows again within a few steps to the length that did the
# harm, and where the loss is steep a single step is too much. A loss or gradient that is not finite is no reason: it
# may be the batch's.
AGAIN = 20


class GuardState(NamedTuple):
    """Three numbers a parameter beside the guarded optimizer's state, and a few in all."""

    inner: PyTree  # the guarded optimizer's
    fallback: PyTree  # NadamW's: two moments
    last: PyTree  # the step that was made last, to be taken back
    steps_guarded: jax.Array  # int32: steps that were not the optimizer's own
    times_tripped: jax.Array  # int32
    left: jax.Array  # int32: NadamW's steps that are still to come
    length: jax.Array  # int32: how many they were to be
    since: jax.Array  # int32: the optimizer's own steps since it began, or began anew
    log_scale: jax.Array  # float32: running mean of log RMS of the optimizer's steps
    longest: jax.Array  # float32: the RMS to which its steps are shortened
    # [4] float32: the loss where the optimizer began, `LARGEST` before; the last one; the mean fall; 1 once it exploded
    loss: jax.Array


def guard(transformation: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The transformation, with calibrated NadamW's steps for its own where and while it goes wrong.

    It trips when, before a step is made,

    * the gradient or the loss is not finite (or above 1e15): the step that led there is taken back, and neither the
      optimizer nor NadamW sees that gradient;
    * the loss is twice that at which the optimizer began, where `update(..., value=loss)` tells it: the step is taken
      back too;
    * its step is not finite, or is 10 times as long as the running scale of its own and longer than NadamW's: it is not
      made.

    That step is the first of 10 that are not its own. The others are NadamW's, with warm-up and cosine, at its
    calibrated rate or the scale of the optimizer's own steps, whichever is less: what was set for small networks might
    ruin a large one that is nearly trained. After them the optimizer begins anew, from its initial state: it was
    meta-trained from there, and the state that it went wrong in is a part of what went wrong. What alone goes on with
    the run are learning rates that follow optax's `scale_by_schedule` or `reduce_on_plateau`, as those of `load` do.
    The next time they are 20 steps, then 40, unless it did well for long.

    Where a single step raised the loss by as much as explodes, the optimizer's own are shortened to half of its length,
    a bound that doubles every 20 of them (`optax.tree.get(state, "longest")`). The optimizer is not told, and shortened
    steps are not counted. A step is taken back exactly where what stands after the guard in a chain scales every step
    alike; under a schedule or weight decay nearly so.

    `optax.tree.get(state, "steps_guarded")` and `"times_tripped"` read the counts from a state, wherever in a chain.
    Until it trips, steps are bitwise the transformation's own. An update takes one to two of optax.adam's more, and
    XLA on CPUs copies the optimizer's state once or twice: an LSTM's, of a hundred numbers a parameter, takes twice as
    long.
    """
    tx, fallback = optax.with_extra_args_support(transformation), _FALLBACK.bind(_FALLBACK.init(jax.random.key(0)))

    @usual_rules()
    def init(params: PyTree) -> GuardState:
        def count() -> jax.Array:  # each a buffer of its own, or the state could not be donated
            return jnp.zeros((), jnp.int32)

        unknown = jnp.asarray([LARGEST, -LARGEST, 0.0, 0.0], jnp.float32)
        numbers = {"log_scale": jnp.log(jnp.float32(RATE)), "longest": jnp.float32(LARGEST), "loss": unknown}
        counts = {name: count() for name in ("steps_guarded", "times_tripped", "left", "length", "since")}
        last = jax.tree.map(jnp.zeros_like, params)
        return vary_with(GuardState(tx.init(params), fallback.init(params), last, **counts, **numbers), params)

    @usual_rules()
    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, *, value: jax.Array | None = None, **extra: Any
    ) -> tuple[PyTree, GuardState]:
        like = updates if params is None else params
        own = state.left == 0  # the optimizer's turn
        sound, loss = _usable((updates, value)), state.loss
        exploded = abrupt = jnp.zeros((), bool)
        if value is not None:
            extra["value"] = value
            value = jnp.asarray(value, jnp.float32).reshape(())
            exploded, abrupt, loss = _watch_loss(loss, value, own, own & (state.since == 0))
        back = ~sound | exploded
        turn = own & ~back
        half = _rms(state.last) / 2
        longest = jnp.where(abrupt & sound & (half > 0), jnp.minimum(half, state.longest), state.longest)

        def step() -> tuple[PyTree, PyTree]:
            steps, after = tx.update(updates, state.inner, params, **extra)
            return vary_with((_as(steps, like), after), state)

        def begin() -> tuple[PyTree, PyTree]:
            return vary_with((jax.tree.map(jnp.zeros_like, like), _in_place(tx.init(like), state.inner)), state)

        steps, inner = jax.lax.cond(turn, step, begin)
        rms, scale = _rms(steps), jnp.exp(state.log_scale)
        calm = turn & (rms <= LARGEST) & ((rms <= STEP_FACTOR * scale) | (rms <= RATE))

        def keep() -> tuple[PyTree, PyTree]:
            too_long = rms > longest
            share = jnp.where(too_long, longest / rms, 1.0)
            made = jax.tree.map(lambda leaf: jnp.where(too_long, share * leaf, leaf), steps)
            return vary_with((_as(made, like), state.fallback), state)

        def rescue() -> tuple[PyTree, PyTree]:
            made = state.length - state.left
            moments = _select(made == 1, fallback.init(like), state.fallback)
            ahead, after = fallback.update(updates, moments, like)
            rate = _SHAPE.rate(1.0)(_PIECES * made / jnp.maximum(state.length, 1)) * jnp.minimum(1, scale / RATE)
            ahead = jax.tree.map(lambda leaf: jnp.where(own, 0, rate * leaf), ahead)
            steps = _select(back, jax.tree.map(jnp.negative, state.last), ahead)
            return vary_with((_as(steps, like), _select(own | back, moments, after)), state)

        steps, moments = jax.lax.cond(calm, keep, rescue)
        trips = own & ~calm
        length = jnp.where(state.since >= GOOD * state.length, FIRST, 2 * state.length)
        length = jnp.where(trips, jnp.maximum(length, FIRST), state.length)
        change = (jnp.log(jnp.maximum(rms, 1e-30)) - state.log_scale) / jnp.minimum(state.since + 1, MEMORY)
        return steps, GuardState(
            inner=inner,
            fallback=moments,
            last=jax.tree.map(lambda leaf: jnp.where(back, 0, leaf), steps),
            steps_guarded=state.steps_guarded + ~calm,
            times_tripped=state.times_tripped + trips,
            left=jnp.maximum(jnp.where(trips, length, state.left) - 1, 0),
            length=length,
            since=jnp.where(calm, state.since + 1, 0),
            longest=jnp.minimum(longest * jnp.where(calm, 2 ** (1 / AGAIN), 1.0), LARGEST),
            log_scale=state.log_scale + jnp.where(calm & (rms > 0), change, 0.0),
            loss=jnp.where(sound, loss.at[1].set(jnp.where(back, -LARGEST, loss[1])), state.loss),
        )

    return optax.GradientTransformationExtraArgs(init, update)


@functools.lru_cache(maxsize=128)  # the compiled code hangs on the Optimizer's identity
def guarded(optimizer: Optimizer) -> Optimizer:
    """The same optimizer under `guard`, task by task."""
    told, judged = optimizer.at_horizon, optimizer.eval_params
    return optimizer._replace(
        bind=lambda meta_params: guard(optimizer.bind(meta_params)),
        bind_tasks=None,
        observe=None,
        eval_params=None if judged is None else lambda state, params: judged(state.inner, params),
        at_horizon=None if told is None else lambda horizon: guarded(told(horizon)),
    )


def _watch_loss(
    seen: jax.Array, value: jax.Array, own: jax.Array, begins: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether a loss explodes, whether the last step alone did it, and what is to be known of losses at the next."""
    first, last, fall, before = seen
    above = value > first + jnp.abs(first) + NOISE_FACTOR * fall
    # Who let it explode has to keep below twice the loss it begins anew at, if that is less: or it would climb to the
    # old bar each time. A trip for another reason moves no bar, for noise may be many times a loss that is near 0 by
    # then. Where NadamW has left the loss above the bar, the optimizer has to begin there.
    moves = above | (first == LARGEST) | ((before > 0) & (value < first))
    first, before = jnp.where(begins & moves, value, first), jnp.where(begins, 0.0, before)
    exploded = above & own & ~begins
    fall = fall + (jnp.maximum(last - value, 0.0) - fall) / MEMORY
    seen = jnp.stack([first, value, fall, jnp.where(exploded, 1.0, before)])
    return exploded, exploded & (value - last > jnp.abs(first)), seen


def _inexact(tree: PyTree) -> list[jax.Array]:
    """The leaves that have digits; what an optimizer says of others is its own affair."""
    leaves = jax.tree.leaves(tree)
    return [leaf for leaf in leaves if jnp.issubdtype(getattr(leaf, "dtype", jnp.float32), jnp.inexact)]


def _in_place(new: PyTree, old: PyTree) -> PyTree:
    """A state from the start, but for its schedules of learning rates, one step further than in the old one."""

    def one(begun: Any, held: Any) -> Any:
        if isinstance(held, optax.ScaleByScheduleState):
            return held._replace(count=optax.safe_increment(held.count))
        return held if isinstance(held, _PLATEAU) else begun

    return jax.tree.map(one, new, old, is_leaf=lambda node: isinstance(node, (optax.ScaleByScheduleState, _PLATEAU)))


def _usable(tree: PyTree) -> jax.Array:
    """Whether every entry is finite, and at most `LARGEST` in magnitude."""
    checks = (jnp.all(jnp.abs(leaf).astype(jnp.float32) <= LARGEST) for leaf in _inexact(tree))  # beyond float16's
    return functools.reduce(jnp.logical_and, checks, jnp.ones((), bool))


def _rms(tree: PyTree) -> jax.Array:
    """Root of the mean square over all coordinates, float32."""
    leaves = _inexact(tree)
    squares = [jnp.sum(jnp.square(jnp.abs(leaf).astype(jnp.float32))) for leaf in leaves]
    return jnp.sqrt(sum(squares, jnp.float32(0.0)) / max(sum(leaf.size for leaf in leaves), 1))


def _select(yes: jax.Array, one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(functools.partial(jnp.where, yes), one, other)


def _as(tree: PyTree, like: PyTree) -> PyTree:
    """The leaves in the types of others."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)
