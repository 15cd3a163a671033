"""Validation during meta-training: held-out tasks, at the training horizon and at multiples of it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from metaopt.evaluation import Curves, evaluate, statistics
from metaopt.experiment import build_families
from metaopt.training.trainer import Trainer
from metaopt.types import MetaParams, TaskFamily

FLOOR = 1e-6  # of a family's share of its loss at θ_0: what is below it is as good as nothing
STREAM = 0x7A11  # keeps validation's tasks apart from those of training and evaluation


class Stage(NamedTuple):
    """Where a curriculum that goes on by validation stands."""

    level: int = 0
    best: float = float("inf")  # validation at the next horizon, at this level
    waited: int = 0  # validations since


def after_validation(stage: Stage, score: float, patience: int) -> Stage:
    """The stage after a validation at the next horizon: the next level when `patience` in a row were no better.

    The rule of Chen et al. 2020 (arXiv 2010.09089), but that φ goes on from where it is, not from the level's best. A
    level at which every score was infinite is not left.
    """
    if score < stage.best:
        return Stage(stage.level, score, 0)
    waited = stage.waited + 1
    if waited >= patience and np.isfinite(stage.best):
        return Stage(stage.level + 1)
    return stage._replace(waited=waited)


class Validator:
    """Runs φ on the same tasks every time, so that its values can be compared along a run.

    Tasks are rescaled as in training, and otherwise without what the experiment adds to them.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        key = jax.random.fold_in(jax.random.key(trainer.experiment.seed), STREAM)
        self._keys = jax.random.split(key, len(trainer.families))
        plain = dataclasses.replace(trainer.experiment, companion=0, min_batch_size=None, bfloat16=0.0)
        self._families = trainer.families if plain == trainer.experiment else build_families(plain)

    def __call__(self, meta_params: MetaParams, prefix: str = "validation") -> tuple[dict[int, float], dict[str, Any]]:
        """(multiple -> score, values by name); lower is better, infinite where half of a family's tasks or more failed.

        The score is `validation/Mx/median` at the multiple M: the median final loss with a failed task counted as
        infinite. With several families it is the geometric mean over them of values relative to a family's f(θ_0), both
        above the bound, and each family's own stand beside it under its name. All names begin with `prefix`.
        """
        settings = self._trainer.experiment.validation
        tasks = self._trainer.experiment.tasks
        per_family = [
            self._run(family, key, meta_params) for family, key in zip(self._families, self._keys, strict=True)
        ]
        row: dict[str, Any] = {}
        scores: dict[int, float] = {}
        for multiple in settings.multiples:
            where = f"{prefix}/{multiple}x"
            values = [results[multiple] for results in per_family]
            if len(values) > 1:
                for task, value in zip(tasks, values, strict=True):
                    row |= {
                        f"{where}/{task}/{name}": number
                        for name, number in value.items()
                        if name not in ("initial", "bound")
                    }
            for name in ("median", "mean"):
                row[f"{where}/{name}"] = _over_families(values, name)
            row[f"{where}/failed"] = float(np.mean([value["failed"] for value in values]))
            if len(values) == 1 and "accuracy" in values[0]:
                row[f"{where}/accuracy"] = values[0]["accuracy"]
            score = row[f"{where}/median"]
            scores[multiple] = score if np.isfinite(score) else float("inf")
        return scores, row

    def score_at(self, horizon: int, meta_params: MetaParams) -> float:
        """The score at any horizon, on the same tasks."""
        values = [
            _values(self._curves(family, key, meta_params, horizon), horizon)
            for family, key in zip(self._families, self._keys, strict=True)
        ]
        score = _over_families(values, "median")
        return score if np.isfinite(score) else float("inf")

    def _run(self, family: TaskFamily, key: jax.Array, meta_params: MetaParams) -> dict[int, dict[str, float]]:
        """multiple -> values, from one run to the longest horizon wherever that recorded the others."""
        experiment = self._trainer.experiment
        multiples = experiment.validation.multiples
        longest = self._curves(family, key, meta_params, multiples[-1] * experiment.horizon)
        results = {}
        for multiple in multiples:
            step = multiple * experiment.horizon
            curves = longest if step in longest.steps else self._curves(family, key, meta_params, step)
            results[multiple] = _values(curves, step)
        return results

    def _curves(self, family: TaskFamily, key: jax.Array, meta_params: MetaParams, horizon: int) -> Curves:
        experiment = self._trainer.experiment
        return evaluate(
            {"learned": (self._trainer.optimizer, meta_params)},
            family,
            key,
            horizon=horizon,
            num_tasks=experiment.validation.num_tasks,
            train_horizon=experiment.horizon,
            num_devices=experiment.num_devices,
            progress=lambda name: None,  # the bar is meta-training's
        )


def _over_families(values: list[dict[str, float]], name: str) -> float:
    if len(values) == 1:
        return values[0][name]
    # Families count alike: each by its loss above its bound, in units of the same at θ_0, and by factors, since an
    # arithmetic mean hears only the hardest.
    shares = np.array([(value[name] - value["bound"]) / (value["initial"] - value["bound"]) for value in values])
    return float(np.exp(np.mean(np.log(np.maximum(shares, 0.0) + FLOOR))))


def _values(curves: Curves, step: int) -> dict[str, float]:
    """Mean, median and share of failures at a recorded step; accuracy on the validation split where the curve ends."""
    upto = int(np.flatnonzero(curves.steps == step)[0]) + 1
    loss = curves.loss["learned"][:, :upto]
    scale = statistics.scale(curves.lower_bound, loss[:, 0], [loss])
    failed = statistics.failed(curves.peak["learned"][:, :upto], scale)
    values = {
        "median": float(statistics.score(loss[:, -1], failed)[1]),
        "mean": float(loss[:, -1].mean()),
        "failed": float(failed.mean()),
        "initial": float(loss[:, 0].mean()),
        "bound": float(np.nan_to_num(curves.lower_bound).mean()),
    }
    accuracy = curves.final["learned"].get("validation", {}).get("accuracy")
    if upto == len(curves.steps) and accuracy is not None:
        values["accuracy"] = float(np.nan_to_num(accuracy, nan=0.0).mean())
    return values
