"""Inner runs under way, shared out anew: a state saved on one number of devices goes on on another."""

from __future__ import annotations

import json
from collections.abc import Sequence

import jax
import numpy as np

AGES = "/state/step"  # where an estimator's inner runs hold the steps done since their reset


def shape_of(described: str) -> tuple[int, ...]:
    """Of an array described as `float32[2, 3]`."""
    return tuple(json.loads(described[described.rindex("[") :]))


def _task_axis(held: Sequence[int], wanted: Sequence[int]) -> int | None:
    """The axis along which two arrays [chunks, ...] hold the same tasks in other chunks; 0: there is none but chunks.

    None: they are not of the same tasks.
    """
    if len(held) != len(wanted) or not held:
        return None
    differ = [axis for axis in range(1, len(held)) if held[axis] != wanted[axis]]
    if not differ:
        return 0
    axis = differ[0]
    same = held[0] * held[axis] == wanted[0] * wanted[axis]
    return axis if len(differ) == 1 and same else None


def in_other_chunks(held: dict[str, str], wanted: dict[str, str], differ: set[str]) -> set[str]:
    """The names of arrays that hold the same tasks, shared out otherwise among devices and chunks."""
    axes: dict[str, int] = {}
    for name in differ & held.keys() & wanted.keys():
        (dtype, _, _), (other, _, _) = held[name].partition("["), wanted[name].partition("[")
        axis = _task_axis(shape_of(held[name]), shape_of(wanted[name]))
        if name.startswith("estimator_state/") and dtype == other and axis is not None:
            axes[name] = axis

    def chunks(name: str) -> tuple[int, int]:
        return shape_of(held[name])[0], shape_of(wanted[name])[0]

    # One value a chunk tells nothing of the number of tasks; an array beside it has to.
    known = {chunks(name) for name, axis in axes.items() if axis}
    return {name for name in axes if chunks(name) in known}


class OutOfStep(Exception):
    """Chunks whose tasks are of several ages cannot be shared out anew."""


def rechunk(name: str, value: np.ndarray, like: jax.Array) -> np.ndarray:
    """Leaves [chunks, ...] in which one axis runs over a chunk's tasks, its tasks in other chunks.

    Raises:
      OutOfStep: tasks of several ages would have to share a chunk.
    """
    rest = value.shape[like.ndim :]  # a key's words
    held, wanted = value.shape[: like.ndim], like.shape
    if held == wanted:
        return value
    axis = _task_axis(held, wanted)
    assert axis is not None
    # The tasks of a chunk are reset together, so that only those of one age, and with one of everything that they have
    # in common, such as the optimizer's counter, can share one.
    one_value = axis == 0
    if (one_value or name.endswith(AGES)) and (value != value[:1]).any():
        raise OutOfStep
    if one_value:
        return np.broadcast_to(value[:1], (*wanted, *rest)).copy()
    # Tasks come first within the axis, whatever follows them (such as coordinates).
    whole = np.moveaxis(value, 0, axis - 1)
    whole = whole.reshape(*held[1:axis], wanted[0], wanted[axis], *held[axis + 1 :], *rest)
    return np.moveaxis(whole, axis - 1, 0)
