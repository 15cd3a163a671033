"""(s, α)-adequacy and its level, merging, the laws of experts, and which runs are the same model."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from metaopt.evaluation.multimodels import adequacy, expert_laws, merged, prune, same_models
from metaopt.evaluation.similarity import Gaussian, Samples
from metaopt.evaluation.statistics import wilson_interval
from metaopt.registry import TASKS
from metaopt.tasks.expectation_maximisation import em
from metaopt.tasks.mixture import Mixture, Rows


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_level_is_alpha(dim, alpha):
    """Two least-squares estimates of equal parameters from different objects, noise known, are told apart as often."""
    rng, found, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        laws = []
        for _ in range(2):
            X = rng.normal(size=(20, dim))
            covariance = 0.25 * np.linalg.inv(X.T @ X)
            laws.append(Gaussian(covariance @ X.T @ (X @ np.ones(dim) + 0.5 * rng.normal(size=20)) / 0.25, covariance))
        found += adequacy(laws, alpha).adequate
    low, high = wilson_interval(found, trials, z=3.3)
    assert low < alpha < high


def test_the_threshold_is_that_of_the_s_score():
    judged = adequacy([Gaussian([0.0, 0.0], np.eye(2)), Gaussian([3.0, 0.0], np.eye(2))], 0.05)
    assert judged.scores[0, 1] == pytest.approx(np.exp(-9 / 4))
    assert judged.threshold == pytest.approx(np.exp(-chi2.ppf(0.95, 2) / 2)) == pytest.approx(0.05)
    assert not judged.adequate and judged.groups == ((0, 1),)
    assert adequacy([Gaussian(0.0, 1.0)]).adequate


def test_groups_are_of_laws_no_two_of_which_are_told_apart():
    """A chain of neighbours is no group; and a law that says nothing joins one."""
    chain = [Gaussian(2.0 * k, 1.0) for k in range(3)]
    judged = adequacy(chain)
    assert len(judged.groups) == 2 and sorted(sum(judged.groups, ())) == [0, 1, 2]
    far = [Gaussian(0.0, 1.0), Gaussian(50.0, 1.0), Gaussian(3.0, 1e6)]
    assert len(adequacy(far).groups) == 2 and adequacy(far[:2]).adequate


def test_merging_is_least_squares_on_all_objects():
    rng = np.random.default_rng(0)
    parts, laws = [(rng.normal(size=(20, 2)), rng.normal(size=20)) for _ in range(3)], []
    for X, y in parts:
        precision = X.T @ X
        laws.append(Gaussian(np.linalg.solve(precision, X.T @ y), np.linalg.inv(precision)))
    X, y = (np.concatenate(each) for each in zip(*parts, strict=True))
    whole = merged(laws)
    np.testing.assert_allclose(whole.mean, np.linalg.solve(X.T @ X, X.T @ y), rtol=1e-9)
    np.testing.assert_allclose(whole.covariance, np.linalg.inv(X.T @ X), rtol=1e-9)


# ----- mixtures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    """Two true experts, four of the model, by EM from the best of a few starts."""
    family = TASKS["mixture_of_experts"](num_experts=4, true_experts=2, num_examples=300, dim=1, gate="constant")
    mixture = Mixture(4, 2, "constant")
    task = family.sample(jax.random.key(1), ())
    run = jax.jit(jax.vmap(lambda key: em(mixture, mixture.init(key), task.train, steps=300)))
    ends, losses = run(jax.random.split(jax.random.key(0), 6))
    return mixture, jax.tree.map(lambda leaf: leaf[losses[:, -1].argmin()], ends), task


def test_pruning_leaves_the_true_experts(fitted):
    mixture, params, task = fitted
    small, params = prune(mixture, params, task.train)
    assert small.num_experts == 2 and adequacy(expert_laws(small, params, task.train)).adequate
    found = np.asarray(params["experts"])
    apart = [np.abs(found[order] - task.experts).max() for order in ([0, 1], [1, 0])]
    assert min(apart) < 0.2


def test_pruning_goes_down_to_one():
    X = jnp.stack([jnp.linspace(-1, 1, 60), jnp.ones(60)], 1)
    rows = Rows(X, X @ jnp.array([1.0, 2.0]) + 0.3 * jax.random.normal(jax.random.key(0), (60,)))
    for gate in ("network", "constant"):
        mixture = Mixture(2, 2, gate, gate_width=2)
        start = mixture.init(jax.random.key(1))
        start |= {"experts": jnp.array([[1.0, 2.0], [1.0, 2.01]])}
        small, params = prune(mixture, start, rows, steps=1)
        assert small.num_experts == 1 and small.gate == "constant" and set(params) == {"experts", "means"}


def test_the_complete_information_is_the_larger(fitted, x64):
    mixture = Mixture(1, 2, "constant")
    task = fitted[2]
    params, _ = em(mixture, mixture.init(jax.random.key(0)), task.train, steps=100)
    (one,), (other,) = (expert_laws(mixture, params, task.train, kind) for kind in ("observed", "complete"))
    np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-5)  # nothing is hidden with one expert
    pair = Mixture(2, 2, "constant")
    params, _ = em(pair, pair.init(jax.random.key(3)), task.train, steps=300)
    for one, other in zip(*(expert_laws(pair, params, task.train, k) for k in ("observed", "complete")), strict=True):
        assert np.linalg.eigvalsh(one.covariance - other.covariance).min() > -1e-9


def test_runs_in_the_same_model_whatever_the_order_of_experts():
    at = lambda *means: [Gaussian(np.array([m, 0.0]), 0.01 * np.eye(2)) for m in means]  # noqa: E731
    found = same_models({"a": at(0, 5), "b": at(5.1, 0), "c": at(0, 9), "d": at(0)})
    assert found.groups == (("a", "b"), ("c",), ("d",))
    assert found.scores[0, 1] > 0.5 and found.scores[0, 3] == 0


def test_a_pair_of_runs_is_judged_by_its_own_number_of_parameters():
    """-2 log s = 5 is above χ² of one parameter at 5%, 3.84, whatever other runs there are; not above that of five."""
    at = lambda *means: [Gaussian(m, 0.5) for m in means]  # noqa: E731
    runs = {"a": at(0.0), "b": at(math.sqrt(5.0))}
    other = at(*range(0, 50, 10))
    assert same_models(runs).groups == (("a",), ("b",))
    assert same_models({**runs, "c": other}).groups == (("a",), ("b",), ("c",))
    assert same_models({"c": other, "d": at(math.sqrt(5.0), 10, 20, 30, 40)}).groups == (("c", "d"),)


# ----- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5, float("nan"), True])
def test_alpha_lies_between_0_and_1(alpha, fitted):
    laws = [Gaussian(0.0, 1.0), Gaussian(1.0, 1.0)]
    for call in (
        lambda: adequacy(laws, alpha),
        lambda: same_models({"a": laws}, alpha),
        lambda: prune(*fitted[:2], fitted[2].train, alpha=alpha),
    ):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            call()


def test_refuses_with_a_remedy(fitted):
    with pytest.raises(ValueError, match="give one Gaussian for each expert"):
        adequacy([])
    with pytest.raises(ValueError, match=r"give Gaussian\(mean, covariance\) of the samples"):
        adequacy([Gaussian(0.0, 1.0), Samples(np.arange(30.0))])
    with pytest.raises(ValueError, match="singular"):
        adequacy([Gaussian([0.0, 1.0], np.ones((2, 2)))] * 2)
    with pytest.raises(ValueError, match="one space"):
        adequacy([Gaussian(0.0, 1.0), Gaussian([0.0, 1.0], np.eye(2))])
    with pytest.raises(ValueError, match="give name -> laws"):
        same_models({})
    mixture, _, task = fitted
    with pytest.raises(ValueError, match="observed or complete"):
        expert_laws(mixture, mixture.init(jax.random.key(0)), task.train, "fisher")  # pyright: ignore
    saddle = mixture.init(jax.random.key(0))
    saddle |= {"experts": jnp.tile(jnp.mean(task.experts, axis=0), (4, 1))}
    with pytest.raises(ValueError, match="no maximum. Run on, or take information='complete'"):
        expert_laws(mixture, saddle, task.train)
