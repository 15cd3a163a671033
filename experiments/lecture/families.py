"""Small families on which one thing is hard: a ravine, a saddle, a plateau, scales, rare words, noise, drift."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

from metaopt import Estimate, Oracle, TaskFamily, choice, make_task
from metaopt.data import load_dataset
from metaopt.experiment import build_family


class Entry(NamedTuple):
    """A family as the table has it."""

    make: Callable[[], TaskFamily]
    horizon: int
    tasks: int  # as many to tune on as are reported, and others
    hard: str  # what is hard about it
    online: bool = False  # judged by what its oracle says along the run, not by the loss at its end


# ----- landscapes in a random place and orientation -------------------------------------------------------------------


class Place(NamedTuple):
    centre: jax.Array  # [dim]
    rotation: jax.Array  # [dim, dim]


def _placed(name: str, dim: int, value: Callable[[jax.Array], jax.Array], start: Callable[..., Any]) -> TaskFamily:
    """f(x) = value(z), z = Q (x - s), with s ~ N(0, I) and Q a random rotation; `start` draws z_0."""

    def sample(key: jax.Array) -> Place:
        centre, rotation = jax.random.split(key)
        return Place(jax.random.normal(centre, (dim,)), jax.random.orthogonal(rotation, dim))

    def loss(x: jax.Array, task: Place) -> jax.Array:
        return value(jnp.matmul(task.rotation, x - task.centre, precision="highest"))

    def init(key: jax.Array, task: Place) -> jax.Array:
        return task.centre + start(key) @ task.rotation

    return make_task(loss, init, sample=sample, lower_bound=0.0, name=name)


def ravine(dim: int = 10, condition: float = 1e3) -> TaskFamily:
    """½ Σ h_i z_i², h from 1/condition to 1."""
    h = jnp.logspace(-np.log10(condition), 0, dim)
    return _placed("ravine", dim, lambda z: 0.5 * jnp.sum(h * z**2), lambda key: jax.random.normal(key, (dim,)))


def saddle(dim: int = 5, depth: float = 0.02) -> TaskFamily:
    """½ Σ_{i<D} h_i z_i² + depth (z_D² - 1)²/4, from |z_D| about 1e-4: a ridge that ends in a saddle."""
    h = jnp.logspace(-1, 0, dim - 1)

    def start(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (dim,)) * jnp.array([1.0] * (dim - 1) + [1e-4])

    return _placed("saddle", dim, lambda z: 0.5 * h @ z[:-1] ** 2 + depth * (z[-1] ** 2 - 1) ** 2 / 4, start)


def plateau(dim: int = 5, far: float = 8.0) -> TaskFamily:
    """1 - exp(-q), q = ½ Σ h_i z_i², h from .1 to 1, from q = 8, where the slope is e^-8 of what it is inside."""
    h = jnp.logspace(-1, 0, dim)

    def start(key: jax.Array) -> jax.Array:
        z = jax.random.normal(key, (dim,))
        return z * jnp.sqrt(2 * far / (h @ z**2))

    return _placed("plateau", dim, lambda z: -jnp.expm1(-0.5 * h @ z**2), start)


# ----- data -----------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    x: Any  # [rows, features]
    y: Any  # [rows]


def _logistic(w: jax.Array, task: Any, batch: Rows) -> jax.Array:
    return jnp.mean(jnp.logaddexp(0.0, -batch.y * (batch.x @ w)))


def cell_table(standardised: bool) -> tuple[np.ndarray, np.ndarray]:
    """([569, 11], [569] of ±1): ten mean measures of cells, from scikit-learn's breast cancer table, and a constant."""
    x, y = (np.asarray(part, float) for part in load_breast_cancer(return_X_y=True))
    x = x[:, :10]
    x = (x - x.mean(0)) / x.std(0) if standardised else x
    return np.column_stack([x, np.ones(len(x))]), 2.0 * y - 1


