"""Estimators of the meta-gradient."""

from __future__ import annotations

from collections.abc import Callable

from metaopt.estimators.reparameterised import reparameterised
from metaopt.estimators.truncated_backprop import truncated_backprop
from metaopt.types import MetaGradient

ESTIMATORS: dict[str, Callable[..., MetaGradient]] = {
    "truncated_backprop": truncated_backprop,
    "reparameterised": reparameterised,
}

__all__ = ["ESTIMATORS", *ESTIMATORS]
