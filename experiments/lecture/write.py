"""The lecture's claims, measured: `python -m experiments.lecture.write` (a quarter of an hour of one core).

What results.json lacks is measured, part by part, and kept at once, so that a run that was cut off goes on; then the
pictures and README.md are written from it. Names of parts measure these anew; `--page` measures nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.lecture import measure, page, pictures
from experiments.lecture.families import FAMILIES
from experiments.lecture.search import GRIDS, search
from metaopt.evaluation.statistics import jsonable
from metaopt.files import read_object, replacing

HERE = Path(__file__).parent
PARTS: dict[str, Callable[[], Any]] = {
    "landscapes": measure.landscapes,
    "steps": measure.steps,
    "batches": measure.batches,
    "nesterov": measure.nesterov,
    "rates": measure.rates,
    "decay": measure.decay,
    "schedules": measure.schedules,
    "stopping": measure.stopping,
}


def pieces() -> Iterator[tuple[str, tuple[str, ...], Callable[[], Any]]]:
    """(name as given on the command line, where its record stands, what measures it)."""
    for where in FAMILIES:
        for name in GRIDS:
            yield where, ("families", where, name), lambda name=name, where=where: search(name, where)
    for name, part in PARTS.items():
        yield name, (name,), part


def main(words: list[str]) -> None:
    """Raises SystemExit for a word that is no part."""
    anew = [word for word in words if word != "--page"]
    known = list(dict.fromkeys(name for name, _, _ in pieces()))
    if unknown := [word for word in anew if word not in known]:
        raise SystemExit(f"{unknown[0]!r} is no part; there are: {', '.join(known)}")
    file = HERE / "results.json"
    record: dict[str, Any] = read_object(file) if file.exists() else {}
    for name, path, part in pieces() if "--page" not in words else ():
        place = record
        for key in path[:-1]:
            place = place.setdefault(key, {})
        if path[-1] in place and name not in anew:
            continue
        began = time.process_time()
        place[path[-1]] = jsonable(jax.device_get(part()))
        seconds = record.setdefault("core seconds", {})
        seconds[" ".join(path)] = round(time.process_time() - began, 1)
        print(*path, f"{seconds[' '.join(path)]:.1f} s", flush=True)
        jax.clear_caches()  # no program is used twice
        with replacing(file) as part_file:
            part_file.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    pictures.draw(record, HERE / "figures")
    (HERE / "README.md").write_text(page.page(record), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
