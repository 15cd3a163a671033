"""Bayesian regression against closed forms: the posterior, the evidence, and what the bound lies below it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import metaopt
from metaopt.choices import parse_choice
from metaopt.errors import UserError
from metaopt.experiment import build_family
from metaopt.tasks import elbo_linear
from metaopt.tasks.evidence import laplace, linear_error, linear_posterior, normal_divergence


def problem(seed=0, examples=12, dim=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(examples, dim))
    return X, X @ rng.normal(size=dim) + 0.7 * rng.normal(size=examples), np.array([0.3, 1.0, 4.0])[:dim]


def test_the_closed_form_is_the_law_of_the_data(x64):
    """y ~ N(0, I/β + X A⁻¹ Xᵀ), and the posterior's mean is that of ridge regression."""
    X, y, prior = problem()
    found = linear_posterior(jnp.asarray(X), jnp.asarray(y), jnp.asarray(prior), 2.0)
    covariance = np.eye(12) / 2 + X @ np.diag(1 / prior) @ X.T
    assert float(found.log_evidence) == pytest.approx(stats.multivariate_normal(np.zeros(12), covariance).logpdf(y))
    np.testing.assert_allclose(found.mean, np.linalg.solve(np.diag(prior) / 2 + X.T @ X, X.T @ y), rtol=1e-10)


def test_laplace_is_exact_where_the_error_is_quadratic(x64):
    X, y, prior = (jnp.asarray(part) for part in problem())
    exact = linear_posterior(X, y, prior, 2.0)
    found = laplace(lambda w: linear_error(w, X, y, prior, 2.0), jnp.ones(3))
    for part, known in zip(found, exact, strict=True):
        np.testing.assert_allclose(part, known, rtol=1e-9)


def test_laplace_of_a_logistic_regression_against_quadrature(x64):
    """Close, not exact: log evidence of 40 labels and one weight."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    labels = np.where(rng.uniform(size=40) < 1 / (1 + np.exp(-1.5 * x)), 1.0, -1.0)

    def error(w):
        return -jnp.sum(jax.nn.log_sigmoid(labels * x * w[0])) + 0.5 * (w[0] ** 2 + jnp.log(2 * jnp.pi))

    found = laplace(error, jnp.array([8.0]))
    exact = np.log(integrate.quad(jax.jit(lambda w: jnp.exp(-error(jnp.array([w])))), -2, 10)[0])
    assert float(found.log_evidence) == pytest.approx(exact, abs=0.02)
    assert abs(float(found.log_evidence) - exact) > 1e-6


def test_laplace_refuses_a_flat_direction(x64):
    with pytest.raises(ValueError, match=r"eigenvalue .* give every parameter a prior of positive precision"):
        laplace(lambda w: (w[0] - 1) ** 2, jnp.zeros(2))


def test_normal_divergence_against_draws():
    mean, log_scale, precision = 0.7, -0.4, 2.5
    draws = stats.norm(mean, np.exp(log_scale)).rvs(40_000, random_state=0)
    ratio = stats.norm(mean, np.exp(log_scale)).logpdf(draws) - stats.norm(0, precision**-0.5).logpdf(draws)
    found = float(normal_divergence(jnp.float32(mean), jnp.float32(log_scale), jnp.float32(precision)))
    assert abs(found - ratio.mean()) < 4 * ratio.std() / 200


# ----- elbo_linear ----------------------------------------------------------------------------------------------------


def at(family, seed=3):
    task = family.sample(jax.random.key(seed), ())
    return task, family.eval_batch(task, (), "train")


@pytest.mark.parametrize("orthogonal", [False, True])
def test_the_bound_of_drawn_samples_is_that_of_the_evaluation(orthogonal):
    family = elbo_linear(num_samples=8, orthogonal=orthogonal)
    task, points = at(family)
    params = family.init(jax.random.key(1), task)
    keys = jax.random.split(jax.random.key(2), 2000)
    drawn = np.asarray(jax.vmap(lambda key: family.loss(params, task, family.batch(key, task, ())))(keys))
    exact = float(family.loss(params, task, points))
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / 2000**0.5
    residual = task.y - task.X @ params["mean"]  # by hand
    fit = 0.5 * (residual @ residual + jnp.sum(task.X**2 @ jnp.exp(2 * params["log_scale"]))) + 10 * np.log(2 * np.pi)
    divergence = jnp.sum(normal_divergence(params["mean"], params["log_scale"], jnp.ones(())))
    assert exact == pytest.approx(float(fit + divergence), rel=1e-5)


@pytest.mark.parametrize(("orthogonal", "prior"), [(True, 1.0), (True, 3.0), (False, 1.0)])
def test_the_gap_at_the_optimum_is_the_closed_form_s(orthogonal, prior):
    """σ_j² = 1/P_jj; the gap is ½ (Σ log P_jj - log|P|), 0 for a diagonal posterior."""
    family = elbo_linear(orthogonal=orthogonal, prior_precision=prior)
    task, points = at(family)
    known = linear_posterior(task.X, task.y, jnp.full(4, prior), 1.0)
    best = {"mean": known.mean, "log_scale": -0.5 * jnp.log(jnp.diagonal(known.precision))}
    gap = 0.5 * float(jnp.sum(jnp.log(jnp.diagonal(known.precision))) - jnp.linalg.slogdet(known.precision)[1])
    found = family.metrics(best, task, points)
    assert float(found["gap"]) == pytest.approx(gap, abs=1e-4) and (gap < 1e-4) == orthogonal
    slope = jax.grad(family.loss)(best, task, points)
    np.testing.assert_allclose(np.concatenate(jax.tree.leaves(slope)), 0.0, atol=1e-4)
    assert float(found["log_evidence"]) == pytest.approx(float(known.log_evidence))
    assert float(family.lower_bound(task)) == pytest.approx(-float(known.log_evidence))
    for seed in range(5):
        moved = jax.tree.map(lambda leaf, s=seed: leaf + 0.3 * jax.random.normal(jax.random.key(s), leaf.shape), best)
        assert float(family.metrics(moved, task, points)["gap"]) > gap


def test_an_inner_run_closes_the_gap():
    optimizer = metaopt.OPTIMIZERS["adam"](learning_rate=0.1)
    family = elbo_linear(orthogonal=True, num_samples=32)
    entry = {"adam": (optimizer, optimizer.init(jax.random.key(0)))}
    curves = metaopt.evaluate(entry, family, jax.random.key(1), horizon=200, num_tasks=4)
    assert curves.final["adam"]["train"]["gap"].max() < 0.1 < (curves.loss["adam"][:, 0] - curves.lower_bound).min()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("elbo_linear:noise=0", r"`noise` .0.0. must be above 0"),
        ("elbo_linear:prior_precision=-1", r"`prior_precision` .-1.0. must be above 0"),
        ("elbo_linear:num_samples=0", "`num_samples` is 0; give a whole number of 1 or more"),
        ("elbo_linear:orthogonal=true,num_examples=3", "of 4 or more, for `dim` orthogonal columns"),
        ("elbo_linear:dim=0", "`dim` is 0"),
    ],
)
def test_refuses_with_a_remedy(text, message):
    with pytest.raises(UserError, match=message):
        build_family(parse_choice(text))
