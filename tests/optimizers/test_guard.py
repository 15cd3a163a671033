"""The guard: what it does to optimizers that go wrong, and nothing to those that do not."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metaopt
from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import controller, momentum, schedule_free_adamw
from metaopt.optimizers.guard import AGAIN, FIRST, GOOD, guard, guarded
from metaopt.tasks import quadratic, rosenbrock
from metaopt.trees import LARGEST
from metaopt.types import Optimizer
from tests.toys import in_x64

PARAMS: Any = {"w": jnp.linspace(0.5, 1.5, 6).reshape(3, 2), "b": jnp.array([-1.0, 2.0])}


class Counted(NamedTuple):
    count: Any
    seen: Any  # the sum of all gradients


def faulty(at: int | None, factor: Any, every: bool = True) -> optax.GradientTransformationExtraArgs:
    """Gradient descent at .05 whose step is `factor` times as long from its own step `at` on."""

    def init(params: Any) -> Counted:
        return Counted(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        wrong = False if at is None else (state.count >= at if every else state.count == at)
        scale = jnp.where(wrong, jnp.float32(factor), 1.0)
        steps = jax.tree.map(lambda leaf: (-0.05 * scale * leaf).astype(leaf.dtype), updates)
        return steps, Counted(state.count + 1, jax.tree.map(jnp.add, state.seen, updates))

    return optax.GradientTransformationExtraArgs(init, update)


def loss(params: Any) -> jax.Array:
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(params)]
    return sum(squares, jnp.float32(0.0))


def run(tx: Any, steps: int, params: Any = PARAMS, tell: bool = True, spoilt: Any = (), of: Any = loss) -> Any:
    """(parameters, state, losses) after a scan; the gradients of the steps `spoilt` are nan."""

    def body(carry: Any, step: Any) -> Any:
        params, state = carry
        value, gradient = jax.value_and_grad(of)(params)
        nan = jnp.isin(step, jnp.asarray(spoilt, jnp.int32))
        gradient = jax.tree.map(lambda leaf: jnp.where(nan, jnp.nan, leaf), gradient)
        updates, state = tx.update(gradient, state, params, **({"value": value} if tell else {}))
        return (optax.apply_updates(params, updates), state), value

    start = (params, tx.init(params))
    (params, state), losses = jax.jit(lambda start: jax.lax.scan(body, start, jnp.arange(steps)))(start)
    return params, state, np.append(losses, of(params))


def counts(state: Any) -> tuple[int, int]:
    return tuple(int(optax.tree.get(state, name)) for name in ("steps_guarded", "times_tripped"))  # type: ignore


# ----- optimizers that go wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "tell"), [(np.nan, True), (np.inf, False), (1e3, False)])
def test_a_step_that_is_not_finite_or_explodes_is_not_made(factor: float, tell: bool) -> None:
    tx = faulty(5, factor)
    bare = run(tx, 40)[2]
    assert not bare[-1] <= bare[0]
    params, state, losses = run(guard(tx), 40, tell=tell)
    assert np.isfinite(losses).all() and losses[-1] < losses[5] and losses.max() == losses[0]
    # Five steps of its own, one trip and nine of NadamW; then five, one and nineteen more.
    assert counts(state) == (FIRST + 2 * FIRST, 2)


def test_an_exploding_loss_is_taken_back_where_it_is_told() -> None:
    uphill = faulty(3, -4.0)
    params, state, losses = run(guard(uphill), 200)
    assert losses[-1] < losses[0] and losses.max() < 5 * losses[0] and counts(state)[1] > 1
    assert not run(guard(uphill), 200, tell=False)[2][-1] < losses[0]


def lengths(tx: Any, values: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lengths of steps on gradients of 1 where such losses are told, the bounds on them, how often it tripped."""

    def body(state: Any, value: Any) -> Any:
        steps, state = tx.update({"w": jnp.ones(3)}, state, {"w": jnp.ones(3)}, value=value)
        return state, (jnp.sqrt(jnp.mean(jnp.square(steps["w"]))), state.longest, state.times_tripped)

    made = jax.jit(lambda values: jax.lax.scan(body, tx.init({"w": jnp.ones(3)}), values)[1])(jnp.asarray(values))
    return tuple(np.asarray(leaf) for leaf in made)  # type: ignore


