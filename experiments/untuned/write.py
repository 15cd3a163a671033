"""Optimizers as they come, on all families: `python -m experiments.untuned.write` (twenty minutes of one core).

Calibrates the one setting of `nadamw_calibrated`, and scores the untuned field beside tuned baselines. Writes
results.json part by part, the picture and README.md beside itself; with `--page` the page alone.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from metaopt.choices import parse_choice
from metaopt.evaluation import BASELINES, evaluate_run_on, statistics
from metaopt.evaluation.outcomes import run_each, task_keys
from metaopt.evaluation.recording import plan
from metaopt.experiment import build_family, build_optimizer
from metaopt.registry import OPTIMIZERS
from metaopt.report.panels import INK, frame, set_log_ticks
from metaopt.report.svg import save_png
from metaopt.runs.metrics import number

HERE = Path(__file__).parent
FAMILIES = (
    "quadratic",
    "rosenbrock",
    "linear_regression",
    "logistic_regression",
    "regression_network",
    "classifier",
    "classifier:hidden_layers=3",
    "classifier:batch_norm=true,activation=tanh",
    "autoencoder",
    # Shifted, for what decay draws to the origin would find their minimum there.
    *(
        f"{name}:shift=0.5"
        for name in ("double_well", "tilted_double_well", "rastrigin", "ackley", "styblinski_tang", "griewank")
    ),
)
HORIZONS = (50, 500)
CALIBRATED = "nadamw_calibrated"
# A learning rate of 10^(k/2) for all, and every combination with the others.
RATES = tuple(float(f"{10 ** (k / 2):.3g}") for k in range(-7, 0))
BETAS1, BETAS2, DECAYS, WARMUPS = (0.9, 0.95), (0.9, 0.99, 0.999), (1e-4, 1e-2, 1e-1), (0.02, 0.1, 0.3)
SHORTER = (0.5, 0.8, 0.9)  # both β around the chosen setting, where the grid has no smaller ones
FREE = ("learning_rate", "beta1", "beta2", "weight_decay")
TASKS = 16  # of a family, for the calibration
SCORED = 32  # for the comparison, other tasks
FLOOR = 1e-3  # of the first loss above its bound: what lies below is as good
CALIBRATION = jax.random.key(7)  # no other stream's


def settings() -> list[dict[str, float]]:
    """All of the grid, in the order of the scores."""
    named = itertools.product(WARMUPS, RATES, BETAS1, BETAS2, DECAYS)
    return [dict(zip(("warmup", *FREE), values, strict=True)) for values in named]


def shorter(chosen: Mapping[str, float]) -> list[dict[str, float]]:
    """A setting with shorter memories than the grid has, and itself."""
    return [{**chosen, "beta1": beta1, "beta2": beta2} for beta1 in SHORTER for beta2 in SHORTER]


def calibration(name: str, horizon: int, grid: Sequence[Mapping[str, float]]) -> list[float]:
    """The mean over tasks of log((f_T - b)/(f_0 - b) + FLOOR) of every setting; a failed task counts as one at f_0.

    Args:
      grid: settings, in the order of WARMUPS.
    """
    family, found = build_family(parse_choice(name)), []
    keys, steps = task_keys(CALIBRATION, TASKS), plan(family, horizon, every=max(1, horizon // 10))
    for warmup in WARMUPS:
        free = ",".join(FREE)
        optimizer = build_optimizer(parse_choice(f'nadamw:schedule=warmup_cosine,warmup={warmup},tunes="{free}"'))
        each = [one for one in grid if one["warmup"] == warmup for _ in range(TASKS)]
        if not each:
            continue
        rows = {key: optimizer.tunable[key].inverse(jnp.array([one[key] for one in each], jnp.float32)) for key in FREE}
        keyed = jnp.tile(keys, len(each) // TASKS)
        run = run_each(optimizer, rows, family, keyed, steps=steps, at_once=512, num_devices=1)
        scale = statistics.scale(run.lower_bound, run.loss[:, 0], [run.loss])
        share = scale.above(run.loss[:, -1]) / scale.unit
        failed = statistics.failed(run.peak, scale)
        value = np.log(np.where(failed, 1.0, np.minimum(share, 1.0)) + FLOOR)
        found += value.reshape(-1, TASKS).mean(axis=1).tolist()
    return found


def choose(scores: Mapping[str, list[float]], without: str | None = None) -> tuple[int, np.ndarray]:
    """(the setting with the lowest mean regret, regrets [settings]): a regret is what another of the grid does better.

    Args:
      without: a family that has no say.
    """
    used = [value for name, value in scores.items() if name.rsplit(" ", 1)[0] != without]
    regret = np.mean([np.array(value) - min(value) for value in used], axis=0)
    return int(np.argmin(regret)), regret


def as_choice(setting: Mapping[str, float]) -> str:
    return "nadamw:schedule=warmup_cosine," + ",".join(f"{name}={value:g}" for name, value in setting.items())


def comparison(name: str, horizon: int, setting: Mapping[str, float]) -> dict[str, Any]:
    """The untuned field and a setting that was chosen without this family, beside tuned baselines."""
    optimizer = build_optimizer(parse_choice(as_choice(setting)))
    learned = {HELD_OUT: (optimizer, optimizer.init(jax.random.key(0)))}
    untuned = tuple(each for each in OPTIMIZERS if OPTIMIZERS.traits(each).untuned)
    result = evaluate_run_on(
        learned,
        parse_choice(name),
        horizon=horizon,
        num_tasks=SCORED,
        baselines=(*BASELINES, *untuned),
        tuning="9x1",
        num_devices=1,
    )
    return {
        each: {"mean": one["final"]["mean"], "failed": one["failed"], "kind": one["kind"], "ratio": ratio(one)}
        for each, one in result["optimizers"].items()
    }


HELD_OUT = "NadamW, calibrated on the other families"


def ratio(record: Mapping[str, Any]) -> Any:
    """To the best tuned baseline, of means above the bound."""
    held = record.get("ratio_to_best_baseline")
    return None if held is None else held["of_means"]


def main() -> None:
    file = HERE / "results.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    pairs = list(itertools.product(FAMILIES, HORIZONS))

    def keep(kind: str, name: str, value: Any) -> None:
        record.setdefault(kind, {})[name] = statistics.jsonable(value)
        file.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
        jax.clear_caches()

    if "--page" not in sys.argv:
        for kind in ("calibration", "shorter", "comparison"):
            for name, horizon in pairs:
                label, began = f"{name} {horizon}", time.time()
                if label in record.get(kind, {}):
                    continue
                if kind == "comparison":
                    setting = settings()[choose(record["calibration"], without=name)[0]]
                    keep(kind, label, comparison(name, horizon, setting))
                else:
                    grid = settings()
                    if kind == "shorter":
                        grid = shorter(grid[choose(record["calibration"])[0]])
                    keep(kind, label, calibration(name, horizon, grid))
                print(f"{kind}: {label}, {time.time() - began:.0f} s", flush=True)
    if fields(record):
        (HERE / "figures").mkdir(exist_ok=True)
        draw(record, HERE / "figures" / "field.png")
    (HERE / "README.md").write_text(page(record), encoding="utf-8")


# ----- the page -------------------------------------------------------------------------------------------------------


def fields(record: Mapping[str, Any]) -> dict[str, dict[int, list[float]]]:
    """optimizer -> horizon -> ratios to the best tuned baseline, one a family; the calibrated last."""
    found: dict[str, dict[int, list[float]]] = {}
    for label, each in record.get("comparison", {}).items():
        horizon = int(label.rsplit(" ", 1)[1])
        for name, one in each.items():
            if one["kind"] != "baseline" and one["ratio"] is not None:
                found.setdefault(name, {}).setdefault(horizon, []).append(number(one["ratio"]))
    return dict(sorted(found.items(), key=lambda item: geometric(item[1][HORIZONS[-1]])))


def geometric(values: list[float]) -> float:
    """The geometric mean of ratios, each held between 1/100 and 100: one family without a bottom decides nothing."""
    return float(np.exp(np.mean(np.log(np.clip(values, 1e-2, 1e2)))))


def rows(record: Mapping[str, Any]) -> Iterator[str]:
    for name, ratios in fields(record).items():
        cells = [
            f"{geometric(ratios[horizon]):.2g} | {np.mean(np.array(ratios[horizon]) <= 1):.0%}" for horizon in HORIZONS
        ]
        failed = [one[name]["failed"] for one in record["comparison"].values()]
        yield f"| {name} | {' | '.join(cells)} | {np.mean(failed):.1%} |"


def page(record: Mapping[str, Any]) -> str:
    best, regret = choose(record["calibration"])
    every = settings()
    rates = np.array([one["learning_rate"] for one in every])
    single = {rate: regret[rates == rate].min() for rate in RATES}
    left = [settings()[choose(record["calibration"], without=name)[0]] for name in FAMILIES]
    beside = np.mean(list(record["shorter"].values()), axis=0)
    own = beside[shorter(every[best]).index(every[best])]
    words = (HERE / "page.md").read_text(encoding="utf-8")
    if len(record.get("comparison", {})) < len(FAMILIES) * len(HORIZONS):
        words = words.partition("## Beside")[0]  # the comparison is not complete
    return words.format(
        families=len(FAMILIES),
        listed=", ".join(f"`{name}`" for name in FAMILIES),
        horizons=" and ".join(map(str, HORIZONS)),
        settings=len(every),
        tasks=TASKS,
        scored=SCORED,
        best=as_choice(every[best]),
        regret=f"{math.exp(regret[best]):.2g}",
        by_rate=", ".join(f"{rate:g}: {math.exp(value):.2g}" for rate, value in single.items()),
        shorter=", ".join(
            f"{one['beta1']:g} and {one['beta2']:g}: {math.exp(value - own):.3g}"
            for one, value in zip(shorter(every[best]), beside, strict=True)
            if one != every[best]
        ),
        same=sum(one == every[best] for one in left),
        rows="\n".join(rows(record)),
    )


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Ratios to the best tuned baseline, a point a family."""
    found = fields(record)
    figure = Figure(figsize=(11, 0.42 * len(found) + 1.3), layout="constrained")
    for axes, horizon in zip(figure.subplots(1, len(HORIZONS), sharey=True), HORIZONS, strict=True):
        frame(axes)
        axes.set_xscale("log")
        axes.axvline(1.0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for y, (name, ratios) in enumerate(found.items()):
            mine = "calibrated" in name
            values = np.clip(ratios[horizon], 1e-2, 1e2)
            axes.plot(values, [y] * len(values), "o", color="#D55E00" if mine else "#0072B2", markersize=5, alpha=0.5)
            axes.plot(geometric(ratios[horizon]), y, "|", color=INK, markersize=15, markeredgewidth=2)
        axes.set_yticks(range(len(found)), list(found), fontsize=9)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(0.008, 125)
        axes.set_title(f"{horizon} steps", fontsize=11, color=INK, loc="left")
        axes.set_xlabel("mean final loss over the best tuned baseline's")
        set_log_ticks(axes.xaxis)
    save_png(figure, path)


if __name__ == "__main__":
    main()
