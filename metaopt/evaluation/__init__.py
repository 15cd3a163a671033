"""How good an optimizer is: curves, tuned baselines, statistics."""

from __future__ import annotations

from metaopt.evaluation.baselines import BASELINES, tune_baselines
from metaopt.evaluation.comparison import evaluate_run_on
from metaopt.evaluation.curves import Curves, evaluate

__all__ = ["BASELINES", "Curves", "evaluate", "evaluate_run_on", "tune_baselines"]
