"""What each estimator computes, by hand; how it is cut up, de-synchronised, guarded and refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from metaopt.estimators.evolution import PERTURBATION
from metaopt.estimators.windows import group_mesh
from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import lstm, sgd
from metaopt.registry import ESTIMATORS
from metaopt.tasks import quadratic
from tests.toys import GENERAL, bowl, cliff, made, noisy_bowl

T = 4
SMALL = dict(hidden_size=3, num_layers=1)
NOISY = lstm(noise="per_coordinate", **SMALL)
FULL = dict(horizon=T, unroll_length=T)
# The quickest to compile that will do.
OPTIMIZER = {
    name: NOISY if name in ("reparameterised", "score_function") else sgd(learning_rate=0.1) for name in GENERAL
}
WINDOWED = [name for name in GENERAL if name != "evolution_strategies"]


def make(name, optimizer=NOISY, **settings):
    settings = {"num_tasks": 4, "num_devices": 1, **FULL, **settings}
    return made(ESTIMATORS[name], optimizer, **settings)


def run(estimator, optimizer, families, meta_steps=1, seed=0):
    """The gradients, states and metrics of so many meta-steps at one φ."""
    meta_params = optimizer.init(jax.random.key(0))
    state = estimator.init(jax.random.key(1), meta_params, families)
    step, rows = jax.jit(estimator.estimate), []
    for index in range(meta_steps):
        key = jax.random.fold_in(jax.random.key(seed), index)
        gradient, state, metrics = step(key, meta_params, state, families)
        rows.append((np.asarray(ravel_pytree(gradient)[0]), state, metrics))
    return rows


@pytest.mark.parametrize("name", ["evolution_strategies", "persistent_evolution_strategies"])
def test_antithetic_pairs_equal_the_formula_with_common_random_numbers(name):
    """Two groups of two tasks over two windows, each side run by itself; PES sums its perturbations, ES has one."""
    family, optimizer, sigma = noisy_bowl(), lstm(noise="per_step", **SMALL), 0.1
    windows = 2 if name.startswith("persistent") else 1
    settings = dict(unroll_length=T // windows, tasks_per_perturbation=2, sigma=sigma)
    rows = run(make(name, optimizer, **settings), optimizer, (family,), windows)
    flat, unravel = ravel_pytree(optimizer.init(jax.random.key(0)))
    step_keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), window), 0) for window in range(windows)]
    start_key = jax.random.fold_in(jax.random.key(1), 0) if windows > 1 else step_keys[0]
    expected = np.zeros((windows, flat.size))

    @jax.jit
    def one_side(vector, task, state):
        return unroll(bind_tasks(optimizer, unravel(vector)), family, task, state, length=T // windows, explore=True)

    for group in range(2):
        keys = jax.random.split(start_key, 4)[2 * group : 2 * group + 2]
        sides, drift = {}, 0.0
        for window, step_key in enumerate(step_keys):
            key = jax.random.fold_in(jax.random.split(step_key, 4)[2 * group], PERTURBATION)
            epsilon = sigma * jax.random.normal(key, flat.shape)
            drift, losses = drift + epsilon, {}
            for sign in (1, -1):
                task, state = sides.get(sign) or reset(bind_tasks(optimizer, unravel(flat)), family, keys)
                state, trace = one_side(flat + sign * epsilon, task, state)
                sides[sign], losses[sign] = (task, state), trace.loss.mean(axis=0)
            expected[window] += (losses[1] - losses[-1]).sum() / (2 * sigma**2) * np.asarray(drift) / 4
    for row, gradient in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row[0], gradient, rtol=2e-3, atol=1e-4 * np.abs(gradient).max())


@pytest.mark.parametrize("name", ["persistent_evolution_strategies", "noise_reuse_evolution_strategies"])
def test_the_difference_of_a_pair_counts_up_to_a_bound(name):
    """One task, one window: the gradient is what it was, over |L⁺ - L⁻| and times the bound."""
    optimizer, sigma, settings = OPTIMIZER[name], 0.1, dict(num_tasks=1, sigma=0.1)
    plain = run(make(name, optimizer, **settings), optimizer, (bowl(),))[0][0]
    step = sigma * jax.random.normal(
        jax.random.fold_in(
            jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0), 1)[0], PERTURBATION
        ),
        plain.shape,
    )
    difference = float(plain[0] / step[0] * 2 * sigma**2)
    for bound, wanted in ((abs(difference) / 3, plain / 3), (abs(difference) * 2, plain)):
        found = run(make(name, optimizer, clip_difference=bound, **settings), optimizer, (bowl(),))[0][0]
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


CUT = [
    *((name, {}) for name in GENERAL),
    *((name, dict(tasks_per_perturbation=2)) for name in GENERAL if name.endswith("strategies")),
    ("mixture", dict(tasks_per_perturbation=2)),
    ("noise_reuse_evolution_strategies", dict(clip_difference=0.01)),
    ("score_function", dict(baseline="leave_one_out", rollouts=2)),
]


@pytest.mark.parametrize(("name", "groups"), CUT)
def test_chunks_and_devices_change_nothing_but_the_order_of_summation(name, groups):
    """By default and with groups as asked for."""
    whole, parts = (
        run(make(name, OPTIMIZER[name], num_tasks=8, **groups, **cut), OPTIMIZER[name], (noisy_bowl(),))[0]
        for cut in (dict(chunk_size=8), dict(chunk_size=2, num_devices=2))
    )
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-3, atol=1e-4 * np.abs(whole[0]).max())
    np.testing.assert_allclose(parts[2]["meta_loss"], whole[2]["meta_loss"], rtol=1e-5)


def test_a_group_is_never_cut_by_devices():
    """One group of all tasks: two devices do the same work where none are asked for; asked for, they are refused."""
    settings, optimizer = dict(num_tasks=4, tasks_per_perturbation=4), OPTIMIZER["evolution_strategies"]
    one, free = (
        run(make("evolution_strategies", num_devices=n, optimizer=optimizer, **settings), optimizer, (noisy_bowl(),))
        for n in (1, None)
    )
    np.testing.assert_allclose(free[0][0], one[0][0], rtol=1e-5)
    assert dict(group_mesh(8, 4, None).shape) == dict(tasks=2, copies=1)
    assert dict(group_mesh(6, 2, None).shape) == dict(tasks=1, copies=2)
    with pytest.raises(ValueError, match=r"1 group of 4, which `num_devices` \(2\) does not divide; set it to 1"):
        run(make("evolution_strategies", num_devices=2, optimizer=optimizer, **settings), optimizer, (noisy_bowl(),))


def test_persistent_perturbations_are_summed_from_the_reset_on():
    """At the reset as at the start: what is left of an earlier run would add noise to every later one."""
    settings = dict(horizon=2 * T, unroll_length=T, tasks_per_perturbation=4, sigma=0.1)
    optimizer = OPTIMIZER["persistent_evolution_strategies"]
    rows = run(make("persistent_evolution_strategies", optimizer, **settings), optimizer, (bowl(),), 4)
    drift = np.stack([row[1][0].run.drift.ravel() for row in rows])
    drawn = []
    for index in range(4):
        step_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), index), 0)
        key = jax.random.fold_in(jax.random.split(step_key, 4)[0], PERTURBATION)
        drawn.append(0.1 * jax.random.normal(key, (drift.shape[1],)))
    wanted = np.stack([drawn[0], drawn[0] + drawn[1], drawn[2], drawn[2] + drawn[3]])
    np.testing.assert_allclose(drift, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", WINDOWED)
def test_staggered_chunks_reset_at_different_meta_steps(name):
    windows = 4
    settings = dict(num_tasks=8, horizon=windows * T, unroll_length=T, staggered=True, chunk_size=2)
    if ESTIMATORS.traits(name).sides == 2:
        settings["tasks_per_perturbation"] = 2
    if name == "score_function":
        settings |= dict(baseline="leave_one_out", rollouts=2)
    rows = run(make(name, OPTIMIZER[name], **settings), OPTIMIZER[name], (noisy_bowl(),), windows + 1)
    ages = np.stack([row[1][0].run.state.step.reshape(4, -1)[:, 0] for row in rows]) // T
    # Chunk c begins c windows old: each meta-step resets one chunk, and all ages are there at any time.
    np.testing.assert_array_equal(ages, (np.arange(4) + np.arange(windows + 1)[:, None]) % windows + 1)
    assert all(np.isfinite(row[0]).all() for row in rows)


def test_staggered_tasks_that_fit_one_chunk_are_split():
    state = run(make("truncated_backprop", horizon=2 * T, staggered=True), NOISY, (bowl(),))[0][1]
    np.testing.assert_array_equal(state[0].run.state.step[:, 0], [T, 2 * T])


@pytest.mark.parametrize("name", GENERAL)
def test_dead_tasks_are_counted_and_never_reach_the_gradient(name):
    rows = run(make(name, OPTIMIZER[name], num_tasks=16, horizon=T), OPTIMIZER[name], (cliff(),), 2)
    for gradient, _, metrics in rows:
        assert 0 < metrics["diverged"] < 16
        np.testing.assert_allclose(metrics["alive"], 1 - metrics["diverged"] / 16)
        assert metrics["diverged"] / 16 <= metrics["failed"] + 1e-6 <= 1
        assert np.isfinite(gradient).all()
        assert np.isfinite([metrics[name] for name in ("meta_loss", "last_loss", "step_length")]).all()


def test_runs_that_rise_above_ten_times_their_start_count_as_failed():
    """½ax² with a ~ U(0.5, 1.5) at a rate of 2: x grows (2a - 1)-fold a step, and nothing becomes non-finite."""
    family = dataclasses.replace(bowl(1), loss=lambda x, a, batch: 0.5 * jnp.sum(a * x**2))
    optimizer = sgd(learning_rate=2.0)
    _, _, metrics = run(make("truncated_backprop", optimizer, num_tasks=64), optimizer, (family,))[0]
    keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0), 64)
    a = np.asarray([family.sample(jax.random.split(key, 4)[0], ())[0] for key in keys])
    failed = (2 * a - 1) ** (2 * T) > 10
    assert 0 < failed.mean() < 1 and metrics["diverged"] == 0
    np.testing.assert_allclose(metrics["failed"], failed.mean(), rtol=1e-6)


def test_a_pair_with_one_dead_side_is_left_out():
    """Where SGD's rate decides who falls: at rate 1 θ goes to -θ, and outwards on one side of each pair."""

    def fall(params, task, batch):
        return jnp.where(jnp.abs(params[0]) > 1.0, jnp.inf, 1.0) * jnp.sum(params**2)

    start = dataclasses.replace(bowl(), init=lambda key, task: jnp.full(3, jax.random.uniform(key)), loss=fall)
    edge = dataclasses.replace(start, init=lambda key, task: jnp.ones(3))
    optimizer, sigma, tasks = sgd(learning_rate=1.0), 0.2, 16
    settings = dict(num_tasks=tasks, sigma=sigma, tasks_per_perturbation=2)
    estimator = make("evolution_strategies", optimizer, **settings)
    gradient, _, metrics = run(estimator, optimizer, (start,))[0]
    flat, unravel = ravel_pytree(optimizer.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0), tasks).reshape(-1, 2)
    groups, living = [jax.random.fold_in(key, PERTURBATION) for key in keys[:, 0]], []
    for group, own in zip(groups, keys, strict=True):
        step, sides = sigma * jax.random.normal(group, flat.shape), []
        for sign in (1, -1):
            tx = bind_tasks(optimizer, unravel(flat + sign * step))
            final, trace = unroll(tx, start, *reset(tx, start, own), length=T)
            sides.append((np.asarray(final.alive), np.asarray(trace.loss.mean(axis=0), np.float64)))
        (up_alive, up), (down_alive, down) = sides
        one_side = up_alive != down_alive
        worst = np.where(up_alive, -1.0, 1.0) / (2 * sigma**2) * float(step[0])  # where one side died, times the bound
        products = (up - down) / (2 * sigma**2) * float(step[0])
        living.append((up_alive & down_alive, products, (up + down) / 2, one_side, worst))
    both, products, losses, one_side, worst = (np.concatenate(part) for part in zip(*living, strict=True))
    assert 0 < both.sum() < tasks and one_side.sum() == tasks - both.sum()
    # Some perturbation has one task of its two left.
    assert (both.reshape(-1, 2).sum(axis=1) == 1).any()
    assert metrics["diverged"] == tasks - both.sum()
    np.testing.assert_allclose(gradient, products[both].mean(), rtol=1e-3)
    np.testing.assert_allclose(metrics["meta_loss"], losses[both].mean(), rtol=1e-4)
    # Under a bound on the difference dying counts as much as it allows, and so pushes away from it.
    for name in ("persistent_evolution_strategies", "noise_reuse_evolution_strategies"):
        bounded = make(name, optimizer, **settings, clip_difference=50.0)
        pushed = run(bounded, optimizer, (start,))[0][0]
        expected = (products[both].sum() + 50 * worst[one_side].sum()) / tasks
        np.testing.assert_allclose(pushed, expected, rtol=1e-3)
    # On the edge itself nobody is left.
    gradient, _, metrics = run(estimator, optimizer, (edge,))[0]
    assert metrics["diverged"] == tasks and np.isnan(metrics["meta_loss"])
    np.testing.assert_array_equal(gradient, 0.0)


