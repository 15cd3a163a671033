"""Multimodels chosen and fitted: `python -m experiments.model_selection.multimodels.write` (six minutes of one core).

Computes what results.json lacks, part by part, then draws the pictures and writes README.md beside itself; `--page`
draws and writes alone, `--anew` begins from nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from scipy.stats import norm

from experiments.model_selection.multimodels import page
from metaopt.choices import parse_choice
from metaopt.evaluation import Box, Gaussian, adequacy, expert_laws, prune, s_score, same_models, tune_baselines
from metaopt.evaluation.curves import as_optimizer
from metaopt.evaluation.outcomes import task_keys
from metaopt.evaluation.statistics import jsonable, thin, wilson_interval
from metaopt.experiment import build_family
from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import matmul_precision
from metaopt.inner.step import Seen, reset
from metaopt.inner.unroll import unroll
from metaopt.shipped.loading import load, pretrained
from metaopt.tasks.expectation_maximisation import em, em_oracle
from metaopt.tasks.mixture import Mixture, Rows
from metaopt.types import Params, TaskFamily

HERE = Path(__file__).parent
TEST, TUNING, DATA, STARTS = (jax.random.key(seed) for seed in (171, 172, 173, 174))  # streams that share no task
HORIZON, TASKS, TUNED_ON = 300, 32, 12
BASELINES = ("sgd", "adam")
FAMILIES = {
    "known experts": ("mixture_of_experts", Mixture(3, 3)),
    "diabetes": ("table_experts:num_experts=3", Mixture(3, 11, noise=0.7)),
}
MOST, TRUE, OBJECTS, SETS, EM_STEPS, EM_STARTS = 6, 3, 200, 16, 300, 8  # of the choice of K
TRIALS = 2000, 100  # of the level: of independent estimates, of mixtures
ALPHA = 0.05
STRICT = 1e-6  # a level for pruning that leaves room for what a mixture does to the test


# ----- optimizers -------------------------------------------------------------------------------------------------


def optimizers() -> dict[str, Any]:
    """Every way on both families, from the same starts: losses, what is predicted, what is found, where each ended."""
    return {name: _on(name) for name in FAMILIES}


def _on(name: str) -> dict[str, Any]:
    text, mixture = FAMILIES[name]
    family = build_family(parse_choice(text))
    tuned = tune_baselines(family, TUNING, horizon=HORIZON, num_tasks=TUNED_ON, names=BASELINES, budget="9x1")
    entries: dict[str, tuple[Any, TaskFamily]] = {
        "EM": (optax.sgd(1.0), dataclasses.replace(family, oracle=em_oracle(mixture)))
    }
    entries |= {called: (row[:2], family) for called, row in tuned.items()}
    entries |= {called: (load(called), family) for called in pretrained()}

    @jax.jit
    @jax.vmap
    def metrics(params: Params, task: Any) -> dict[str, jax.Array]:
        assert family.metrics is not None
        return family.metrics(params, task, family.eval_batch(task, family.data, "test"))

    keys, rows, laws = task_keys(TEST, TASKS), {}, {}
    shown = thin(np.arange(HORIZON + 1), limit=100)
    for called, (entry, its) in entries.items():
        task, first, ends, losses, path = _run(entry, its, keys)
        final = losses[-1]
        found = metrics(ends, task)
        laws[called] = [_laws(mixture, *_task((ends, task.train), i)) for i in range(TASKS)]
        rows[called] = {
            "curve": np.quantile(losses[shown], (0.25, 0.5, 0.75), axis=1),
            "loss": np.median(final),
            "failed": float(np.mean(~np.isfinite(final))),
            "nll": np.quantile(np.asarray(found["nll"]), (0.25, 0.5, 0.75)),
            "path": path[np.unique(np.geomspace(1, HORIZON, 60).astype(int)) - 1],
            "gate": _gate_map(mixture, _task(ends, 0)) if mixture.num_inputs == 3 else None,
            **({"rate": tuned[called][2]["learning_rate"]} if called in tuned else {}),
        }
        if "recovered" in found:
            hits = int(np.sum(np.asarray(found["recovered"])))
            rows[called] |= {"recovered": hits / TASKS, "interval": wilson_interval(hits, TASKS)}
        print(name, called, rows[called]["loss"], flush=True)
    return {
        "steps": shown,
        "tasks": TASKS,
        "rows": rows,
        "same": _same(laws),
        "flops": {"EM": _flops(lambda p, t: em(mixture, p, t, steps=1)[0], *_task((first, task.train), 0)),
                  "gradient": _flops(jax.grad(lambda p, t: family.loss(p, t, ())), *_task((first, task), 0))},
        "truth": _truth(task) if mixture.num_inputs == 3 else None,
    }  # fmt: skip


def _run(entry: Any, family: TaskFamily, keys: jax.Array) -> tuple[Any, Params, Params, np.ndarray, np.ndarray]:
    """(tasks, parameters first and last, losses [steps + 1, tasks], experts of the first task [steps, K, inputs])."""
    optimizer, meta_params = as_optimizer(entry, family)

    @jax.jit
    def run(meta_params: Any, family: TaskFamily, keys: jax.Array) -> Any:
        tx = bind_tasks(optimizer, meta_params)
        with matmul_precision("highest"):
            task, start = reset(tx, family, keys)
            state, trace = unroll(tx, family, task, start, length=HORIZON, observe=seen)
        losses = jnp.concatenate([start.initial_loss[None], trace.loss])
        return task, start.params, state.params, losses, trace.observed

    def seen(step: Seen) -> jax.Array:
        return step.before.params["experts"][0]

    task, first, ends, losses, path = run(meta_params, family, keys)
    return task, first, ends, np.asarray(losses), np.asarray(path)


def _task(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _laws(mixture: Mixture, params: Params, rows: Rows) -> list[Gaussian] | None:
    """Laws of the experts where a run ended; None where it ended nowhere."""
    if not np.isfinite(np.asarray(params["experts"])).all():
        return None
    try:
        return expert_laws(mixture, params, rows)
    except ValueError:
        return expert_laws(mixture, params, rows, "complete")


def _same(laws: dict[str, list[Any]]) -> dict[str, Any]:
    """[ways, ways] the share of tasks on which two ways ended in one model."""
    names = list(laws)
    same = np.zeros((len(names), len(names)))
    for i in range(TASKS):
        here = {name: laws[name][i] for name in names if laws[name][i] is not None}
        for group in same_models(here, ALPHA).groups:
            where = [names.index(name) for name in group]
            same[np.ix_(where, where)] += 1
    return {"names": names, "share": same / TASKS}


def _flops(function: Callable[..., Any], *arguments: Any) -> float:
    return float(jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"])  # pyright: ignore


GRID = np.linspace(-3, 3, 61)


def _gate_map(mixture: Mixture, params: Params) -> np.ndarray:
    """[x2, x1, K] what the gate gives, over the plane of inputs."""
    x, y = np.meshgrid(GRID, GRID)
    X = jnp.asarray(np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3), jnp.float32)
    return np.round(np.exp(np.asarray(mixture.log_gate(params, X))).reshape(len(GRID), len(GRID), -1), 3)


def _truth(task: Any) -> dict[str, Any]:
    """The first task: its experts, and each object's, by the nearest line."""
    X, y = (np.asarray(part[0]) for part in task.train)
    experts = np.asarray(task.experts[0])
    return {"experts": experts, "X": X[:, :2], "member": np.abs(y[:, None] - X @ experts.T).argmin(1)}