def test_after_a_step_that_raised_the_loss_at_once_its_own_are_half_as_long_and_grow_again() -> None:
    tx, leap, climb = guard(faulty(None, 1.0)), [1.0, 0.9, 0.9, 4.0], [1.0, 1.5, 1.9, 2.1]
    steps = lengths(tx, [*leap, *[0.9] * (FIRST + 3 * AGAIN)])[0]
    own = steps[3 + FIRST :]
    np.testing.assert_allclose(steps[:4], 0.05, rtol=1e-6)  # the last of these takes the one before it back
    np.testing.assert_allclose(own[:AGAIN], 0.025 * 2 ** (np.arange(AGAIN) / AGAIN), rtol=1e-3)
    np.testing.assert_allclose(own[AGAIN + 1 :], 0.05, rtol=1e-6)
    # Who climbs step by step made none that was too long; nor may he have whose batch has no gradient.
    for values in (climb, [1.0, 0.9, np.nan], [1.0, 0.9, np.inf], [np.nan]):
        steps, bounds, _ = lengths(tx, [*values, *[0.9] * (FIRST + 3)])
        assert (bounds == np.float32(LARGEST)).all()
        np.testing.assert_allclose(steps[-2:], 0.05, rtol=1e-6)


def test_the_bound_on_its_own_steps_only_falls_where_they_do_harm() -> None:
    tx, between = guard(faulty(None, 1.0)), FIRST + AGAIN // 2
    bounds = lengths(tx, [1.0, 0.9, 4.0, *[0.9] * between, 4.0, *[0.9] * 9])[1]
    np.testing.assert_allclose(bounds[2], 0.025, rtol=1e-6)
    after = bounds[3 + between]
    assert 0.012 < after < 0.025  # half of one that was itself shortened
    assert bounds[1 + FIRST] == bounds[2] and after == bounds[-1]  # while NadamW's are made it does not grow


@pytest.mark.parametrize("factor", [1e3, 1e20, 1e30])
def test_what_explodes_trips_it_under_a_bound_too(factor: float) -> None:
    tx = guard(faulty(7, factor))
    for values in ([0.9] * 60, [1.0, 0.9, 4.0, *[0.9] * 57]):
        steps, _, trips = lengths(tx, values)
        assert steps[:2].min() > 0.04 and steps.max() <= 0.1 and trips[-1] == 3


def test_a_point_without_a_loss_is_left_by_the_step_that_led_there() -> None:
    def root(params: Any) -> jax.Array:  # steep at 0, beyond which there is none
        return jnp.sum(jnp.sqrt(params))

    tx, start = faulty(None, 1.0), jnp.array([0.3, 0.5])
    assert np.isnan(run(tx, 60, start, of=root)[2][-20:]).all()
    state, losses = run(guard(tx), 60, start, of=root)[1:]
    astray = np.isnan(losses)
    assert astray.any() and not (astray[1:] & astray[:-1]).any() and counts(state)[1] >= 1
    assert np.nanmax(losses) == losses[0] > 2 * losses[~astray][-1]


def test_a_gradient_that_is_not_finite_reaches_no_state_and_the_step_before_is_taken_back() -> None:
    tx = guard(faulty(None, 1.0))
    losses = run(tx, 4, tell=False)[2]
    params, state, spoilt = run(tx, 5, tell=False, spoilt=[4])
    np.testing.assert_allclose(loss(params), losses[3], rtol=1e-6)
    assert counts(state) == (1, 1) and int(state.inner.count) == 0  # begins anew
    _, state, _ = run(tx, 40, tell=False, spoilt=[4, 7, 20])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert counts(run(tx, 5, tell=False, spoilt=range(5))[1]) == (5, 1)  # and where it is the first, nothing moves
    assert np.isfinite(run(tx, 5, tell=False, spoilt=range(5))[2]).all()


