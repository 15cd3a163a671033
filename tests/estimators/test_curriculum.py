"""Curricula: whose horizon ends when, the law of drawn horizons, and that nothing else changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metaopt.estimators.curriculum import check_curriculum, log_uniform, stages, with_curriculum
from metaopt.optimizers import sgd
from metaopt.registry import ESTIMATORS
from tests.toys import made, noisy_bowl

K = 2
OPTIMIZER = sgd(learning_rate=0.1)


def make(name, horizon, draw=None, **settings):
    options = dict(num_tasks=4, chunk_size=2, num_devices=1, horizon=horizon, unroll_length=K)
    estimator = made(ESTIMATORS[name], OPTIMIZER, **options, **settings)
    return estimator if draw is None else with_curriculum(estimator, draw, longest=horizon, unroll_length=K)


def run(estimator, meta_steps, level=lambda step: 0, seed=0):
    """Rows of (gradient, [chunks] steps done after the window, horizon metric) and how often it was traced."""
    meta_params = OPTIMIZER.init(jax.random.key(0))
    families = (noisy_bowl(),)
    traces = []

    def estimate(key, state):
        traces.append(1)
        return estimator.estimate(key, meta_params, state, families)

    state, step, rows = estimator.init(jax.random.key(1), meta_params, families), jax.jit(estimate), []
    for index in range(meta_steps):
        if hasattr(state, "level"):
            state = state._replace(level=jnp.int32(level(index)))
        gradient, state, metrics = step(jax.random.fold_in(jax.random.key(seed), index), state)
        carried = state.carried if hasattr(state, "level") else state
        ages = np.asarray(carried[0].run.state.step).reshape(-1, 2)[:, 0]
        rows.append((np.asarray(gradient["learning_rate"]), ages, metrics.get("horizon")))
    return rows, len(traces)


@pytest.mark.parametrize("name", ["truncated_backprop", "persistent_evolution_strategies"])
def test_one_level_is_that_horizon_to_the_bit(name):
    plain, _ = run(make(name, 3 * K), 8)
    settled, _ = run(make(name, 10 * K, stages([3 * K, 10 * K])), 8)
    for (a, ages, _), (b, other, horizon) in zip(plain, settled, strict=True):
        assert a == b and (ages == other).all() and horizon == 3 * K


def test_stages_end_runs_at_the_levels_horizon_without_another_compilation():
    rows, traces = run(make("truncated_backprop", 4 * K, stages([K, 2 * K, 4 * K])), 14, level=lambda step: step // 4)
    assert traces == 1
    windows = [int(ages[0]) // K for _, ages, _ in rows]
    # A run keeps the horizon it began with, and level 3 is the last one still.
    assert windows == [1, 1, 1, 1, 1, 2, 1, 2, 1, 2, 3, 4, 1, 2]
    horizons = [int(horizon) // K for *_, horizon in rows]
    assert horizons == [1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("power", [0.0, 1.0, 1.000001, 1.5, 2.0])
def test_law_of_log_uniform_horizons(power):
    draw, n = log_uniform(2 * K, 9 * K, K, power), 20_000
    horizons = np.asarray(jax.vmap(draw, in_axes=(0, None))(jax.random.split(jax.random.key(0), n), jnp.int32(0)))
    windows = np.arange(2.0, 10.0)
    law = np.log if abs(power - 1) < 1e-3 else lambda x: x ** (1 - power) / (1 - power)
    expected = n * (law(windows + 1) - law(windows)) / (law(10) - law(2))
    counts = np.asarray([(horizons == K * w).sum() for w in windows])
    assert counts.sum() == n
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4


def test_log_uniform_runs_end_at_their_own_horizons():
    rows, traces = run(make("truncated_backprop", 4 * K, log_uniform(K, 4 * K, K)), 300)
    assert traces == 1
    lives = []
    for chunk in range(2):
        ages = np.asarray([row[1][chunk] // K for row in rows])
        lives.append(ages[:-1][np.diff(ages) <= 0])
        assert set(lives[-1]) == {1, 2, 3, 4} and (ages >= 1).all()
    assert not np.array_equal(lives[0][:20], lives[1][:20])  # each chunk draws for itself
    seen, law = np.concatenate(lives), np.log1p(1 / np.arange(1, 5)) / np.log(5)
    for windows, share in zip(range(1, 5), law, strict=True):
        assert abs((seen == windows).mean() - share) < 4 * np.sqrt(share * (1 - share) / seen.size)


def test_staggered_chunks_are_spread_over_their_first_horizons():
    estimator = make("truncated_backprop", 8 * K, stages([2 * K, 8 * K]), staggered=True)
    rows, _ = run(estimator, 3)
    assert [list(ages // K) for _, ages, _ in rows] == [[1, 2], [2, 1], [1, 2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("fixed", (10,), None, 100, 100), "one window is the whole `horizon`"),
        (("log_uniform", (), None, 100, 100), "set `unroll_length`"),
        (("fixed", (), None, 100, 10), "set `curriculum.horizons` to multiples of `unroll_length` .10."),
        (("fixed", (50, 20), None, 100, 10), "rising multiples of `unroll_length` .10. up to `horizon` .100."),
        (("validation", (15,), None, 100, 10), "`curriculum.horizons` .15. must be rising multiples"),
        (("validation", (20, 200), None, 100, 10), "up to `horizon` .100."),
        (("fixed", (20,), 10, 100, 10), "`curriculum.shortest` is for log_uniform"),
        (("log_uniform", (20,), None, 100, 10), "log_uniform has `curriculum.shortest`"),
        (("log_uniform", (), 15, 100, 10), "`curriculum.shortest` .15. must be one of the multiples"),
        (("none", (20,), None, 100, 10), "no kind"),
    ],
)
def test_curricula_that_do_not_fit_are_refused(settings, message):
    kind, horizons, shortest, longest, window = settings
    with pytest.raises(ValueError, match=message):
        check_curriculum(kind, horizons, shortest, longest=longest, unroll_length=window)


@pytest.mark.parametrize(
    ("kind", "power"), [("fixed", 2.0), ("none", 2.0), ("log_uniform", 60.0), ("log_uniform", -1.0)]
)
def test_a_power_that_serves_nothing_is_refused(kind, power):
    with pytest.raises(ValueError, match=r"`curriculum.power` \("):
        check_curriculum(kind, (), None, longest=100, unroll_length=10, power=power)


def test_the_longest_horizon_is_the_last_level_named_or_not():
    for named in ((20, 50), (20, 50, 100)):
        assert check_curriculum("fixed", named, None, longest=100, unroll_length=10) == (20, 50, 100)
    assert check_curriculum("log_uniform", (), 20, longest=100, unroll_length=10) == ()
