"""Meta-gradients against the truth: finite differences in x64, a plain vmapped scan, windows, devices, families."""

from __future__ import annotations

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metaopt.estimators import Schedule, reparameterised, truncated_backprop
from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import pick_chunk_size, task_mesh
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import lstm, sgd
from metaopt.registry import ESTIMATORS, OBJECTIVES
from tests.toys import GENERAL, bowl, cliff, made, noisy_bowl

T = 5
SMALL = dict(hidden_size=4, num_layers=1)


def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64), tree)


def meta_losses(optimizer, family, keys, explore, meta_params):
    """By objective, all from one run."""
    tx = bind_tasks(optimizer, meta_params)
    task, state = reset(tx, family, keys)
    _, trace = unroll(tx, family, task, state, length=T, explore=explore)
    return {name: jnp.mean(objective()(trace)) for name, objective in OBJECTIVES.items()}


def meta_loss(optimizer, family, keys, objective, explore, meta_params):
    return meta_losses(optimizer, family, keys, explore, meta_params)[objective]


def finite_difference(f, x, direction, h=1e-5):
    flat, unravel = ravel_pytree(x)
    step, _ = ravel_pytree(direction)
    return (f(unravel(flat + h * step)) - f(unravel(flat - h * step))) / (2 * h)


def directional(gradient, direction):
    return jnp.vdot(ravel_pytree(gradient)[0], ravel_pytree(direction)[0])


def random_like(tree, seed):
    flat, unravel = ravel_pytree(tree)
    vector = jax.random.normal(jax.random.key(seed), flat.shape, flat.dtype)
    return unravel(vector / jnp.linalg.norm(vector))


OPTIONS = {
    "recursive": dict(step_rule="recursive", features="all", noise="none", num_layers=2),
    "gradient alone": dict(step_rule="recursive", features="gradient", noise="none"),
    "direct with noise": dict(features="all", noise="per_step"),
    "recursive with noise per coordinate": dict(step_rule="recursive", noise="per_coordinate", alpha="per_coordinate"),
    "printed s, rms": dict(features="all", s_form="printed", normalisation="rms", noise="per_step"),
    "scale free, tensor rms": dict(features="scale_free", normalisation="tensor_rms", noise="per_step"),
}


@pytest.mark.parametrize(
    ("options", "objective"),
    [*(("gradient alone", name) for name in ["mean", "relative", "log", "last"]), ("direct with noise", "last")],
)
def test_second_order_gradient_equals_finite_differences_for_every_objective(x64, options, objective):
    check_against_finite_differences(options, objective)


@pytest.mark.parametrize("options", [name for name in OPTIONS if name != "gradient alone"])
def test_second_order_gradient_equals_finite_differences_for_every_rule(x64, options):
    check_against_finite_differences(options, "mean")


KEY = jax.random.key(3)


@cache
def setting(options):
    """A family, an optimizer, a φ in x64 with nothing special, and φ -> meta-losses on the tasks of `KEY`."""
    family, optimizer = bowl(), lstm(**{**SMALL, **OPTIONS[options]})
    meta_params = wide(jax.jit(optimizer.init)(jax.random.key(0)))
    meta_params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), meta_params)
    keys = jax.random.split(jax.random.fold_in(KEY, 0), 2)
    return family, optimizer, meta_params, jax.jit(partial(meta_losses, optimizer, family, keys, optimizer.explores))


