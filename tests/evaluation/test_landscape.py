"""Paths over landscapes of two parameters: those of the curves; who has none."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.choices import choice
from metaopt.evaluation import evaluate, evaluate_run_on
from metaopt.evaluation.curves import as_optimizer
from metaopt.evaluation.landscape import is_landscape, landscape, level_lines
from metaopt.experiment import build_optimizer
from metaopt.optimizers.noise import with_noise
from metaopt.oracles.gradient import minibatch
from metaopt.tasks import classifier, quadratic
from metaopt.tasks.multimodal import double_well
from tests.toys import noisy_bowl

KEY, STEPS = jax.random.key(4), 30


def test_paths_and_heights_are_those_of_the_first_task() -> None:
    family = double_well(dim=2, shift=0.3, stretch=1.5, rotate=True)
    learned = build_optimizer(choice("lstm", hidden_size=4, num_layers=1))
    phi = learned.init(KEY)
    entries = {"rl": (learned, phi), "noisy": (with_noise(learned), phi),
               "sgd": as_optimizer(optax.sgd(0.01), family)}  # fmt: skip
    curves = evaluate(entries, family, KEY, horizon=STEPS, num_tasks=3)
    seen = landscape(entries, family, KEY, horizon=STEPS, num_tasks=3)
    assert seen is not None and seen["steps"].tolist() == list(range(STEPS + 1))
    task = family.sample(jax.random.split(jax.random.split(KEY, 3)[0], 4)[0], ())
    for name, path in seen["paths"].items():
        losses = jax.vmap(lambda point: family.loss(point, task, ()))(jnp.asarray(path))
        np.testing.assert_allclose(losses, curves.loss[name][0], rtol=2e-3, atol=1e-4)
    assert not np.allclose(seen["paths"]["rl"], seen["paths"]["noisy"])
    height = family.loss(jnp.array([seen["x"][5], seen["y"][40]]), task, ())
    assert seen["loss"][40][5] == pytest.approx(float(height), rel=1e-3)


def test_a_path_that_runs_away_does_not_decide_the_view() -> None:
    family = double_well(dim=2)
    entries = {name: as_optimizer(optax.sgd(rate), family) for name, rate in (("wild", 0.6), ("tame", 0.02))}
    seen = landscape(entries, family, KEY, horizon=STEPS, num_tasks=1)
    assert seen is not None and np.ptp(seen["x"]) < 10


def test_who_has_no_landscape() -> None:
    well = double_well(dim=2)
    assert is_landscape(well) and not is_landscape(dataclasses.replace(well, oracle=minibatch()))
    assert not any(map(is_landscape, (double_well(dim=3), quadratic(), classifier(), noisy_bowl())))
    assert landscape({}, quadratic(), KEY, horizon=1, num_tasks=1) is None


@pytest.mark.parametrize("loss", [np.full((3, 3), np.nan), np.zeros((3, 3))])
def test_a_flat_picture_has_no_two_level_lines_in_one_place(loss: np.ndarray) -> None:
    assert len(level_lines(loss)) <= 1


def test_an_evaluation_keeps_the_paths_of_all_that_ran() -> None:
    how = {"horizon": 4, "num_tasks": 2, "baselines": ("sgd",), "num_tuning_tasks": 2}
    result = evaluate_run_on({"own": optax.adam(0.1)}, choice("double_well", dim=2), **how)
    assert list(result["landscape"]["paths"]) == ["own", "sgd"]
    assert "landscape" not in evaluate_run_on({"own": optax.adam(0.1)}, choice("double_well"), **how)
