"""Gradient oracles: where a task's gradient comes from."""

from __future__ import annotations

from collections.abc import Callable

from metaopt.oracles.exact import exact
from metaopt.oracles.minibatch import minibatch
from metaopt.types import Oracle

ORACLES: dict[str, Callable[..., Oracle]] = {
    "minibatch": minibatch,
    "exact": exact,
}

__all__ = ["ORACLES", *ORACLES]