def cells(standardised: bool, rows: int = 300, batch_size: int = 32) -> TaskFamily:
    """Logistic regression on ten measures of cells, minibatches of 32 from 300 rows of the task; the measures as they
    are, of sizes .05 to 650, or standardised. What is lost is counted from the least there is."""
    data = Rows(*(part.astype(np.float32) for part in cell_table(standardised)))
    best_on = Rows(*(jnp.asarray(part, jnp.float32) for part in cell_table(True)))  # the same span

    def pick(data: Rows, chosen: jax.Array) -> Rows:
        return Rows(data.x[chosen], data.y[chosen])

    def least(chosen: jax.Array) -> jax.Array:
        batch = pick(best_on, chosen)

        def newton(w: jax.Array, _: None) -> Any:
            value, slope = jax.value_and_grad(_logistic)(w, (), batch)
            curvature = jax.hessian(_logistic)(w, (), batch) + 1e-6 * jnp.eye(len(w))
            return w - jnp.linalg.solve(curvature, slope), value

        with jax.default_matmul_precision("highest"):
            return jnp.min(jax.lax.scan(newton, jnp.zeros(batch.x.shape[1]), length=15)[1])

    return make_task(
        _logistic,
        lambda key: jnp.zeros(data.x.shape[1]),
        data=data,
        split=None,
        sample=lambda key: jax.random.permutation(key, len(data.y))[:rows],
        batch=lambda key, chosen, data: pick(data, jax.random.choice(key, chosen, (batch_size,))),
        eval_batch=lambda chosen, data: pick(data, chosen),
        lower_bound=least,
        name="cells, standardised" if standardised else "cells, raw",
    )


WORDS, DOCUMENTS = 200, 1000
FREQUENCY = np.minimum(0.5, 1.0 / np.arange(1, WORDS + 1))  # of the words, as Zipf has it


def rare_words(batch_size: int = 16) -> TaskFamily:
    """Logistic regression on bags of words, 1,000 documents: word j is in one of j; all words tell equally much."""
    x = np.random.default_rng(0).random((DOCUMENTS, WORDS)) < FREQUENCY

    def sample(key: jax.Array, data: jax.Array) -> jax.Array:
        truth, labels = jax.random.split(key)
        score = data @ (2 * jax.random.normal(truth, (WORDS,)))
        return jnp.where(jax.random.uniform(labels, (DOCUMENTS,)) < jax.nn.sigmoid(score), 1.0, -1.0)

    def batch(key: jax.Array, y: jax.Array, data: jax.Array) -> Rows:
        chosen = jax.random.randint(key, (batch_size,), 0, DOCUMENTS)
        return Rows(data[chosen], y[chosen])

    return make_task(
        _logistic,
        lambda key: jnp.zeros(WORDS),
        data=x.astype(np.float32),
        split=None,
        sample=sample,
        batch=batch,
        eval_batch=lambda y, data: Rows(data, y),
        lower_bound=0.0,
        name="rare words",
    )


def noisy() -> TaskFamily:
    """Least squares on the diabetes table, minibatches of 4; what least squares leaves is its lower bound."""
    train = load_dataset("diabetes", targets="numbers").train
    x = np.column_stack([np.asarray(train.inputs, np.float64), np.ones(len(train.inputs))])
    y = np.asarray(train.targets, np.float64)
    left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    family = build_family(choice("regression_network", hidden_layers=0, batch_size=4))
    return dataclasses.replace(family, lower_bound=float(np.mean(left**2)))


# ----- data that drift ------------------------------------------------------------------------------------------------


class Drift(NamedTuple):
    """An oracle's state: what the data are like by now."""

    step: jax.Array
    world: Any


def _drifting(
    name: str,
    draw: Callable[[jax.Array], Any],
    change: Callable[[Any, jax.Array, jax.Array], Any],
    batch: Callable[[jax.Array, Any, Any], Any],
    loss: Callable[..., Any],
    init: Callable[[jax.Array], Any],
    error: Callable[..., Any],
    data: Any = None,
) -> TaskFamily:
    """A family whose oracle carries the world that its batches are drawn from, and tells how far off θ is.

    Args:
      change: (world, step, key) -> the world at the next step.
      error: (params, world, loss of the batch) -> what the run is judged by.
    """

    def estimate(family: TaskFamily, task: Any, params: Any, state: Drift, key: jax.Array) -> tuple[Estimate, Drift]:
        change_key, batch_key = jax.random.split(key)
        world = change(state.world, state.step, change_key)
        drawn = batch(batch_key, world, family.data["train"])
        value, gradient = jax.value_and_grad(family.loss)(params, task, drawn)
        return Estimate(gradient, value, {"error": error(params, world, value)}), Drift(state.step + 1, world)

    oracle = Oracle(lambda family, task, params, key: Drift(jnp.int32(0), task), estimate)
    given: dict[str, Any] = {} if data is None else {"data": data, "split": None}
    first = (lambda key, world: batch(key, world, ())) if data is None else batch
    return make_task(loss, init, sample=draw, batch=first, oracle=oracle, lower_bound=0.0, name=name, **given)


class Line(NamedTuple):
    truth: jax.Array  # [dim]
    size: jax.Array  # of the inputs


