"""Choosing a model by its evidence: `python -m experiments.model_selection.evidence.write` (eight core-minutes).

Writes results.json part by part, and goes on where it was stopped; then the pictures and README.md beside itself; with
`--page` these alone, from the JSON.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.model_selection.evidence import choice, criteria, recovery
from experiments.model_selection.evidence.page import page
from experiments.model_selection.evidence.pictures import draw
from metaopt.evaluation.statistics import jsonable

HERE = Path(__file__).parent


def work() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(part, what computes it)."""
    yield "theorem", criteria.theorem
    yield "redundant", choice.redundant_parameter
    for examples in choice.SIZES:
        yield f"size {examples}", functools.partial(choice.sample_size, examples)
    for name in choice.CONFIGURATIONS:
        yield name, functools.partial(choice.configuration, name)
    yield "linear", recovery.linear
    yield "sweep", recovery.sweep
    for noise in recovery.NOISES:
        yield f"enumeration {noise}", functools.partial(recovery.enumeration, noise)
        for name in recovery.SCHEDULES:
            yield f"schedule {name}, {noise}", functools.partial(recovery.schedule, name, noise)
        yield f"optimizers {noise}", functools.partial(recovery.optimizers, noise)
    yield "paths", recovery.paths
    hard = {"noise": recovery.HARD_NOISE, "seeds": recovery.HARD_SEEDS, **recovery.HARD}
    yield "hard, enumeration", functools.partial(recovery.enumeration, **hard)
    for name in recovery.HARD_SCHEDULES:
        yield f"hard, {name}", functools.partial(recovery.schedule, name, **hard)


def main() -> None:
    file = HERE / "results.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if "--page" not in sys.argv:
        for part, compute in work():
            if part in record:
                continue
            began, spent = time.time(), time.process_time()
            found = compute()
            record[part] = jsonable({"found": jax.device_get(found), "core_seconds": time.process_time() - spent})
            file.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
            print(f"{part}: {time.time() - began:.0f} s", flush=True)
            jax.clear_caches()
    draw(record, HERE / "figures")
    (HERE / "README.md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
