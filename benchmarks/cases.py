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


def trained(meta_steps: int, experiment: metaopt.Experiment) -> Run:
    """A chunk of so many meta-steps, from where the last one ended."""
    experiment = dataclasses.replace(experiment, log=metaopt.Log(every=meta_steps), num_devices=1)
    trainer = metaopt.Trainer(experiment)
    state = [trainer.init()]

    def run() -> object:
        state[0], metrics = trainer.run_chunk(state[0])
        return metrics["meta_loss"]

    return run


def model(name: str, num_tasks: int, task: str = "quadratic", **fields: Any) -> metaopt.Experiment:
    """The BP or RL model, D = 10 unless the task's options say otherwise, T = 100 unless the fields do."""
    bp = name == "BP"
    rule = {"step_rule": "recursive", "noise": "none"} if bp else {"noise": "per_step"}
    settings: dict[str, Any] = {
        "optimizer": metaopt.choice("lstm", hidden_size=20, features="all", **rule),
        "estimator": metaopt.choice("truncated_backprop" if bp else "reparameterised"),
        "horizon": 100,
    }
    options = fields.pop("options", {"dim": 10})
    tasks = (metaopt.choice(task, **options),)
    return metaopt.Experiment(tasks=tasks, num_tasks=num_tasks, num_meta_steps=10**9, **(settings | fields))


def shipped(name: str) -> Run:
    """Meta-training of an experiment that comes with the package."""
    return trained(4, dataclasses.replace(metaopt.load_experiment(name)[1], num_meta_steps=10**9))


def inference(size: int) -> Run:
    tx, params = metaopt.load("networks_rl"), {"w": jax.random.normal(jax.random.key(0), (size,))}
    state, update = [jax.jit(tx.init)(params)], jax.jit(tx.update, donate_argnums=1)

    def run() -> object:
        updates, state[0] = update(params, state[0], params)
        return updates

    return run


def evaluation(num_tasks: int) -> Run:
    """A learned optimizer's curves to ten times its horizon."""
    trainer = metaopt.Trainer(dataclasses.replace(model("BP", 2), num_devices=1))
    entry = (trainer.optimizer, trainer.init().meta_params)
    settings: dict[str, Any] = {"horizon": 1000, "num_tasks": num_tasks, "num_devices": 1}
    return lambda: metaopt.evaluate({"it": entry}, trainer.families[0], jax.random.key(0), **settings).loss["it"]


def start() -> None:
    """`metaopt train` in a process of its own until its first logged meta-steps, compilation cached by the first."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "metaopt", "train", "quadratic_rl", "--num-meta-steps", "200", "--out", out]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, cwd=scratch)
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"`metaopt train` logged nothing; exit status {process.returncode}")
            time.sleep(0.01)
        process.kill()
        process.wait()


def evolution(name: str, window: int | None) -> metaopt.Experiment:
    return model("RL", 64, estimator=metaopt.choice(name), unroll_length=window)


ROSENBROCK: dict[str, Any] = {"task": "rosenbrock", "options": {"pairs": 500}, "horizon": 20}
# Name -> makes what is timed; a call takes about half a second on one core.
CASES: dict[str, Callable[[], Run]] = {
    **{
        f"meta-step, quadratics, {name}, {tasks} tasks": lambda name=name, tasks=tasks: trained(
            max(2, 640 // tasks), model(name, tasks)
        )
        for tasks in (64, 256)
        for name in ("BP", "RL")
    },
    "meta-step, Rosenbrock with D = 1000, BP": lambda: trained(8, model("BP", 1, **ROSENBROCK)),
    "meta-step, digits_rl": lambda: shipped("digits_rl"),
    "meta-step, digits_bp": lambda: shipped("digits_bp"),
    "meta-step, ES": lambda: trained(10, evolution("evolution_strategies", None)),
    "meta-step, PES": lambda: trained(20, evolution("persistent_evolution_strategies", 50)),
    "update of a million parameters": lambda: inference(1_000_000),
    "evaluation, quadratics, 1000 steps": lambda: evaluation(100),
    "start of a run, warm cache": lambda: start,
}


if __name__ == "__main__":
    expected = Path(os.environ["METAOPT_CHECKOUT"]) / "metaopt"
    if Path(metaopt.__file__).resolve().parent != expected:
        raise SystemExit(f"metaopt comes from {metaopt.__file__}, not from {expected}")
    serve(CASES[sys.argv[1]]())