def _regression(name: str, change: Callable[..., Any], dim: int = 10) -> TaskFamily:
    """Least squares on 8 fresh examples a step; the error is mean (w - ŵ)², whatever the size of the inputs."""

    def batch(key: jax.Array, world: Line, data: Any) -> Rows:
        x_key, noise = jax.random.split(key)
        x = world.size * jax.random.normal(x_key, (8, dim))
        return Rows(x, x @ world.truth + 0.1 * world.size * jax.random.normal(noise, (8,)))

    return _drifting(
        name,
        lambda key: Line(jax.random.normal(key, (dim,)), jnp.float32(1.0)),
        change,
        batch,
        lambda w, task, batch: 0.5 * jnp.mean((batch.y - batch.x @ w) ** 2),
        lambda key: jnp.zeros(dim),
        lambda w, world, value: jnp.mean((w - world.truth) ** 2),
    )


def moving() -> TaskFamily:
    """The optimum is a random walk, .02 a step and coordinate."""
    return _regression(
        "moving optimum",
        lambda world, step, key: Line(world.truth + 0.02 * jax.random.normal(key, world.truth.shape), world.size),
    )


EVERY = 250  # steps between changes


def regimes() -> TaskFamily:
    """Every 250 steps another optimum and another size of the inputs, from .1 to 10: gradients from .01 to 100."""

    def change(world: Line, step: jax.Array, key: jax.Array) -> Line:
        truth, size = jax.random.split(key)
        new = Line(
            jax.random.normal(truth, world.truth.shape), 10.0 ** jax.random.uniform(size, (), minval=-1.0, maxval=1.0)
        )
        return jax.tree.map(lambda a, b: jnp.where((step > 0) & (step % EVERY == 0), a, b), new, world)

    return _regression("changing regimes", change)


def relabelled() -> TaskFamily:
    """Softmax regression on digits, minibatches of 8; every 250 steps the ten labels are dealt out anew."""
    images, labels = load_digits(return_X_y=True)

    def batch(key: jax.Array, names: jax.Array, data: Rows) -> Rows:
        chosen = jax.random.randint(key, (8,), 0, len(data.y))
        return Rows(data.x[chosen], names[data.y[chosen]])

    def loss(w: jax.Array, task: Any, batch: Rows) -> jax.Array:
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(batch.x @ w) * jax.nn.one_hot(batch.y, 10), axis=-1))

    return _drifting(
        "relabelled digits",
        lambda key: jax.random.permutation(key, 10),
        lambda names, step, key: jnp.where((step > 0) & (step % EVERY == 0), jax.random.permutation(key, 10), names),
        batch,
        loss,
        lambda key: jnp.zeros((64, 10)),
        lambda w, names, value: value,
        data=Rows((images / 16).astype(np.float32), labels.astype(np.int32)),
    )


def _built(name: str, **options: Any) -> Callable[[], TaskFamily]:
    return functools.partial(build_family, choice(name, **options))


FAMILIES: dict[str, Entry] = {
    "ravine": Entry(ravine, 500, 32, "curvatures from .001 to 1, in no one's axes"),
    "Rosenbrock": Entry(_built("rosenbrock"), 1000, 32, "a bent valley between steep walls"),
    "Rosenbrock, long": Entry(_built("rosenbrock"), 10_000, 32, "the same for ten times as long"),
    "saddle": Entry(saddle, 300, 32, "a slope that vanishes at a saddle"),
    "plateau": Entry(plateau, 300, 32, "a slope of e^-8 of that near the minimum"),
    "sigmoid network": Entry(
        _built("classifier", hidden_layers=3, width=16, activation="sigmoid", batch_size=16), 400, 6,
        "digits, three sigmoid layers: a plateau of their own",
    ),
    "two minima": Entry(
        _built("tilted_double_well", dim=2, stretch=2.0, rotate=True), 300, 64, "a wrong minimum in each direction"
    ),
    "cells, standardised": Entry(functools.partial(cells, True), 500, 32, "no one thing: logistic regression"),
    "cells, raw": Entry(functools.partial(cells, False), 500, 32, "the same with features of sizes .05 to 650"),
    "rare words": Entry(rare_words, 500, 16, "word j in one document of j"),
    "noise": Entry(noisy, 500, 32, "diabetes, minibatches of 4: excess over least squares"),
    "network": Entry(_built("classifier", batch_size=32), 300, 6, "digits, one hidden layer of 20"),
    "moving optimum": Entry(moving, 2000, 32, "an optimum that walks at random", online=True),
    "changing regimes": Entry(regimes, 2000, 32, "another optimum and scale every 250 steps", online=True),
    "relabelled digits": Entry(relabelled, 1500, 8, "labels dealt out anew every 250 steps", online=True),
}  # fmt: skip