# ----- how many experts -------------------------------------------------------------------------------------------


def choice() -> dict[str, Any]:
    """K by evidence, by a validation sample, by pruning from too many; on data of three experts, and on diabetes."""
    family = build_family(parse_choice(f"mixture_of_experts:true_experts={TRUE},gate=constant,num_examples={OBJECTS}"))
    known = jax.vmap(lambda key: family.sample(key, ()))(jax.random.split(DATA, SETS))
    table = build_family(parse_choice("table_experts"))
    real = jax.tree.map(lambda leaf: leaf[None], table.sample(DATA, table.data))
    return {"known": _choice(known, Mixture(1, 3, "constant", coupling=0.0)),
            "diabetes": _choice(real, Mixture(1, 11, "constant", coupling=0.0, noise=0.7))}  # fmt: skip


def _choice(tasks: Any, plain: Mixture) -> dict[str, Any]:
    evidence, validation, test, last = [], [], [], None
    for K in range(1, MOST + 1):
        mixture = dataclasses.replace(plain, num_experts=K)
        ends = last = _best(mixture, tasks.train)
        evidence.append([log_evidence(mixture, *_task((ends, tasks.train), i)) for i in range(len(tasks.train.y))])
        for rows, part in ((validation, tasks.validation), (test, tasks.test)):
            rows.append(np.asarray(jax.vmap(lambda p, r, m=mixture: m.predictive(p, r, r))(ends, part)))
        print("K", K, np.median(evidence[-1]), flush=True)
    most = dataclasses.replace(plain, num_experts=MOST)
    record = {"evidence": np.array(evidence), "validation": np.array(validation), "test": np.array(test), "pruned": {}}
    for alpha in (ALPHA, STRICT):
        pruned = [prune(most, *_task((last, tasks.train), i), alpha=alpha) for i in range(len(tasks.train.y))]
        held = [m.predictive(p, _task(tasks.test, i), _task(tasks.train, i)) for i, (m, p) in enumerate(pruned)]
        record["pruned"][f"{alpha:g}"] = {"K": [mixture.num_experts for mixture, _ in pruned], "test": np.array(held)}
    return record


