"""Retrains arms of the reproduction and says how far figures move against the committed ones on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.thesis import raw
from experiments.thesis.arms import Arm, Study, vary
from experiments.thesis.claims import number, share
from experiments.thesis.folders import test_file, trained, work_folder
from experiments.thesis.work import Clock, environment, run_arm
from metaopt.errors import UserError
from metaopt.experiment import Validation
from metaopt.files import read_json

SEED = 0


def verify(study: Study, arm: Arm, results: Path, work: Path) -> Iterator[str]:
    """A line a figure: one meta-seed's losses at the horizon and at ten times it, against those in `results`.

    Raises:
      UserError: there are none to compare with.
    """
    path, name = results / f"{study.name}.npz", f"{study.name}/{arm.name}"
    known = raw.read(path) if path.exists() else None
    if known is None or arm.name not in known.runs:
        raise UserError(f"there are no losses of {name} in {path}; run it, and write the results, first.")
    record = read_json(results / f"{study.name}.json")
    then = [record["environments"][index] for index in record["arms"][arm.name]["trained_in"][SEED]]
    yield f"{name}: committed {', '.join(map(_words, then)) or 'on an unknown machine'}; here {_words(environment())}"
    near = tuple(
        dataclasses.replace(test, multiples=tuple(m for m in test.multiples if m <= 10)) for test in study.tests
    )
    alone = dataclasses.replace(arm, experiment=vary(arm.experiment, validation=Validation(every=0)), uses={})
    run_arm(dataclasses.replace(study, tests=near), alone, SEED + 1, work, Clock(None))
    folder = work_folder(work, study.name, arm.name)
    for test in near:
        task = str(test.task)
        file = test_file(folder, SEED, "", test)
        if not file.exists():
            yield f"{name} on {task}: {trained(folder / f'seed-{SEED}')} here"
            continue
        with np.load(file) as kept:
            here = {key: kept[key][None] for key in kept.files if key.startswith(("loss_", "failed_"))}
        committed = {key: value[SEED : SEED + 1] for key, value in known.runs[arm.name][task].items() if key in here}
        both = raw.Raw({task: known.tasks[task]}, {"then": {task: committed}, "here": {task: here}})
        for multiple in test.multiples:
            moved = both.log_ratios("here", "then", task, f"loss_{multiple}")[0]
            means, failed = zip(*(_mean(runs[task], multiple) for runs in both.runs.values()), strict=True)
            size = np.abs(moved)
            yield (
                f"{name} on {task} at {multiple}×: mean loss {number(means[0])} committed, {number(means[1])} here; "
                f"failed {share(failed[0])} and {share(failed[1])}; task by task here / committed "
                f"{number(np.exp(moved.mean()))} (geometric mean), |log ratio| median {number(np.median(size))}, "
                f"largest {number(size.max())}"
            )


def _mean(runs: raw.Runs, multiple: int) -> tuple[float | None, float]:
    loss, failed = runs[f"loss_{multiple}"][0], runs[f"failed_{multiple}"][0].astype(bool)
    return float(loss[~failed].mean()) if (~failed).any() else None, float(failed.mean())


def _words(found: dict) -> str:
    git = found.get("git") or {}
    return f"{git.get('commit', '?')[:10]} on {found['cpu']}, jax {found['versions'].get('jax')}"
