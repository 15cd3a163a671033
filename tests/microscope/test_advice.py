"""Advice: every rule speaks at its threshold, with its figure, and is silent below."""

from __future__ import annotations

from typing import Any

import pytest

from metaopt.microscope import advice
from metaopt.microscope.advice import advise


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
        "meta_step": 2000,
        "meta_optimizer": "adam",
        "follows_length": False,
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


def test_runs_that_rise_are_told_though_all_stay_finite() -> None:
    result = healthy()
    result["steps"][0] |= {"failed_within": 0.4}
    (found,) = advise(result)
    assert found["figure"] == 0.4 and "40% of the training tasks rise above 10 times their first loss" in found["text"]
    assert advise({**result, "meta_step": None}) == []  # a fresh φ has yet to learn not to


def test_advice_names_the_reference_that_stood_in() -> None:
    result = healthy()
    wanted = {"horizon": 100, "num_lives": 225, "mean_snr": 0.5, "resolved": False}
    stood_in = {"estimator": "evolution_strategies:sigma=0.003", "kind": "smoothed", "unbiased": wanted}
    result["references"][0] |= stood_in
    (found,) = advise(result)
    assert found["rule"] == "unresolved" and "225 draws of the unbiased" in found["text"]
    assert found["text"].endswith("smoothed over φ (evolution strategies, σ = 0.003).")
    result["estimators"][0] |= {"cosine": {"value": 0.6, "error": 0.02}, "window": 20}
    misaligned = rules({**result, "unroll_length": 20})["misaligned"]["text"]
    assert "0.60 with the gradient of the loss smoothed over φ" in misaligned and "second_order" not in misaligned
    result["references"][0]["kind"] = "whole_window"
    assert "misaligned" not in rules(result)


def rules(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["rule"]: entry for entry in advise(result)}


