"""Mixtures of experts: the likelihood by hand, its bound, EM that never falls, known experts found again, refusals."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from scipy.stats import norm

from metaopt.evaluation import evaluate
from metaopt.registry import TASKS
from metaopt.tasks import expectation_maximisation
from metaopt.tasks.expectation_maximisation import em, em_oracle, em_step
from metaopt.tasks.experts import _matched
from metaopt.tasks.mixture import Mixture, Rows

MODELS = {
    "network": Mixture(3, 3, gate_width=2),
    "constant": Mixture(3, 3, "constant"),
    "partition": Mixture(3, 3, "partition"),
    "uncoupled": Mixture(3, 3, "constant", coupling=0.0),
    "learned noise": Mixture(3, 3, "constant", learn_noise=True),
    "plain": Mixture(1, 3, "constant"),
}


def drawn(mixture, seed=0, **options):
    """A task's rows and first parameters."""
    gate = mixture.gate if mixture.num_experts > 1 else "constant"
    family = TASKS["mixture_of_experts"](num_examples=60, true_experts=3, gate=gate, **options)
    task_key, key = jax.random.split(jax.random.key(seed))
    return family.sample(task_key, ()).train, mixture.init(key)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_log_of_the_slides_formula(name, x64):
    mixture = MODELS[name]
    rows, params = drawn(mixture)
    X, y, W = (np.asarray(part) for part in (*rows, params["experts"]))
    if mixture.gate == "network":
        V1, V2 = (np.asarray(params["gate"][layer]) for layer in ("V1", "V2"))
        logits = (1 / (1 + np.exp(-(X @ V2)))) @ V1
        gate = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    else:
        gate = np.full((60, len(W)), 1 / len(W) if mixture.gate == "constant" else 1.0)
    densities = gate * norm.pdf(y[:, None], X @ W.T, mixture.noise)
    likelihood = densities.max(1) if mixture.gate == "partition" else densities.sum(1)
    expected = -np.log(likelihood).mean() + 0.5 * np.sum(W**2) / 60  # the means begin at 0
    expected += 0.5 * 0.01 * sum(np.sum(np.asarray(v) ** 2) for v in params.get("gate", {}).values()) / 60
    np.testing.assert_allclose(mixture.loss(params, rows, 60), expected, rtol=1e-9)


def test_the_prior_of_the_means_is_that_of_their_differences(x64):
    mixture = Mixture(4, 3, "constant", coupling=0.7)
    m = jax.random.normal(jax.random.key(0), (4, 3))
    pairs = sum(0.5 * 0.7 * float(jnp.sum((m[i] - m[j]) ** 2)) for i in range(4) for j in range(i))
    np.testing.assert_allclose(mixture.penalty({"experts": m, "means": m}), pairs, rtol=1e-9)


@pytest.mark.parametrize("gate", ["network", "constant", "partition"])
def test_no_parameters_are_below_the_bound(gate):
    """The limit is met: experts through every object, of weight 1, without priors to speak of."""
    family = TASKS["mixture_of_experts"](num_experts=2, dim=1, num_examples=2, gate=gate, prior_precision=1e-9)
    task = family.sample(jax.random.key(0), ())
    line = jnp.linalg.solve(task.train.X, task.train.y)
    params = family.init(jax.random.key(1), task) | {"experts": jnp.stack([line, line])}
    params["means"] = params["experts"]
    params |= {"gate": jax.tree.map(jnp.zeros_like, params["gate"])} if gate == "network" else {}
    assert family.loss(params, task, ()) == pytest.approx(family.lower_bound, abs=1e-5)
    assert family.lower_bound == pytest.approx(-norm.logpdf(0, 0, 0.3))
    assert TASKS["mixture_of_experts"](learn_noise=True).lower_bound is None


# ----- expectation-maximisation -----------------------------------------------------------------------------------


def falls(mixture, steps=15):
    """The largest rise of the penalised loss at a step of EM, and the whole fall.

    From starts, where nearly any step falls, and from minima that BFGS found, where a wrong one rises.
    """
    run = jax.jit(lambda params, rows: em(mixture, params, rows, steps=steps)[1])
    worst, fall = -np.inf, 0.0
    for seed in range(2):
        rows, params = drawn(mixture, seed)
        flat, unravel = ravel_pytree(params)
        slope = jax.jit(
            jax.value_and_grad(lambda flat, rows=rows, unravel=unravel: mixture.loss(unravel(flat), rows, 60))
        )
        lowest = minimize(slope, flat, jac=True, method="BFGS", options={"maxiter": 300}).x
        for start in (params, unravel(jnp.asarray(lowest))):
            losses = np.asarray(run(start, rows))
            worst, fall = max(worst, np.diff(losses).max()), fall + losses[0] - losses[-1]
    return worst, fall


