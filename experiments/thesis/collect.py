"""Gathers what the reproduction's parts have left: a study's raw losses, and one JSON record of all the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.thesis.arms import Arm, Study, Test, Use
from experiments.thesis.folders import DIVERGED, ENVIRONMENT, baseline_names, test_file, work_folder
from experiments.thesis.raw import Raw
from metaopt.evaluation.statistics import jsonable, quantile, thin
from metaopt.experiment.plain import to_json
from metaopt.files import read_json
from metaopt.runs.environment import describe_data

PROTOCOL = 2  # of a record; those of the first have no raw losses beside them, and nothing is judged by them
File = Mapping[str, np.ndarray]  # what one evaluation left
OWN = ("loss_", "along_", "failed_", "rises_", "improves_", "train_", "test_")  # the quantities that are kept raw


class Environments:
    """The distinct environments of a study, and their numbers."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def number(self, environment: Any) -> int:
        if environment not in self.all:
            self.all.append(environment)
        return self.all.index(environment)

    def of(self, files: Iterable[File]) -> list[int]:
        """Those that evaluations ran in."""
        return sorted({self.number(json.loads(str(file["environment"]))) for file in files if "environment" in file})


Found = tuple[dict[str, Any], Raw]  # a study's record and its losses


def collect(study: Study, work: Path, kept: Found | None = None) -> Found | None:
    """The study's record and losses of the arms that are done on all their tests; None where no arm is, or a baseline
    is not.

    Args:
      kept: an earlier result, made elsewhere: on the same tests its arms stay where the work folder has not as many
        seeds of them, and so do its baselines.
    """
    tests = [
        {"task": str(test.task), "num_tasks": test.num_tasks, "multiples": list(test.multiples)} for test in study.tests
    ]
    if kept is not None and any(kept[0].get(key) != value for key, value in _about(study, tests).items()):
        kept = None
    environments = Environments()
    arms, runs = _arms(study, work, environments)
    baselines: dict[str, Any] = {}
    tasks: dict[str, Mapping[str, np.ndarray]] = {}
    for test in study.tests:
        task, done = str(test.task), _baselines(study, test, work)
        if done is not None:
            some = next(iter(done.values()))
            tasks[task] = {name: some[name] for name in ("initial", "bound")}
            baselines[task] = _describe_baselines(study, done, environments)
            for name, file in done.items():
                runs.setdefault(name, {})[task] = _quantities([file])
        elif kept is not None:
            tasks[task] = kept[1].tasks[task]
            baselines[task] = {
                name: _elsewhere(one, kept, environments) for name, one in kept[0]["baselines"][task].items()
            }
            for name in baselines[task]:
                runs.setdefault(name, {})[task] = kept[1].runs[name][task]
        else:
            return None
    for name, arm in (kept[0]["arms"] if kept else {}).items():
        if arm["seeds"] > arms.get(name, {"seeds": 0})["seeds"] and kept is not None:
            arms[name], runs[name] = _elsewhere(arm, kept, environments), dict(kept[1].runs[name])
    if not arms:
        return None
    names = [f"{arm.name}/{use}" if use else arm.name for arm in study.arms for use in arm.all_uses()]
    record = {
        **_about(study, tests),
        "title": study.title,
        "horizon": study.horizon,
        "data": describe_data([test.task for test in study.tests]),
        "baselines": baselines,
        "arms": {name: arms[name] for name in names if name in arms},
    }
    return jsonable(_rounded({**record, "environments": environments.all})), Raw(tasks, runs)


def _about(study: Study, tests: list[dict[str, Any]]) -> dict[str, Any]:
    """What two results of a study have in common where the arms of both may stand side by side."""
    return {"protocol": PROTOCOL, "study": study.name, "tests": tests, "tuning": study.tuning}


def _elsewhere(entry: Mapping[str, Any], kept: Found, environments: Environments) -> dict[str, Any]:
    """An arm or a baseline of an earlier result, its environments numbered among these."""

    def numbered(found: Any) -> Any:
        if isinstance(found, list):
            return [numbered(one) for one in found]
        return environments.number(kept[0]["environments"][found])

    return {key: numbered(value) if key in ("trained_in", "evaluated_in") else value for key, value in entry.items()}


