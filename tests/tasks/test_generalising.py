"""The generalising problem at metaparameters that turn it into a problem whose answer is known.

One candidate an edge and orthogonal columns: q can be the posterior, and everything is in closed form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from metaopt.tasks.evidence import linear_posterior
from metaopt.tasks.generalising import (
    Metaparameters,
    bounded,
    check_metaparameters,
    corner,
    even,
    inner_objective,
    log_inverse_gamma,
    outer_objective,
)
from metaopt.tasks.structure import LEAST_LOG_SCALE, StructureTask, simplex_divergence, widths

NOISE, EXAMPLES = 0.5, 16
WEIGHTS = np.array([1.0, -0.6])  # least squares


@pytest.fixture
def task(x64):
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(EXAMPLES, 3)))
    features = np.sqrt(EXAMPLES) * q[:, :2]
    y = features @ WEIGHTS + q[:, 2]  # the rest is orthogonal to both
    arrays = (jnp.asarray(part) for part in (features, features[..., None], y))
    return StructureTask(*arrays, jnp.zeros(2, jnp.int32))


def law_of(mean, variance):
    """q's parameters, [edges, 1]."""
    raw = 0.5 * np.log(variance) - LEAST_LOG_SCALE
    return {
        "mean": jnp.asarray(mean)[:, None],
        "log_scale": jnp.asarray(np.log(np.expm1(raw)) + LEAST_LOG_SCALE)[:, None],
        "logits": jnp.zeros((2, 1)),
    }


def at(task, params, precision, metaparameters):
    """(L, ∂L/∂θ, Q, ∂Q/∂h along the precisions), at γ = 1."""
    gumbel = jnp.zeros((1, 2, 1))

    def hyper(log_precision):
        return {"precision": jnp.exp(log_precision)[:, None], "logits": jnp.zeros((2, 1))}

    log_precision = jnp.log(jnp.asarray(precision))
    inner, slope = jax.value_and_grad(inner_objective)(
        params, task, gumbel, hyper(log_precision), NOISE, metaparameters
    )
    outer, direct = jax.value_and_grad(
        lambda h: outer_objective(params, task, gumbel, hyper(h), NOISE, metaparameters)
    )(log_precision)
    return float(inner), slope, float(outer), direct


def posterior(precision, weight=1.0):
    """q* of the weights, its mean and variance, where KL counts `weight`-fold."""
    data = EXAMPLES / NOISE**2
    return data * WEIGHTS / (data + weight * precision), weight / (data + weight * precision)


def evidence(task, precision):
    return float(linear_posterior(task.inputs, task.y, jnp.asarray(precision), NOISE**-2).log_evidence)


def test_both_priors_at_1_are_the_evidence(task):
    """h* is that of automatic relevance determination, α_j = 1/(ŵ_j² - noise²/N), and Q the log evidence."""
    best = 1 / (WEIGHTS**2 - NOISE**2 / EXAMPLES)
    inner, slope, outer, direct = at(task, law_of(*posterior(best)), best, Metaparameters())
    assert inner == outer == pytest.approx(evidence(task, best), abs=1e-9)
    np.testing.assert_allclose(np.concatenate(jax.tree.leaves(slope)), 0, atol=1e-9)
    np.testing.assert_allclose(direct, 0, atol=1e-9)  # and ∇_θQ is 0, so that it is the hypergradient
    for factor in (0.7, 1.4):
        assert evidence(task, best * factor) < outer
    other = law_of(posterior(best)[0] + 0.1, posterior(best)[1])
    assert at(task, other, best, Metaparameters())[0] < inner


