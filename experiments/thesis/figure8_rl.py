"""Figure 8, the RL model: figure 7's optimizer on networks with batch normalisation."""

import dataclasses

from metaopt.choices import choice

from .figure7_rl import EXPERIMENT as PLAIN

NETWORKS = tuple(choice(task.name, **task.options, batch_norm=True) for task in PLAIN.evaluation.tasks)
EXPERIMENT = dataclasses.replace(PLAIN, evaluation=dataclasses.replace(PLAIN.evaluation, tasks=NETWORKS))
