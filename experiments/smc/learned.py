"""Optimizers learned where gradients come from particles: does a policy's noise help where gradients are noisy?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.smc.mixtures import optimum
from metaopt.choices import parse_choice
from metaopt.evaluation import tune_baselines
from metaopt.evaluation.outcomes import run_each, task_keys
from metaopt.evaluation.recording import plan
from metaopt.experiment import Experiment, MetaOptimizer, Validation, build_family, build_optimizer
from metaopt.training.loop import Diverged, meta_train
from metaopt.training.trainer import Trainer
from metaopt.types import MetaParams, Optimizer, TaskFamily

TASK = parse_choice("tuned_mixture:target=asymmetric")
ORACLES = {
    "exact gradients": "minibatch",
    "N = 200": "sosmc:num_particles=200",
    "N = 20": "sosmc:num_particles=20",
}
LSTM = "lstm:step_rule={},noise={}"  # of one step rule, so that the arms differ by the noise alone
ARMS = {
    "BP": (LSTM.format("direct", "none"), "truncated_backprop"),
    "RL": (LSTM.format("direct", "per_step"), "reparameterised"),
}
# By exact values, under the noisiest gradients: what needs values, and the two above with a meta-loss without noise.
VALUED = {
    "ES": (LSTM.format("direct", "none"), "evolution_strategies:sigma=0.03"),
    "BP, exact meta-loss": (LSTM.format("direct", "none"), "truncated_backprop:objective_batch=full"),
    "RL, exact meta-loss": (LSTM.format("direct", "per_step"), "reparameterised:objective_batch=full"),
}
SEEDS, HORIZON, NUM_TASKS, META_STEPS, TESTED = 5, 50, 16, 300, 50
MULTIPLES = (1, 10)
RATE = 3e-3
TEST, TUNING = (jax.random.key(seed) for seed in (161, 162))


def work() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for name, oracle in ORACLES.items():
        group = f"learned, {name}"
        yield group, "Adam", partial(baselines, oracle)
        for arm, (optimizer, estimator) in ARMS.items():
            yield group, arm, partial(meta_trained, oracle, optimizer, estimator)
    for arm, (optimizer, estimator) in VALUED.items():
        yield group, arm, partial(meta_trained, f"{oracle},exact_value=true", optimizer, estimator)


def noisy(oracle: str) -> TaskFamily:
    return build_family(TASK, oracle=parse_choice(oracle))


def meta_trained(oracle: str, optimizer: str, estimator: str) -> dict[str, Any]:
    experiment = Experiment(
        tasks=(TASK,),
        oracle=parse_choice(oracle),
        optimizer=parse_choice(optimizer),
        estimator=parse_choice(estimator),
        horizon=HORIZON,
        unroll_length=HORIZON,
        num_tasks=NUM_TASKS,
        num_meta_steps=META_STEPS,
        num_devices=1,
        meta_optimizer=MetaOptimizer(learning_rate=RATE, schedule="cosine", clip_norm=1.0),
        validation=Validation(every=0),
    )
    trainer = Trainer(dataclasses.replace(experiment, log=dataclasses.replace(experiment.log, every=META_STEPS // 10)))
    found = []
    for seed in range(SEEDS):
        trainer.experiment = dataclasses.replace(trainer.experiment, seed=seed)
        try:
            found.append(meta_train(trainer).meta_params)
        except Diverged:
            continue
    return tested(oracle, build_optimizer(parse_choice(optimizer)), found)


def baselines(oracle: str) -> dict[str, Any]:
    """Adam, its rate and momentum tuned for each horizon under the same oracle."""
    family, found = noisy(oracle), {}
    for multiple in MULTIPLES:
        how = {"num_tasks": 30, "names": ("adam",), "budget": "9x3", "num_devices": 1}
        optimizer, phi, record = tune_baselines(family, TUNING, horizon=multiple * HORIZON, **how)["adam"]
        kept = {name: record[name] for name in ("learning_rate", "beta1", "inside")}
        found[f"for {multiple}x"] = {**tested(oracle, optimizer, [phi]), **kept}
    return found


def tested(oracle: str, optimizer: Optimizer, found: list[MetaParams]) -> dict[str, Any]:
    """Exact regrets of every φ on the same tasks; the least f of a task is found with exact gradients."""
    if not found:
        return {"diverged": SEEDS}
    family = noisy(oracle)
    keys = task_keys(TEST, TESTED)
    rows = jax.tree.map(lambda *leaves: jnp.repeat(jnp.stack(leaves), TESTED, axis=0), *found)
    steps = plan(family, MULTIPLES[-1] * HORIZON, HORIZON, every=HORIZON // 5)
    curves = run_each(optimizer, rows, family, jnp.tile(keys, len(found)), steps=steps, num_devices=1, at_once=250)
    regret = curves.loss.reshape(len(found), TESTED, -1) - least()[:, None]
    return {
        "diverged": SEEDS - len(found) if len(found) > 1 else 0,
        "steps": steps,
        "curve": np.median(regret, axis=1),  # [meta-seeds, points]
        **{f"{m}x": regret[..., np.flatnonzero(steps == m * HORIZON)[0]] for m in MULTIPLES},  # [meta-seeds, tasks]
        "start": regret[0, :, 0],
        "died": 1 - curves.alive[:, -1].reshape(len(found), TESTED).mean(axis=1),
    }


@cache
def least() -> np.ndarray:
    """[tasks] the least f of each test task."""
    family = build_family(TASK)

    def one(key: jax.Array) -> jax.Array:
        # As an inner run draws its task from its key.
        task = family.sample(jax.random.split(key, 4)[0], family.data)
        return optimum(family, task, task.reference, steps=1000)[1]

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(task_keys(TEST, TESTED)), np.float64)
