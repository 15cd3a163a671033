"""The reproduction of the thesis: its statistics, its verdicts, and that every figure's experiment stands."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.thesis import choices, claims, intervals, steps, write
from experiments.thesis.arms import STUDIES, THESIS, figure
from experiments.thesis.write import read_results
from metaopt.experiment.checks import validate
from metaopt.optimizers.lstms import lstm


def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        # Means over seeds and tasks are 2 and 1; both factors are noisy.
        seeds = rng.gamma(8.0, 1 / 8, (8, 1))
        values = 2 * seeds * rng.gamma(4.0, 1 / 4, (8, 60))
        reference = rng.gamma(16.0, 1 / 16, 60)
        _, (low, high) = intervals.interval(values, reference, np.ones_like(values, bool))
        covered += low <= 2 <= high
    assert 0.80 <= covered / 200 <= 0.99  # with eight seeds a percentile interval is a little short


def test_failed_runs_are_left_out_of_means_and_counted() -> None:
    loss = np.array([[1.0, np.inf, 3.0], [1.0, 5.0, np.inf]])
    failed = ~np.isfinite(loss)
    rises = np.array([[True, False, False], [False, False, False]])
    found = intervals.describe(loss, failed, rises, ~failed, loss)
    assert found["mean"] == pytest.approx(10 / 4)
    assert found["failed"] == pytest.approx(1 / 3) and found["failed_or_rises"] == pytest.approx(1 / 2)
    assert found["per_seed"]["mean"] == [2.0, 3.0] and found["median"] == 4.0
    other = intervals.compare(loss, failed, np.array([2.0, 2.0, 2.0]), np.array([False, False, True]))
    assert other["ratio"] == pytest.approx((1 + 1 + 5) / 6) and other["on"] == pytest.approx(0.5)


def test_every_arm_is_a_sound_experiment_of_its_own() -> None:
    for study in STUDIES.values():
        names = [arm.name for arm in study.arms]
        assert len(set(names)) == len(names) and {"rl", "bp"} <= set(names)
        for arm in study.arms:
            assert validate(arm.experiment).horizon == study.horizon
            assert arm.seeds >= 3 or study.name in ("networks_mnist_5k", "networks_fashion_mnist")
    # All eight corners of step rule × meta-gradient × noise.
    corners = {
        (
            arm.experiment.optimizer.options["step_rule"],
            arm.experiment.estimator.options.get("state_gradient", "full"),
            arm.experiment.optimizer.options.get("noise", "none"),
        )
        for arm in STUDIES["quadratic"].arms
        if arm.name in ("rl", "bp") or arm.name.startswith("cross/")
    }
    assert len(corners) == 8


@pytest.mark.parametrize("number", range(3, 9))
@pytest.mark.parametrize("model", ["rl", "bp"])
def test_each_figure_has_an_experiment_for_each_model(number: int, model: str) -> None:
    experiment = validate(figure(f"figure{number}_{model}"))
    assert experiment.num_meta_steps == 2000
    assert experiment.horizon == (100 if number < 7 else 50)
    assert experiment.optimizer.options["step_rule"] == {"rl": "direct", "bp": "recursive"}[model]
    assert max(experiment.evaluation.horizons) == {5: 100, 7: 500, 8: 500}.get(number, 1000)


def _at(mean: float, failed: float = 0.0, rises: float = 0.0, improves: float = 1.0) -> dict[str, Any]:
    return {
        "mean": mean, "interval": [0.9 * mean, 1.1 * mean], "median": mean, "area": mean, "failed": failed,
        "rises": rises, "improves": improves, "failed_or_rises": max(failed, rises),
        "to_best_tuned": {"ratio": 1.0, "interval": [0.9, 1.1]},
    }  # fmt: skip


def _regression(bp_lost: float, rl_lost: float, ratio: tuple[float, float]) -> dict[str, Any]:
    task = "linear_regression"

    def arm(lost: float, mean: float) -> dict[str, Any]:
        tests = {task: {"at": {"1": _at(mean), "10": _at(mean, rises=lost)}}}
        return {"tests": tests, "config": {"num_tasks": 16}, "seeds": 5}

    baselines = {
        name: {"record": {"learning_rate": 1.0}, "at": {"1": _at(9.0), "10": _at(9.0)}} for name in ("a", "b@1")
    }
    return {
        "study": task, "tests": [{"task": task, "num_tasks": 400}], "baselines": {task: baselines},
        "arms": {"rl": arm(rl_lost, 2.0), "bp": arm(bp_lost, 1.0)},
        "pairs": {"thesis": {task: {"area": {"ratio": 0.5, "interval": list(ratio)}}}},
    }  # fmt: skip


def test_verdicts_follow_the_figures() -> None:
    def verdicts(record: dict[str, Any]) -> dict[str, str]:
        return {claim.name: claim.verdict for claim in claims.judge({"linear_regression": record})}

    assert verdicts(_regression(0.9, 0.0, (0.4, 0.6)))["C4"] == "**holds**"
    assert verdicts(_regression(0.2, 0.0, (0.4, 0.6)))["C4"] == "**does not hold**"
    assert verdicts(_regression(0.9, 0.2, (0.4, 0.6)))["C4"] == "**does not hold**"
    assert verdicts(_regression(0.9, 0.0, (0.4, 0.6)))["C3"] == "**holds**"
    assert verdicts(_regression(0.9, 0.0, (0.8, 1.1)))["C3"] == "**does not hold**"
    assert verdicts(_regression(0.9, 0.0, (0.4, 0.6)))["C1"] == "not run yet"


def test_a_study_of_one_function_a_meta_step_says_so() -> None:
    def settings(functions: int, study: str) -> dict[str, str]:
        record = _regression(0.0, 0.0, (0.4, 0.6)) | {"study": study, "horizon": 50}
        record["arms"]["bp"]["config"]["num_tasks"] = functions
        for arm in record["arms"].values():
            for at in arm["tests"]["linear_regression"]["at"].values():
                at["per_seed"] = {"failed": [0.0] * 5, "mean": [1.0] * 5}
        judged = claims.judge({study: record})
        return {claim.name: f"{claim.verdict}: {claim.judged[0].setting}" for claim in judged if claim.judged}

    assert settings(16, "networks_digits")["C5c"] == f"**holds**: digits: {claims.OURS}"
    assert settings(1, "networks_mnist_5k")["C5c"] == f"**holds**: mnist_5k: {claims.THESIS}"
    assert settings(1, "linear_regression")["C4"] == f"**does not hold**: {claims.OURS}"


@pytest.mark.parametrize("rule", ["direct", "recursive"])
def test_lengths_go_on_with_the_inputs_held_as_the_optimizer_s_own_would(rule: Literal["direct", "recursive"]) -> None:
    optimizer = lstm(step_rule=rule, features="gradient", initial_alpha="median")
    phi = optimizer.init(jax.random.key(1))
    size = 0.3 if rule == "direct" else 0.03  # a recursion multiplies its factors
    phi = jax.tree.map(lambda leaf: leaf + size * jax.random.normal(jax.random.key(2), leaf.shape), phi)
    # With the gradient as its only input, the optimizer itself can be fed the same gradients again.
    horizon, tasks, dim = 30, 2, 5
    gradients = jax.random.normal(jax.random.key(3), (horizon, tasks, dim))
    assert optimizer.bind_tasks is not None
    tx = optimizer.bind_tasks(phi)
    state, own = tx.init(gradients[0]), []
    update = jax.jit(tx.update)
    for index in range(steps.BEYOND * horizon):
        repeated = horizon - steps.HELD + (index - horizon) % steps.HELD
        step, state = update(gradients[index if index < horizon else repeated], state)
        own.append(jnp.linalg.norm(step, axis=1))
    held = steps.held_lengths(phi, gradients[..., None], own[horizon - 1])
    np.testing.assert_allclose(held, jnp.stack(own[horizon:]), rtol=2e-3)
    assert np.ptp(np.log(held)) > 0.1  # it does move


def test_the_page_says_what_the_records_say() -> None:
    records = write.read_results()
    if not records:
        pytest.skip("no results are committed")
    page = (write.THESIS / "README.md").read_text()
    assert page == write.page(records)


def test_the_defaults_are_those_that_the_ablation_chose() -> None:
    found = choices.chosen(choices.weigh(read_results()))
    defaults = {name: parameter.default for name, parameter in inspect.signature(lstm).parameters.items()}
    assert {name: found[name] for name in choices.DEFAULTS} == {name: defaults[name] for name in choices.DEFAULTS}


def test_choices_are_weighed_where_nothing_else_differs() -> None:
    def arm(mean: float, failed: float, seeds: int = 3, **options: str) -> dict[str, Any]:
        options = {"features": "all", "noise": "none", **options}
        config = {
            "optimizer": {"options": options},
            "estimator": {"options": {}},
            "unroll_length": None,
            "num_tasks": 1,
        }
        at = {"10": {"per_seed": {"mean": [mean, mean, 100.0][:seeds], "failed": [failed, failed, 0.0][:seeds]}}}
        return {"config": config, "use": {}, "seeds": seeds, "tests": {"a": {"at": at}}}

    arms = {
        "base": arm(1.0, 0.0),
        "lower": arm(0.5, 0.0, seeds=2, features="gradient"),  # against the base's first two seeds
        "near": arm(0.95, 0.04, alpha="per_coordinate"),
        "fails": arm(0.1, 0.5, normalisation="rms"),
        "both": arm(0.1, 0.0, features="scale_free", s_form="printed"),
    }
    found = {(one.choice, one.other): one for one in choices.weigh({"study": {"arms": arms}})}
    assert set(found) == {("features", "gradient"), ("alpha", "per_coordinate"), ("normalisation", "rms")}
    assert found["features", "gradient"].better == ["lower on a"]
    assert found["alpha", "per_coordinate"].alike and found["normalisation", "rms"].worse
    assert choices.chosen(list(found.values()))["features"] == "gradient"
    found["features", "gradient"].worse.append("elsewhere")  # better once for each time worse
    found["features", "gradient"].better.append("there")
    assert choices.chosen(list(found.values()))["features"] == "all"


@pytest.fixture(scope="module")
def queue() -> Any:
    loader = importlib.machinery.SourceFileLoader("reproduce", str(THESIS / "reproduce"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("reproduce", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


def test_parts_that_take_the_phi_of_others_come_after_them(queue: Any) -> None:
    named = queue.parts(["after/variance", "quadratic/rl", "linear_regression"])
    assert named[0] == ("quadratic", "rl") and named[-1] == ("after", "variance")
    everything = queue.parts([])
    phases = {part.study: part.phase for part in everything}
    assert phases["networks_mnist_5k"] < phases["networks_fashion_mnist"] < phases["after"]
    assert [part.phase for part in everything] == sorted(part.phase for part in everything)
    with pytest.raises(ValueError, match="no part"):
        queue.parts(["quadratic/nothing"])


def test_a_study_whose_images_are_missing_is_left_out_with_one_line(
    queue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere(name: str, data_dir: str | None = None, **how: Any) -> None:
        raise FileNotFoundError(f"data set {name!r} is not on this machine\nplaces tried: none")

    monkeypatch.setattr("metaopt.tasks.images.load_dataset", nowhere)
    wanted = queue.parts(["networks_fashion_mnist", "after"])
    left = dict(queue.costs(wanted, tmp_path, None))
    assert {part.study for part in left} == {"after"}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("networks_fashion_mnist is left out: ") and "not on this machine" in line


def test_a_part_of_the_work_takes_no_place_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, part = ({"arms": {"rl": {"seeds": seeds}}} for seeds in (5, 1))
    (tmp_path / "quadratic.json").write_text(json.dumps(whole))
    monkeypatch.setattr(write, "RESULTS", tmp_path)
    monkeypatch.setattr(write, "ROOT", tmp_path)
    monkeypatch.setattr(write, "collect", lambda study, work: part if study.name == "quadratic" else None)
    monkeypatch.setattr(write, "read_results", dict)
    (line,) = write.write_all(tmp_path)
    assert line.startswith("kept: quadratic.json") and json.loads((tmp_path / "quadratic.json").read_text()) == whole
