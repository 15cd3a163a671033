"""Step lengths of the meta-trained models to ten times the training horizon, and what the cell alone makes of them.

Each φ runs on tasks of a family, and then its network alone is given the inputs of the last 20 steps of the training
horizon again and again: what its step length does then comes from its state, and from nothing new that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.thesis.arms import STUDIES, Arm
from experiments.thesis.folders import PHI, say, work_folder
from metaopt.choices import Choice, choice
from metaopt.evaluation.record import evaluation_keys
from metaopt.evaluation.statistics import thin
from metaopt.experiment import build_family, build_optimizer
from metaopt.microscope.inner_runs import watch
from metaopt.optimizers.network import gate_values
from metaopt.optimizers.step_rules import LOG_ALPHA_RANGE
from metaopt.shipped.loading import read_optimizer
from metaopt.types import MetaParams

RUNS = (
    ("quadratic", choice("quadratic", dim=10)),
    ("quadratic", choice("rosenbrock", pairs=5)),
    ("linear_regression", choice("linear_regression")),
    ("networks_digits", choice("classifier", hidden_layers=1)),
    ("networks_digits", choice("classifier", hidden_layers=6)),
)
MODELS = ("rl", "bp")
ABOUT = "Lengths of steps and losses, medians over the tasks that are alive at the training horizon."
BEYOND, HELD, NUM_TASKS, COORDINATES, POINTS = 10, 20, 16, 64, 60


def arm_of(study: str, model: str) -> Arm:
    return next(arm for arm in STUDIES[study].arms if arm.name == model)


def missing(work: Path) -> list[str]:
    """Arms of which there is no φ."""
    studies = dict.fromkeys(study for study, _ in RUNS)
    return [f"{study}/{model}" for study in studies for model in MODELS if not _phis(work, study, model)]


def _phis(work: Path, study: str, model: str) -> dict[int, Path]:
    """φ by meta-seed; of a seed whose meta-training diverged there is none."""
    folder = work_folder(work, study, model)
    paths = {seed: folder / f"seed-{seed}" / PHI for seed in range(arm_of(study, model).seeds)}
    return {seed: path for seed, path in paths.items() if path.exists()}


def held_lengths(meta_params: MetaParams, seen: jax.Array, length: jax.Array) -> jax.Array:
    """[(BEYOND - 1) · horizon, tasks] step lengths after the horizon when the network's inputs no longer change.

    It reads `seen` [horizon, tasks, coordinates, inputs] once, as in the run, and then the last HELD of them over and
    over; the length starts from that of the run at the horizon, [tasks].
    """
    recursive = "log_gamma" in meta_params
    head = meta_params["log_gamma" if recursive else "log_alpha"]
    horizon = len(seen)

    def read(cells: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        _, cells = gate_values(meta_params, x, cells)
        return cells, jnp.mean(cells[-1][1] @ head["kernel"] + head["bias"], axis=(1, 2))

    def step(carry: tuple[Any, jax.Array], index: jax.Array) -> tuple[Any, jax.Array]:
        cells, log_alpha = carry
        cells, output = read(cells, seen[horizon - HELD + index % HELD])
        log_alpha = jnp.clip(log_alpha + output if recursive else start + output - last, *LOG_ALPHA_RANGE)
        return (cells, log_alpha), log_alpha

    start = jnp.log(length)
    layers = [meta_params[name] for name in sorted(meta_params) if name.startswith("lstm_")]
    zeros = [jnp.zeros((*seen.shape[1:3], layer["hi"]["kernel"].shape[0])) for layer in layers]
    cells, outputs = jax.lax.scan(read, [(zero, zero) for zero in zeros], seen)
    last = outputs[-1]
    return jnp.exp(jax.lax.scan(step, (cells, start), jnp.arange((BEYOND - 1) * horizon))[1])


def _rows(work: Path, study: str, task: Choice) -> Iterator[dict[str, Any]]:
    """One row a model and meta-seed: medians over the tasks that are alive at the training horizon."""
    family, horizon = build_family(task), STUDIES[study].horizon
    keys = jax.random.split(evaluation_keys(0)[0], NUM_TASKS)
    shown = thin(np.arange(1, BEYOND * horizon + 1), keep=(1, horizon, BEYOND * horizon), limit=POINTS)
    for model in MODELS:
        optimizer = build_optimizer(arm_of(study, model).experiment.optimizer)

        @jax.jit
        def run(meta_params: MetaParams, optimizer: Any = optimizer) -> tuple[jax.Array, ...]:
            how: dict[str, Any] = {"horizon": BEYOND * horizon, "explore": False, "num_coordinates": COORDINATES}
            found = watch(optimizer, meta_params, family, keys, **how)
            assert found.inputs is not None
            norm = found.update_norm
            return norm, found.loss, held_lengths(meta_params, found.inputs[:horizon], norm[horizon - 1])

        for seed, path in _phis(work, study, model).items():
            norm, loss, held = jax.device_get(run(read_optimizer(path).meta_params))
            alive = norm[horizon - 1] > 0  # a dead task's steps read 0
            used = {"length": norm, "held": np.concatenate([norm[:horizon], held]), "loss": loss}
            medians = {
                name: np.median(values[:, alive], axis=1) if alive.any() else np.full(len(values), np.nan)
                for name, values in used.items()
            }
            near, far = (f"{medians['length'][end - 1]:.3g}" for end in (horizon, BEYOND * horizon))
            say(f"{task} {model} seed {seed}: length {near} at step {horizon}, {far} at {BEYOND * horizon}")
            yield {
                "study": study, "task": str(task), "model": model, "seed": seed, "horizon": horizon,
                "tasks": len(alive), "alive": int(alive.sum()), "steps": shown + 1,
                **{name: _short(values[shown]) for name, values in medians.items()},
            }  # fmt: skip
    jax.clear_caches()


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{float(value):.3g}") for value in values]


def rows(work: Path) -> list[dict[str, Any]]:
    return [row for study, task in RUNS for row in _rows(work, study, task)]
