"""Exact values of families whose gradient is an expectation: against finer grids, closed forms, and draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.choices import parse_choice
from metaopt.errors import UserError
from metaopt.experiment import build_family
from metaopt.tasks import energy_model, latent_gaussian, tuned_energy_model, tuned_mixture
from metaopt.tasks.energy import _log_density, _reward, _rewards, mixture_values, separated_optimum
from metaopt.tasks.energy_networks import draw_from, on_grid, points

CASES = [
    ("dual", "smooth"),
    ("dual", "hard"),
    ("hexagon_sparse", "hard"),
    ("asymmetric", "smooth"),
    ("asymmetric", "hard"),
]


@pytest.mark.parametrize(("target", "reward"), CASES)
def test_values_of_a_mixture_are_those_of_a_fine_grid(target, reward):
    family = tuned_mixture(target=target, reward=reward, spread=0.0)
    task = family.sample(jax.random.key(0), ())
    theta = task.reference + 0.5 * jnp.sin(1.0 + jnp.arange(len(task.reference)))
    side = (np.arange(900) + 0.5) * (20 / 900) - 10  # no node lies on the hard reward's edge
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), jnp.float32)
    log_p = np.asarray(jax.vmap(lambda x: _log_density(theta, task, x))(grid), np.float64) - np.log(2 * np.pi)
    log_ref = np.asarray(jax.vmap(lambda x: _log_density(task.reference, task, x))(grid), np.float64) - np.log(
        2 * np.pi
    )
    cell, gain = (20 / 900) ** 2, np.asarray(jax.vmap(lambda x: _reward(reward, task.centre, x))(grid), np.float64)
    assert cell * np.exp(log_p).sum() == pytest.approx(1, abs=1e-4)  # the normaliser does not move with θ
    one_way, other_way = (
        (np.exp(log_ref) * (log_ref - log_p)).sum() * cell,
        (np.exp(log_p) * (log_p - log_ref)).sum() * cell,
    )
    found = [mixture_values(theta, task, reward, kl) for kl in ("ref_model", "model_ref")]
    assert float(found[0].reward) == pytest.approx(cell * (np.exp(log_p) * gain).sum(), abs=2e-4)
    assert float(found[0].divergence) == pytest.approx(one_way, abs=1e-4)
    assert float(found[1].divergence) == pytest.approx(other_way, abs=1e-4)


@pytest.mark.parametrize("kl", ["ref_model", "model_ref"])
@pytest.mark.parametrize("target", ["dual", "hexagon_tight"])
def test_separated_optima_are_where_the_exact_gradient_is_nought(target, kl):
    family = tuned_mixture(target=target, reward="hard" if target == "hexagon_tight" else "smooth", kl=kl, spread=0.0)
    task = family.sample(jax.random.key(0), ())
    gains = np.asarray(_rewards(task, "hard" if target == "hexagon_tight" else "smooth"), np.float64)
    reference = np.asarray(jax.nn.softmax(task.reference), np.float64)
    best = separated_optimum(gains, reference, 0.1, kl)
    theta = jnp.log(jnp.asarray(best, jnp.float32))
    np.testing.assert_allclose(jax.grad(family.loss)(theta, task, ()), 0.0, atol=2e-5)
    value = float(family.loss(theta, task, ()))
    assert family.lower_bound(task) < value < float(family.loss(theta + 0.3 * jnp.sin(jnp.arange(len(best))), task, ()))
    if (target, kl) == ("dual", "ref_model"):
        assert best[1] == pytest.approx(0.9287, abs=1e-4) and best @ gains == pytest.approx(0.6024, abs=1e-4)
    if (target, kl) == ("dual", "model_ref"):
        assert best[1] == pytest.approx(0.9985, abs=1e-4) and best @ gains == pytest.approx(0.6476, abs=1e-4)


def test_overlapping_components_are_not_separated():
    """On the hexagon the divergence of the weights is not that of the mixtures, which have less to tell them apart."""
    family = tuned_mixture(target="hexagon_sparse", reward="hard", spread=0.0)
    task = family.sample(jax.random.key(0), ())
    p, v = jax.nn.softmax(task.reference), jax.nn.softmax(-task.reference)
    exact = mixture_values(-task.reference, task, "hard", "ref_model").divergence
    assert float(exact) < 0.95 * float(p @ jnp.log(p / v))


def test_the_latent_gaussian_s_bound_is_its_minimum():
    family = latent_gaussian(dim=6, features=2)
    for seed in range(3):
        task = family.sample(jax.random.key(seed), ())
        mean = jnp.linalg.lstsq(task.design, task.observed)[0]
        squares = jnp.sum((task.observed - task.design @ mean) ** 2)
        scale = 0.5 * jnp.log(jnp.maximum(squares / 6 - 0.25, 1e-12))
        best = float(family.loss({"mean": mean, "log_scale": scale}, task, ()))
        assert float(family.lower_bound(task)) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("data", ["moons", "circles", "blobs"])
def test_an_energy_model_begins_as_a_normal_law(data):
    family = energy_model(data=data)
    task = family.sample(jax.random.key(0), family.data)
    params = family.init(jax.random.key(1), task)
    batch = family.eval_batch(task, family.data, "test")
    exact = float(jnp.mean(jnp.sum(batch**2, axis=1)) / 2 + jnp.log(2 * jnp.pi))
    assert float(family.loss(params, task, batch)) == pytest.approx(exact, abs=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(batch, axis=1), np.linalg.norm(points(data, 500, 2), axis=1), rtol=1e-4)
    assert 0.5 < points(data, 1000, 0).std() < 2


def test_draws_from_the_grid_and_the_tuned_model_s_bound():
    family = energy_model(width=8)
    params = jax.tree.map(lambda leaf: leaf + 0.3, family.init(jax.random.key(0), ()))
    grid = on_grid(params)
    draws = jax.vmap(lambda key: draw_from(grid, key))(jax.random.split(jax.random.key(1), 4000))
    mean = jnp.exp(grid.log_probabilities) @ grid.centres
    np.testing.assert_array_less(jnp.abs(draws.mean(axis=0) - mean), 4 * draws.std(axis=0) / 4000**0.5)
    for kl in ("model_ref", "ref_model"):
        tuned = tuned_energy_model(params, kl=kl)
        values = tuned.metrics(params, (), tuned.data)
        assert float(values["kl"]) == pytest.approx(0, abs=1e-6)
        assert float(values["reward"]) == pytest.approx(float((draws[:, 1] < 0).mean()), abs=0.04)
        assert tuned.lower_bound < float(tuned.loss(params, (), tuned.data))
    # Its own best law, π ∝ ref e^{R/β}, has the value that is stated as the bound.
    tuned = tuned_energy_model(params)
    before = np.asarray(tuned.data["log_probabilities"], np.float64)
    best = before + np.asarray(tuned.data["gains"]) / 0.25
    best -= np.log(np.exp(best).sum())
    value = 0.25 * (np.exp(best) * (best - before)).sum() - np.exp(best) @ np.asarray(tuned.data["gains"])
    assert tuned.lower_bound == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tuned_mixture:target=hexagon", "give one of dual, hexagon_sparse"),
        ("tuned_mixture:beta=-1", "`beta` .-1.0. must be at least 0"),
        ("tuned_mixture:kl=reverse", "ref_model, model_ref"),
        ("latent_gaussian:dim=3", "`dim` is 3; give a whole number of 4 or more, more than `features`"),
        ("latent_gaussian:noise=0", "`noise` .0.0. must be above 0"),
        ("energy_model:data=moon", "did you mean 'moons'"),
        ("energy_model:batch_size=2001", "there are 2,000 training examples in moons"),
    ],
)
def test_refuses_with_a_remedy(text, message):
    with pytest.raises(UserError, match=message):
        build_family(parse_choice(text))
