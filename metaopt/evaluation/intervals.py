"""What a number of tasks and meta-seeds can tell: intervals whose coverage is simulated, and verdicts. numpy, scipy.

Losses of tasks have heavy tails, and no interval for their *mean* covers what it says from a few dozen of them: the
percentile bootstrap, BCa, the bootstrap-t and the t-interval all fall to .6-.9 of a nominal .95 on lognormal losses.
Logarithms of paired ratios do not, so what is claimed is claimed of geometric means of ratios, by a t-interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.95
SKEWNESS = 10.0  # the t-interval of a mean wants this many times the squared skewness of values (Cochran 1977: 25)

Word = Literal["holds", "does not hold", "undecided"]


class Mean(NamedTuple):
    """An estimate of a mean; nan where there are too few values to say."""

    mean: float
    error: float  # its standard error
    freedom: float  # degrees of freedom of that

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided, by Student's t; (-inf, inf) where the error is not known."""
        if not np.isfinite(self.mean):
            return (np.nan, self.mean) if self.mean > 0 else (self.mean, np.nan)
        if np.isnan(self.error):
            return -np.inf, np.inf
        half = float(special.stdtrit(self.freedom, (1 + level) / 2)) * self.error if self.error else 0.0
        return self.mean - half, self.mean + half

    def below(self, limit: float) -> float:
        """p of "the mean is at or above `limit`", one-sided: small speaks for a mean below it."""
        if np.isnan(self.error):
            return 1.0
        if not self.error:
            return float(self.mean >= limit)
        return float(special.stdtr(self.freedom, (self.mean - limit) / self.error))


def mean_of(values: np.ndarray) -> Mean:
    """The mean of independent values [n]."""
    values = np.asarray(values, np.float64)
    count = len(values)
    if count < 2 or not np.isfinite(values).all():
        return Mean(float(values.mean()) if count else np.nan, np.nan, np.nan)
    return Mean(float(values.mean()), float(values.std(ddof=1) / np.sqrt(count)), count - 1.0)


def crossed_mean(values: np.ndarray) -> Mean:
    """The mean over meta-seeds and tasks, both drawn from many: values [seeds, tasks], the same tasks for every seed.

    y_st = μ + a_s + b_t + e_st: the error is that of the two-way layout with random effects, (MS_a + MS_b - MS_e)/ST,
    and not below that of either effect alone; degrees of freedom by Satterthwaite (1946). With one seed there is
    nothing to say of others.
    """
    values = np.asarray(values, np.float64)
    seeds, tasks = values.shape
    mean = float(values.mean())
    if seeds < 2 or not np.isfinite(values).all():
        return Mean(mean, np.nan, np.nan)
    if tasks < 2:
        return mean_of(values[:, 0])
    by_seed, by_task = values.mean(axis=1) - mean, values.mean(axis=0) - mean
    rest = values - mean - by_seed[:, None] - by_task[None]
    free = np.array([seeds - 1.0, tasks - 1.0, (seeds - 1.0) * (tasks - 1.0)])
    squares = np.array([tasks * np.sum(by_seed**2), seeds * np.sum(by_task**2), np.sum(rest**2)]) / free
    total = squares[0] + squares[1] - squares[2]
    if total < max(squares[0], squares[1]):
        largest = int(np.argmax(squares[:2]))
        return Mean(mean, float(np.sqrt(squares[largest] / values.size)), free[largest])
    if total == 0:
        return Mean(mean, 0.0, free[0])
    return Mean(mean, float(np.sqrt(total / values.size)), float(total**2 / np.sum(squares**2 / free)))


def too_few(values: np.ndarray) -> bool:
    """Whether the tail of values [n] is too heavy for a t-interval of their mean from so many."""
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return True
    centred = values - values.mean()
    spread = np.mean(centred**2)
    if spread <= (1e-12 * np.abs(values).max()) ** 2:
        return False
    return bool(len(values) < SKEWNESS * np.mean(centred**3) ** 2 / spread**3)


# ----- verdicts -------------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """Of a claim that a geometric mean of ratios does not exceed a margin."""

    word: Word
    ratio: float  # geometric mean
    interval: tuple[float, float]
    p: float  # of the word, corrected for the number of settings; of the likelier one where undecided


def no_worse(log_ratios: Sequence[Mean], margin: float = 1.0, level: float = LEVEL) -> list[Verdict]:
    """Non-inferiority of each setting, as one family of claims.

    "Holds": the ratio lies below `margin`; "does not hold": above it; each at the family-wise level (Holm 1979), half
    of it on either side. "Undecided" is what few tasks and seeds say; it is not "holds".

    Args:
      log_ratios: means of log(loss/reference's) on the same tasks, `mean_of` or `crossed_mean`; one a setting.
      margin: the ratio that counts as no worse; 1: strictly better than, for claims of superiority.
    """
    limit = np.log(margin)
    sides = [[each.below(limit) for each in log_ratios]]
    sides.append([1.0 if np.isnan(each.error) else 1.0 - each.below(limit) for each in log_ratios])
    better, worse = (holm(side) for side in sides)
    found = []
    for each, holds, fails in zip(log_ratios, better, worse, strict=True):
        alpha = (1 - level) / 2
        word: Word = "holds" if holds <= alpha else "does not hold" if fails <= alpha else "undecided"
        low, high = each.interval(level)
        between = (float(np.exp(low)), float(np.exp(high)))
        found.append(Verdict(word, float(np.exp(each.mean)), between, min(holds, fails)))
    return found


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, family-wise and whatever their dependence (Holm 1979)."""
    order = np.argsort(p)
    adjusted = np.maximum.accumulate([(len(p) - rank) * p[index] for rank, index in enumerate(order)])
    found = np.empty(len(p))
    found[order] = np.minimum(adjusted, 1.0)
    return found.tolist()
