"""The experiment's own runs: the same tasks begun anew, grids of settings, what counts as best."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.multimodal import arms, measure
from metaopt.choices import parse_choice
from metaopt.experiment import build_family, build_optimizer
from metaopt.types import Trace

KEY = jax.random.key(0)


def test_runs_begun_anew_are_of_the_same_tasks_from_other_starts() -> None:
    family = build_family(arms.family("ackley", 2))
    rows = [(0.01, 0.0, 1.0, 0.0), (0.01, 1.0, 1e-3, 1.0)]
    how = {"grid": measure.as_phi(rows), "family": family, "key": KEY, "tasks": 5, "steps": 200}
    once, anew = (measure.measure(measure.dynamics(200), **how, anew=which) for which in (False, True))
    assert once.found.shape == once.gap.shape == (2, 2, 5)
    np.testing.assert_allclose(once.gap[0], anew.gap[0], rtol=1e-5)  # the first run of each
    assert (once.gap[1][0] <= once.gap[0][0] + 1e-6).all()  # descent goes on falling
    assert np.isclose(anew.gap[1], anew.gap[0]).mean() < 0.5  # two may end in one minimum
    best = measure.best_of(anew)
    np.testing.assert_array_equal(best.gap, anew.gap.min(axis=0))
    # By hand: plain descent on the first task.
    streams = jax.random.split(jax.random.split(KEY, 5)[0], 4)
    task = family.sample(streams[0], ())
    x = start = family.init(jax.random.fold_in(streams[1], 0), task)
    slope = jax.grad(family.loss)
    x = jax.lax.fori_loop(0, 100, lambda _, x: x - 0.01 * slope(x, task, ()), x)
    assert once.gap[0][0][0] == pytest.approx(float(family.loss(x, task, ()) / family.loss(start, task, ())), rel=1e-3)


def test_the_meta_objective_is_where_a_run_comes_to_rest() -> None:
    loss = jnp.linspace(10.0, 1.0, 10)[:, None] - 2.0
    known = jnp.ones_like(loss)
    trace = Trace(loss, known > 0, known, initial_loss=jnp.array([8.0]), lower_bound=jnp.array([-2.0]))
    ends = np.log(np.arange(5, 0, -1) / 10 + 1e-3).mean()
    assert float(arms.log_end()(trace)[0]) == pytest.approx(ends, rel=1e-5)


@pytest.mark.parametrize("arm", arms.ARMS)
def test_what_is_committed_can_be_loaded(arm: str) -> None:
    phi, logs = arms.trained(arm)
    assert len(phi) == len(logs) == len(arms.SEEDS) and all(log[-1]["meta_step"] == arms.ARMS[arm][2] for log in logs)
    assert build_optimizer(parse_choice(str(arms.ARMS[arm][0]))).explores == (
        arms.ARMS[arm][0].options["noise"] != "none"
    )