def _best(mixture: Mixture, rows: Rows) -> Params:
    """[sets, ...] by EM from several starts of each set."""

    @jax.jit
    def run(rows: Rows) -> Params:
        def one(rows: Rows) -> Params:
            starts = jax.vmap(mixture.init)(jax.random.split(STARTS, EM_STARTS))
            ends, losses = jax.vmap(lambda start: em(mixture, start, rows, steps=EM_STEPS))(starts)
            return jax.tree.map(lambda leaf: leaf[jnp.argmin(losses[:, -1])], ends)

        return jax.vmap(one)(rows)

    return run(rows)


def log_evidence(mixture: Mixture, params: Params, rows: Rows) -> float:
    """log p(y | X, A) of a mixture with constant weights of uniform law, by Laplace's method in the logits; all K!
    orders of the experts count. The mode is that of the density of the logits, near the one of the weights; curvatures
    below a tenth, where there is a ridge and no maximum, count as a tenth."""
    K, n = mixture.num_experts, mixture.num_inputs
    logits = {} if K == 1 else {"free": params["weights"][:-1] - params["weights"][-1]}
    flat, unravel = ravel_pytree({"experts": params["experts"], **logits})
    value, slope, curvature = _posterior(mixture, unravel)
    found = minimize(
        lambda x: value(x, rows), flat, jac=lambda x: np.asarray(slope(x, rows), np.float64), method="BFGS",
        options={"gtol": 0.02, "maxiter": 200},
    )  # fmt: skip
    hessian = np.linalg.eigvalsh(np.asarray(curvature(found.x, rows), np.float64))
    determinant = np.sum(np.log(np.maximum(hessian, 0.1)))
    prior = K * n / 2 * math.log(mixture.prior_precision / (2 * math.pi)) + math.lgamma(K)
    volume = 0.5 * (len(flat) * math.log(2 * math.pi) - determinant)
    return float(-found.fun + prior + math.lgamma(K + 1) + volume)


_POSTERIORS: dict[Mixture, Any] = {}


def _posterior(mixture: Mixture, unravel: Callable[[Any], Any]) -> Any:
    if mixture not in _POSTERIORS:

        def value(flat: jax.Array, rows: Rows) -> jax.Array:
            parts = unravel(jnp.asarray(flat, jnp.float32))
            params, log_weights = {"experts": parts["experts"]}, 0.0
            if "free" in parts:
                params["weights"] = jnp.append(parts["free"], 0.0)
                log_weights = jnp.sum(jax.nn.log_softmax(params["weights"]))  # of the uniform law, in the logits
            return rows.X.shape[0] * mixture.loss(params, rows, rows.X.shape[0]) - log_weights

        _POSTERIORS[mixture] = jax.jit(value), jax.jit(jax.grad(value)), jax.jit(jax.hessian(value))
    return _POSTERIORS[mixture]


# ----- the level --------------------------------------------------------------------------------------------------