def test_a_schedule_goes_on_where_it_would_have_been() -> None:
    """One bad batch at step 80 of 100 does not bring back the rate of step 0."""
    slopes = lambda params: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))  # noqa: E731
    for tx in (
        optax.sgd(optax.cosine_decay_schedule(0.1, 100)),
        metaopt.load("sgd:learning_rate=0.1,schedule=cosine", horizon=100),
    ):
        plain, spoilt = ([run(t, steps, of=slopes, spoilt=at)[0] for steps in (95, 96)]
                         for t, at in ((tx, ()), (guard(tx), [80])))  # fmt: skip
        last = [float(after["b"][0] - before["b"][0]) for before, after in (plain, spoilt)]
        assert last[1] == pytest.approx(last[0], rel=1e-3) and -0.001 < last[0] < 0
    state = run(guard(optax.sgd(optax.cosine_decay_schedule(0.1, 100))), 95, of=slopes, spoilt=[80])[1]
    assert counts(state) == (FIRST, 1) and int(optax.tree.get(state.inner, "count")) == 95


def test_after_long_good_service_a_trip_costs_no_more_than_the_first() -> None:
    good = GOOD * FIRST
    tx = guard(faulty(None, 1.0))
    state = run(tx, 2 * good + 50, tell=False, spoilt=[0, FIRST + good])[1]
    assert counts(state) == (2 * FIRST, 2)
    state = run(tx, 2 * good + 50, tell=False, spoilt=[0, FIRST + good - 1])[1]
    assert counts(state) == (3 * FIRST, 2)


@pytest.mark.parametrize("own", [1, 30])
def test_nadamw_goes_no_farther_than_the_optimizer_did(own: int) -> None:
    small = optax.chain(optax.sgd(1e-6), faulty(None, -20.0))  # steps of 1e-6: fine-tuning
    tx = guard(small)
    before = run(tx, own, tell=False)[0]
    after = run(tx, own + FIRST, tell=False, spoilt=[own])[0]
    moved = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    assert 0 < moved < 1e-4


# ----- optimizers that do not -----------------------------------------------------------------------------------------


def healthy() -> dict[str, optax.GradientTransformation]:
    made = controller(hidden_size=4)
    learned = made.bind(made.init(jax.random.key(0)))
    return {"adam": optax.adam(0.05), "networks_rl": metaopt.load("networks_rl"), "controller": learned}


@pytest.mark.parametrize("name", ["adam", "networks_rl", "controller"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_steps_of_what_goes_well_are_bitwise_its_own(name: str, dtype: str) -> None:
    """Compiled as users' programs are: the emitters that tests are compiled with fuse the two otherwise."""
    tx = optax.with_extra_args_support(healthy()[name])
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    compiled = functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})
    sides: list[Any] = [(params, tx.init(params), compiled(tx.update))]
    watched = guard(tx)
    sides.append((params, watched.init(params), compiled(watched.update)))
    for _ in range(30):
        for index, (params, state, update) in enumerate(sides):
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = update(gradient, state, params, value=value)
            sides[index] = (optax.apply_updates(params, updates), state, update)
    jax.tree.map(np.testing.assert_array_equal, sides[0][0], sides[1][0])
    jax.tree.map(np.testing.assert_array_equal, sides[0][1], sides[1][1].inner)
    assert counts(sides[1][1]) == (0, 0)


def test_noise_in_the_loss_is_no_explosion() -> None:
    def body(state: Any, key: Any) -> Any:
        value = jax.random.normal(key)  # about zero, where twice the first says nothing
        return tx.update(gradient, state, gradient, value=value)[1], None

    tx, gradient = guard(optax.sgd(0.01)), {"w": jnp.ones(3)}
    keys = jax.random.split(jax.random.key(0), 1000)
    state = jax.jit(lambda state: jax.lax.scan(body, state, keys)[0])(tx.init(gradient))
    assert counts(state)[0] < 50


# ----- around it ------------------------------------------------------------------------------------------------------


