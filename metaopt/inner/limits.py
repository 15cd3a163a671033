"""What cannot fit into memory or time, told from shapes alone before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.errors import UserError
from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import total_memory
from metaopt.inner.step import reset
from metaopt.types import Optimizer, TaskFamily

# Inner steps of one program. None takes less than some microseconds, and a program cannot be stopped, saved or shown
# before its end: this many are the better part of an hour at the very least.
LONGEST = 5 * 10**8
# What is counted is the least that any program needs; a recommended size leaves room for what XLA holds besides.
ROOM = 4
KEY_BYTES = 64  # a task's, with what drawing it takes


class Sizes(NamedTuple):
    """Bytes, from shapes."""

    meta_params: int
    task: int  # of one inner run, before and after a step: the task, its parameters, gradient and optimizer's state


def sizes(optimizer: Optimizer, family: TaskFamily) -> Sizes:
    """What an optimizer and one inner run on a family take."""

    def start(key: Any) -> Any:
        meta_params = optimizer.init(key)
        return meta_params, reset(bind_tasks(optimizer, meta_params), family, key[None])

    meta_params, run = jax.eval_shape(start, jax.random.key(0))
    return Sizes(_bytes(meta_params), 2 * _bytes(run))


def _bytes(tree: Any) -> int:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def fits(needed: int, steps: int, *, room: int = 1) -> bool:
    """Whether so many bytes, and so many inner steps of one program, are possible here."""
    return room * needed <= total_memory() and steps <= LONGEST


def why(needed: int, steps: int) -> str:
    """What is wrong with a size that does not fit, in words."""
    if steps > LONGEST:
        return f"an inner run of {steps:.3g} steps is more than the {LONGEST:.0e} that one program can do in an hour"
    return f"this needs {needed / 2**30:.3g} GiB of memory at least, and there are {total_memory() / 2**30:.3g}"


class Setting(NamedTuple):
    """A whole number that decides how large something is."""

    name: str  # as its user writes it
    value: int
    fits: Callable[[int], bool]  # whether it would do, with room to spare; may raise `ValueError` where it is not one


def refuse(wrong: str, settings: Iterable[Setting]) -> None:
    """Raises `wrong` with the setting that is at fault and a value of it that would do.

    Raises:
      UserError: always.
    """
    for setting in sorted(settings, key=lambda each: -each.value):
        largest = _largest(setting)
        if largest is not None:
            raise UserError(f"{wrong}: `{setting.name}` is {setting.value}; at most {largest} would do.")
    raise UserError(f"{wrong}; take a smaller task, optimizer, number of tasks and horizon.")


def _largest(setting: Setting) -> int | None:
    """The largest value that fits, to a twentieth; None where none does."""

    def good(value: int) -> bool:
        try:
            return setting.fits(value)
        except ValueError:
            return False

    low = next((least for least in (1, 2, 4) if least < setting.value and good(least)), None)
    if low is None:
        return None
    high = setting.value
    while high > 1.05 * low + 1:
        middle = int(math.sqrt(low * high)) if high < 2**52 else low * 2**26
        middle = min(max(middle, low + 1), high - 1)
        low, high = (middle, high) if good(middle) else (low, middle)
    digits = 10 ** max(0, len(str(low)) - 2)
    return low // digits * digits
