"""RL model meta-trained on networks of two data sets for 50 steps: the optimizer `networks_rl`.

As digits_rl, and beside its classifiers an autoencoder and larger images, so that gradients and sizes range widely.
"""

import dataclasses

from metaopt.choices import choice
from metaopt.experiment import Evaluation, Validation

from .digits_rl import EXPERIMENT as DIGITS_RL

EXPERIMENT = dataclasses.replace(
    DIGITS_RL,
    tasks=(
        *DIGITS_RL.tasks,
        choice("autoencoder", hidden_layers=1),
        choice("classifier", hidden_layers=1, data="mnist_5k", width=10),
    ),
    num_meta_steps=2000,
    validation=Validation(every=250, num_tasks=16),
    checkpoint_every=250,
    evaluation=Evaluation(
        tasks=(choice("classifier", hidden_layers=1), choice("classifier", hidden_layers=3, batch_norm=True)),
        horizons=(50, 500, 5000),
        num_tasks=16,
    ),
)
