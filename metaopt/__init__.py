"""metaopt: meta-learning of optimizers in JAX. The public names, flat; each is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Choice": "experiment",
    "Curves": "evaluation",
    "ESTIMATORS": "estimators",
    "Evaluation": "experiment",
    "Experiment": "experiment",
    "Log": "experiment",
    "MetaOptimizer": "experiment",
    "OPTIMIZERS": "optimizers",
    "ORACLES": "oracles",
    "Optimizer": "types",
    "TASKS": "tasks",
    "TaskFamily": "types",
    "Trainer": "training",
    "UserError": "experiment",
    "Validation": "experiment",
    "build_optimizer": "experiment",
    "choice": "experiment",
    "evaluate": "evaluation",
    "load": "runs.pretrained",
    "load_experiment": "runs.config",
    "meta_train": "training",
    "pretrained": "runs.pretrained",
}

if TYPE_CHECKING:
    from metaopt.estimators import ESTIMATORS as ESTIMATORS
    from metaopt.evaluation import Curves as Curves
    from metaopt.evaluation import evaluate as evaluate
    from metaopt.experiment import Choice as Choice
    from metaopt.experiment import Evaluation as Evaluation
    from metaopt.experiment import Experiment as Experiment
    from metaopt.experiment import Log as Log
    from metaopt.experiment import MetaOptimizer as MetaOptimizer
    from metaopt.experiment import UserError as UserError
    from metaopt.experiment import Validation as Validation
    from metaopt.experiment import build_optimizer as build_optimizer
    from metaopt.experiment import choice as choice
    from metaopt.optimizers import OPTIMIZERS as OPTIMIZERS
    from metaopt.oracles import ORACLES as ORACLES
    from metaopt.runs.config import load_experiment as load_experiment
    from metaopt.runs.pretrained import load as load
    from metaopt.runs.pretrained import pretrained as pretrained
    from metaopt.tasks import TASKS as TASKS
    from metaopt.training import Trainer as Trainer
    from metaopt.training import meta_train as meta_train
    from metaopt.types import Optimizer as Optimizer
    from metaopt.types import TaskFamily as TaskFamily


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'metaopt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"metaopt.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
