"""Energy-based models in the plane: a network's energy, fitted to data and then tuned by a reward, with grid truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.registry import TASKS
from metaopt.tasks.energy import Divergence, tuning_surrogate
from metaopt.tasks.settings import check_batch_size, check_count, check_option, check_positive
from metaopt.types import Batch, Data, Key, Law, Params, Scalar, Split, TaskFamily

Points = Literal["moons", "circles", "blobs"]
REACH = 5.0  # of the grid, to either side
CELLS = 120  # a side, an even number, so that no cell lies across an axis
POINTS = {"train": 2000, "validation": 500, "test": 500}


class Turned(NamedTuple):
    """A task: the data at an angle."""

    rotation: jax.Array  # [2, 2]


def points(name: Points, number: int, seed: int) -> np.ndarray:
    """[number, 2] float32, of about unit scale: two moons, two rings, or eight blobs on a ring of radius 2."""
    rng = np.random.default_rng(seed)
    angle, first = rng.uniform(0, np.pi, number), rng.random(number) < 0.5
    noise = rng.normal(size=(number, 2))
    if name == "moons":
        upper = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1)
        x = 1.6 * np.where(first[:, None], upper, -upper) + 0.12 * noise
    elif name == "circles":
        radius = np.where(first, 1.0, 2.0)[:, None]
        x = radius * np.stack([np.cos(2 * angle), np.sin(2 * angle)], axis=1) + 0.1 * noise
    else:
        corner = np.pi / 4 * rng.integers(8, size=number)
        x = 2 * np.stack([np.cos(corner), np.sin(corner)], axis=1) + 0.2 * noise
    return x.astype(np.float32)


def network_energy(params: Params, x: jax.Array) -> Scalar:
    """U_θ(x) = ½|x|² + a SiLU network of x [2], which alone would have no normaliser where it falls without end."""
    hidden = x
    for layer in params[:-1]:
        hidden = jax.nn.silu(hidden @ layer["w"] + layer["b"])
    return 0.5 * jnp.sum(x**2) + (hidden @ params[-1]["w"] + params[-1]["b"])[0]


class Grid(NamedTuple):
    """The law on a grid of cells."""

    centres: jax.Array  # [cells, 2]
    log_probabilities: jax.Array  # [cells] of a cell
    log_normaliser: jax.Array  # [] log Z, by the midpoint rule


def on_grid(params: Params, dtype: Any = jnp.float32) -> Grid:
    """The normaliser and the cells' probabilities on [-5, 5]²; beyond lies less than 1e-5 of N(0, I)."""
    side = (jnp.arange(CELLS, dtype=dtype) + 0.5) * (2 * REACH / CELLS) - REACH
    centres = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    logs = -jax.vmap(lambda x: network_energy(params, x))(centres)
    total = jax.nn.logsumexp(logs)
    return Grid(centres, logs - total, total + 2 * math.log(2 * REACH / CELLS))


def draw_from(grid: Grid, key: Key) -> jax.Array:
    """One x [2] of the law, even within its cell."""
    which_key, within_key = jax.random.split(key)
    upto = jnp.cumsum(jnp.exp(grid.log_probabilities))
    cell = jnp.searchsorted(upto, jax.random.uniform(which_key, (), upto.dtype) * upto[-1])
    within = jax.random.uniform(within_key, (2,), upto.dtype, minval=-0.5) * (2 * REACH / CELLS)
    return grid.centres.at[cell].get(mode="clip") + within


def _init(key: Key, width: int, hidden_layers: int) -> Params:
    """One dict a layer; the last is zero, so that the first law is N(0, I)."""
    sizes = [2, *[width] * hidden_layers, 1]
    layers = []
    for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        scale = math.sqrt(2 / inputs) if i < hidden_layers else 0.0
        weights = scale * jax.random.normal(jax.random.fold_in(key, i), (inputs, outputs))
        layers.append({"w": weights, "b": jnp.zeros(outputs)})
    return layers


