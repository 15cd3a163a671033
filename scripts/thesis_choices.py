"""The open choices weighed: every two arms that differ in one choice alone, compared on every test.

What follows from it are the defaults of the framework's `lstm`; tests/test_thesis.py holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

Record = Mapping[str, Any]

MULTIPLE = "10"  # of the training horizon
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

    @property
    def number(self) -> int:
        return len(self.better) + len(self.worse) + len(self.alike)


def settings(arm: Record) -> dict[str, Any]:
    """What an arm chose, defaults filled in."""
    config = arm["config"]
    given = {
        **config["optimizer"]["options"],
        **config["estimator"]["options"],
        **{name: config[name] for name in ("unroll_length", "num_tasks")},
        **arm["use"],
    }
    found = {name: given.get(name, values[0]) for name, values in CHOICES.items()}
    if found["noise"] == "none":
        found["noise_in_use"] = None
    if found["step_rule"] == "direct":
        found["initial_alpha"] = None
    return found


def weigh(records: Mapping[str, Record]) -> list[Weighed]:
    """Every choice's values against each other, in the order of `CHOICES`."""
    found: dict[tuple[str, Any, Any], Weighed] = {}
    for record in records.values():
        if "arms" not in record:
            continue
        chosen = {name: settings(arm) for name, arm in record["arms"].items()}
        for one, two in combinations(record["arms"], 2):
            differs = _difference(chosen[one], chosen[two])
            if differs is None:
                continue
            values = sorted((chosen[one][differs], chosen[two][differs]), key=CHOICES[differs].index)
            first, second = (one, two) if chosen[one][differs] == values[0] else (two, one)
            entry = found.setdefault((differs, *values), Weighed(differs, *values))
            for task, words in _compared(record["arms"][first], record["arms"][second]):
                getattr(entry, words).append(f"{second} on {task}")
    order = list(CHOICES)
    return sorted(found.values(), key=lambda one: order.index(one.choice))


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The one choice in which two arms differ; what only one of them has to choose does not count."""
    differs = [name for name in CHOICES if a[name] != b[name]]
    for bound, by in (("noise_in_use", "noise"), ("initial_alpha", "step_rule")):
        if by in differs and bound in differs and None in (a[bound], b[bound]):
            other = b[bound] if a[bound] is None else a[bound]
            if other == CHOICES[bound][0]:
                differs.remove(bound)
    return differs[0] if len(differs) == 1 else None


def _compared(reference: Record, other: Record) -> Iterator[tuple[str, str]]:
    for task, test in other["tests"].items():
        yield task, _verdict(reference["tests"][task]["at"][MULTIPLE], test["at"][MULTIPLE])


def _verdict(reference: Record, other: Record) -> str:
    difference = other["failed"] - reference["failed"]
    if abs(difference) > FEW:
        return "worse" if difference > 0 else "better"
    a, b = reference["mean"], other["mean"]
    if a is None or b is None or min(a, b) >= ALIKE * max(a, b):
        return "alike"
    return "better" if b < a else "worse"


def chosen(weighed: Sequence[Weighed]) -> dict[str, Any]:
    """Each choice's value: the first of `CHOICES`, unless another is better than it at least twice as often as worse.

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


def table(weighed: Sequence[Weighed]) -> Iterator[str]:
    """A Markdown table."""
    yield "| choice | value | against | pairs × tests | better | worse | alike |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for one in weighed:
        counts = f"{len(one.better)} | {len(one.worse)} | {len(one.alike)}"
        yield f"| `{one.choice}` | {_word(one.other)} | {_word(one.reference)} | {one.number} | {counts} |"


def _word(value: Any) -> str:
    return "the horizon" if value is None else str(value)
