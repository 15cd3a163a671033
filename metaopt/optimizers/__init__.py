"""Who optimises: learned and hand-designed optimizers, one interface."""

from __future__ import annotations

from metaopt.optimizers.controllers import controller
from metaopt.optimizers.hand_designed import (
    adagrad,
    adam,
    adamw,
    adan,
    lion,
    momentum,
    muon,
    nadamw,
    nesterov,
    rmsprop,
    sgd,
)
from metaopt.optimizers.lstms import lstm, lstm_log_sign, rnnprop
from metaopt.optimizers.mlps import mlp
from metaopt.optimizers.untuned import (
    cocob,
    dadapt_adamw,
    dowg,
    mechanize_adam,
    momo_adam,
    nadamw_calibrated,
    prodigy,
    schedule_free_adamw,
)

__all__ = [
    "adagrad",
    "adam",
    "adamw",
    "adan",
    "cocob",
    "controller",
    "dadapt_adamw",
    "dowg",
    "lion",
    "lstm",
    "lstm_log_sign",
    "mechanize_adam",
    "mlp",
    "momentum",
    "momo_adam",
    "muon",
    "nadamw",
    "nadamw_calibrated",
    "nesterov",
    "prodigy",
    "rmsprop",
    "rnnprop",
    "schedule_free_adamw",
    "sgd",
]
