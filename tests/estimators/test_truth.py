"""Every estimator's mean against its own target, and variances ordered as theory says: Monte Carlo in x64.

The truth is the second-order gradient, exact on a single task without noise. Means lie within 4 standard errors, and
the standard error is below a tenth of the truth's norm, so that a wrong factor or a missing term is seen.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metaopt.estimators import (
    evolution_strategies,
    mixture,
    noise_reuse_evolution_strategies,
    persistent_evolution_strategies,
    reparameterised,
    score_function,
    truncated_backprop,
)
from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import lstm
from metaopt.registry import OBJECTIVES
from tests.toys import made, one_bowl

T, WINDOW = 6, 2
SMOOTHING = 0.3
NETWORK = dict(hidden_size=2, num_layers=1, features="gradient", noise="none", alpha_bias=-1.0)


@pytest.fixture(autouse=True, scope="module")
def x64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@cache
def setting(lean=0.0, **options):
    """A family, an optimizer, and a φ away from its symmetric start; `lean` keeps the direction d away from zero."""
    optimizer = lstm(**{**NETWORK, **options})
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: x.astype(jnp.float64), optimizer.init(jax.random.key(0))))
    meta_params = unravel(flat + 0.6 * jax.random.normal(jax.random.key(0), flat.shape))
    meta_params["direction"]["bias"] += lean
    return (one_bowl(),), optimizer, meta_params


NOISY = dict(noise="per_coordinate", lean=-3.0)


@cache
def exact(objective="mean"):
    """∇L without noise, by plain differentiation of the whole run."""
    return np.asarray(jax.jit(slope(objective))(setting()[2]))


def slope(objective="mean"):
    meta_loss = value(objective)
    return lambda meta_params: ravel_pytree(jax.grad(meta_loss)(meta_params))[0]


def value(objective="mean"):
    families, optimizer, _ = setting()

    def meta_loss(meta_params):
        tx = bind_tasks(optimizer, meta_params)
        task, state = reset(tx, families[0], jax.random.split(jax.random.key(0), 1))
        return jnp.mean(OBJECTIVES[objective]()(unroll(tx, families[0], task, state, length=T, second_order=True)[1]))

    return meta_loss


def draw(make, families, optimizer, meta_params, num, *, seed=0, objective="mean", meta_steps=1, last=1, **settings):
    """[num, size of φ] independent estimates, each the mean over the `last` of `meta_steps` from a fresh start."""
    settings = {"num_tasks": 1, "horizon": T, "unroll_length": T, "num_devices": 1, **settings}
    estimator = made(make, optimizer, objective, **settings)

    def one(key):
        def body(state, key):
            gradient, state, _ = estimator.estimate(key, meta_params, state, families)
            return state, ravel_pytree(gradient)[0]

        init_key, run_key = jax.random.split(key)
        state = estimator.init(init_key, meta_params, families)
        gradients = jax.lax.scan(body, state, jax.random.split(run_key, meta_steps))[1]
        return jnp.mean(gradients[-last:], axis=0)

    keys = jax.random.split(jax.random.key(seed), num)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=min(num, 1000)))(keys))


def standard_error(samples):
    return samples.std(axis=0, ddof=1) / np.sqrt(len(samples))


def assert_mean(samples, truth, truth_error=0.0):
    error = np.hypot(standard_error(samples), truth_error)
    distance = np.abs(samples.mean(axis=0) - truth)
    assert (distance <= 4 * error + 1e-5 * np.abs(truth)).all(), (distance / error).max()
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(truth), np.linalg.norm(error) / np.linalg.norm(truth)


def assert_biased(samples, truth):
    """Some number of φ is 6 standard errors off, and the whole by more than a tenth of the truth."""
    distance = np.abs(samples.mean(axis=0) - truth)
    assert (distance > 6 * standard_error(samples) + 1e-12).any(), (distance / standard_error(samples)).max()
    assert np.linalg.norm(distance) > 0.1 * np.linalg.norm(truth)


def total_variance(samples):
    return samples.var(axis=0, ddof=1).sum()


def test_the_truth_agrees_with_central_differences_of_values():
    flat, unravel = ravel_pytree(setting()[2])
    meta_loss, width = value(), 1e-5
    sides = jnp.stack([flat + sign * width * jnp.eye(flat.size) for sign in (1, -1)])
    above, below = jax.jit(jax.vmap(jax.vmap(lambda point: meta_loss(unravel(point)))))(sides)
    np.testing.assert_allclose(exact(), (above - below) / (2 * width), rtol=1e-6, atol=1e-10)


def test_full_backpropagation_is_exact_and_first_order_is_not():
    truth = exact()
    full = draw(truncated_backprop, *setting(), 1, second_order=True)[0]
    np.testing.assert_allclose(full, truth, rtol=1e-9)
    first_order = draw(truncated_backprop, *setting(), 1)[0]
    assert np.linalg.norm(first_order - truth) > 0.1 * np.linalg.norm(truth)


@pytest.mark.parametrize("objective", ["mean", "log", "last"])
def test_evolution_strategies_mean_is_the_gradient_of_the_full_horizon(objective):
    samples = draw(evolution_strategies, *setting(), 8000, objective=objective, sigma=1e-3)
    assert_mean(samples, exact(objective))


@cache
def smoothed():
    """Draws of ∇L(φ + σε) for a σ that is large enough to matter, one a row."""
    flat, unravel = ravel_pytree(setting()[2])
    points = flat + SMOOTHING * jax.random.normal(jax.random.key(9), (10000, flat.size))
    slopes = jax.jit(lambda points: jax.lax.map(lambda point: slope()(unravel(point)), points, batch_size=1000))
    return np.asarray(slopes(points))


def test_evolution_strategies_estimate_the_smoothed_loss():
    samples = draw(evolution_strategies, *setting(), 16000, sigma=SMOOTHING)
    assert_mean(samples, smoothed().mean(axis=0), standard_error(smoothed()))
    assert_biased(samples, exact())


IN_WINDOWS = (persistent_evolution_strategies, noise_reuse_evolution_strategies)


@pytest.mark.parametrize("make", IN_WINDOWS)
@pytest.mark.parametrize("staggered", [False, True])
def test_evolution_strategies_with_a_memory_are_unbiased_in_windows(staggered, make):
    windows = T // WINDOW
    more = dict(num_tasks=2, staggered=True, meta_steps=2 * windows) if staggered else dict(meta_steps=windows)
    settings = dict(unroll_length=WINDOW, last=windows, sigma=1e-3, tasks_per_perturbation=1)
    samples = draw(make, *setting(), 6000 if staggered else 12000, **settings, **more)
    assert_mean(samples, exact())


def test_truncated_evolution_strategies_are_biased_as_truncated_backpropagation_is():
    windows = T // WINDOW
    settings = dict(unroll_length=WINDOW, meta_steps=windows, last=windows)
    samples = draw(persistent_evolution_strategies, *setting(), 6000, sigma=1e-3, persistent=False, **settings)
    assert_biased(samples, exact())
    truncated = draw(truncated_backprop, *setting(), 1, second_order=True, **settings)[0]
    assert np.linalg.norm(truncated - exact()) > 0.1 * np.linalg.norm(exact())
    assert_mean(samples, truncated)  # the same cut, the same target


@pytest.mark.parametrize("make", IN_WINDOWS)
def test_with_one_window_they_are_evolution_strategies(make):
    both = [draw(each, *setting(), 3, num_tasks=4, tasks_per_perturbation=2) for each in (evolution_strategies, make)]
    np.testing.assert_array_equal(*both)


def test_noise_reuse_over_all_windows_is_evolution_strategies_over_the_horizon():
    """With the same ε, tasks and starts, so that it estimates the same smoothed loss at the same variance."""
    families, optimizer, meta_params = setting()
    settings = dict(num_tasks=4, horizon=T, num_devices=1, sigma=SMOOTHING, tasks_per_perturbation=1)
    whole = made(evolution_strategies, optimizer, **settings)
    wanted, _, _ = jax.jit(whole.estimate)(jax.random.key(3), meta_params, (), families)
    parts = made(noise_reuse_evolution_strategies, optimizer, unroll_length=WINDOW, **settings)
    state, total = parts.init(jax.random.key(3), meta_params, families), 0.0
    step = jax.jit(parts.estimate)
    for index in range(T // WINDOW):
        gradient, state, _ = step(jax.random.key(10 + index), meta_params, state, families)
        total += ravel_pytree(gradient)[0]
    np.testing.assert_allclose(total * WINDOW / T, ravel_pytree(wanted)[0], rtol=1e-9)
    # And anew at the reset.
    before = state[0].run.drift
    _, state, _ = step(jax.random.key(20), meta_params, state, families)
    assert (np.abs(state[0].run.drift - before) > 1e-6).all()


MIXED = dict(num_tasks=4, tasks_per_perturbation=1, sigma=SMOOTHING)


def test_mixture_mean_is_the_gradient_of_the_smoothed_loss():
    samples = draw(mixture, *setting(), 700, meta_steps=5, last=4, **MIXED)
    assert_mean(samples, smoothed().mean(axis=0), standard_error(smoothed()))


def test_the_variance_of_the_mixture_is_about_that_of_the_better_part():
    mixed = total_variance(draw(mixture, *setting(), 1000, decay=0.0, **MIXED))
    evolution = total_variance(draw(evolution_strategies, *setting(), 2000, **MIXED))
    reparameterised = total_variance(smoothed()) / 4  # a single side of the pair
    assert mixed < 1.1 * min(evolution, reparameterised), (mixed, evolution, reparameterised)


@cache
def noisy_truth():
    """Draws of the second-order reparameterised gradient with noise per coordinate, one a row."""
    return draw(reparameterised, *setting(**NOISY), 10000, second_order=True, seed=7)


@cache
def scores(baseline):
    steps = 8 if baseline == "moving_average" else 1
    return draw(score_function, *setting(**NOISY), 6000, num_tasks=8, baseline=baseline, meta_steps=steps)


BASELINES = ["none", "per_step", "moving_average", "leave_one_out"]


@pytest.mark.parametrize("baseline", BASELINES)
def test_score_function_mean_is_the_second_order_reparameterised_gradient(baseline):
    assert_mean(scores(baseline), noisy_truth().mean(axis=0), standard_error(noisy_truth()))


def test_score_function_is_far_noisier_than_reparameterised_and_baselines_help():
    """At equal cost: both go once forward and back through eight runs."""
    variance = {baseline: total_variance(scores(baseline)) for baseline in BASELINES}
    for baseline in BASELINES[1:]:
        assert variance[baseline] < 0.8 * variance["none"], variance
    assert min(variance.values()) > 5 * total_variance(noisy_truth()) / 8, variance


def test_the_variance_of_evolution_strategies_falls_with_the_number_of_pairs_and_is_that_of_theory():
    one, four = (
        total_variance(draw(evolution_strategies, *setting(), 3000, num_tasks=n, tasks_per_perturbation=1, sigma=1e-3))
        for n in (1, 4)
    )
    np.testing.assert_allclose(one / four, 4.0, rtol=0.15)
    truth = exact()
    # ε εᵀ ∇L has the trace of its covariance (P + 1) ‖∇L‖², P the size of φ.
    np.testing.assert_allclose(one, (truth.size + 1) * np.sum(truth**2), rtol=0.15)


def test_the_variance_of_persistent_evolution_strategies_grows_with_the_perturbations_summed():
    settings = dict(unroll_length=WINDOW, meta_steps=T // WINDOW, last=1, sigma=1e-3)
    kept, dropped = (
        total_variance(draw(persistent_evolution_strategies, *setting(), 4000, persistent=p, **settings))
        for p in (True, False)
    )
    assert kept > 1.5 * dropped


def test_noise_reuse_has_the_lower_variance_in_a_late_window():
    settings = dict(unroll_length=1, meta_steps=T, last=1, sigma=1e-3)
    persistent, reused = (total_variance(draw(make, *setting(), 2000, **settings)) for make in IN_WINDOWS)
    assert reused < 0.6 * persistent, (reused, persistent)