def check_against_finite_differences(options, objective):
    family, optimizer, meta_params, truths = setting(options)
    make = reparameterised if optimizer.explores else truncated_backprop
    estimator = made(make, optimizer, objective, num_tasks=2, horizon=T, second_order=True, num_devices=1)
    gradient, _, metrics = jax.jit(estimator.estimate)(KEY, meta_params, (), (family,))

    def truth(meta_params):
        return truths(meta_params)[objective]

    np.testing.assert_allclose(metrics["meta_loss"], truth(meta_params), rtol=1e-12)
    for seed in range(3):
        direction = random_like(meta_params, seed)
        expected = finite_difference(truth, meta_params, direction)
        np.testing.assert_allclose(directional(gradient, direction), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("options", ["gradient alone", "direct with noise"])
def test_each_task_is_clipped_by_itself(x64, options, chunk_size):
    _, optimizer, meta_params, _ = setting(options)
    family, key = noisy_bowl(), jax.random.key(4)
    make = reparameterised if optimizer.explores else truncated_backprop
    arguments = dict(horizon=T, num_devices=1)
    keys = jax.random.split(jax.random.fold_in(key, 0), 4)
    tx = partial(bind_tasks, optimizer)

    def alone(meta_params, key):
        task, state = reset(tx(meta_params), family, key[None])
        _, trace = unroll(tx(meta_params), family, task, state, length=T, explore=optimizer.explores)
        return jnp.mean(OBJECTIVES["mean"]()(trace))

    each = [ravel_pytree(jax.jit(jax.grad(alone))(meta_params, key))[0] for key in keys]
    norms = np.array([np.linalg.norm(one) for one in each])
    most = float(np.median(norms))  # two are clipped
    estimator = made(make, optimizer, "mean", num_tasks=4, chunk_size=chunk_size, clip_task_norm=most, **arguments)
    gradient, _, _ = jax.jit(estimator.estimate)(key, meta_params, (), (family,))
    expected = sum(min(1.0, most / norm) * one for one, norm in zip(each, norms, strict=True)) / 4
    np.testing.assert_allclose(ravel_pytree(gradient)[0], expected, rtol=1e-8, atol=1e-12)


def test_a_task_with_a_gradient_that_is_not_finite_counts_as_none():
    family = dataclasses.replace(
        bowl(),
        sample=lambda key, data: jnp.where(jax.random.bernoulli(key), 0.1, 1.0),
        init=lambda key, task: jnp.full(1, task),
        loss=lambda params, task, batch: jnp.sum(params**2),
    )
    floor, rate, key = 0.05, 0.1, jax.random.key(4)

    def objective(trace):  # where it is 0 its slope is infinity times 0
        return jnp.sqrt(jnp.maximum(trace.loss[-1] - floor, 0.0))

    optimizer, schedule = sgd(learning_rate=rate), Schedule(8, T, T, num_devices=1)
    meta_params, found = optimizer.init(jax.random.key(0)), {}
    for clip in (None, 100.0):
        estimator = truncated_backprop(optimizer, objective, schedule, second_order=True, clip_task_norm=clip)
        gradient, _, metrics = jax.jit(estimator.estimate)(key, meta_params, (), (family,))
        assert metrics["alive"] == 1
        found[clip] = gradient["learning_rate"]
    keys = jax.random.split(jax.random.fold_in(key, 0), 8)
    low = np.array([family.sample(jax.random.split(one, 4)[0], ()) < 1 for one in keys])
    assert 0 < low.sum() < 8 and np.isnan(found[None])
    last = (1 - 2 * rate) ** (2 * T)  # of x ← (1 - 2η) x from 1
    slope = 2 * T * (1 - 2 * rate) ** (2 * T - 1) * -2 * rate / (2 * np.sqrt(last - floor))  # in log η
    np.testing.assert_allclose(found[100.0], slope * (1 - low.mean()), rtol=1e-5)


@cache
def hand_gradients():
    """(second order, stopped) -> SGD's meta-gradient with every cut written out: a plain loop over the steps."""
    family, keys = bowl(), jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 3)

    def total(log_rate, second_order, stopped):
        def one(key):
            task_key, init_key, _, _ = jax.random.split(key, 4)
            task, value = family.sample(task_key, ()), 0.0
            params = family.init(init_key, task)
            for _ in range(T):
                params = jax.lax.stop_gradient(params) if stopped else params
                gradient = jax.grad(family.loss)(params, task, ())
                gradient = gradient if second_order else jax.lax.stop_gradient(gradient)
                params = params - jnp.exp(log_rate) * gradient
                value += family.loss(params, task, ()) / T
            return value

        return jnp.mean(jax.vmap(one)(keys))

    gradient = jax.jit(jax.grad(total), static_argnums=(1, 2))
    return {(o, s): float(gradient(LOG_RATE, o, s)) for o in (False, True) for s in (False, True)}


