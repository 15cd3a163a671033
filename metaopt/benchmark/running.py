"""Optimizers on a suite, entry by entry and horizon by horizon: what they end with on each task, as plain JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metaopt.benchmark.suites import SUITES, Entry
from metaopt.choices import parse_choice
from metaopt.evaluation import curves as loss_curves
from metaopt.evaluation import evaluate, statistics
from metaopt.evaluation.tuning import tune_baselines
from metaopt.experiment import BASELINES, build_optimizer
from metaopt.files import write_json

HORIZONS = (50, 500, 5000)
TASKS = 8  # of each entry: starts, minibatches, and where they are drawn, problems
TUNED_ON = {50: 8, 500: 8, 5000: 4}  # other tasks, by horizon
TUNING = {50: "9x3", 500: "9x3", 5000: "9x1"}
UNTUNED = ("prodigy", "schedule_free_adamw", "nadamw_calibrated")
POINTS = 50  # of a curve
DIGITS = 9  # of a loss, as many as float32 has: what matters is how far it lies above its bound, which may be near
TASK_STREAM, TUNING_STREAM = 0x62656E, 0x74756E
RECORDS = "benchmark.json"  # in the folder of a benchmark
HELD = Path(__file__).parent / "baselines"

Record = dict[str, Any]  # of one entry at one horizon, or of all of a suite: {entry: {horizon: record}}


def measure(entry: Entry, horizon: int, optimizers: Mapping[str, loss_curves.Entry]) -> Record:
    """{"initial", "bound", "optimizers": name -> "final", "failed", "test", "curve"}, lists over tasks but for curves.

    A curve is the mean of `statistics.log_losses` over tasks at about `POINTS` even steps, from step 0 on.
    """
    key = jax.random.key(TASK_STREAM)
    every = max(1, horizon // POINTS)
    curves = evaluate(
        optimizers, entry.family, key, horizon=horizon, num_tasks=TASKS, record_every=every, progress=False
    )
    scale = curves.scale
    found: Record = {"initial": next(iter(curves.loss.values()))[:, 0], "bound": curves.lower_bound, "optimizers": {}}
    kept = np.flatnonzero(curves.steps % every == 0)
    for name, loss in curves.loss.items():
        test = curves.final[name].get("test")
        found["optimizers"][name] = {
            "final": loss[:, -1],
            "failed": statistics.failed(curves.peak[name], scale),
            "test": None if test is None else test["loss"],
            "steps": curves.steps[kept],
            "curve": np.round([statistics.log_losses(loss[:, at], scale).mean() for at in kept], 3),
        }
    return statistics.jsonable(found, DIGITS)


def measure_baselines(entry: Entry, horizon: int) -> Record:
    """The tuned ones at their best for the entry and horizon, found on other tasks; and the untuned as they come."""
    tuned = tune_baselines(
        entry.family,
        jax.random.key(TUNING_STREAM),
        horizon=horizon,
        num_tasks=TUNED_ON[horizon],
        names=BASELINES,
        budget=TUNING[horizon],
    )
    fixed = {name: build_optimizer(parse_choice(name)) for name in UNTUNED}
    optimizers: dict[str, loss_curves.Entry] = {name: (optimizer, phi) for name, (optimizer, phi, _) in tuned.items()}
    optimizers |= {name: (optimizer, optimizer.init(jax.random.key(0))) for name, optimizer in fixed.items()}
    record = measure(entry, horizon, optimizers)
    for name, (_, _, search) in tuned.items():
        said = {key: value for key, value in search.items() if key != "finalists"}
        record["optimizers"][name]["tuned"] = statistics.jsonable(said)
    return record


def held_baselines(suite: str) -> Record:
    """What is known of the baselines on a suite: {entry: {horizon: record}}, or {} where nothing is."""
    path = HELD / f"{suite}.json"
    return json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else {}


def run(
    suite: str,
    horizons: Sequence[int],
    path: Path,
    work: Callable[[Entry, int], Record],
    about: Mapping[str, Any],
    minutes: float | None = None,
    progress: Callable[[str], None] = print,
) -> Iterator[tuple[str, int]]:
    """Yields each (entry, horizon) as it is done; what `path` holds already is not done again.

    All horizons of an entry come together, since they share compiled programs. Nothing new is begun after so many
    `minutes`.
    """
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**about, "entries": {}}
    began = time.monotonic()
    todo = [
        (entry, horizon)
        for entry in SUITES[suite].values()
        for horizon in sorted(horizons)
        if str(horizon) not in record["entries"].get(entry.name, {})
    ]
    begun = None
    for number, (entry, horizon) in enumerate(todo, 1):
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            progress(f"{len(todo) - number + 1} of {len(todo)} are left for another time")
            return
        if entry is not begun:
            jax.clear_caches()  # of programs that no other entry runs
        begun = entry
        progress(f"{number}/{len(todo)} {entry.name}, {horizon:,} steps")
        record["entries"].setdefault(entry.name, {})[str(horizon)] = work(entry, horizon)
        write_json(path, record)
        yield entry.name, horizon
