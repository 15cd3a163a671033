"""What curves say: location, spread, paired ratios with their intervals, three words for failure. numpy only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from metaopt.evaluation.intervals import mean_of, too_few
from metaopt.trees import FAILURE_FACTOR

RISE_FACTOR = 2.0  # a run rises when its tail lies above this multiple of the loss at the training horizon ...
RISE_SHARE = 0.1  # ... or, where the loss has no known bound, above it by this share of the largest fall seen
TAIL = 0.05  # the last part of the curve that counts as its tail
RATIO_FLOOR = 1e-6  # of f(θ_0) - bound, added to both sides of a ratio: what lies below is as good
NUM_RESAMPLES = 2000


# ----- the three words; `loss` is [tasks, points], inf once a task is dead; `steps` is [points] and starts at 0 -------


class Scale(NamedTuple):
    """What losses of any sign are measured by, task by task: shifting a loss and its bound changes nothing."""

    bound: np.ndarray  # [tasks] what no loss falls below; nan where that is not known or f(θ_0) does not lie above
    unit: np.ndarray  # [tasks] f(θ_0) - bound; without one the largest fall below f(θ_0) seen; nan without either

    def above(self, loss: np.ndarray) -> np.ndarray:
        """f - bound of losses [tasks] or [tasks, points]; the loss itself where there is no bound."""
        bound = np.where(np.isnan(self.bound), 0.0, self.bound)
        return loss - (bound if loss.ndim == 1 else bound[:, None])


def scale(lower_bound: np.ndarray, initial: np.ndarray, losses: Iterable[np.ndarray]) -> Scale:
    """The scale of tasks with these bounds [tasks], nan where unknown, and f(θ_0) [tasks].

    Args:
      losses: [tasks, points] of every run that is compared.
    """
    lower_bound, initial = np.asarray(lower_bound, np.float64), np.asarray(initial, np.float64)
    known = initial > lower_bound  # False where the bound is nan
    fall = np.zeros_like(initial)
    with np.errstate(invalid="ignore"):  # of tasks that are infinite from the start
        for loss in losses:
            fall = np.maximum(fall, initial - np.min(loss, axis=1))
        unit = np.where(known, initial - lower_bound, np.where(fall > 0, fall, np.nan))
    return Scale(np.where(known, lower_bound, np.nan), unit)


def failed(peak: np.ndarray, scale: Scale) -> np.ndarray:
    """[tasks] bool: non-finite, or f - bound above 10 (f(θ_0) - bound), at any step, recorded or not.

    Without a bound: above f(θ_0) by 9 times the largest fall seen. `peak` [tasks, points] is `Curves.peak`, the largest
    loss so far, whose first column is f(θ_0). Where a family has minibatches, the loss of a step between recorded
    points is its minibatch's.
    """
    return np.any(exceeds(peak, scale), axis=1)


def exceeds(peak: np.ndarray, scale: Scale) -> np.ndarray:
    """[tasks, points] bool: where a loss counts as a failure; see `failed`."""
    with np.errstate(invalid="ignore"):
        rise = np.where(
            np.isnan(scale.bound)[:, None],
            peak - peak[:, :1] > (FAILURE_FACTOR - 1) * scale.unit[:, None],
            scale.above(peak) > FAILURE_FACTOR * scale.unit[:, None],
        )
    return np.asarray(~np.isfinite(peak) | rise)


def rises(loss: np.ndarray, steps: np.ndarray, train_horizon: int | None, scale: Scale) -> np.ndarray | None:
    """[tasks] bool: mean of the last 5% of the curve above twice f(θ_T), both less the bound; None where it does not go
    beyond T.

    What ratios take for nothing, 1e-6 (f(θ_0) - bound), is added to both sides: losses below it rise and fall by
    rounding. Without a bound: above f(θ_T) by a tenth of the largest fall seen.
    """
    horizon = int(steps[-1])
    if train_horizon is None or horizon <= train_horizon:
        return None
    tail = loss[:, steps > (1 - TAIL) * horizon].mean(axis=1)
    at_train = at_step(loss, steps, train_horizon)
    nothing = RATIO_FLOOR * scale.unit
    with np.errstate(invalid="ignore"):
        higher = np.where(
            np.isnan(scale.bound),
            tail - at_train > RISE_SHARE * scale.unit,
            scale.above(tail) + nothing > RISE_FACTOR * (np.maximum(scale.above(at_train), 0.0) + nothing),
        )
    # A run that was dead already at T has not risen since; it is counted as failed.
    return higher & np.isfinite(at_train)


def keeps_improving(loss: np.ndarray, steps: np.ndarray, train_horizon: int | None) -> np.ndarray | None:
    """[tasks] bool: f(θ_10T) < f(θ_T), at the end of curves shorter than 10 T; None where they do not go beyond T."""
    horizon = int(steps[-1])
    if train_horizon is None or horizon <= train_horizon:
        return None
    return at_step(loss, steps, improving_step(horizon, train_horizon)) < at_step(loss, steps, train_horizon)


def improving_step(horizon: int, train_horizon: int) -> int:
    """The step that `keeps_improving` compares with the training horizon."""
    return min(10 * train_horizon, horizon)


def at_step(loss: np.ndarray, steps: np.ndarray, step: int) -> np.ndarray:
    """[tasks] the loss at one recorded step.

    Raises:
      ValueError: the step was not recorded.
    """
    where = np.flatnonzero(steps == step)
    if not len(where):
        raise ValueError(f"step {step} was not recorded; evaluate with train_horizon={step} so that it is")
    return loss[:, where[0]]


# ----- location and spread --------------------------------------------------------------------------------------------


def quantile(values: np.ndarray, q: float, axis: int = 0) -> np.ndarray:
    """`np.quantile`, linear between order statistics, that is right where some values are infinite."""
    values = np.sort(values, axis=axis)
    position = q * (values.shape[axis] - 1)
    below = int(np.floor(position))
    weight = position - below
    low = np.take(values, below, axis=axis)
    high = np.take(values, min(below + 1, values.shape[axis] - 1), axis=axis)
    with np.errstate(invalid="ignore"):
        between = (1 - weight) * low + weight * high
    return np.where((weight == 0) | (low == high), low, between)


def bootstrap_interval(
    *values: np.ndarray, seed: int, statistic: Any = None, level: float = 0.95, resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """Percentile interval of a statistic of paired samples, tasks drawn with replacement.

    Args:
      values: arrays [tasks], resampled together.
      statistic: from the samples' means [resamples] each to [resamples]; default: the first one's mean.
    """
    tasks = len(values[0])
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, 2_000_000 // tasks))  # bounded memory however many tasks there are
    drawn = []
    for start in range(0, resamples, block):
        index = rng.integers(tasks, size=(min(block, resamples - start), tasks))
        means = [sample[index].mean(axis=1) for sample in values]
        drawn.append(means[0] if statistic is None else statistic(*means))
    estimates = np.concatenate(drawn)
    tail = (1 - level) / 2
    if np.isnan(estimates).any():
        return float("nan"), float("nan")
    return float(quantile(estimates, tail)), float(quantile(estimates, 1 - tail))


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a probability, 95% by default: sound also where none or all succeed."""
    share, spread = successes / trials, z**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = float(np.sqrt(share * (1 - share) * spread + spread**2 / 4)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean with a 95% t-interval, median and quartiles over tasks; infinite where failures make them so.

    `mean_interval` is None where there are too few tasks for a tail as heavy as theirs: no interval covers then.
    """
    values = np.asarray(values, np.float64)
    return {
        "mean": float(values.mean()),
        "mean_interval": None if too_few(values) else list(mean_of(values).interval()),
        "median": float(np.median(values)),
        "q25": float(quantile(values, 0.25)),
        "q75": float(quantile(values, 0.75)),
    }


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    # Two exact zeros are equal; infinity over infinity stays nan, for nothing is known of it.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((numerator == 0) & (denominator == 0), 1.0, np.divide(numerator, denominator))


def log_losses(values: np.ndarray, scale: Scale) -> np.ndarray:
    """[tasks] log((f - b)/(f(θ_0) - b) + 1e-6).

    A loss above 10 (f(θ_0) - b), and one that is not finite, counts as that much: it is a failed run's, and how far it
    went says nothing.
    """
    with np.errstate(invalid="ignore"):
        above = scale.above(np.asarray(values, np.float64)) / scale.unit
    return np.log(np.clip(np.where(np.isnan(above), np.inf, above), 0.0, FAILURE_FACTOR) + RATIO_FLOOR)


def log_ratios(values: np.ndarray, reference: np.ndarray, scale: Scale) -> np.ndarray:
    """[tasks] log((f - b + e)/(f_reference - b + e)), e = 1e-6 (f(θ_0) - b), with losses as `log_losses` takes them."""
    return log_losses(values, scale) - log_losses(reference, scale)


def rank(values: np.ndarray, scale: Scale) -> tuple[str, np.ndarray]:
    """What optimizers are ranked by: (what, [tasks], whose mean is the lower the better) of final losses [tasks].

    `log_losses`, of which ratios are the geometric means; where tasks have no bound, the losses.
    """
    if np.isnan(scale.bound).any():
        return "mean", np.asarray(values, np.float64)
    return "geometric mean", log_losses(values, scale)


def ends_lower(values: np.ndarray, reference: np.ndarray, scale: Scale) -> bool:
    """Whether final losses [tasks] are the better ones by what optimizers are ranked by."""
    return bool(rank(values, scale)[1].mean() < rank(reference, scale)[1].mean())


def paired_ratio(values: np.ndarray, reference: np.ndarray, scale: Scale) -> dict[str, Any]:
    """Final losses, less their bounds, over a reference's on the same tasks.

    `geometric`: the geometric mean of the ratios as `log_ratios` takes them, with its 95% `interval`, None for a single
    task; `of_means`: the ratio of means, of which no interval would hold what it says; `median`. See
    `paired_difference` for tasks without a bound.
    """
    logs = mean_of(log_ratios(values, reference, scale))
    values, reference = (scale.above(np.asarray(part, np.float64)) for part in (values, reference))
    per_task = _divide(values, reference)
    known = per_task[~np.isnan(per_task)]
    return {
        "geometric": float(np.exp(logs.mean)),
        "interval": None if np.isnan(logs.error) else np.exp(logs.interval()).tolist(),
        "of_means": float(_divide(values.mean(), reference.mean())),
        "median": float(np.median(known)) if len(known) else float("nan"),
    }


def paired_difference(values: np.ndarray, reference: np.ndarray, scale: Scale) -> dict[str, Any]:
    """Where losses have no bound, and so no ratios: (value - reference)/(largest fall seen), mean with its 95% interval
    (None where there are too few tasks) and median over tasks; below 0 is better."""
    with np.errstate(invalid="ignore"):
        shares = (np.asarray(values, np.float64) - np.asarray(reference, np.float64)) / scale.unit
    known = shares[~np.isnan(shares)]
    if not len(known):
        return {"mean": float("nan"), "interval": None, "median": float("nan")}
    return {
        "mean": float(known.mean()),
        "interval": None if too_few(known) else list(mean_of(known).interval()),
        "median": float(np.median(known)),
    }


def score(final: np.ndarray, has_failed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and median of final losses [..., tasks] with a failed task counted as infinite."""
    counted = np.where(has_failed, np.inf, final)
    return counted.mean(axis=-1), np.median(counted, axis=-1)


# ----- one optimizer's record -----------------------------------------------------------------------------------------


def describe(
    loss: np.ndarray,
    steps: np.ndarray,
    *,
    peak: np.ndarray,
    train_horizon: int | None,
    scale: Scale,
    reference: np.ndarray | None = None,
) -> dict[str, Any]:
    """All of the above for one optimizer on one family.

    Args:
      loss: [tasks, points], inf once a task is dead.
      steps: [points], from 0.
      peak: [tasks, points], the largest loss so far at any step.
      train_horizon: T; None where the optimizer has none.
      scale: of the tasks. Where their bounds are known and not all zero, curves are of f - bound.
      reference: [tasks] final losses of the best baseline on the same tasks.
    """
    loss = np.asarray(loss, np.float64)
    inside = train_horizon is not None and train_horizon in steps
    at_train = at_step(loss, steps, train_horizon) if inside and train_horizon is not None else None
    words = {
        "failed": failed(peak, scale),
        "rises": rises(loss, steps, train_horizon, scale),
        "keeps_improving": keeps_improving(loss, steps, train_horizon),
    }
    shown = thin(steps, keep=(train_horizon,))
    bounded = not np.isnan(scale.bound).any()
    curve = (scale.above(loss) if bounded else loss)[:, shown]
    compared = (
        None if reference is None else (paired_ratio if bounded else paired_difference)(loss[:, -1], reference, scale)
    )
    return {
        "final": summary(loss[:, -1]),
        "bounded": bounded,
        "at_train_horizon": None if at_train is None else summary(at_train),
        **{word: None if value is None else float(value.mean()) for word, value in words.items()},
        "gap": summary(scale.above(loss[:, -1])) if bounded and np.any(scale.bound) else None,
        "ratio_to_best_baseline": compared if bounded else None,
        "difference_to_best_baseline": None if bounded else compared,
        "curve": {
            "steps": steps[shown],
            "mean": curve.mean(axis=0),
            "median": np.median(curve, axis=0),
            "q25": quantile(curve, 0.25),
            "q75": quantile(curve, 0.75),
        },
        "per_task": {"initial": loss[:, 0], "at_train_horizon": at_train, "final": loss[:, -1], **words},
    }


def thin(steps: np.ndarray, *, keep: tuple[int | None, ...] = (), limit: int = 200) -> np.ndarray:
    """Indices of at most about `limit` points, evenly spaced in the step and in its logarithm, with both ends."""
    points = len(steps)
    if points <= limit:
        return np.arange(points)
    even = np.linspace(0, points - 1, limit // 2)
    geometric = np.geomspace(1, points - 1, limit // 2 - len(keep))
    wanted = np.flatnonzero(np.isin(steps, [step for step in keep if step is not None]))
    return np.unique(np.concatenate([even, geometric, wanted]).round().astype(int))


def jsonable(value: Any, digits: int = 6) -> Any:
    """Plain valid JSON: so many significant digits, infinities as the string "inf" or "-inf", nan as null."""
    if isinstance(value, dict):
        return {str(key): jsonable(entry, digits) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist(), digits)
    if isinstance(value, (list, tuple)):
        return [jsonable(entry, digits) for entry in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if np.isnan(number):
            return None
        return float(f"{number:.{digits}g}") if np.isfinite(number) else ("inf" if number > 0 else "-inf")
    return value