@pytest.mark.parametrize(("shape", "rate"), [(2.0, 0.5), (1.0, 3.0)])
def test_inverse_gamma_laws_of_h_make_it_a_maximum_a_posteriori(task, shape, rate):
    law = stats.invgamma(shape, scale=rate)
    assert float(log_inverse_gamma(jnp.float64(2.5), shape, rate)) == pytest.approx(law.logpdf(1 / 2.5))
    assert float(log_inverse_gamma(jnp.float64(2.5), 0.0, 0.0)) == 0

    def known(h):
        return -evidence(task, np.exp(h)) - law.logpdf(np.exp(-h)).sum()

    found = optimize.minimize(known, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
    best = np.exp(found.x)
    metaparameters = Metaparameters(shape=shape, rate=rate)
    _, _, outer, direct = at(task, law_of(*posterior(best)), best, metaparameters)
    assert outer == pytest.approx(-found.fun, abs=1e-8)
    np.testing.assert_allclose(direct, 0, atol=1e-5)


@pytest.mark.parametrize("weight", [0.1, 3.0])
def test_the_inner_prior_s_weight_is_a_tempered_posterior(task, weight):
    """λ_prior^L multiplies the ridge and widens q; it is the posterior of a noise √λ as wide."""
    params = law_of(*posterior(np.array([0.5, 2.0]), weight))
    _, slope, _, _ = at(task, params, np.array([0.5, 2.0]), Metaparameters(prior_l=weight))
    np.testing.assert_allclose(np.concatenate(jax.tree.leaves(slope)), 0, atol=1e-9)
    tempered = linear_posterior(task.inputs, task.y, jnp.array([0.5, 2.0]), 1 / (weight * NOISE**2))
    np.testing.assert_allclose(params["mean"][:, 0], tempered.mean, rtol=1e-9)
    np.testing.assert_allclose(jnp.exp(-2 * widths(params))[:, 0], jnp.diagonal(tempered.precision), rtol=1e-9)


def test_no_inner_prior_is_maximum_likelihood_with_widths_at_their_bound(task):
    """Least squares; log σ runs off, the width stays, whatever h is."""
    for precision in (np.ones(2), np.array([5.0, 0.1])):
        values = []
        for raw in (-2.0, -6.0, -12.0, -40.0):
            params = law_of(WEIGHTS, np.ones(2)) | {"log_scale": jnp.full((2, 1), raw)}
            inner, slope, _, _ = at(task, params, precision, Metaparameters(prior_l=0.0))
            np.testing.assert_allclose(slope["mean"], 0, atol=1e-9)
            assert np.all(slope["log_scale"] < 0)
            values.append(inner)
        assert values == sorted(values) and np.abs(slope["log_scale"]).max() < 1e-14
        assert float(widths(params).min()) == pytest.approx(LEAST_LOG_SCALE)
        residual = float(jnp.sum((task.y - task.inputs @ WEIGHTS) ** 2))
        largest = -0.5 * (residual / NOISE**2 + EXAMPLES * np.log(2 * np.pi * NOISE**2))
        assert values[-1] == pytest.approx(largest - EXAMPLES * np.exp(-12) / NOISE**2)


def test_weights_of_q_multiply_its_terms(task):
    params, precision = law_of(np.array([0.3, 0.2]), np.array([0.1, 0.2])), np.array([2.0, 0.5])
    one = at(task, params, precision, Metaparameters())[2]
    fit = at(task, params, precision, Metaparameters(prior_q=0.0))[2]
    divergence = fit - one
    both = at(task, params, precision, Metaparameters(likelihood=3.0, prior_q=0.5))[2]
    assert both == pytest.approx(3 * fit - 0.5 * divergence)


def test_laws_of_the_structure_pull_h_to_themselves(task):
    """Q falls by λ_struct KL(p(Γ|h)‖p'), which is 0 at p' alone."""
    laws = np.stack([even(2, 3), corner(np.array([0, 2]), 3)])
    np.testing.assert_allclose(jax.nn.softmax(laws[1]), np.eye(3)[[0, 2]], atol=1e-6)
    logits = jnp.asarray(laws)
    divergence = simplex_divergence(logits[:, None], logits[None]).sum(-1)
    np.testing.assert_allclose(jnp.diagonal(divergence), 0, atol=1e-6)
    assert float(divergence[0, 1]) > 10 and float(divergence[1, 0]) > 10
    assert float(bounded({"precision": jnp.zeros(()), "logits": jnp.full((), 99.0)})["logits"]) <= 20


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prior_l": -1.0}, r"`prior_l` .-1.0. must be at least 0"),
        ({"likelihood": -0.1}, r"`likelihood` .-0.1. must be at least 0"),
        ({"prior_q": float("nan")}, "`prior_q` .nan. must be"),
        ({"temperature": 0.0}, "`temperature` is 0.0; give 0.01 or more: at 0 the law sits on the corners"),
        ({"shape": 1.0}, "`shape` is 1.0 and `rate` 0.0; give both above 0"),
        ({"laws": np.zeros((1, 2, 2))}, "there are 1 `laws` and 0 weights of them in `struct`; give each law one"),
        ({"laws": np.zeros((1, 2, 2)), "struct": np.array([-2.0])}, r"`struct` .-2.0. must be at least 0"),
    ],
)
def test_refuses_what_is_no_problem(changed, message):
    with pytest.raises(ValueError, match=message):
        check_metaparameters(Metaparameters(**changed))
