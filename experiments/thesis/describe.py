"""The figures of tables: each arm's and baseline's losses at a multiple of the horizon, from the raw ones.

Means are over the runs that did not fail, and the share that failed always stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.thesis.raw import Raw, Runs
from metaopt.evaluation.statistics import quantile

Record = Mapping[str, Any]


def described(record: Record, raw: Raw) -> dict[str, Any]:
    """The record with `at`, multiple -> figures, of every arm and baseline on every test, and its losses as `raw`."""

    def of(name: str, tests: Record) -> dict[str, Any]:
        return {task: {**test, "at": _at_all(raw.runs[name][task])} for task, test in tests.items()}

    arms = {name: {**arm, "tests": of(name, arm["tests"])} for name, arm in record["arms"].items()}
    baselines = {
        task: {name: of(name, {task: one})[task] for name, one in found.items()}
        for task, found in record["baselines"].items()
    }
    return {**record, "arms": arms, "baselines": baselines, "raw": raw}


def _at_all(runs: Runs) -> dict[str, Any]:
    multiples = [name.partition("_")[2] for name in runs if name.startswith("loss_")]
    return {multiple: at(runs, multiple) for multiple in multiples}


def at(runs: Runs, multiple: str) -> dict[str, Any]:
    """One optimizer at one horizon; the words as shares of all runs."""
    loss, failed = runs[f"loss_{multiple}"], runs[f"failed_{multiple}"]
    rises, improves = (runs.get(f"{word}_{multiple}") for word in ("rises", "improves"))
    flat = np.where(failed, np.inf, loss).reshape(-1)
    along = runs.get(f"along_{multiple}")
    tested = {
        name: _mean(runs[f"{name}_{multiple}"], failed)
        for name in ("test_loss", "test_accuracy", "train_accuracy")
        if f"{name}_{multiple}" in runs
    }
    return {
        "mean": _mean(loss, failed),
        "median": float(np.median(flat)),
        "q25": float(quantile(flat, 0.25)),
        "q75": float(quantile(flat, 0.75)),
        "area": None if along is None else _mean(along, failed),  # mean loss along the run
        "failed": float(failed.mean()),
        "rises": None if rises is None else float(rises.mean()),
        "failed_or_rises": float((failed if rises is None else failed | rises).mean()),
        "improves": None if improves is None else float(improves.mean()),
        **tested,
        "per_seed": {
            "mean": [_mean(row, bad) for row, bad in zip(loss, failed, strict=True)],
            "failed": failed.mean(axis=1).tolist(),
        },
    }


def _mean(values: np.ndarray, failed: np.ndarray) -> float | None:
    return float(values[~failed].mean()) if (~failed).any() else None