WAVES = dataclasses.replace(
    bowl(2),
    init=lambda key, task: jnp.array([1.1, 1.4]),
    loss=lambda params, task, batch: jnp.sum(1 - jnp.cos(8 * params)) / 8,
)


@pytest.mark.parametrize("horizon", [6, 60])
def test_the_mixture_stands_on_values_where_gradients_explode_and_comes_back(horizon):
    """Losses within [0, 1/2] whose gradient grows up to 15-fold a step at rate 2: beyond float32 in 60 steps."""
    settings = dict(num_tasks=8, horizon=horizon, unroll_length=horizon, tasks_per_perturbation=1, sigma=0.05)
    wild, calm = sgd(learning_rate=2.0), sgd(learning_rate=1e-3)
    mixed, values = make("mixture", wild, decay=0.5, **settings), make("evolution_strategies", wild, **settings)
    slopes = make("truncated_backprop", wild, second_order=True, num_tasks=8, horizon=horizon, unroll_length=horizon)
    step, phi = jax.jit(mixed.estimate), wild.init(jax.random.key(0))
    key = jax.random.key(3)
    exploding = np.asarray(ravel_pytree(slopes.estimate(key, phi, (), (WAVES,))[0])[0])
    assert horizon == 6 or not (np.abs(exploding) < 1e15).all()
    # A memory of calm meta-steps, and none at all.
    state = mixed.init(jax.random.key(1), phi, (WAVES,))
    for first in (calm, wild):
        state = step(key, first.init(key), state, (WAVES,))[1]
        gradient, state, metrics = step(key, phi, state, (WAVES,))
        flat = ravel_pytree(gradient)[0]
        assert metrics["alive"] == 1.0
        # |L⁺ - L⁻| is at most 1/2, and no |ε| of these 8 is above 4.
        assert (np.abs(flat) < 4 * 0.5 / (2 * 0.05)).all()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state[0].memory))
        if horizon == 6:  # before rounding errors have grown to the size of the loss
            expected = ravel_pytree(values.estimate(key, phi, (), (WAVES,))[0])[0]
            np.testing.assert_allclose(flat, expected, rtol=0.05, atol=1e-3)
    phi = calm.init(jax.random.key(0))
    for index in range(60):
        gradient, state, _ = step(jax.random.fold_in(key, index), phi, state, (WAVES,))
    memory = state[0].memory
    assert (memory.reparameterised < 0.05 * memory.evolution).all(), memory
    exact = ravel_pytree(slopes.estimate(jax.random.fold_in(key, 59), phi, (), (WAVES,))[0])[0]
    np.testing.assert_allclose(ravel_pytree(gradient)[0], exact, rtol=0.1)


