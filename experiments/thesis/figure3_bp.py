"""Figure 3, the BP model: meta-trained on quadratics for 100 steps, evaluated for 1000."""

import dataclasses

from metaopt.choices import choice

from .figure3_rl import EXPERIMENT as RL

EXPERIMENT = dataclasses.replace(
    RL,
    optimizer=choice("lstm", step_rule="recursive", features="gradient", noise="none"),
    estimator=choice("truncated_backprop"),
)
