"""When a curriculum goes on, and what validation leaves out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import pytest

from metaopt.choices import choice
from metaopt.evaluation import evaluate
from metaopt.experiment import Experiment, Validation
from metaopt.registry import TASKS
from metaopt.training.trainer import Trainer
from metaopt.training.validation import STREAM, Stage, Validator, after_validation
from tests.evaluation.test_protocol import OFFSETS, told_apart


def levels(scores: list[float], patience: int) -> list[int]:
    stage, seen = Stage(), []
    for score in scores:
        stage = after_validation(stage, score, patience)
        seen.append(stage.level)
    return seen


def test_the_level_rises_when_so_many_validations_in_a_row_were_no_better() -> None:
    scores = [5.0, 4.0, 4.0, 3.9, 4.5, 4.2, 9.0, 8.0, 8.5, 7.0, 7.0, 7.1]
    #         best best  1   best  1   up   best best  1   best  1   up
    assert levels(scores, 2) == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2]
    assert levels(scores[:4], 1) == [0, 0, 1, 1]


def test_a_level_at_which_most_tasks_fail_is_not_left() -> None:
    inf = math.inf
    assert levels([inf, inf, inf, 2.0, inf, inf, inf, 1.0, 1.0, 1.0], 2) == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert levels([inf] * 5, 1) == [0] * 5


def test_a_validation_looks_at_no_test_data(tiny: Experiment, register: Callable[..., None]) -> None:
    register(TASKS, "told_apart", told_apart)
    experiment = dataclasses.replace(tiny, tasks=(choice("told_apart"),), optimizer=choice("sgd", learning_rate=0.25))
    trainer = Trainer(experiment)
    row = Validator(trainer)(trainer.optimizer.init(jax.random.key(0)))[1]
    assert row["validation/2x/accuracy"] == pytest.approx(OFFSETS["validation"] / 1000)
    assert row["validation/2x/median"] < 1  # by the loss that is descended, on the data of training


def test_validation_is_the_same_with_augmentations_that_belong_to_training(tiny: Experiment) -> None:
    plain = Trainer(tiny)
    augmented = Trainer(dataclasses.replace(tiny, companion=3, bfloat16=1.0))
    meta_params = plain.optimizer.init(jax.random.key(0))
    score, row = Validator(plain)(meta_params)
    other, same = Validator(augmented)(meta_params, "validation_ema")
    assert score == other and score[tiny.validation.multiples[-1]] == row["validation/2x/median"]
    assert [*same] == [name.replace("validation/", "validation_ema/") for name in row]
    assert [*same.values()] == [*row.values()]
    assert Validator(plain).score_at(tiny.horizon * 2, meta_params) == row["validation/2x/median"]


def test_of_several_families_the_score_is_the_geometric_mean_of_their_shares(tiny: Experiment) -> None:
    families = (choice("quadratic", dim=2), choice("rosenbrock", pairs=1))
    trainer = Trainer(dataclasses.replace(tiny, tasks=families, num_tasks=2, validation=Validation(1, 3, (1, 2))))
    phi = trainer.optimizer.init(jax.random.key(0))
    scores, row = Validator(trainer)(phi)
    for multiple in (1, 2):
        shares = []
        for index, task in enumerate(families):  # both losses have the bound 0
            key = jax.random.split(jax.random.fold_in(jax.random.key(trainer.experiment.seed), STREAM), 2)[index]
            curves = evaluate(
                {"learned": (trainer.optimizer, phi)},
                trainer.families[index],
                key,
                horizon=multiple * tiny.horizon,
                num_tasks=3,
            )
            shares.append(row[f"validation/{multiple}x/{task}/median"] / curves.loss["learned"][:, 0].mean())
        assert scores[multiple] == pytest.approx(math.sqrt((shares[0] + 1e-6) * (shares[1] + 1e-6)), rel=1e-5)
