"""BP model meta-trained on quadratics from gradients alone, evaluated on Rosenbrock's function (figure 4)."""

import dataclasses

from metaopt.choices import choice
from metaopt.experiment import Evaluation

from .quadratic_bp import EXPERIMENT as QUADRATIC

EXPERIMENT = dataclasses.replace(
    QUADRATIC,
    optimizer=choice("lstm", step_rule="recursive", features="gradient", noise="none"),
    evaluation=Evaluation(tasks=(choice("quadratic"), choice("rosenbrock")), horizons=(1000,)),
)