LOG_RATE = np.log(0.7)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("stopped", [False, True])
def test_first_order_and_stopped_gradients_equal_their_own_references(x64, stopped, second_order):
    state_gradient = "stopped" if stopped else "full"
    settings = dict(num_tasks=3, horizon=T, num_devices=1)
    estimator = made(truncated_backprop, sgd(), **settings, state_gradient=state_gradient, second_order=second_order)
    phi = {"learning_rate": jnp.asarray(LOG_RATE)}
    gradient, _, _ = jax.jit(estimator.estimate)(jax.random.key(1), phi, (), (bowl(),))
    expected = hand_gradients()[second_order, stopped]
    np.testing.assert_allclose(gradient["learning_rate"], expected, rtol=1e-10)
    # With θ cut at every step there is no path through ∇_t left, so first and second order agree there.
    assert sum(abs(other - expected) > 1e-4 for other in hand_gradients().values()) >= 2


def estimate(make, optimizer, family, *, tasks=8, seed=0, **settings):
    estimator = made(make, optimizer, num_tasks=tasks, **{"horizon": T, "unroll_length": T, **settings})
    meta_params = jax.jit(optimizer.init)(jax.random.key(0))
    gradient, _, metrics = jax.jit(estimator.estimate)(jax.random.key(seed), meta_params, (), (family,))
    return ravel_pytree(gradient)[0], metrics


@cache
def in_parts(**settings):
    return estimate(reparameterised, lstm(noise="per_step", **SMALL), noisy_bowl(), **settings)


@pytest.mark.parametrize("settings", [dict(chunk_size=2), dict(num_devices=2), dict(num_devices=2, chunk_size=1)])
def test_chunks_and_devices_change_nothing_but_the_order_of_summation(settings):
    whole, metrics = in_parts(num_devices=1, chunk_size=8)
    parts, part_metrics = in_parts(**{"num_devices": 1, **settings})
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(part_metrics["meta_loss"], metrics["meta_loss"], rtol=1e-5)


def test_the_batched_gradient_equals_a_plain_scan_over_one_task_vmapped():
    """The reference a user would write first: one task, `optimizer.bind`, no checkpoint, vmap around it all."""
    family, optimizer = bowl(), lstm(step_rule="recursive", **SMALL)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 4)

    def one(meta_params, key):
        tx = optimizer.bind(meta_params)
        task_key, init_key, run_key, _ = jax.random.split(key, 4)
        task = family.sample(task_key, ())
        params = family.init(init_key, task)

        def body(carry, t):
            params, state = carry
            gradient = jax.lax.stop_gradient(jax.grad(family.loss)(params, task, ()))
            update_key = jax.random.fold_in(jax.random.fold_in(run_key, t), 1)
            updates, state = tx.update(gradient, state, params, key=update_key)
            params = params + updates
            return (params, state), family.loss(params, task, ())

        return jnp.mean(jax.lax.scan(body, (params, tx.init(params)), jnp.arange(T))[1])

    meta_params = jax.jit(optimizer.init)(jax.random.key(0))
    loss, expected = jax.jit(
        jax.value_and_grad(lambda meta_params: jnp.mean(jax.vmap(one, in_axes=(None, 0))(meta_params, keys)))
    )(meta_params)
    gradient, metrics = estimate(truncated_backprop, optimizer, family, tasks=4, num_devices=1)
    np.testing.assert_allclose(metrics["meta_loss"], loss, rtol=1e-6)
    expected = ravel_pytree(expected)[0]
    assert jnp.linalg.norm(gradient - expected) < 1e-5 * jnp.linalg.norm(expected)


def test_reparameterised_mean_over_noise_is_the_gradient_of_the_expected_loss(x64):
    """E_ξ of the estimator against finite differences of E_ξ L, both Monte Carlo with independent draws."""
    family, optimizer = bowl(), lstm(noise="per_step", hidden_size=2, num_layers=1)
    meta_params = wide(optimizer.init(jax.random.key(0)))
    direction = random_like(meta_params, 0)

    @partial(jax.jit, static_argnums=1)
    def samples(key, kind):
        def one(key):
            keys = jax.random.split(key, 1)
            if kind == "estimate":
                gradient = jax.grad(second_order_loss)(meta_params, keys)
                return directional(gradient, direction)
            return finite_difference(lambda p: second_order_loss(p, keys), meta_params, direction, 1e-4)

        return jax.lax.map(one, jax.random.split(key, 3000), batch_size=300)

    def second_order_loss(meta_params, keys):
        tx = bind_tasks(optimizer, meta_params)
        task, state = reset(tx, family, keys)
        _, trace = unroll(tx, family, task, state, length=T, explore=True, second_order=True)
        return jnp.mean(trace.loss)

    estimates, differences = samples(jax.random.key(1), "estimate"), samples(jax.random.key(2), "difference")
    error = np.hypot(estimates.std(), differences.std()) / np.sqrt(3000)
    assert abs(estimates.mean() - differences.mean()) < 4 * error
    assert abs(estimates.mean()) > 6 * error  # the check has power


