"""Gathers what the reproduction's parts have left into one JSON record a study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.thesis import intervals
from experiments.thesis.arms import Arm, Study, Test
from experiments.thesis.folders import BASELINES, DIVERGED, fixed_name, test_file, work_folder
from metaopt.evaluation.statistics import jsonable, thin
from metaopt.experiment.plain import to_json
from metaopt.runs.environment import describe_environment

Raw = Mapping[str, np.ndarray]


def collect(study: Study, work: Path) -> dict[str, Any] | None:
    """The study's record of the arms that are done on all tests; None where no arm or no baseline is.

    Beside every arm at each horizon stands its ratio to the best tuned baseline there; under "pairs" the ratio of the
    BP to the RL model, in every setting that both were meta-trained in.
    """
    baselines: dict[str, dict[str, Raw]] = {}
    for test in study.tests:
        tuned = _baselines(study, test, work)
        if tuned is None:
            return None
        baselines[str(test.task)] = tuned
    arms: dict[str, Any] = {}
    raw: dict[str, dict[str, Any]] = {}
    for arm in study.arms:
        for use in ("", *arm.uses):
            tried = {str(test.task): _runs(study, arm, use, test, work) for test in study.tests}
            found = {task: runs for task, runs in tried.items() if runs}
            if len(found) < len(tried):
                continue
            name = f"{arm.name}/{use}" if use else arm.name
            raw[name] = found
            arms[name] = _arm(study, arm, use, found, baselines, work)
    if not arms:
        return None
    pairs = {
        name.removeprefix("bp").removeprefix("/") or "thesis": {
            str(test.task): _pair(study, raw[name][str(test.task)], raw[twin][str(test.task)], test)
            for test in study.tests
        }
        for name in arms
        if name.startswith("bp") and (twin := "rl" + name.removeprefix("bp")) in arms
    }
    environment = describe_environment(study.name, [test.task for test in study.tests])
    kept = ("versions", "git", "device", "platform", "data")
    record = {
        "study": study.name,
        "title": study.title,
        "horizon": study.horizon,
        "tests": [
            {"task": str(test.task), "num_tasks": test.num_tasks, "multiples": test.multiples} for test in study.tests
        ],
        "environment": {key: environment[key] for key in kept if key in environment},
        "baselines": {task: _describe_baselines(study, found) for task, found in baselines.items()},
        "arms": arms,
        "pairs": pairs,
    }
    return jsonable(_rounded(record))


def _runs(study: Study, arm: Arm, use: str, test: Test, work: Path) -> list[Raw] | None:
    """One record a seed; None until every seed is done. A seed whose meta-training diverged fails on every task."""
    folder = work_folder(work, study.name, arm.name)
    found: list[Raw] = []
    number = len(list(folder.glob("seed-*")))
    for seed in range(number):
        path = test_file(folder, seed, use, test)
        if path.exists():
            found.append(np.load(path))
        elif (folder / f"seed-{seed}" / DIVERGED).exists():
            found.append({})
        else:
            return None
    whole = next((run for run in found if run), None)
    if whole is None:
        return None
    return [run or _all_failed(whole) for run in found]


def _all_failed(like: Raw) -> Raw:
    made = {}
    for name in like:
        value = like[name]
        word = name.partition("_")[0]
        lost = {"loss": np.inf, "along": np.inf, "curve": np.inf, "failed": True, "rises": False, "improves": False}
        made[name] = np.full_like(value, lost[word]) if word in lost else value
    return made


def _baselines(study: Study, test: Test, work: Path) -> dict[str, Raw] | None:
    folder = work_folder(work, study.name, "baselines")
    names = [fixed_name(fixed) for fixed in study.fixed]
    names += [f"{name}@{multiple}" for multiple in test.multiples for name in BASELINES]
    paths = {name: test_file(folder, None, name, test) for name in names}
    if not all(path.exists() for path in paths.values()):
        return None
    return {name: np.load(path) for name, path in paths.items()}


def _need(runs: list[Raw], name: str) -> np.ndarray:
    return np.stack([run[name] for run in runs])


def _stack(runs: list[Raw], name: str) -> np.ndarray | None:
    return _need(runs, name) if name in runs[0] else None


def _compare(runs: list[Raw], others: list[Raw], multiple: int) -> dict[str, Any]:
    number = min(len(runs), len(others))
    loss, other = (_need(part[:number], f"loss_{multiple}") for part in (runs, others))
    failed, other_failed = (_need(part[:number], f"failed_{multiple}").astype(bool) for part in (runs, others))
    return intervals.compare(loss, failed, other, other_failed)


def _pair(study: Study, runs: list[Raw], others: list[Raw], test: Test) -> dict[str, Any]:
    """The ratio at every multiple, and "area": that of the mean losses along the training horizon."""
    number = min(len(runs), len(others))
    own, other = (_area(study, part[:number]) for part in (runs, others))
    lost, other_lost = (_need(part[:number], "failed_1").astype(bool) for part in (runs, others))
    found = {str(multiple): _compare(runs, others, multiple) for multiple in test.multiples}
    if own is None or other is None:
        return found
    return {**found, "area": intervals.compare(own, lost, other, other_lost)}


def _area(study: Study, runs: list[Raw]) -> np.ndarray | None:
    """[seeds, tasks] the mean loss along the training horizon: of every step.

    Files of old versions have ten of the steps; None where one of these is not among the points that were kept.
    """
    if "along_1" in runs[0]:
        return _need(runs, "along_1")
    wanted = [study.horizon * part // 10 for part in range(1, 11)]
    there = np.isin(runs[0]["steps"], wanted)
    return _need(runs, "curve")[..., there].mean(axis=-1) if there.sum() == len(wanted) else None


def _describe(study: Study, runs: list[Raw], multiple: int) -> dict[str, Any]:
    rises, improves = (_stack(runs, f"{word}_{multiple}") for word in ("rises", "improves"))
    loss, failed = (_need(runs, f"{name}_{multiple}") for name in ("loss", "failed"))
    area = _area(study, runs) if multiple == 1 else None
    return intervals.describe(loss, failed.astype(bool), rises, improves, area)


def best_tuned(found: Mapping[str, Raw], multiple: int) -> str:
    """The tuned baseline that fails least and then has the lowest mean at one horizon, on the reported tasks."""

    def rank(name: str) -> tuple[float, float]:
        loss, failed = found[name][f"loss_{multiple}"], found[name][f"failed_{multiple}"].astype(bool)
        return float(failed.mean()), float(loss[~failed].mean()) if (~failed).any() else float("inf")

    return min((name for name in found if name.endswith(f"@{multiple}")), key=rank)


def _arm(
    study: Study,
    arm: Arm,
    use: str,
    found: Mapping[str, list[Raw]],
    baselines: Mapping[str, Mapping[str, Raw]],
    work: Path,
) -> dict[str, Any]:
    folder = work_folder(work, study.name, arm.name)
    seeds = len(next(iter(found.values())))
    trained = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("seed-*/training.json"))]
    tests = {}
    for test in study.tests:
        task, runs = str(test.task), found[str(test.task)]
        described = {}
        for multiple in test.multiples:
            best = best_tuned(baselines[task], multiple)
            theirs = [baselines[task][best]] * len(runs)
            described[str(multiple)] = {
                **_describe(study, runs, multiple),
                "to_best_tuned": {"baseline": best, **_compare(runs, theirs, multiple)},
            }
        failed = _need(runs, f"failed_{max(test.multiples)}").astype(bool)
        tests[task] = {
            "at": described,
            "test_accuracy": _mean_accuracy(runs),
            "curve": _curve(study, runs, failed),
        }
    seconds = {"training": [record["core_seconds"] for record in trained]}
    seconds |= {
        task: [float(run["core_seconds"]) for run in runs if "core_seconds" in run] for task, runs in found.items()
    }
    return {
        "factor": arm.factor + (f"; {use}" if use else ""),
        "config": to_json(arm.experiment),
        "use": dict(arm.uses.get(use, {})),
        "seeds": seeds,
        "diverged_in_training": sum((folder / f"seed-{seed}" / DIVERGED).exists() for seed in range(seeds)),
        "core_seconds": {name: float(np.mean(values)) for name, values in seconds.items() if values},
        "meta_training": _meta_training(trained),
        "tests": tests,
    }


def _curve(study: Study, runs: list[Raw], failed: np.ndarray) -> dict[str, Any]:
    """What the figures show: up to ten times the training horizon, in at most about 80 points."""
    steps = runs[0]["steps"]
    inside = np.flatnonzero(steps <= 10 * study.horizon)
    near = inside[thin(steps[inside], keep=(study.horizon,), limit=80)]
    return intervals.curve(steps[near], _need(runs, "curve")[..., near], failed)


def _mean_accuracy(runs: list[Raw]) -> float | None:
    values = _stack(runs, "test_accuracy")
    return None if values is None else float(np.nan_to_num(values, nan=0.0).mean())


def _meta_training(trained: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not trained:
        return None
    rows = np.array(
        [[[np.nan if v in (None, "inf") else v for v in row] for row in record["curve"]] for record in trained]
    )
    keep = np.unique(np.linspace(0, rows.shape[1] - 1, 20).round().astype(int))
    return {
        "meta_step": rows[0, keep, 0].astype(int),
        "meta_loss": rows[:, keep, 1].mean(axis=0),
        "grad_norm": rows[:, keep, 2].mean(axis=0),
    }


def _describe_baselines(study: Study, found: Mapping[str, Raw]) -> dict[str, Any]:
    described = {}
    for name, run in found.items():
        described[name] = {
            "record": json.loads(str(run["record"])),
            "core_seconds": float(run["core_seconds"]) if "core_seconds" in run else None,
            "at": {str(multiple): _describe(study, [run], int(multiple)) for multiple in run["multiples"]},
            "test_accuracy": _mean_accuracy([run]),
            "curve": _curve(study, [run], run[f"failed_{max(run['multiples'])}"][None].astype(bool)),
        }
        for record in described[name]["at"].values():
            record.pop("per_seed")
    return described


def _rounded(value: Any) -> Any:
    """Curves to three significant digits: they are for drawing."""
    if isinstance(value, dict):
        return {key: _short(entry) if key == "curve" else _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _short(entry: Any) -> Any:
    def three(array: Any) -> Any:
        return None if array is None else [float(f"{float(x):.3g}") for x in array]

    return {name: values if name == "steps" else three(values) for name, values in entry.items()}