def test_scored_steps_have_the_log_density_of_their_law_and_move_as_unscored_ones_do():
    family, keys = bowl(), jax.random.split(jax.random.key(2), 3)
    for normalisation in ("norm", "rms"):
        optimizer = lstm(noise="per_coordinate", noise_in_use="one", normalisation=normalisation, **SMALL)
        tx = bind_tasks(optimizer, optimizer.init(jax.random.key(0)))
        task, state = reset(tx, family, keys)
        end, trace = unroll(tx, family, task, state, length=1, explore="scored")
        plain, unscored = unroll(tx, family, task, state, length=1, explore=True)
        quiet, _ = unroll(tx, family, task, state, length=1)
        np.testing.assert_allclose(end.params, plain.params, rtol=1e-6)
        assert jax.tree.structure(end) == jax.tree.structure(plain)
        assert unscored.log_prob is None
        step, scale = (np.abs(np.asarray(x.params - state.params, np.float64)) for x in (end, quiet))
        expected = scipy.stats.gamma(2, scale=scale).logpdf(step).sum(axis=1)
        np.testing.assert_allclose(trace.log_prob[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{}, dict(noise="per_step")])
def test_the_optimizer_without_a_density_cannot_be_scored(options):
    optimizer = lstm(**options, **SMALL)
    tx = bind_tasks(optimizer, optimizer.init(jax.random.key(0)))
    task, state = reset(tx, bowl(), jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="no density"):
        unroll(tx, bowl(), task, state, length=1, explore="scored")


