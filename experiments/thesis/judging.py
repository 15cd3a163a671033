"""Verdicts of three words on settings of a claim: by ratios, by shares of runs, and by several of these at once.

Each is reduced to two one-sided p-values, of "it does not hold" and of "it holds"; Holm's correction over a claim's
settings then gives the words. Noise makes p-values large, and so makes nothing hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from metaopt.evaluation.intervals import LEVEL, Mean, Word, crossed_mean, holm


class Sides(NamedTuple):
    """One-sided p-values: `holds` small speaks for the statement, `fails` small against it."""

    holds: float
    fails: float

    def __neg__(self) -> Sides:
        return Sides(self.fails, self.holds)


NOTHING = Sides(1.0, 1.0)  # is known


def below(mean: Mean, limit: float) -> Sides:
    """Of "the mean is below `limit`"."""
    if np.isnan(mean.error):
        return NOTHING
    p = mean.below(limit)
    return Sides(p, 1.0 - p)


def all_of(parts: Sequence[Sides]) -> Sides:
    """Of a conjunction: it holds where each part does, at the level of each (Berger 1982); it fails where one does, by
    Bonferroni."""
    return Sides(max(part.holds for part in parts), min(1.0, len(parts) * min(part.fails for part in parts)))


class Share(NamedTuple):
    """A mean over meta-seeds and tasks of what lies between 0 and 1."""

    seeds: int
    found: Mean

    @property
    def mean(self) -> float:
        return self.found.mean

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The wider, on either side, of the t-interval and of Clopper and Pearson's with a seed as a trial.

        Where seeds differ little the first says how little; but seeds of which one in ten fails on everything are all
        alike nine times in ten, or five together three times in five, and the second knows that. One seed says nothing.
        """
        if self.seeds < 2:
            return 0.0, 1.0
        tail, good = (1 - level) / 2, self.seeds * self.mean
        bad = self.seeds - good
        low = float(special.betaincinv(good, bad + 1, tail)) if good > 0 else 0.0
        high = float(special.betaincinv(good + 1, bad, 1 - tail)) if bad > 0 else 1.0
        t_low, t_high = self.found.interval(level)
        return max(0.0, min(low, t_low)), min(1.0, max(high, t_high))

    def under(self, limit: float) -> Sides:
        """Of "the share is below `limit`", by the same two; nothing where so few seeds could not say, all alike."""
        if self.seeds < 2 or min(limit**self.seeds, (1 - limit) ** self.seeds) > (1 - LEVEL) / 2:
            return NOTHING
        good = self.seeds * self.mean
        bad = self.seeds - good
        low = float(special.betainc(bad, good + 1, 1 - limit)) if bad > 0 else 1.0
        high = float(special.betainc(good, bad + 1, limit)) if good > 0 else 1.0
        by_t = below(self.found, limit)
        return Sides(max(low, by_t.holds), max(high, by_t.fails))


def share_of(values: np.ndarray) -> Share:
    """Of values [seeds, tasks] in [0, 1]: words of runs, or shares on networks."""
    return Share(len(values), crossed_mean(np.asarray(values, np.float64)))


def words(settings: Sequence[Sides], level: float = LEVEL) -> list[Word]:
    """A word a setting, family-wise at `level` (Holm 1979), half of it on either side.

    As `metaopt.evaluation.intervals.no_worse`, of any statements. What nothing can be known of, for its few seeds, is
    undecided and costs the others nothing.
    """
    alpha = (1 - level) / 2
    known = [index for index, each in enumerate(settings) if each != NOTHING]
    holds, fails = (holm([getattr(settings[index], side) for index in known]) for side in Sides._fields)
    found: list[Word] = ["undecided"] * len(settings)
    for index, for_it, against in zip(known, holds, fails, strict=True):
        found[index] = "holds" if for_it <= alpha else "does not hold" if against <= alpha else "undecided"
    return found
