"""Meta-objectives by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.objectives import OBJECTIVES, SCALE_FREE
from metaopt.types import Trace

LOSS = np.asarray([[3.0, 0.5], [1.0, 0.25], [0.5, 1e-20]], np.float32)  # [length, tasks]
START = np.asarray([4.0, 1.0], np.float32)
BY_HAND = {
    "mean": [1.5, 0.25],
    "last": [0.5, 1e-20],
    "log": [np.log(1.5) / 3, (np.log(0.125) + np.log(1e-12)) / 3],
    "relative": [0.375, 0.25],
}


def trace(loss):
    alive = jnp.ones(loss.shape, bool)
    return Trace(loss, alive, jnp.zeros(loss.shape), jnp.asarray(START) * loss[0] / LOSS[0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_and_who_is_free_of_scale(name):
    objective, loss = OBJECTIVES[name], jnp.asarray(LOSS)
    np.testing.assert_allclose(objective(trace(loss)), BY_HAND[name], rtol=1e-6)
    # The gradient in a common scale of all losses, f(θ_0) included, of the task whose losses all count.
    slope = jax.grad(lambda log_scale: objective(trace(jnp.exp(log_scale) * loss))[0])(0.0)
    assert slope == pytest.approx({"log": 1.0, "relative": 0.0}.get(name, BY_HAND[name][0]), abs=1e-6)
    assert (objective in SCALE_FREE) == (name in ("log", "relative"))
