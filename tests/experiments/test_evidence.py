"""The outer loop on a model of four structures, whose evidences are known; the criteria, each against closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.model_selection.evidence import choice, criteria
from experiments.model_selection.evidence.outer import solve
from metaopt.tasks import elbo_structure, structure
from metaopt.tasks.evidence import linear_posterior
from metaopt.tasks.generalising import Metaparameters, corner, even

NOISE, CORNERS = 1.0, structure.structures(2, 2)
LAW = {"shape": 2.0, "rate": 2.0}


def problem(law, weight=0.0, **changed):
    return Metaparameters(laws=law[None], struct=np.array([weight]), **LAW, **changed)


EVEN = (0.0, 0.3, 3.0, 300.0)
SWEEP = [
    *[problem(even(2, 2), weight) for weight in EVEN],
    *[problem(corner(each, 2), 10.0) for each in CORNERS],
    problem(even(2, 2), prior_l=0.0),
]


@pytest.fixture(scope="module")
def solved():
    family = elbo_structure(candidates=2, num_examples=20, noise=NOISE)
    task = family.sample(jax.random.key(1), ())
    begin = np.zeros((len(SWEEP), 2, 2), np.float32)
    begin[len(EVEN) : len(EVEN) + 4] = 0.5 * np.stack([corner(each, 2) for each in CORNERS])
    found, from_even = (
        solve(task, NOISE, SWEEP, outer_steps=120, inner_steps=30, begin=each) for each in (begin, 0 * begin)
    )
    assert np.all(found.value > from_even.value - 0.5)  # no better maximum was missed by where it began
    return task, found


def chances(found, index):
    """[edges, candidates] of the prior and of q."""
    return tuple(np.asarray(jax.nn.softmax(part["logits"][index])) for part in (found.hyper, found.params))


def test_the_evidence_bound_chooses_the_structure_of_the_largest_evidence(solved):
    task, found = solved
    evidence = structure.structure_evidence(task, CORNERS, jnp.ones((2, 2)), NOISE)
    best = CORNERS[int(jnp.argmax(evidence))]
    prior, q = chances(found, 0)
    np.testing.assert_array_equal(prior.argmax(-1), best)
    np.testing.assert_array_equal(q.argmax(-1), best)
    assert prior.max(-1).min() > 0.9
    # Of a candidate that is not used, q is the prior, and h* is where its law is largest: (λ1 + 1)/λ2.
    unused = found.hyper["precision"][0][np.arange(2), 1 - best]
    np.testing.assert_allclose(unused, 1.5, rtol=0.05)


def test_a_growing_weight_of_the_even_law_adds_structure(solved):
    _, found = solved
    largest = [chances(found, index)[0].max(-1).mean() for index in range(len(EVEN))]
    assert largest == sorted(largest, reverse=True) and largest[-1] < 0.51


def test_a_sweep_over_corners_visits_every_structure_and_is_exhaustive_search(solved):
    """Without its last terms Q is then the bound of each structure, in the order of their evidences."""
    task, found = solved
    bound, evidence = [], []
    for index, each in enumerate(CORNERS):
        at = len(EVEN) + index
        for part in chances(found, at):
            np.testing.assert_array_equal(part.argmax(-1), each)
            assert part.max(-1).min() > 0.99
        bound.append(found.fit[at] - found.divergence[at])
        precisions = jnp.asarray(found.hyper["precision"][at])
        evidence.append(float(structure.structure_evidence(task, each[None], precisions, NOISE)[0]))
    assert np.all(np.array(bound) < np.array(evidence) + 0.05)
    assert np.array_equal(np.argsort(bound), np.argsort(evidence))


def test_no_inner_prior_is_least_squares_of_the_chosen_structure(solved):
    task, found = solved
    params = jax.tree.map(lambda leaf: leaf[-1], found.params)
    gamma = chances(found, -1)[1]
    assert gamma.max(-1).min() > 0.9
    assert float(found.fit[-1]) >= max(float(value) for value in found.fit[:-1]) - 1e-3
    used = np.take_along_axis(np.asarray(structure.widths(params)), gamma.argmax(-1)[:, None], 1)
    assert used.max() < -4.5


# ----- what does not generalise ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theorem():
    return {row["criterion"]: row for row in criteria.theorem()}


def test_the_example_is_as_it_says():
    X, y = criteria.example()
    np.testing.assert_allclose(X.T @ X, 30 * np.eye(3), atol=1e-10)
    np.testing.assert_allclose(np.linalg.lstsq(X, y, rcond=None)[0], criteria.WEIGHTS, atol=1e-12)
    covariance = np.eye(30) + X[:, :2] @ X[:, :2].T / 2.5
    exact = -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1] + 30 * np.log(2 * np.pi))
    assert criteria.evidence((0, 1), 2.5) == pytest.approx(exact)
    by_hand = 0.0
    for i in range(30):
        kept = np.arange(30) != i
        w = np.linalg.solve(np.eye(2) + X[kept, :2].T @ X[kept, :2], X[kept, :2].T @ y[kept])
        by_hand += criteria.log_likelihood(y[i : i + 1] - X[i : i + 1, :2] @ w)
    # The hat matrix is that of a posterior with all examples: leaving one out by its leverage is exact.
    assert criteria.held_out((0, 1)) == pytest.approx(by_hand)


def test_likelihood_knows_neither_complexity_nor_evidence(theorem):
    row = theorem["likelihood"]
    assert row["gain"] == pytest.approx(0.5 * 30 * 0.32**2) and row["bayes"] < 0  # it takes what the evidence rejects,
    assert row["tie"] == pytest.approx(0, abs=1e-9) and row["useless"] == pytest.approx(
        -0.5 * np.log(31)
    )  # or does not


def test_the_posterior_s_maximum_over_h_is_at_no_h(theorem):
    """Up by ½ log of the precision for each weight, whatever the data; the evidence goes to that of no weights."""
    row = theorem["posterior"]
    assert row["at"]["1e12"] - row["at"]["1e8"] == pytest.approx(np.log(1e4), rel=1e-3)
    assert row["evidence"]["1e12"] == pytest.approx(criteria.likelihood(()), abs=1e-6)


def test_the_bound_cannot_be_the_likelihood_nor_cross_validation_the_evidence(theorem):
    assert theorem["ELBO"]["bayes"] < 0 < theorem["ELBO"]["gain"]
    assert theorem["cross-validation"]["bayes"] < 0 < theorem["cross-validation"]["held_out"]


@pytest.mark.parametrize(("name", "price"), [("AIC", 1.0), ("BIC", 0.5 * np.log(3))])
def test_counting_parameters_by_their_divergence_is_not_continuous(theorem, name, price):
    """As printed a weight goes past the threshold until that costs its price, w - ŵ = √(2 price/N), then jumps back."""
    row = theorem[name]["printed"]
    far = 0.32 + np.sqrt(2 * price / 30)
    assert row["before"][0] == pytest.approx(far, abs=3e-3) and row["after"][0] == pytest.approx(0.32)
    assert row["threshold"] == pytest.approx(0.5 * (far**2 + np.exp(-12) - 1) + 6, abs=2e-3)
    meant = theorem[name]["meant"]
    assert meant["before"][1] == pytest.approx(-6) and meant["after"][1] > -2


def test_enumeration_by_likelihood_has_other_winners_than_the_evidence(theorem):
    assert theorem["enumeration"]["best"] == [0, 1] and theorem["enumeration"]["evidence_best"] == [0]


# ----- accuracy against stability -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("examples", "size"), [(20, 3), (8, 12)])
def test_scores_are_the_closed_forms(examples, size, x64):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(examples, size))
    y = X[:, 0] + 0.5 * rng.normal(size=examples)
    found = choice.fit(X, y, 0.5)
    exact = [linear_posterior(jnp.asarray(X), jnp.asarray(y), jnp.full(size, alpha), 4.0) for alpha in choice.ALPHAS]
    evidence = np.array([float(each.log_evidence) for each in exact])
    gaps = [
        0.5 * float(jnp.sum(jnp.log(jnp.diagonal(each.precision))) - jnp.linalg.slogdet(each.precision)[1])
        for each in exact
    ]
    assert found.score["evidence"] == pytest.approx(evidence.max())
    np.testing.assert_allclose(found.weights["evidence"], exact[int(evidence.argmax())].mean, rtol=1e-6, atol=1e-9)
    assert found.score["ELBO"] == pytest.approx((evidence - gaps).max())
    best = criteria.log_likelihood(2 * (y - X @ np.linalg.lstsq(X, y, rcond=None)[0])) + examples * np.log(2)
    assert found.score["AIC"] == pytest.approx(best - size, abs=1e-6)
    assert found.score["BIC"] == pytest.approx(best - 0.5 * size * np.log(examples), abs=1e-6)
    fold = np.arange(examples) % choice.FOLDS
    scores = []
    for alpha in choice.ALPHAS:
        total = 0.0
        for held in range(choice.FOLDS):
            A, b = X[fold != held], y[fold != held]
            w = np.linalg.solve(4 * A.T @ A + alpha * np.eye(size), 4 * A.T @ b)
            total += criteria.log_likelihood(2 * (y[fold == held] - X[fold == held] @ w)) + np.sum(
                fold == held
            ) * np.log(2)
        scores.append(total)
    assert found.score["cross-validation"] == pytest.approx(max(scores), rel=1e-6)


def test_removing_a_redundant_parameter_leaves_the_likelihood():
    rows = {(row["apart"], row["removed"]): row for row in choice.redundant_parameter()["rows"]}
    assert rows[0.0, "copy"]["likelihood"] == pytest.approx(0, abs=1e-9)
    for apart in (0.0, 0.01, 0.1):
        for removed in ("copy", "useless"):
            row = rows[apart, removed]  # below the 1.92 that a test at 5% would call a change
            assert -1.92 < row["likelihood"] < 1e-9 and row["ELBO"] > 1
        assert rows[apart, "needed"]["likelihood"] < -50


@pytest.mark.parametrize("name", choice.CONFIGURATIONS)
def test_configurations_of_features_are_what_they_are_called(name):
    draw, made, _ = choice.CONFIGURATIONS[name]
    X, target = draw(np.random.default_rng(0), 4000)
    left = target - X @ np.linalg.lstsq(X, target, rcond=None)[0]
    explained = 1 - np.var(left) / np.var(target)
    correlated = np.abs(np.corrcoef(X.T) - np.eye(8)).max() > 0.9
    assert (explained > 0.98) == ("inadequate" not in name)
    assert correlated == ("random" not in name)
    if made:
        assert np.allclose(X[:, made] @ choice.SIGNAL, target)
