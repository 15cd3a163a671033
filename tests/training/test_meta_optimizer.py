"""Running averages and the clipping that goes by them, against loops in numpy."""

from __future__ import annotations

from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.experiment import MetaOptimizer
from metaopt.training.meta_optimizer import clip_adaptively, follows_length, moving_average


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_is_the_weighted_mean_of_all_values(decay):
    values = np.random.default_rng(0).normal(size=(30, 4))
    mean = jnp.full(4, 17.0)  # does not matter
    for count, value in enumerate(values, start=1):
        mean = jax.jit(moving_average, static_argnums=3)(mean, jnp.asarray(value, jnp.float32), jnp.int32(count), decay)
        weights = decay ** np.arange(count - 1, -1, -1.0)
        np.testing.assert_allclose(mean, weights @ values[:count] / weights.sum(), rtol=1e-5, atol=1e-6)


def test_adaptive_clipping_equals_the_loop():
    gradients = np.random.default_rng(1).normal(size=(40, 5)) * np.exp(np.linspace(0, 2, 40))[:, None]
    gradients[[7, 20]] *= 1e6
    multiple, decay = 2.0, 0.9
    tx = clip_adaptively(multiple, decay)
    state, norms, clipped = tx.init(jnp.zeros(5)), [], []
    for gradient in gradients:
        norm, limit = np.linalg.norm(gradient), np.inf
        if norms:
            weights = decay ** np.arange(len(norms) - 1, -1, -1.0)
            limit = multiple * weights @ np.asarray(norms) / weights.sum()
        norms.append(min(norm, limit))
        clipped.append(norm > limit)
        updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state)
        np.testing.assert_allclose(updates, gradient * min(1.0, limit / norm), rtol=1e-4)
        if norm <= limit:
            np.testing.assert_array_equal(updates, gradient.astype(np.float32))  # to the bit
    assert clipped[7] and clipped[20] and 2 <= sum(clipped) < 15
    assert isinstance(tx, optax.GradientTransformation)


def test_gradients_of_zero_do_not_hold_the_later_ones_at_zero():
    tx = clip_adaptively(3.0)
    state = tx.init(jnp.zeros(2))
    for norm, wanted in ((0.0, 0.0), (0.0, 0.0), (2.0, 2.0), (50.0, 3 * (0.99 * 0 + 2.0) / (1 + 0.99 + 0.99**2))):
        updates, state = tx.update(jnp.array([norm, 0.0]), state)
        np.testing.assert_allclose(updates, [wanted, 0.0], rtol=1e-5)


@pytest.mark.parametrize("multiple", [1.0, 0.5, -2.0, float("nan"), float("inf")])
def test_a_multiple_that_drives_the_average_to_zero_is_refused(multiple):
    with pytest.raises(ValueError, match="must be above 1; try 3"):
        clip_adaptively(multiple)


def test_whose_steps_follow_the_gradients_length() -> None:
    names = get_args(get_type_hints(MetaOptimizer)["name"])
    assert {name for name in names if follows_length(MetaOptimizer(name=name))} == {"sgd"}
