"""Figure 7, the RL model: meta-trained on regressions and one-layer networks for 50 steps, on deeper ones for 500."""

from metaopt.choices import choice
from metaopt.experiment import Evaluation, Experiment, Validation

DEPTHS = (1, 2, 3, 6, 10)
NETWORKS = tuple(choice(kind, hidden_layers=depth) for kind in ("classifier", "autoencoder") for depth in DEPTHS)
EXPERIMENT = Experiment(
    tasks=(
        choice("linear_regression"),
        choice("logistic_regression"),
        choice("classifier", hidden_layers=1),
        choice("autoencoder", hidden_layers=1),
    ),
    optimizer=choice("lstm", step_rule="direct", features="all", noise="per_step", alpha_bias=-2.0),
    estimator=choice("reparameterised"),
    num_meta_steps=2000,
    num_tasks=4,  # one of each family; with 1, a family is drawn each meta-step
    horizon=50,
    validation=Validation(every=0),
    evaluation=Evaluation(NETWORKS, horizons=(500,), num_tasks=16),
)
