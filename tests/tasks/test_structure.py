"""Gumbel-Softmax laws, and the bound of a model that chooses among functions, against closed forms and quadrature."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metaopt
from metaopt.choices import parse_choice
from metaopt.errors import UserError
from metaopt.experiment import build_family
from metaopt.tasks import elbo_structure, structure
from metaopt.tasks.structure import expected_fit, gumbel_softmax, prior_divergence, simplex_divergence, widths


def log_density(point, logits, temperature):
    """log of the Gumbel-Softmax density (Maddison et al. 2017, equation 6), by hand, in numpy."""
    size, logits = logits.shape[-1], logits - np.log(np.exp(logits).sum())
    front = np.sum(np.log(np.arange(1, size))) + (size - 1) * np.log(temperature)
    terms = logits - temperature * np.log(point)
    return front + np.sum(terms - np.log(point), axis=-1) - size * np.log(np.exp(terms).sum(axis=-1))


@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_the_divergence_on_the_simplex_is_that_of_the_densities_whatever_the_temperature(temperature, x64):
    logits, others = np.array([0.3, -0.5, 1.0]), np.array([0.0, 0.8, -0.2])
    draws = gumbel_softmax(
        jnp.asarray(logits), jax.random.gumbel(jax.random.key(0), (40_000, 3), jnp.float64), temperature
    )
    ratio = log_density(np.asarray(draws), logits, temperature) - log_density(np.asarray(draws), others, temperature)
    found = float(simplex_divergence(jnp.asarray(logits), jnp.asarray(others)))
    assert abs(found - ratio.mean()) < 4 * ratio.std() / 200


def test_the_divergence_between_two_candidates_is_known():
    """2 (a coth a - 1), 2a the difference of the log odds; 0 between equal laws, whatever is added to logits."""
    for a in (0.01, 0.7, 3.0, 12.0):
        found = simplex_divergence(jnp.array([a, -a]), jnp.array([0.0, 0.0]) + 3.0)
        assert float(found) == pytest.approx(2 * (a / np.tanh(a) - 1), abs=2e-5)
    assert float(simplex_divergence(jnp.array([1.0, -2.0, 0.5]), jnp.array([4.0, 1.0, 3.5]))) == 0


def test_points_of_the_simplex_reach_its_corners_as_the_temperature_falls():
    """The largest is candidate k with probability softmax(logits)_k at every temperature."""
    logits, noise = jnp.array([1.0, 0.0, -1.0]), jax.random.gumbel(jax.random.key(0), (20_000, 3))
    shares = np.bincount(np.argmax(gumbel_softmax(logits, noise, 0.5), axis=1), minlength=3) / 20_000
    wanted = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_array_less(np.abs(shares - wanted), 4 * np.sqrt(wanted * (1 - wanted) / 20_000))
    corner = [float(jnp.mean(jnp.max(gumbel_softmax(logits, noise, t), axis=1))) for t in (5.0, 0.5, 0.02)]
    assert corner == sorted(corner) and corner[0] < 0.5 and corner[-1] > 0.98


def test_the_fit_is_that_of_drawn_weights():
    family = elbo_structure()
    task = family.sample(jax.random.key(0), ())
    params = jax.tree.map(lambda leaf: leaf + 0.5, family.init(jax.random.key(1), task))
    gumbel = family.batch(jax.random.key(2), task, ())[:1]
    gamma = gumbel_softmax(params["logits"], gumbel[0], 0.5)
    drawn = jax.random.normal(jax.random.key(3), (20_000, 2, 3))
    weights = gamma * (params["mean"] + jnp.exp(widths(params)) * drawn)
    squares = np.asarray(jnp.sum((task.y - jnp.einsum("nek,sek->sn", task.features, weights)) ** 2, axis=1))
    fits = -0.5 * (4 * squares + 40 * np.log(2 * np.pi / 4))
    assert abs(float(expected_fit(params, task, gumbel, 0.5, 4.0)) - fits.mean()) < 4 * fits.std() / 20_000**0.5


def test_the_bound_lies_below_the_evidence_and_close_to_it():
    """One edge of two candidates: the evidence by integrating the closed form over γ's law."""
    family = elbo_structure(edges=1, candidates=2, num_examples=15)
    task = family.sample(jax.random.key(5), ())
    uniform = (np.arange(2000) + 0.5) / 2000
    gamma = 1 / (1 + np.exp(-np.log(uniform / (1 - uniform)) / 0.5))  # the quantiles of the Gumbel-Softmax law of two
    features, y = np.asarray(task.features, np.float64)[:, 0], np.asarray(task.y, np.float64)

    def log_evidence(g):
        covariance = (features * np.array([g, 1 - g]) ** 2) @ features.T + 0.25 * np.eye(15)
        return -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1] + 15 * np.log(2 * np.pi))

    logs = np.array([log_evidence(g) for g in gamma])
    exact = logs.max() + np.log(np.mean(np.exp(logs - logs.max())))
    optimizer = metaopt.OPTIMIZERS["adam"](learning_rate=0.05)
    one = {"adam": (optimizer, optimizer.init(jax.random.key(0)))}
    fixed = dataclasses.replace(family, sample=lambda key, data: task)
    curves = metaopt.evaluate(one, fixed, jax.random.key(1), horizon=200, num_tasks=2)
    gaps = curves.loss["adam"][:, -1] + exact
    assert 0 < gaps.min() < 3.5 < (curves.loss["adam"][:, 0] + exact).min()  # u and γ depend in the posterior, not in q
    assert -exact > float(family.lower_bound(task))


