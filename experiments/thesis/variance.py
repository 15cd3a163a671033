"""The variance of reparameterised and score-function meta-gradients on the same tasks and noise law.

Noise is per coordinate, since with one draw a step the action has no density and the score function refuses.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.thesis.arms import STUDIES
from experiments.thesis.folders import PHI, work_folder
from metaopt.choices import choice
from metaopt.evaluation.statistics import jsonable
from metaopt.experiment import build_families, build_optimizer
from metaopt.microscope.gradient_quality import Samples, sample_gradients
from metaopt.shipped.loading import read_optimizer
from metaopt.training.estimator import build_estimator

STUDIES_OF = ("quadratic", "linear_regression")
ARM = "rl/noise=per_coordinate"
DRAWS = 200
ABOUT = (
    f"{DRAWS} meta-gradients of 16 tasks over 100 steps at one φ, per-coordinate Gamma noise, the same tasks for every "
    "estimator. `leave one out` runs four rollouts of a quarter of the tasks. Noise / signal is the trace of the "
    "covariance over the squared norm of the mean."
)
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


def trained_phi(work: Path, study: str) -> Path:
    return work_folder(work, study, ARM) / "seed-0" / PHI


def missing(work: Path) -> list[str]:
    """Arms of which there is no φ."""
    return [f"{study}/{ARM}" for study in STUDIES_OF if not trained_phi(work, study).exists()]


def rows(work: Path) -> list[dict[str, Any]]:
    return [row for study in STUDIES_OF for row in _rows(study, work)]


def _rows(study: str, work: Path) -> list[dict[str, Any]]:
    """Every estimator on a fresh φ and on that of the last meta-step; the same keys, so the same tasks."""
    arm = next(arm for arm in STUDIES[study].arms if arm.name == ARM)
    experiment = dataclasses.replace(arm.experiment, num_devices=1)
    optimizer, families = build_optimizer(experiment.optimizer), build_families(experiment)
    trained = read_optimizer(trained_phi(work, study)).meta_params
    phis = {"fresh": optimizer.init(jax.random.key(0)), "meta-trained": trained}
    found: list[dict[str, Any]] = []
    for phi, meta_params in phis.items():
        first: float | None = None
        for name, picked in ESTIMATES.items():
            estimator = build_estimator(experiment, picked, optimizer, families)
            samples = sample_gradients(
                estimator, meta_params, families, jax.random.key(7), num_lives=DRAWS, windows=1
            )  # fmt: skip
            figures = about(samples)
            first = figures["variance"] if first is None else first
            row = {"task": str(experiment.tasks[0]), "phi": phi, "estimator": name, **figures}
            found.append({**row, "variance_ratio": figures["variance"] / first})
            print(json.dumps(jsonable(found[-1])), flush=True)
    return found
