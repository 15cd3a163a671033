"""RL model meta-trained on one-layer digit classifiers for 50 steps, evaluated on 1, 3 and 6 layers at 500 steps.

Half of the meta-training tasks have batch normalisation; the transfer is to depth and to ten times the horizon.
"""

from metaopt.choices import choice
from metaopt.experiment import Evaluation, Experiment, Log, MetaOptimizer, Validation

NETWORKS = tuple(
    choice("classifier", hidden_layers=layers, batch_norm=batch_norm)
    for batch_norm in (False, True)
    for layers in (1, 3, 6)
)

EXPERIMENT = Experiment(
    # Batch normalisation in half of the tasks and rescaled parameters: both widen what the features range over.
    tasks=(choice("classifier", hidden_layers=1), choice("classifier", hidden_layers=1, batch_norm=True)),
    optimizer=choice("lstm", step_rule="direct", features="all", noise="per_step", alpha_bias=-2.0),
    estimator=choice("reparameterised"),
    num_meta_steps=4000,
    num_tasks=4,
    horizon=50,
    rescale=0.5,
    meta_optimizer=MetaOptimizer(learning_rate=3e-3, schedule="cosine", final_fraction=0.03),
    validation=Validation(every=500, num_tasks=16),
    checkpoint_every=500,
    evaluation=Evaluation(tasks=NETWORKS, num_tasks=32),
    log=Log(every=25),
)
