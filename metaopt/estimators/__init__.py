"""Estimators of the meta-gradient."""

from __future__ import annotations

from collections.abc import Callable

from metaopt.estimators.evolution_strategies import evolution_strategies
from metaopt.estimators.mixture import mixture
from metaopt.estimators.persistent_evolution_strategies import persistent_evolution_strategies
from metaopt.estimators.reparameterised import reparameterised
from metaopt.estimators.score_function import score_function
from metaopt.estimators.truncated_backprop import truncated_backprop
from metaopt.types import MetaGradient

ESTIMATORS: dict[str, Callable[..., MetaGradient]] = {
    "truncated_backprop": truncated_backprop,
    "reparameterised": reparameterised,
    "score_function": score_function,
    "evolution_strategies": evolution_strategies,
    "persistent_evolution_strategies": persistent_evolution_strategies,
    "mixture": mixture,
}

__all__ = ["ESTIMATORS", *ESTIMATORS]
