"""BP model meta-trained on networks of two data sets for 50 steps: the optimizer `networks_bp`."""

import dataclasses

from metaopt.choices import choice

from .networks_rl import EXPERIMENT as NETWORKS_RL

EXPERIMENT = dataclasses.replace(
    NETWORKS_RL,
    optimizer=choice("lstm", step_rule="recursive", features="all", noise="none"),
    estimator=choice("truncated_backprop"),
)
