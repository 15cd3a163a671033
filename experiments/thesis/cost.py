"""What is left of the reproduction and how long it will take: measured times where there are any, else a cost model."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from experiments.thesis.arms import RESULTS, STUDIES, Arm, Study, Test
from experiments.thesis.work import BASELINES, PHI, fixed_name, test_file, work_folder

from metaopt.experiment import build_family

# Of this kind of machine, a core: coordinate-steps a second of meta-training and evaluation, seconds to compile.
from metaopt.registry import Choice

# Of this kind of machine, a core: coordinate-steps a second of meta-training and evaluation, seconds to compile.
TRAINING_RATE, EVALUATION_RATE, START = 1.4e6, 4.5e6, 12.0
# A network's own forward and backward pass, in the optimizer's coordinate-steps.
NETWORK_FACTOR = 1.5
GRID = 9  # learning rates that tuning tries


class After(NamedTuple):
    """What takes the φ of other parts, and leaves its results in the work folder under its own name."""

    script: str
    seconds: float  # core-seconds, measured


AFTER = {"variance": After("thesis_variance.py", 240.0), "step_lengths": After("thesis_steps.py", 140.0)}


def coordinates(task: Choice) -> int:
    """Parameters of a family's task."""
    family = build_family(task)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: family.init(key, family.sample(key, family.data)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def seconds_left(study_name: str, arm_name: str, work: Path, seeds: int | None) -> float:
    """Core-seconds of what an arm, or a study's baselines, has not done yet; 0 where all is done."""
    if study_name == "after":
        return 0.0 if (work / f"{arm_name}.json").exists() else AFTER[arm_name].seconds
    study = STUDIES[study_name]
    folder = work_folder(work, study.name, arm_name)
    if arm_name == "baselines":
        return sum(_baseline_seconds(study, test, folder) for test in study.tests)
    arm = next(arm for arm in study.arms if arm.name == arm_name)
    left = 0.0
    known = _measured(study_name, arm_name)
    for seed in range(arm.seeds if seeds is None else seeds):
        inside = folder / f"seed-{seed}"
        if (inside / "diverged.json").exists():
            continue
        if not study.phi_of and not (inside / PHI).exists():
            left += known.get("training", _training_seconds(arm))
        for test in study.tests:
            for use in ("", *arm.uses):
                if not test_file(folder, seed, use, test).exists():
                    left += known.get(str(test.task), _evaluation_seconds(study, test, max(test.multiples)))
    return left + (START if left else 0.0)


def _training_seconds(arm: Arm) -> float:
    experiment = arm.experiment
    sizes = [coordinates(task) * _factor(task) for task in experiment.tasks]
    # Few columns fill no vector: below 64, a step costs as if there were 64.
    columns = max(64.0, float(np.mean(sizes)) * experiment.num_tasks)
    return experiment.num_meta_steps * experiment.horizon * columns / TRAINING_RATE


def _evaluation_seconds(study: Study, test: Test, multiple: int) -> float:
    return coordinates(test.task) * _factor(test.task) * test.num_tasks * study.horizon * multiple / EVALUATION_RATE


def _baseline_seconds(study: Study, test: Test, folder: Path) -> float:
    one = {multiple: _evaluation_seconds(study, test, multiple) / 4 for multiple in test.multiples}
    names = {fixed_name(fixed): one[max(one)] for fixed in study.fixed}
    names |= {f"{name}@{multiple}": GRID * seconds + START for multiple, seconds in one.items() for name in BASELINES}
    names |= _measured_baselines(study.name, str(test.task))
    return sum(seconds for name, seconds in names.items() if not test_file(folder, None, name, test).exists())


def _factor(task: Choice) -> float:
    return NETWORK_FACTOR if task.name in ("classifier", "autoencoder") else 1.0


def _measured(study: str, arm: str) -> dict[str, float]:
    return _record(study).get("arms", {}).get(arm, {}).get("core_seconds", {})


def _measured_baselines(study: str, task: str) -> dict[str, float]:
    found = _record(study).get("baselines", {}).get(task, {})
    return {name: entry["core_seconds"] for name, entry in found.items() if entry.get("core_seconds")}


@functools.cache
def _record(study: str) -> dict[str, Any]:
    path = RESULTS / f"{study}.json"
    return json.loads(path.read_text()) if path.exists() else {}
