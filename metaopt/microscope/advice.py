"""From the doctor's figures to advice in plain words, each with the figure that led to it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from metaopt.microscope.advice_on_runs import (
    Found,
    base_name,
    either,
    flat,
    is_fresh,
    optimizer_of,
    out_of_range,
    plain,
    saturated,
    scale_free,
)
from metaopt.microscope.doctor_plan import differentiates, from_values, persistent
from metaopt.numbers import largest_divisor
from metaopt.registry import OPTIMIZERS

# Adam averages about 1/(1 - β1) = 10 meta-steps: below a tenth, noise outweighs the signal in its average too.
LOW_SNR = 0.1
# An estimator is recommended in place of the run's own for at least this many times its signal-to-noise ratio ...
BETTER_SNR = 4.0
ALIKE = 0.9  # ... and where its expectation has this cosine with the reference
MISALIGNED = 0.7  # 45 degrees: the expected gradient points as much aside as down
# Derivatives that grow a thousandfold over a window: the few tasks where they do drown all others.
EXPLODES = 1e3
NONFINITE, DIVERGED = 0.01, 0.01  # what a healthy run has none of
FAILED = 0.1  # of the inner runs, by the evaluation's rule; a few hard tasks are no ailment
CLIPPED = 0.5  # when most gradients are clipped, the threshold sets their length


def advise(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """[{"rule", "figure", "text"}], the gravest first; empty: nothing to complain about."""
    rules = (_dying, _exploding, _noisy, _misaligned, _clipped, out_of_range, saturated, flat, _unresolved)
    return [
        {"rule": rule.__name__.lstrip("_"), "figure": figure, "text": text}
        for rule in rules
        for figure, text in rule(result)
    ]


def _own(result: Mapping[str, Any]) -> Mapping[str, Any]:
    own = next((entry for entry in result["estimators"] if entry.get("own")), {})
    return {} if "reason" in own else own


def reference_in_words(entry: Mapping[str, Any]) -> str:
    """What the cosines at one horizon are with."""
    kind = entry.get("kind", "unbiased")
    if kind == "smoothed":
        sigma = re.search(r"sigma=([0-9.e-]+)", str(entry["estimator"]))
        return f"the gradient of the loss smoothed over φ (evolution strategies, σ = {sigma[1] if sigma else 0.01})"
    if kind == "whole_window":
        return f"what {entry['estimator']} over one window of {entry['horizon']:,} steps expects, bias and all"
    return "the unbiased gradient"


def _own_reference(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((entry for entry in result["references"] if entry["horizon"] == result["horizon"]), {})


def _tasks(count: float) -> str:
    return f"{math.ceil(count):,} tasks"


def _dying(result: Mapping[str, Any]) -> Found:
    own = _own(result)
    if (own.get("nonfinite") or 0) > NONFINITE:
        remedy = "shorten the window (--unroll-length)"
        if from_values(base_name(result["estimator"])):
            remedy = "shorten --horizon, or lower the estimator's sigma"
        elif differentiates(base_name(result["estimator"])):
            remedy += f", or estimate from values alone (--estimator {persistent()[0]})"
        yield own["nonfinite"], f"{own['nonfinite']:.0%} of the meta-gradients are not finite: {remedy}."
    within = [entry.get("failed_within") or 0.0 for entry in result["steps"] if entry["training"]]
    # A fresh φ has yet to learn not to.
    gone, risen = own.get("diverged") or 0.0, 0.0 if is_fresh(result) else max(within, default=0.0)
    if gone > DIVERGED or risen > FAILED:
        remedies = [] if is_fresh(result) else ["lower --meta-optimizer.learning-rate"]
        option = _shorter_steps(result)
        remedies += [f"start with a lower {option} of the optimizer"] if option and is_fresh(result) else []
        remedies += ["shorten --horizon"]
        remedies += scale_free(result)
        shown = "" if is_fresh(result) else "; `metaopt replay` shows the runs kept in the folder `capsules`"
        if gone > DIVERGED:
            what, figure = "become non-finite", gone
        else:
            what, figure, shown = "rise above 10 times their first loss", risen, ""
        yield figure, f"{figure:.0%} of the training tasks {what} within the horizon: {either(remedies)}{shown}."


def _shorter_steps(result: Mapping[str, Any]) -> str | None:
    """The option that sets how long the steps of a fresh φ are."""
    picked = optimizer_of(result)
    return OPTIMIZERS.traits(picked.name).shorter_steps(picked.options)


def _exploding(result: Mapping[str, Any]) -> Found:
    # The mixture stands on values where derivatives explode; a score goes back through hidden states alone.
    if not differentiates(base_name(result["estimator"])):
        return
    window = result["unroll_length"]
    # With θ cut at every step nothing goes back through ∇_t.
    second = result["second_order"] and result.get("state_gradient") != "stopped"
    for entry in result["jacobian"]:
        if entry["order"] != ("second" if second else "first"):
            continue
        growth, start = _stretch(entry, window)
        if window * math.log(growth) > math.log(EXPLODES):
            fits = max(1, int(math.log(EXPLODES) / math.log(growth)))
            yield (
                growth,
                f"The unroll's Jacobian grows by {growth:.3g} a step from step {start} on, on {entry['task']}: over "
                f"{window} steps that is {growth ** min(window, 300):.0e}. Shorten the window (--unroll-length "
                f"{largest_divisor(result['horizon'], fits)}), or use --estimator {persistent()[0]}.",
            )


def _stretch(entry: Mapping[str, Any], window: int) -> tuple[float, int]:
    """(geometric mean of the growth, first step) of the stretch of a window's length where it is largest; 1 or more."""
    rates = [(value, start) for value, start in zip(entry["median"], entry["start"], strict=True) if value]
    # From the second position on: a run's first steps are its own.
    rates = rates[1:] or rates or [(1.0, 0)]
    spacing = max(1, entry["start"][1] - entry["start"][0]) if len(entry["start"]) > 1 else window
    count = min(len(rates), max(1, round(window / spacing)))
    means = [
        (math.exp(sum(math.log(value) for value, _ in rates[i : i + count]) / count), rates[i][1])
        for i in range(len(rates) - count + 1)
    ]
    growth, start = max(means)
    return max(1.0, growth), start


