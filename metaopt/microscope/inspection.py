"""The microscope: what an optimizer does, measured beside Adam and momentum. `inspect_optimizer` gives plain JSON."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.choices import choice
from metaopt.evaluation.curves import as_optimizer
from metaopt.evaluation.outcomes import run
from metaopt.evaluation.recording import plan
from metaopt.evaluation.statistics import jsonable
from metaopt.evaluation.tuning import TUNED, tune_baselines
from metaopt.experiment import build_family, build_optimizer
from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import matmul_precision
from metaopt.inner.step import Seen, reset
from metaopt.inner.unroll import unroll
from metaopt.microscope.gradient_quality import QUICKLY_COMPILED
from metaopt.microscope.inspect_gradients import (
    RESPONSE_GRID,
    RESPONSE_SCALES,
    SCALES,
    Stream,
    drawn_stream,
    lengths,
    over_time,
    responses,
)
from metaopt.trees import ravel_tasks
from metaopt.types import Key, MetaParams, Optimizer, Params, TaskFamily

Subjects = Mapping[str, tuple[Optimizer, MetaParams]]  # by the label that they are shown with
RIVALS = ("momentum", "adam")
RATE = 0.01  # of the rivals on drawn gradients
NETWORK = choice("classifier")
NETWORK_STEPS, FOLLOWED = 520, 64  # steps on the network; coordinates whose steps are explained
NOISE = (0.0, 0.1, 0.3, 1.0)  # of the quadratic's minimum
NOISY_STEPS, NOISY_TASKS = 500, 16
LANDSCAPE_STEPS = 200
VIEWS = {  # name -> (x from, to, y from, to), start
    "Rosenbrock": ((-2.0, 2.0, -1.0, 3.0), (-1.2, 1.0)),
    "ravine": ((-3.0, 1.0, -1.5, 1.5), (-2.5, 1.0)),
    "saddle": ((-2.0, 1.0, -1.8, 1.8), (-1.6, 0.02)),
}
CELLS, KEPT = 41, 201  # of a picture's grid, each way; points of a path at most


def inspect_optimizer(
    name: str, entry: Any, *, seed: int = 0, progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Any]:
    """Everything about one optimizer, in less than a minute for a small network.

    Args:
      entry: (optimizer, φ), or an optax transformation that needs no more than gradients, parameters, key and value.
      progress: called with (parts done, parts, what is begun).

    Raises:
      ValueError: a transformation that needs what an inner loop does not have.
    """
    network = build_family(NETWORK)
    own = as_optimizer(entry, network, name)
    subjects = {name: own}
    for rival in RIVALS:
        built = build_optimizer(choice(rival, learning_rate=RATE))
        subjects[f"{rival}, rate {RATE:g}"] = (built, built.init(jax.random.key(0)))
    parts: dict[str, Callable[[Key], dict[str, Any]]] = {
        "responses to gradients": lambda key: _responses(subjects, key),
        "steps on drawn gradients": lambda key: _drawn(subjects, key),
        "a network": lambda key: _network(own, name, network, key),
        "a noisy quadratic": lambda key: {"noise": [_noisy(own, name, noise, key) for noise in NOISE]},
        "landscapes": lambda key: {"landscapes": [_landscape(own, name, view, key) for view in VIEWS]},
    }
    keys = jax.random.split(jax.random.key(seed), len(parts))
    found: dict[str, Any] = {"name": name, "optimizers": list(subjects), "seed": seed}
    # Most of the time goes into compilation, which takes one core.
    workers = ThreadPoolExecutor(max_workers=2)
    try:
        begun = [workers.submit(part, key) for part, key in zip(parts.values(), keys, strict=True)]
        for number, (what, part) in enumerate(zip(parts, begun, strict=True)):
            if progress is not None:
                progress(number, len(parts), what)
            found |= part.result()
    finally:
        workers.shutdown(wait=False, cancel_futures=True)
    return jsonable(found)


def _responses(subjects: Subjects, key: Key) -> dict[str, Any]:
    found = []
    for subject in subjects.values():
        steps, size = responses(*subject, key)
        found.append({"step": np.asarray(steps), "rms": np.asarray(size)})
    return {"response": {"scale": RESPONSE_SCALES, "gradient": RESPONSE_GRID, "optimizers": found}}


def _drawn(subjects: Subjects, key: Key) -> dict[str, Any]:
    streams = [Stream(*map(np.asarray, drawn_stream(*subject, key))) for subject in subjects.values()]
    unit = SCALES.index(1.0)
    at_one = [Stream(*(part[:, unit] for part in stream)) for stream in streams]
    return {"drawn": [over_time(stream) for stream in at_one], "length": [lengths(stream) for stream in streams]}


def _tuned(family: TaskFamily, key: Key, horizon: int, num_tasks: int) -> Subjects:
    """The rivals with the rates that end lowest on the family."""
    tuned = tune_baselines(family, key, horizon=horizon, num_tasks=num_tasks, names=RIVALS, budget="9x1", num_devices=1)
    return {f"{name}, rate {record[TUNED]:.2g}": (optimizer, phi) for name, (optimizer, phi, record) in tuned.items()}


# ----- a noisy quadratic ----------------------------------------------------------------------------------------------


def noisy_quadratic(noise: float, dim: int = 16) -> TaskFamily:
    """½ mean h_i (x_i - σ b_i)², h from .01 to 1, b ~ N(0, 1) anew each step (Zhang et al. 2019); judged at b = 0."""
    return dataclasses.replace(_quadratic(dim), data=jnp.float32(noise))


@functools.cache
def _quadratic(dim: int) -> TaskFamily:
    # Made once, and what differs is data: one program for all.
    curvature = jnp.logspace(-2, 0, dim)
    return TaskFamily(
        data=jnp.float32(0.0),
        sample=lambda key, noise: (),
        init=lambda key, task: jax.random.normal(key, (dim,)),
        batch=lambda key, task, noise: noise * jax.random.normal(key, (dim,)),
        loss=lambda params, task, batch: 0.5 * jnp.mean(curvature * (params - batch) ** 2),
        eval_batch=lambda task, noise, split: jnp.zeros(dim),
        name="noisy quadratic",
    )


def _noisy(subject: tuple[Optimizer, MetaParams], name: str, noise: float, key: Key) -> dict[str, Any]:
    """Mean loss over time, and its mean over the last tenth; the rivals tuned for this noise."""
    family = noisy_quadratic(noise)
    tuning_key, key = jax.random.split(key)
    rivals = _tuned(family, tuning_key, NOISY_STEPS, NOISY_TASKS)
    steps = plan(family, NOISY_STEPS, every=10)
    how: dict[str, Any] = {"steps": steps, "num_tasks": NOISY_TASKS, "num_devices": 1}
    curves = []
    for label, (optimizer, meta_params) in {name: subject, **rivals}.items():
        loss = run(optimizer, meta_params, family, key, **how).loss.mean(axis=0)
        curves.append({"name": label, "loss": loss, "stationary": float(loss[-len(loss) // 10 :].mean())})
    return {"noise": noise, "step": steps, "optimizers": curves}


# ----- paths ----------------------------------------------------------------------------------------------------------


def planes(heights: Callable[[Params], list[jax.Array]], starts: Any) -> TaskFamily:
    """Functions of (x, y) as one family, for which one program serves; its `data` says which of them a task is."""
    begun = jnp.asarray(starts)
    return TaskFamily(
        data=jnp.int32(0),
        sample=lambda key, which: which,
        init=lambda key, task: begun[task],
        batch=lambda key, task, which: (),
        loss=lambda params, task, batch: jnp.stack(heights(params))[task],
        eval_batch=lambda task, which, split: (),
        name="landscape",
    )


@functools.cache
def _landscapes() -> TaskFamily:
    def heights(params: Params) -> list[jax.Array]:
        x, y = params
        return [
            (1 - x) ** 2 + 100 * (y - x**2) ** 2,
            0.5 * (x**2 + 50 * y**2),
            0.5 * x**2 + 0.25 * (y**2 - 1) ** 2,  # at (0, 0), between minima at y = ±1
        ]

    return planes(heights, [start for _, start in VIEWS.values()])


@functools.partial(jax.jit, static_argnames=("optimizer", "length"), compiler_options=QUICKLY_COMPILED)
def follow(optimizer: Optimizer, meta_params: MetaParams, family: TaskFamily, key: Key, *, length: int) -> Any:
    """One inner run: (`Stream` [length, D], θ at its end [D], f(θ_1) ... f(θ_length) [length] as estimated)."""
    tx = bind_tasks(optimizer, meta_params)
    with matmul_precision("highest"):
        task, state = reset(tx, family, key[None])

        def seen(step: Seen) -> Stream:
            parts = (step.before.estimate.gradient, step.updates, step.before.params)
            return Stream(*(ravel_tasks(part, jnp.float32)[0][0] for part in parts))

        state, trace = unroll(tx, family, task, state, length=length, observe=seen)
    return trace.observed, ravel_tasks(state.params, jnp.float32)[0][0], trace.loss[:, 0]


def _thinned(path: np.ndarray) -> np.ndarray:
    """[points, 2] at most `KEPT` of a path's."""
    return path[np.unique(np.linspace(0, len(path) - 1, KEPT).round().astype(int))]


