"""How good an optimizer is: curves, tuned baselines, statistics; and whether two models say the same."""

from __future__ import annotations

from metaopt.evaluation.curves import Curves, evaluate
from metaopt.evaluation.multimodels import adequacy, expert_laws, merged, prune, same_models
from metaopt.evaluation.record import evaluate_run_on
from metaopt.evaluation.similarity import Box, Gaussian, Samples, embedded, s_score
from metaopt.evaluation.tuning import tune_baselines
from metaopt.experiment import BASELINES

__all__ = [
    "BASELINES",
    "Box",
    "Curves",
    "Gaussian",
    "Samples",
    "adequacy",
    "embedded",
    "evaluate",
    "evaluate_run_on",
    "expert_laws",
    "merged",
    "prune",
    "s_score",
    "same_models",
    "tune_baselines",
]
