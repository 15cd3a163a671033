"""Figure 7, the BP model: meta-trained on regressions and one-layer networks for 50 steps, on deeper ones for 500."""

import dataclasses

from metaopt.choices import choice

from .figure7_rl import EXPERIMENT as RL

EXPERIMENT = dataclasses.replace(
    RL,
    optimizer=choice("lstm", step_rule="recursive", features="all", noise="none"),
    estimator=choice("truncated_backprop"),
)
