"""RL model meta-trained on networks of two data sets for 50 steps: the optimizer `networks_rl`.

Classifiers with and without batch normalisation, an autoencoder, and larger images, so that gradients, sizes and shapes
range widely; rescaled parameters widen them further. The φ of the best validation at ten times the horizon is shipped.
"""

from metaopt.experiment import Evaluation, Experiment, Log, MetaOptimizer, Validation, choice

EXPERIMENT = Experiment(
    tasks=(
        choice("classifier", hidden_layers=1),
        choice("classifier", hidden_layers=1, batch_norm=True),
        choice("autoencoder", hidden_layers=1),
        choice("classifier", hidden_layers=1, data="mnist_5k", width=10),
    ),
    optimizer=choice("lstm", step_rule="direct", features="all", noise="per_step", alpha_bias=-2.0),
    estimator=choice("reparameterised"),
    num_meta_steps=2000,
    num_tasks=4,
    horizon=50,
    rescale=0.5,
    meta_optimizer=MetaOptimizer(learning_rate=3e-3, schedule="cosine", final_fraction=0.03),
    validation=Validation(every=250, num_tasks=16),
    checkpoint_every=250,
    evaluation=Evaluation(
        tasks=(
            choice("classifier", hidden_layers=1),
            choice("classifier", hidden_layers=3, batch_norm=True),
        ),
        horizons=(50, 500, 5000),
        num_tasks=16,
    ),
    log=Log(every=25),
)
