"""Multimodels: distances fail where the s-score does not, evidence against quadrature, the page is its JSON's."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from experiments.model_selection.multimodels import page, write
from metaopt.tasks.expectation_maximisation import em
from metaopt.tasks.mixture import Mixture, Rows

LITTLE, CONTRADICTS, HALF = ((0.0, 1.0), (10.0, 1e5)), ((0.0, 1.0), (3.0, 1.0)), ((0.0, 1.0), (1.6, 1.0))


def test_every_distance_fails_requirement_5():
    """A similarity that falls with such a distance ranks a law that says little below one that contradicts."""
    little, contradicts, half = (write.distances(*pair) for pair in (LITTLE, CONTRADICTS, HALF))
    for name in ("Kullback-Leibler", "Jensen-Shannon", "Hellinger, squared", "Bhattacharyya"):
        assert little[name] > contradicts[name] > half[name]
    assert little["Bregman (∫(g1 - g2)²)"] > half["Bregman (∫(g1 - g2)²)"]
    assert little["s-score"] > 0.999 and contradicts["s-score"] < 0.11 and half["s-score"] < 0.53


def test_distances_by_quadrature():
    first, second = (0.3, 1.0), (1.0, 2.0)
    found = write.distances(first, second)
    a, b = (lambda w, law=law: norm.pdf(w, *law) for law in (first, second))
    integral = lambda f: quad(f, -15, 15, limit=200)[0]  # noqa: E731
    assert found["Kullback-Leibler"] == pytest.approx(integral(lambda w: a(w) * math.log(a(w) / b(w))))
    half = integral(lambda w: a(w) * math.log(2 * a(w) / (a(w) + b(w))))
    half += integral(lambda w: b(w) * math.log(2 * b(w) / (a(w) + b(w))))
    assert found["Jensen-Shannon"] == pytest.approx(half / 2, rel=1e-5)
    assert found["Hellinger, squared"] == pytest.approx(1 - integral(lambda w: math.sqrt(a(w) * b(w))))
    assert found["Bregman (∫(g1 - g2)²)"] == pytest.approx(integral(lambda w: (a(w) - b(w)) ** 2))


def _rows(K):
    key = jax.random.key(0)
    X = jnp.ones((40, 1))
    y = jnp.where(jnp.arange(40) % 3 == 0, 1.5, -1.0) if K == 2 else jnp.full(40, 0.5)
    return Rows(X, y + 0.3 * jax.random.normal(key, (40,)))


def test_the_evidence_of_one_expert_is_the_closed_form():
    mixture, rows = Mixture(1, 1, "constant", coupling=0.0), _rows(1)
    params, _ = em(mixture, mixture.init(jax.random.key(0)), rows, steps=5)
    X = np.asarray(rows.X)
    exact = multivariate_normal(np.zeros(40), X @ X.T + 0.09 * np.eye(40)).logpdf(np.asarray(rows.y))
    assert write.log_evidence(mixture, params, rows) == pytest.approx(exact, abs=0.01)


def test_the_evidence_of_two_experts_by_quadrature():
    """On a grid of both means and the weight; Laplace's method is near it."""
    mixture, rows = Mixture(2, 1, "constant", coupling=0.0), _rows(2)
    start = mixture.init(jax.random.key(0)) | {"experts": jnp.array([[1.0], [-1.0]])}
    params, _ = em(mixture, start, rows, steps=50)
    w, p = np.linspace(-1.4, 1.9, 111), np.linspace(0.01, 0.99, 50)
    densities = norm.pdf(np.asarray(rows.y)[:, None], w, 0.3)  # [objects, w]
    total = np.zeros((len(p), len(w), len(w)))
    for density in densities:
        total += np.log(p[:, None, None] * density[:, None] + (1 - p[:, None, None]) * density[None, :] + 1e-300)
    total += norm.logpdf(w)[:, None] + norm.logpdf(w)[None, :]
    exact = logsumexp(total) + 2 * math.log(w[1] - w[0]) + math.log(p[1] - p[0])
    assert write.log_evidence(mixture, params, rows) == pytest.approx(exact, abs=0.1)


def test_the_page_is_what_the_figures_say():
    record = json.loads((write.HERE / "results.json").read_text(encoding="utf-8"))
    assert page.write(record) == (write.HERE / "README.md").read_text(encoding="utf-8")
    assert set(record) == set(write.PARTS)
    known, table = (record["optimizers"][name]["rows"] for name in ("known experts", "diabetes"))
    for rows in (known, table):  # what the page says in words
        assert min(rows, key=lambda name: float(rows[name]["loss"])) == "EM"
        assert min(rows, key=lambda name: float(rows[name]["nll"][1])) != "EM"
    low, high = known["EM"]["interval"]
    assert all(row["interval"][0] <= high and low <= row["interval"][1] for row in known.values())
    assert known["networks_bp"]["curve"][1][-1] > known["networks_bp"]["curve"][1][0]
