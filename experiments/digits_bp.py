"""BP model meta-trained on one-layer digit classifiers for 50 steps, evaluated on 1, 3 and 6 layers at 500 steps."""

import dataclasses

from metaopt.choices import choice

from .digits_rl import EXPERIMENT as DIGITS_RL

EXPERIMENT = dataclasses.replace(
    DIGITS_RL,
    optimizer=choice("lstm", step_rule="recursive", features="all", noise="none"),
    estimator=choice("truncated_backprop"),
)
