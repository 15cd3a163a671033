"""How good an optimizer is: curves, tuned baselines, statistics."""

from __future__ import annotations

from metaopt.evaluation.curves import Curves, evaluate
from metaopt.evaluation.record import evaluate_run_on
from metaopt.evaluation.tuning import tune_baselines
from metaopt.experiment import BASELINES

__all__ = ["BASELINES", "Curves", "evaluate", "evaluate_run_on", "tune_baselines"]
