"""Figure 5, the BP model: meta-trained on linear regression for 100 steps, evaluated for 100."""

import dataclasses

from metaopt.choices import choice

from .figure5_rl import EXPERIMENT as RL

EXPERIMENT = dataclasses.replace(
    RL,
    optimizer=choice("lstm", step_rule="recursive", features="all", noise="none"),
    estimator=choice("truncated_backprop"),
)
