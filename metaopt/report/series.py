"""Numbers to draw, from the JSON records of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metaopt.runs.metrics import validation_name


def numbers(values: Any) -> np.ndarray:
    """Floats of a JSON list in which "inf" stands for infinity and null for nan."""
    return np.array([np.nan if value is None else float(value) for value in values], float)


def some(count: int, most: int = 20) -> list[int]:
    """About `most` of the indices below `count`, evenly spaced, the first and the last among them."""
    return sorted({*range(0, count, max(1, count // most)), count - 1}) if count else []


def is_above_bound(result: Mapping[str, Any]) -> bool:
    """Whether an evaluation's curves are of the loss above its bound."""
    return any(record.get("gap") for record in result["optimizers"].values())


def is_without_bound(result: Mapping[str, Any]) -> bool:
    """Whether an evaluation's losses have no bound, so that optimizers are compared by differences."""
    return any(record.get("difference_to_best_baseline") for record in result["optimizers"].values())


def series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(meta-steps, values) of the rows that have a metric."""
    pairs = [(row["meta_step"], row[name]) for row in rows if "meta_step" in row and name in row]
    return numbers(step for step, _ in pairs), numbers(value for _, value in pairs)


def validation_series(
    rows: Sequence[Mapping[str, Any]], prefix: str = "validation"
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """(multiple such as "10x", "mean" or "median") -> (meta-steps, losses), from keys `validation/10x/median`.

    Args:
      prefix: of the keys; "validation_ema" for those of φ averaged over meta-steps.
    """
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        parsed = validation_name(name)
        if parsed and parsed.averaged == (prefix == "validation_ema") and parsed.what in ("mean", "median"):
            found[f"{parsed.multiple}x", parsed.what] = series(rows, name)
    return found


def binned(steps: np.ndarray, values: np.ndarray, bins: int = 200) -> tuple[np.ndarray, ...]:
    """(steps, 10%, median, 90%) of at most `bins` groups of neighbouring meta-steps; what is not finite is left out."""
    keep = np.isfinite(values)
    steps, values = steps[keep], values[keep]
    groups = [group for group in np.array_split(np.arange(len(values)), min(bins, max(1, len(values)))) if len(group)]
    middle = np.array([steps[group].mean() for group in groups])
    parts = np.array([np.quantile(values[group], (0.1, 0.5, 0.9)) for group in groups]).reshape(-1, 3)
    return middle, parts[:, 0], parts[:, 1], parts[:, 2]
