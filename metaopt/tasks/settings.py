"""What every factory does with its settings: check them, and name the family after them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


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


def check_batch_size(batch_size: int, num_examples: int) -> None:
    """Refuses a minibatch larger than what it is drawn from."""
    check_count("batch_size", batch_size, most=num_examples, why=f" (there are {num_examples:,} training examples)")


def check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses a word that is not one of `known`."""
    if value not in known:
        raise ValueError(f"`{name}` is {value!r}; give one of {', '.join(known)}.")


def label(factory: Callable[..., Any], **options: Any) -> str:
    """The name that a choice of these settings has as text: `classifier:hidden_layers=3`; defaults are left out."""
    defaults = inspect.signature(factory).parameters
    text = ",".join(f"{key}={_to_text(value)}" for key, value in options.items() if value != defaults[key].default)
    return f"{factory.__name__}:{text}" if text else factory.__name__


def _to_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
