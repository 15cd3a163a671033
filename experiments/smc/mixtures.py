"""Reward tuning of mixtures under particle oracles, judged by exact values."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.choices import parse_choice
from metaopt.experiment import build_family
from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import compiler_options
from metaopt.inner.step import Seen, reset
from metaopt.inner.unroll import unroll
from metaopt.registry import ORACLES
from metaopt.tasks import energy
from metaopt.types import Batch, Optimizer, Params, Scalar, Task, TaskFamily

SEEDS, STEPS, EVERY = 10, 3000, 5  # EVERY: steps between exact values
WINDOW = 4  # of them are averaged where a run is judged
SETTLED = 0.1  # of the regret that the reference has
RATE = 0.1  # of Adam
RATES = (0.1, 0.03, 0.01, 0.003)  # of the cycles
KEY = jax.random.key(16)
METHODS = {
    "SOSMC-ULA": "sosmc:num_particles={n},step_size={h}",
    "SOSMC-MALA": "sosmc:kernel=mala,num_particles={n},step_size={h}",
    "SOSMC-RWM": "sosmc:kernel=random_walk,num_particles={n},step_size={h}",
    "SOSMC-HMC": "sosmc:kernel=hmc,num_particles={n},step_size={h}",
    "ImpDiff": "impdiff:num_particles={n},step_size={h}",
    "SOUL": "soul:num_samples={n},burn_in={half},step_size={h}",
    "PCD": "pcd:num_particles={tenth},steps=10,replay={n},fresh=0.0,step_size={h}",
}


class Row(NamedTuple):
    """A line of the paper's table, in one direction of KL."""

    target: str
    reward: str
    beta: float
    kl: str
    num_particles: int = 1000
    step_size: float = 0.1  # the first, of those that adapt it

    @property
    def family(self) -> TaskFamily:
        return build_family(
            parse_choice(
                f"tuned_mixture:target={self.target},reward={self.reward},beta={self.beta},kl={self.kl},spread=0"
            )
        )

    def oracle(self, text: str) -> str:
        n = self.num_particles
        return text.format(n=n, h=self.step_size, half=n // 2, tenth=n // 10)


FORWARD, REVERSE = "KL(ref‖π)", "KL(π‖ref)"
LARGE, LONG = "dual, smooth, N = 10,000", "hexagon, tight, first step .1"


def _rows() -> dict[str, Row]:
    lines = {
        "dual, smooth": ("dual", "smooth", 0.1),
        "hexagon, tight": ("hexagon_tight", "hard", 0.1),
        "dual, hard": ("dual", "hard", 0.001),
        "hexagon, sparse": ("hexagon_sparse", "hard", 0.001),
    }
    rows = {}
    for name, (target, reward, beta) in lines.items():
        for kl, words in (("ref_model", FORWARD), ("model_ref", REVERSE)):
            step = 0.004 if target == "hexagon_tight" else 0.1
            rows[f"{name}, {words}"] = Row(target, reward, beta, kl, step_size=step)
    rows[f"{LARGE}, {FORWARD}"] = rows[f"dual, smooth, {FORWARD}"]._replace(num_particles=10_000)
    rows[f"{LONG}, {REVERSE}"] = rows[f"hexagon, tight, {REVERSE}"]._replace(step_size=0.1)
    return rows


ROWS = _rows()
FIRST = tuple(name for name in ROWS if name.startswith(("dual, smooth, K", "hexagon, tight, K")))
FEW = ("SOSMC-ULA", "ImpDiff", "SOUL")  # on the rows that ask about a setting


def work(names: Iterable[str]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for name in names:
        yield name, "optimum", partial(best, ROWS[name])
        for method in FEW if name.startswith((LARGE, LONG)) else METHODS:
            yield name, method, partial(measured, ROWS[name], method)


# ----- one method on one row ------------------------------------------------------------------------------------------


def speaking(family: TaskFamily, reward: Callable[[Task, jax.Array], Scalar]) -> TaskFamily:
    """The family with a second parameter `said`, of no effect, whose gradient is the particles' own mean reward."""
    law = family.law
    assert law is not None and law.energy is not None
    own_energy, own_surrogate = law.energy, law.surrogate

    def surrogate(params: Params, task: Task, x: jax.Array, weights: jax.Array, batch: Batch) -> Scalar:
        said = weights @ jax.vmap(lambda x: reward(task, x), in_axes=1)(x.T)
        return own_surrogate(params["theta"], task, x, weights, batch) + params["said"] * said

    return dataclasses.replace(
        family,
        init=lambda key, task: {"theta": family.init(key, task), "said": jnp.zeros(())},
        loss=lambda params, task, batch: family.loss(params["theta"], task, batch),
        metrics=None,
        law=law._replace(
            energy=lambda params, task, x: own_energy(params["theta"], task, x),
            start=lambda key, params, task, data: law.start(key, params["theta"], task, data),
            surrogate=surrogate,
        ),
    )


class Run(NamedTuple):
    """Inner runs of all seeds."""

    theta: Params  # [steps, seeds, ...] after each step
    said: np.ndarray  # [steps, seeds] the particles' own mean reward there
    info: dict[str, np.ndarray]  # [steps, seeds]
    seconds: float  # core seconds a step and seed, without compiling
    task: Task  # [seeds, ...]


def adam(rate: jax.Array) -> optax.GradientTransformationExtraArgs:
    return optax.multi_transform(
        {"moved": optax.adam(rate), "held": optax.set_to_zero()}, {"theta": "moved", "said": "held"}
    )


def runs(family: TaskFamily, oracle: str, *, rates: Sequence[float], steps: int, seeds: int) -> Iterator[Run]:
    """Adam on θ under an oracle, at each rate."""
    picked = parse_choice(oracle)
    family = dataclasses.replace(family, oracle=ORACLES[picked.name](**picked.options))
    optimizer = Optimizer(init=lambda key: jnp.zeros(()), bind=adam)

    def watch(seen: Seen) -> tuple[Any, jax.Array]:
        return seen.moved["theta"], seen.estimate.gradient["said"]

    def all_steps(rate: jax.Array, keys: jax.Array) -> Any:
        tx = bind_tasks(optimizer, rate)
        task, state = reset(tx, family, keys)
        _, trace = unroll(tx, family, task, state, length=steps, observe=watch)
        return trace.observed, trace.info, task

    keys = jax.random.split(KEY, seeds)
    compiled = jax.jit(all_steps, compiler_options=compiler_options()).lower(jnp.float32(0), keys).compile()
    for rate in rates:
        began = time.process_time()
        observed, info, task = jax.block_until_ready(compiled(jnp.float32(rate), keys))
        seconds = (time.process_time() - began) / (steps * seeds)
        (theta, said), info = jax.device_get((observed, info))
        yield Run(theta, said, info, seconds, task)


def run(family: TaskFamily, oracle: str, *, rate: float, steps: int, seeds: int) -> Run:
    """One rate's."""
    return next(runs(family, oracle, rates=(rate,), steps=steps, seeds=seeds))


def values(row: Row, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact (E R, KL), [...] each, at θ [..., K]."""
    task = row.family.sample(KEY, ())
    each = jax.jit(
        lambda flat: jax.lax.map(lambda t: energy.mixture_values(t, task, row.reward, row.kl), flat, batch_size=100)  # pyright: ignore
    )
    found = each(jnp.asarray(theta.reshape(-1, theta.shape[-1])))
    return tuple(np.asarray(part, np.float64).reshape(theta.shape[:-1]) for part in found)  # pyright: ignore


def optimum(family: TaskFamily, task: Task, start: jax.Array, steps: int = 3000) -> tuple[jax.Array, jax.Array]:
    """(θ, f) where f is least: Adam on the exact f, which is convex in the weights; from `start` [K], one task."""
    tx = optax.adam(optax.cosine_decay_schedule(0.1, steps))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        theta, state = carry
        updates, state = tx.update(jax.grad(family.loss)(theta, task, ()), state)
        return (optax.apply_updates(theta, updates), state), None

    (theta, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    return theta, family.loss(theta, task, ())


@functools.cache
def best(row: Row) -> dict[str, Any]:
    """The optimum, and the reference, whose value regrets are measured by."""
    family = row.family
    task = family.sample(KEY, ())
    starts = [task.reference]
    rewards, _ = values(row, np.where(np.eye(len(task.means)), 0.0, -40.0))  # of every mode alone
    reference = np.asarray(jax.nn.softmax(task.reference), np.float64)
    separated = energy.separated_optimum(rewards, reference, row.beta, row.kl)  # pyright: ignore
    starts.append(jnp.log(jnp.maximum(jnp.asarray(separated, jnp.float32), 1e-12)))
    solved = jax.jit(lambda start: optimum(family, task, start))
    theta, _ = min(map(solved, starts), key=lambda found: float(found[1]))
    reward, kl = values(row, np.asarray(theta))
    before, _ = values(row, np.asarray(task.reference))
    return {
        "weights": np.asarray(jax.nn.softmax(theta)),
        "reward": reward,
        "kl": kl,
        "value": reward - row.beta * kl,
        "reference_reward": before,
        "modes": rewards,
    }


def measured(row: Row, method: str) -> dict[str, Any]:
    """All that the page says of one method on one row, before it is set against the others."""
    family = speaking(row.family, lambda task, x: energy._reward(row.reward, task.centre, x))  # pyright: ignore
    found = run(family, row.oracle(METHODS[method]), rate=RATE, steps=STEPS, seeds=SEEDS)
    at = slice(EVERY - 1, None, EVERY)
    reward, kl = values(row, found.theta[at])
    steps, said = np.arange(1, STEPS + 1)[at], found.said[at]
    weights = np.asarray(jax.nn.softmax(jnp.asarray(found.theta), axis=-1))
    truth = best(row)
    likely = int(np.argmax(truth["modes"]))
    regret = truth["value"] - trailing(reward - row.beta * kl)
    lost = SETTLED * (truth["value"] - truth["reference_reward"])
    points = np.unique(np.geomspace(1, len(steps), 60).astype(int)) - 1
    even = slice(3, None, 4)
    half, end = slice(STEPS // 2, None), slice(-len(steps) // 10, None)
    return {
        "seconds": found.seconds,
        "gradients": float(found.info["energy_gradients"].mean()),
        "steps": steps[points],
        "regret": regret[points].T,  # [seeds, points]
        "settled": [settled(steps, one <= lost) for one in regret.T],
        "reward": reward[end].mean(axis=0),  # [seeds] over the last tenth
        "said": said[end].mean(axis=0),
        "error": np.abs(said - reward).max(axis=0),  # of the particles' word, the worst of the run
        "kl": kl[end].mean(axis=0),
        "likely": weights[half, :, likely].mean(axis=0),  # weight of the best mode over the second half
        "swing": np.stack([weights[half, :, likely].min(axis=0), weights[half, :, likely].max(axis=0)], axis=1),
        "weights": weights[-STEPS // 10 :].mean(axis=(0, 1)),
        "least_ess": found.info["ess"].min(axis=0),
        "collapsed": found.info["collapsed"].sum(axis=0),
        "nonfinite": found.info["nonfinite"].max(axis=0),
        "resampled": found.info["resampled"].mean(),
        "acceptance": found.info["acceptance"][half].mean(),
        "curves": {
            "steps": steps[even],
            "first": {name: one[even, 0] for name, one in (("likely", weights[at][..., likely]), ("said", said))},
            "reward": trailing(reward)[points].mean(axis=1),
            "ess": trailing(found.info["ess"])[at][points].mean(axis=1),
            "step_size": found.info["step_size"][at][points].mean(axis=1),
        },
    }


def trailing(values: np.ndarray) -> np.ndarray:
    """[points, ...] the mean of each of `values` and those before it within `WINDOW`."""
    upto = np.cumsum(values, axis=0, dtype=np.float64)
    upto[WINDOW:] = upto[WINDOW:] - upto[:-WINDOW]
    counts = np.minimum(np.arange(1, len(values) + 1), WINDOW)
    return upto / counts.reshape(-1, *[1] * (values.ndim - 1))


def settled(steps: np.ndarray, good: np.ndarray) -> float:
    """The step from which on all is good; infinite where the end is not."""
    bad = np.flatnonzero(~good)
    if not len(bad):
        return float(steps[0])
    return float(steps[bad[-1] + 1]) if bad[-1] + 1 < len(steps) else np.inf


def cycles() -> list[dict[str, Any]]:
    """How far the better mode's weight swings, by Adam's rate and, for ImpDiff, its step."""
    found = []
    row = ROWS["dual, smooth, KL(ref‖π)"]
    family = speaking(row.family, lambda task, x: energy._reward(row.reward, task.centre, x))  # pyright: ignore
    likely = int(best(row)["weights"].argmax())
    for method, step in (("SOSMC-ULA", 0.1), ("ImpDiff", 0.1), ("ImpDiff", 0.5)):
        text = row._replace(step_size=step).oracle(METHODS[method])
        for rate, one in zip(RATES, runs(family, text, rates=RATES, steps=STEPS, seeds=SEEDS), strict=True):
            weight = np.asarray(jax.nn.softmax(jnp.asarray(one.theta[STEPS // 2 :]), axis=-1))[..., likely]
            record = {"method": method, "step": step, "rate": rate, "mean": weight.mean(axis=0)}
            found.append({**record, "least": weight.min(axis=0), "most": weight.max(axis=0)})
    return found
