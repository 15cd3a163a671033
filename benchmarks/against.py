"""This checkout beside another one, call by call: the two take turns, so that a disturbance meets both."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, Options, Row, measured, number
from benchmarks.processes import Worker


def against(other: Path, case: str, options: Options) -> Row:
    """Seconds here over seconds there, pair by pair; `*` where every pair lies on the same side of 1.

    Both checkouts are timed by this one's `benchmarks/cases.py`, each with a compilation cache that is empty at first.
    """
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for index, root in enumerate((other.resolve(), ROOT)):
                cache = str(Path(scratch) / str(index))
                variables = {"PYTHONPATH": str(root), "METAOPT_CHECKOUT": str(root), "XDG_CACHE_HOME": cache}
                # -P: of this folder's modules it must see none, and PYTHONPATH decides whose metaopt it sees.
                command = ["-P", str(ROOT / "benchmarks" / "cases.py"), case]
                workers.append(Worker(command, {**os.environ, **variables}))
            before, after = [], []
            for turn in range(2 if options.quick else options.repeats):
                for worker, seconds in [(workers[0], before), (workers[1], after)][:: 1 if turn % 2 else -1]:
                    seconds.append(worker.time()["seconds"])
        finally:
            for worker in workers:
                worker.close()
    ratios = [new / old for old, new in zip(before, after, strict=True)]
    there, here = (number(statistics.median(seconds)) for seconds in (before, after))
    firsts = " and ".join(number(worker.first["seconds"]) for worker in workers)
    note = ("* " if max(ratios) < 1 or min(ratios) > 1 else "") + f"first calls {firsts} s"
    return measured("against", case, {"there": f"{there} s", "here": f"{here} s"}, "times", ratios, note=note)
