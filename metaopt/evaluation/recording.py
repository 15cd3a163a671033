"""Which steps of a run are recorded."""

from __future__ import annotations

import math

import numpy as np

from metaopt.numbers import largest_divisor
from metaopt.types import TaskFamily


def plan(family: TaskFamily, horizon: int, train_horizon: int | None = None, every: int | None = None) -> np.ndarray:
    """[points] the steps of a run that are recorded; 0, T, 10 T and the horizon are always among them."""
    for name, value in (("horizon", horizon), ("train_horizon", train_horizon), ("record_every", every)):
        if value is not None and not isinstance(value, int | np.integer):
            raise ValueError(f"`{name}` is {value!r}; give a whole number")
        if value is not None and value < 1:
            raise ValueError(f"`{name}` ({value}) must be at least 1")
    every = every or interval(family, horizon, train_horizon)
    return np.array(sorted({*range(0, horizon + 1, every), *_marks(horizon, train_horizon)}))


def interval(family: TaskFamily, horizon: int, train_horizon: int | None = None) -> int:
    """Inner steps between recorded points where no one says how many."""
    wished = max(1, horizon // (1000 if family.batch_size is None else 100))
    # One distance that divides every mark compiles one loop; several compile several.
    every = largest_divisor(math.gcd(*_marks(horizon, train_horizon)), wished)
    return every if 2 * every > wished else wished


def _marks(horizon: int, train_horizon: int | None) -> set[int]:
    marks = {horizon}
    if train_horizon is not None:
        marks |= {mark for mark in (train_horizon, 10 * train_horizon) if mark <= horizon}
    return marks
