"""One evaluation: learned optimizers beside tuned baselines on one family and horizon, as one JSON-able record."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from metaopt.choices import Choice
from metaopt.errors import UserError
from metaopt.evaluation import statistics
from metaopt.evaluation.curves import Curves, Entry, as_optimizer, evaluate
from metaopt.evaluation.early_stopping import EarlyStopping
from metaopt.evaluation.landscape import landscape
from metaopt.evaluation.tuning import Tuned, lowered, tune_baselines
from metaopt.experiment import BASELINES, TUNING, build_family
from metaopt.types import Key, TaskFamily

# A rate near the edge of stability fails on one task in hundreds; too few tasks to choose on would not show it.
MIN_TUNING_TASKS, MAX_TUNING_TASKS = 50, 400
MAX_TUNING_TASKS_WITH_DATA = 64  # networks on a data set cost too much for more

ROUNDING = 1e-5  # of float32 losses, beside their bound
EVALUATION_STREAM = 0x65766C  # folded into the seed's key


def evaluate_run_on(
    learned: Mapping[str, Entry],
    task: Choice,
    *,
    horizon: int,
    train_horizon: int | None = None,
    num_tasks: int = 100,
    seed: int = 0,
    baselines: Sequence[str] = BASELINES,
    tuning: str = TUNING,
    num_tuning_tasks: int | None = None,
    oracle: Choice | None = None,
    num_devices: int | None = None,
    early_stopping: EarlyStopping | None = None,
    progress: Callable[[str], None] | None = None,
    look: Callable[[TaskFamily, Key, Curves], object] | None = None,
) -> dict[str, Any]:
    """Tunes the baselines on tasks of their own, then runs everything on the same `num_tasks` tasks.

    Args:
      learned: name -> (optimizer, φ) or an optax transformation.
      task: the family, by name and options.
      baselines: hand-designed optimizers, by name and options such as `sgd:power=0.5`.
      tuning: what is tried of each: `9x1`, `9x3`, `full`; see `tune_baselines`.
      num_tuning_tasks: default: `num_tasks`, at least 50, at most 400 (64 for families with a data set).
      oracle: where gradients come from, for baselines too; default: minibatches, or the exact gradient.
      early_stopping: what it would have saved, and the loss it would have restored, beside those at the end.
      progress: called with one line before each step of the work.
      look: called with the family, the evaluation's key and the curves.

    Returns:
      One entry of evaluation.json's "results": plain JSON, floats to six digits, "inf" for infinity, null for nan.

    Raises:
      UserError: unknown families or baselines, counts below 1, names that clash.
    """
    for name, value in (("num_tasks", num_tasks), ("horizon", horizon)):
        if value < 1:
            raise UserError(f"`{name}` ({value}) must be at least 1.")
    clashes = sorted(set(learned) & set(baselines))
    if clashes:
        raise UserError(f"{', '.join(clashes)}: a learned optimizer bears a baseline's name; give it another.")
    say = progress or (lambda line: None)
    family = build_family(task, oracle=oracle)
    early_stopping = early_stopping and early_stopping.fitted(family, horizon, train_horizon)
    label = family.name or str(task)  # one name however the choice is written
    evaluation_key, tuning_key = evaluation_keys(seed)
    tuned = tune_baselines(
        family,
        tuning_key,
        horizon=horizon,
        num_tasks=num_tuning_tasks or _num_tuning_tasks(family, num_tasks),
        names=baselines,
        budget=tuning,
        num_devices=num_devices,
        progress=lambda name: say(f"{label}, {horizon} steps: tuning {name}"),
    )
    entries: dict[str, Entry] = dict(learned)
    entries |= {name: (optimizer, meta_params) for name, (optimizer, meta_params, _) in tuned.items()}
    run = functools.partial(
        evaluate,
        family=family,
        key=evaluation_key,
        horizon=horizon,
        num_tasks=num_tasks,
        train_horizon=train_horizon,
        early_stopping=early_stopping,
        searched=baselines,
        num_devices=num_devices,
        progress=lambda name: say(f"{label}, {horizon} steps: running {name}"),
    )
    curves = run(entries)
    lowest = min((loss - curves.lower_bound[:, None]).min() for loss in curves.loss.values())
    if lowest < -ROUNDING * (1 + np.abs(curves.lower_bound).max()):  # never where the bound is nan
        say(f"{label}: a loss lies {-lowest:.3g} below the family's `lower_bound`; state a lower one, or None.")
    if look is not None:
        look(family, evaluation_key, curves)
    lower = functools.partial(run, progress=lambda name: say(f"{label}, {horizon} steps: {name} failed; a lower rate"))
    tuned, curves = _lower_what_failed(tuned, curves, lower)
    records = {name: record for name, (_, _, record) in tuned.items()}
    described = describe_curves(curves, tuned=records, events=family.events)
    shown = {name: as_optimizer(entry, family, name) for name, entry in learned.items()}
    shown |= {name: (optimizer, meta_params) for name, (optimizer, meta_params, _) in tuned.items()}
    seen = landscape(shown, family, evaluation_key, horizon=horizon, num_tasks=num_tasks)
    return statistics.jsonable(
        {
            "task": label,
            "horizon": horizon,
            "train_horizon": train_horizon,
            "num_tasks": num_tasks,
            "seed": seed,
            "tuning": tuning,
            "evaluated_on": family.evaluated_on,
            **({} if early_stopping is None else {"early_stopping": dataclasses.asdict(early_stopping)}),
            **({} if family.oracle is None else {"oracle": str(oracle)}),
            **described,
            **({} if seen is None else {"landscape": seen}),
        }
    )


def _num_tuning_tasks(family: TaskFamily, num_tasks: int) -> int:
    most = MAX_TUNING_TASKS_WITH_DATA if jax.tree.leaves(family.data) else MAX_TUNING_TASKS
    return min(max(num_tasks, MIN_TUNING_TASKS), most)


def _lower_what_failed(
    tuned: Mapping[str, Tuned], curves: Curves, run: Callable[[Mapping[str, Entry]], Curves]
) -> tuple[dict[str, Tuned], Curves]:
    """A baseline whose rate fails on a reported task gets the next lower rate where that does better.

    Failures are rare near the edge of stability, so that the tasks of the tuning may have held none. The choice looks
    at the reported tasks, by what optimizers are ranked by there, and so is to the baseline's advantage.
    """
    chosen = dict(tuned)
    for name, before in tuned.items():
        lower = lowered(before)
        if lower is None or not statistics.failed(curves.peak[name], curves.scale).any():
            continue
        other = run({name: lower[:2]})
        if statistics.ends_lower(other.loss[name][:, -1], curves.loss[name][:, -1], curves.scale):
            chosen[name] = lower
            for field in ("loss", "peak", "alive", "final", "stopped"):
                curves = curves._replace(**{field: {**getattr(curves, field), name: getattr(other, field)[name]}})
    return chosen, curves


def evaluation_keys(seed: int) -> tuple[Key, Key]:
    """(key of the reported tasks, key of the tasks that baselines are tuned on)."""
    # A stream of its own: a run's meta-training splits the key of the same seed.
    evaluation_key, tuning_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), EVALUATION_STREAM))
    return evaluation_key, tuning_key


def describe_curves(
    curves: Curves, *, tuned: Mapping[str, dict[str, Any]], events: Sequence[str] = ()
) -> dict[str, Any]:
    """{"best_baseline", "keeps_improving_at", "optimizers": name -> record}; `tuned` names the baselines.

    Args:
      events: the family's metrics that are 1 or 0 a task; a record then holds the share of each and its interval.
    """
    horizon, train_horizon = int(curves.steps[-1]), curves.train_horizon
    # Those that nobody tuned are scored apart.
    finals = {name: curves.loss[name][:, -1] for name, record in tuned.items() if not record.get("untuned")}
    optimizers, scale = {}, curves.scale
    # On the reported tasks, so that the learned optimizer meets the hardest opponent; by the median among those that
    # are infinite.
    ranks = {name: (statistics.rank(final, scale)[1].mean(), np.median(final)) for name, final in finals.items()}
    best = min(ranks, key=lambda name: ranks[name], default=None)
    for name, loss in curves.loss.items():
        described = statistics.describe(
            loss,
            curves.steps,
            peak=curves.peak[name],
            train_horizon=train_horizon,
            scale=scale,
            reference=None if best is None else finals[best],
        )
        optimizers[name] = {
            "kind": ("baseline" if name in finals else "untuned") if name in tuned else "learned",
            "tuned": tuned.get(name),
            **described,
            "test": _on_split(curves, name, "test"),
            "train": _on_split(curves, name, "train"),
        }
        if name not in tuned:
            optimizers[name]["to_each_baseline"] = _to_each(loss[:, -1], finals, scale, described["bounded"])
        if events:
            optimizers[name]["events"] = {event: _share(curves, name, event) for event in events}
        if curves.stopped.get(name) is not None:
            optimizers[name]["early_stopping"] = _early_stopping(curves, name)
    beyond = train_horizon is not None and horizon > train_horizon
    return {
        "best_baseline": best,
        "keeps_improving_at": statistics.improving_step(horizon, train_horizon) if beyond and train_horizon else None,
        "optimizers": optimizers,
    }


def _to_each(
    values: np.ndarray, finals: Mapping[str, np.ndarray], scale: statistics.Scale, bounded: bool
) -> dict[str, Any]:
    """Of final losses, what is said of those to the best baseline: so that the hardest of any kind can be picked."""
    compare = statistics.paired_ratio if bounded else statistics.paired_difference
    return {name: compare(values, reference, scale) for name, reference in finals.items()}


def _on_split(curves: Curves, name: str, split: Any) -> dict[str, Any] | None:
    """Mean final loss and metrics on a split; a dead run's accuracy counts as 0, its other metrics are unknown."""
    return _means(curves.final[name].get(split))