@pytest.mark.parametrize("name", [name for name in GENERAL if name != "evolution_strategies"])
def test_truncation_carries_state_cuts_gradients_and_resets_at_the_horizon(name):
    optimizer = lstm(noise="per_coordinate", **SMALL)
    family, windows = noisy_bowl(), 3
    estimator = made(ESTIMATORS[name], optimizer, num_tasks=4, horizon=windows * T, unroll_length=T, num_devices=2)
    meta_params = jax.jit(optimizer.init)(jax.random.key(0))
    state = estimator.init(jax.random.key(1), meta_params, (family,))
    start = jax.tree.map(lambda x: x[0], state[0].run.state)  # the first chunk
    first_keys = np.asarray(jax.random.key_data(state[0].run.state.key))
    step = jax.jit(estimator.estimate)
    for meta_step in range(windows):
        _, state, _ = step(jax.random.key(10 + meta_step), meta_params, state, (family,))
        np.testing.assert_array_equal(np.unique(state[0].run.state.step), [(meta_step + 1) * T])
        np.testing.assert_array_equal(jax.random.key_data(state[0].run.state.key), first_keys)
    _, state, _ = step(jax.random.key(20), meta_params, state, (family,))
    np.testing.assert_array_equal(np.unique(state[0].run.state.step), [T])
    assert (np.asarray(jax.random.key_data(state[0].run.state.key)) != first_keys).any(axis=-1).all()
    assert start.step.shape == state[0].run.state.step.shape[1:]


def test_windows_of_a_run_add_up_to_the_run_without_truncation():
    """Values, not gradients: the windows' mean losses average to the full run's."""
    optimizer, family = lstm(**SMALL), noisy_bowl()
    settings = dict(num_tasks=4, horizon=2 * T, unroll_length=T, num_devices=1)
    short = made(truncated_backprop, optimizer, **settings)
    meta_params = jax.jit(optimizer.init)(jax.random.key(0))
    state = short.init(jax.random.key(1), meta_params, (family,))
    task, run = jax.tree.map(lambda x: x[0], state[0].run)
    _, trace = unroll(bind_tasks(optimizer, meta_params), family, task, run, length=2 * T)
    losses = []
    for _ in range(2):
        _, state, metrics = jax.jit(short.estimate)(jax.random.key(2), meta_params, state, (family,))
        losses.append(float(metrics["meta_loss"]))
    np.testing.assert_allclose(np.mean(losses), trace.loss.mean(), rtol=1e-5)


def test_families_are_balanced_by_their_loss_at_the_start():
    optimizer = sgd(learning_rate=0.1)
    families = (bowl(3), noisy_bowl(5))
    meta_params = jax.jit(optimizer.init)(jax.random.key(0))
    key = jax.random.key(5)

    def gradient(families, num_tasks):
        estimator = made(truncated_backprop, optimizer, num_tasks=num_tasks, horizon=T, num_devices=1)
        return jax.jit(estimator.estimate)(key, meta_params, (), families)

    both, _, metrics = gradient(families, 4)
    expected = 0.0
    for index, family in enumerate(families):
        keys = jax.random.split(jax.random.fold_in(key, index), 2)
        tx = bind_tasks(optimizer, meta_params)
        initial = reset(tx, family, keys)[1].initial_loss.mean()
        slope = jax.grad(partial(meta_loss, optimizer, family, keys, "mean", False))(meta_params)
        expected += slope["learning_rate"] / initial / 2
    np.testing.assert_allclose(both["learning_rate"], expected, rtol=1e-4)
    assert {"meta_loss/0", "meta_loss/1"} <= set(metrics)
    with pytest.raises(ValueError, match="multiple of the number of families"):
        gradient(families, 3)