@pytest.mark.parametrize("name", MODELS)
def test_no_step_of_em_lowers_the_penalised_likelihood(name, x64):
    worst, fall = falls(MODELS[name])
    assert worst < 1e-10 and fall > 0.1


def _wrong_expert(step):
    def wrong(mixture, params, rows):
        return step(dataclasses.replace(mixture, prior_precision=1.1), params, rows)

    return wrong


def _wrong_means(step):
    def wrong(mixture, params, rows):
        moved = step(mixture, params, rows)
        return moved | {"means": moved["experts"]}

    return wrong


def _wrong_weights(step):
    def wrong(mixture, params, rows):
        moved = step(mixture, params, rows)
        return moved | {"weights": moved["weights"][::-1]}

    return wrong


def _wrong_gate(step):
    def wrong(mixture, params, rows):  # without a choice of length
        moved = step(mixture, params, rows)
        return moved | {"gate": jax.tree.map(lambda new, old: old + 3 * (new - old), moved["gate"], params["gate"])}

    return wrong


def _wrong_noise(step):
    def wrong(mixture, params, rows):
        moved = step(mixture, params, rows)
        return moved | {"log_beta": moved["log_beta"] + 0.5}

    return wrong


@pytest.mark.parametrize(
    ("name", "mutation"),
    [
        ("network", _wrong_expert),
        ("constant", _wrong_means),
        ("constant", _wrong_weights),
        ("network", _wrong_gate),
        ("learned noise", _wrong_noise),
    ],
)
def test_the_check_of_em_sees_a_wrong_step(name, mutation, x64, monkeypatch):
    monkeypatch.setattr(expectation_maximisation, "em_step", mutation(em_step))
    worst, _ = falls(MODELS[name])
    assert worst > 1e-7


def test_em_rests_where_the_gradient_is_zero(x64):
    mixture = Mixture(2, 3, "constant", learn_noise=True)
    rows, params = drawn(mixture)
    params, _ = jax.jit(lambda p, r: em(mixture, p, r, steps=1000))(params, rows)
    slopes = jax.grad(mixture.loss)(params, rows, 60)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slopes)) < 1e-6


def test_one_expert_is_ridge_regression(x64):
    mixture = Mixture(1, 3, "constant", coupling=0.0)
    rows, params = drawn(mixture)
    moved = em_step(mixture, params, rows)
    X, beta = rows.X, 0.3**-2
    ridge = np.linalg.solve(beta * X.T @ X + np.eye(3), beta * X.T @ rows.y)
    np.testing.assert_allclose(moved["experts"][0], ridge, rtol=1e-9)


@pytest.mark.parametrize("gate", ["network", "partition"])
def test_em_finds_known_experts(gate):
    """From the best of a few starts; and a partition's parts are its objects'."""
    family = TASKS["mixture_of_experts"](num_experts=2, num_examples=100, gate=gate, gate_width=2, noise=0.1)
    mixture = Mixture(2, 3, gate, gate_width=2, noise=0.1)
    task = family.sample(jax.random.key(3), ())
    starts = jax.vmap(lambda key: family.init(key, task))(jax.random.split(jax.random.key(1), 8))
    ends, losses = jax.jit(jax.vmap(lambda p: em(mixture, p, task.train, steps=40)))(starts)
    best = jax.tree.map(lambda leaf: leaf[losses[:, -1].argmin()], ends)
    found = jax.jit(family.metrics)(best, task, ())
    assert found["recovered"] == 1.0 and found["expert_error"] < 0.1
    parts = mixture.responsibilities(best, task.train)
    np.testing.assert_allclose(parts.sum(1), 1.0, rtol=1e-5)
    assert gate == "network" or set(np.unique(parts)) == {0.0, 1.0}


def test_an_inner_loop_is_em_under_its_oracle():
    mixture = Mixture(2, 3, "constant")
    family = TASKS["mixture_of_experts"](num_experts=2, num_examples=40, gate="constant")
    family = dataclasses.replace(family, oracle=em_oracle(mixture), metrics=None, events=(), splits=("train",))
    curves = evaluate({"EM": optax.sgd(1.0)}, family, jax.random.key(0), horizon=5, num_tasks=2)
    keys = jax.random.split(jax.random.split(jax.random.key(0), 2)[0], 4)
    task = family.sample(keys[0], ())
    _, losses = em(mixture, family.init(keys[1], task), task.train, steps=5)
    np.testing.assert_allclose(curves.loss["EM"][0], losses, rtol=1e-3)
    assert np.all(np.diff(curves.loss["EM"], axis=1) < 1e-6)


