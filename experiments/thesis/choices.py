"""The open choices weighed: every two arms that differ in one choice alone, compared on every test.

What follows from it are the defaults of the framework's `lstm`; a test of the thesis holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from experiments.thesis.arms import REMEDY, RIVAL
from experiments.thesis.judging import below, words
from metaopt.evaluation.intervals import Mean, crossed_mean

Record = Mapping[str, Any]

MULTIPLE, FURTHER = "10", "100"  # of the training horizon: the one that decides, and one to know
FEW = 0.05  # failed shares that differ by no more are alike
ALIKE = 0.9  # a lower mean is lower only below this multiple of the other
# Choice -> the value that others are compared with, first; where a configuration names none, it has this one.
CHOICES: dict[str, tuple[Any, ...]] = {
    "features": ("all", "scale_free", "gradient"),
    "normalisation": ("norm", "rms", "tensor_rms"),
    "alpha": ("shared", "per_coordinate"),
    "s_form": ("adam", "printed"),
    "noise": ("none", "per_step", "per_coordinate"),
    "noise_in_use": ("one", "two", "on"),
    "initial_alpha": ("drawn", "median"),
    "step_rule": ("direct", "recursive"),
    "state_gradient": ("full", "stopped"),
    "unroll_length": (None, 20),
    "num_tasks": (16, 1),
}
# Behind a choice's name where the state gradient of both arms is stopped: no default follows from these.
GREEDY = ", state gradient stopped"
# Those that are options of `lstm` with a default to choose.
DEFAULTS = ("features", "normalisation", "alpha", "s_form", "noise", "noise_in_use", "initial_alpha")


@dataclass
class Weighed:
    """One value of a choice against another, over all pairs of arms and their tests."""

    choice: str
    reference: Any
    other: Any
    better: list[str] = field(default_factory=list)  # where the other value is
    worse: list[str] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)
    log_ratios: list[Mean] = field(default_factory=list)  # of the other value's losses, where these are known


def settings(arm: Record) -> dict[str, Any]:
    """What an arm chose, defaults filled in; those that have changed, `features` and `noise`, every arm names."""
    config = arm["config"]
    given = {
        **config["optimizer"]["options"],
        **config["estimator"]["options"],
        **{name: config[name] for name in ("unroll_length", "num_tasks")},
        **arm["use"],
    }
    found = {name: given.get(name, values[0]) for name, values in CHOICES.items()}
    found |= {name: given[name] for name in ("features", "noise")}
    if found["noise"] == "none":
        found["noise_in_use"] = None
    if found["step_rule"] == "direct":
        found["initial_alpha"] = None
    return found


def weigh(records: Mapping[str, Record], multiple: str = MULTIPLE) -> list[Weighed]:
    """Every choice's values against each other at a multiple of the horizon, in the order of `CHOICES`."""
    found: dict[tuple[str, Any, Any], Weighed] = {}
    for record in records.values():
        if "arms" not in record:
            continue
        last = [
            name
            for name, arm in record["arms"].items()
            # What a remedy changes, or another optimizer, is no choice here.
            if arm.get("pick", "last") == "last" and REMEDY not in name and RIVAL not in name
        ]
        chosen = {name: settings(record["arms"][name]) for name in last}
        for one, two in combinations(last, 2):
            differs = _difference(chosen[one], chosen[two])
            if differs is None:
                continue
            name = differs
            if differs != "state_gradient" and chosen[one]["state_gradient"] == "stopped":
                name += GREEDY
            values = sorted((chosen[one][differs], chosen[two][differs]), key=CHOICES[differs].index)
            first, second = (one, two) if chosen[one][differs] == values[0] else (two, one)
            entry = found.setdefault((name, *values), Weighed(name, *values))
            for task, word in _compared(record["arms"][first], record["arms"][second], multiple):
                getattr(entry, word).append(f"{second} on {task}")
                if "raw" in record:
                    logs = record["raw"].log_ratios(second, first, task, f"loss_{multiple}")
                    entry.log_ratios.append(crossed_mean(logs))
    order = list(CHOICES)
    return sorted(found.values(), key=lambda one: order.index(one.choice.removesuffix(GREEDY)))


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The one choice in which two arms differ; what only one of them has to choose does not count."""
    differs = [name for name in CHOICES if a[name] != b[name]]
    for bound, by in (("noise_in_use", "noise"), ("initial_alpha", "step_rule")):
        if by in differs and bound in differs and None in (a[bound], b[bound]):
            other = b[bound] if a[bound] is None else a[bound]
            if other == CHOICES[bound][0]:
                differs.remove(bound)
    return differs[0] if len(differs) == 1 else None


def _compared(reference: Record, other: Record, multiple: str) -> Iterator[tuple[str, str]]:
    seeds = min(reference["seeds"], other["seeds"])
    for task, test in other["tests"].items():
        if multiple in test["at"]:
            yield task, _verdict(*(_pooled(one["at"][multiple], seeds) for one in (reference["tests"][task], test)))


def _pooled(at: Record, seeds: int) -> tuple[float, float | None]:
    """(share failed, mean loss of the others) over the first meta-seeds, those that both arms have."""
    failed = at["per_seed"]["failed"][:seeds]
    means = [(mean, 1 - lost) for mean, lost in zip(at["per_seed"]["mean"][:seeds], failed, strict=True) if lost < 1]
    good = sum(share for _, share in means)
    return sum(failed) / seeds, sum(mean * share for mean, share in means) / good if means else None


def _verdict(reference: tuple[float, float | None], other: tuple[float, float | None]) -> str:
    difference = other[0] - reference[0]
    if abs(difference) > FEW:
        return "worse" if difference > 0 else "better"
    a, b = reference[1], other[1]
    if a is None or b is None or min(a, b) >= ALIKE * max(a, b):
        return "alike"
    return "better" if b < a else "worse"


def chosen(weighed: Sequence[Weighed]) -> dict[str, Any]:
    """Each choice's value: the first of `CHOICES`, unless another is better than it more than twice as often as worse.

    Of several such the one that the same rule prefers to the others, else the first.
    """
    against = {(one.choice, one.reference, one.other): len(one.better) - 2 * len(one.worse) for one in weighed}
    found = {}
    for name, values in CHOICES.items():
        best = values[0]
        for value in values[1:]:
            # Pairs stand in the order of `CHOICES`, so that `value` is always the other one.
            if against.get((name, best, value), 0) > 0:
                best = value
        found[name] = best
    return found


def table(weighed: Sequence[Weighed], further: Sequence[Weighed]) -> Iterator[str]:
    """A Markdown table: the counts that decide, beside them those at the further multiple."""
    beyond = {(one.choice, one.reference, one.other): one for one in further}
    yield (
        f"| choice | value | against | better at {MULTIPLE}× | worse | alike | ratio at {MULTIPLE}×, corrected words | "
        f"better at {FURTHER}× | worse | alike |"
    )
    yield "| --- " * 10 + "|"
    for one in weighed:
        far = beyond.get((one.choice, one.reference, one.other))
        counts = [*_counts(one), _ratio(one)] + (["", "", ""] if far is None else _counts(far))
        name, _, greedy = one.choice.partition(",")
        choice = f"`{name}`" + (f",{greedy}" if greedy else "")
        yield f"| {choice} | {_word(one.other)} | {_word(one.reference)} | " + " | ".join(counts) + " |"


def _counts(one: Weighed) -> list[str]:
    return [str(len(words)) for words in (one.better, one.worse, one.alike)]


def _ratio(one: Weighed) -> str:
    """Geometric mean over the pairs, and on how many the other value is lower, or higher, after Holm's correction."""
    known = [mean for mean in one.log_ratios if np.isfinite(mean.mean)]
    if not known:
        return ""
    found = words([below(mean, 0.0) for mean in known])
    said = [
        f"{side} {sum(word == of for word in found)}" for side, of in (("lower", "holds"), ("higher", "does not hold"))
    ]
    return f"{np.exp(np.mean([mean.mean for mean in known])):.2g}: {', '.join(said)} of {len(known)}"


def _word(value: Any) -> str:
    return "the horizon" if value is None else str(value)
