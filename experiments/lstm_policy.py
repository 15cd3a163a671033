"""The thesis's LSTM as a policy with Gamma noise, meta-trained as the controller was, to 2,000 steps.

What `networks_rl` lacks: families of other scales and kinds, long horizons, a step length that can go anywhere
(recursive, the root mean square of a tensor's coordinates) and features free of scale. Reparameterised gradients in
windows of 50 steps, each task's clipped by itself.

    metaopt train lstm_policy
"""

import dataclasses

from experiments.controller import EXPERIMENT as CONTROLLER
from metaopt import choice
from metaopt.experiment import Validation

EXPERIMENT = dataclasses.replace(
    CONTROLLER,
    optimizer=choice(
        "lstm", step_rule="recursive", initial_alpha="median", normalisation="tensor_rms", noise="per_step"
    ),
    estimator=choice("reparameterised", clip_task_norm=0.5),
    num_meta_steps=1500,
    num_tasks=38,
    meta_optimizer=dataclasses.replace(CONTROLLER.meta_optimizer, learning_rate=1e-3, ema=0.99),
    validation=Validation(every=0),
)
