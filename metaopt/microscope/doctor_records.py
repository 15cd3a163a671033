"""Samples and inner runs as the plain values of the doctor's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metaopt.evaluation.statistics import failed, scale
from metaopt.microscope.gradient_quality import Measured, Samples, assess, resolved_norm
from metaopt.microscope.inner_runs import InnerRuns

QUANTILES = (0.0, 0.01, 0.5, 0.99, 1.0)
TRAINING_RANGE = (0.001, 0.999)  # quantiles of the training inputs that bound their range
RECORDED = 60  # steps of a curve


def as_pair(measured: Measured | None) -> dict[str, float] | None:
    """A figure and its standard error."""
    return None if measured is None else {"value": measured.value, "error": measured.error}


def describe_reference(samples: Samples) -> dict[str, Any]:
    """How well a reference is known."""
    quality = assess(samples, samples)
    return {
        "num_lives": len(samples.gradient),
        "norm": quality.norm,
        "snr": as_pair(quality.snr),
        "mean_snr": quality.snr.value * len(samples.gradient),
        "resolved": resolved_norm(samples),
        "nonfinite": quality.nonfinite,
    }


Runs = Sequence[tuple[str, bool, InnerRuns]]


def describe_gates(runs: Runs, gates: Sequence[str], horizon: int) -> list[dict[str, Any]]:
    """Saturated shares of every family, within the training horizon and beyond it."""
    found = []
    for name, training, run in runs:
        assert run.saturated is not None
        for part, rows in (("within", slice(0, horizon)), ("beyond", slice(horizon, None))):
            alive = run.alive[rows]
            if not alive.any():
                continue
            shares = run.saturated[rows][alive].mean(axis=0)  # [layers, gates]
            layers = [dict(zip(gates, row, strict=True)) for row in shares.tolist()]
            found.append({"task": name, "training": training, "steps": part, "layers": layers})
    return found


def describe_inputs(runs: Runs, names: Sequence[str], horizon: int) -> dict[str, Any]:
    """Quantiles of every input, and the share of inputs outside of what training shows within its horizon."""
    within = [
        run.inputs[:horizon][run.alive[:horizon]]
        for _, training, run in runs
        if training and run.inputs is not None and run.alive.any()
    ]
    if not within:
        return {"names": list(names), "range": None, "tasks": []}
    pooled = np.concatenate([part.reshape(-1, len(names)) for part in within])
    low, high = np.quantile(pooled, TRAINING_RANGE, axis=0)
    tasks = []
    for name, training, run in runs:
        for part, rows in (("within", slice(0, horizon)), ("beyond", slice(horizon, None))):
            assert run.inputs is not None
            values = run.inputs[rows][run.alive[rows]].reshape(-1, len(names))
            if not len(values):
                continue
            outside = (values < low) | (values > high)
            tasks.append(
                {
                    "task": name,
                    "training": training,
                    "steps": part,
                    "quantiles": np.quantile(values, QUANTILES, axis=0).T,
                    "magnitude": np.quantile(np.abs(values), QUANTILES, axis=0).T,
                    "outside": outside.mean(axis=0),
                }
            )
    return {
        "names": list(names),
        "quantiles": list(QUANTILES),
        "range": {"low": low, "high": high, "quantiles": list(TRAINING_RANGE)},
        "tasks": tasks,
    }


def describe_steps(name: str, training: bool, run: InnerRuns, horizon: int) -> dict[str, Any]:
    """Step lengths at a number of steps, evenly spread over their logarithm, and the shares of failed runs.

    `failed` of all steps, `failed_within` of those up to the training horizon.
    """
    number, tasks = run.update_norm.shape
    shown = np.unique(np.geomspace(1, number, RECORDED).astype(int)) - 1
    quantiles = np.full((len(shown), 3), np.nan)
    for row, index in enumerate(shown):
        alive = run.update_norm[index][run.alive[index]]
        if len(alive):
            quantiles[row] = np.quantile(alive, (0.1, 0.5, 0.9))
    losses = np.vstack([run.initial_loss, np.where(run.alive, run.loss, np.inf)]).T
    measure = scale(np.asarray(run.lower_bound), losses[:, 0], [losses])
    return {
        "task": name,
        "training": training,
        "num_tasks": tasks,
        "step": shown + 1,
        "q10": quantiles[:, 0],
        "median": quantiles[:, 1],
        "q90": quantiles[:, 2],
        "failed": float(failed(losses, measure).mean()),
        "failed_within": float(failed(losses[:, : horizon + 1], measure).mean()),
    }
