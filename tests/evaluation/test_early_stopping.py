"""Early stopping against a loop by hand: where it stops, what it restores, how many steps it saves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.choices import choice
from metaopt.cli.entry import main
from metaopt.errors import UserError
from metaopt.evaluation import evaluate, evaluate_run_on, outcomes
from metaopt.evaluation.early_stopping import EarlyStopping
from metaopt.registry import OPTIMIZERS, TASKS
from metaopt.runs.evaluations import identity, print_results
from metaopt.sinks.contents import result_rows
from metaopt.tasks import quadratic
from metaopt.types import TaskFamily

KEY, RATE, HORIZON = jax.random.key(5), 0.03, 60
TARGETS = {"train": (1.0, 0.0), "validation": (0.6, 0.02), "test": (0.55, 0.0)}  # where the least is, how rough


def overfitting(asked: list[str] | None = None) -> TaskFamily:
    """(x - 1)² on the training data; elsewhere the least lies on the way there. Tasks differ by their starts."""

    def eval_batch(task: Any, data: Any, split: str) -> jax.Array:
        if asked is not None:
            asked.append(split)
        return jnp.array(TARGETS[split])

    return TaskFamily(
        data=(),
        sample=lambda key, data: (),
        init=lambda key, task: jax.random.uniform(key, (1,), minval=-4.0, maxval=0.9),
        batch=lambda key, task, data: jnp.array(TARGETS["train"]),
        loss=lambda x, task, batch: jnp.sum((x - batch[0]) ** 2 + batch[1] * jnp.sin(30.0 * x)),
        eval_batch=eval_batch,
        metrics=lambda x, task, batch: {"place": x[0]},
        splits=("train", "validation", "test"),
        lower_bound=-0.02,
        name="overfitting",
    )


def loss(x: float, split: str) -> float:
    target, rough = TARGETS[split]
    return (x - target) ** 2 + rough * np.sin(30.0 * x)


def by_hand(x: float, patience: int, every: int) -> tuple[int, int, float, float]:
    """Steps made, step and place of the best, place at the horizon."""
    best, best_x, best_step, bad, stopped = loss(x, "validation"), x, 0, 0, HORIZON
    for step in range(1, HORIZON + 1):
        x -= RATE * 2 * (x - 1.0)
        if step % every or stopped < HORIZON:
            continue
        if loss(x, "validation") < best:
            best, best_x, best_step, bad = loss(x, "validation"), x, step, 0
        else:
            bad += 1
            stopped = step if bad == patience else stopped
    return stopped, best_step, best_x, x


@pytest.mark.parametrize(("patience", "every"), [(1, 1), (3, 2), (4, 7)])
def test_it_stops_and_restores_as_by_hand(patience: int, every: int) -> None:
    family = overfitting()
    how = {"horizon": HORIZON, "num_tasks": 6, "train_horizon": 11}  # recorded too, and no check
    found = evaluate({"sgd": optax.sgd(RATE)}, family, KEY, early_stopping=EarlyStopping(patience, every), **how)
    stopped = found.stopped["sgd"]
    assert stopped is not None and 11 in found.steps
    starts = [float(family.init(jax.random.split(key, 4)[1], ())[0]) for key in jax.random.split(KEY, 6)]
    hand = [by_hand(start, patience, every) for start in starts]
    assert stopped.step.tolist() == [steps for steps, *_ in hand] and min(stopped.step) < HORIZON
    assert stopped.best_step.tolist() == [best for _, best, *_ in hand]
    for split in family.splits:
        restored, end = stopped.final[split], found.final["sgd"][split]
        np.testing.assert_allclose(restored["place"], [x for *_, x, _ in hand], rtol=1e-5)
        np.testing.assert_allclose(restored["loss"], [loss(x, split) for *_, x, _ in hand], atol=1e-5)
        np.testing.assert_allclose(end["place"], [x for *_, x in hand], rtol=1e-5)
    np.testing.assert_allclose(stopped.validation, stopped.final["validation"]["loss"], atol=1e-6)
    plain = evaluate({"sgd": optax.sgd(RATE)}, family, KEY, record_every=every, **how)
    np.testing.assert_array_equal(plain.loss["sgd"], found.loss["sgd"])  # the run itself goes on


def test_tasks_together_equal_tasks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    family, sgd, found = overfitting(), optax.sgd(RATE), []
    for state_bytes in (2**20, 1):
        monkeypatch.setattr(outcomes, "STATE_BYTES", state_bytes)
        how = {"horizon": HORIZON, "num_tasks": 5, "num_devices": 1}
        found.append(evaluate({"a": sgd}, family, KEY, early_stopping=EarlyStopping(2, 3), **how).stopped["a"])
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), *found)


def test_what_was_best_before_a_death_is_restored() -> None:
    explosive = OPTIMIZERS["sgd"](learning_rate=4.0)
    entry = (explosive, explosive.init(KEY))
    found = evaluate({"sgd": entry}, overfitting(), KEY, horizon=60, num_tasks=4, early_stopping=EarlyStopping(2, 1))
    stopped = found.stopped["sgd"]
    assert stopped is not None and np.isinf(found.loss["sgd"][:, -1]).all()
    assert np.isfinite(stopped.final["test"]["loss"]).all() and (stopped.step < 10).all()


def test_off_it_asks_nothing_of_the_validation_data_within_the_run() -> None:
    counts = []
    for early_stopping in (None, EarlyStopping(2)):
        asked: list[str] = []
        family = overfitting(asked)
        found = evaluate({"a": optax.sgd(RATE)}, family, KEY, horizon=8, num_tasks=2, early_stopping=early_stopping)
        counts.append((asked.count("validation"), asked.count("test")))
        assert (found.stopped["a"] is None) == (early_stopping is None)
    assert counts[0][0] == counts[0][1] and counts[1][0] > counts[1][1]


@pytest.mark.parametrize(
    ("patience", "every", "family", "message"),
    [
        (0, None, overfitting, "`patience` (0) must be at least 1"),
        (2, 0, overfitting, "`every` (0) must be at least 1"),
        (2, None, quadratic, "early stopping needs validation data, and quadratic has none (only train); leave"),
        (2, 50, overfitting, "checks every 50 steps leave none within 10; check at most 10 apart"),
    ],
)
def test_refuses_with_a_remedy(patience: int, every: int | None, family: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        early_stopping = EarlyStopping(patience, every)
        evaluate({"a": optax.sgd(0.1)}, family(), KEY, horizon=10, num_tasks=2, early_stopping=early_stopping)
    assert message in str(error.value)


def test_tables_and_exports_say_what_was_saved_and_the_loss_with_and_without(register: Any, capsys: Any) -> None:
    from metaopt.runs.console import make_console

    register(TASKS, "overfitting", overfitting)
    how = {"horizon": HORIZON, "num_tasks": 4, "baselines": ()}
    plain, found = (
        evaluate_run_on({"sgd": optax.sgd(RATE)}, choice("overfitting"), early_stopping=early, **how)
        for early in (None, EarlyStopping(3, 2))
    )
    assert identity(plain) != identity(found)
    assert "early_stopping" not in plain and found["early_stopping"] == {"patience": 3, "every": 2}
    record = found["optimizers"]["sgd"]
    told = record["early_stopping"]
    assert told["steps"] + told["steps_saved"] == pytest.approx(HORIZON) and told["stopped"] == 1.0
    assert told["split"] == "test" and told["restored"]["loss"] < told["at_end"]["loss"] == record["test"]["loss"]
    (row,) = result_rows([found])
    assert row["steps_saved"] == told["steps_saved"] and row["restored_loss"] == told["restored"]["loss"]
    assert "steps_saved" not in result_rows([plain])[0]
    print_results(make_console(), [plain, found])
    assert capsys.readouterr().out.count("steps saved") == 1


def test_the_command_keeps_both_and_the_page_says_it(
    register: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(TASKS, "overfitting", overfitting)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    asked = ["evaluate", str(run), "--tasks", "overfitting", "--horizon", "30", "--num-tasks", "3", "--baselines"]
    for patience in (["--patience", "2", "--check-every", "4"], []):
        assert main([*asked, *patience]) == 0
    results = json.loads((run / "evaluation.json").read_text())["results"]
    assert [result.get("early_stopping") for result in results[-2:]] == [{"patience": 2, "every": 4}, None]
    page = " ".join((run / "report.html").read_text().split())
    assert "looked at every 4 steps" in page and "no better 2 times in a row" in page
    assert page.count("Test loss, restored") == 1
