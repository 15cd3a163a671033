"""Gradient oracles: where a task's gradient comes from."""

from __future__ import annotations

from metaopt.oracles.gradient import exact, minibatch

__all__ = ["exact", "minibatch"]
