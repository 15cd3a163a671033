"""The losses behind every figure: results/STUDY.npz, written and read.

Each task's losses and words, of every arm, meta-seed and baseline, at multiples of the training horizon: all that the
page claims is computed from these files and the JSON beside them, so that it can be judged anew without training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metaopt.evaluation.statistics import Scale, log_ratios, scale
from metaopt.files import replacing

KEPT_BITS = 12  # of a loss's 23 bits of mantissa: a relative error of 1.2e-4, and files two thirds as large
WORDS = ("failed", "rises", "improves")  # the quantities that are yes or no; the others are numbers

# Quantity, such as `loss_10`, `along_1`, `test_accuracy_10` or `failed_10` -> [seeds, tasks]; of a baseline [1, tasks].
Runs = Mapping[str, np.ndarray]


class Raw(NamedTuple):
    """What one study's file holds."""

    tasks: Mapping[str, Mapping[str, np.ndarray]]  # test -> `initial`, f(θ_0), and `bound`, both [tasks]
    runs: Mapping[str, Mapping[str, Runs]]  # arm, `ARM/USE` or baseline -> test -> its runs

    def scale(self, task: str) -> Scale:
        """What the losses of a test are measured by; all its tasks have a bound."""
        about = self.tasks[task]
        return scale(about["bound"], about["initial"], ())

    def log_ratios(self, name: str, other: str, task: str, quantity: str) -> np.ndarray:
        """[seeds, tasks] log of one's losses over the other's, on the seeds that both have, or over a baseline's.

        A run that failed by then counts with 10 (f(θ_0) - bound), whatever became of it: leaving it out would reward
        an optimizer for failing where it would have been bad. See `metaopt.evaluation.statistics.log_ratios`.
        """
        ours, theirs = (_counted(self.runs[each][task], quantity) for each in (name, other))
        number = len(ours) if len(theirs) == 1 else min(len(ours), len(theirs))
        theirs = np.broadcast_to(theirs, (number, theirs.shape[1])) if len(theirs) == 1 else theirs[:number]
        measure = self.scale(task)
        return np.stack([log_ratios(a, b, measure) for a, b in zip(ours[:number], theirs, strict=True)])

    def gap(self, name: str, task: str, multiple: str) -> np.ndarray:
        """[seeds, tasks] log of the loss on the test split over that on the training split."""
        runs, measure = self.runs[name][task], self.scale(task)
        pairs = zip(*(_counted(runs, f"{split}_{multiple}") for split in ("test_loss", "loss")), strict=True)
        return np.stack([log_ratios(test, train, measure) for test, train in pairs])


def _counted(runs: Runs, quantity: str) -> np.ndarray:
    multiple = quantity.rpartition("_")[2]
    return np.where(runs[f"failed_{multiple}"], np.inf, runs[quantity])


def write(path: Path, raw: Raw) -> None:
    """Losses as float32 of `KEPT_BITS` bits, words as bytes; nan and -1 where a run has no such quantity."""
    kept: dict[str, np.ndarray] = {}
    rows = [(name, seed) for name, tests in raw.runs.items() for seed in range(_seeds(tests))]
    kept["names"] = np.array([name for name, _ in rows])
    kept["tests"] = np.array(list(raw.tasks))
    for index, (task, about) in enumerate(raw.tasks.items()):
        kept |= {f"{index}/{name}": values for name, values in about.items()}
        quantities = dict.fromkeys(name for tests in raw.runs.values() for name in tests.get(task, ()))
        for quantity in quantities:
            word = quantity.partition("_")[0] in WORDS
            blank = np.full(len(about["initial"]), -1 if word else np.nan)
            stacked = [raw.runs[name].get(task, {}).get(quantity, ()) for name, _ in rows]
            lines = [one[seed] if len(one) else blank for one, (_, seed) in zip(stacked, rows, strict=True)]
            kept[f"{index}/{quantity}"] = np.asarray(lines, np.int8) if word else shortened(np.asarray(lines))
    with replacing(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **kept)


def read(path: Path) -> Raw:
    with np.load(path) as file:
        kept = {name: file[name] for name in file.files}
    names = kept.pop("names")
    tests = [str(task) for task in kept.pop("tests")]
    tasks: dict[str, dict[str, np.ndarray]] = {task: {} for task in tests}
    runs: dict[str, dict[str, dict[str, np.ndarray]]] = {str(name): {} for name in dict.fromkeys(names)}
    where = {name: np.flatnonzero(names == name) for name in runs}
    for key, values in kept.items():
        index, _, quantity = key.partition("/")
        task = tests[int(index)]
        if values.ndim == 1:
            tasks[task][quantity] = values
            continue
        word = values.dtype == np.int8
        for name, lines in where.items():
            own = values[lines]
            if not np.all(own == -1 if word else np.isnan(own)):
                runs[name].setdefault(task, {})[quantity] = own.astype(bool) if word else own.astype(np.float64)
    return Raw(tasks, runs)


def _seeds(tests: Mapping[str, Runs]) -> int:
    return len(next(iter(next(iter(tests.values())).values())))


def shortened(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to `KEPT_BITS` bits of mantissa; infinities and nan as they are."""
    with np.errstate(over="ignore"):
        single = np.asarray(values, np.float32)
    bits = single.view(np.uint32)
    dropped = 23 - KEPT_BITS
    rounded = ((bits + np.uint32(1 << (dropped - 1))) >> np.uint32(dropped)) << np.uint32(dropped)
    return np.where(np.isfinite(single), rounded.view(np.float32), single)
