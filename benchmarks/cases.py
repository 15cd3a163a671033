"""What `benchmarks/bench --against` times, in any checkout: this file is run with that checkout's metaopt.

So it uses nothing but the public names of `metaopt`, which stay.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import metaopt

Run = Callable[[], object]
HIDDEN, DIM, HORIZON = 20, 10, 100
DIGITS_DIM = 64 * 20 + 20 + 20 * 10 + 10  # parameters of a classifier of digits


def serve(run: Run) -> None:
    """Warms up and says so, then times one call a line of its input; core-seconds are those of this process."""
    began = time.perf_counter()
    jax.block_until_ready(run())
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
    for _ in sys.stdin:
        began, cores = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        report = {"seconds": time.perf_counter() - began, "core_seconds": time.process_time() - cores}
        print(json.dumps(report), flush=True)


def chunks(described: metaopt.Experiment) -> Callable[[], Any]:
    """A chunk of meta-steps as users run them, from where the last one ended; returns φ."""
    trainer = metaopt.Trainer(described)
    state = [trainer.init()]

    def run() -> Any:
        state[0], _ = trainer.run_chunk(state[0])
        return state[0].meta_params

    return run


def learned(model: str, hidden: int = HIDDEN) -> metaopt.Choice:
    """The optimizer of the `BP` or the `RL` model."""
    rule = {"step_rule": "recursive", "noise": "none"} if model == "BP" else {"noise": "per_step"}
    return metaopt.choice("lstm", hidden_size=hidden, features="all", **rule)


def experiment(
    model: str, num_tasks: int, meta_steps: int, task: metaopt.Choice | None = None, **fields: Any
) -> metaopt.Experiment:
    """The BP or RL model on quadratics with D = 10, T = 100, on one device, in chunks; `task` and `fields` override."""
    settings: dict[str, Any] = dict(
        tasks=(task or metaopt.choice("quadratic", dim=DIM),),
        optimizer=learned(model),
        estimator=metaopt.choice("truncated_backprop" if model == "BP" else "reparameterised"),
        num_meta_steps=10**9,
        num_tasks=num_tasks,
        horizon=HORIZON,
        num_devices=1,
        log=metaopt.Log(every=meta_steps),
    )
    return metaopt.Experiment(**(settings | fields))


def digits(meta_steps: int) -> metaopt.Experiment:
    """The RL model on classifiers of digits, T = 50."""
    return experiment(
        "RL",
        4,
        meta_steps,
        metaopt.choice("classifier"),
        optimizer=metaopt.choice("lstm", features="all", noise="per_step", alpha_bias=-2.0),
        meta_optimizer=metaopt.MetaOptimizer(learning_rate=3e-3),
        horizon=50,
    )


def shipped(name: str, meta_steps: int) -> metaopt.Experiment:
    """An experiment that comes with the package."""
    found = metaopt.load_experiment(name)[1]
    log = metaopt.Log(every=meta_steps)
    return dataclasses.replace(found, num_meta_steps=10**9, num_devices=1, log=log)


def inference(size: int) -> Run:
    tx, params = metaopt.load("networks_rl"), {"w": jax.random.normal(jax.random.key(0), (size,))}
    state, update = [jax.jit(tx.init)(params)], jax.jit(tx.update, donate_argnums=1)

    def run() -> object:
        updates, state[0] = update(params, state[0], params)
        return updates

    return run


def evaluation(num_tasks: int) -> Run:
    """A learned optimizer's curves to ten times its horizon."""
    trainer = metaopt.Trainer(experiment("BP", 2, 1))
    entry = (trainer.optimizer, trainer.init().meta_params)
    settings: dict[str, Any] = {"horizon": 1000, "num_tasks": num_tasks, "num_devices": 1}
    return lambda: metaopt.evaluate({"it": entry}, trainer.families[0], jax.random.key(0), **settings).loss["it"]


def steps_on_digits(optimizer: str, **options: Any) -> Run:
    """500 steps of a hand-designed optimizer on 16 classifiers."""
    picked = metaopt.build_optimizer(metaopt.choice(optimizer, **options))
    family = metaopt.Trainer(digits(1)).families[0]
    entry = (picked, picked.init(jax.random.key(0)))
    settings: dict[str, Any] = {"horizon": 500, "record_every": 500, "num_tasks": 16, "num_devices": 1}
    return lambda: metaopt.evaluate({"it": entry}, family, jax.random.key(0), **settings).loss["it"]