def test_prior_divergence_is_0_at_the_prior():
    log_scale = jnp.zeros((2, 3)) - structure.LEAST_LOG_SCALE
    raw = jnp.log(jnp.expm1(log_scale)) + structure.LEAST_LOG_SCALE  # its width is that of the prior
    params = {"mean": jnp.zeros((2, 3)), "log_scale": raw, "logits": jnp.ones((2, 3))}
    assert float(prior_divergence(params, jnp.ones((2, 3)), jnp.zeros((2, 3)))) == pytest.approx(0, abs=1e-5)


def test_the_evidence_of_every_structure_tells_the_teacher():
    """Enumerated in closed form, on data with little noise."""
    family = elbo_structure(num_examples=100, noise=0.2)
    chosen = structure.structures(2, 3)
    assert chosen.tolist()[:4] == [[0, 0], [0, 1], [0, 2], [1, 0]]
    for seed in range(5):
        task = family.sample(jax.random.key(seed), ())
        evidence = structure.structure_evidence(task, chosen, jnp.ones((2, 3)), 0.2)
        np.testing.assert_array_equal(chosen[int(jnp.argmax(evidence))], task.truth)


def test_the_teacher_is_recovered_and_the_temperature_falls():
    family = elbo_structure(num_examples=100, noise=0.2, start_temperature=2.0, anneal_steps=50)
    task = family.sample(jax.random.key(0), ())
    params = family.init(jax.random.key(1), task)
    state = family.oracle.init(family, task, params, jax.random.key(2))
    seen = {}
    for count in (0, 25, 50, 80):
        found, after = family.oracle.estimate(family, task, params, state + count, jax.random.key(3))
        seen[count] = float(found.info["temperature"])
        assert int(after) == count + 1
    assert seen == pytest.approx({0: 2.0, 25: 1.0, 50: 0.5, 80: 0.5})
    optimizer = metaopt.OPTIMIZERS["adam"](learning_rate=0.05)
    entry = {"adam": (optimizer, optimizer.init(jax.random.key(0)))}
    curves = metaopt.evaluate(entry, family, jax.random.key(1), horizon=300, num_tasks=8)
    assert curves.final["adam"]["train"]["recovered"].mean() >= 0.75


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("elbo_structure:temperature=0", "`temperature` is 0.0; give 0.01 or more: at 0 the law sits on the corners"),
        ("elbo_structure:temperature=-1", "`temperature` is -1.0; give 0.01 or more"),
        ("elbo_structure:start_temperature=0", "`start_temperature` is 0.0; give 0.01 or more"),
        ("elbo_structure:candidates=0", "`candidates` is 0; give a whole number from 1 to 4: the first of line, parab"),
        ("elbo_structure:edges=0", "`edges` is 0"),
        ("elbo_structure:num_samples=0", "`num_samples` is 0"),
        ("elbo_structure:anneal_steps=0", "`anneal_steps` is 0"),
        ("elbo_structure:noise=-0.1", "`noise` .-0.1. must be above 0"),
    ],
)
def test_refuses_with_a_remedy(text, message):
    with pytest.raises(UserError, match=message):
        build_family(parse_choice(text))


def test_too_many_structures_are_not_enumerated():
    with pytest.raises(ValueError, match="13 edges of 2 candidates have 8,192 structures.* give fewer edges"):
        structure.structures(13, 2)
