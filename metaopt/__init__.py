"""metaopt: meta-learning of optimizers in JAX. The public names, flat; each is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Choice": "choices",
    "Curves": "evaluation.curves",
    "ESTIMATORS": "registry",
    "EarlyStopping": "evaluation.early_stopping",
    "Estimate": "types",
    "Evaluation": "experiment",
    "Experiment": "experiment",
    "Hyper": "types",
    "Log": "experiment",
    "Law": "types",
    "MetaGradient": "types",
    "MetaOptimizer": "experiment",
    "OBJECTIVES": "registry",
    "OPTIMIZERS": "registry",
    "ORACLES": "registry",
    "Objective": "types",
    "Optimizer": "types",
    "Oracle": "types",
    "Schedule": "estimators.windows",
    "TASKS": "registry",
    "TaskFamily": "types",
    "Trainer": "training.trainer",
    "UserError": "errors",
    "Validation": "experiment",
    "bind_tasks": "inner.binding",
    "build_optimizer": "experiment",
    "choice": "choices",
    "evaluate": "evaluation.curves",
    "load": "shipped.loading",
    "load_experiment": "runs.experiments",
    "load_results": "results",
    "load_run": "results",
    "make_task": "tasks.own",
    "meta_train": "training.loop",
    "pretrained": "shipped.loading",
    "reset": "inner.step",
    "step": "inner.step",
    "to_torch": "shipped.in_torch",
    "unroll": "inner.unroll",
}

_MODULES = ("plots", "testing")  # public as a whole

if TYPE_CHECKING:
    from metaopt import plots as plots
    from metaopt import testing as testing
    from metaopt.choices import Choice as Choice
    from metaopt.choices import choice as choice
    from metaopt.errors import UserError as UserError
    from metaopt.estimators.windows import Schedule as Schedule
    from metaopt.evaluation.curves import Curves as Curves
    from metaopt.evaluation.curves import evaluate as evaluate
    from metaopt.evaluation.early_stopping import EarlyStopping as EarlyStopping
    from metaopt.experiment import Evaluation as Evaluation
    from metaopt.experiment import Experiment as Experiment
    from metaopt.experiment import Log as Log
    from metaopt.experiment import MetaOptimizer as MetaOptimizer
    from metaopt.experiment import Validation as Validation
    from metaopt.experiment import build_optimizer as build_optimizer
    from metaopt.inner.binding import bind_tasks as bind_tasks
    from metaopt.inner.step import reset as reset
    from metaopt.inner.step import step as step
    from metaopt.inner.unroll import unroll as unroll
    from metaopt.registry import ESTIMATORS as ESTIMATORS
    from metaopt.registry import OBJECTIVES as OBJECTIVES
    from metaopt.registry import OPTIMIZERS as OPTIMIZERS
    from metaopt.registry import ORACLES as ORACLES
    from metaopt.registry import TASKS as TASKS
    from metaopt.results import load_results as load_results
    from metaopt.results import load_run as load_run
    from metaopt.runs.experiments import load_experiment as load_experiment
    from metaopt.shipped.in_torch import to_torch as to_torch
    from metaopt.shipped.loading import load as load
    from metaopt.shipped.loading import pretrained as pretrained
    from metaopt.tasks.own import make_task as make_task
    from metaopt.training.loop import meta_train as meta_train
    from metaopt.training.trainer import Trainer as Trainer
    from metaopt.types import Estimate as Estimate
    from metaopt.types import Hyper as Hyper
    from metaopt.types import Law as Law
    from metaopt.types import MetaGradient as MetaGradient
    from metaopt.types import Objective as Objective
    from metaopt.types import Optimizer as Optimizer
    from metaopt.types import Oracle as Oracle
    from metaopt.types import TaskFamily as TaskFamily


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"metaopt.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'metaopt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"metaopt.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_MODULES})