def test_under_vmap_each_task_is_watched_by_itself() -> None:
    def one(factor: jax.Array) -> Any:
        tx = guard(faulty(5, factor))
        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(8):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    both, states = jax.jit(jax.vmap(one))(jnp.array([1.0, 1e6]))
    assert states.times_tripped.tolist() == [0, 1] and states.steps_guarded.tolist() == [0, 3]
    for index, factor in enumerate((1.0, 1e6)):
        alone, _ = jax.jit(one)(jnp.float32(factor))
        jax.tree.map(lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-6), both, alone)


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: optax.chain(optax.clip_by_global_norm(1e3), tx, optax.scale(0.5)),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.masked(tx, {"w": True, "b": False}),
        lambda tx: optax.apply_if_finite(tx, 3),
    ],
    ids=["chain", "MultiSteps", "masked", "apply_if_finite"],
)
def test_it_stands_within_other_transformations(around: Any) -> None:
    tx = around(guard(faulty(3, np.nan)))
    params, state, losses = run(tx, 30, tell=not isinstance(tx, optax.MultiSteps))
    assert np.isfinite(losses).all() and counts(state)[1] >= 1


def test_inject_hyperparams_and_nnx() -> None:
    tx = optax.inject_hyperparams(lambda factor: guard(faulty(3, factor)))(factor=np.nan)
    assert counts(run(tx, 10)[1]) == (7, 1)
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, guard(faulty(1, np.nan)), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        value, gradients = nnx.value_and_grad(lambda model: jnp.sum(model(jnp.ones(2)) ** 2))(model)
        optimizer.update(model, gradients, value=value)
        return value

    losses = [float(step(model, optimizer)) for _ in range(15)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert int(optax.tree.get(optimizer.opt_state, "times_tripped")[...]) == 2  # at steps 1 and 12


@pytest.mark.parametrize("setting", ["x64", "strict promotion", "donation", "no parameters"])
def test_in_jaxs_other_modes(setting: str) -> None:
    tx = guard(faulty(2, np.nan))
    wanted = run(tx, 6, tell=False)[0]
    settings = {"x64": in_x64, "strict promotion": lambda: jax.numpy_dtype_promotion("strict")}
    with settings[setting]() if setting in settings else jax.disable_jit(False):
        update = jax.jit(tx.update, donate_argnums=1)
        params, state = PARAMS, tx.init(PARAMS)
        first = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
        for _ in range(6):
            gradient = jax.tree.map(lambda leaf: jnp.asarray(2, leaf.dtype) * leaf, params)
            updates, state = update(gradient, state, None if setting == "no parameters" else params)
            params = optax.apply_updates(params, updates)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == first
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), params, wanted)


# ----- as an optimizer of the inner loop ------------------------------------------------------------------------------


def test_a_guarded_optimizer_is_one() -> None:
    plain = momentum()
    assert guarded(plain) is guarded(plain)  # what is compiled hangs on it
    judged = guarded(schedule_free_adamw())
    tx = judged.bind(judged.init(jax.random.key(0)))
    assert judged.eval_params is not None
    np.testing.assert_allclose(judged.eval_params(tx.init(PARAMS), PARAMS)["w"], PARAMS["w"], rtol=1e-6)
    told = guarded(metaopt.OPTIMIZERS["adam"](schedule="cosine"))
    assert told.at_horizon is not None and told.at_horizon(5) is told.at_horizon(5)


@pytest.mark.parametrize(("family", "trips"), [(rosenbrock(), True), (quadratic(), False)], ids=["rosenbrock", "bowl"])
def test_what_climbs_in_the_inner_loop_ends_lower_than_it_began(family: Any, trips: bool) -> None:
    climbs = Optimizer(
        init=lambda key: jnp.float32(0.05 if trips else -0.05),
        bind=lambda rate: optax.with_extra_args_support(
            optax.stateless(lambda g, _: jax.tree.map(lambda leaf: rate * leaf / (1e-6 + optax.global_norm(g)), g))
        ),
    )
    optimizer = guarded(climbs)
    tx = bind_tasks(optimizer, optimizer.init(jax.random.key(0)))

    @jax.jit
    def go(keys: Any) -> Any:
        task, state = reset(tx, family, keys)
        return unroll(tx, family, task, state, length=300)

    state, trace = go(jax.random.split(jax.random.key(0), 8))
    assert (trace.loss[-1] < trace.initial_loss).all() and (trace.loss < 10 * trace.initial_loss).all()
    assert bool((state.opt_state.times_tripped > 0).any()) == trips
