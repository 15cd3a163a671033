"""evaluation.json and `metaopt evaluate`: what takes whose place, what is refused before the work, the table."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from metaopt.choices import choice
from metaopt.cli import evaluate as evaluate_command
from metaopt.cli.arguments import EvaluateArguments
from metaopt.errors import UserError
from metaopt.evaluation import Curves
from metaopt.experiment import build_optimizer
from metaopt.report.run_page import write_report
from metaopt.runs import evaluations
from metaopt.training import validation


def record(kind: str, mean: Any = 0.5, failed: float = 0.0) -> dict:
    curve = {"steps": [0, 4], **{part: [1.0, mean] for part in ("mean", "median", "q25", "q75")}}
    final = {"mean": mean, "mean_interval": [0.1, mean], "median": 0.25}
    return {"kind": kind, "final": final, "failed": failed, "rises": 0.0075, "curve": curve}


def entry(task: str = "quadratic", horizon: int = 4, baselines: tuple[str, ...] = ("sgd", "adam"), **more: Any) -> dict:
    optimizers = {"mine": record("learned"), **{name: record("baseline", "inf", 0.0025) for name in baselines}}
    return {"task": task, "horizon": horizon, "num_tasks": 400, "seed": 0, "optimizers": optimizers, **more}


def test_only_the_same_tasks_and_baselines_take_an_entrys_place(tmp_path: Path) -> None:
    for number, result in enumerate(
        [
            entry(), entry(baselines=("sgd",)), entry(baselines=()), entry(task="rosenbrock"), entry(seed=1),
            entry(baselines=("sgd", "sgd:power=0.5")), entry(baselines=("adam", "sgd")),
        ]
    ):  # fmt: skip
        evaluations.put_result(tmp_path, {**result, "number": number})
    assert [result["number"] for result in evaluations.read_results(tmp_path)] == [6, 1, 2, 3, 4, 5]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory mappings are counted in /proc/self/maps")
def test_compiled_programs_do_not_pile_up(tmp_path: Path) -> None:
    optimizer = build_optimizer(choice("sgd"))
    said: list[str] = []
    how: dict[str, Any] = {"train_horizon": 2, "num_tasks": 2, "seed": 0, "baselines": (), "num_devices": 1}
    how["progress"] = said.append

    def mappings(*dims: int) -> int:
        plan = tuple((choice("quadratic", dim=dim), 2) for dim in dims)
        evaluations.evaluate_all(tmp_path, {"mine": (optimizer, optimizer.init(jax.random.key(0)))}, plan, **how)
        return len(Path("/proc/self/maps").read_text().splitlines())

    few = mappings(2)
    assert mappings(3, 4, 5, 6) < few + 150  # each program has about as many
    assert said[-1] == "4 of 4: quadratic:dim=6, 2 steps: running mine"


def test_a_default_that_is_written_out_makes_no_other_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def evaluate(learned: Any, task: Any, *, baselines: Any, **how: Any) -> dict:
        asked.append(str(task))
        return entry(task="quadratic", baselines=baselines) | {"tuning": how["tuning"]}

    monkeypatch.setattr(evaluations, "evaluate_run_on", evaluate)
    how: dict[str, Any] = {"train_horizon": 4, "num_tasks": 400, "seed": 0, "keep": True}
    for task in (choice("quadratic"), choice("quadratic", dim=10)):
        for baselines in (("sgd", "adam"), ("adam", "sgd"), ("sgd",)):
            evaluations.evaluate_all(tmp_path, {"mine": ()}, ((task, 4),), baselines=baselines, **how)  # pyright: ignore
    assert asked == ["quadratic", "quadratic"]  # one for each set of baselines
    assert len(evaluations.read_results(tmp_path)) == 2


def test_a_result_is_kept_for_the_same_phi_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def evaluate(learned: Any, task: Any, *, baselines: Any, **how: Any) -> dict:
        asked.append(how["tuning"])
        return entry(task="quadratic", baselines=baselines) | {"tuning": how["tuning"]}

    monkeypatch.setattr(evaluations, "evaluate_run_on", evaluate)
    how: dict[str, Any] = {"train_horizon": 4, "num_tasks": 400, "seed": 0, "baselines": ("sgd",), "keep": True}

    def run(step: int, tuning: str) -> None:
        learned: Any = {"mine": ()}
        evaluations.evaluate_all(
            tmp_path, learned, ((choice("quadratic"), 4),), trained={"mine": step}, tuning=tuning, **how
        )

    for step, tuning, computed in ((4, "9x1", 1), (4, "9x1", 1), (8, "9x1", 2), (8, "9x3", 3), (8, "9x3", 3)):
        run(step, tuning)
        assert len(asked) == computed
    (result,) = evaluations.read_results(tmp_path)
    assert result["meta_steps"] == {"mine": 8}


def test_pictures_have_names_of_their_own() -> None:
    everything = [
        entry("classifier:hidden_layers=3"), entry("classifier:hidden_layers=6"), entry(),
        entry(baselines=()), entry(horizon=40), entry("classifier:data_dir=/a b/c"),
    ]  # fmt: skip
    assert [evaluate_command._picture_name(result, everything) for result in everything] == [
        "classifier-hidden_layers-3-4-steps.png",
        "classifier-hidden_layers-6-4-steps.png",
        "quadratic-4-steps.png",
        "quadratic-4-steps-2.png",
        "quadratic-40-steps.png",
        "classifier-data_dir-a-b-c-4-steps.png",
    ]


def test_baselines_are_checked_with_their_options() -> None:
    plan = ((choice("quadratic"), 4),)
    how: dict[str, Any] = {"num_tasks": 2, "optimizers": [build_optimizer(choice("lstm"))]}
    evaluations.check(plan, ("sgd:power=0.5", "momentum"), **how)
    for baseline, message in (
        ("sgd:powr=0.5", "did you mean 'power'"),
        ("sdg:power=1", "did you mean 'sgd'"),
        ("lstm", "'lstm' has no learning rate to be tuned; choose from sgd, momentum"),
        ("sgd:learning_rate=1", "leave learning_rate out"),
    ):
        with pytest.raises(UserError, match=message):
            evaluations.check(plan, (baseline,), **how)


def test_the_table_counts_failures() -> None:
    said = io.StringIO()
    evaluations.print_results(Console(file=said, width=200), [entry(baselines=("sgd",))])
    header, mine, sgd = said.getvalue().splitlines()[2:5]
    assert header.split()[-2:] == ["failed", "rises"]
    assert mine.split()[-2:] == ["0/400", "3/400"]
    assert sgd.split()[-2:] == ["1/400", "3/400"] and "inf" in sgd


def test_the_table_shows_gaps_and_differences_where_there_are_any() -> None:
    said = io.StringIO()
    one = entry(baselines=("sgd",))
    mine, sgd = one["optimizers"]["mine"], one["optimizers"]["sgd"]
    mine["gap"] = {"mean": 0.5, "mean_interval": [0.25, 0.75]}
    mine["difference_to_best_baseline"] = {"mean": -0.125, "interval": [-0.25, "inf"], "median": 0.0}
    sgd["gap"] = sgd["difference_to_best_baseline"] = None
    evaluations.print_results(Console(file=said, width=200), [one])
    header, first, second = said.getvalue().splitlines()[2:5]
    assert header.split("  ")[-1] == "rises" and " to best baseline" not in header
    assert "above the bound" in header and "less best baseline" in header
    assert "  0.5 [0.25, 0.75]  " in first and "  -0.125 [-0.25, inf]  " in first and "0.5 [" not in second


def test_validation_counts_failures_between_recorded_points() -> None:
    loss = np.array([[1.0, 0.5, 0.25]] * 2)
    curves = Curves(
        steps=np.array([0, 4, 8]),
        loss={"learned": loss},
        peak={"learned": np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 10.5]])},
        alive={"learned": np.ones((2, 3), bool)},
        final={"learned": {}},
        evaluated_on="",
        train_horizon=4,
        lower_bound=np.zeros(2),
    )
    start = {"initial": 1.0, "bound": 0.0}
    assert validation._values(curves, 4) == {"median": 0.5, "mean": 0.5, "failed": 0.0, **start}
    assert validation._values(curves, 8) == {"median": np.inf, "mean": 0.25, "failed": 0.5, **start}


# ----- refused before the work ----------------------------------------------------------------------------------------


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run in which nothing is evaluated any more."""

    def refuse(*args: Any, **how: Any) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(evaluations, "evaluate_run_on", refuse)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_folder_that_cannot_be_written(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(copy.iterdir())

    def refuse(*args: Any, **how: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)  # root may write anywhere
    with pytest.raises(UserError, match="cannot write to the folder .*run: Permission denied; give --out"):
        evaluate_command.evaluate(EvaluateArguments(runs=(str(copy),)))
    with pytest.raises(UserError, match="cannot write to the folder .*run: Permission denied; make it writable"):
        write_report(copy)
    assert sorted(copy.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no list of results"),
        ('{"results": [{"task": "x"}]}', "result 1 lacks horizon, num_tasks, optimizers"),
        (json.dumps({"results": [entry(), entry(optimizers={"a": {"kind": "learned"}})]}), "2 lacks final, curve"),
        (json.dumps({"results": [entry(optimizers=[])]}), "result 1 lacks optimizers"),
    ],
)
def test_a_broken_evaluation_file(text: str, message: str, copy: Path) -> None:
    (copy / "evaluation.json").write_text(text)
    for work in (lambda: evaluate_command.evaluate(EvaluateArguments(runs=(str(copy),))), lambda: write_report(copy)):
        with pytest.raises(UserError, match=message):
            work()
    assert (copy / "evaluation.json").read_text() == text