def test_a_family_whose_tasks_all_died_leaves_the_other_alone():
    """It counts as a gradient of zero, and not as nothing over nothing."""
    optimizer, key = sgd(learning_rate=0.1), jax.random.key(5)
    doomed = dataclasses.replace(cliff(), sample=lambda key, data: jnp.float32(1.0))
    meta_params = optimizer.init(jax.random.key(0))
    settings = dict(horizon=T, num_devices=1)

    def gradient(families, num_tasks):
        estimator = made(truncated_backprop, optimizer, num_tasks=num_tasks, **settings)
        return jax.jit(estimator.estimate)(key, meta_params, (), families)

    both, _, metrics = gradient((bowl(), doomed), 4)
    alone, _, _ = gradient((bowl(),), 2)
    initial = reset(bind_tasks(optimizer, meta_params), bowl(), jax.random.split(jax.random.fold_in(key, 0), 2))[
        1
    ].initial_loss
    assert metrics["alive"] == 0.5
    np.testing.assert_allclose(both["learning_rate"], alone["learning_rate"] / initial.mean() / 2, rtol=1e-4)


@pytest.mark.parametrize("objective", ["log", "relative"])
def test_families_are_not_balanced_twice_under_a_scale_free_objective(objective):
    optimizer, families, key = sgd(learning_rate=0.1), (bowl(3), noisy_bowl(5)), jax.random.key(5)
    meta_params = jax.jit(optimizer.init)(jax.random.key(0))
    estimator = made(truncated_backprop, optimizer, objective, num_tasks=4, horizon=T, num_devices=1)
    both, _, _ = jax.jit(estimator.estimate)(key, meta_params, (), families)
    expected = 0.0
    for index, family in enumerate(families):
        keys = jax.random.split(jax.random.fold_in(key, index), 2)
        slope = jax.grad(partial(meta_loss, optimizer, family, keys, objective, False))(meta_params)
        expected += slope["learning_rate"] / 2
    np.testing.assert_allclose(both["learning_rate"], expected, rtol=1e-4)


@pytest.mark.parametrize("unroll_length", [T, 2 * T])
def test_one_task_a_meta_step_draws_one_family(unroll_length):
    optimizer, families = sgd(learning_rate=0.1), (bowl(3), noisy_bowl(5))
    estimator = made(
        truncated_backprop, optimizer, num_tasks=1, horizon=2 * T, unroll_length=unroll_length, num_devices=1
    )
    meta_params = jax.jit(optimizer.init)(jax.random.key(0))
    state = estimator.init(jax.random.key(0), meta_params, families)
    step = jax.jit(estimator.estimate)
    seen = {round(float(step(jax.random.key(s), meta_params, state, families)[2]["step_length"]), 6) for s in range(8)}
    assert len(seen) > 1
    gradient, _, metrics = step(jax.random.key(0), meta_params, state, families)
    assert np.isfinite(gradient["learning_rate"])
    assert metrics["alive"] == 1.0


def test_dead_tasks_are_counted_and_left_out():
    _, metrics = estimate(truncated_backprop, sgd(learning_rate=0.1), cliff(), tasks=16)
    assert 0 < metrics["diverged"] < 16
    np.testing.assert_allclose(metrics["alive"], 1 - metrics["diverged"] / 16)
    np.testing.assert_allclose(metrics["last_loss"], 2 * 0.8 ** (2 * T), rtol=1e-5)  # the survivors'


def test_reparameterised_without_noise_is_refused():
    with pytest.raises(ValueError, match="noise=per_step"):
        made(reparameterised, lstm(noise="none"), num_tasks=1, horizon=T, unroll_length=T)


def test_chunk_sizes_and_meshes():
    assert pick_chunk_size(64, 10) == 64
    assert pick_chunk_size(256, 10) == 64
    assert pick_chunk_size(6, 10_000) == 1
    assert pick_chunk_size(12, 10, chunk_size=5) == 4
    assert task_mesh(3).size == 1
    assert task_mesh(4).size == 2
    with pytest.raises(ValueError, match="multiple of `num_devices`"):
        task_mesh(3, 2)
    with pytest.raises(ValueError, match="jax sees 2"):
        task_mesh(6, 3)