def level() -> dict[str, Any]:
    """How often two experts of one line are told apart: of two samples, and of a mixture that has one line to share."""
    rng, noise = np.random.default_rng(0), 0.3
    apart = 0
    for _ in range(TRIALS[0]):
        laws = []
        for _ in range(2):
            X = np.column_stack([rng.normal(size=(50, 2)), np.ones(50)])
            covariance = noise**2 * np.linalg.inv(X.T @ X)
            y = X @ np.ones(3) + noise * rng.normal(size=50)
            laws.append(Gaussian(covariance @ X.T @ y / noise**2, covariance))
        apart += adequacy(laws, ALPHA).adequate
    found: dict[str, Any] = {"two samples": [apart, TRIALS[0]]}
    family = build_family(parse_choice(f"mixture_of_experts:true_experts=1,gate=constant,num_examples={OBJECTS}"))
    tasks = jax.vmap(lambda key: family.sample(key, ()))(jax.random.split(DATA, TRIALS[1]))
    mixture = Mixture(2, 3, "constant", coupling=0.0)
    ends = _best(mixture, tasks.train)
    counts = {"complete": 0, "observed": 0, "no maximum in the experts": 0}
    for i in range(TRIALS[1]):
        params, rows = _task((ends, tasks.train), i)
        counts["complete"] += adequacy(expert_laws(mixture, params, rows, "complete"), ALPHA).adequate
        try:
            counts["observed"] += adequacy(expert_laws(mixture, params, rows), ALPHA).adequate
        except ValueError:
            counts["no maximum in the experts"] += 1
    return found | {name: [count, TRIALS[1]] for name, count in counts.items()}


# ----- requirement 5 ----------------------------------------------------------------------------------------------


def distances(first: tuple[float, float], second: tuple[float, float]) -> dict[str, float]:
    """Between normal laws (mean, standard deviation) on the line; of all but s, larger is further apart."""
    (m1, s1), (m2, s2) = first, second
    kl = math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5
    overlap = math.sqrt(2 * s1 * s2 / (s1**2 + s2**2)) * math.exp(-((m1 - m2) ** 2) / (4 * (s1**2 + s2**2)))

    # Points as dense as either law needs them, for widths that differ by 1e5.
    w = np.unique(np.concatenate([m + s * np.linspace(-12, 12, 20_001) for m, s in (first, second)]))
    a, b = norm.logpdf(w, m1, s1), norm.logpdf(w, m2, s2)
    middle = np.logaddexp(a, b) - math.log(2)
    shannon = np.trapezoid(np.exp(a) * (a - middle) + np.exp(b) * (b - middle), w) / 2
    product = lambda a, b, c, d: norm.pdf(a - c, 0, math.hypot(b, d))  # noqa: E731
    square = product(m1, s1, m1, s1) + product(m2, s2, m2, s2) - 2 * product(m1, s1, m2, s2)
    return {
        "Kullback-Leibler": kl,
        "Jensen-Shannon": float(shannon),
        "Hellinger, squared": 1 - overlap,
        "Bhattacharyya": -math.log(overlap),
        "Bregman (∫(g1 - g2)²)": float(square),
        "s-score": s_score(Gaussian(m1, s1**2), Gaussian(m2, s2**2)).value,
    }


PAIRS = {
    "says little: N(0, 1), N(10, 1e10)": ((0.0, 1.0), (10.0, 1e5)),
    "says little: N(0, 1), N(5, 20²)": ((0.0, 1.0), (5.0, 20.0)),
    "contradicts: N(0, 1), N(3, 1)": ((0.0, 1.0), (3.0, 1.0)),
    "half contradicts: N(0, 1), N(1.6, 1)": ((0.0, 1.0), (1.6, 1.0)),
}


def requirement() -> dict[str, Any]:
    """The table of values, and what distances make of a law that says little beside one that contradicts."""
    table = {
        "N(0, 1), N(10, 1e10)": s_score(Gaussian(0, 1), Gaussian(10, 1e10)).value,
        "N(0, 1), N(5, 400)": s_score(Gaussian(0, 1), Gaussian(5, 400)).value,
        "N(0, 1), N(5, 1)": s_score(Gaussian(0, 1), Gaussian(5, 1)).value,
        "U[0, 1], U[0.5, 1.5]": s_score(Box(0, 1), Box(0.5, 1.5)).value,
    }
    return {"table": table, "pairs": {words: distances(*pair) for words, pair in PAIRS.items()}}


# ----- everything -------------------------------------------------------------------------------------------------

PARTS = {"requirement": requirement, "level": level, "choice": choice, "optimizers": optimizers}


def main() -> None:
    file = HERE / "results.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() and "--anew" not in sys.argv else {}
    for name, compute in PARTS.items():
        if name not in record and "--page" not in sys.argv:
            print(name, flush=True)
            record[name] = jsonable(compute())
            text = json.dumps(record, separators=(",", ":"), allow_nan=False)
            file.write_text(text + "\n", encoding="utf-8")
    page.draw(record, HERE / "figures")
    (HERE / "README.md").write_text(page.write(record), encoding="utf-8")


if __name__ == "__main__":
    main()
