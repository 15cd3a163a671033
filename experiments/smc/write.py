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
from metaopt.evaluation.statistics import jsonable

HERE = Path(__file__).parent


def work(record: dict[str, Any]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(group, part, what computes it), in order: the later read the earlier, and the page can do without the last."""
    rows = list(mixtures.ROWS)
    first = [name for name in rows if "dual, smooth, K" in name or "tight, K" in name or mixtures.REVERSE in name]
    yield from mixtures.work(name for name in first if name in rows[:8])
    yield "cycles", "swings", mixtures.cycles
    yield from planar.work(record)
    yield from learned.work()
    yield from mixtures.work(name for name in rows if name not in first or name in rows[8:])


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
    from experiments.smc.page import write_page

    write_page(record)


if __name__ == "__main__":
    main()
