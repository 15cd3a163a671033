"""Estimators of the meta-gradient: how the optimizer itself is improved."""

from __future__ import annotations

from metaopt.estimators.backprop import reparameterised, truncated_backprop
from metaopt.estimators.evolution import (
    evolution_strategies,
    noise_reuse_evolution_strategies,
    persistent_evolution_strategies,
)
from metaopt.estimators.mixture import mixture
from metaopt.estimators.score_function import score_function
from metaopt.estimators.windows import Schedule

__all__ = [
    "Schedule",
    "evolution_strategies",
    "mixture",
    "noise_reuse_evolution_strategies",
    "persistent_evolution_strategies",
    "reparameterised",
    "score_function",
    "truncated_backprop",
]
