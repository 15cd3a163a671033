"""The tuner finds rates that are known; the comparison ties everything together."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.choices import choice
from metaopt.errors import UserError
from metaopt.evaluation import evaluate_run_on, outcomes, tune_baselines, tuning
from metaopt.evaluation import record as comparison
from metaopt.evaluation.recording import plan
from metaopt.evaluation.tuning import _number
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


def steep_or_not(share: float, steep: float) -> TaskFamily:
    """c x²/2 with c = 10, and `steep` on a share of the tasks."""
    return dataclasses.replace(
        parabola(1.0),
        sample=lambda key, data: jnp.where(jax.random.uniform(key) < share, steep, 10.0),
        loss=lambda params, task, batch: task * params**2 / 2,
    )


def tune(curvature: float, horizon: int = 10, budget: str = "9x1", **how: Any) -> tuple[float, dict]:
    given = {"horizon": horizon, "num_tasks": 3, "names": ["sgd"], "budget": budget} | how
    _, phi, record = tune_baselines(parabola(curvature), KEY, **given)["sgd"]
    assert float(jnp.exp(phi["learning_rate"])) == pytest.approx(record["learning_rate"], rel=1e-5)
    return record["learning_rate"], record


def start(num_tasks: int) -> np.ndarray:
    keys = jax.random.split(KEY, num_tasks)
    return np.array([1 + float(jax.random.uniform(jax.random.split(key, 4)[1])) for key in keys])


def by_rate(record: dict) -> dict[float, float]:
    return {point["learning_rate"]: point["mean"] for point in record["finalists"]}


def test_the_best_rate_is_found_and_the_record_says_how() -> None:
    rate, record = tune(10.0)
    assert rate == pytest.approx(0.1)
    assert record["inside"] and record["asked"] == record["tried"] == 9 and record["criterion"] == "geometric mean"
    assert record["num_tasks"] == 3 and record["horizon"] == 10
    assert record["gradients"] == 9 * 3 * 10  # so few tasks are the fewest that anything is thrown away by
    np.testing.assert_allclose(sorted(by_rate(record)), 10 ** (-3.5 + np.arange(9) / 2), rtol=1e-5)
    assert by_rate(record)[0.01] == pytest.approx(5 * np.mean(start(3) ** 2) * 0.9**20, rel=1e-4)
    assert by_rate(record)[1.0] == np.inf  # grows ninefold a step, so that it has failed


@pytest.mark.parametrize(("curvature", "best", "beyond"), [(0.1, 10.0, 2), (3e4, 10**-4.5, 3), (3000.0, 10**-3.5, 1)])
def test_the_rates_are_extended_until_the_best_is_inside(curvature: float, best: float, beyond: int) -> None:
    rate, record = tune(curvature)
    assert rate == pytest.approx(best, rel=1e-5)
    assert record["tried"] - record["asked"] == beyond and record["inside"]
    assert {_number(best * 10**0.5), _number(best * 10**-0.5)} <= set(by_rate(record))


def test_the_extension_has_bounds_and_says_when_it_met_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "BOUNDS", (-12, 2))
    rate, record = tune(1e-4)
    assert rate == pytest.approx(10.0) and record["tried"] == 10 and not record["inside"]


def test_few_settings_are_run_on_all_tasks_and_the_best_has_neighbours_there() -> None:
    # The curvature of each task is drawn between 5 and 15.
    family = dataclasses.replace(
        parabola(1.0),
        sample=lambda key, data: 5.0 + 10.0 * jax.random.uniform(key),
        loss=lambda params, task, batch: task * params**2 / 2,
    )
    record = tune_baselines(family, KEY, horizon=6, num_tasks=90, names=["sgd"], budget="9x1")["sgd"][2]
    every = tune_baselines(family, KEY, horizon=6, num_tasks=8, names=["sgd"], budget="9x1")["sgd"][2]
    assert record["learning_rate"] == every["learning_rate"] == 0.1
    assert sorted(by_rate(record)) == [0.0316228, 0.1, 0.316228]
    # 9 on 10 tasks, 3 of them on 20 more, the best on 60 more, and its two neighbours on what each lacked.
    assert record["gradients"] == 6 * (9 * 10 + 3 * 20 + 60 + 60 + 80)


def test_momenta_are_searched_beside_rates_and_extended() -> None:
    # A ravine of condition number 10^4. At rate 10^.5 and momentum m the steep way falls as m^(t/2), the flat one as
    # exp(-rate 10^-4 t / (1 - m)): of .9, .968, .99 the second leaves least of both after 600 steps.
    curvature = jnp.array([1e-4, 1.0])
    family = dataclasses.replace(
        parabola(1.0),
        init=lambda key, task: jnp.ones(2),
        loss=lambda params, task, batch: (curvature * params**2).sum() / 2,
    )
    how = {"horizon": 600, "num_tasks": 1, "names": ["momentum"]}
    optimizer, phi, record = tune_baselines(family, KEY, budget="5x3", **how)["momentum"]
    assert record["mu"] == pytest.approx(0.968377) and record["inside"] and record["asked"] == 15
    assert float(jax.nn.sigmoid(phi["mu"])) == pytest.approx(record["mu"], rel=1e-5)
    beside = {(point["learning_rate"], point["mu"]) for point in record["finalists"]}
    assert (record["learning_rate"], 0.99) in beside and (record["learning_rate"], 0.9) in beside
    # What was searched is what runs.
    final = outcomes.run(optimizer, phi, family, KEY, steps=plan(family, 600, every=60), num_tasks=1).loss[0, -1]
    assert final == pytest.approx(record["finalists"][0]["mean"], rel=1e-3)
    kept = tune_baselines(family, KEY, budget="5x3", **how | {"names": ["momentum:mu=0.5"]})["momentum:mu=0.5"]
    assert "mu" not in kept[2] and kept[2]["asked"] == 5
    assert record["finalists"][0]["mean"] < kept[2]["finalists"][0]["mean"]


def test_a_momentum_is_never_below_nothing() -> None:
    family = dataclasses.replace(parabola(1.0), init=lambda key, task: jnp.float32(1.0))
    record = tune_baselines(family, KEY, horizon=8, num_tasks=1, names=["momentum"], budget="9x9")["momentum"][2]
    assert record["mu"] == 0 and record["inside"]  # a step of rate 1 is all it takes
    assert record["learning_rate"] == pytest.approx(1.0) and record["finalists"][0]["mean"] == 0


def test_a_full_search_tries_schedules_and_marks_what_was_told_the_horizon() -> None:
    # Gradients ±1 at whatever distance: a constant rate ends a rate away from 0, and a falling one does not.
    family = dataclasses.replace(
        parabola(1.0), init=lambda key, task: 1.0 + jax.random.uniform(key), loss=lambda params, *_: jnp.abs(params)
    )
    how = {"horizon": 60, "num_tasks": 4, "names": ["sgd", "sgd:schedule=step", "sgd:power=0.5"]}
    found = tune_baselines(family, KEY, budget="full", **how)
    optimizer, phi, record = found["sgd"]
    assert record["schedule"] in ("cosine", "warmup_cosine") and record["knows_horizon"] and record["asked"] == 36
    assert "schedule" not in found["sgd:schedule=step"][2] and found["sgd:schedule=step"][2]["knows_horizon"]
    assert "knows_horizon" not in found["sgd:power=0.5"][2] and found["sgd:power=0.5"][2]["asked"] == 9
    constant = [point for point in record["finalists"] if point["schedule"] == "constant"]
    assert all(point["mean"] >= record["finalists"][0]["mean"] for point in constant)
    # The schedule by its name does what its curve did.
    final = outcomes.run(optimizer, phi, family, KEY, steps=plan(family, 60, every=6), num_tasks=4).loss[:, -1]
    assert final.mean() == pytest.approx(record["finalists"][0]["mean"], abs=1e-4)


@pytest.mark.parametrize(
    "text", ["", "9", "9x", "x3", "2x1", "9x0", "9x10", "20x1", "-9x1", "9x1.5", "FULL", "9×1", "٩x1"]
)
def test_a_budget_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write RATESxMOMENTA such as 9x1"):
        tune_baselines(parabola(1.0), KEY, horizon=5, num_tasks=2, names=["sgd"], budget=text)


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
    assert all(point["mean"] == np.inf for point in record["finalists"])
    assert record["criterion"] == "median" and record["learning_rate"] == pytest.approx(0.1)


def test_a_failure_between_the_points_of_a_tuning_curve_counts() -> None:
    def loss(params, task, batch):  # slope 1 everywhere; a ridge at 0.5, which the rate 0.1 meets at step 5
        value = jnp.where(jnp.abs(params - 0.5) < 0.04, 100.0, 1.0 + 0.1 * jnp.abs(params + 1.0))
        return params + jax.lax.stop_gradient(value - params)

    family = dataclasses.replace(parabola(1.0), init=lambda key, task: jnp.float32(1.0), loss=loss)
    record = tune_baselines(family, KEY, horizon=20, num_tasks=2, names=["sgd"])["sgd"][2]  # recorded at even steps
    means = by_rate(record)
    assert means[0.1] == np.inf and means[0.01] == pytest.approx(1.18, rel=1e-4)
    assert means[0.316228] == pytest.approx(1.4325, rel=1e-4)  # over the ridge in one stride
    assert record["learning_rate"] == 0.01


def test_a_baseline_may_have_options() -> None:
    name = "sgd:power=0.5"
    record = tune_baselines(parabola(10.0), KEY, horizon=4, num_tasks=1, names=[name])[name][2]
    factor = np.prod([1 - 10 * 0.01 / np.sqrt(t) for t in (1, 2, 3, 4)])
    assert by_rate(record)[0.01] == pytest.approx(5 * start(1)[0] ** 2 * factor**2, rel=1e-4)


def test_rates_are_chosen_on_enough_tasks() -> None:
    exact = quadratic(dim=2)
    assert [comparison._num_tuning_tasks(exact, asked) for asked in (2, 100, 1000)] == [50, 100, 400]
    with_data = dataclasses.replace(exact, data=jnp.ones(3))
    assert [comparison._num_tuning_tasks(with_data, asked) for asked in (2, 60, 400)] == [50, 60, 64]


def test_a_rate_that_fails_on_reported_tasks_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    # The rate 0.1 is best at curvature 10 and grows without end at 25, which the only task of the tuning has not.
    family = steep_or_not(0.2, 25.0)
    monkeypatch.setattr(comparison, "build_family", lambda task, **how: family)
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


def test_a_rate_that_fails_stands_where_the_lower_one_does_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 6 steps a rate of .1 is at 0 at curvature 10, and a failure counts as ten times the start, as in ratios."""
    family = steep_or_not(0.2, 25.0)
    monkeypatch.setattr(comparison, "build_family", lambda task, **how: family)
    how: dict[str, Any] = {"horizon": 6, "num_tasks": 12, "num_tuning_tasks": 1, "baselines": ("sgd",)}
    records = evaluate_run_on({"lower": optax.sgd(10**-1.5)}, choice("any"), **how)["optimizers"]
    assert records["sgd"]["tuned"]["learning_rate"] == 0.1 and 0 < records["sgd"]["failed"] < 0.5
    assert records["lower"]["failed"] == 0 and records["lower"]["ratio_to_best_baseline"]["geometric"] > 1


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
    to_best = {name: records[name]["ratio_to_best_baseline"]["geometric"] for name in ("sgd", "adam")}
    assert to_best[best] == 1 == min(to_best.values()) and max(to_best.values()) > 1
    assert records["good"]["to_each_baseline"][best] == records["good"]["ratio_to_best_baseline"]
    assert set(records["good"]["to_each_baseline"]) == {"sgd", "adam"} and "to_each_baseline" not in records["sgd"]
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


def test_settings_are_chosen_by_the_measure_that_ratios_are_of() -> None:
    # Rate 0.1 solves three tasks of four and leaves the fourth where it was; 0.03 is better in the mean alone.
    family = dataclasses.replace(
        parabola(1.0),
        sample=lambda key, data: jax.random.uniform(key) < 0.25,
        init=lambda key, task: jnp.float32(1.0),
        loss=lambda params, task, batch: jnp.where(task, 19.9, 10.0) * params**2 / 2,
    )
    how = {"horizon": 4, "num_tasks": 20, "names": ["sgd"]}
    by_mean = tune_baselines(family, KEY, by="mean", **how)["sgd"][2]
    assert by_mean["criterion"] == "mean" and by_mean["learning_rate"] == pytest.approx(10**-1.5, rel=1e-4)
    record = tune_baselines(family, KEY, **how)["sgd"][2]
    first, second = record["finalists"][:2]
    assert record["criterion"] == "geometric mean" and record["learning_rate"] == pytest.approx(0.1)
    assert first["mean"] > second["mean"] and record["learning_rate"] == first["learning_rate"]
