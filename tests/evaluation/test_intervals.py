"""Coverage of intervals by simulation, verdicts and corrections by hand."""

from __future__ import annotations

import numpy as np
import pytest

from metaopt.evaluation.intervals import Mean, crossed_mean, holm, mean_of, no_worse, too_few

RUNS = 4000
NEAR = 4 * np.sqrt(0.05 * 0.95 / RUNS)  # four standard errors of a simulated coverage


def covered(means: list[Mean], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in (mean.interval() for mean in means)]))


# Logarithms of paired ratios of heavy-tailed losses: normal, heavy on both sides, skewed, a tenth of outliers.
LOGS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "student": lambda rng, shape: rng.standard_t(3, size=shape),
    "skewed": lambda rng, shape: rng.gamma(4.0, size=shape) - 4.0,
    "outliers": lambda rng, shape: rng.normal(size=shape) * np.where(rng.random(shape) < 0.1, 5.0, 1.0),
}


@pytest.mark.parametrize("num_tasks", [16, 32, 400])
@pytest.mark.parametrize("law", LOGS)
def test_log_ratios_of_tasks_are_covered(law: str, num_tasks: int) -> None:
    drawn = LOGS[law](np.random.default_rng(num_tasks), (RUNS, num_tasks))
    assert 0.92 <= covered([mean_of(row) for row in drawn], 0.0) <= 0.97


@pytest.mark.parametrize("num_tasks", [16, 32, 400])
@pytest.mark.parametrize("of_seeds", [0.0, 0.1, 1.0])  # spread of the seeds' means against the tasks'
@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_means_over_seeds_and_tasks_are_covered(num_seeds: int, of_seeds: float, num_tasks: int) -> None:
    rng = np.random.default_rng(num_seeds)
    runs = RUNS // 2
    seeds = of_seeds * rng.normal(size=(runs, num_seeds, 1))
    tasks = rng.standard_t(4, size=(runs, 1, num_tasks))
    means = [crossed_mean(each) for each in seeds + tasks + 0.5 * rng.normal(size=(runs, num_seeds, num_tasks))]
    # Simulated with a standard error of .005; three seeds whose means are equal are covered more often.
    assert 0.91 <= covered(means, 0.0) <= 0.985


LOSSES = {
    "exponential": lambda rng, shape: rng.exponential(size=shape),
    "lognormal, .5": lambda rng, shape: np.exp(0.5 * rng.normal(size=shape) - 0.125),
    "lognormal, 1": lambda rng, shape: np.exp(rng.normal(size=shape) - 0.5),
    "lognormal, 2": lambda rng, shape: np.exp(2 * rng.normal(size=shape) - 2.0),
}


@pytest.mark.parametrize("num_tasks", [16, 32, 400])
@pytest.mark.parametrize("law", LOSSES)
def test_means_of_losses_are_covered_or_said_to_be_too_few(law: str, num_tasks: int) -> None:
    drawn = LOSSES[law](np.random.default_rng(num_tasks), (RUNS, num_tasks))
    share = covered([mean_of(row) for row in drawn], 1.0)
    told = np.mean([too_few(row) for row in drawn])
    assert 0.92 - NEAR <= share <= 0.97 or told > 0.5, (share, told)
    if law == "lognormal, .5" and num_tasks > 16:
        assert told < 0.2


def test_the_crossed_error_is_that_of_the_layout() -> None:
    """Against the variance of means drawn from the layout itself, and by hand for two seeds of two tasks."""
    rng = np.random.default_rng(0)
    shape = (2000, 4, 6)
    drawn = 0.7 * rng.normal(size=(2000, 4, 1)) + 0.4 * rng.normal(size=(2000, 1, 6)) + rng.normal(size=shape)
    truth = 0.7**2 / 4 + 0.4**2 / 6 + 1 / 24
    assert np.var(drawn.mean(axis=(1, 2))) == pytest.approx(truth, rel=4 * np.sqrt(2 / 2000))
    found = np.mean([crossed_mean(each).error ** 2 for each in drawn])
    assert truth * 0.95 < found < truth * 1.1  # the floor makes it a little larger
    by_hand = crossed_mean(np.array([[0.0, 1.0], [4.0, 7.0]]))
    # MS_a = 2 (2.5² + 2.5²) = 25, MS_b = 2 (1² + 1²) = 4, MS_e = 4 · .5² = 1, each of one degree of freedom.
    assert by_hand == pytest.approx((3.0, np.sqrt(28 / 4), 28**2 / (25**2 + 4**2 + 1)))


def test_few_values_say_nothing() -> None:
    assert mean_of(np.array([3.0])).interval() == (-np.inf, np.inf) and mean_of(np.array([3.0])).below(9.0) == 1.0
    assert np.isnan(crossed_mean(np.ones((1, 9))).error)
    assert mean_of(np.full(5, 2.0)).interval() == (2.0, 2.0) and not too_few(np.full(5, 2.0))
    low, high = mean_of(np.array([1.0, np.inf])).interval()
    assert np.isnan(low) and high == np.inf and too_few(np.array([1.0, np.inf]))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == []


def test_three_words() -> None:
    def settings(*pairs: tuple[float, float]) -> list[str]:
        means = [Mean(np.log(ratio), error, 30.0) for ratio, error in pairs]
        return [verdict.word for verdict in no_worse(means, margin=1.1)]

    assert settings((0.9, 0.05), (1.5, 0.05), (1.05, 0.05)) == ["holds", "does not hold", "undecided"]
    # Noise makes nothing hold, and what holds alone need not hold as one of many.
    assert settings((0.9, 0.5)) == ["undecided"] and settings((1.5, 0.5)) == ["undecided"]
    assert settings((0.98, 0.05)) == ["holds"] and settings(*[(0.98, 0.05)] * 9) == ["undecided"] * 9
    (one,) = no_worse([Mean(np.log(0.5), 0.1, 10.0)])
    assert one.ratio == pytest.approx(0.5) and one.interval == pytest.approx(
        (0.5 * np.exp(-0.2228), 0.5 * np.exp(0.2228)), rel=1e-3
    )


@pytest.mark.parametrize("truth", [1.0, 1.1])
def test_claims_at_the_margin_are_seldom_decided(truth: float) -> None:
    """Of nine settings that all lie at the margin, one is decided wrongly in at most 1 of 20 families."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(600):
        logs = np.log(truth) + rng.normal(size=(9, 24))
        wrong += any(verdict.word != "undecided" for verdict in no_worse([mean_of(row) for row in logs], margin=truth))
    assert wrong / 600 < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 600)
