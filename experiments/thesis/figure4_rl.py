"""Figure 4, the RL model: figure 3's optimizer on the Rosenbrock function, of one pair and of five."""

import dataclasses

from metaopt.choices import choice
from metaopt.experiment import Evaluation

from .figure3_rl import EXPERIMENT as QUADRATIC

ROSENBROCK = (choice("rosenbrock", pairs=1), choice("rosenbrock", pairs=5))
EXPERIMENT = dataclasses.replace(QUADRATIC, evaluation=Evaluation(ROSENBROCK, horizons=(1000,), num_tasks=400))