# ----- metrics and splits -----------------------------------------------------------------------------------------


def test_experts_are_matched_whatever_their_order():
    truth = jnp.array([[0.0, 0.0], [1.0, 1.0], [4.0, 4.0]])
    moved = truth[jnp.array([2, 0, 1])] + 0.1
    matched = jax.jit(_matched)
    np.testing.assert_allclose(matched(moved, truth), 0.1, rtol=1e-5)
    np.testing.assert_allclose(matched(jnp.concatenate([moved, moved + 9]), truth), 0.1, rtol=1e-5)
    np.testing.assert_allclose(np.sort(matched(moved[2:], truth[:2])), [0.1, 1.1], rtol=1e-5)
    assert not np.all(matched(jnp.full((3, 2), jnp.nan), truth) < 1e9)


def test_minibatches_are_of_the_training_objects_and_on_average_the_loss():
    plain, drawn = (TASKS["mixture_of_experts"](batch_size=size, gate="constant") for size in (None, 20))
    assert plain.batch_size is None and drawn.batch_size == 20
    task = plain.sample(jax.random.key(0), ())
    params = plain.init(jax.random.key(1), task)
    losses = jax.vmap(lambda key: drawn.loss(params, task, drawn.batch(key, task, ())))(
        jax.random.split(jax.random.key(2), 2000)
    )
    error = float(losses.std()) / math.sqrt(2000)
    assert abs(float(losses.mean() - plain.loss(params, task, ()))) < 4 * error
    assert plain.loss(params, task, ()) == pytest.approx(float(drawn.loss(params, task, task.train)), rel=1e-6)


def test_a_table():
    family = TASKS["table_experts"](learn_noise=True)
    task = family.sample(jax.random.key(0), family.data)
    mixture = Mixture(2, 11, noise=0.7, learn_noise=True)
    starts = jax.vmap(lambda key: family.init(key, task))(jax.random.split(jax.random.key(0), 2))
    ends, losses = jax.jit(jax.vmap(lambda p: em(mixture, p, task.train, steps=20)))(starts)
    assert np.all(losses[:, -1] < losses[:, 0]) and family.sources
    one = jax.tree.map(lambda leaf: leaf[0], ends)
    held = float(family.metrics(one, task, family.eval_batch(task, family.data, "test"))["nll"])
    assert held < -norm.logpdf(0) + 0.5  # better than N(0, 1), the standardised target's own law


# ----- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 1}, "leaves nothing to a network; give gate=constant for the plain linear model"),
        ({"num_experts": 1, "gate": "partition"}, "leaves nothing to a partition"),
        ({"num_experts": 0}, "`num_experts` is 0; give a whole number from 1 to 20"),
        ({"num_experts": 15, "num_examples": 10}, "there are 10 training examples; give at most as many experts"),
        ({"num_experts": 5, "num_examples": 15, "learn_noise": True}, "pass through all 15 .*learn_noise=false"),
        ({"gate": "soft"}, "give one of network, constant, partition"),
        ({"prior_precision": 0.0}, r"`prior_precision` \(0.0\) must be above 0"),
        ({"noise": -1.0}, "`noise` .* must be above 0"),
        ({"coupling": -1.0}, "`coupling` .* must be 0 or more"),
        ({"gate_precision": math.inf}, "`gate_precision` .* finite"),
        ({"batch_size": 201}, "from 1 to 200"),
        ({"true_experts": 0}, "`true_experts` is 0"),
    ],
)
def test_refuses_with_a_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        TASKS["mixture_of_experts"](**options)


def test_em_refuses_more_experts_than_rows():
    mixture = Mixture(3, 2, "constant")
    with pytest.raises(ValueError, match="at most as many experts"):
        em(mixture, mixture.init(jax.random.key(0)), Rows(jnp.ones((2, 2)), jnp.ones(2)), steps=1)


def test_a_table_with_several_targets_is_refused(tmp_path):
    np.savez(tmp_path / "two.npz", x=np.ones((30, 2)) * np.arange(30)[:, None], y=np.arange(60.0).reshape(30, 2))
    with pytest.raises(ValueError, match="has 2 numbers to predict an example; give a table with one"):
        TASKS["table_experts"](data="two.npz", data_dir=str(tmp_path))
