"""RL model meta-trained on quadratics from gradients alone, evaluated on Rosenbrock's function (figure 4)."""

import dataclasses

from metaopt.choices import choice
from metaopt.experiment import Evaluation

from .quadratic_rl import EXPERIMENT as QUADRATIC

EXPERIMENT = dataclasses.replace(
    QUADRATIC,
    optimizer=choice("lstm", step_rule="direct", features="gradient", noise="per_step"),
    evaluation=Evaluation(tasks=(choice("quadratic"), choice("rosenbrock")), horizons=(1000,)),
)
