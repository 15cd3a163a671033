"""The thesis's BP model on quadratics: recursive step length, back-propagation through all 100 steps (figure 3)."""

from metaopt.choices import choice
from metaopt.experiment import Evaluation, Experiment

EXPERIMENT = Experiment(
    tasks=(choice("quadratic", dim=10),),
    optimizer=choice("lstm", step_rule="recursive", features="all", noise="none"),
    estimator=choice("truncated_backprop"),
    num_meta_steps=2000,
    num_tasks=16,
    horizon=100,
    evaluation=Evaluation(horizons=(100, 1000), num_tasks=400),
)