def _landscape(subject: tuple[Optimizer, MetaParams], name: str, view: str, key: Key) -> dict[str, Any]:
    """Paths from one start, the rivals with the rates that end lowest, and log10 f on a grid."""
    family = dataclasses.replace(_landscapes(), data=jnp.int32(list(VIEWS).index(view)))
    rivals = _tuned(family, key, LANDSCAPE_STEPS, 1)
    paths = []
    for label, (optimizer, meta_params) in {name: subject, **rivals}.items():
        stream, end, loss = follow(optimizer, meta_params, family, key, length=LANDSCAPE_STEPS)
        path = np.concatenate([stream.params, end[None]])
        paths.append({"name": label, "path": _thinned(path), "final": float(loss[-1])})
    (left, right, low, high), _ = VIEWS[view]
    x, y = np.linspace(left, right, CELLS), np.linspace(low, high, CELLS)
    points = jnp.stack(jnp.meshgrid(jnp.asarray(x), jnp.asarray(y)), axis=-1)  # [y, x, 2]
    loss = jax.vmap(jax.vmap(lambda point: family.loss(point, family.data, ())))(points)
    return {"name": view, "x": x, "y": y, "log_loss": np.log10(np.maximum(loss, 1e-2)), "paths": paths}


def _network(subject: tuple[Optimizer, MetaParams], name: str, family: TaskFamily, key: Key) -> dict[str, Any]:
    """Runs on a network: some coordinates' steps explained, and paths on the plane of the subject's own."""
    rivals = _tuned(family, key, NETWORK_STEPS, 1)
    explained, paths, params = [], [], {}
    for label, (optimizer, meta_params) in {name: subject, **rivals}.items():
        stream, end, loss = follow(optimizer, meta_params, family, key, length=NETWORK_STEPS)
        sample = np.random.default_rng(0).permutation(stream.params.shape[1])[:FOLLOWED]
        some = Stream(*(np.asarray(part)[:, sample] for part in stream))
        explained.append({"name": label, "windows": over_time(some)})
        params[label] = np.concatenate([stream.params, end[None]])
        paths.append({"name": label, "final": float(loss[-20:].mean())})
    own = params[name]
    centre = own[-1]
    moves = np.where(np.isfinite(own), own, 0.0) - np.where(np.isfinite(centre), centre, 0.0)
    _, sizes, axes = np.linalg.svd(moves, full_matrices=False)  # of θ_t - θ_T (Li et al. 2018)
    for entry in paths:
        entry["path"] = _thinned((params[entry["name"]] - centre) @ axes[:2].T)
    sizes = np.nan_to_num(sizes)
    ends = np.concatenate([entry["path"] for entry in paths])
    ends = ends[np.isfinite(ends).all(axis=1)] if np.isfinite(ends).all(axis=1).any() else np.zeros((1, 2))
    low, high = ends.min(axis=0), ends.max(axis=0)
    margin = 0.15 * (high - low) + 1e-3
    x, y = (np.linspace(a, b, CELLS) for a, b in zip(low - margin, high + margin, strict=True))
    loss = _plane(family, jnp.asarray(centre), jnp.asarray(axes[:2]), jnp.asarray(x), jnp.asarray(y), key)
    plane = {
        "name": family.name,
        "x": x,
        "y": y,
        "log_loss": np.log10(np.maximum(loss, 1e-6)),
        "explained": float(np.sum(sizes[:2] ** 2) / max(np.sum(sizes**2), 1e-300)),
        "paths": paths,
    }
    return {"task": explained, "network": plane}


@jax.jit
def _plane(family: TaskFamily, centre: jax.Array, axes: jax.Array, x: jax.Array, y: jax.Array, key: Key) -> jax.Array:
    """[y, x] the training loss at centre + x axes_0 + y axes_1."""
    task_key, init_key, *_ = jax.random.split(key, 4)
    task = family.sample(task_key, family.data)
    _, unravel = ravel_tasks(jax.tree.map(lambda leaf: leaf[None], family.init(init_key, task)), jnp.float32)
    batch = family.eval_batch(task, family.data, "train")

    def loss(point: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda leaf: leaf[0], unravel((centre + point @ axes)[None]))
        return family.loss(params, task, batch)

    return jax.lax.map(loss, jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(-1, 2)).reshape(len(y), len(x))
