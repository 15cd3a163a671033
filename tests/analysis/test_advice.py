"""Advice: every rule speaks at its threshold, with its figure, and is silent below."""

from __future__ import annotations

from typing import Any

import pytest

from metaopt.analysis import advice
from metaopt.analysis.advice import advise


def healthy() -> dict[str, Any]:
    own = {
        "estimator": "reparameterised",
        "own": True,
        "horizon": 100,
        "window": 100,
        "cosine": {"value": 0.9, "error": 0.01},
        "typical_norm": 0.5,
        "large_norm": 2.0,
        "snr": {"value": 1.0, "error": 0.1},
        "nonfinite": 0.0,
        "clipped": 0.1,
        "diverged": 0.0,
    }
    return {
        "num_tasks": 16,
        "horizon": 100,
        "unroll_length": 100,
        "optimizer": "lstm:features=all",
        "estimator": "reparameterised",
        "second_order": False,
        "clip_norm": 1.0,
        "clip_value": None,
        "references": [{"horizon": 100, "num_lives": 64, "mean_snr": 60.0, "resolved": True}],
        "estimators": [own],
        "jacobian": [{"task": "quadratic", "order": "first", "start": [0, 50], "median": [1.5, 1.0]}],
        "gates": [{"task": "quadratic", "training": True, "steps": "within", "layers": [{"i": 0.1, "f": 0.2}]}],
        "inputs": {
            "names": ["∇²", "n"],
            "tasks": [{"task": "rosenbrock", "training": False, "steps": "within", "outside": [0.1, 0.0]}],
        },
        "steps": [
            {"task": "quadratic", "training": True, "step": [1, 100, 1000], "median": [1.0, 0.5, 0.1], "failed": 0.0},
            {"task": "rosenbrock", "training": False, "step": [1], "median": [1.0], "failed": 0.5},
        ],
    }


def test_nothing_to_complain_about() -> None:
    assert advise(healthy()) == []


def rules(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["rule"]: entry for entry in advise(result)}


@pytest.mark.parametrize(
    ("rule", "change", "figure", "words"),
    [
        ("dying", {"nonfinite": 0.02}, 0.02, "2% of the meta-gradients are not finite"),
        ("dying", {"diverged": 0.02}, 0.02, "2% of the training tasks diverge"),
        ("noisy", {"snr": {"value": 0.025, "error": 0.01}}, 0.025, "64 tasks would bring it to 0.1"),
        ("misaligned", {"cosine": {"value": 0.6, "error": 0.02}}, 0.6, "second_order=true"),
        (
            "clipped",
            {"clipped": 0.6},
            0.6,
            "60% of the meta-gradients are clipped (at norm 1; their typical norm is 0.5",
        ),
    ],
)
def test_rules_on_the_runs_own_estimator(rule: str, change: dict[str, Any], figure: float, words: str) -> None:
    result = healthy()
    result["estimators"][0] |= change
    (found,) = advise(result)
    assert found["rule"] == rule and found["figure"] == figure and words in found["text"]


def test_thresholds() -> None:
    result = healthy()
    own = result["estimators"][0]
    own |= {"snr": {"value": advice.LOW_SNR, "error": 0.0}, "clipped": advice.CLIPPED, "nonfinite": advice.NONFINITE}
    own |= {"cosine": {"value": advice.MISALIGNED, "error": 0.0}, "diverged": advice.DIVERGED}
    assert advise(result) == []


def test_growth_shortens_the_window() -> None:
    result = healthy()
    result["jacobian"][0]["median"] = [9.0, 1.3]  # the first steps do not count
    found = rules(result)["exploding"]
    # 1.3^100 = 2.5e11; 1.3^26 = 917 is the last below a thousand, and 25 divides 100.
    assert found["figure"] == 1.3 and "2e+11" in found["text"] and "--unroll-length 25)" in found["text"]
    result["jacobian"][0]["median"] = [9.0, 1.07]  # 1.07^100 = 868
    assert "exploding" not in rules(result)
    result["jacobian"][0]["median"] = [9.0, 1.3]
    result["estimator"] = "evolution_strategies"  # differentiates nothing
    assert "exploding" not in rules(result)


def test_inputs_out_of_range() -> None:
    result = healthy()
    result["inputs"]["tasks"][0]["outside"] = [0.93, 0.3]
    found = rules(result)["out_of_range"]
    assert found["figure"] == 0.93
    assert "Input ∇² lies outside of its training range in 93%" in found["text"] and "rosenbrock" in found["text"]
    assert "50% of the runs there fail" in found["text"] and "scale_free" in found["text"]
    result["inputs"]["tasks"][0]["outside"] = [0.1, 0.3]
    assert "scale_free" not in rules(result)["out_of_range"]["text"]  # n is free of scale already


def test_gates_steps_and_reference() -> None:
    result = healthy()
    result["gates"][0]["layers"][0]["f"] = 0.75
    result["steps"][0]["median"] = [1.0, 0.5, 0.4]
    result["references"][0] |= {"resolved": False, "mean_snr": 1.5}
    found = rules(result)
    assert found["saturated"]["figure"] == 0.75 and "gate f in layer 1" in found["saturated"]["text"]
    assert found["flat"]["figure"] == pytest.approx(0.8) and "step_rule=recursive" in found["flat"]["text"]
    assert found["unresolved"]["figure"] == 1.5 and "64 draws" in found["unresolved"]["text"]
    result["optimizer"] = "lstm:step_rule=recursive"
    assert "flat" not in rules(result)


def test_a_better_estimator_is_named() -> None:
    result = healthy()
    result["estimators"][0]["snr"] = {"value": 0.01, "error": 0.01}
    other = {"own": False, "estimator": "mixture", "snr": {"value": 0.5, "error": 0.1}, "cosine": {"value": 0.95}}
    result["estimators"].append({**result["estimators"][0], **other})
    assert "On the same tasks mixture" in rules(result)["noisy"]["text"]
