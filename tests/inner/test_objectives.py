"""Meta-objectives by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.registry import OBJECTIVES
from metaopt.types import Trace

LOSS = np.asarray([[3.0, 0.5], [1.0, 0.25], [0.5, 1e-20]], np.float32)  # [length, tasks]
START = np.asarray([4.0, 1.0], np.float32)
BY_HAND = {
    "mean": [1.5, 0.25],
    "last": [0.5, 1e-20],
    "log": [np.log(1.5) / 3, (np.log(0.125) + np.log(1e-12)) / 3],
    "relative": [0.375, 0.25],
    "log_relative": np.mean(np.log(LOSS / START + 1e-5), axis=0),
}


def trace(loss, bound=0.0):
    alive, start = jnp.ones(loss.shape, bool), jnp.asarray(START) * loss[0] / LOSS[0]
    return Trace(loss + bound, alive, jnp.zeros(loss.shape), start + bound, jnp.full(2, bound))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_and_who_is_free_of_scale(name):
    objective, loss = OBJECTIVES[name](), jnp.asarray(LOSS)
    np.testing.assert_allclose(objective(trace(loss)), BY_HAND[name], rtol=1e-6)
    # The gradient in a common scale of all losses, f(θ_0) included, of the task whose losses all count.
    slope = jax.grad(lambda log_scale: objective(trace(jnp.exp(log_scale) * loss))[0])(0.0)
    assert slope == pytest.approx(
        {"log": 1.0, "relative": 0.0, "log_relative": 0.0}.get(name, BY_HAND[name][0]), abs=1e-6
    )
    assert OBJECTIVES.traits(name).scale_free == OBJECTIVES.traits(name).positive == (name not in ("mean", "last"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_shift_of_the_loss_and_its_bound_is_the_objectives_own_or_nothing(name):
    objective = OBJECTIVES[name]()
    for bound in (50.0, -50.0):
        shifted = objective(trace(jnp.asarray(LOSS[:, :1]), bound))[0]
        expected = BY_HAND[name][0] + (0.0 if OBJECTIVES.traits(name).positive else bound)
        np.testing.assert_allclose(shifted, expected, atol=2e-5)


def test_a_floor_bounds_what_a_lower_loss_gains():
    objective, loss = OBJECTIVES["log_relative"](floor=0.01), jnp.asarray(LOSS)
    wanted = np.mean(np.log(LOSS / START + 0.01), axis=0)
    np.testing.assert_allclose(objective(trace(loss)), wanted, rtol=1e-5)
    slopes = jax.grad(lambda log_loss: jnp.sum(objective(trace(loss)._replace(loss=jnp.exp(log_loss)))))(jnp.log(loss))
    np.testing.assert_allclose(slopes, LOSS / START / (LOSS / START + 0.01) / 3, rtol=1e-4)
    for floor in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            OBJECTIVES["log_relative"](floor=floor)