def _noisy(result: Mapping[str, Any]) -> Found:
    own = _own(result)
    if not own.get("snr"):
        return
    snr, tasks = own["snr"]["value"], result["num_tasks"]
    if snr is None or snr + (own["snr"]["error"] or 0) >= LOW_SNR:
        return
    better = [
        entry
        for entry in result["estimators"]
        if (entry.get("snr") or {}).get("value") is not None
        and entry["horizon"] == own["horizon"]
        and entry["snr"]["value"] > BETTER_SNR * max(snr, own["snr"]["error"] or 0)
        and (entry.get("cosine") or {}).get("value", 0) > ALIKE
    ]
    wanted = (
        f"{_tasks(tasks * LOW_SNR / snr)} would bring it to {LOW_SNR:g}" if snr > 0 else "more tasks would raise it"
    )
    text = (
        f"The meta-gradient's signal-to-noise ratio is {snr:.2g} with {_tasks(tasks)} a meta-step; {wanted}: raise "
        "--num-tasks, or lower --meta-optimizer.learning-rate so that more meta-steps are averaged."
    )
    if better:
        best = max(better, key=lambda entry: entry["snr"]["value"])
        text += (
            f" On the same tasks {best['estimator']} with a window of {best['window']} has {best['snr']['value']:.2g}."
        )
    yield snr, text


