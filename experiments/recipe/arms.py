"""What of the controller's recipe helps? `python -m experiments.recipe.arms [ARM ...]` (20 minutes of a core an arm).

Each arm is the recipe for `META_STEPS` meta-steps with one thing as it was before, scored on the development suite. What is
done is not done again, in arms.json and in the folder of runs; `python -m experiments.recipe.write --page` writes
the page.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.controller import EXPERIMENT
from metaopt.benchmark import running, scores
from metaopt.choices import Choice, choice
from metaopt.cli.arguments import BenchmarkArguments
from metaopt.cli.benchmark import benchmark
from metaopt.cli.train import resume_with_everything, train_with_everything
from metaopt.errors import suggest
from metaopt.experiment import Curriculum, Experiment, Validation
from metaopt.files import read_json, write_json
from metaopt.runs.folder import CONFIG, OPTIMIZER

HERE = Path(__file__).parent
RECORD = HERE / "arms.json"
WORK = Path("runs/recipe")
SUITE, HORIZONS = "development", (50, 500)
META_STEPS, EMA = 3000, 0.99

RECIPE = dataclasses.replace(
    EXPERIMENT,
    num_meta_steps=META_STEPS,
    meta_optimizer=dataclasses.replace(EXPERIMENT.meta_optimizer, ema=EMA),
    validation=Validation(every=META_STEPS, num_tasks=6, multiples=(1,)),
    num_devices=1,
)
# The ten families of the first recipe.
TEN = (
    choice("quadratic", dim=20, rescale=1.0),
    choice("quadratic", dim=30, rescale=2.0),
    choice("rosenbrock", pairs=5, rescale=0.5),
    choice("linear_regression", rescale=1.0),
    choice("logistic_regression", rescale=1.0),
    choice("classifier", hidden_layers=1, rescale=0.5),
    choice("classifier", hidden_layers=3, width=16, batch_norm=True, activation="tanh"),
    choice("classifier", hidden_layers=2, width=16, activation="sigmoid", rescale=1.0),
    choice("classifier", hidden_layers=2, width=12, activation="tanh", batch_size=512, rescale=1.0),
    choice("autoencoder", hidden_layers=1, width=16),
)
