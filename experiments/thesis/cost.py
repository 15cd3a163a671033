"""What is left of the reproduction and how long it will take, by the times that the committed results took."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from experiments.thesis.arms import RESULTS, STUDIES
from experiments.thesis.folders import PHI, baseline_names, test_file, trained, work_folder
from metaopt.experiment import build_family

START = 12.0  # seconds until a process has compiled
UNKNOWN = 300.0  # of a piece that no committed result tells of
AFTER = {"variance": 240.0, "step_lengths": 140.0}  # what takes the φ of other parts: core-seconds, measured


def seconds_left(study_name: str, arm_name: str, work: Path, seeds: int | None) -> float:
    """Core-seconds of what an arm, or a study's baselines, has not done yet; 0 where all is done.

    Raises:
      UserError: the study's images are not on this machine.
    """
    if study_name == "after":
        return 0.0 if (work / f"{arm_name}.json").exists() else AFTER[arm_name]
    study, folder = STUDIES[study_name], work_folder(work, study_name, arm_name)
    left = 0.0
    if arm_name == "baselines":
        for test in study.tests:
            known = _record(study_name).get("baselines", {}).get(str(test.task), {})
            seconds = [one.get("core_seconds") or 0.0 for one in known.values()]
            usual = sum(seconds) / len(seconds) if seconds else UNKNOWN
            for name in baseline_names(study, test):
                if not test_file(folder, None, name, test).exists():
                    left += known.get(name, {}).get("core_seconds") or usual
    else:
        arm = next(arm for arm in study.arms if arm.name == arm_name)
        arms = _record(study_name).get("arms", {})
        near = arms.get(arm_name) or arms.get(arm_name.partition("/")[0], {})  # a new arm costs as its model does
        known = near.get("core_seconds", {})
        for seed in range(arm.seeds if seeds is None else seeds):
            done = trained(folder / f"seed-{seed}")
            if done is not None and done.name != PHI:
                continue
            left += 0.0 if done or study.phi_of else known.get("training", UNKNOWN)
            for test in study.tests:
                for name, use in arm.all_uses().items():
                    taken = use.on(test)
                    if taken is not None and not test_file(folder, seed, name, test).exists():
                        share = max(taken.multiples) / max(test.multiples)
                        left += share * known.get(str(test.task), UNKNOWN)
    if left:
        _there(study_name)
    return left + (START if left else 0.0)


@functools.cache
def _there(study: str) -> None:
    for test in STUDIES[study].tests:
        build_family(test.task)


@functools.cache
def _record(study: str) -> dict[str, Any]:
    places = (RESULTS / f"{study}.json", RESULTS / "first" / f"{study}.json")
    return next((json.loads(path.read_text(encoding="utf-8")) for path in places if path.exists()), {})
