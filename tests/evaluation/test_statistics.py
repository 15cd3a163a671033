"""Statistics against values worked out by hand, and the bootstrap's coverage by simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from metaopt.evaluation import statistics

INF = np.inf
STEPS = np.arange(0, 101, 10)  # 11 points, horizon 100


def curve(*values: float) -> np.ndarray:
    assert len(values) == len(STEPS)
    return np.array([values], float)


def positive(tasks: int = 1, initial: float = 1.0) -> statistics.Scale:
    """Losses whose bound is 0."""
    return statistics.scale(np.zeros(tasks), np.full(tasks, initial), [])


def unbounded(loss: np.ndarray) -> statistics.Scale:
    return statistics.scale(np.full(len(loss), np.nan), loss[:, 0], [loss])


def test_failed_at_more_than_ten_times_the_first_loss_or_not_finite() -> None:
    loss = np.array([[1, 10, 1], [1, 10.1, 1], [1, 1, INF], [1, np.nan, 1], [0.5, 5.1, 0.1]])
    bounded = statistics.scale(np.zeros(5), loss[:, 0], [])
    assert statistics.failed(loss, bounded).tolist() == [False, True, True, True, True]
    for shift in (50.0, -50.0):
        moved = statistics.scale(np.full(5, shift), loss[:, 0] + shift, [])
        assert statistics.failed(loss + shift, moved).tolist() == [False, True, True, True, True]


def test_without_a_bound_a_rise_counts_in_units_of_the_largest_fall_of_any_run() -> None:
    loss = np.array([[0.0, -1.0, 8.9], [0.0, -1.0, 9.1], [0.0, 0.0, 1e9], [0.0, 1.0, INF], [-5.0, -6.0, -7.0]])
    own = unbounded(loss)
    assert own.unit.tolist()[:2] == [1.0, 1.0] and np.isnan(own.unit[2]) and np.isnan(own.bound).all()
    # Where nothing ever fell, only what is not finite counts.
    assert statistics.failed(loss, own).tolist() == [False, True, False, True, False]
    other = loss.copy()
    other[1, 2] = -2.0  # another optimizer fell twice as far there
    both = statistics.scale(np.full(5, np.nan), loss[:, 0], [loss, other])
    assert statistics.failed(loss, both).tolist() == [False, False, False, True, False]
    # A loss that begins at or below its stated bound has none.
    below = statistics.scale(np.ones(5), loss[:, 0], [loss])
    assert (
        np.isnan(below.bound).all() and statistics.failed(loss, below).tolist() == statistics.failed(loss, own).tolist()
    )


def test_rises_and_comparisons_without_a_bound() -> None:
    loss = np.concatenate([curve(5, 1, 1, 1, 1, 1, 1, 1, 1, 1, tail) for tail in (1.39, 1.41)]) - 20
    rises = statistics.rises(loss, STEPS, 10, unbounded(loss))
    assert rises is not None and rises.tolist() == [False, True]  # by a tenth of the fall of 4
    shares = statistics.paired_difference(np.array([-18.0, -19.0]), np.array([-20.0, -19.0]), unbounded(loss))
    assert shares["mean"] == pytest.approx(0.25) and shares["median"] == pytest.approx(0.25)


def test_what_is_nothing_in_ratios_does_not_rise() -> None:
    loss = np.array([[1.0, 1e-12, 3e-12], [1.0, 1e-6, 1e-5], [1.0, -1e-9, 1e-9]])  # below a bound by rounding, too
    rises = statistics.rises(loss, np.array([0, 10, 100]), 10, positive(3))
    assert rises is not None and rises.tolist() == [False, True, False]


def test_rises_compares_the_last_twentieth_with_twice_the_training_horizon() -> None:
    loss = np.concatenate([curve(5, 1, 1, 1, 1, 1, 1, 1, 1, 9, tail) for tail in (2.0, 2.1, 0.5, INF)])
    loss = np.concatenate([loss, curve(5, INF, INF, INF, INF, INF, INF, INF, INF, INF, INF)])
    # A run that is dead at the training horizon already has not risen since.
    rises = statistics.rises(loss, STEPS, 10, positive(len(loss), 5.0))
    assert rises is not None and rises.tolist() == [False, True, False, True, False]
    steps = np.arange(101)  # with every step recorded the tail is steps 96 to 100
    loss = np.ones((1, 101))
    loss[0, 96:] = [1, 1, 1, 1, 6.1]
    rises = statistics.rises(loss, steps, 10, positive())
    assert rises is not None and rises.tolist() == [True]
    loss[0, 100] = 5.9
    rises = statistics.rises(loss, steps, 10, positive())
    assert rises is not None and rises.tolist() == [False]


def test_keeps_improving_compares_ten_times_the_training_horizon() -> None:
    loss = np.concatenate([curve(5, 1, 2, 2, 2, 2, 2, 2, 2, 2, end) for end in (0.9, 1.0, INF)])
    improving = statistics.keeps_improving(loss, STEPS, 10)
    assert improving is not None and improving.tolist() == [True, False, False]
    assert statistics.improving_step(100, 10) == 100
    assert statistics.improving_step(100, 20) == 100  # a curve shorter than 10 T: its end
    assert statistics.improving_step(500, 20) == 200


@pytest.mark.parametrize("train_horizon", [None, 100, 200])
def test_words_about_what_lies_beyond_training_are_null_where_nothing_does(train_horizon: int | None) -> None:
    loss = np.ones((2, 11))
    assert statistics.rises(loss, STEPS, train_horizon, positive(2)) is None
    assert statistics.keeps_improving(loss, STEPS, train_horizon) is None


def test_a_step_that_was_not_recorded_is_refused() -> None:
    with pytest.raises(ValueError, match="train_horizon=15"):
        statistics.at_step(np.ones((1, 11)), STEPS, 15)


def test_quantiles_equal_numpys_and_stand_infinities() -> None:
    values = np.random.default_rng(0).normal(size=(23, 4))
    for q in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        np.testing.assert_allclose(statistics.quantile(values, q), np.quantile(values, q, axis=0), rtol=1e-12)
    some = np.array([1.0, 2.0, 3.0, 4.0, INF])
    assert statistics.quantile(some, 0.25) == 2.0
    assert statistics.quantile(some, 0.75) == 4.0
    assert statistics.quantile(some, 0.9) == INF
    assert statistics.quantile(np.array([INF, INF, INF]), 0.4) == INF


def test_summary_by_hand() -> None:
    summary = statistics.summary(np.array([1.0, 2.0, 3.0, 10.0]))
    assert (summary["mean"], summary["median"], summary["q25"], summary["q75"]) == (4.0, 2.5, 1.75, 4.75)
    assert summary["mean_interval"] is None  # of so heavy a tail
    low, high = statistics.summary(np.array([1.0, 2.0, 3.0, 4.0]))["mean_interval"]
    assert (low, high) == pytest.approx((2.5 - 3.1824 * 0.6455, 2.5 + 3.1824 * 0.6455), rel=1e-4)
    same = statistics.summary(np.full(7, 3.0))
    assert same["mean_interval"] == [3.0, 3.0]
    lost = statistics.summary(np.array([1.0, 1.0, 1.0, INF]))
    assert lost["mean"] == INF and lost["median"] == 1.0 and lost["mean_interval"] is None


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    runs, tasks = 400, 150
    samples = rng.normal(loc=2.0, size=(runs, tasks))
    hits = 0
    for seed, sample in enumerate(samples):
        low, high = statistics.bootstrap_interval(sample, seed=seed, resamples=500)
        hits += low <= 2.0 <= high
    assert abs(hits / runs - 0.95) < 4 * np.sqrt(0.95 * 0.05 / runs)


def test_the_interval_has_the_width_of_the_closed_form() -> None:
    sample = np.random.default_rng(2).normal(size=400)
    low, high = statistics.bootstrap_interval(sample, seed=0, resamples=20_000)
    wide = 2 * 1.96 * sample.std() / np.sqrt(400)
    assert high - low == pytest.approx(wide, rel=0.05)
    assert statistics.bootstrap_interval(sample, seed=0) == statistics.bootstrap_interval(sample, seed=0)


def test_paired_ratios_by_hand() -> None:
    few = positive(3, 10.0)
    ratio = statistics.paired_ratio(np.array([1.0, 2.0, 9.0]), np.array([1.0, 1.0, 2.0]), few)
    assert ratio["of_means"] == 3.0 and ratio["median"] == 2.0
    assert ratio["geometric"] == pytest.approx((1 * 2 * 4.5) ** (1 / 3), rel=1e-4)
    # Pairing: when one is a multiple of the other, there is no doubt.
    reference = np.random.default_rng(0).exponential(size=50)
    ratio = statistics.paired_ratio(3 * reference, reference, positive(50, 10.0))
    np.testing.assert_allclose([ratio["of_means"], ratio["median"]], 3.0, rtol=1e-12)
    np.testing.assert_allclose([ratio["geometric"], *ratio["interval"]], 3.0, rtol=1e-3)
    zero = statistics.paired_ratio(np.zeros(3), np.zeros(3), positive(3))
    assert zero["of_means"] == zero["median"] == zero["geometric"] == 1.0 and zero["interval"] == [1.0, 1.0]
    lost = statistics.paired_ratio(np.array([1.0, INF]), np.array([1.0, 1.0]), positive(2))
    assert lost["of_means"] == INF and lost["geometric"] == pytest.approx(10**0.5)  # a failed run's is ten times f(θ_0)
    both = statistics.paired_ratio(np.array([1.0, INF]), np.array([1.0, INF]), positive(2))
    assert np.isnan(both["of_means"]) and both["median"] == both["geometric"] == 1.0
    # What lies below a millionth of the first loss is as good, and a shift of loss and bound changes nothing.
    deep = statistics.paired_ratio(np.array([1e-20, 1e-9]), np.array([1e-12, 1e-9]), positive(2))
    assert deep["geometric"] == pytest.approx(1.0, rel=1e-5)
    moved = statistics.scale(np.full(3, -7.0), np.full(3, 3.0), [])
    same = statistics.paired_ratio(np.array([1.0, 2.0, 9.0]) - 7, np.array([1.0, 1.0, 2.0]) - 7, moved)
    assert same["geometric"] == pytest.approx((1 * 2 * 4.5) ** (1 / 3), rel=1e-4) and same["of_means"] == 3.0
    assert statistics.paired_ratio(np.ones(1), np.ones(1), positive(1))["interval"] is None


def test_a_failed_task_counts_as_infinite_in_the_score() -> None:
    mean, median = statistics.score(np.array([[1.0, 2.0, 6.0]] * 2), np.array([[False] * 3, [True, False, False]]))
    assert mean.tolist() == [3.0, INF] and median.tolist() == [2.0, 6.0]


def test_one_record_is_small_valid_json() -> None:
    steps = np.arange(5001)
    loss = np.exp(-steps / 1000) * np.array([[1.0], [2.0], [3.0]])
    loss[2, 4000:] = INF
    peak = np.maximum.accumulate(loss, axis=1)
    peak[0, 1234:] = 10.1  # between two recorded points
    scale = statistics.scale(np.zeros(3), loss[:, 0], [loss])
    record = statistics.describe(loss, steps, peak=peak, train_horizon=500, scale=scale, reference=np.ones(3))
    shown = record["curve"]["steps"]
    assert len(shown) <= 200 and {0, 500, 5000} <= set(shown.tolist())
    np.testing.assert_array_equal(record["curve"]["mean"], loss.mean(axis=0)[shown])
    assert record["failed"] == pytest.approx(2 / 3)
    assert record["keeps_improving"] == pytest.approx(2 / 3)
    assert record["at_train_horizon"]["mean"] == pytest.approx(2 * np.exp(-0.5))
    text = json.dumps(statistics.jsonable(record), allow_nan=False)
    assert len(text) < 20_000
    again = json.loads(text)
    assert again["final"]["mean"] == "inf" and again["per_task"]["final"][2] == "inf"
    assert again["per_task"]["failed"] == [True, False, True]


def test_json_has_six_digits_and_no_nan() -> None:
    value = {"a": np.float32(1 / 3), "b": [np.nan, -INF, np.int64(3)], "c": np.array([True]), "d": None, "e": "x"}
    assert statistics.jsonable(value) == {"a": 0.333333, "b": [None, "-inf", 3], "c": [True], "d": None, "e": "x"}
