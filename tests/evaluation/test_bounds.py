"""Losses of any sign: a quadratic shifted up or down, its bound with it, is the same problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.choices import choice
from metaopt.errors import UserError
from metaopt.evaluation.record import evaluate_run_on
from metaopt.experiment import Experiment
from metaopt.optimizers import sgd
from metaopt.registry import TASKS
from metaopt.tasks import quadratic, rescaled
from metaopt.training.trainer import Trainer
from metaopt.types import TaskFamily

BASELINES = ("sgd", "momentum", "adam")
HORIZON = 40


@pytest.fixture(scope="module", autouse=True)
def shifted() -> Iterator[None]:
    """The family of this file, registered while its tests run."""

    @TASKS.register(name="shifted_quadratic")
    def shifted_quadratic(by: float = 0.0, known: bool = True) -> TaskFamily:
        """A quadratic, `by` higher, that knows its bound or does not."""
        family = quadratic(dim=3)

        def loss(params: Any, task: Any, batch: Any) -> Any:
            return family.loss(params, task, batch) + by

        return dataclasses.replace(family, loss=loss, lower_bound=by if known else None, name="")

    yield
    del TASKS._entries["shifted_quadratic"]


@cache
def evaluated(by: float, known: bool = True) -> dict[str, Any]:
    optimizer = sgd()
    return evaluate_run_on(
        {"wild": (optimizer, _rate(60.0)), "slow": (optimizer, _rate(0.05))},
        choice("shifted_quadratic", by=by, known=known),
        horizon=HORIZON,
        train_horizon=4,
        num_tasks=20,
        baselines=BASELINES,
        num_tuning_tasks=20,
    )


def _rate(rate: float) -> dict[str, Any]:
    return {"learning_rate": jnp.log(jnp.float32(rate))}


def gaps(result: dict[str, Any]) -> dict[str, float]:
    records = result["optimizers"]
    return {name: (record["gap"] or record["final"])["mean"] for name, record in records.items()}


def finite(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value != "inf" and value < 1e3}


@pytest.mark.parametrize("by", [50.0, -50.0])
def test_a_shifted_quadratic_gives_the_same_rates_verdicts_and_gaps(by: float) -> None:
    here, there = evaluated(0.0), evaluated(by)
    assert there["best_baseline"] == here["best_baseline"]
    for name, record in here["optimizers"].items():
        other = there["optimizers"][name]
        for word in ("failed", "rises", "keeps_improving"):
            assert other[word] == record[word], (name, word)
        if record["tuned"]:
            assert other["tuned"]["learning_rate"] == record["tuned"]["learning_rate"], name
    assert here["optimizers"]["wild"]["failed"] > 0.9 and here["optimizers"]["slow"]["failed"] == 0
    expected, found = finite(gaps(here)), finite(gaps(there))
    assert set(found) == set(expected) and len(expected) >= 3
    for name, gap in expected.items():
        assert found[name] == pytest.approx(gap, abs=1e-5)
    ratio, other = (result["optimizers"]["slow"]["ratio_to_best_baseline"]["of_means"] for result in (here, there))
    assert other == pytest.approx(ratio, rel=0.02)
    np.testing.assert_allclose(
        there["optimizers"]["slow"]["curve"]["median"], here["optimizers"]["slow"]["curve"]["median"], atol=1e-5
    )


@pytest.mark.parametrize("by", [0.0, -50.0])
def test_without_a_bound_the_order_of_the_optimizers_is_the_same(by: float) -> None:
    here, there = evaluated(0.0), evaluated(by, known=False)

    def order(result: dict[str, Any]) -> list[str]:
        records = result["optimizers"]
        ends = {name: record["final"]["median"] for name, record in records.items()}
        return sorted((name for name in ends if ends[name] != "inf" and name != "wild"), key=lambda name: ends[name])

    assert order(there) == order(here)
    slow = there["optimizers"]["slow"]
    assert slow["ratio_to_best_baseline"] is None and slow["difference_to_best_baseline"]["mean"] > 0
    assert there["optimizers"]["wild"]["failed"] > 0.9 and slow["failed"] == 0


def experiment(**changes: Any) -> Experiment:
    values: dict[str, Any] = dict(
        tasks=(choice("shifted_quadratic", by=-50.0, known=False),),
        optimizer=choice("sgd"),
        estimator=choice("truncated_backprop"),
        num_tasks=2,
        horizon=2,
        num_devices=1,
    )
    return Experiment(**{**values, **changes})


@pytest.mark.parametrize("objective", ["log", "relative"])
def test_what_needs_a_bound_is_refused_without_one(objective: str) -> None:
    with pytest.raises(UserError, match=f"objective {objective} needs to know how low a loss can get.*lower_bound"):
        Trainer(experiment(objective=objective))
    with pytest.raises(UserError, match="lower bound.*balanced"):
        Trainer(experiment(tasks=(choice("quadratic"), *experiment().tasks)))
    Trainer(experiment())


def test_a_bound_may_depend_on_the_task_and_passes_through_augmentations() -> None:
    family = dataclasses.replace(quadratic(dim=2), lower_bound=lambda task: -jnp.sum(task.b**2))
    scaled = rescaled(family, 1.0)

    task = scaled.sample(jax.random.key(0), ())
    assert callable(scaled.lower_bound)
    np.testing.assert_allclose(scaled.lower_bound(task), -jnp.sum(task.task.b**2))


@pytest.mark.parametrize(("bound", "told"), [(0.0, False), (0.05, True)])
def test_a_loss_below_its_stated_bound_is_told(bound: float, told: bool, register: Any) -> None:
    register(TASKS, "leaky", lambda: dataclasses.replace(quadratic(dim=2), lower_bound=bound, name=""))
    said: list[str] = []
    learned = {"a": (sgd(), _rate(0.5))}
    evaluate_run_on(learned, choice("leaky"), horizon=20, num_tasks=4, baselines=(), progress=said.append)
    assert any("below the family's `lower_bound`; state a lower one" in line for line in said) == told
