"""The reproduction of the thesis: its statistics, its verdicts, and that every figure's experiment stands."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import thesis_choices as choices  # noqa: E402
import thesis_claims as claims  # noqa: E402
import thesis_statistics as figures  # noqa: E402
import thesis_steps as steps  # noqa: E402
import thesis_write  # noqa: E402
from thesis_arms import STUDIES, figure  # noqa: E402
from thesis_write import read_results  # noqa: E402

from metaopt.analysis.inner_runs import network_inputs, watch  # noqa: E402
from metaopt.experiment import build_family, choice  # noqa: E402
from metaopt.optimizers.lstm import lstm  # noqa: E402
from metaopt.runs.config import validate  # noqa: E402


def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        # Means over seeds and tasks are 2 and 1; both factors are noisy.
        seeds = rng.gamma(8.0, 1 / 8, (8, 1))
        values = 2 * seeds * rng.gamma(4.0, 1 / 4, (8, 60))
        reference = rng.gamma(16.0, 1 / 16, 60)
        _, (low, high) = figures.interval(values, reference, np.ones_like(values, bool))
        covered += low <= 2 <= high
    assert 0.80 <= covered / 200 <= 0.99  # with eight seeds a percentile interval is a little short


def test_failed_runs_are_left_out_of_means_and_counted() -> None:
    loss = np.array([[1.0, np.inf, 3.0], [1.0, 5.0, np.inf]])
    failed = ~np.isfinite(loss)
    rises = np.array([[True, False, False], [False, False, False]])
    found = figures.describe(loss, failed, rises, ~failed, loss)
    assert found["mean"] == pytest.approx(10 / 4)
    assert found["failed"] == pytest.approx(1 / 3) and found["failed_or_rises"] == pytest.approx(1 / 2)
    assert found["per_seed"]["mean"] == [2.0, 3.0] and found["median"] == 4.0
    other = figures.compare(loss, failed, np.array([2.0, 2.0, 2.0]), np.array([False, False, True]))
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
    record = _regression(0.9, 0.0, (0.4, 0.6))
    assert [one.setting for one in claims._diverges(record, "linear_regression")] == [claims.OURS]
    record["arms"]["bp"]["config"]["num_tasks"] = 1
    assert [one.setting for one in claims._diverges(record, "linear_regression")] == [claims.THESIS]


@pytest.mark.parametrize("rule", ["direct", "recursive"])
def test_the_length_with_inputs_held_is_the_run_s_own_up_to_the_horizon(rule: Literal["direct", "recursive"]) -> None:
    optimizer = lstm(step_rule=rule, features="all", initial_alpha="median")
    phi = optimizer.init(jax.random.key(1))
    picked = choice("lstm", step_rule=rule, features="all", initial_alpha="median")
    found = watch(
        optimizer, phi, build_family(choice("quadratic", dim=10)), jax.random.split(jax.random.key(2), 1),
        horizon=30, explore=False, inputs=network_inputs(picked), num_coordinates=10,
    )  # fmt: skip
    assert found.inputs is not None
    held = steps.held_lengths(phi, found.inputs, 30)
    np.testing.assert_allclose(held[:30], found.update_norm[:, 0], rtol=1e-4)
    assert len(held) == 300 and np.isfinite(held).all()


def test_the_page_says_what_the_records_say() -> None:
    import thesis_write

    records = thesis_write.read_results()
    if not records:
        pytest.skip("no results are committed")
    page = (thesis_write.THESIS / "README.md").read_text()
    assert page == "\n".join(thesis_write._page(records)).rstrip() + "\n"


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


def test_a_part_of_the_work_takes_no_place_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, part = ({"arms": {"rl": {"seeds": seeds}}} for seeds in (5, 1))
    (tmp_path / "quadratic.json").write_text(json.dumps(whole))
    monkeypatch.setattr(thesis_write, "RESULTS", tmp_path)
    monkeypatch.setattr(thesis_write, "THESIS", tmp_path / "a" / "b")
    monkeypatch.setattr(thesis_write, "collect", lambda study, work: part if study.name == "quadratic" else None)
    monkeypatch.setattr(thesis_write, "read_results", dict)
    (line,) = thesis_write.write_all(tmp_path)
    assert line.startswith("kept: quadratic.json") and json.loads((tmp_path / "quadratic.json").read_text()) == whole
