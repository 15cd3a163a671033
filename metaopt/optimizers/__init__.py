"""Who optimises: learned and hand-designed optimizers, one interface."""

from __future__ import annotations

from metaopt.optimizers.hand_designed import adam, momentum, rmsprop, sgd
from metaopt.optimizers.lstms import lstm, lstm_log_sign, rnnprop

__all__ = ["adam", "lstm", "lstm_log_sign", "momentum", "rmsprop", "rnnprop", "sgd"]