REFUSED = [
    ("score_function", lstm(noise="none", **SMALL), {}, "the optimizer draws none"),
    ("score_function", lstm(noise="per_step", **SMALL), {}, "one draw a step lies on a ray"),
    ("score_function", sgd(), {}, "take --optimizer lstm:noise=per_coordinate"),
    ("score_function", NOISY, dict(num_tasks=1), "needs at least 2 tasks"),
    ("score_function", NOISY, dict(baseline="leave_one_out", rollouts=1), "`rollouts`"),
    ("score_function", NOISY, dict(baseline="moving_average", decay=1.0), "`decay`"),
    ("reparameterised", lstm(noise="none", **SMALL), {}, "noise=per_step"),
    ("reparameterised", NOISY, dict(objective_batch="none"), "objective_batch=none` is gone"),
    ("truncated_backprop", NOISY, dict(unroll_length=3), "multiple of `unroll_length`"),
    ("truncated_backprop", NOISY, dict(staggered=True), "several windows"),
    ("truncated_backprop", NOISY, dict(clip_task_norm=0.0), "`clip_task_norm`"),
    ("reparameterised", NOISY, dict(clip_task_norm=-1.0), "`clip_task_norm`"),
    ("truncated_backprop", NOISY, dict(staggered=True, horizon=2 * T, num_tasks=1), "at least 2 tasks"),
    ("evolution_strategies", NOISY, dict(unroll_length=2), "persistent_evolution_strategies"),
    ("evolution_strategies", NOISY, dict(sigma=0.0), "`sigma`"),
    ("evolution_strategies", NOISY, dict(tasks_per_perturbation=5), "`tasks_per_perturbation`"),
    ("persistent_evolution_strategies", NOISY, dict(clip_difference=0.0), "`clip_difference`"),
    ("persistent_evolution_strategies", NOISY, dict(unroll_length=2 * T), "multiple of `unroll_length`"),
    ("persistent_evolution_strategies", NOISY, dict(unroll_length=3), "multiple of `unroll_length`"),
    ("mixture", NOISY, dict(num_tasks=1), "at least 2 tasks"),
    ("mixture", NOISY, dict(tasks_per_perturbation=3), "fewer than two perturbations"),
    ("mixture", NOISY, dict(objective_batch="same"), "objective_batch=same` is gone"),
]


