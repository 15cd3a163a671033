"""What the records of a suite say of an optimizer: one number an entry, and from these shares, means and profiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from metaopt.evaluation.intervals import Mean, mean_of
from metaopt.evaluation.statistics import Scale, log_losses, scale, wilson_interval

Records = Mapping[str, Mapping[str, Any]]  # entry -> record at one horizon
ADAM = "adam"
TIE = 1e-3  # of a logarithm: at the bottom of a task losses differ by their rounding


class Share(NamedTuple):
    """Of entries, with Wilson's interval."""

    count: int
    of: int

    @property
    def value(self) -> float:
        return self.count / self.of if self.of else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.count, self.of) if self.of else (0.0, 1.0)


class Score(NamedTuple):
    """One optimizer at one horizon, over the entries that it was run on."""

    entries: int
    # Entries at or below the best tuned baseline, to a part in a thousand, in the geometric mean over their tasks.
    at_best: Share
    at_best_untold: Share  # the same against those that are not told the horizon
    to_adam: Mean  # of the logarithm of the ratio to tuned Adam, over entries
    middle: float  # interquartile mean of the same
    failed: float  # share of runs
    test: Mean  # as `to_adam`, of losses on the test split, where there is one
    to_target: float  # median share of the horizon by which the end of tuned Adam is reached; infinite: it is not
    lost: tuple[str, ...]  # entries where tuned Adam is ahead


def joined(
    baselines: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]], horizon: int
) -> dict[str, Any]:
    """entry -> its record at one horizon, of one's own optimizers and of baselines, which one's own may hold too."""
    at = str(horizon)
    return {
        entry: {
            **held[at],
            "optimizers": {**baselines.get(entry, {}).get(at, {}).get("optimizers", {}), **held[at]["optimizers"]},
        }
        for entry, held in own.items()
        if at in held
    }


def same_starts(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records of an entry began at the same losses, to a part in a thousand, as the same tasks do."""
    one, two = (np.array(each["initial"], float) for each in (record, other))  # None, of no number, is nan
    return one.shape == two.shape and np.allclose(one, two, rtol=1e-3, atol=0.0, equal_nan=True)


def final_logs(record: Mapping[str, Any], name: str, part: str = "final") -> np.ndarray:
    """[tasks] `statistics.log_losses` of one optimizer, a failed run at its ceiling."""
    held = record["optimizers"][name]
    values = np.array([np.nan if value is None else float(value) for value in held[part]])
    return log_losses(np.where(held["failed"], np.inf, values), _scale(record))


def _scale(record: Mapping[str, Any]) -> Scale:
    bound, initial = (np.array([np.nan if v is None else v for v in record[name]]) for name in ("bound", "initial"))
    return scale(bound, initial, ())


def ratio_to(record: Mapping[str, Any], name: str, other: str, part: str = "final") -> float:
    """Log of the geometric mean over tasks of one optimizer's loss over another's."""
    return float((final_logs(record, name, part) - final_logs(record, other, part)).mean())


def tuned_in(record: Mapping[str, Any], *, told: bool = True) -> list[str]:
    """The tuned baselines; without `told` those that are not told the horizon."""
    found = record["optimizers"].items()
    return [name for name, held in found if "tuned" in held and (told or not held["tuned"].get("knows_horizon"))]


def best_in(record: Mapping[str, Any], *, told: bool = True) -> str:
    return min(tuned_in(record, told=told), key=lambda name: final_logs(record, name).mean())


def score(records: Records, name: str) -> Score:
    """Of one optimizer, which each record holds beside the baselines."""
    to_adam, tests, reached = {}, [], []
    counts, failed = {True: 0, False: 0}, []
    for entry, record in records.items():
        to_adam[entry] = ratio_to(record, name, ADAM)
        for told in counts:
            counts[told] += ratio_to(record, name, best_in(record, told=told)) <= TIE
        failed.append(np.mean(record["optimizers"][name]["failed"]))
        if record["optimizers"][name]["test"] is not None:
            tests.append(ratio_to(record, name, ADAM, "test"))
        reached.append(_reached(record, name))
    ratios = np.array(list(to_adam.values()))
    return Score(
        entries=len(records),
        at_best=Share(counts[True], len(records)),
        at_best_untold=Share(counts[False], len(records)),
        to_adam=mean_of(ratios),
        middle=float(interquartile_mean(ratios)),
        failed=float(np.mean(failed)) if failed else float("nan"),
        test=mean_of(np.array(tests)),
        to_target=float(np.median(reached)) if reached else float("nan"),
        lost=tuple(entry for entry, ratio in to_adam.items() if ratio > TIE),
    )


def _reached(record: Mapping[str, Any], name: str) -> float:
    """The share of the horizon after which the curve stays at or below tuned Adam's end."""
    held, target = record["optimizers"][name], record["optimizers"][ADAM]["curve"][-1]
    above = np.flatnonzero(np.array(held["curve"]) > target)
    first = above[-1] + 1 if len(above) else 0
    return float("inf") if first == len(held["steps"]) else held["steps"][first] / held["steps"][-1]


def interquartile_mean(values: np.ndarray) -> float:
    """The mean of the middle half, with parts of the values at its ends (Agarwal et al. 2021)."""
    values = np.sort(np.asarray(values, np.float64))
    count = len(values)
    if not count:
        return float("nan")
    edges = np.clip(np.arange(count + 1), count / 4, 3 * count / 4)
    return float(np.sum(values * np.diff(edges)) / (count / 2))


def profile(records: Records, names: Iterable[str], factors: np.ndarray) -> dict[str, np.ndarray]:
    """name -> [factors] share of entries ended within a factor of the best of `names` (Dolan and Moré 2002)."""
    logs = {name: np.array([final_logs(record, name).mean() for record in records.values()]) for name in names}
    least = np.min(list(logs.values()), axis=0)
    return {name: (own - least <= np.log(factors)[:, None]).mean(axis=1) for name, own in logs.items()}