def first_row(name: str, out: Path, *flags: str, **variables: str) -> float:
    """Seconds from `metaopt train NAME` in a process of its own to its first logged meta-steps.

    Whose metaopt that is PYTHONPATH decides, and these environment variables come on top of this process's.
    """
    command = [sys.executable, "-m", "metaopt", "train", name, "--num-meta-steps", "200", "--out", str(out), *flags]
    quiet, environment = subprocess.DEVNULL, {**os.environ, **variables, "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment, cwd=out.parent)
    metrics = out / "metrics.jsonl"
    try:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None or time.perf_counter() - began > 300:
                raise RuntimeError(f"`metaopt train {name}` logged nothing; exit status {process.returncode}")
            time.sleep(0.01)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def start() -> None:
    """By the first call the compilation is cached."""
    with tempfile.TemporaryDirectory() as scratch:
        first_row("quadratic_rl", Path(scratch) / "run")


def evolution(name: str, window: int | None) -> metaopt.Experiment:
    return experiment("RL", 64, 1000 // (window or HORIZON), estimator=metaopt.choice(name), unroll_length=window)


def outer_steps(num_tasks: int, steps: int, **options: Any) -> Run:
    """Adam's steps under SOSMC with Langevin moves of 10,000 particles in the plane, on the dual target.

    `options` are those of `jax.jit`.
    """
    oracle = metaopt.ORACLES["sosmc"](num_particles=10_000)
    family = dataclasses.replace(metaopt.TASKS["tuned_mixture"](target="dual", spread=0.0), oracle=oracle)
    optimizer = metaopt.build_optimizer(metaopt.choice("adam"))
    tx = metaopt.bind_tasks(optimizer, optimizer.init(jax.random.key(0)))
    task, state = jax.jit(lambda keys: metaopt.reset(tx, family, keys))(jax.random.split(jax.random.key(1), num_tasks))
    run = jax.jit(lambda task, state: metaopt.unroll(tx, family, task, state, length=steps)[1].update_norm, **options)
    return lambda: run(task, state)


# Name -> makes what is timed; a call takes about half a second on one core.
CASES: dict[str, Callable[[], Run]] = {
    "meta-step, quadratics, BP, 64 tasks": lambda: chunks(experiment("BP", 64, 10)),
    "meta-step, quadratics, RL, 64 tasks": lambda: chunks(experiment("RL", 64, 10)),
    "meta-step, quadratics, BP, 256 tasks": lambda: chunks(experiment("BP", 256, 2)),
    "meta-step, quadratics, RL, 256 tasks": lambda: chunks(experiment("RL", 256, 2)),
    "meta-step, Rosenbrock with D = 1000, BP": lambda: chunks(
        experiment("BP", 1, 8, metaopt.choice("rosenbrock", pairs=500), horizon=20)
    ),
    "meta-step, digits_rl": lambda: chunks(shipped("digits_rl", 2)),
    "meta-step, digits_bp": lambda: chunks(shipped("digits_bp", 2)),
    "meta-step, ES": lambda: chunks(evolution("evolution_strategies", None)),
    "meta-step, PES": lambda: chunks(evolution("persistent_evolution_strategies", 50)),
    "update of a million parameters": lambda: inference(1_000_000),
    "500 outer steps of SOSMC, 10,000 particles": lambda: outer_steps(1, 500),
    "evaluation, quadratics, 1000 steps": lambda: evaluation(100),
    "500 steps on digits, SGD": lambda: steps_on_digits("sgd", learning_rate=0.1),
    "500 steps on digits, Langevin": lambda: steps_on_digits("langevin", learning_rate=1e-3, temperature=1e-3),
    "start of a run, warm cache": lambda: start,
}


if __name__ == "__main__":
    expected = Path(os.environ["METAOPT_CHECKOUT"]) / "metaopt"
    if Path(metaopt.__file__).resolve().parent != expected:
        raise SystemExit(f"metaopt comes from {metaopt.__file__}, not from {expected}")
    serve(CASES[sys.argv[1]]())
