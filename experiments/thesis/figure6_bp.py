"""Figure 6, the BP model: figure 5's optimizer for ten times its training horizon."""

import dataclasses

from metaopt.experiment import Evaluation

from .figure5_bp import EXPERIMENT as SHORT

EXPERIMENT = dataclasses.replace(SHORT, evaluation=Evaluation(horizons=(1000,), num_tasks=400))
