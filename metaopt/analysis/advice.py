"""From the doctor's figures to advice in plain words, each with the figure that led to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

# Adam averages about 1/(1 - β1) = 10 meta-steps: below a tenth, noise outweighs the signal in its average too.
LOW_SNR = 0.1
# An estimator is recommended in place of the run's own for at least this many times its signal-to-noise ratio ...
BETTER_SNR = 4.0
ALIKE = 0.9  # ... and where its expectation has this cosine with the reference
MISALIGNED = 0.7  # 45 degrees: the expected gradient points as much aside as down
# Derivatives that grow a thousandfold over a window: the few tasks where they do drown all others.
EXPLODES = 1e3
NONFINITE, DIVERGED = 0.01, 0.01  # what a healthy run has none of
CLIPPED = 0.5  # when most gradients are clipped, the threshold sets their length
SATURATED = 0.5  # when most activations of a gate are stuck at an end, inputs hardly move it
OUTSIDE = 0.2  # a hundred times what lies outside the training range on training tasks
FLAT = 0.5  # steps that shrink less than to half while the run goes on ten times as long
MOST = 3  # of a kind of advice


def advise(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """[{"rule", "figure", "text"}], the gravest first; empty: nothing to complain about."""
    rules = (_dying, _exploding, _noisy, _misaligned, _clipped, _out_of_range, _saturated, _flat, _unresolved)
    return [
        {"rule": rule.__name__.lstrip("_"), "figure": figure, "text": text}
        for rule in rules
        for figure, text in rule(result)
    ]


Found = Iterator[tuple[float, str]]


def _own(result: Mapping[str, Any]) -> Mapping[str, Any]:
    own = next((entry for entry in result["estimators"] if entry.get("own")), {})
    return {} if "reason" in own else own


def _tasks(count: float) -> str:
    return f"{math.ceil(count):,} tasks"


def _plain(value: float) -> str:
    """Two digits, without an exponent while it is short."""
    return f"{float(f'{value:.2g}'):g}"


def _dying(result: Mapping[str, Any]) -> Found:
    own = _own(result)
    if (own.get("nonfinite") or 0) > NONFINITE:
        yield (
            own["nonfinite"],
            f"{own['nonfinite']:.0%} of the meta-gradients are not finite: shorten the window (--unroll-length), or "
            "estimate from values alone (--estimator persistent_evolution_strategies).",
        )
    if (own.get("diverged") or 0) > DIVERGED:
        yield (
            own["diverged"],
            f"{own['diverged']:.0%} of the training tasks diverge within the horizon: lower "
            "--meta-optimizer.learning-rate, shorten --horizon, or take features=scale_free; `metaopt replay` shows "
            "the runs kept in the folder `capsules`.",
        )


def _exploding(result: Mapping[str, Any]) -> Found:
    order = "second" if result["second_order"] else "first"
    window = result["unroll_length"]
    for entry in result["jacobian"]:
        if entry["order"] != order or not _backward(result):
            continue
        rates = [(value, start) for value, start in zip(entry["median"], entry["start"], strict=True) if value]
        # From the second position on: a run's first steps are its own.
        growth, start = max(rates[1:] or rates or [(1.0, 0)])
        if growth > 1 and window * math.log(growth) > math.log(EXPLODES):
            fits = max(1, int(math.log(EXPLODES) / math.log(growth)))
            yield (
                growth,
                f"The unroll's Jacobian grows by {growth:.3g} a step near step {start} on {entry['task']}: over "
                f"{window} steps that is {growth ** min(window, 300):.0e}. Shorten the window (--unroll-length "
                f"{_at_most(fits, result['horizon'])}), or use --estimator persistent_evolution_strategies.",
            )


def _backward(result: Mapping[str, Any]) -> bool:
    return not str(result["estimator"]).startswith(("evolution", "persistent"))


def _at_most(length: int, horizon: int) -> int:
    return max(n for n in range(1, length + 1) if horizon % n == 0)


def _noisy(result: Mapping[str, Any]) -> Found:
    own = _own(result)
    if not own.get("snr"):
        return
    snr, tasks = own["snr"]["value"], result["num_tasks"]
    if snr is None or snr >= LOW_SNR:
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
    if cosine and cosine["value"] + 2 * cosine["error"] < MISALIGNED:
        window, horizon = result["unroll_length"], result["horizon"]
        remedy = "second_order=true" if window == horizon else f"--unroll-length {horizon}, or second_order=true"
        yield (
            cosine["value"],
            f"The expected meta-gradient has a cosine of only {cosine['value']:.2f} with the unbiased one: try "
            f"{remedy}, at more cost a meta-step.",
        )


def _clipped(result: Mapping[str, Any]) -> Found:
    own = _own(result)
    if (own.get("clipped") or 0) > CLIPPED:
        bounds = [
            f"{name} {result[key]:g}"
            for key, name in (("clip_norm", "norm"), ("clip_value", "value"))
            if result[key] is not None
        ]
        yield (
            own["clipped"],
            f"{own['clipped']:.0%} of the meta-gradients are clipped (at {' and '.join(bounds)}; their typical norm is "
            f"{own['typical_norm']:.2g}): lower --meta-optimizer.learning-rate, or raise "
            f"--meta-optimizer.clip-norm to about {_plain(own['large_norm'])}, which clips a tenth.",
        )


def _out_of_range(result: Mapping[str, Any]) -> Found:
    inputs = result["inputs"]
    if not inputs:
        return
    failed = {entry["task"]: entry["failed"] for entry in result["steps"] if not entry["training"]}
    worst: dict[str, tuple[float, str, str]] = {}
    for entry in inputs["tasks"]:
        share, name = max(zip(entry["outside"], inputs["names"], strict=True))
        key = f"{entry['task']}{entry['training']}"
        if share > OUTSIDE and share > worst.get(key, (0.0,))[0]:
            where = "training tasks beyond their horizon" if entry["training"] else entry["task"]
            worst[key] = (share, name, where)
    for share, name, where in sorted(worst.values(), reverse=True)[:MOST]:
        free = name in ("∇", "∇²", "m", "v") or (name == "s" and "n" not in inputs["names"])
        remedy = (
            "The option features=scale_free is free of the gradient's scale; meta-training on such tasks, or with "
            "--rescale, widens the range."
            if free
            else "Meta-train on such tasks, for a longer --horizon, or with --rescale."
        )
        fails = f" {failed[where]:.0%} of the runs there fail." if failed.get(where) else ""
        yield (
            share,
            f"Input {name} lies outside of its training range in {share:.0%} of what the network reads on {where}."
            f"{fails} {remedy}",
        )


def _saturated(result: Mapping[str, Any]) -> Found:
    worst: dict[tuple[int, str], tuple[float, str]] = {}
    for entry in result["gates"] or ():
        if not entry["training"] or entry["steps"] != "within":
            continue
        for layer, gates in enumerate(entry["layers"]):
            for gate, share in gates.items():
                if share > max(SATURATED, worst.get((layer, gate), (0.0,))[0]):
                    worst[layer, gate] = (share, entry["task"])
    for (layer, gate), (share, task) in sorted(worst.items(), key=lambda item: -item[1][0]):
        yield (
            share,
            f"{share:.0%} of the activations of gate {gate} in layer {layer + 1} are saturated on {task}: what the "
            "network reads hardly moves it. Take features=scale_free, or lower --meta-optimizer.learning-rate.",
        )


def _flat(result: Mapping[str, Any]) -> Found:
    if not _direct(result):
        return
    found = []
    for entry in result["steps"]:
        lengths = {step: value for step, value in zip(entry["step"], entry["median"], strict=True) if value}
        at = [step for step in lengths if step >= result["horizon"]]
        last = max(lengths, default=0)
        if at and last >= 5 * result["horizon"] and lengths[last] > FLAT * lengths[min(at)]:
            found.append((lengths[last] / lengths[min(at)], entry["task"], min(at), last))
    if found:
        ratio, task, first, last = max(found)
        others = f" (and more than {FLAT:g} times on {len(found) - 1} other families)" if len(found) > 1 else ""
        yield (
            ratio,
            f"On {task} the steps at step {last:,} are {ratio:.2g} times as long as at step {first:,}{others}: the "
            "loss cannot fall below what such steps reach. Meta-train over a longer --horizon, or take "
            "step_rule=recursive, whose step length can go on shrinking.",
        )


def _direct(result: Mapping[str, Any]) -> bool:
    optimizer = str(result["optimizer"])
    return optimizer.partition(":")[0] == "lstm" and "step_rule=recursive" not in optimizer


def _unresolved(result: Mapping[str, Any]) -> Found:
    for entry in result["references"]:
        if not entry["resolved"]:
            yield (
                entry["mean_snr"] or 0.0,
                f"{entry['num_lives']} draws of the reference over {entry['horizon']:,} steps do not tell it from "
                "zero, so no cosines are given there: φ is near a stationary point, or the gradient is too noisy to "
                "learn from. A larger --num-tasks here resolves more.",
            )
