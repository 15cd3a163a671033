#!/usr/bin/env python3
"""The variance of reparameterised and score-function meta-gradients on the same tasks and noise law; results as JSON.

Per-coordinate noise, since with one draw a step the action has no density (score function refused). Run after
`reproduce_thesis`, whose φ of the arm rl/noise=per_coordinate it takes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from thesis_arms import RESULTS, STUDIES
from thesis_work import PHI, work_folder

from metaopt.analysis.gradient_quality import Samples, sample_gradients
from metaopt.commands.start import configure_jax
from metaopt.estimators import ESTIMATORS
from metaopt.evaluation.statistics import jsonable
from metaopt.experiment import build, build_families, build_optimizer, choice
from metaopt.objectives import OBJECTIVES
from metaopt.runs.environment import describe_environment
from metaopt.runs.folder import write_json
from metaopt.runs.pretrained import read_optimizer

ARM = "rl/noise=per_coordinate"
DRAWS = 200
SECOND_ORDER = choice("reparameterised", second_order=True)
ESTIMATES = {
    "reparameterised": SECOND_ORDER,
    "reparameterised, first order": choice("reparameterised"),
    "score function, no baseline": choice("score_function", baseline="none"),
    "score function, mean of other tasks": choice("score_function", baseline="per_step"),
    "score function, leave one out": choice("score_function", baseline="leave_one_out"),
}


def about(samples: Samples) -> dict[str, float]:
    """Norm of the mean without its own noise, total variance of one meta-step's gradient, and their quotient."""
    gradients = samples.gradient[:, 0].astype(np.float64)
    gradients = gradients[np.isfinite(gradients).all(axis=1)]
    variance = float(gradients.var(axis=0, ddof=1).sum())
    square = float(np.square(gradients.mean(axis=0)).sum()) - variance / len(gradients)
    return {
        "norm": max(square, 0.0) ** 0.5,
        "variance": variance,
        "noise_to_signal": variance / square if square > 0 else float("inf"),
        "nonfinite": 1 - len(gradients) / len(samples.gradient),
    }


def rows(study: str, work: Path) -> list[dict[str, Any]]:
    """Every estimator on a fresh φ and on that of the last meta-step; the same keys, so the same tasks."""
    arm = next(arm for arm in STUDIES[study].arms if arm.name == ARM)
    experiment = arm.experiment
    optimizer, families = build_optimizer(experiment.optimizer), build_families(experiment)
    phis = {"fresh": optimizer.init(jax.random.key(0))}
    trained = work_folder(work, study, ARM) / "seed-0" / PHI
    if trained.exists():
        phis["meta-trained"] = read_optimizer(trained).meta_params
    found: list[dict[str, Any]] = []
    for phi, meta_params in phis.items():
        first: float | None = None
        for name, picked in ESTIMATES.items():
            estimator = build(
                picked,
                ESTIMATORS,
                "estimator",
                optimizer,
                OBJECTIVES[experiment.objective],
                num_tasks=experiment.num_tasks,
                horizon=experiment.horizon,
                unroll_length=experiment.horizon,
                chunk_size=None,
                num_devices=1,
            )
            samples = sample_gradients(
                estimator, meta_params, families, jax.random.key(7), num_lives=DRAWS, windows=1
            )  # fmt: skip
            figures = about(samples)
            first = figures["variance"] if first is None else first
            row = {"task": str(experiment.tasks[0]), "phi": phi, "estimator": name, **figures}
            found.append({**row, "variance_ratio": figures["variance"] / first})
            print(json.dumps(jsonable(found[-1])), flush=True)
    return found


def main() -> None:
    work = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/thesis")
    configure_jax(1)
    environment = describe_environment("variance", [])
    record = {
        "study": "variance",
        "about": (
            f"{DRAWS} meta-gradients of 16 tasks over 100 steps at one φ, per-coordinate Gamma noise, the same tasks "
            "for every estimator. `leave one out` runs four rollouts of a quarter of the tasks. Noise / signal "
            "is the trace of the covariance over the squared norm of the mean."
        ),
        "environment": {key: environment[key] for key in ("versions", "git", "device", "platform")},
        "rows": [row for study in ("quadratic", "linear_regression") for row in rows(study, work)],
    }
    write_json(RESULTS / "variance.json", jsonable(record))


if __name__ == "__main__":
    main()
