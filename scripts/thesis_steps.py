#!/usr/bin/env python3
"""Step lengths of the meta-trained models to ten times the training horizon, and what the cell alone makes of them.

scripts/thesis_steps.py WORK, after the arms `rl` and `bp` of every study. Each φ runs on tasks of a family, and then
its network alone is given the inputs of the last 20 steps of the training horizon again and again: what its step
length does then comes from the cell's own state and from nothing that it reads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from thesis_arms import STUDIES, Arm
from thesis_work import PHI, say, work_folder

from metaopt.analysis.inner_runs import Inputs, first_cells, gate_values, network_inputs, watch
from metaopt.commands.start import configure_jax
from metaopt.evaluation.comparison import evaluation_keys
from metaopt.evaluation.statistics import jsonable, thin
from metaopt.experiment import Choice, build_family, build_optimizer, choice
from metaopt.optimizers.step_rules import LOG_ALPHA_0, LOG_ALPHA_RANGE
from metaopt.runs.environment import describe_environment
from metaopt.runs.folder import write_json
from metaopt.runs.pretrained import read_optimizer
from metaopt.types import MetaParams

NAME = "step_lengths"
RUNS = (
    ("quadratic", choice("quadratic", dim=10)),
    ("quadratic", choice("rosenbrock", pairs=5)),
    ("linear_regression", choice("linear_regression")),
    ("networks_digits", choice("classifier", hidden_layers=1)),
    ("networks_digits", choice("classifier", hidden_layers=6)),
)
MODELS = ("rl", "bp")
BEYOND, HELD, NUM_TASKS, COORDINATES, POINTS = 10, 20, 16, 64, 60


def arm_of(study: str, model: str) -> Arm:
    return next(arm for arm in STUDIES[study].arms if arm.name == model)


def missing(work: Path) -> list[str]:
    """Arms whose φ are not all there."""
    studies = dict.fromkeys(study for study, _ in RUNS)
    return [f"{study}/{model}" for study in studies for model in MODELS if not _phis(work, study, model)]


def _phis(work: Path, study: str, model: str) -> list[Path]:
    folder = work_folder(work, study, model)
    paths = [folder / f"seed-{seed}" / PHI for seed in range(arm_of(study, model).seeds)]
    return paths if all(path.exists() for path in paths) else []


def held_lengths(meta_params: MetaParams, seen: jax.Array, horizon: int) -> jax.Array:
    """[BEYOND · horizon] step lengths of a network that reads its inputs [horizon, tasks, coordinates, inputs] once and
    then the last of them over and over; the geometric mean over tasks."""
    recursive = "log_gamma" in meta_params
    head = meta_params["log_gamma" if recursive else "log_alpha"]

    def step(cells: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        _, cells = gate_values(meta_params, seen[index], cells)
        return cells, jnp.mean(cells[-1][1] @ head["kernel"] + head["bias"])

    steps = jnp.arange(BEYOND * horizon)
    indices = jnp.where(steps < horizon, steps, horizon - HELD + (steps - horizon) % HELD)
    _, outputs = jax.lax.scan(step, first_cells(meta_params, seen.shape[1:3]), indices)
    if recursive:
        outputs = sum(LOG_ALPHA_0) / 2 + jnp.cumsum(outputs)
    return jnp.exp(jnp.clip(outputs, *LOG_ALPHA_RANGE))


def rows(work: Path, study: str, task: Choice) -> Iterator[dict[str, Any]]:
    """One row a model and meta-seed."""
    family, horizon = build_family(task), STUDIES[study].horizon
    keys = jax.random.split(evaluation_keys(0)[0], NUM_TASKS)
    shown = thin(np.arange(1, BEYOND * horizon + 1), keep=(1, horizon, BEYOND * horizon), limit=POINTS)
    for model in MODELS:
        picked = arm_of(study, model).experiment.optimizer
        optimizer, inputs = build_optimizer(picked), network_inputs(picked)
        assert isinstance(inputs, Inputs)

        @jax.jit
        def run(meta_params: MetaParams, optimizer: Any = optimizer, inputs: Any = inputs) -> tuple[jax.Array, ...]:
            found = watch(
                optimizer, meta_params, family, keys,
                horizon=BEYOND * horizon, explore=False, inputs=inputs, num_coordinates=COORDINATES,
            )  # fmt: skip
            assert found.inputs is not None
            return found.update_norm, found.loss, held_lengths(meta_params, found.inputs[:horizon], horizon)

        for seed, path in enumerate(_phis(work, study, model)):
            norm, loss, held = jax.device_get(run(read_optimizer(path).meta_params))
            # A dead task takes no more steps: its length would read 0.
            norm = np.where(norm > 0, norm, np.nan)
            alive = np.isfinite(norm).any(axis=1)
            median = np.full(len(norm), np.nan)
            median[alive] = np.nanmedian(norm[alive], axis=1)
            at = {multiple: multiple * horizon - 1 for multiple in (1, BEYOND)}
            say(f"{task} {model} seed {seed}: length {median[at[1]]:.3g} at {horizon}, {median[at[BEYOND]]:.3g} beyond")
            yield {
                "study": study, "task": str(task), "model": model, "seed": seed, "horizon": horizon,
                "steps": shown + 1, "length": _short(median[shown]), "held": _short(held[shown]),
                "loss": _short(np.median(loss, axis=1)[shown]),
            }  # fmt: skip
    jax.clear_caches()


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{float(value):.3g}") for value in values]


def main() -> int:
    work = Path(sys.argv[1])
    lacking = missing(work)
    if lacking:
        print(f"thesis_steps: error: no φ of {', '.join(lacking)}; run them first.", file=sys.stderr)
        return 2
    configure_jax(1)
    environment = describe_environment(NAME, [])
    record = {
        "study": NAME,
        "environment": {key: environment[key] for key in ("versions", "git", "device", "platform")},
        "rows": [row for study, task in RUNS for row in rows(work, study, task)],
    }
    write_json(work / f"{NAME}.json", jsonable(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