@TASKS.register
def energy_model(data: Points = "moons", hidden_layers: int = 2, width: int = 32, batch_size: int = 250) -> TaskFamily:
    """f(θ) = mean U_θ(y) + log Z_θ over points y of the plane: an energy-based model by maximum likelihood.

    U_θ(x) = ½|x|² + a SiLU network, from the law N(0, I). ∇f = mean ∇U(y) - E_θ ∇U(x), which oracles estimate; the
    loss itself has Z from a grid of 120² cells on [-5, 5]². Tasks differ by a rotation of the data, the network's first
    weights and minibatches. Parameters are a list of {"w", "b"}, one a layer.

    Args:
      data: `moons`, `circles` or `blobs`.
      hidden_layers: of the network.
      width: of a hidden layer.
      batch_size: points of a minibatch.

    Raises:
      ValueError: settings out of range.
    """
    check_option("data", data, get_args(Points))
    check_count("hidden_layers", hidden_layers, most=10)
    check_count("width", width)
    check_batch_size(batch_size, POINTS["train"], f" in {data}")
    splits: tuple[Split, ...] = ("train", "validation", "test")
    held = {split: jnp.asarray(points(data, POINTS[split], seed)) for seed, split in enumerate(splits)}

    def sample(key: Key, data: Data) -> Turned:
        angle = jax.random.uniform(key, (), minval=-jnp.pi, maxval=jnp.pi)
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        return Turned(jnp.stack([jnp.stack([cosine, sine]), jnp.stack([-sine, cosine])]))

    def batch(key: Key, task: Turned, data: Data) -> Batch:
        return data["train"][jax.random.randint(key, (batch_size,), 0, POINTS["train"])] @ task.rotation

    def mean_energy(params: Params, x: jax.Array) -> Scalar:
        return jnp.mean(jax.vmap(lambda x: network_energy(params, x))(x))

    def surrogate(params: Params, task: Turned, x: jax.Array, weights: jax.Array, batch: Batch) -> Scalar:
        return mean_energy(params, batch) - weights @ jax.vmap(lambda x: network_energy(params, x))(x)

    return TaskFamily(
        data=held,
        sample=sample,
        init=lambda key, task: _init(key, width, hidden_layers),
        batch=batch,
        loss=lambda params, task, batch: mean_energy(params, batch) + on_grid(params, batch.dtype).log_normaliser,
        eval_batch=lambda task, data, split: data[split] @ task.rotation,
        splits=splits,
        evaluated_on="all points of a split, the normaliser on a grid",
        lower_bound=None,
        law=Law(
            dim=2,
            energy=lambda params, task, x: network_energy(params, x),
            start=lambda key, params, task, data: jax.random.normal(key, (2,)),
            surrogate=surrogate,
        ),
    )


def lower_half(x: jax.Array) -> Scalar:
    """1 below the first axis, else 0: the reward of the paper's planar models."""
    return jnp.where(x[1] < 0, 1.0, 0.0).astype(x.dtype)


def tuned_energy_model(
    reference: Params,
    *,
    beta: float = 0.25,
    kl: Divergence = "model_ref",
    reward: Callable[[jax.Array], Scalar] = lower_half,
) -> TaskFamily:
    """f(θ) = -E_θ R + β KL to a fitted energy model, which θ begins as; all of f on the grid.

    Under KL(π_θ‖ref) nothing is below -β log E_ref e^{R/β}, where π ∝ ref e^{R/β}: the stated `lower_bound`.

    Args:
      reference: the fitted model's parameters, those of `energy_model`.
      beta: β.
      kl: `model_ref` is KL(π_θ‖ref), `ref_model` KL(ref‖π_θ).
      reward: of one x [2].

    Raises:
      ValueError: settings out of range.
    """
    check_option("kl", kl, get_args(Divergence))
    check_positive("beta", beta)
    reference = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), reference)
    forward = kl == "ref_model"
    known = on_grid(reference)
    gains = jax.vmap(reward)(known.centres)
    data = {"reference": reference, "log_probabilities": known.log_probabilities, "gains": gains}
    best = -jnp.max(gains) if forward else -beta * jax.nn.logsumexp(known.log_probabilities + gains / beta)

    def values(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logs, before = on_grid(params).log_probabilities, batch["log_probabilities"]
        one, other = (before, logs) if forward else (logs, before)
        return jnp.exp(logs) @ batch["gains"], jnp.exp(one) @ (one - other)

    def loss(params: Params, task: Any, batch: Batch) -> Scalar:
        gained, divergence = values(params, batch)
        return beta * divergence - gained

    def surrogate(params: Params, task: Any, x: jax.Array, weights: jax.Array, batch: Batch) -> Scalar:
        energies = jax.vmap(lambda x: network_energy(params, x))(x)
        gain = jax.vmap(reward)(x)
        if forward:
            grid = on_grid(batch["reference"])
            expected = jnp.exp(grid.log_probabilities) @ jax.vmap(lambda x: network_energy(params, x))(grid.centres)
            return tuning_surrogate(energies, gain, weights, beta, expected=expected)
        before = jax.vmap(lambda x: network_energy(batch["reference"], x))(x)
        return tuning_surrogate(energies, gain, weights, beta, reference=before)

    def metrics(params: Params, task: Any, batch: Batch) -> dict[str, Scalar]:
        return dict(zip(("reward", "kl"), values(params, batch), strict=True))

    return TaskFamily(
        data=data,
        sample=lambda key, data: (),
        init=lambda key, task: reference,
        batch=lambda key, task, data: data,
        loss=loss,
        eval_batch=lambda task, data, split: data,
        metrics=metrics,
        name="tuned_energy_model",
        evaluated_on="the exact value, on a grid",
        lower_bound=float(best),
        law=Law(
            dim=2,
            energy=lambda params, task, x: network_energy(params, x),
            start=lambda key, params, task, data: draw_from(on_grid(params), key),
            surrogate=surrogate,
        ),
    )
