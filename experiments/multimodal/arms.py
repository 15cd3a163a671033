"""What is meta-trained: four ways to a learned optimizer for functions of many minima, three seeds each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from metaopt.choices import Choice, choice
from metaopt.experiment import Experiment, Log, MetaOptimizer, Validation
from metaopt.registry import OBJECTIVES
from metaopt.runs.optimizer_file import read_optimizer, save_optimizer
from metaopt.training.trainer import Trainer
from metaopt.types import Objective, Trace

HERE = Path(__file__).parent
HORIZON, SEEDS = 100, (0, 1, 2)
SHAPES = {"shift": 0.5, "stretch": 2.0}  # starts know neither where the minimum is nor how wide its cell


def log_end(floor: float = 1e-3) -> Objective:
    """log((f(θ_t) - b)/(f(θ_0) - b) + floor), mean over the last five steps: where a run comes to rest."""

    def objective(trace: Trace) -> jax.Array:
        gap = jnp.maximum(trace.loss - trace.lower_bound, 0.0)
        share = gap / jnp.maximum(trace.initial_loss - trace.lower_bound, 1e-12)
        return jnp.mean(jnp.log(share[-5:] + floor), axis=0)

    return objective


def family(name: str, dim: int) -> Choice:
    """A family of shifted, stretched and, where there is something to turn, rotated functions."""
    return choice(name, dim=dim, **SHAPES, **({"rotate": True} if dim > 1 else {}))


TRAINED = tuple(
    family(name, dim)
    for name, dim in (
        ("tilted_double_well", 1), ("tilted_double_well", 5), ("rastrigin", 2), ("ackley", 2), ("ackley", 10),
        ("styblinski_tang", 5),
    )
)  # fmt: skip
NEW = (family("styblinski_tang", 2),)  # seen by no meta-training

# A small network, for the variance of evolution strategies grows with the numbers in φ.
NETWORK = {"hidden_size": 8, "num_layers": 1, "normalisation": "rms"}
DIRECT = choice("lstm", step_rule="direct", noise="per_coordinate", alpha_bias=-1.5, **NETWORK)
RECURSIVE = choice("lstm", step_rule="recursive", noise="per_coordinate", alpha_bias=0.03, **NETWORK)
QUIET = Choice("lstm", {**RECURSIVE.options, "noise": "none"})
EVOLUTION = choice("evolution_strategies", sigma=0.03, tasks_per_perturbation=2)

# name -> (optimizer, estimator, meta-steps, learning rate)
ARMS: dict[str, tuple[Choice, Choice, int, float]] = {
    "recursive, noise, evolution": (RECURSIVE, EVOLUTION, 1000, 1e-2),
    "RL, evolution": (DIRECT, EVOLUTION, 1000, 1e-2),
    "recursive, quiet, evolution": (QUIET, EVOLUTION, 1000, 1e-2),
    "RL, reparameterised": (DIRECT, choice("reparameterised"), 500, 3e-3),
}


def experiment(arm: str, seed: int) -> Experiment:
    """What one arm is meta-trained by."""
    optimizer, estimator, steps, rate = ARMS[arm]
    return Experiment(
        tasks=TRAINED,
        optimizer=optimizer,
        estimator=estimator,
        objective="log_end",
        seed=seed,
        num_meta_steps=steps,
        num_tasks=48,
        horizon=HORIZON,
        num_devices=1,
        meta_optimizer=MetaOptimizer(learning_rate=rate, schedule="cosine", final_fraction=0.05),
        validation=Validation(every=0),
        log=Log(every=100),
    )


def place(arm: str, seed: int) -> Path:
    """The file of an arm's φ."""
    return HERE / "phi" / f"{arm.replace(', ', '-').replace(' ', '-').lower()}-{seed}.safetensors"


def train(arm: str, seed: int) -> None:
    """Meta-trains unless that is done; φ is that of the last meta-step, chosen by nothing."""
    path, made = place(arm, seed), experiment(arm, seed)
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    if made.objective not in OBJECTIVES:
        OBJECTIVES.register(log_end, scale_free=True, positive=True)
    trainer = Trainer(made)
    state, log = trainer.init(), []
    while int(state.meta_step) < made.num_meta_steps:
        state, metrics = trainer.run_chunk(state)
        means = {name: float(metrics[name].mean()) for name in ("meta_loss", "grad_norm", "step_length", "failed")}
        log.append({"meta_step": int(state.meta_step), **means})
        print(arm, seed, log[-1], flush=True)
    save_optimizer(path, state.meta_params, made, {"meta_step": made.num_meta_steps, "log": log})


def trained(arm: str) -> tuple[list, list]:
    """(φ of every seed, their logs)."""
    read = [read_optimizer(place(arm, seed)) for seed in SEEDS]
    return [one.meta_params for one in read], [one.card["log"] for one in read]


def every() -> Iterator[tuple[str, int]]:
    """(arm, seed), the first seeds first."""
    return ((arm, seed) for arm in ARMS for seed in SEEDS)


if __name__ == "__main__":
    for arm, seed in every():
        train(arm, seed)
