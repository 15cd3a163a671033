"""Hand-designed optimizers with the learning rate that is best for the family and horizon at hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.choices import parse_choice
from metaopt.errors import UserError
from metaopt.evaluation import statistics
from metaopt.evaluation.curves import run
from metaopt.evaluation.recording import plan
from metaopt.experiment import build_optimizer
from metaopt.registry import OPTIMIZERS
from metaopt.types import Key, MetaParams, Optimizer, TaskFamily

GRID = tuple(range(-6, 2))  # in half-decades: rates 10^(k/2) from 1e-3 to 3
BOUNDS = (-12, 6)  # how far the grid may be extended: 1e-6 to 1e3
RECORDS = 10  # points of a tuning curve; a failure between them is seen all the same
BASELINES = ("sgd", "momentum", "rmsprop", "adam")  # unless others are asked for
TUNED = "learning_rate"  # the setting that is searched

Tuned = tuple[Optimizer, MetaParams, dict[str, Any]]


def tune_baselines(
    family: TaskFamily,
    key: Key,
    *,
    horizon: int,
    num_tasks: int,
    names: Sequence[str] = BASELINES,
    num_devices: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Tuned]:
    """name -> (optimizer, φ with the best learning rate, record of the search).

    A name may carry options as a choice does: `sgd:power=0.5`. What is registered as untuned is taken as it comes, its
    record {"untuned": True}; the record of one that is told the horizon says so, {"knows_horizon": True, ...}.
    The rate is chosen by the mean final loss over `num_tasks` tasks with a failed one counted as infinite; by the
    median where every rate of the grid has a failure. The grid is extended by half-decades until the best is inside it
    or the bounds are reached. `key` must not be the one whose curves are reported.

    Raises:
      UserError: a name that is no hand-designed optimizer.
    """
    tuned = {}
    for name in names:
        if progress is not None:
            progress(name)
        tuned[name] = _tune(name, family, key, horizon, num_tasks, num_devices)
    return tuned


@functools.cache
def _baseline(name: str) -> Optimizer:
    # Built once, for the compiled code hangs on the Optimizer's identity.
    return build_optimizer(parse_choice(name))


def _tune(name: str, family: TaskFamily, key: Key, horizon: int, num_tasks: int, num_devices: int | None) -> Tuned:
    optimizer = _baseline(name)
    meta_params = optimizer.init(jax.random.key(0))
    told = {"knows_horizon": True} if optimizer.knows_horizon else {}
    if OPTIMIZERS.traits(parse_choice(name).name).untuned:
        return optimizer, meta_params, {"untuned": True, **told}
    if TUNED not in optimizer.tunable:
        raise UserError(f"baseline {name!r} has no learning rate to tune; choose from {', '.join(BASELINES)}.")
    segments = plan(family, horizon, every=max(1, horizon // RECORDS))

    def scores(exponents: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        grid = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(exponents), *leaf.shape)), meta_params)
        grid[TUNED] = _free(optimizer, exponents)
        how = {"segments": segments, "num_tasks": num_tasks, "splits": (), "num_devices": num_devices}
        found = run(optimizer, grid, family, key, grid=True, **how)
        seen.extend(found.loss)
        scale = statistics.scale(found.lower_bound, found.loss[0, :, 0], seen)
        return statistics.score(found.loss[..., -1], np.stack([statistics.failed(peak, scale) for peak in found.peak]))

    seen: list[np.ndarray] = []  # [tasks, points] of every rate so far
    exponents = list(GRID)
    means, medians = (values.tolist() for values in scores(exponents))
    while True:
        criterion, values = ("mean", means) if np.isfinite(means).any() else ("median", medians)
        best = int(np.argmin(values))
        # Without a single finite score only smaller rates can help.
        step = -1 if best == 0 else 1 if best == len(exponents) - 1 else 0
        exponent = exponents[best] + step
        if step == 0 or not BOUNDS[0] <= exponent <= BOUNDS[1]:
            break
        (mean,), (median,) = (values.tolist() for values in scores([exponent]))
        where = 0 if step < 0 else len(exponents)
        exponents.insert(where, exponent)
        means.insert(where, mean)
        medians.insert(where, median)
    record = {
        "learning_rate": _rate(exponents[best]),
        "criterion": criterion,  # over tasks, of the final loss, a failed task counted as infinite
        "grid": [
            {"learning_rate": _rate(exponent), "mean": mean, "median": median}
            for exponent, mean, median in zip(exponents, means, medians, strict=True)
        ],
        "extended_by": len(exponents) - len(GRID),  # half-decades
        "inside": step == 0,  # False: the best lies at the bound of the search
        "num_tasks": num_tasks,
        "horizon": horizon,
        **told,
    }
    return optimizer, {**meta_params, TUNED: _free(optimizer, exponents[best])}, record


def lowered(tuned: Tuned) -> Tuned | None:
    """The same baseline at the next lower rate of its grid; None where there is no lower one."""
    optimizer, meta_params, record = tuned
    if record.get("untuned"):
        return None
    rate = record["learning_rate"]
    lower = max((point["learning_rate"] for point in record["grid"] if point["learning_rate"] < rate), default=None)
    if lower is None:
        return None
    meta_params = {**meta_params, TUNED: optimizer.tunable[TUNED].inverse(jnp.float32(lower))}
    return optimizer, meta_params, {**record, "learning_rate": lower, "lowered_from": rate}


def _rate(exponent: int) -> float:
    return float(f"{10 ** (exponent / 2):.6g}")


def _free(optimizer: Optimizer, exponents: Any) -> jax.Array:
    """The rates as φ holds them."""
    rates = jnp.asarray(10 ** (np.asarray(exponents) / 2), jnp.float32)
    return optimizer.tunable[TUNED].inverse(rates)
