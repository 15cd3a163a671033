"""What every factory does with its settings: check them."""

from __future__ import annotations

import math


def check_count(name: str, value: int, *, least: int = 1, most: int | None = None, why: str = "") -> None:
    """Refuses what is not a whole number in [least, most].

    Raises:
      ValueError: names the setting, its value and the legal range.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and value >= least and (most is None or value <= most):
        return
    legal = f"of {least} or more" if most is None else f"from {least} to {most}"
    raise ValueError(f"`{name}` is {value!r}; give a whole number {legal}{why}.")


def check_batch_size(batch_size: int, num_examples: int, where: str = "") -> None:
    """Refuses a minibatch larger than what it is drawn from; `where`: " in digits", for the message."""
    why = f" (there are {num_examples:,} training examples{where})"
    check_count("batch_size", batch_size, most=num_examples, why=why)


def check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses a word that is not one of `known`."""
    if value not in known:
        raise ValueError(f"`{name}` is {value!r}; give one of {', '.join(known)}.")


def check_positive(name: str, value: float, *, zero: bool = False) -> None:
    """Refuses what is not a finite number above 0, or at least 0."""
    if not (0 <= value if zero else 0 < value) or not value < math.inf:
        raise ValueError(f"`{name}` ({value}) must be {'at least' if zero else 'above'} 0.")
