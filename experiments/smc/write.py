"""Gradients that cannot be computed: `python -m experiments.smc.write` (half an hour of one core, resumable).

SOSMC with four kernels against ImpDiff, SOUL and PCD on the paper's targets, energy-based models in the plane, and
optimizers learned under such gradients. Writes results.json part by part, the pictures and README.md beside itself;
with `--page` the page alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.smc import learned, mixtures, planar
from experiments.smc.page import page
from experiments.smc.pictures import draw
from metaopt.evaluation.statistics import jsonable

HERE = Path(__file__).parent


def work(record: dict[str, Any]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(group, part, what computes it), in order: the later read the earlier, and the page can do without the last."""
    yield from mixtures.work(mixtures.FIRST)
    yield from learned.work()
    yield "cycles", "swings", mixtures.cycles
    yield from planar.work(record)
    yield from mixtures.work(name for name in mixtures.ROWS if name not in mixtures.FIRST)


def main() -> None:
    file = HERE / "results.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if "--page" not in sys.argv:
        for group, part, compute in work(record):
            parts = record.setdefault(group, {})
            if part in parts:
                continue
            began, spent = time.time(), time.process_time()
            result = compute()
            parts[part] = jsonable({"found": result, "core_seconds": time.process_time() - spent})
            file.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
            print(f"{group}, {part}: {time.time() - began:.0f} s", flush=True)
            jax.clear_caches()
    draw(record, HERE / "figures")
    (HERE / "README.md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