def _misaligned(result: Mapping[str, Any]) -> Found:
    own = _own(result)
    cosine = own.get("cosine")
    reference = _own_reference(result)
    kind = reference.get("kind", "unbiased")
    if not cosine or cosine["value"] + 2 * cosine["error"] >= MISALIGNED or kind == "whole_window":
        return
    name, window, horizon, remedies = base_name(result["estimator"]), result["unroll_length"], result["horizon"], []
    whole = [
        entry["cosine"]["value"]
        for entry in result["estimators"]
        if entry["horizon"] == entry["window"] == horizon
        and base_name(entry["estimator"]) == name
        and entry.get("cosine")
    ]
    if window < horizon and not from_values(name) and not (whole and max(whole) < cosine["value"] + 0.1):
        remedies += [f"--unroll-length {horizon}" + (f" (which has {max(whole):.2f})" if whole else "")]
    if differentiates(name):
        remedies += ["state_gradient=full"] if result.get("state_gradient") == "stopped" else []
        # Where the smoothed gradient had to stand in, second derivatives explode.
        remedies += [] if result["second_order"] or kind == "smoothed" else ["second_order=true"]
    elif "persistent=false" in str(result["estimator"]):
        remedies += ["persistent=true"]
    elif from_values(name):
        remedies += ["a lower sigma"]
    if remedies:
        yield (
            cosine["value"],
            f"The expected meta-gradient has a cosine of only {cosine['value']:.2f} with "
            f"{reference_in_words(reference)}: try {either(remedies)}, at more cost or noise a meta-step.",
        )


def _clipped(result: Mapping[str, Any]) -> Found:
    own = _own(result)
    if (own.get("clipped") or 0) <= CLIPPED:
        return
    # Gradients all cut to one length are no ailment in themselves: Adam and its like divide by the length anyway.
    turned = own.get("clipped_cosine")
    if result["follows_length"]:
        name = result["meta_optimizer"]
        harm = f"so that the threshold, and not the gradient, sets the length of a meta-step of {name}"
    elif turned and turned["value"] + 2 * turned["error"] < MISALIGNED:
        harm = f"which turns their mean: its cosine with the unclipped one is {turned['value']:.2f}"
    else:
        return
    flags = {"clip_norm": "norm", "clip_value": "value", "clip_adaptive": "adaptive"}
    bounds = [(name, result[key]) for key, name in flags.items() if result.get(key) is not None]
    remedies = [f"--meta-optimizer.clip-{name}" for name, _ in bounds]
    if bounds and bounds[0][0] == "norm":
        remedies[0] += f" to about {plain(own['large_norm'])}, which clips a tenth"
    at = " and ".join(f"{name} {value:g}" for name, value in bounds)
    yield (
        own["clipped"],
        f"{own['clipped']:.0%} of the meta-gradients are clipped (at {at}; their typical norm is "
        f"{own['typical_norm']:.2g}), {harm}. Raise {either(remedies)}.",
    )


def _unresolved(result: Mapping[str, Any]) -> Found:
    for entry in result["references"]:
        wanted = entry.get("unbiased") or entry
        if wanted["resolved"]:
            continue
        horizon = entry["horizon"]
        growths = [_stretch(one, result["horizon"])[0] for one in result["jacobian"] if one["order"] == "second"]
        growth = max(growths, default=1.0)
        if horizon * math.log(growth) > math.log(EXPLODES):
            why = f"its Jacobian grows by {growth:.3g} a step, so that rare tasks drown all others"
            help_ = "More draws hardly help; go by the signal-to-noise ratios here and by validation."
        else:
            why = "φ is near a stationary point, or the gradient is too noisy to learn from"
            help_ = "A larger --num-tasks here resolves more."
        instead = f"no cosines are given there. {help_}"
        if entry["resolved"]:
            instead = f"the cosines there are with {reference_in_words(entry)}."
        yield (
            wanted["mean_snr"] or 0.0,
            f"{wanted['num_lives']:,} draws of the unbiased gradient over {horizon:,} steps do not tell it from zero: "
            f"{why}; {instead}",
        )
