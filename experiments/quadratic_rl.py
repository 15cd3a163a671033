"""The thesis's RL model on quadratics: direct step length, Gamma noise, reparameterised policy gradient (figure 3)."""

from metaopt.choices import choice
from metaopt.experiment import Evaluation, Experiment

EXPERIMENT = Experiment(
    tasks=(choice("quadratic", dim=10),),
    optimizer=choice("lstm", step_rule="direct", features="all", noise="per_step"),
    estimator=choice("reparameterised"),
    num_meta_steps=2000,
    num_tasks=16,
    horizon=100,
    evaluation=Evaluation(horizons=(100, 1000), num_tasks=400),
)