@pytest.mark.parametrize(("name", "optimizer", "settings", "message"), REFUSED)
def test_what_an_estimator_cannot_serve_is_refused_at_configuration(name, optimizer, settings, message):
    with pytest.raises(ValueError, match=message):
        make(name, optimizer, **settings)


LEARNERS = {
    **{name: (name, NOISY, 0.03, {}) for name in GENERAL},
    "score_function": ("score_function", NOISY, 0.01, dict(num_tasks=64, baseline="leave_one_out", rollouts=8)),
    **{
        f"{name} of sgd": (name, sgd(learning_rate=1e-2), 0.2, {})
        for name in GENERAL
        if ESTIMATORS.traits(name).sides == 2
    },
}


@pytest.mark.parametrize("learner", LEARNERS)
def test_meta_training_by_every_estimator_lowers_the_loss(learner):
    """Learned and hand-designed; in windows where the estimator has them, on two families at once."""
    name, optimizer, rate, settings = LEARNERS[learner]
    windows = 1 if name == "evolution_strategies" else 2
    families = (quadratic(dim=3), noisy_bowl())
    estimator = make(name, optimizer, **{"num_tasks": 16, "horizon": 5 * windows, "unroll_length": 5, **settings})
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    @jax.jit
    def train(meta_params):
        def body(carry, key):
            meta_params, state, opt_state = carry
            gradient, state, metrics = estimator.estimate(key, meta_params, state, families)
            updates, opt_state = tx.update(gradient, opt_state, meta_params)
            return (optax.apply_updates(meta_params, updates), state, opt_state), metrics["meta_loss"]

        start = (meta_params, estimator.init(jax.random.key(3), meta_params, families), tx.init(meta_params))
        return jax.lax.scan(body, start, jax.random.split(jax.random.key(1), 150))[1]

    losses = train(optimizer.init(jax.random.key(0))).reshape(-1, 10).mean(axis=1)
    assert losses[-5:].mean() < 0.9 * losses[0], losses
