"""Advice from what a network meets along inner runs: its inputs, its gates, the lengths of its steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from metaopt.choices import Choice, parse_choice
from metaopt.registry import OPTIMIZERS

SATURATED = 0.5  # when most activations of a gate are stuck at an end, inputs hardly move it
OUTSIDE = 0.2  # a hundred times what lies outside the training range on training tasks
FLAT = 0.5  # steps that shrink less than to half while the run goes on ten times as long
MOST = 3  # of a kind of advice
BEYOND = "training tasks beyond their horizon"

Found = Iterator[tuple[float, str]]  # (figure, text)


def is_fresh(result: Mapping[str, Any]) -> bool:
    return result.get("meta_step") is None


def base_name(picked: Any) -> str:
    return str(picked).partition(":")[0]


def optimizer_of(result: Mapping[str, Any]) -> Choice:
    return parse_choice(str(result["optimizer"]))


def scale_free(result: Mapping[str, Any]) -> list[str]:
    """Advice to take the setting under which inputs are free of scale, where there is one to be taken."""
    picked = optimizer_of(result)
    setting = OPTIMIZERS.traits(picked.name).scale_free(picked.options)
    return [f"take {setting}"] if setting else []


def plain(value: float) -> str:
    """Two digits, without an exponent while it is short."""
    return f"{float(f'{value:.2g}'):g}"


def either(remedies: list[str]) -> str:
    return " or ".join([", ".join(remedies[:-1]), remedies[-1]] if len(remedies) > 1 else remedies)


def out_of_range(result: Mapping[str, Any]) -> Found:
    inputs = result["inputs"]
    if not inputs:
        return
    picked = optimizer_of(result)
    failed = {entry["task"]: entry["failed"] for entry in result["steps"] if not entry["training"]}
    worst: dict[str, tuple[float, str, str]] = {}
    for entry in inputs["tasks"]:
        share, name = max(zip(entry["outside"], inputs["names"], strict=True))
        key = f"{entry['task']}{entry['training']}"
        if share > OUTSIDE and share > worst.get(key, (0.0,))[0]:
            where = BEYOND if entry["training"] else entry["task"]
            worst[key] = (share, name, where)
    for share, name, where in sorted(worst.values(), reverse=True)[:MOST]:
        setting = OPTIMIZERS.traits(picked.name).scale_free(picked.options)
        free = setting and (name in ("∇", "∇²", "m", "v") or (name == "s" and "n" not in inputs["names"]))
        if where == BEYOND:
            remedy = f"Meta-train over a longer --horizon{_settling(name, result)}."
        elif free:
            remedy = (
                f"The option {setting} is free of the gradient's scale; meta-training on such tasks, or with "
                "--rescale, widens the range."
            )
        else:
            remedy = "Meta-train on such tasks, for a longer --horizon, or with --rescale."
        fails = f" {failed[where]:.0%} of the runs there fail." if failed.get(where) else ""
        yield (
            share,
            f"Input {name} lies outside of its training range in {share:.0%} of what the network reads on {where}."
            f"{fails} {remedy}",
        )


def _settling(name: str, result: Mapping[str, Any]) -> str:
    """Of an average that starts at zero and goes uncorrected into the network."""
    found = re.search(r"beta2=([0-9.e-]+)", str(result["optimizer"]))
    beta, horizon = float(found[1]) if found else 0.999, result["horizon"]
    if name not in ("v", "vⁿ") or horizon < 10 or 1 / max(1 - beta, 1e-12) <= horizon:
        return ""
    return f", or with a beta2 of at most {plain(1 - 5 / horizon)} in the optimizer: {name} is still rising from zero"


def saturated(result: Mapping[str, Any]) -> Found:
    remedies = scale_free(result)
    remedies += [] if is_fresh(result) else ["lower --meta-optimizer.learning-rate"]
    worst: dict[tuple[int, str], tuple[float, str]] = {}
    for entry in result["gates"] or ():
        if not entry["training"] or entry["steps"] != "within":
            continue
        for layer, gates in enumerate(entry["layers"]):
            for gate, share in gates.items():
                # A forget gate at its upper end is a memory at work.
                if gate != "f" and share > max(SATURATED, worst.get((layer, gate), (0.0,))[0]):
                    worst[layer, gate] = (share, entry["task"])
    for (layer, gate), (share, task) in sorted(worst.items(), key=lambda item: -item[1][0]):
        if remedies:
            yield (
                share,
                f"{share:.0%} of the activations of gate {gate} in layer {layer + 1} are saturated on {task}, so that "
                f"what the network reads hardly moves it: {either(remedies)}.",
            )


def flat(result: Mapping[str, Any]) -> Found:
    picked = optimizer_of(result)
    setting = OPTIMIZERS.traits(picked.name).shrinking_steps(picked.options)
    if is_fresh(result) or setting is None:
        return
    found = []
    for entry in result["steps"]:
        lengths = {step: value for step, value in zip(entry["step"], entry["median"], strict=True) if value}
        last = max(lengths, default=0)
        # Over several points: a single step's noise is as large as what is looked for.
        at = [step for step in lengths if result["horizon"] <= step <= 1.5 * result["horizon"]]
        end = [step for step in lengths if step >= last / 1.5]
        if not at or last < 5 * result["horizon"]:
            continue
        first, final = (math.exp(sum(math.log(lengths[step]) for step in part) / len(part)) for part in (at, end))
        if final > FLAT * first:
            found.append((final / first, entry["task"], last))
    if found:
        ratio, task, last = max(found)
        others = f" (and more than {FLAT:g} times on {len(found) - 1} other families)" if len(found) > 1 else ""
        yield (
            ratio,
            f"On {task} the steps about step {last:,} are {ratio:.2g} times as long as those about step "
            f"{result['horizon']:,}{others}: the loss cannot fall below what such steps reach. Meta-train over a "
            f"longer --horizon, or take {setting}, whose step length can go on shrinking.",
        )
