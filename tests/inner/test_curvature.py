"""Curvature at the starts, and the warning of steps that are too long for it."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.errors import MetaoptWarning
from metaopt.evaluation import evaluate
from metaopt.inner.curvature import largest_curvature, warn_of_long_steps
from metaopt.registry import OPTIMIZERS
from metaopt.types import TaskFamily

KEY = jax.random.key(2)
CURVATURES = np.array([0.5, 8.0, 3.0])


def bowl() -> TaskFamily:
    """½ Σ h_i x_i², the steepest direction across the axes."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    matrix = jnp.asarray(turn @ np.diag(CURVATURES) @ turn.T, jnp.float32)
    return TaskFamily(
        data=(),
        sample=lambda key, data: (),
        init=lambda key, task: {"x": jax.random.normal(key, (3,))},
        batch=lambda key, task, data: (),
        loss=lambda params, task, batch: 0.5 * params["x"] @ matrix @ params["x"],
        eval_batch=lambda task, data, split: (),
        name="bowl",
    )


def test_the_largest_eigenvalue_and_the_rate_at_which_steps_grow() -> None:
    family = bowl()
    np.testing.assert_allclose(largest_curvature(family, KEY), 8.0, rtol=1e-4)
    for name in ("sgd", "langevin"):
        cold = {"temperature": 0.0} if name == "langevin" else {}
        for rate, grows in ((0.24, False), (0.26, True)):
            optimizer = OPTIMIZERS[name](learning_rate=rate, **cold)
            entry = {"mine": (optimizer, optimizer.init(KEY))}
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                found = evaluate(entry, family, KEY, horizon=200, num_tasks=2)
                evaluate(entry, family, KEY, horizon=1, num_tasks=2, searched=("mine",))
            assert (found.loss["mine"][:, -1] > found.loss["mine"][:, 0]).all() == grows
            lines = [str(each.message) for each in told if each.category is MetaoptWarning]
            assert len(lines) == grows
            if grows:
                assert lines[0].startswith(f"mine: a learning rate of {rate} times the curvature of bowl, 8 at the")
                assert lines[0].endswith("above 2 steps grow along the steepest direction. Take a rate below 0.25.")


def test_it_is_asked_of_none_but_those_that_state_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt.inner.curvature.largest_curvature", lambda *_: pytest.fail("not needed"))
    for name in ("adam", "preconditioned_sgld", "inertial_langevin", "lstm"):
        optimizer = OPTIMIZERS[name]()
        warn_of_long_steps(name, optimizer, optimizer.init(KEY), bowl(), KEY)