def _means(values: Mapping[str, np.ndarray] | None) -> dict[str, float] | None:
    if values is None:
        return None
    return {
        metric: float((np.nan_to_num(value, nan=0.0) if metric == "accuracy" else value).mean())
        for metric, value in values.items()
    }


def _early_stopping(curves: Curves, name: str) -> dict[str, Any]:
    """Steps saved, and what was restored beside what a run ended with: on test data, or else on validation data."""
    stopped, horizon = curves.stopped[name], int(curves.steps[-1])
    assert stopped is not None
    split = "test" if "test" in stopped.final else "validation"
    return {
        "stopped": float((stopped.step < horizon).mean()),  # the share of tasks
        "steps": float(stopped.step.mean()),
        "steps_saved": float((horizon - stopped.step).mean()),
        "best_step": float(stopped.best_step.mean()),
        "split": split,
        "restored": _means(stopped.final[split]),
        "at_end": _on_split(curves, name, split),
    }


def _share(curves: Curves, name: str, event: str) -> dict[str, Any]:
    """The share of tasks on which a run ended with the event, with Wilson's interval; a dead run did not."""
    final = curves.final[name]
    values = np.nan_to_num((final.get("test") or final["train"])[event], nan=0.0)
    successes = int(round(values.sum()))
    return {
        "share": successes / len(values),
        "interval": list(statistics.wilson_interval(successes, len(values))),
    }
