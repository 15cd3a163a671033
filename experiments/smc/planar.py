"""Energy-based models in the plane: fitted under contrastive oracles, then tuned by a reward; truth on a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.smc.mixtures import KEY, Run, run, speaking
from metaopt.choices import parse_choice
from metaopt.experiment import build_family
from metaopt.tasks import energy_networks
from metaopt.tasks.energy_networks import lower_half, network_energy, on_grid
from metaopt.types import Params, TaskFamily

DATA = ("moons", "circles", "blobs")
# 1000 energy gradients a step under each.
FITTING = {
    "SOSMC-ULA": "sosmc:num_particles=1000,step_size=0.01,min_step_size=0.0005,max_step_size=0.05",
    "ImpDiff": "impdiff:num_particles=1000,step_size=0.01",
    "PCD": "pcd:num_particles=50,steps=20,replay=2000,step_size=0.01",
    "ImpDiff, h = .002": "impdiff:num_particles=1000,step_size=0.002",
    "PCD, h = .002": "pcd:num_particles=50,steps=20,replay=2000,step_size=0.002",
}
FIT_SEEDS, FIT_STEPS, FIT_RATE = 5, 4000, 2e-3
TUNING = {
    "SOSMC-ULA": "sosmc:num_particles=1000,step_size=0.005,max_step_size=0.01",
    "SOSMC-MALA": "sosmc:kernel=mala,num_particles=1000,step_size=0.005,max_step_size=0.01",
    "ImpDiff": "impdiff:num_particles=1000,step_size=0.005",
    "PCD": "pcd:num_particles=100,steps=10,replay=1000,fresh=0.0,step_size=0.005",
}
SEEDS, STEPS, RATE, BETA = 10, 1000, 1e-3, 0.25
BETAS, BETA_SEEDS = (0.05, 1.0, 4.0), 3  # beside BETA
POINTS = 20  # exact values of a run
LANGEVIN, SHOWN = 300, 400  # steps of the samples, and how many of them


def work(record: Mapping[str, Any]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for data in DATA:
        for method in FITTING:
            yield f"energy model, {data}", method, partial(fitted, data, method)
    for method in TUNING:
        yield "energy model, tuned", method, partial(tuned, record, method, BETA, SEEDS)
    for beta in BETAS:
        yield "energy model, tuned", f"β = {beta:g}", partial(tuned, record, "SOSMC-ULA", beta, BETA_SEEDS)


def model(data: str) -> TaskFamily:
    return build_family(parse_choice(f"energy_model:data={data}"))


def in_layers(row: Any) -> Params:
    """A model's parameters out of one row."""
    family = model(DATA[0])
    _, back = ravel_pytree(family.init(KEY, family.sample(KEY, family.data)))
    return back(jnp.asarray(row, jnp.float32))


def _at_points(found: Run, steps: int) -> tuple[np.ndarray, Params]:
    """(steps, θ [points, seeds, ...])."""
    chosen = np.linspace(0, steps, POINTS + 1).astype(int)[1:]
    return chosen, jax.tree.map(lambda leaf: jnp.asarray(leaf[chosen - 1]), found.theta)


def _last(found: Run) -> np.ndarray:
    """The first seed's parameters at the end, in one row."""
    return np.asarray(ravel_pytree(jax.tree.map(lambda leaf: leaf[-1, 0], found.theta))[0])


def fitted(data: str, method: str) -> dict[str, Any]:
    """Losses on held-out points with log Z from the grid, and Langevin samples of the first seed's model."""
    family = model(data)
    speaks = speaking(family, lambda task, x: lower_half(x))
    found = run(speaks, FITTING[method], rate=FIT_RATE, steps=FIT_STEPS, seeds=FIT_SEEDS)
    steps, theta = _at_points(found, FIT_STEPS)

    def loss(theta: Params, task: Any) -> jax.Array:
        return family.loss(theta, task, family.eval_batch(task, family.data, "test"))

    losses = jax.jit(lambda theta: jax.lax.map(lambda one: jax.vmap(loss)(one, found.task), theta))(theta)
    row = _last(found)
    rotation = np.asarray(found.task.rotation[0])
    return {
        "seconds": found.seconds,
        "gradients": float(found.info["energy_gradients"].mean()),
        "steps": steps,
        "loss": np.asarray(losses).T,  # [seeds, points]
        "least_ess": found.info["ess"].min(axis=0),
        "collapsed": found.info["collapsed"].sum(axis=0),
        "nonfinite": found.info["nonfinite"].max(axis=0),
        "step_size": found.info["step_size"][-1],
        "rotation": rotation,
        "theta": row,
        "samples": np.round(samples(row) @ rotation.T, 3),
    }


def samples(row: np.ndarray) -> np.ndarray:
    """[SHOWN, 2] after so many Langevin steps from noise."""
    theta = in_layers(row)
    slope = jax.vmap(jax.grad(lambda x: network_energy(theta, x)))

    def step(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return x - 0.01 * slope(x) + jnp.sqrt(0.02) * jax.random.normal(key, x.shape), None

    start_key, walk_key = jax.random.split(KEY)
    start = 2 * jax.random.normal(start_key, (SHOWN, 2))
    return np.asarray(jax.jit(lambda: jax.lax.scan(step, start, jax.random.split(walk_key, LANGEVIN))[0])())


def tuned(record: Mapping[str, Any], method: str, beta: float, seeds: int) -> dict[str, Any]:
    """The rings' model of SOSMC-ULA, tuned to lie below the axis: exact reward and KL on the way, and the optimum's."""
    reference = in_layers(record["energy model, circles"]["SOSMC-ULA"]["found"]["theta"])
    family = energy_networks.tuned_energy_model(reference, beta=beta)
    found = run(speaking(family, lambda task, x: lower_half(x)), TUNING[method], rate=RATE, steps=STEPS, seeds=seeds)
    steps, theta = _at_points(found, STEPS)

    def exact(theta: Params) -> jax.Array:
        at = family.metrics(theta, (), family.data)  # pyright: ignore[reportOptionalCall]
        return jnp.stack([at["reward"], at["kl"]])

    values = np.asarray(jax.jit(lambda theta: jax.lax.map(jax.vmap(exact), theta))(theta), np.float64)
    grid = on_grid(reference)
    gains = np.asarray(jax.vmap(lower_half)(grid.centres), np.float64)
    before = np.asarray(grid.log_probabilities, np.float64)
    best = np.exp(before + gains / beta)
    best /= best.sum()
    return {
        "seconds": found.seconds,
        "gradients": float(found.info["energy_gradients"].mean()),
        "steps": steps,
        "reward": values[..., 0].T,  # [seeds, points]
        "kl": values[..., 1].T,
        "said": found.said[-1],
        "error": np.abs(found.said[steps - 1].T - values[..., 0].T).max(axis=1),
        "reference_reward": np.exp(before) @ gains,
        "best_reward": best @ gains,
        "best_kl": best @ (np.log(np.maximum(best, 1e-300)) - before),
        "least_ess": found.info["ess"].min(axis=0),
        "collapsed": found.info["collapsed"].sum(axis=0),
        "nonfinite": found.info["nonfinite"].max(axis=0),
        "theta": _last(found),
    }
