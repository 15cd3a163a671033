"""What of the controller's recipe helps? `python -m experiments.recipe.arms [ARM ...]` (20 minutes of a core an arm).

Each arm is the recipe's first part, back-propagation, with one thing otherwise, scored on the development suite; the
whole recipe is run with several meta-seeds (an hour of a core each). What is done is kept in arms.json and not done
again; what was begun goes on from the folder of runs.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.controller import EXPERIMENT
from experiments.recipe.write import ARMS as RECORD
from experiments.recipe.write import HERE, write_page
from experiments.thesis.arms import FEATURES
from metaopt.benchmark import running, scores
from metaopt.choices import Choice, choice
from metaopt.evaluation.statistics import jsonable
from metaopt.experiment import Curriculum, Evaluation, Experiment, Validation, optimizer_of
from metaopt.files import read_json, write_json
from metaopt.runs.environment import provenance
from metaopt.runs.folder import CONFIG, OPTIMIZER, STATE
from metaopt.runs.optimizer_file import SHIPPED, read_optimizer
from metaopt.runs.train import resume, train

WORK = Path("runs/recipe")
SUITE, HORIZONS = "development", (50, 500)
LEARNED = "learned"  # in the records


def _varied(base: Experiment, options: Mapping[str, Any] | None = None, **fields: Any) -> Experiment:
    optimizer = Choice(base.optimizer.name, {**base.optimizer.options, **(options or {})})
    return dataclasses.replace(base, optimizer=optimizer, **fields)


# Nothing evaluated but by the suite.
RECIPE = dataclasses.replace(
    EXPERIMENT,
    evaluation=Evaluation(
        tasks=(choice("quadratic", dim=3),), horizons=(50,), num_tasks=2, baselines=("sgd",), tuning="9x1"
    ),
    num_devices=1,
)
START = dataclasses.replace(
    RECIPE,
    num_meta_steps=1500,
    num_tasks=38,
    estimator=choice("truncated_backprop", clip_task_norm=0.5),
    meta_optimizer=dataclasses.replace(EXPERIMENT.meta_optimizer, learning_rate=1e-3, ema=0.99),
    validation=Validation(every=0),
)
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
FIRST = "the first part"
POLICY = "the policy form: Gamma noise on α a tensor, reparameterised"
ARMS = {
    FIRST: START,
    "windows of 100": dataclasses.replace(START, unroll_length=100),
    "second order": dataclasses.replace(
        START, estimator=choice("truncated_backprop", clip_task_norm=0.5, second_order=True)
    ),
    "evolution strategies": dataclasses.replace(START, estimator=EXPERIMENT.estimator),
    "without a gain": _varied(START, {"gain": 0.0}),
    "without slope, change and start": _varied(START, {"features": FEATURES}),
    "ten families": _varied(START, tasks=TEN, num_tasks=40),
    "α begins at α_0": _varied(START, {"start": "fixed"}),
    "log-uniform horizons": _varied(START, curriculum=Curriculum("log_uniform")),
    POLICY: _varied(START, {"noise": "per_tensor"}, estimator=choice("reparameterised", clip_task_norm=0.5)),
}
SEEDS = {f"the recipe, meta-seed {seed}": seed for seed in range(3)}
# φ of whole runs, one meta-seed each, and what they are used with that they were meta-trained without.
THIRD = "the recipe's third form, without a brake, power=2, 3,000 meta-steps in the second part"
FIXED = "the recipe's second form, α begins at α_0, power=1.25"
FORERUNNER, FURTHER = HERE / "forerunner_4000.safetensors", HERE / "further_2000.safetensors"
STEP = "bound on the step"
RUNS: dict[str, tuple[Path, dict[str, Any]]] = {
    f"what is shipped: the forerunner meta-trained on, twice, {STEP}, a brake that lets go, surge=3": (
        SHIPPED / "controller.safetensors",
        {},
    ),
    f"the same φ, {STEP}": (SHIPPED / "controller.safetensors", {"surge": None}),
    "the same φ, bound=0.3 on the step": (SHIPPED / "controller.safetensors", {"surge": None, "bound": 0.3}),
    "the same φ, bound=3 on the step": (SHIPPED / "controller.safetensors", {"surge": None, "bound": 3.0}),
    f"the same, meta-trained on with {STEP}, floor=1e-9, 5,000": (HERE / "on_5000.safetensors", {}),
    f"the union of three below, {STEP}": (HERE / "union_of_three.safetensors", {}),
    f"the union meta-trained on below, {STEP}": (HERE / "union_4500.safetensors", {}),
    f"the recipe, meta-seed 0, {STEP}": (HERE / "recipe_0.safetensors", {}),
    f"the recipe's third form, meta-seed 2, {STEP}": (HERE / "third_form_2.safetensors", {}),
    f"the first part, meta-seed 1, {STEP}": (HERE / "first_part_1.safetensors", {}),
    f"the first part, bank=…,mlp: a network's direction a coordinate, {STEP}": (
        HERE / "network_first_part.safetensors",
        {},
    ),
    "no controller but an LSTM policy (experiments/lstm_policy.py), 1,500": (SHIPPED / "lstm_policy.safetensors", {}),
    "the one below, used with brake=1.5": (FURTHER, {"brake": 1.5}),
    "the forerunner, meta-trained on with start=polyak and early_change=2, power=1.5, 2,000": (FURTHER, {}),
    "the forerunner, used with early_change=2": (FORERUNNER, {"early_change": 2.0}),
    "the forerunner: the second form, picked by validation, 4,000": (FORERUNNER, {}),
    # Of `experiments.recipe.union`, in this order.
    "a union of three, none meta-trained on: what is shipped, the recipe's meta-seed 0, the third form's 2": (
        HERE / "union_of_three.safetensors",
        {},
    ),
    "that union meta-trained on, its output alone for 1,000, then all of it for 4,500": (
        HERE / "union_4500.safetensors",
        {},
    ),
    "the recipe's first part, meta-seed 1, then 600 meta-steps of second order through windows of 100": (
        HERE / "second_order_600.safetensors",
        {},
    ),
    **{f"{THIRD}, meta-seed {seed}": (HERE / f"third_form_{seed}.safetensors", {}) for seed in range(3)},
    "first form, 16,000 meta-steps": (HERE / "nres_16000.safetensors", {}),
    f"{FIXED}, 6,000 meta-steps in the second part": (HERE / "fixed_start_0.safetensors", {}),
    f"{FIXED}, early_change=4": (HERE / "early_0.safetensors", {}),
    "evolution strategies alone, picked by validation: 6,000": (HERE / "nineteen_6000.safetensors", {}),
    "evolution strategies alone, its end: 12,000": (HERE / "nineteen_12000.safetensors", {}),
    "back-propagation alone, windows of 100, 4,000": (HERE / "windows_4000.safetensors", {}),
    f"{FIXED}, its first part": (HERE / "fixed_start_first_part.safetensors", {}),
}
# Of code that is gone, the last two whole runs with 3,000 meta-steps in the second part: the commit that has it.
GONE = {
    "what was shipped, its bound on α": "ab73ffc",
    "a feature for what of the loss's fall is lost, a family in factors": "3e1b834",
    "the same, differences bound by .02": "3e1b834",
}


def _folder(name: str) -> str:
    return name.translate({ord(" "): "_", ord(","): None, ord(":"): None})


def _trained(experiment: Experiment, place: Path) -> Path:
    if not (place / CONFIG).exists():
        train(experiment, place)
    elif not (place / OPTIMIZER).exists() or read_json(place / STATE)["state"] != "finished":
        resume(place)
    return place


def _whole(seed: int, place: Path) -> Path:
    """The recipe's two parts."""
    start = _trained(dataclasses.replace(START, seed=seed), WORK / f"start_{seed}")
    return _trained(dataclasses.replace(RECIPE, seed=seed, start=str(start)), place)