@pytest.mark.parametrize(
    ("rule", "change", "figure", "words"),
    [
        ("dying", {"nonfinite": 0.02}, 0.02, "2% of the meta-gradients are not finite"),
        ("dying", {"diverged": 0.02}, 0.02, "2% of the training tasks become non-finite"),
        ("noisy", {"snr": {"value": 0.025, "error": 0.01}}, 0.025, "64 tasks would bring it to 0.1"),
        ("misaligned", {"cosine": {"value": 0.6, "error": 0.02}}, 0.6, "second_order=true"),
        (
            "clipped",
            {"clipped": 0.6, "clipped_cosine": {"value": 0.5, "error": 0.05}},
            0.6,
            "60% of the meta-gradients are clipped (at norm 1; their typical norm is 0.5), which turns their mean",
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
    own |= {"snr": {"value": advice.LOW_SNR, "error": 0.0}, "nonfinite": advice.NONFINITE}
    own |= {"clipped": 1.0, "clipped_cosine": {"value": advice.MISALIGNED, "error": 0.0}}
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
    result["gates"][0]["layers"][0] |= {"i": 0.75, "f": 0.9}  # a forget gate may rest at its end
    result["steps"][0]["median"] = [1.0, 0.5, 0.4]
    result["references"][0] |= {"resolved": False, "mean_snr": 1.5}
    found = rules(result)
    assert found["saturated"]["figure"] == 0.75 and "gate i in layer 1" in found["saturated"]["text"]
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


def test_clipping_all_gradients_to_one_length_ails_sgd_alone() -> None:
    result = healthy()
    result["estimators"][0] |= {"clipped": 1.0, "clipped_cosine": {"value": 0.95, "error": 0.01}}
    assert advise(result) == []
    result |= {"meta_optimizer": "sgd", "follows_length": True}
    assert (
        "sets the length of a meta-step of sgd. Raise --meta-optimizer.clip-norm to about 2"
        in advise(result)[0]["text"]
    )
    result |= {"clip_norm": None, "clip_adaptive": 1.1}
    assert "(at adaptive 1.1; " in advise(result)[0]["text"] and "clip-norm" not in advise(result)[0]["text"]


def test_growth_is_averaged_over_the_window() -> None:
    result = healthy()
    entry = {"task": "quadratic", "order": "first", "start": [0, 20, 40, 60, 80], "median": [1.0, 1.0, 1.2, 1.0, 1.0]}
    result["jacobian"] = [entry]
    assert "exploding" not in rules(result)  # 1.2^100 is nowhere to be met
    entry["median"] = [1.0, 1.2, 1.2, 1.1, 1.1]
    assert rules(result)["exploding"]["figure"] == pytest.approx((1.2 * 1.1) ** 0.5)
    result["unroll_length"] = 40
    assert rules(result)["exploding"]["figure"] == pytest.approx(1.2)
    result["estimator"] = "mixture"
    assert "exploding" not in rules(result)
    entry["order"] = "second"
    result |= {"estimator": "reparameterised:state_gradient=stopped,second_order=true", "second_order": True}
    assert "exploding" in rules(result)
    assert "exploding" not in rules(result | {"state_gradient": "stopped"})


def test_a_fresh_phi_is_not_told_to_train_otherwise() -> None:
    result = healthy() | {"meta_step": None}
    result["steps"][0]["median"] = [1.0, 0.5, 0.5]
    result["gates"][0]["layers"][0]["i"] = 0.75
    result["estimators"][0]["diverged"] = 0.3
    found = rules(result)
    assert "flat" not in found
    assert "learning-rate" not in found["dying"]["text"] and "alpha_bias" in found["dying"]["text"]
    assert "replay" not in found["dying"]["text"] and "learning-rate" not in found["saturated"]["text"]
    result["optimizer"] = "adam"
    found = rules(result)
    assert "lower learning_rate of the optimizer" in found["dying"]["text"] and "scale_free" not in str(found)


def test_remedies_are_those_that_the_run_has_not_taken() -> None:
    result = healthy()
    own = result["estimators"][0]
    own["cosine"] = {"value": 0.5, "error": 0.01}
    text = rules(result | {"state_gradient": "stopped"})["misaligned"]["text"]
    assert "state_gradient=full or second_order=true" in text
    assert "misaligned" not in rules(result | {"second_order": True})  # nothing is left to try
    sigma = rules(result | {"estimator": "evolution_strategies"})["misaligned"]["text"]
    assert "a lower sigma" in sigma and "second_order" not in sigma
    truncated = result | {"unroll_length": 10}
    own["window"] = 10
    assert "--unroll-length 100 or second_order=true" in rules(truncated)["misaligned"]["text"]
    whole = {**own, "own": False, "window": 100, "cosine": {"value": 0.8, "error": 0.01}}
    truncated["estimators"] = [own, whole]
    assert "--unroll-length 100 (which has 0.80)" in rules(truncated)["misaligned"]["text"]
    whole["cosine"] = {"value": 0.5, "error": 0.01}
    assert "--unroll-length" not in rules(truncated)["misaligned"]["text"]
    own["nonfinite"] = 0.1
    text = rules(result | {"estimator": "persistent_evolution_strategies"})["dying"]["text"]
    assert "values alone" not in text and "sigma" in text


def test_an_average_that_still_rises_wants_a_shorter_memory() -> None:
    result = healthy()
    entry = {"task": "quadratic", "training": True, "steps": "beyond", "outside": [0.0, 0.58]}
    result["inputs"] = {"names": ["n", "vⁿ"], "tasks": [entry]}
    text = rules(result)["out_of_range"]["text"]
    assert "longer --horizon, or with a beta2 of at most 0.95" in text and "rescale" not in text
    assert "beta2" not in rules(result | {"optimizer": "lstm:beta2=0.9"})["out_of_range"]["text"]


def test_an_exploding_reference_is_not_helped_by_draws() -> None:
    result = healthy()
    result["references"][0] |= {"resolved": False, "mean_snr": 0.5}
    assert "A larger --num-tasks" in rules(result)["unresolved"]["text"]
    result["jacobian"].append({"task": "quadratic", "order": "second", "start": [0, 50], "median": [1.0, 1.2]})
    text = rules(result)["unresolved"]["text"]
    assert "grows by 1.2 a step" in text and "num-tasks" not in text
