"""From the reproduction's raw losses to the figures of its JSON: locations, failures, ratios with intervals.

Losses are [seeds, tasks], infinite where a run is dead. Means and ratios of means are over the runs that did not fail,
and the share that failed always stands beside them. Intervals are 95% bootstrap intervals that draw meta-seeds and
tasks, both with replacement; the tasks are the same for every seed and optimizer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from metaopt.evaluation.statistics import quantile

RESAMPLES = 2000


def interval(values: np.ndarray, reference: np.ndarray | None, good: np.ndarray) -> tuple[float, list[float | None]]:
    """(ratio of means, its interval) over the runs in `good` [seeds, tasks]; without a reference, the mean itself."""
    rng = np.random.default_rng(0)
    seeds, tasks = values.shape
    top = np.where(good, values, 0.0)
    bottom = good.astype(float) if reference is None else np.where(good, np.broadcast_to(reference, values.shape), 0.0)
    if not good.any():
        return float("nan"), [None, None]
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES).astype(float)
    by_task = rng.multinomial(tasks, np.full(tasks, 1 / tasks), RESAMPLES).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = ((by_seed @ top) * by_task).sum(1) / ((by_seed @ bottom) * by_task).sum(1)
        ratio = float(top.sum() / bottom.sum())
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return ratio, [None, None]
    return ratio, [float(np.quantile(drawn, q)) for q in (0.025, 0.975)]


def compare(values: np.ndarray, failed: np.ndarray, other: np.ndarray, other_failed: np.ndarray) -> dict[str, Any]:
    """`values` over `other` on the tasks that failed in neither: ratio of means with interval, median of the ratios."""
    good = ~failed & ~np.broadcast_to(other_failed, failed.shape)
    ratio, between = interval(values, other, good)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = (values / np.broadcast_to(other, values.shape))[good]
    each = each[np.isfinite(each)]
    return {
        "ratio": ratio,
        "interval": between,
        "median": float(np.median(each)) if len(each) else None,
        "on": float(good.mean()),  # share of the runs that failed in neither
    }


def describe(
    loss: np.ndarray, failed: np.ndarray, rises: np.ndarray | None, improves: np.ndarray | None, area: np.ndarray | None
) -> dict[str, Any]:
    """One optimizer at one horizon; the words as shares of all runs."""
    mean, between = interval(loss, None, ~failed)
    flat = np.where(failed, np.inf, loss).reshape(-1)
    return {
        "mean": mean,
        "interval": between,
        "median": float(np.median(flat)),
        "q25": float(quantile(flat, 0.25)),
        "q75": float(quantile(flat, 0.75)),
        "area": None if area is None or failed.all() else float(area[~failed].mean()),  # mean loss along the run
        "failed": float(failed.mean()),
        "rises": None if rises is None else float(rises.mean()),
        "failed_or_rises": float((failed if rises is None else failed | rises.astype(bool)).mean()),
        "improves": None if improves is None else float(improves.mean()),
        "per_seed": {
            "mean": [float(row[~bad].mean()) if (~bad).any() else None for row, bad in zip(loss, failed, strict=True)],
            "median": [float(np.median(np.where(bad, np.inf, row))) for row, bad in zip(loss, failed, strict=True)],
            "failed": failed.mean(axis=1).tolist(),
        },
    }


def curve(steps: np.ndarray, losses: np.ndarray, failed: np.ndarray) -> dict[str, Any]:
    """Of losses [seeds, tasks, points]: the mean of the runs that never failed, median and quartiles of all."""
    flat = losses.reshape(-1, losses.shape[-1]).astype(float)
    good = ~failed.reshape(-1)
    return {
        "steps": steps,
        "mean": flat[good].mean(axis=0) if good.any() else None,
        "median": np.median(flat, axis=0),
        "q25": quantile(flat, 0.25),
        "q75": quantile(flat, 0.75),
    }
