"""A teacher's structure from the bound by Gumbel-Softmax: by temperature and its schedule, by optimizer, by λ."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import metaopt
from experiments.model_selection.evidence.outer import solve
from metaopt.evaluation.curves import Entry
from metaopt.evaluation.statistics import wilson_interval
from metaopt.inner.step import Seen
from metaopt.tasks import elbo_linear, elbo_structure, structure
from metaopt.tasks.generalising import Metaparameters, corner, even
from metaopt.types import Optimizer

SEEDS, HORIZON, ANNEALED = 20, 600, 400
PROBLEM: dict[str, Any] = {"num_examples": 40, "edges": 3, "candidates": 4}
NOISES = (0.5, 1.5)
# A harder one, in which schedules differ, with more teachers: fewer examples, a single draw a step.
HARD: dict[str, Any] = {"num_examples": 20, "edges": 4, "candidates": 4, "num_samples": 1}
HARD_NOISE, HARD_SEEDS, HARD_SCHEDULES = 0.7, 100, ("0.1", "0.5", "2 to 0.1")
# (temperature, start): one from the first step on, or falling to it geometrically within `ANNEALED` steps.
SCHEDULES: dict[str, dict[str, float]] = {
    "0.1": {"temperature": 0.1},
    "0.3": {"temperature": 0.3},
    "0.5": {"temperature": 0.5},
    "1": {"temperature": 1.0},
    "2": {"temperature": 2.0},
    "2 to 0.1": {"temperature": 0.1, "start_temperature": 2.0},
    "2 to 0.5": {"temperature": 0.5, "start_temperature": 2.0},
    "10 to 0.5": {"temperature": 0.5, "start_temperature": 10.0},
}
RATES = {"sgd": 0.003, "momentum": 0.003, "adam": 0.03}
KEY = 11


def family(schedule: str, noise: float, **changed: Any) -> metaopt.TaskFamily:
    return elbo_structure(**{**PROBLEM, **changed}, noise=noise, anneal_steps=ANNEALED, **SCHEDULES[schedule])


def hand_designed(name: str, rate: float) -> tuple[Optimizer, Any]:
    optimizer = metaopt.OPTIMIZERS[name](learning_rate=rate)
    return optimizer, optimizer.init(jax.random.key(0))


def _share(recovered: Any) -> dict[str, Any]:
    found, seeds = int(np.sum(recovered)), len(recovered)
    return {"share": found / seeds, "interval": wilson_interval(found, seeds)}


def schedule(name: str, noise: float, *, seeds: int = SEEDS, **changed: Any) -> dict[str, Any]:
    """Adam on `seeds` teachers under one schedule of the temperature."""
    entries: dict[str, Entry] = {"adam": hand_designed("adam", RATES["adam"])}
    where = family(name, noise, **changed)
    curves = metaopt.evaluate(entries, where, jax.random.key(KEY), horizon=HORIZON, num_tasks=seeds)
    final = curves.final["adam"]["train"]
    return {**_share(final["recovered"]), "loss": final["loss"].mean(), "steps": curves.steps,
            "curve": np.median(curves.loss["adam"], axis=0)}  # fmt: skip


def optimizers(noise: float) -> dict[str, Any]:
    """Optimizers of the house on the same teachers, the temperature falling from 2 to .5."""
    entries: dict[str, Entry] = {name: hand_designed(name, rate) for name, rate in RATES.items()}
    entries |= {name: metaopt.load(name) for name in metaopt.pretrained()}
    where = family("2 to 0.5", noise)
    curves = metaopt.evaluate(entries, where, jax.random.key(KEY), horizon=HORIZON, num_tasks=SEEDS)
    return {
        name: {
            **_share(curves.final[name]["train"]["recovered"]),
            "loss": np.median(curves.loss[name][:, -1]),
            "steps": curves.steps,
            "curve": np.median(curves.loss[name], axis=0),
        }
        for name in entries
    }


def enumeration(noise: float, *, seeds: int = SEEDS, **changed: Any) -> dict[str, Any]:
    """The same teachers by the closed-form evidence of all structures: what the data can tell."""
    keys = jax.random.split(jax.random.key(KEY), seeds)
    where = family("0.5", noise, **changed)
    shape = tuple({**PROBLEM, **changed}[name] for name in ("edges", "candidates"))
    chosen = structure.structures(*shape)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        task = where.sample(jax.random.split(key, 4)[0], ())
        evidence = structure.structure_evidence(task, chosen, jnp.ones(shape), noise)
        best = jnp.asarray(chosen)[jnp.argmax(evidence)]
        chance = jax.nn.softmax(evidence) @ jnp.all(jnp.asarray(chosen) == task.truth, axis=1)
        return jnp.all(best == task.truth), chance

    found, chance = jax.jit(jax.vmap(one))(keys)
    return {**_share(found), "posterior": float(jnp.mean(chance))}


def paths() -> dict[str, Any]:
    """softmax of q's logits over the steps, schedule -> [points, teachers, edges, candidates]."""
    found = {}
    for name in ("0.1", "2", "2 to 0.1"):
        where = family(name, NOISES[1], candidates=3)
        optimizer, phi = hand_designed("adam", RATES["adam"])
        tx = metaopt.bind_tasks(optimizer, phi)
        keys = jax.random.split(jax.random.key(KEY), 8)

        def weights(seen: Seen) -> jax.Array:
            return jax.nn.softmax(seen.moved["logits"])

        @jax.jit
        def run(keys: jax.Array, where: Any = where, tx: Any = tx) -> Any:
            task, state = metaopt.reset(tx, where, keys)
            state, trace = metaopt.unroll(tx, where, task, state, length=HORIZON, observe=weights)
            return task.truth, trace.observed

        truth, weights_seen = jax.device_get(run(keys))
        found[name] = {"truth": truth, "weights": weights_seen[:: HORIZON // 60]}
    return found


# ----- elbo_linear ----------------------------------------------------------------------------------------------------


def linear() -> dict[str, Any]:
    """What is left of the gap to the closed-form evidence, where q can be the posterior and where it cannot."""
    rows = {}
    for orthogonal in (True, False):
        where = elbo_linear(orthogonal=orthogonal)
        entries: dict[str, Entry] = {name: hand_designed(name, 10 * RATES[name] / 3) for name in RATES}
        entries |= {name: metaopt.load(name) for name in metaopt.pretrained()}
        curves = metaopt.evaluate(entries, where, jax.random.key(KEY), horizon=500, num_tasks=100)
        gap = [curves.loss[name] - curves.lower_bound[:, None] for name in entries]
        rows["orthogonal" if orthogonal else "any"] = {
            "steps": curves.steps,
            "least": _mean_field_gap(where),
            "gap": {name: np.median(each, axis=0) for name, each in zip(entries, gap, strict=True)},
        }
    return rows


def _mean_field_gap(where: metaopt.TaskFamily) -> float:
    """Median over the evaluated tasks of ½ (Σ log P_jj - log|P|), the smallest gap of a diagonal q."""

    def one(key: jax.Array) -> jax.Array:
        task = where.sample(jax.random.split(key, 4)[0], ())
        precision = task.X.T @ task.X + jnp.eye(task.X.shape[1])
        return 0.5 * (jnp.sum(jnp.log(jnp.diagonal(precision))) - jnp.linalg.slogdet(precision)[1])

    return float(jnp.median(jax.vmap(one)(jax.random.split(jax.random.key(KEY), 100))))


# ----- the generalising problem ---------------------------------------------------------------------------------------

SWEEP_NOISE, EDGES, CANDIDATES = 1.0, 2, 3
EVEN_WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
LAW = {"shape": 2.0, "rate": 2.0}


def _task() -> structure.StructureTask:
    where = elbo_structure(num_examples=20, edges=EDGES, candidates=CANDIDATES, noise=SWEEP_NOISE)
    return where.sample(jax.random.key(1), ())


def sweep() -> dict[str, Any]:
    """λ_struct towards the even law, towards each corner in turn, and the slides' [0 0 0], [1 0 0], [1 1 0]."""
    task = _task()
    shape = (EDGES, CANDIDATES)
    chosen = structure.structures(*shape)
    corners = np.stack([corner(np.full(EDGES, k), CANDIDATES) for k in range(CANDIDATES)])

    def one(laws: np.ndarray, weights: Any) -> Metaparameters:
        filled = np.concatenate([laws, np.zeros((3 - len(laws), *shape), np.float32)])
        return Metaparameters(laws=filled, struct=np.pad(np.asarray(weights, float), (0, 3 - len(laws))), **LAW)

    problems = [one(even(*shape)[None], [weight]) for weight in EVEN_WEIGHTS]
    problems += [one(corner(each, CANDIDATES)[None], [10.0]) for each in chosen]
    slides = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)]
    problems += [one(corners, weights) for weights in slides]
    begin = np.zeros((len(problems), *shape), np.float32)
    first = len(EVEN_WEIGHTS)
    begin[first : first + len(chosen)] = 0.5 * np.stack([corner(each, CANDIDATES) for each in chosen])
    found = solve(task, SWEEP_NOISE, problems, begin=begin)
    prior = np.asarray(jax.nn.softmax(found.hyper["logits"]))
    entropy = -np.sum(prior * np.log(np.maximum(prior, 1e-30)), axis=-1)
    rows = []
    for index, each in enumerate(chosen):
        at = first + index
        precisions = jnp.asarray(found.hyper["precision"][at])
        evidence = float(structure.structure_evidence(task, each[None], precisions, SWEEP_NOISE)[0])
        visited = bool(np.array_equal(np.argmax(found.params["logits"][at], axis=-1), each))
        bound = found.fit[at] - found.divergence[at]
        rows.append({"structure": each, "visited": visited, "bound": bound, "evidence": evidence})
    return {
        "truth": task.truth,
        "even": {"weights": EVEN_WEIGHTS, "candidates": np.exp(entropy[:first].mean(-1)), "value": found.value[:first]},
        "corners": rows,
        "slides": [
            {
                "weights": weights,
                "path": found.path[first + len(chosen) + index],
                "end": prior[first + len(chosen) + index],
            }
            for index, weights in enumerate(slides)
        ],
    }