def _arms(
    study: Study, work: Path, environments: Environments
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """What is recorded of the arms that are done, and their losses by test."""
    arms: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    for arm in study.arms:
        for name, use in arm.all_uses().items():
            found = _evaluated(study, arm, name, use, work)
            if found is not None:
                arms[full := f"{arm.name}/{name}" if name else arm.name] = _arm(
                    study, arm, name, use, found, work, environments
                )
                runs[full] = {task: _quantities(files) for task, files in found.items()}
    return arms, runs


def _evaluated(study: Study, arm: Arm, name: str, use: Use, work: Path) -> dict[str, list[File]] | None:
    """test -> one file a seed; None until every seed is done on every test that the use is for."""
    found = {str(test.task): _seeds(study, arm, name, taken, work) for test in study.tests if (taken := use.on(test))}
    whole = {task: files for task, files in found.items() if files}
    return whole if whole and len(whole) == len(found) else None


def _seeds(study: Study, arm: Arm, use: str, test: Test, work: Path) -> list[File] | None:
    """A seed whose meta-training diverged fails on every task."""
    folder = work_folder(work, study.name, arm.name)
    found: list[File] = []
    for seed in range(len(list(folder.glob("seed-*")))):
        path = test_file(folder, seed, use, test)
        if path.exists():
            found.append(_load(path))
        elif (folder / f"seed-{seed}" / DIVERGED).exists():
            found.append({})
        else:
            return None
    whole = next((file for file in found if file), None)
    return None if whole is None else [file or _all_failed(whole) for file in found]


def _load(path: Path) -> File:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _all_failed(like: File) -> File:
    words = {"failed": True, "rises": False, "improves": False}
    made = {}
    for name, value in like.items():
        kind = name.partition("_")[0]
        if kind in words:
            made[name] = np.full_like(value, words[kind])
        elif "accuracy" in name:
            made[name] = np.zeros_like(value)
        elif name.startswith(OWN) or name == "curve":
            made[name] = np.full_like(value, np.inf)
        elif name == "steps":
            made[name] = value
    return made


def _baselines(study: Study, test: Test, work: Path) -> dict[str, File] | None:
    folder = work_folder(work, study.name, "baselines")
    paths = {name: test_file(folder, None, name, test) for name in baseline_names(study, test)}
    if not all(path.exists() for path in paths.values()):
        return None
    return {name: _load(path) for name, path in paths.items()}


def _quantities(files: list[File]) -> dict[str, np.ndarray]:
    """[seeds, tasks] each."""
    return {name: np.stack([file[name] for file in files]) for name in files[0] if name.startswith(OWN)}


def _arm(
    study: Study,
    arm: Arm,
    name: str,
    use: Use,
    found: Mapping[str, list[File]],
    work: Path,
    environments: Environments,
) -> dict[str, Any]:
    folder = work_folder(work, study.name, arm.name)
    seeds = len(next(iter(found.values())))
    ends = [folder / f"seed-{seed}" / "training.json" for seed in range(seeds)]
    trained = [read_json(path) for path in ends if path.exists()]
    seconds = {"training": [one["core_seconds"] for one in trained]}
    seconds |= {
        task: [float(file["core_seconds"]) for file in files if "core_seconds" in file] for task, files in found.items()
    }
    made = {
        "factor": arm.factor + (f"; {name}" if name else ""),
        "config": to_json(arm.experiment),
        "use": dict(use.options),
        "pick": use.pick,
        "seeds": seeds,
        "diverged_in_training": sum((folder / f"seed-{seed}" / DIVERGED).exists() for seed in range(seeds)),
        "core_seconds": {part: float(np.mean(values)) for part, values in seconds.items() if values},
        "trained_in": [_environments_of(folder / f"seed-{seed}", environments) for seed in range(seeds)],
        "evaluated_in": environments.of(file for files in found.values() for file in files),
        "tests": {
            task: {"curve": _curve(study, files, f"failed_{_longest(files[0])}")} for task, files in found.items()
        },
    }
    if use.pick != "last":
        made["picked"] = [one["picked"].get(use.pick) for one in trained]  # None: none was any good, so the last
    elif not name:
        made["meta_training"] = _meta_training(trained)
    return made


def _environments_of(folder: Path, environments: Environments) -> list[int]:
    """Those that a seed's φ was trained in, more than one where it was gone on with elsewhere."""
    path = folder / ENVIRONMENT
    return [environments.number(one) for one in read_json(path)] if path.exists() else []


def _longest(file: File) -> int:
    return max(int(name.rpartition("_")[2]) for name in file if name.startswith("loss_"))


def _curve(study: Study, files: list[File], failed: str) -> dict[str, Any]:
    """What the figures show, up to ten times the training horizon, in at most about 80 points.

    The mean is over the runs that never failed, median and quartiles over all.
    """
    steps = files[0]["steps"]
    inside = np.flatnonzero(steps <= 10 * study.horizon)
    near = inside[thin(steps[inside], keep=(study.horizon,), limit=80)]
    flat = np.concatenate([file["curve"][:, near] for file in files]).astype(float)
    good = ~np.concatenate([file[failed] for file in files]).astype(bool)
    return {
        "steps": steps[near],
        "mean": flat[good].mean(axis=0) if good.any() else None,
        "median": np.median(flat, axis=0),
        "q25": quantile(flat, 0.25),
        "q75": quantile(flat, 0.75),
    }


def _meta_training(trained: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not trained:
        return None
    rows = np.array([[[np.nan if v in (None, "inf") else v for v in row] for row in one["curve"]] for one in trained])
    keep = np.unique(np.linspace(0, rows.shape[1] - 1, 20).round().astype(int))
    return {
        "meta_step": rows[0, keep, 0].astype(int),
        "meta_loss": rows[:, keep, 1].mean(axis=0),
        "grad_norm": rows[:, keep, 2].mean(axis=0),
    }


def _describe_baselines(study: Study, found: Mapping[str, File], environments: Environments) -> dict[str, Any]:
    return {
        name: {
            "record": json.loads(str(file["record"])),
            "core_seconds": float(file["core_seconds"]),
            "evaluated_in": environments.of([file]),
            "curve": _curve(study, [file], f"failed_{_longest(file)}"),
        }
        for name, file in found.items()
    }


def _rounded(value: Any) -> Any:
    """Curves to three significant digits: they are for drawing."""
    if isinstance(value, dict):
        return {key: _short(entry) if key == "curve" else _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _short(entry: Any) -> Any:
    def three(array: Any) -> Any:
        return None if array is None else [float(f"{float(x):.3g}") for x in array]

    return {name: values if name == "steps" else three(values) for name, values in entry.items()}
