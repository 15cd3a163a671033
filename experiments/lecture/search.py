"""Settings by grids under vmap, all on the same tasks: what ends lowest on tasks of their own is reported on others."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lecture.families import FAMILIES, Entry
from metaopt import bind_tasks, choice, reset, unroll
from metaopt.evaluation.intervals import Mean, mean_of
from metaopt.evaluation.outcomes import Outcome, run_each, task_keys
from metaopt.evaluation.recording import plan
from metaopt.evaluation.statistics import quantile
from metaopt.experiment import build_optimizer
from metaopt.inner.devices import compiler_options, matmul_precision
from metaopt.types import Optimizer, TaskFamily

TUNING, REPORTED = 1, 2  # seeds of the tasks
POINTS = 50  # of a curve
BLOCK = 8  # rates, in half-decades, that are tried together: first from 1e-3 to 3
FIRST, BOUNDS = -6, (-22, 17)
FLOOR, CEILING = 1e-6, 10.0  # of f/f(θ_0) as it is counted

Setting = dict[str, float]
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "sgd": {},
    "momentum": {"mu": (0.5, 0.9, 0.99)},
    "nesterov": {"mu": (0.5, 0.9, 0.99)},
    "adagrad": {},
    "rmsprop": {"decay": (0.9, 0.99, 0.999)},
    "adam": {"beta1": (0.5, 0.9, 0.99), "beta2": (0.9, 0.99, 0.999)},
    "adamw": {"weight_decay": (0.001, 0.1), "beta2": (0.9, 0.99, 0.999)},
}
NAMES = {
    "sgd": "SGD", "momentum": "momentum", "nesterov": "Nesterov", "adagrad": "AdaGrad", "rmsprop": "RMSProp",
    "adam": "Adam", "adamw": "AdamW",
}  # fmt: skip


class Runs(NamedTuple):
    """Of a grid; a run that died has infinite losses from there on."""

    loss: np.ndarray  # [grid, tasks, points]; column 0 is f(θ_0)
    bound: np.ndarray  # [tasks]
    steps: np.ndarray  # [points]
    final: dict[str, dict[str, np.ndarray]]  # split -> "loss" and metrics [grid, tasks]


@functools.cache
def optimizer_of(name: str, *tuned: str, **options: Any) -> Optimizer:
    # Built once, for the compiled code hangs on the Optimizer's identity.
    return build_optimizer(choice(name, tunes=",".join(("learning_rate", *tuned)), **options))


@functools.cache
def family_of(name: str) -> TaskFamily:
    return FAMILIES[name].make()


def settings_of(name: str) -> list[Setting]:
    grid = GRIDS[name]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def phi_of(optimizer: Optimizer, points: list[Setting]) -> dict[str, jax.Array]:
    """φ of all points of a grid."""
    return {
        name: bijection.inverse(jnp.asarray([point[name] for point in points], jnp.float32))
        for name, bijection in optimizer.tunable.items()
    }


def runs(
    optimizer: Optimizer,
    points: list[Setting],
    family: TaskFamily,
    entry: Entry,
    seed: int,
    *,
    every: int | None = None,
) -> Runs:
    """All points of a grid on the same tasks."""
    phi, key = phi_of(optimizer, points), jax.random.key(seed)
    every = every or max(1, entry.horizon // POINTS)
    if entry.online:
        keys = jax.random.split(key, entry.tasks)
        first, error = jax.device_get(_online(optimizer, phi, family, keys, length=entry.horizon))
        loss = np.where(np.isfinite(error), error, np.inf).reshape(len(points), -1, every, entry.tasks).mean(axis=2)
        loss = np.concatenate([np.broadcast_to(first, (len(points), 1, entry.tasks)), loss], axis=1)
        steps = np.arange(loss.shape[1]) * every
        return Runs(np.moveaxis(loss, 1, 2).astype(np.float64), np.zeros(entry.tasks), steps, {})
    steps = plan(family, entry.horizon, every=every)
    found = on_grid(optimizer, phi, family, key, steps, entry.tasks)
    return Runs(found.loss, found.lower_bound[0], steps, found.final)  # pyright: ignore[reportArgumentType]


def on_grid(
    optimizer: Optimizer, phi: Any, family: TaskFamily, key: jax.Array, steps: np.ndarray, num_tasks: int
) -> Outcome:
    """Every φ of a stack on the same tasks; arrays are [grid, tasks, ...]."""
    number = len(jax.tree.leaves(phi)[0])
    each = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_tasks, axis=0), phi)
    keys = jnp.tile(task_keys(key, num_tasks), number)
    found = run_each(optimizer, each, family, keys, steps=steps, splits=family.splits, num_devices=1)
    return jax.tree.map(lambda leaf: leaf.reshape(number, num_tasks, *leaf.shape[1:]), found)


@functools.partial(jax.jit, static_argnames=("optimizer", "length"), compiler_options=compiler_options())
def _online(optimizer: Optimizer, phi: Any, family: TaskFamily, keys: jax.Array, *, length: int) -> Any:
    """([tasks] f(θ_0), [grid, length, tasks] the oracle's error at θ_1 ... θ_length, infinite once a task is dead)."""

    def one(phi: Any) -> Any:
        tx = bind_tasks(optimizer, phi)
        task, state = reset(tx, family, keys)
        trace = unroll(tx, family, task, state, length=length)[1]
        return state.estimate.info["error"], jnp.where(trace.alive, trace.info["error"], jnp.inf)

    with matmul_precision("highest"):
        first, error = jax.vmap(one)(phi)
    return first[0], error


def logs(found: Runs, entry: Entry) -> np.ndarray:
    """[grid, tasks] log of (f - bound)/(f(θ_0) - bound) at the end, between the floor and the ceiling; of the mean over
    the whole run where data drift. At the ceiling too where a recorded loss lay above it, as in `failed`."""
    above = found.loss - found.bound[:, None]
    first = above[0, :, 0]
    if entry.online:
        return np.log(np.clip(above[..., 1:].mean(axis=-1) / first, FLOOR, CEILING))
    last = np.where((above / first[:, None]).max(axis=-1) > CEILING, np.inf, above[..., -1])
    return np.log(np.clip(last / first, FLOOR, CEILING))


def search(name: str, where: str, *, blocks: int | None = None) -> dict[str, Any]:
    """One optimizer on one family: rate and setting tuned, the rates extended until the best is inside.

    The criterion is the geometric mean over tasks of f/f(θ_0), from FLOOR to CEILING, at which a failure counts.
    """
    entry, family, settings = FAMILIES[where], family_of(where), settings_of(name)
    optimizer = optimizer_of(name, *GRIDS[name])
    tuned: dict[tuple[int, int], float] = {}  # (setting, exponent) -> criterion
    kept: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, np.ndarray | None]] = {}  # logs, curve, event
    low, high, start = FIRST, FIRST, FIRST
    while True:
        block = range(start, start + BLOCK)
        places = [(index, exponent) for index in range(len(settings)) for exponent in block]
        points = [{"learning_rate": 10 ** (exponent / 2), **settings[index]} for index, exponent in places]
        for place, value in zip(places, logs(runs(optimizer, points, family, entry, TUNING), entry), strict=True):
            tuned[place] = float(value.mean())
        reported = runs(optimizer, points, family, entry, REPORTED)
        events = [reported.final["train"][event] for event in family.events]
        for i, (place, value) in enumerate(zip(places, logs(reported, entry), strict=True)):
            above = reported.loss[i] - reported.bound[:, None]
            kept[place] = value, above, events[0][i] if events else None
        low, high = min(low, block[0]), max(high, block[-1])
        best = min(tuned, key=lambda place: tuned[place])
        # Without a single run that did not fail, only smaller rates can help.
        lower = best[1] == low or tuned[best] >= np.log(CEILING)
        start = low - BLOCK if lower else high + 1
        if (not lower and best[1] != high) or not BOUNDS[0] <= start <= BOUNDS[1] - BLOCK + 1:
            break
        if blocks is not None and len(tuned) >= blocks * BLOCK * len(settings):
            break
    value, curve, event = kept[best]
    exponents = range(low, high + 1)
    return {
        "rate": 10 ** (best[1] / 2),
        "setting": settings[best[0]],
        "inside": low < best[1] < high,
        "logs": value,
        "failed": float(np.mean(value >= np.log(CEILING) - 1e-9)),
        "event": None if event is None else float(event.mean()),
        "steps": reported.steps,
        "median": np.median(curve, axis=0),
        "q25": quantile(curve, 0.25),
        "q75": quantile(curve, 0.75),
        "rates": [10 ** (exponent / 2) for exponent in exponents],
        # On the reported tasks, the best setting at every rate: how much the rate matters.
        "by_rate": [float(np.exp(kept[best[0], exponent][0].mean())) for exponent in exponents],
    }


def log_ratio(values: Any, reference: Any) -> Mean:
    """The mean over tasks of the ratio of two optimizers' losses, in logarithms as these are given."""
    return mean_of(np.asarray(values, np.float64) - np.asarray(reference, np.float64))


def ratio(values: Any, reference: Any) -> tuple[float, float, float]:
    """Geometric mean over tasks of the ratio of two optimizers' losses, with a 95% t-interval of the logarithms."""
    logs = log_ratio(values, reference)
    low, high = logs.interval()
    return float(np.exp(logs.mean)), float(np.exp(low)), float(np.exp(high))


def best_of(record: Mapping[str, Any], where: str, names: Any = tuple(GRIDS)) -> str:
    """The optimizer that is lowest on the reported tasks."""
    return min(names, key=lambda name: float(np.mean(record["families"][where][name]["logs"])))
