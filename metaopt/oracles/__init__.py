"""Gradient oracles: where a task's gradient comes from."""

from __future__ import annotations

from metaopt.oracles.contrastive import impdiff, pcd, soul
from metaopt.oracles.gradient import exact, minibatch
from metaopt.oracles.particles import family_of
from metaopt.oracles.smc import sosmc

__all__ = ["exact", "family_of", "impdiff", "minibatch", "pcd", "sosmc", "soul"]