def test_runs_of_different_training_horizons(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path(shutil.copytree(copy, copy.parent / "other"))
    find = evaluate_command.find_optimizer

    def longer(run: str) -> Any:
        found = find(run)
        horizon = 8 if run == str(other) else 4
        return found._replace(experiment=dataclasses.replace(found.experiment, horizon=horizon))

    monkeypatch.setattr(evaluate_command, "find_optimizer", longer)
    out = copy.parent / "both"
    with pytest.raises(UserError, match=r"different horizons \(tiny/run 4, tiny/other 8\).*by themselves"):
        evaluate_command.evaluate(EvaluateArguments(runs=(str(copy), str(other)), out=str(out)))
    assert not out.exists()


def test_gradients_come_from_the_oracle_that_is_asked_for(tmp_path: Path) -> None:
    optimizer = build_optimizer(choice("sgd"))
    learned = {"mine": (optimizer, optimizer.init(jax.random.key(0)))}
    how: dict[str, Any] = {
        "train_horizon": 4,
        "num_tasks": 2,
        "seed": 0,
        "baselines": (),
        "num_devices": 1,
        "keep": True,
    }
    plan = ((choice("linear_regression"), 4),)
    found = [
        evaluations.evaluate_all(tmp_path, learned, plan, oracle=oracle, **how)[0]
        for oracle in (None, choice("minibatch"), choice("exact"), choice("exact"))
    ]
    assert [result.get("oracle") for result in found] == [None, None, "exact", "exact"]
    drawn, again, exact, _ = (result["optimizers"]["mine"]["per_task"]["final"] for result in found)
    assert drawn == again != exact
    assert len(evaluations.read_results(tmp_path)) == 2


def test_an_oracle_that_cannot_serve_a_task_is_refused_at_once() -> None:
    how: dict[str, Any] = {"num_tasks": 2, "optimizers": [build_optimizer(choice("sgd"))]}
    with pytest.raises(UserError, match="quadratic"):
        evaluations.check(((choice("quadratic"), 4),), (), oracle=choice("sosmc"), **how)
