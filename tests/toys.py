"""Small task families with known answers, and an experiment whose runs compile in no time."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from metaopt.choices import choice
from metaopt.estimators import Schedule
from metaopt.experiment import Evaluation, Experiment, Log, Validation
from metaopt.files import read_json, write_json
from metaopt.registry import ESTIMATORS, OBJECTIVES
from metaopt.types import MetaGradient, Optimizer, TaskFamily

ROOT = Path(__file__).resolve().parent.parent
OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"  # what the tests' own programs are compiled with


def script(place: str) -> Any:
    """The module of an executable without a suffix, by its path in the repository; sys.path is left as it was."""
    loader = importlib.machinery.SourceFileLoader(Path(place).name, str(ROOT / place))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module, before = importlib.util.module_from_spec(spec), sys.path[0]
    try:
        loader.exec_module(module)
    finally:
        sys.path[0] = before
    return module


def in_x64() -> Any:
    """The context in which jax computes in double precision; before jax 0.8 it lay elsewhere."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return importlib.import_module("jax.experimental").enable_x64()


# A hand-designed optimizer, whose parameters are meta-trained as an LSTM's are.
TINY = Experiment(
    tasks=(choice("quadratic", dim=2),),
    optimizer=choice("momentum"),
    estimator=choice("truncated_backprop"),
    num_meta_steps=8,
    num_tasks=2,
    horizon=4,
    checkpoint_every=4,
    num_devices=1,
    validation=Validation(every=4, num_tasks=2, multiples=(1, 2)),
    evaluation=Evaluation(num_tasks=2, horizons=(4,), baselines=()),
    log=Log(every=2),
)

# Estimators of every part of φ, and those of the task's hyperparameters alone.
GENERAL = [name for name in ESTIMATORS if "optimizer" in ESTIMATORS.traits(name).moves]
OF_TASK = [name for name in ESTIMATORS if name not in GENERAL]


def begun_with(path: Path, config: dict[str, Any]) -> None:
    """Writes a run folder as if it had been begun with another configuration."""
    write_json(path / "config.json", config)
    environment = read_json(path / "environment.json")
    write_json(path / "environment.json", {**environment, "config": config})


def made(
    factory: Callable[..., MetaGradient], optimizer: Optimizer, objective: str = "mean", **settings
) -> MetaGradient:
    """An estimator, with the fields of its schedule and its own options side by side."""
    traits = OBJECTIVES.traits(objective)
    names = {field.name for field in dataclasses.fields(Schedule)} - {"staggered"}
    schedule = {name: settings.pop(name) for name in list(settings) if name in names}
    schedule = Schedule(**{"balanced": not traits.scale_free, "unroll_length": schedule["horizon"], **schedule})
    return factory(optimizer, OBJECTIVES[objective](), schedule, **settings)


def bowl(dim: int = 3) -> TaskFamily:
    """Smooth, deterministic: f(x) = Σ log cosh(a·x) with a drawn per task; start at ones times a draw."""
    return TaskFamily(
        data=(),
        sample=lambda key, data: 0.5 + jax.random.uniform(key, (dim,)),
        init=lambda key, task: 1.0 + 0.3 * jax.random.normal(key, (dim,)),
        batch=lambda key, task, data: (),
        loss=lambda params, task, batch: jnp.mean(jnp.log(jnp.cosh(task * params))) + 0.1 * jnp.mean(params**2),
        eval_batch=lambda task, data, split: (),
        name="bowl",
    )


def noisy_bowl(dim: int = 3) -> TaskFamily:
    """f(x) = mean (x - b)² with a minibatch b ~ N(0.5, 0.1²)."""
    return TaskFamily(
        data=(),
        sample=lambda key, data: jax.random.uniform(key, (dim,)),
        init=lambda key, task: 1.0 + jax.random.normal(key, (dim,)),
        batch=lambda key, task, data: 0.5 + 0.1 * jax.random.normal(key, (dim,)),
        loss=lambda params, task, batch: jnp.mean((1 + task) * (params - batch) ** 2),
        eval_batch=lambda task, data, split: jnp.full(dim, 0.5),
        name="noisy_bowl",
    )


def cliff(dim: int = 2) -> TaskFamily:
    """Half of the tasks (task > 0.5) fall off: their loss is infinite as soon as they have moved."""

    def loss(params, task, batch):
        moved = jnp.any(params != 1.0)
        return jnp.where((task > 0.5) & moved, jnp.inf, 1.0) * jnp.sum(params**2)

    return TaskFamily(
        data=(),
        sample=lambda key, data: jax.random.uniform(key),
        init=lambda key, task: jnp.ones(dim),
        batch=lambda key, task, data: (),
        loss=loss,
        eval_batch=lambda task, data, split: (),
        name="cliff",
    )


def one_bowl(dim: int = 2) -> TaskFamily:
    """A single smooth task from a single start: the meta-loss of a deterministic optimizer is one number."""
    slopes, start = jnp.linspace(0.7, 1.6, dim), jnp.linspace(1.0, -0.6, dim)
    return TaskFamily(
        data=(),
        sample=lambda key, data: slopes,
        init=lambda key, task: start + 0 * task,
        batch=lambda key, task, data: (),
        loss=lambda params, task, batch: jnp.mean(jnp.log(jnp.cosh(task * params))) + 0.1 * jnp.mean(params**2),
        eval_batch=lambda task, data, split: (),
        name="one_bowl",
    )
