"""How much of "learned" is tuning? `python -m experiments.hypertuned.write` (two hours of one core, resumable).

Every setting of hand-designed optimizers is improved by every estimator that needs no step noise, by random search and
by successive halving, on the tasks and at the cost of a thesis LSTM. Writes results.json part by part, the picture and
README.md beside itself; with `--page` the page alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.choices import Choice, choice, parse_choice
from metaopt.errors import UserError
from metaopt.evaluation import statistics, tune_baselines
from metaopt.evaluation.outcomes import run_each, task_keys
from metaopt.evaluation.recording import plan
from metaopt.evaluation.statistics import jsonable
from metaopt.experiment import Experiment, MetaOptimizer, Validation, build_family, build_optimizer
from metaopt.training.loop import Diverged, meta_train
from metaopt.training.trainer import Trainer
from metaopt.types import MetaParams, Optimizer, Split, TaskFamily

HERE = Path(__file__).parent
SEEDS = 3
TEST, SEARCH, TUNING = (jax.random.key(seed) for seed in (101, 102, 103))  # streams that share no task
MULTIPLES = (1, 10)


class Part(NamedTuple):
    """A family, and what may be spent on it."""

    task: Choice
    horizon: int
    num_tasks: int  # a meta-step
    num_meta_steps: int
    tested: int  # tasks

    @property
    def cost(self) -> int:
        """Inner steps of one meta-training, forward."""
        return self.horizon * self.num_tasks * self.num_meta_steps


PARTS = {
    "quadratic": Part(choice("quadratic"), 100, 16, 2000, 400),
    "linear_regression": Part(choice("linear_regression"), 100, 16, 1000, 200),
    "classifier": Part(choice("classifier"), 50, 8, 500, 64),
}
SUBJECTS = {
    "momentum": "momentum:tunes=all",
    "adam": "adam:tunes=all",
    "adam with a curve": "adam:tunes=all,schedule=knots",
}
LEARNED = {
    "LSTM, BP": ("lstm:step_rule=recursive,noise=none", "truncated_backprop"),
    "LSTM, RL": ("lstm:step_rule=direct,noise=per_step", "reparameterised"),
}
# How φ of a hand-designed optimizer is improved: (estimator, window over horizon). An antithetic pair is two runs, so
# that ES, PES and the mixture get half of the meta-steps.
ESTIMATORS = {
    "back-propagation": ("truncated_backprop", 1),
    "back-propagation, second order": ("truncated_backprop:second_order=true", 1),
    "truncated back-propagation": ("truncated_backprop", 5),
    "ES": ("evolution_strategies:sigma=0.1", 1),
    "PES": ("persistent_evolution_strategies:sigma=0.1", 5),
    "mixture": ("mixture:sigma=0.1", 1),
}
PAIRED = ("ES", "PES", "mixture")
SEARCHES = ("random search", "successive halving")
# Where a search draws from, uniformly in log: rates, 1 - momenta, ε; the curve's factors on the rate.
RANGES = {
    "learning_rate": (1e-4, 10.0),
    "mu": (1e-2, 1.0),
    "beta1": (1e-2, 1.0),
    "beta2": (1e-4, 1.0),
    "eps": (1e-10, 1e-2),
}
CURVE = (1e-2, 1.0)
TASKS_EACH = 50  # of a random search's φ: near the edge of stability one task in hundreds fails
DRAWS = 1000  # folded into the key that φ are drawn from


# ----- meta-training --------------------------------------------------------------------------------------------------


def meta_trained(part: Part, optimizer: str, estimator: str, windows: int, paired: bool, rate: float) -> Iterator[Any]:
    """φ of every meta-seed; None where meta-training diverged."""
    steps = part.num_meta_steps * windows // (2 if paired else 1)
    experiment = Experiment(
        tasks=(part.task,),
        optimizer=parse_choice(optimizer),
        estimator=parse_choice(estimator),
        horizon=part.horizon,
        unroll_length=part.horizon // windows,
        num_tasks=part.num_tasks,
        num_meta_steps=steps,
        num_devices=1,
        meta_optimizer=MetaOptimizer(learning_rate=rate, schedule="cosine", clip_norm=1.0),
        validation=Validation(every=0),
    )
    trainer = Trainer(dataclasses.replace(experiment, log=dataclasses.replace(experiment.log, every=steps // 10)))
    for seed in range(SEEDS):
        trainer.experiment = dataclasses.replace(trainer.experiment, seed=seed)
        try:
            yield meta_train(trainer).meta_params
        except Diverged:
            yield None


# ----- searches -------------------------------------------------------------------------------------------------------


def drawn(optimizer: Optimizer, key: jax.Array, number: int) -> MetaParams:
    """`number` φ from the ranges, stacked."""
    rows = {}
    for name, leaf in optimizer.init(key).items():
        key, own = jax.random.split(key)
        if name == "knots":
            low, high = map(math.log, CURVE)
            rows[name] = jax.random.uniform(own, (number, *leaf.shape), minval=low, maxval=high)
            continue
        low, high = map(math.log, RANGES[name])
        value = jnp.exp(jax.random.uniform(own, (number,), minval=low, maxval=high))
        shares = ("mu", "beta1", "beta2")
        rows[name] = optimizer.tunable[name].inverse(jnp.clip(1 - value, 1e-6) if name in shares else value)
    return rows


def scored(optimizer: Optimizer, rows: MetaParams, family: TaskFamily, keys: jax.Array, horizon: int) -> np.ndarray:
    """[φ] the objective of meta-training, the mean loss over the run, over these tasks; infinite where one failed."""
    number, tasks = len(jax.tree.leaves(rows)[0]), len(keys)
    each = jax.tree.map(lambda leaf: jnp.repeat(leaf, tasks, axis=0), rows)
    steps = plan(family, horizon, every=max(1, horizon // 10))
    how = {"steps": steps, "num_devices": 1, "at_once": 512}
    found = run_each(optimizer, each, family, jnp.tile(keys, number), **how)
    loss = np.where(_failed(found), np.inf, found.loss[:, 1:].mean(axis=1))
    return loss.reshape(number, tasks).mean(axis=1)


def _failed(found: Any) -> np.ndarray:
    scale = statistics.scale(found.lower_bound, found.loss[:, 0], [found.loss])
    return statistics.failed(found.peak, scale)


def random_search(part: Part, optimizer: Optimizer, family: TaskFamily, key: jax.Array) -> MetaParams:
    number = part.cost // part.horizon // TASKS_EACH
    rows = drawn(optimizer, jax.random.fold_in(key, DRAWS), number)
    return _row(rows, int(np.argmin(scored(optimizer, rows, family, task_keys(key, TASKS_EACH), part.horizon))))


def successive_halving(part: Part, optimizer: Optimizer, family: TaskFamily, key: jax.Array) -> MetaParams:
    """A third goes on each time, to three times the tasks, which are new ones: each of four rungs costs the same."""
    rungs, tasks = 4, 4
    number = part.cost // part.horizon // rungs // tasks
    rows = drawn(optimizer, jax.random.fold_in(key, DRAWS), number)
    for rung in range(rungs):
        means = scored(optimizer, rows, family, task_keys(jax.random.fold_in(key, rung), tasks), part.horizon)
        best = np.argsort(means, kind="stable")[: max(1, number // 3)]
        rows = jax.tree.map(lambda leaf, best=best: leaf[best], rows)
        number, tasks = len(best), 3 * tasks
    return _row(rows, 0)


def _row(rows: MetaParams, index: int) -> MetaParams:
    return jax.tree.map(lambda leaf: leaf[index], rows)


# ----- tests ----------------------------------------------------------------------------------------------------------


def tested(part: Part, family: TaskFamily, optimizer: Optimizer, found: Sequence[MetaParams | None]) -> dict[str, Any]:
    """Mean final losses of every φ on the same tasks, at each multiple of the horizon."""
    alive = [phi for phi in found if phi is not None]
    record: dict[str, Any] = {"diverged": len(found) - len(alive)}
    if not alive:
        return record
    keys = task_keys(TEST, part.tested)
    rows = jax.tree.map(lambda *leaves: jnp.repeat(jnp.stack(leaves), part.tested, axis=0), *alive)
    for multiple in MULTIPLES:
        horizon = multiple * part.horizon
        steps = plan(family, horizon, every=max(1, horizon // 10))
        splits: tuple[Split, ...] = tuple(split for split in family.splits if split == "test")
        how = {"steps": steps, "num_devices": 1, "at_once": 256, "splits": splits}
        one = run_each(optimizer, rows, family, jnp.tile(keys, len(alive)), **how)
        shape = (len(alive), part.tested)
        record[f"{multiple}x"] = {
            "mean": one.loss[:, -1].reshape(shape).mean(axis=1),
            "failed": _failed(one).reshape(shape).mean(axis=1),
            "test": {name: v.reshape(shape).mean(axis=1) for split in splits for name, v in one.final[split].items()},
        }
    return record


def settings(optimizer: Optimizer, phi: MetaParams) -> dict[str, Any]:
    """What φ of a hand-designed optimizer says."""
    return {name: np.asarray(optimizer.tunable[name].forward(value)) for name, value in phi.items()}


def work(name: str) -> Iterator[tuple[str, Any]]:
    """(what, a function that computes its record), for every part of a family's work."""
    part = PARTS[name]
    family = build_family(part.task)

    def described(optimizer: Optimizer, found: Sequence[MetaParams | None]) -> dict[str, Any]:
        record = tested(part, family, optimizer, found)
        return {**record, "settings": [phi and settings(optimizer, phi) for phi in found]}

    def baselines(multiple: int, budget: str) -> dict[str, Any]:
        found = tune_baselines(
            family,
            TUNING,
            horizon=multiple * part.horizon,
            num_tasks=50,
            names=("momentum", "adam"),
            budget=budget,
            by="mean",
            num_devices=1,
        )
        return {
            each: {**described(optimizer, [phi]), "gradients": record["gradients"]}
            for each, (optimizer, phi, record) in found.items()
        }

    def as_it_comes() -> dict[str, Any]:
        comes = {each: build_optimizer(parse_choice(each)) for each in ("momentum", "adam")}
        return {each: tested(part, family, optimizer, [optimizer.init(TEST)]) for each, optimizer in comes.items()}

    yield "as it comes", as_it_comes
    yield "rate for 1x", lambda: baselines(1, "9x1")
    yield "rate and momentum for 1x", lambda: baselines(1, "9x3")
    yield "rate and momentum for 10x", lambda: baselines(10, "9x3")
    for label, (optimizer, estimator) in LEARNED.items():

        def learned(optimizer: str = optimizer, estimator: str = estimator) -> dict[str, Any]:
            found = list(meta_trained(part, optimizer, estimator, 1, False, 3e-3))
            return tested(part, family, build_optimizer(parse_choice(optimizer)), found)

        yield label, learned
    for subject, text in SUBJECTS.items():
        optimizer = build_optimizer(parse_choice(text))
        for label, (estimator, windows) in ESTIMATORS.items():

            def improved(text: str = text, estimator: str = estimator, windows: int = windows, own: str = label) -> Any:
                found = list(meta_trained(part, text, estimator, windows, own in PAIRED, 0.05))
                return described(build_optimizer(parse_choice(text)), found)

            yield f"{subject}: {label}", improved
        for label, search in zip(SEARCHES, (random_search, successive_halving), strict=True):

            def searched(optimizer: Optimizer = optimizer, search: Any = search) -> Any:
                keys = [jax.random.fold_in(SEARCH, seed) for seed in range(SEEDS)]
                return described(optimizer, [search(part, optimizer, family, key) for key in keys])

            yield f"{subject}: {label}", searched


def main() -> None:
    file = HERE / "results.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if "--page" not in sys.argv:
        for name in PARTS:
            parts = record.setdefault(name, {})
            for what, compute in work(name):
                if what in parts:
                    continue
                began, spent = time.time(), time.process_time()
                try:
                    result = compute()
                except UserError as error:
                    result = {"refused": str(error)}
                parts[what] = {**jsonable(result), "core_seconds": round(time.process_time() - spent, 1)}
                file.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
                print(f"{name}, {what}: {time.time() - began:.0f} s", flush=True)
                jax.clear_caches()
    from experiments.hypertuned.page import draw, page

    draw(record, HERE / "figures" / "ladder.png")
    (HERE / "README.md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
