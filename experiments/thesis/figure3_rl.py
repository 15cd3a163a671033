"""Figure 3, the RL model: meta-trained on quadratics for 100 steps, evaluated for 1000."""

from metaopt.choices import choice
from metaopt.experiment import Evaluation, Experiment, Validation

EXPERIMENT = Experiment(
    tasks=(choice("quadratic", dim=10),),
    # Without noise in the gradients the gradient alone is the input (section 6.1 of the thesis).
    optimizer=choice("lstm", step_rule="direct", features="gradient", noise="per_step"),
    estimator=choice("reparameterised"),
    num_meta_steps=2000,
    num_tasks=16,  # the thesis takes one function a meta-step: --num-tasks 1
    horizon=100,
    validation=Validation(every=0),  # the last φ is what the thesis shows
    evaluation=Evaluation(horizons=(100, 1000), num_tasks=400),
)
