"""Which meta-gradient for the controller? `python -m experiments.recipe.write` (half an hour of one core, resumable).

Meta-gradients of the same objective at the same φ, on the same tasks: their expectation beside that of noise-reuse
evolution strategies, which is unbiased but for its smoothing and a bound on differences, and their noise. Writes
results.json part by part and README.md, with what experiments/recipe/arms.py found in it; with `--page` the page alone.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.controller import EXPERIMENT
from metaopt.choices import choice, parse_choice
from metaopt.evaluation.statistics import jsonable
from metaopt.experiment import Curriculum, Experiment, build_families, optimizer_of
from metaopt.files import write_json
from metaopt.microscope.gradient_quality import Measured, Samples, assess, sample_gradients
from metaopt.runs.optimizer_file import read_optimizer
from metaopt.training.estimator import build_estimator

HERE = Path(__file__).parent
RESULTS, ARMS = HERE / "results.json", HERE / "arms.json"
HORIZON = 500
TASKS = (
    choice("quadratic", dim=30, rescale=2.0),
    choice("classifier", hidden_layers=1, rescale=0.5),
    choice("classifier", hidden_layers=3, width=16, batch_norm=True, activation="tanh"),
    choice("classifier", hidden_layers=2, width=16, activation="sigmoid", rescale=1.0),
)
OBJECTIVE = "log_relative:floor=1e-6"
# φ fresh, and where the recipe's first part, back-propagation, ends.
OPTIMIZER = choice("controller", bound=1.0, gain=2.0)  # the recipe's when this was measured
PHIS = {"fresh": None, "after the first part": HERE / "fixed_start_first_part.safetensors"}
CLIP = "clip_task_norm=0.5"
ES = "clip_difference={},tasks_per_perturbation=1,sigma={}"


class Setting(NamedTuple):
    """An estimator in windows of so many steps, with so many tasks a meta-step, measured on so many lives."""

    estimator: str
    window: int
    num_tasks: int = 20
    lives: int = 4


REFERENCE = Setting(f"noise_reuse_evolution_strategies:{ES.format(2.0, 0.03)}", 50, 80, 12)
SETTINGS = {
    "NRES, σ = .03": REFERENCE,
    "NRES, σ = .01": Setting(f"noise_reuse_evolution_strategies:{ES.format(2.0, 0.01)}", 50, 80, 12),
    "NRES, σ = .03, differences up to .1": Setting(
        f"noise_reuse_evolution_strategies:{ES.format(0.1, 0.03)}", 50, 80, 12
    ),
    **{f"first order, windows of {window}": Setting(f"truncated_backprop:{CLIP}", window) for window in (50, 100, 250)},
    **{
        f"second order, windows of {window}": Setting(f"truncated_backprop:{CLIP},second_order=true", window)
        for window in (50, 100)
    },
    "first order, windows of 50, not clipped": Setting("truncated_backprop", 50),
}


def experiment(setting: Setting) -> Experiment:
    return dataclasses.replace(
        EXPERIMENT,
        tasks=TASKS,
        optimizer=OPTIMIZER,
        num_tasks=setting.num_tasks,
        horizon=HORIZON,
        unroll_length=setting.window if setting.window < HORIZON else None,
        curriculum=Curriculum(),
        objective=OBJECTIVE,
        estimator=parse_choice(setting.estimator),
        num_devices=1,
    )


def sampled(phi: Path | None, setting: Setting) -> tuple[Samples, float]:
    """Meta-gradients, and the core-seconds that they took, compilation included."""
    asked, began = experiment(setting), time.process_time()
    optimizer, families = optimizer_of(asked), build_families(asked)
    meta_params = optimizer.init(jax.random.key(0)) if phi is None else read_optimizer(phi).meta_params
    estimator = build_estimator(asked, asked.estimator, optimizer, families)
    windows = HORIZON // setting.window
    how = {"num_lives": setting.lives, "windows": windows}
    return sample_gradients(estimator, meta_params, families, jax.random.key(1), **how), time.process_time() - began


def write_page() -> None:
    from experiments.recipe.page import page

    record, arms = (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {} for path in (RESULTS, ARMS))
    if not record:
        raise SystemExit(f"there is no {RESULTS.name} yet; leave --page out.")
    (HERE / "README.md").write_text(page(record, arms), encoding="utf-8")


def main() -> None:
    record: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if "--page" not in sys.argv:
        for name, phi in PHIS.items():
            held = record.setdefault(name, {})
            reference = None
            for what, setting in SETTINGS.items():
                if what in held:
                    continue
                reference = reference or sampled(phi, REFERENCE)
                own, seconds = reference if setting == REFERENCE else sampled(phi, setting)
                found = assess(own, reference[0])._asdict()
                said = {key: value._asdict() if isinstance(value, Measured) else value for key, value in found.items()}
                held[what] = jsonable({**setting._asdict(), **said, "core_seconds": seconds})
                write_json(RESULTS, record)
                print(f"{name}, {what}: {seconds:.0f} s", flush=True)
                jax.clear_caches()
    write_page()


if __name__ == "__main__":
    main()
