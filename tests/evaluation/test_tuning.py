"""The tuner finds rates that are known; the comparison ties everything together."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.choices import choice
from metaopt.errors import UserError
from metaopt.evaluation import evaluate_run_on, tune_baselines
from metaopt.evaluation import record as comparison
from metaopt.evaluation import tuning as baselines
from metaopt.registry import OPTIMIZERS
from metaopt.tasks import quadratic
from metaopt.types import TaskFamily

KEY = jax.random.key(0)


def parabola(curvature: float) -> TaskFamily:
    """f(x) = c x²/2: k steps of rate r multiply the loss by (1 - r c)^2k; best at r = 1/c, grows from r = 2/c."""
    return TaskFamily(
        data=(),
        sample=lambda key, data: (),
        init=lambda key, task: 1.0 + jax.random.uniform(key),
        batch=lambda key, task, data: (),
        loss=lambda params, task, batch: curvature * params**2 / 2,
        eval_batch=lambda task, data, split: (),
        name="parabola",
    )


def tune(curvature: float, horizon: int = 10) -> tuple[float, dict]:
    _, phi, record = tune_baselines(parabola(curvature), KEY, horizon=horizon, num_tasks=3, names=["sgd"])["sgd"]
    assert float(jnp.exp(phi["learning_rate"])) == pytest.approx(record["learning_rate"], rel=1e-5)
    return record["learning_rate"], record


def test_the_best_rate_is_found_and_the_record_says_how() -> None:
    rate, record = tune(10.0)
    assert rate == pytest.approx(0.1)
    assert record["inside"] and record["extended_by"] == 0 and record["criterion"] == "mean"
    assert record["num_tasks"] == 3 and record["horizon"] == 10
    rates = [point["learning_rate"] for point in record["grid"]]
    np.testing.assert_allclose(rates, 10 ** (-3 + np.arange(8) / 2), rtol=1e-5)
    by_rate = dict(zip(rates, record["grid"], strict=True))
    start = np.mean(
        [5 * (1 + float(jax.random.uniform(jax.random.split(key, 4)[1]))) ** 2 for key in jax.random.split(KEY, 3)]
    )
    assert by_rate[0.01]["mean"] == pytest.approx(start * 0.9**20, rel=1e-4)
    assert by_rate[1.0]["mean"] == np.inf  # grows ninefold a step, so that it has failed


@pytest.mark.parametrize(("curvature", "best", "extended"), [(0.1, 10.0, 2), (3000.0, 10**-3.5, 2), (1000.0, 1e-3, 1)])
def test_the_grid_is_extended_until_the_best_is_inside(curvature: float, best: float, extended: int) -> None:
    rate, record = tune(curvature)
    assert rate == pytest.approx(best, rel=1e-5)
    assert record["extended_by"] == extended and record["inside"]
    rates = [point["learning_rate"] for point in record["grid"]]
    assert rates == sorted(rates) and len(rates) == 8 + extended


def test_the_extension_has_bounds_and_says_when_it_met_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "BOUNDS", (-12, 2))
    rate, record = tune(1e-4)
    assert rate == pytest.approx(10.0) and record["extended_by"] == 1 and not record["inside"]


def test_the_median_decides_where_every_rate_has_a_failure() -> None:
    def trap(params, task, batch):  # one task of three is infinite wherever it goes
        return jnp.where(task & (params != 1.0), jnp.inf, 5.0 * params**2)

    family = TaskFamily(
        data=(),
        sample=lambda key, data: jax.random.uniform(key) < 0.4,
        init=lambda key, task: jnp.float32(1.0),
        batch=lambda key, task, data: (),
        loss=trap,
        eval_batch=lambda task, data, split: (),
    )
    record = tune_baselines(family, KEY, horizon=10, num_tasks=7, names=["sgd"])["sgd"][2]
    assert all(point["mean"] == np.inf for point in record["grid"])
    assert record["criterion"] == "median" and record["learning_rate"] == pytest.approx(0.1)


def test_a_failure_between_the_points_of_a_tuning_curve_counts() -> None:
    def loss(params, task, batch):  # slope 1 everywhere; a ridge at 0.5, which the rate 0.1 meets at step 5
        value = jnp.where(jnp.abs(params - 0.5) < 0.04, 100.0, 1.0 + 0.1 * jnp.abs(params + 1.0))
        return params + jax.lax.stop_gradient(value - params)

    family = dataclasses.replace(parabola(1.0), init=lambda key, task: jnp.float32(1.0), loss=loss)
    record = tune_baselines(family, KEY, horizon=20, num_tasks=2, names=["sgd"])["sgd"][2]  # recorded at even steps
    by_rate = {point["learning_rate"]: point["mean"] for point in record["grid"]}
    assert by_rate[0.1] == np.inf and by_rate[0.01] == pytest.approx(1.18, rel=1e-4)
    assert by_rate[0.316228] == pytest.approx(1.4325, rel=1e-4)  # over the ridge in one stride
    assert record["learning_rate"] == 0.01


def test_a_baseline_may_have_options() -> None:
    name = "sgd:power=0.5"
    record = tune_baselines(parabola(10.0), KEY, horizon=4, num_tasks=1, names=[name])[name][2]
    by_rate = {point["learning_rate"]: point["mean"] for point in record["grid"]}
    start = 5 * (1 + float(jax.random.uniform(jax.random.split(jax.random.split(KEY, 1)[0], 4)[1]))) ** 2
    factor = np.prod([1 - 10 * 0.01 / np.sqrt(t) for t in (1, 2, 3, 4)])
    assert by_rate[0.01] == pytest.approx(start * factor**2, rel=1e-4)


def test_rates_are_chosen_on_enough_tasks() -> None:
    exact = quadratic(dim=2)
    assert [comparison._num_tuning_tasks(exact, asked) for asked in (2, 100, 1000)] == [50, 100, 400]
    with_data = dataclasses.replace(exact, data=jnp.ones(3))
    assert [comparison._num_tuning_tasks(with_data, asked) for asked in (2, 60, 400)] == [50, 60, 64]


def test_a_rate_that_fails_on_reported_tasks_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    # The rate 0.1 is best at curvature 10 and grows without end at 25, which the only task of the tuning has not.
    family = dataclasses.replace(
        parabola(1.0),
        sample=lambda key, data: jnp.where(jax.random.uniform(key) < 0.2, 25.0, 10.0),
        loss=lambda params, task, batch: task * params**2 / 2,
    )
    monkeypatch.setattr(comparison, "build_family", lambda task: family)
    how = {"horizon": 60, "num_tasks": 12, "num_tuning_tasks": 1, "baselines": ("sgd",)}
    said: list[str] = []
    result = evaluate_run_on({"best": optax.sgd(0.1)}, choice("any"), **how, progress=said.append)
    assert len(said) == len(set(said)) and said[-1] == "parabola, 60 steps: sgd failed; a lower rate"
    assert result["task"] == "parabola"  # the family's own name
    best, sgd = result["optimizers"]["best"], result["optimizers"]["sgd"]
    assert best["final"]["mean"] == "inf" and 0 < best["failed"] < 1
    assert sgd["tuned"]["learning_rate"] == pytest.approx(10**-1.5, rel=1e-5) and sgd["tuned"]["lowered_from"] == 0.1
    assert sgd["failed"] == 0 and sgd["final"]["mean"] < 1e-10 and sgd["train"]["loss"] < 1e-10
    starts, ends = (np.array(sgd["per_task"][part]) for part in ("initial", "final"))
    steep = np.array(best["per_task"]["failed"])
    np.testing.assert_allclose(ends[~steep], starts[~steep] * (1 - 10**-0.5) ** 120, rtol=1e-3)


def test_what_has_no_learning_rate_is_no_baseline() -> None:
    with pytest.raises(UserError, match="'lstm' has no learning rate"):
        tune_baselines(parabola(1.0), KEY, horizon=5, num_tasks=2, names=["lstm"])
    with pytest.raises(UserError, match="did you mean 'adam'"):
        tune_baselines(parabola(1.0), KEY, horizon=5, num_tasks=2, names=["adamm"])


def test_one_evaluation_is_one_json_record() -> None:
    sgd = OPTIMIZERS["sgd"]()
    learned = {
        "good": (sgd, {"learning_rate": jnp.log(jnp.float32(0.3))}),
        "bad": (sgd, {"learning_rate": jnp.log(jnp.float32(300.0))}),
        "plain": optax.sgd(0.3),
    }
    said: list[str] = []
    how = {"horizon": 40, "train_horizon": 4, "num_tasks": 6, "seed": 2, "baselines": ("sgd", "adam")}
    result = evaluate_run_on(learned, choice("quadratic", dim=2), **how, progress=said.append)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert len(said) == 7 and said[0] == "quadratic:dim=2, 40 steps: tuning sgd"
    assert result["task"] == "quadratic:dim=2" and result["evaluated_on"] == "the exact loss"
    assert [result[key] for key in ("horizon", "train_horizon", "num_tasks", "seed", "keeps_improving_at")] == [
        40,
        4,
        6,
        2,
        40,
    ]
    records = result["optimizers"]
    assert list(records) == ["good", "bad", "plain", "sgd", "adam"]
    assert [record["kind"] for record in records.values()] == ["learned"] * 3 + ["baseline"] * 2
    assert len({tuple(record["per_task"]["initial"]) for record in records.values()}) == 1
    assert records["good"]["per_task"]["final"] == pytest.approx(records["plain"]["per_task"]["final"], rel=1e-4)
    assert records["good"]["failed"] == 0 and records["good"]["keeps_improving"] == 1
    assert records["bad"]["failed"] == 1
    best = result["best_baseline"]
    assert records[best]["ratio_to_best_baseline"]["of_means"] == 1
    means = {name: float(record["final"]["mean"]) for name, record in records.items()}
    assert means[best] == min(means["sgd"], means["adam"])
    ratio = records["good"]["ratio_to_best_baseline"]
    assert ratio["of_means"] == pytest.approx(means["good"] / means[best], rel=1e-4)
    assert float(ratio["interval"][0]) <= ratio["of_means"] <= float(ratio["interval"][1])
    assert records["sgd"]["tuned"]["num_tasks"] == 50 and records["good"]["tuned"] is None
    assert "lowered_from" not in records["sgd"]["tuned"]
    again = evaluate_run_on({"good": learned["good"]}, choice("quadratic", dim=2), **{**how, "baselines": ()})
    assert again["optimizers"]["good"]["per_task"] == records["good"]["per_task"]
    assert again["best_baseline"] is None and again["optimizers"]["good"]["ratio_to_best_baseline"] is None


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="`num_tasks` \\(0\\) must be at least 1"):
        evaluate_run_on({}, choice("quadratic"), horizon=5, num_tasks=0)
    with pytest.raises(UserError, match="adam: a learned optimizer bears a baseline's name"):
        evaluate_run_on({"adam": optax.adam(0.1)}, choice("quadratic"), horizon=5)
