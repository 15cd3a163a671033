"""Figure 5, the RL model: meta-trained on linear regression for 100 steps, evaluated for 100."""

from metaopt.choices import choice
from metaopt.experiment import Evaluation, Experiment, Validation

EXPERIMENT = Experiment(
    tasks=(choice("linear_regression"),),
    optimizer=choice("lstm", step_rule="direct", features="all", noise="per_step"),
    estimator=choice("reparameterised"),
    num_meta_steps=2000,
    num_tasks=16,
    horizon=100,
    validation=Validation(every=0),
    evaluation=Evaluation(horizons=(100,), num_tasks=400),
)