def _phi(name: str, place: Path) -> Path:
    if name in ARMS:
        return _trained(ARMS[name], place) / OPTIMIZER
    kept = HERE / f"recipe_{SEEDS[name]}.safetensors"  # beside the scores, for runs/ is not committed
    if not kept.exists():
        shutil.copyfile(_whole(SEEDS[name], place) / OPTIMIZER, kept)
    return kept


def _scored(phi: Path, options: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """{horizon: {entry: logs of ratios, and the share that failed}}, for entries with tuned baselines.

    Args:
      options: of the optimizer, beside its own.
      path: where the losses are kept.
    """
    trained, held = read_optimizer(phi), running.held_baselines(SUITE)
    found = {LEARNED: (optimizer_of(_varied(trained.experiment, options)), trained.meta_params)}

    def work(entry: Any, horizon: int) -> dict[str, Any]:
        return running.measure(entry, horizon, found) if str(horizon) in held.get(entry.name, {}) else {}

    for _ in running.run(SUITE, HORIZONS, path, work, {"suite": SUITE}):
        pass
    own = {
        entry: {at: record for at, record in by.items() if record} for entry, by in read_json(path)["entries"].items()
    }
    return {
        str(horizon): {entry: _figures(record) for entry, record in scores.joined(held, own, horizon).items()}
        for horizon in HORIZONS
    }


def _figures(record: Mapping[str, Any]) -> dict[str, float]:
    to = {"adam": scores.ADAM, "best": scores.best_in(record), "untold": scores.best_in(record, told=False)}
    ratios = {what: scores.ratio_to(record, LEARNED, other) for what, other in to.items()}
    return {**ratios, "failed": float(np.mean(record["optimizers"][LEARNED]["failed"]))}


def main() -> None:
    known = [*SEEDS, *ARMS, *RUNS]
    unknown = [name for name in sys.argv[1:] if name not in known]
    if unknown:
        raise SystemExit(f"{unknown[0]!r} is no arm; there are: {'; '.join(known)}.")
    for name in sys.argv[1:] or known:
        if name not in _record():
            place = WORK / _folder(name)
            phi, options = RUNS[name] if name in RUNS else (_phi(name, place), {})
            place.mkdir(parents=True, exist_ok=True)
            found = {"scores": jsonable(_scored(phi, options, place / running.RECORDS)), "environment": provenance()}
            write_json(RECORD, {**_record(), name: found})  # read anew: another process may have added its own
            write_page()


def _record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


if __name__ == "__main__":
    main()
