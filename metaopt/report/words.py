"""Values of JSON records in words: numbers, intervals, counts, settings. Pages and trackers show what these give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: Any, digits: int = 3) -> str:
    """A number in so many digits, a whole one of JSON in all of its own; "∞" for "inf", a dash for null and nan.

    Words stay what they are.
    """
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not isinstance(value, float) and value not in ("inf", "-inf"):
        return str(value)
    value = float(value)
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"
        return text.replace("-", "−")
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def interval(ends: Sequence[Any] | None, digits: int = 3) -> str:
    """`0.1 to 0.2`; "" where there is none."""
    return "" if not ends else f"{number(ends[0], digits)} to {number(ends[1], digits)}"


def share(fraction: float | None, total: int) -> str:
    """`none of 16`, `3 of 16`, `all 16`; a dash where it does not apply. Never rounded: one failure of 400 counts."""
    if fraction is None:
        return "–"
    count = round(fraction * total)
    return f"none of {total:,}" if count == 0 else f"all {total:,}" if count == total else f"{count:,} of {total:,}"


def wordy(text: str) -> bool:
    """Whether a field's value is no number."""
    try:
        float(text)
    except ValueError:
        return True
    return False


def defaults_apart(
    rows: Sequence[tuple[str, str]], defaults: Mapping[str, str]
) -> tuple[list[tuple[str, str, str | None]], list[tuple[str, str]]]:
    """([(name, value, default)] of what differs, [(name, value)] of what does not); what has no default differs."""

    def same(value: str, default: str | None) -> bool:
        if default is None or value == default:
            return default is not None
        return not wordy(value) and not wordy(default) and float(value) == float(default)  # 0 and 0.0

    found = [(name, value, defaults.get(name)) for name, value in rows]
    differing = [entry for entry in found if not same(*entry[1:])]
    return differing, [(name, value) for name, value, default in found if same(value, default)]


def flatten(value: Any, name: str = "") -> list[tuple[str, str]]:
    """(dotted name, text) of every leaf of nested JSON; a registry's choice stays on one line."""
    if isinstance(value, Mapping):
        if set(value) == {"name", "options"} and isinstance(value["options"], Mapping):
            options = ", ".join(f"{key} = {_plain(entry)}" for key, entry in value["options"].items())
            return [(name, f"{value['name']}: {options}" if options else str(value["name"]))]
        return [pair for key, entry in value.items() for pair in flatten(entry, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        if not any(isinstance(entry, (Mapping, list)) for entry in value):
            return [(name, ", ".join(_plain(entry) for entry in value) or "none")]
        if len(value) == 1:
            return flatten(value[0], name)
        return [pair for i, entry in enumerate(value, 1) for pair in flatten(entry, f"{name} {i}")]
    return [(name, _plain(value))]


def _plain(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
