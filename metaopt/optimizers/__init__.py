"""Optimizers: learned and hand-designed, one interface."""

from __future__ import annotations

from collections.abc import Callable

from metaopt.optimizers.hand_designed import adam, momentum, rmsprop, sgd
from metaopt.optimizers.lstm import lstm
from metaopt.optimizers.lstm_log_sign import lstm_log_sign
from metaopt.optimizers.rnnprop import rnnprop
from metaopt.types import Optimizer

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "lstm": lstm,
    "lstm_log_sign": lstm_log_sign,
    "rnnprop": rnnprop,
    "sgd": sgd,
    "momentum": momentum,
    "rmsprop": rmsprop,
    "adam": adam,
}

__all__ = ["OPTIMIZERS", *OPTIMIZERS]
