"""Schedules against sequences computed by hand, and who is told the horizon."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.choices import choice
from metaopt.errors import MetaoptWarning, UserError
from metaopt.evaluation import outcomes
from metaopt.evaluation.recording import plan
from metaopt.experiment import build_optimizer, optimizer_of
from metaopt.optimizers import adam, nadamw_calibrated, sgd
from metaopt.registry import OPTIMIZERS
from tests.evaluation.test_tuning import KEY, parabola
from tests.toys import TINY

T = np.arange(8)
COSINE = (1 + np.cos(np.pi * np.minimum(T, 6) / 6)) / 2  # over six steps
RATES: dict[str, tuple[dict[str, Any], Any]] = {
    "constant": ({}, 0 * T + 1.0),
    "power": (dict(power=0.5), 1 / np.sqrt(T + 1)),
    "step": (dict(every=3, factor=0.5), [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),  # torch.optim.lr_scheduler.StepLR(3, .5)
    "step over the run": (dict(schedule="step", steps=6), [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
    "step over a run of no whole thirds": (dict(schedule="step", steps=7), [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]),
    "exponential": (dict(every=1, factor=0.9), 0.9**T),  # ExponentialLR(.9)
    "exponential over the run": (dict(schedule="exponential", steps=6, factor=0.5), 0.5 ** (T / 2)),
    "cosine": (dict(steps=6), COSINE),
    "cosine to": (dict(schedule="cosine", steps=6, final=0.2), 0.2 + 0.8 * COSINE),  # CosineAnnealingLR(6, .2 α)
    "linear": (dict(steps=5, final=0.5), [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5]),  # LinearLR(1, .5, 5)
    "warmup_cosine": (
        dict(steps=6, warmup=0.34),
        [0, 0.5, *(1 + np.cos(np.pi * np.array([0, 1, 2, 3, 4, 4]) / 4)) / 2],
    ),
}


def rates(optimizer: Any, values: Any = None, phi: Any = None) -> np.ndarray:
    tx = optimizer.bind(optimizer.init(KEY) if phi is None else phi)
    values = jnp.ones(len(T)) if values is None else jnp.asarray(values, jnp.float32)

    @jax.jit
    def run(values: Any) -> Any:
        def body(state: Any, value: Any) -> Any:
            update, state = tx.update(jnp.float32(-1.0), state, jnp.float32(0.0), value=value)
            return state, update

        return jax.lax.scan(body, tx.init(jnp.float32(0.0)), values)[1]

    return np.asarray(run(values)) / 0.3


@pytest.mark.parametrize("name", RATES)
def test_rates_equal_those_by_hand(name: str) -> None:
    options, expected = RATES[name]
    optimizer = sgd(learning_rate=0.3, **{"schedule": name, **options})
    np.testing.assert_allclose(rates(optimizer), expected, rtol=1e-5, atol=1e-7)


def test_knots_are_a_curve_of_log_rate_in_phi() -> None:
    optimizer = sgd(learning_rate=0.3, schedule="knots", knots=3, steps=4)
    np.testing.assert_allclose(rates(optimizer), np.ones(8), rtol=1e-5)
    phi = {**optimizer.init(KEY), "knots": jnp.array([0.0, 2.0, -1.0])}
    np.testing.assert_allclose(np.log(rates(optimizer, phi=phi)), [0, 1, 2, 0.5, -1, -1, -1, -1], atol=1e-5)


def test_plateau_is_torchs() -> None:
    values = [3.0, 2.0, 2.0, 2.1, 1.99995, 1.0, 1.5, 1.5]  # by less than 1e-4 of the best is no better
    scale, best, bad, expected = 1.0, np.inf, 0, []
    for value in values:  # torch.optim.lr_scheduler.ReduceLROnPlateau(factor=.5, patience=2).step(value)
        best, bad = (value, 0) if value < best * (1 - 1e-4) else (best, bad + 1)
        if bad > 2:
            scale, bad = scale * 0.5, 0
        expected.append(scale)
    assert expected == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    optimizer = sgd(learning_rate=0.3, schedule="plateau", factor=0.5, patience=2)
    assert optimizer.needs_value and not optimizer.knows_horizon
    np.testing.assert_allclose(rates(optimizer, values), expected, rtol=1e-5)
    tx = optimizer.bind(optimizer.init(KEY))
    with pytest.raises(ValueError, match=r"sgd needs the loss of each step; call update\(..., value=loss\)"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_who_goes_by_the_length_of_the_run_has_to_know_it() -> None:
    assert not sgd().knows_horizon and not sgd(schedule="step", every=2).knows_horizon
    optimizer = adam(schedule="cosine")
    assert optimizer.knows_horizon and nadamw_calibrated().knows_horizon
    tx = optimizer.bind(optimizer.init(KEY))
    with pytest.raises(UserError, match="adam: schedule=cosine goes by the length of the run.*write steps=N"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    told = optimizer.at_horizon(8)
    assert told is optimizer.at_horizon(8) is optimizer.at_horizon(7).at_horizon(8)  # what is compiled hangs on it
    assert told.knows_horizon and hash(told) != hash(optimizer.at_horizon(7))


def test_evaluation_tells_the_horizon_and_training_its_own() -> None:
    picked = choice("sgd", schedule="linear", learning_rate=0.1)
    optimizer = build_optimizer(picked)
    family = parabola(2.0)
    for horizon in (5, 10):
        found = outcomes.run(optimizer, optimizer.init(KEY), family, KEY, steps=plan(family, horizon), num_tasks=2)
        factor = np.prod(1 - 2 * 0.1 * (1 - np.arange(horizon) / horizon))
        np.testing.assert_allclose(found.loss[:, -1] / found.loss[:, 0], factor**2, rtol=1e-4)
    experiment = dataclasses.replace(TINY, optimizer=picked, horizon=5)
    assert optimizer_of(experiment) is optimizer.at_horizon(5)


@pytest.mark.parametrize("name", ["langevin", "inertial_langevin", "simulated_annealing"])
def test_temperatures_fall_within_the_run_that_is_told(name: str) -> None:
    falls = {"schedule": "linear", "temperature": 1.0, "end": 0.0, "learning_rate": 0.1}
    optimizer, ends = OPTIMIZERS[name](**falls), OPTIMIZERS[name](**falls, steps=6)
    assert optimizer.knows_horizon and optimizer.at_horizon(6) is optimizer.at_horizon(6)
    assert ends.at_horizon(2**31 - 1) is ends and not OPTIMIZERS[name](schedule="log").knows_horizon
    phi, x, slope = optimizer.init(KEY), jnp.ones(2), jnp.zeros(2)
    moved = []
    for told in (optimizer.at_horizon(6), ends):
        tx = told.bind(phi)
        state, steps = tx.init(x), []
        for i in range(8):
            step, state = tx.update(slope, state, x, key=jax.random.key(i))
            steps.append(step)
        moved.append(jnp.stack(steps))
    np.testing.assert_array_equal(*moved)
    untold = optimizer.bind(phi)
    with pytest.raises(UserError, match=f"{name}: schedule=linear goes by the length of the run.*write steps=N"):
        untold.update(slope, untold.init(x), x, key=KEY)
    with pytest.warns(MetaoptWarning, match=f"{name}: schedule=linear lasts 6 steps and the run 4"):
        ends.at_horizon(4)


def test_a_schedule_longer_than_the_run_is_told() -> None:
    optimizer = sgd(schedule="cosine", steps=20)
    with pytest.warns(MetaoptWarning, match="sgd: schedule=cosine lasts 20 steps and the run 10, so that it"):
        assert optimizer.at_horizon(10) is optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optimizer.at_horizon(40) is optimizer
