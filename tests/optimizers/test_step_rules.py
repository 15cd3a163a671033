"""Step rules: lengths, recursions, the law of the noise."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metaopt.choices import choice
from metaopt.experiment import build_optimizer
from metaopt.optimizers.noise import gamma_noise, with_noise
from metaopt.optimizers.step_rules import Step, normalise_direction, normalised_step

DEFAULTS = dict(
    rule="direct",
    alpha="shared",
    normalisation="norm",
    noise="none",
    noise_in_use="one",
    initial_alpha="drawn",
    alpha_bias=0.0,
)


def step(count=1, tasks=2, explore=False, sizes=(3, 2), keys=True):
    return Step(jnp.asarray(count), jax.random.split(jax.random.key(5), tasks) if keys else None, explore, sizes)


def outputs(tasks=2, dim=5, seed=0):
    return jax.random.normal(jax.random.key(seed), (2, tasks, dim))


def test_noise_is_gamma_2_1():
    keys = jax.random.split(jax.random.key(0), 400)
    draws = np.asarray(gamma_noise(keys, 50, jnp.float32)).ravel()
    # Kolmogorov-Smirnov against scipy's law; mean 2 and variance 2 within 4 standard errors.
    assert scipy.stats.kstest(draws, scipy.stats.gamma(2).cdf).pvalue > 1e-3
    assert abs(draws.mean() - 2) < 4 * np.sqrt(2 / draws.size)
    fourth = 24.0  # fourth central moment of Gamma(2, 1)
    assert abs(draws.var() - 2) < 4 * np.sqrt((fourth - 4) / draws.size)


def test_normalisations():
    d = outputs()[0]
    np.testing.assert_allclose(jnp.linalg.norm(normalise_direction(d, "norm", (3, 2)), axis=1), 1.0, rtol=1e-6)
    rms = normalise_direction(d, "rms", (3, 2))
    np.testing.assert_allclose(jnp.mean(rms**2, axis=1), 1.0, rtol=1e-6)
    tensor = normalise_direction(d, "tensor_rms", (3, 2))
    np.testing.assert_allclose(jnp.mean(tensor[:, :3] ** 2, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(jnp.mean(tensor[:, 3:] ** 2, axis=1), 1.0, rtol=1e-6)


def test_one_coordinate_is_a_sign_without_gradient():
    d = jnp.array([[-0.3]])
    assert normalise_direction(d, "norm", (1,)).tolist() == [[-1.0]]
    np.testing.assert_allclose(jax.jacobian(lambda d: normalise_direction(d, "norm", (1,)))(d), 0.0, atol=1e-6)


def test_direct_rule_shared_and_per_coordinate():
    out = outputs()
    unit = out[0] / jnp.linalg.norm(out[0], axis=1, keepdims=True)
    shared = normalised_step(**DEFAULTS)
    g, state = shared.apply(out, (), step())
    np.testing.assert_allclose(g, jnp.exp(out[1].mean(axis=1, keepdims=True)) * unit, rtol=1e-5)
    assert state == ()
    single = normalised_step(**{**DEFAULTS, "alpha": "per_coordinate"})
    np.testing.assert_allclose(single.apply(out, (), step())[0], jnp.exp(out[1]) * unit, rtol=1e-5)


def test_recursive_rule_multiplies_step_lengths():
    rule = normalised_step(**{**DEFAULTS, "rule": "recursive", "initial_alpha": "median"})
    state = rule.init((2, 5), jnp.float32)
    np.testing.assert_array_equal(state, np.full((2, 1), -4.0))
    expected = np.full(2, -4.0)
    for count in range(1, 4):
        out = outputs(seed=count)
        g, state = rule.apply(out, state, step(count))
        expected += np.asarray(out[1]).mean(axis=1)
        np.testing.assert_allclose(jnp.linalg.norm(g, axis=1), np.exp(expected), rtol=1e-5)


def test_initial_step_length_is_drawn_uniformly_once_and_only_with_a_key():
    rule = normalised_step(**{**DEFAULTS, "rule": "recursive"})
    tasks = 2000
    still = jnp.stack([jnp.ones((tasks, 3)), jnp.zeros((tasks, 3))])
    start = rule.init((tasks, 3), jnp.float32)
    g, state = rule.apply(still, start, step(1, tasks, sizes=(3,)))
    log_alpha = np.log(np.linalg.norm(g, axis=1))
    assert scipy.stats.kstest(log_alpha, scipy.stats.uniform(-6, 4).cdf).pvalue > 1e-3
    _, later = rule.apply(still, state, step(2, tasks, sizes=(3,)))
    np.testing.assert_array_equal(later, state)
    without_key, _ = rule.apply(still, start, step(1, tasks, keys=False, sizes=(3,)))
    np.testing.assert_allclose(np.linalg.norm(without_key, axis=1), np.exp(-4.0), rtol=1e-5)


@pytest.mark.parametrize("noise", ["per_step", "per_coordinate"])
def test_the_first_step_length_and_its_noise_are_drawn_apart(noise):
    """What was drawn from one key would be the same uniform number under two laws."""
    rule = normalised_step(**{**DEFAULTS, "rule": "recursive", "noise": noise})
    tasks = 2000
    still = jnp.stack([jnp.ones((tasks, 3)), jnp.zeros((tasks, 3))])
    g, log_alpha = rule.apply(still, rule.init((tasks, 3), jnp.float32), step(1, tasks, explore=True, sizes=(3,)))
    noise = np.abs(g) * np.sqrt(3) / np.exp(log_alpha)
    for column in noise.T:
        assert abs(scipy.stats.spearmanr(column, log_alpha[:, 0]).statistic) < 4 / np.sqrt(tasks)
    # Nor is it any single draw of the noise's own: two exponentials a coordinate, from the task's key.
    keys = step(1, tasks).keys
    draws = jax.vmap(lambda key: jax.random.exponential(key, (2, 3 if noise.shape[1] == 3 else 1)))(keys)
    for draw in np.asarray(draws).reshape(tasks, -1).T:
        assert abs(scipy.stats.spearmanr(draw, log_alpha[:, 0]).statistic) < 4 / np.sqrt(tasks)


@pytest.mark.parametrize("rule", ["direct", "recursive"])
def test_noise_multiplies_the_step_and_stays_outside_the_recursion(rule):
    settings = {**DEFAULTS, "rule": rule, "initial_alpha": "median"}
    quiet = normalised_step(**settings)
    for noise in ("per_step", "per_coordinate"):
        noisy = normalised_step(**{**settings, "noise": noise})
        state = quiet.init((2, 5), jnp.float32)
        g, quiet_state = quiet.apply(outputs(), state, step())
        loud, loud_state = noisy.apply(outputs(), state, step(explore=True))
        ratio = np.asarray(loud / g)
        assert (ratio > 0).all()
        if noise == "per_step":
            np.testing.assert_allclose(ratio, ratio[:, :1].repeat(5, axis=1), rtol=1e-4)
            assert abs(ratio[0, 0] - ratio[1, 0]) > 1e-3  # one draw a task
        else:
            assert np.std(ratio, axis=1).min() > 1e-2
        for a, b in zip(jax.tree.leaves(quiet_state), jax.tree.leaves(loud_state), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("in_use", "factor"), [("one", 1.0), ("two", 2.0)])
def test_what_stands_for_the_noise_in_use(in_use, factor):
    base, _ = normalised_step(**DEFAULTS).apply(outputs(), (), step())
    rule = normalised_step(**{**DEFAULTS, "noise": "per_step", "noise_in_use": in_use})
    np.testing.assert_allclose(rule.apply(outputs(), (), step())[0], factor * base, rtol=1e-6)
    on = normalised_step(**{**DEFAULTS, "noise": "per_step", "noise_in_use": "on"})
    explored = rule.apply(outputs(), (), step(explore=True))[0]
    np.testing.assert_array_equal(on.apply(outputs(), (), step())[0], explored)
    np.testing.assert_allclose(on.apply(outputs(), (), step(keys=False))[0], base, rtol=1e-6)


def test_every_combination_of_options_gives_finite_steps():
    options = dict(
        rule=["direct", "recursive"],
        alpha=["shared", "per_coordinate"],
        normalisation=["norm", "rms", "tensor_rms"],
        noise=["none", "per_step", "per_coordinate"],
        noise_in_use=["one", "two", "on"],
        initial_alpha=["drawn", "median"],
    )
    for values in itertools.product(*options.values()):
        rule = normalised_step(**dict(zip(options, values, strict=True)), alpha_bias=0.0)
        g, _ = rule.apply(outputs(), rule.init((2, 5), jnp.float32), step(explore=True))
        assert g.shape == (2, 5)
        assert np.isfinite(g).all()


def test_log_alpha_is_clipped_before_exp():
    rule = normalised_step(**DEFAULTS)
    g, _ = rule.apply(jnp.stack([jnp.ones((1, 2)), jnp.full((1, 2), 1e6)]), (), step(tasks=1, sizes=(2,)))
    assert np.isfinite(g).all()


@pytest.mark.parametrize("noise", ["per_step", "per_coordinate"])
def test_with_noise_every_update_explores(noise):
    optimizer = build_optimizer(choice("lstm", noise=noise, hidden_size=3, num_layers=1))
    noisy, phi = with_noise(optimizer), optimizer.init(jax.random.key(0))
    assert with_noise(optimizer) is noisy and noisy.noise == "always"  # the compiled code hangs on its identity
    one, keys = {"x": jnp.arange(1.0, 4.0)}, jax.random.split(jax.random.key(7), 2)
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), one)
    for bind, updates, key in (("bind", one, keys[0]), ("bind_tasks", tasks, keys)):
        plain, tx = getattr(optimizer, bind)(phi), getattr(noisy, bind)(phi)
        state = plain.init(updates)
        drawn = tx.update(updates, state, updates, key=key, explore=False, value=None)[0]
        explored = plain.update(updates, state, updates, key=key, explore=True)[0]
        np.testing.assert_array_equal(drawn["x"], explored["x"])
        assert not np.allclose(drawn["x"], plain.update(updates, state, updates, key=key)[0]["x"])
        with pytest.raises(ValueError, match="key=step_key"):
            tx.update(updates, state, updates)
    with pytest.raises(ValueError, match="no step noise"):
        with_noise(build_optimizer(choice("lstm", noise="none")))
