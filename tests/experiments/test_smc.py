"""The comparison of particle oracles: how runs are judged, and that its page is what its figures say."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.smc import mixtures
from experiments.smc.page import HERE, page


def test_means_over_the_last_points() -> None:
    values = np.arange(10.0)[:, None] ** 2
    expected = [values[max(0, i + 1 - mixtures.WINDOW) : i + 1].mean() for i in range(10)]
    np.testing.assert_allclose(mixtures.trailing(values)[:, 0], expected)


@pytest.mark.parametrize(
    ("good", "step"),
    [("1111", 5), ("0111", 10), ("1101", 20), ("1110", np.inf)],
)
def test_settled_is_for_good(good: str, step: float) -> None:
    assert mixtures.settled(np.array([5, 10, 15, 20]), np.array([c == "1" for c in good])) == step


def test_particles_say_their_mean_reward_and_nothing_else_changes() -> None:
    """The slope in `said` is the weighted mean reward; that in θ is the law's own."""
    row = mixtures.ROWS[f"dual, smooth, {mixtures.FORWARD}"]
    family = row.family
    speaks = mixtures.speaking(family, lambda task, x: x[0] ** 2)
    task = family.sample(jax.random.key(0), ())
    x, weights = jax.random.normal(jax.random.key(1), (6, 2)), jax.nn.softmax(jnp.arange(6.0))
    theta = jnp.array([0.3, -0.2])
    assert speaks.law is not None and family.law is not None
    slope = jax.grad(speaks.law.surrogate)({"theta": theta, "said": jnp.float32(0)}, task, x, weights, ())
    np.testing.assert_allclose(slope["said"], weights @ x[:, 0] ** 2, rtol=1e-6)
    np.testing.assert_array_equal(slope["theta"], jax.grad(family.law.surrogate)(theta, task, x, weights, ()))


def test_the_page_is_what_the_figures_say() -> None:
    record = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    assert page(record) == Path(HERE / "README.md").read_text(encoding="utf-8")
