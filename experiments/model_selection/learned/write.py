"""Learned optimizers on the families of model selection, and hypergradients through them; see README.md, which this
writes.

    python -m experiments.model_selection.learned.write         meta-trains and evaluates what is missing, then the page
    python -m experiments.model_selection.learned.write --page  the page alone
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from metaopt.choices import Choice, choice, parse_choice
from metaopt.evaluation import evaluate_run_on, statistics
from metaopt.evaluation.intervals import Mean, crossed_mean
from metaopt.experiment import Experiment, Log, MetaOptimizer, Validation, optimizer_of
from metaopt.report.panels import INK, frame, set_log_ticks
from metaopt.report.svg import save_png
from metaopt.runs.optimizer_file import read_optimizer, save_optimizer
from metaopt.training.trainer import Trainer, averaged

HERE = Path(__file__).parent
HORIZON, SEEDS, SCORED = 100, (0, 1, 2), 128
HORIZONS = (HORIZON, 10 * HORIZON)
BASELINES = ("adam", "momentum", "adamw:schedule=cosine")
TOLD = "adamw:schedule=cosine"  # the one that is told the horizon

# Where meta-training is on, and what is evaluated on: the same laws, other draws.
TASKS = {
    "evidence": (choice("elbo_linear"), choice("elbo_structure")),
    "experts": (choice("mixture_of_experts"),),
}
MODELS = {
    "RL": (choice("lstm", step_rule="direct", noise="per_step"), choice("reparameterised")),
    "BP": (choice("lstm", step_rule="recursive", noise="none"), choice("truncated_backprop")),
}
RIDGE = choice("ridge_features")
WHOLE = {"second_order": True}
# Hypergradients through optimizers: of the family's precisions alone, and with them of the optimizer's own numbers.
SETTINGS: dict[str, tuple[Choice, Choice]] = {
    "Adam, precisions alone": (choice("adam", learning_rate=0.03), choice("forward_mode", of="task")),
    "Adam, both": (choice("adam", learning_rate=0.03), choice("forward_mode", of="both")),
    "BP, precisions alone": (MODELS["BP"][0], Choice("truncated_backprop", {**WHOLE, "of": "task"})),
    "BP, both": (MODELS["BP"][0], Choice("truncated_backprop", {**WHOLE, "of": "both"})),
}


def experiments() -> Iterator[tuple[str, int, Experiment]]:
    """(name, seed, what is meta-trained), the first seeds first."""
    common: dict[str, Any] = {"horizon": HORIZON, "num_devices": 1, "validation": Validation(every=0)}
    for seed in SEEDS:
        for model, (optimizer, estimator) in MODELS.items():
            for field, tasks in TASKS.items():
                made = Experiment(
                    tasks=tasks, optimizer=optimizer, estimator=estimator, seed=seed, num_meta_steps=600,
                    num_tasks=16, meta_optimizer=MetaOptimizer(schedule="cosine"), log=Log(every=100), **common,
                )  # fmt: skip
                yield f"{model}, {field}", seed, made
        for name, (optimizer, estimator) in SETTINGS.items():
            rate = MetaOptimizer(learning_rate=0.03 if optimizer.name == "adam" else 0.003, schedule="cosine")
            made = Experiment(
                tasks=(RIDGE,), optimizer=optimizer, estimator=estimator, objective="last", seed=seed,
                num_meta_steps=500, num_tasks=16, meta_optimizer=rate, log=Log(every=100), **common,
            )  # fmt: skip
            yield name, seed, made


def place(name: str, seed: int) -> Path:
    """The file of a φ."""
    return HERE / "phi" / f"{name.replace(', ', '-').replace(' ', '-').lower()}-{seed}.safetensors"


def train(name: str, seed: int, made: Experiment) -> None:
    """Meta-trains unless that is done; φ is that of the last meta-step, chosen by nothing."""
    path, began = place(name, seed), time.time()
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    trainer = Trainer(made)
    state, losses = trainer.init(), []
    while int(state.meta_step) < made.num_meta_steps:
        state, metrics = trainer.run_chunk(state)
        losses.append(float(metrics["meta_loss"].mean()))
    save_optimizer(path, averaged(state), made, {"meta_step": made.num_meta_steps, "meta_loss": losses})
    print(f"{name} {seed}: {time.time() - began:.0f} s, meta-loss {losses[0]:.4g} to {losses[-1]:.4g}", flush=True)
    jax.clear_caches()


def evaluated(task: Choice, names: tuple[str, ...], horizon: int) -> dict[str, Any]:
    """Every seed of the named beside tuned baselines, on the same tasks: logarithms of ratios to tuned Adam."""
    made = {(name, seed): experiment for name, seed, experiment in experiments() if name in names}
    learned = {
        f"{name} {seed}": (optimizer_of(experiment), read_optimizer(place(name, seed)).meta_params)
        for (name, seed), experiment in made.items()
    }
    kept: dict[str, Any] = {}

    def look(family: Any, key: Any, curves: Any) -> None:
        ends = {name: loss[:, -1] for name, loss in curves.loss.items()}
        kept["failed"] = {name: statistics.failed(peak, curves.scale) for name, peak in curves.peak.items()}
        kept["logs"] = {name: statistics.log_ratios(end, ends["adam"], curves.scale) for name, end in ends.items()}
        kept["test"] = {
            name: {metric: float(np.mean(value)) for metric, value in final.get("test", {}).items()}
            for name, final in curves.final.items()
        }

    how: dict[str, Any] = {"num_tasks": SCORED, "baselines": BASELINES, "num_devices": 1, "look": look}
    evaluate_run_on(learned, task, horizon=horizon, train_horizon=HORIZON, **how)
    return {
        "logs": {
            **{name: [kept["logs"][f"{name} {seed}"] for seed in SEEDS] for name in names},
            **{name: [kept["logs"][name]] for name in BASELINES if name != "adam"},
        },
        "failed": {
            **{name: [kept["failed"][f"{name} {seed}"].mean() for seed in SEEDS] for name in names},
            **{name: [kept["failed"][name].mean()] for name in BASELINES},
        },
        "test": {
            **{name: [kept["test"][f"{name} {seed}"] for seed in SEEDS] for name in names},
            **{name: [kept["test"][name]] for name in BASELINES},
        },
    }


def main() -> None:
    file = HERE / "results.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    fields = {str(task): tuple(f"{model}, {field}" for model in MODELS) for field in TASKS for task in TASKS[field]}
    wanted = [(task, names, horizon) for task, names in fields.items() for horizon in HORIZONS]
    wanted += [(str(RIDGE), tuple(SETTINGS), horizon) for horizon in HORIZONS]
    if "--page" not in sys.argv:
        for name, seed, made in experiments():
            train(name, seed, made)
        for task, names, horizon in wanted:
            label, began = f"{task} {horizon}", time.time()
            if label in record:
                continue
            record[label] = statistics.jsonable(evaluated(parse_choice(task), names, horizon))
            file.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
            print(f"{label}: {time.time() - began:.0f} s", flush=True)
            jax.clear_caches()
    (HERE / "figures").mkdir(exist_ok=True)
    draw(record, HERE / "figures" / "ratios.png")
    (HERE / "README.md").write_text(page(record), encoding="utf-8")


# ----- the page -------------------------------------------------------------------------------------------------------


def ratio(logs: list[list[float]]) -> Mean:
    """Over seeds and tasks; of a baseline, whose rates one search found, over tasks."""
    return crossed_mean(np.array(logs)) if len(logs) > 1 else statistics.mean_of(np.array(logs[0]))


def cell(logs: list[list[float]]) -> str:
    mean = ratio(logs)
    low, high = np.exp(mean.interval())
    return f"{np.exp(mean.mean):.3g} [{low:.3g}, {high:.3g}]"


def shown(name: str) -> str:
    return f"{name} (told the horizon)" if name == TOLD else name


def rows(record: Mapping[str, Any], task: str) -> Iterator[str]:
    near, far = (record[f"{task} {horizon}"] for horizon in HORIZONS)
    for name in (*near["logs"], "adam"):
        failed = [f"{np.mean(each['failed'][name]):.1%}" for each in (near, far)]
        tests = [np.mean([one.get("loss", np.nan) for one in each["test"][name]]) for each in (near, far)]
        test = " | ".join("–" if np.isnan(value) else f"{value:.3g}" for value in tests)
        cells = ["1" if name == "adam" else cell(each["logs"][name]) for each in (near, far)]
        yield f"| {shown(name)} | {' | '.join(cells)} | {' / '.join(failed)} | {test} |"


def page(record: Mapping[str, Any]) -> str:
    words = (HERE / "page.md").read_text(encoding="utf-8")
    head = f"| | at {HORIZONS[0]} | at {HORIZONS[1]} | failed | test loss at {HORIZONS[0]} | at {HORIZONS[1]} |\n"
    head += "| --- | --- | --- | --- | --- | --- |\n"
    tables = []
    for task in dict.fromkeys(label.rsplit(" ", 1)[0] for label in record):
        tables.append(f"### `{task}`\n\n{head}" + "\n".join(rows(record, task)))
    *learned, ridge = tables
    return words.format(
        learned="\n\n".join(learned), ridge=ridge, scored=SCORED, seeds=len(SEEDS), horizon=HORIZON, long=HORIZONS[1]
    )


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Ratios to tuned Adam with their intervals."""
    tasks = list(dict.fromkeys(label.rsplit(" ", 1)[0] for label in record))
    figure = Figure(figsize=(11, 1.9 * len(tasks) + 0.6), layout="constrained")
    grid = figure.subplots(len(tasks), 2, sharex=True, squeeze=False)
    for line, task in zip(grid, tasks, strict=True):
        for axes, horizon in zip(line, HORIZONS, strict=True):
            frame(axes)
            axes.set_xscale("log")
            axes.axvline(1.0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            found = record[f"{task} {horizon}"]["logs"]
            for y, (name, logs) in enumerate(found.items()):
                mean = ratio(logs)
                low, high = np.exp(mean.interval())
                colour = "#6e7781" if name in BASELINES else "#D55E00"
                axes.plot([max(low, 1e-3), min(high, 1e3)], [y, y], color=colour, linewidth=2)
                axes.plot(np.exp(mean.mean), y, "o", color=colour, markersize=6)
                if len(logs) > 1:
                    seeds = np.exp([np.mean(each) for each in logs])
                    axes.plot(seeds, [y] * len(seeds), "|", color=INK, markersize=9)
            axes.set_yticks(range(len(found)), [shown(name) for name in found], fontsize=9)
            axes.set_ylim(len(found) - 0.5, -0.5)
            axes.set_title(f"{task}, {horizon} steps", fontsize=11, color=INK, loc="left")
            set_log_ticks(axes.xaxis)
    for axes in grid[-1]:
        axes.set_xlabel("loss over tuned Adam's")
    save_png(figure, path)


if __name__ == "__main__":
    main()
