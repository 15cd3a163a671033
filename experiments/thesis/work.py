"""One part of the reproduction, in a process of its own: an arm with all its seeds, or a study's baselines.

python -m experiments.thesis.work STUDY ARM|baselines WORK [--seeds N] [--until TIME]
python -m experiments.thesis.work after variance|step_lengths WORK

What is done is left in the folder WORK/STUDY and not done again; a part that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.thesis import steps, variance
from experiments.thesis.arms import PICKS, STUDIES, Arm, Study, Test
from experiments.thesis.folders import (
    DIVERGED,
    ENVIRONMENT,
    PHI,
    STOPPED,
    fixed_name,
    phi_file,
    say,
    test_file,
    trained,
    work_folder,
)
from metaopt.choices import Choice
from metaopt.cli.devices import configure_jax
from metaopt.evaluation import statistics
from metaopt.evaluation.curves import Curves, Entry, evaluate
from metaopt.evaluation.record import evaluation_keys
from metaopt.evaluation.tuning import Tuned, lowered, tune_baselines
from metaopt.experiment import build_family, build_optimizer
from metaopt.experiment.checks import validate
from metaopt.files import read_json, replacing, write_json
from metaopt.runs.checkpoints import Checkpoints
from metaopt.runs.environment import describe_environment
from metaopt.shipped.loading import read_optimizer, save_optimizer
from metaopt.training.loop import Diverged, meta_train
from metaopt.training.trainer import Trainer, TrainState
from metaopt.training.validation import Validator
from metaopt.types import TaskFamily

CURVE_POINTS = 160
# What takes the φ of other parts: {name: module with `missing(work)` and `rows(work)`}.
AFTER = {"variance": variance, "step_lengths": steps}


class Stop(Exception):
    """A signal came, or the time is up."""


class Clock:
    """Whether to stop, and the seconds that a process has worked, on its own core."""

    def __init__(self, until: float | None) -> None:
        self._until = until
        self.stopped = False

    def listen(self) -> None:
        """A signal stops the work at the next check, with all that is done kept."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: Any) -> None:
        self.stopped = True

    def check(self) -> None:
        if self.stopped or (self._until is not None and time.time() > self._until):
            raise Stop


# ----- meta-training --------------------------------------------------------------------------------------------------


def train(trainer: Trainer, seed: int, folder: Path, clock: Clock) -> None:
    """Leaves φ of the last meta-step in the folder, or a note of the meta-step at which it diverged.

    Beside it, where the experiment validates, the φ that was best at each multiple of the horizon (the last, where none
    was any good), and the environment that it was trained in.
    """
    began, worked = time.monotonic(), time.process_time()
    trainer.experiment = dataclasses.replace(trainer.experiment, seed=seed)
    _note_environment(folder)
    validator, every = Validator(trainer), trainer.experiment.validation.every
    checkpoints: Checkpoints[TrainState] = Checkpoints(folder / "checkpoints")
    curve: list[list[float]] = []
    best: dict[str, list[float]] = {}  # pick -> (meta-step, score)
    before = [0.0, 0.0]
    state: TrainState | None = None
    restored = checkpoints.restore_latest(trainer.init())
    if restored is not None:
        state, record, _ = restored
        curve, before, best = record["curve"], record["seconds"], record["best"]

    def seconds() -> list[float]:
        return [before[0] + time.monotonic() - began, before[1] + time.process_time() - worked]

    def pick(state: TrainState, step: int) -> None:
        scores, _ = validator(state.meta_params)
        for name in PICKS:
            score = scores[int(name.removesuffix("x"))]
            if score < best.get(name, [0, np.inf])[1]:
                best[name] = [step, score]
                card = {"meta_step": step, "picked_at": name, "validation": score}
                save_optimizer(phi_file(folder, name), jax.device_get(state.meta_params), trainer.experiment, card)

    def keep(trainer: Trainer, state: TrainState, metrics: dict[str, np.ndarray]) -> None:
        step = int(state.meta_step)
        curve.append([step, float(np.mean(metrics["meta_loss"])), float(np.mean(metrics["grad_norm"]))])
        if every and step % every == 0:
            pick(state, step)
        if step % trainer.experiment.checkpoint_every == 0 or clock.stopped:
            checkpoints.save(step, state, {"curve": curve, "seconds": seconds(), "best": best})
        clock.check()

    try:
        state = meta_train(trainer, state=state, callbacks=[keep])
    except Diverged as error:
        write_json(folder / DIVERGED, statistics.jsonable({"reason": str(error), "curve": curve}))
        return
    finally:
        checkpoints.close()
    wall, core = seconds()
    card = {"meta_step": int(state.meta_step), "seconds": round(wall, 1), "core_seconds": round(core, 1)}
    meta_params = jax.device_get(state.meta_params)
    for name in PICKS if every else ():
        if name not in best:
            save_optimizer(phi_file(folder, name), meta_params, trainer.experiment, card)
    picked = {name: int(best[name][0]) if name in best else None for name in PICKS} if every else {}
    write_json(folder / "training.json", statistics.jsonable({**card, "picked": picked, "curve": curve}))
    save_optimizer(folder / PHI, meta_params, trainer.experiment, card)


def _note_environment(folder: Path) -> None:
    """Adds this process's environment to those that trained the φ of a folder."""
    path = folder / ENVIRONMENT
    known = read_json(path) if path.exists() else []
    if environment() not in known:
        write_json(path, [*known, environment()])


@functools.cache
def environment() -> dict[str, Any]:
    """What this process computes with."""
    found = describe_environment("thesis", [])
    return {key: found[key] for key in ("versions", "git", "device", "platform", "cpu", "cpu_count")}


# ----- evaluation -----------------------------------------------------------------------------------------------------


_FAMILIES: dict[str, TaskFamily] = {}


def family_of(test: Test) -> TaskFamily:
    """One object for each test, on which the compiled code hangs."""
    return _FAMILIES.setdefault(str(test.task), build_family(test.task))


def measure(entry: Entry, study: Study, test: Test, horizon: int, record_every: int | None = None) -> Curves:
    """One optimizer on a test's own tasks up to `horizon`."""
    family = family_of(test)
    return evaluate(
        {"it": entry},
        family,
        evaluation_keys(0)[0],
        horizon=horizon,
        num_tasks=test.num_tasks,
        train_horizon=study.horizon,
        record_every=record_every or _record_every(study.horizon, horizon, bool(jax.tree.leaves(family.data))),
        searched=("it",),  # nobody is to be warned of a rate that a figure has
        num_devices=1,
    )


def _record_every(train_horizon: int, horizon: int, has_data: bool) -> int:
    # The loss on a whole data set costs as much as some inner steps.
    finest = train_horizon // (10 if has_data else 50)
    return max(1, finest if horizon <= 10 * train_horizon else max(finest, train_horizon // 10))


def finals(entry: Entry, study: Study, test: Test, curves: Curves) -> dict[str, np.ndarray]:
    """{split_metric_multiple: [tasks]} at every multiple of T, of families that have more than the split trained on.

    A run to each multiple of its own, since metrics are taken at the end of one.
    """
    if family_of(test).splits == ("train",):
        return {}
    end, kept = int(curves.steps[-1]), {}
    for multiple in test.multiples:
        horizon = multiple * study.horizon
        if horizon > end:
            continue
        at = curves if horizon == end else measure(entry, study, test, horizon, record_every=horizon)
        for split in ("train", "test"):
            for name, values in at.final["it"].get(split, {}).items():
                if name != "loss" or split != "train":  # that is the curve's
                    # A dead network classifies nothing.
                    kept[f"{split}_{name}_{multiple}"] = values if name == "loss" else np.nan_to_num(values, nan=0.0)
    return kept


def save(path: Path, entry: Entry, curves: Curves, study: Study, test: Test, began: float, **more: Any) -> None:
    """Losses at the multiples of T and along the curve, the three words, metrics on the test split."""
    kept: dict[str, Any] = finals(entry, study, test, curves)
    steps, loss, peak, scale = curves.steps, curves.loss["it"], curves.peak["it"], curves.scale
    for multiple in test.multiples:
        if multiple * study.horizon > steps[-1]:
            continue
        upto = steps <= multiple * study.horizon
        part, some = loss[:, upto], steps[upto]
        kept[f"loss_{multiple}"] = part[:, -1]
        if multiple <= 10:
            kept[f"along_{multiple}"] = curves.along["it"][:, upto][:, -1]
        kept[f"failed_{multiple}"] = statistics.failed(peak[:, upto], scale)
        if multiple > 1:
            kept[f"rises_{multiple}"] = statistics.rises(part, some, study.horizon, scale)
            kept[f"improves_{multiple}"] = statistics.keeps_improving(part, some, study.horizon)
    shown = statistics.thin(steps, keep=(study.horizon,), limit=CURVE_POINTS)
    kept |= {"steps": steps[shown], "curve": loss[:, shown].astype(np.float32)}
    kept |= {"initial": loss[:, 0], "bound": curves.lower_bound, "environment": np.array(json.dumps(environment()))}
    kept |= {"core_seconds": time.process_time() - began, **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part_file, open(part_file, "wb") as file:
        np.savez_compressed(file, **kept)


def evaluate_arm(study: Study, arm: Arm, seeds: int, work: Path, clock: Clock) -> None:
    folder = work_folder(work, study.name, arm.name)
    chosen = arm.experiment.optimizer
    # Tests outside: all seeds of one test and use run through the same compiled code.
    for test in study.tests:
        for name, use in arm.all_uses().items():
            taken = use.on(test)
            if taken is None:
                continue
            optimizer = build_optimizer(Choice(chosen.name, {**chosen.options, **use.options}))
            for seed in range(seeds):
                path, phi = test_file(folder, seed, name, test), phi_file(folder / f"seed-{seed}", use.pick)
                if path.exists() or not phi.exists():
                    continue
                clock.check()
                began = time.process_time()
                entry = optimizer, read_optimizer(phi).meta_params
                curves = measure(entry, study, taken, study.horizon * max(taken.multiples))
                save(path, entry, curves, study, taken, began)
                say(f"{study.name} {arm.name} seed {seed} {name} on {test.task}: {_brief(curves)}")
        jax.clear_caches()  # see metaopt.runs.evaluations.evaluate_all


def _brief(curves: Curves) -> str:
    final, failed = curves.loss["it"][:, -1], statistics.failed(curves.peak["it"], curves.scale)
    return f"median {np.median(final):.3g} at step {curves.steps[-1]}, {failed.mean():.0%} failed"


# ----- baselines ------------------------------------------------------------------------------------------------------


def run_baselines(study: Study, work: Path, clock: Clock) -> None:
    """The figures' baselines at their rates, and the study's field tuned for each horizon on tasks of their own."""
    folder = work_folder(work, study.name, "baselines")
    for test in study.tests:
        for fixed in study.fixed:
            longest = study.horizon * max(test.multiples)
            _baseline(folder, fixed_name(fixed), study, test, longest, clock, lambda fixed=fixed: _fixed(fixed))
        for multiple in test.multiples:
            horizon, alone = study.horizon * multiple, dataclasses.replace(test, multiples=(multiple,))
            for name in study.tuned:
                tune = lambda name=name, test=test, horizon=horizon: _tuned(name, study, test, horizon)  # noqa: E731
                _baseline(folder, f"{name}@{multiple}", study, alone, horizon, clock, tune)
        jax.clear_caches()  # see metaopt.runs.evaluations.evaluate_all


def _fixed(picked: Choice) -> Tuned:
    optimizer = build_optimizer(picked)
    return optimizer, optimizer.init(jax.random.key(0)), {"learning_rate": picked.options["learning_rate"]}


def _tuned(name: str, study: Study, test: Test, horizon: int) -> Tuned:
    tasks = min(study.num_tuning_tasks, 100 if horizon > 10 * study.horizon else study.num_tuning_tasks)
    return tune_baselines(
        family_of(test),
        evaluation_keys(0)[1],
        horizon=horizon,
        num_tasks=tasks,
        names=(name,),
        budget=study.tuning,
        num_devices=1,
    )[name]


def _baseline(
    folder: Path, name: str, study: Study, test: Test, horizon: int, clock: Clock, make: Callable[[], Tuned]
) -> None:
    path = test_file(folder, None, name, test)
    if path.exists():
        return
    clock.check()
    began = time.process_time()
    tuned = make()
    curves = measure(tuned[:2], study, test, horizon)
    lower = lowered(tuned) if "tried" in tuned[2] else None
    if lower is not None and statistics.failed(curves.peak["it"], curves.scale).any():
        # A rate at the edge of stability: the next lower one where it does better, to the baseline's advantage.
        other = measure(lower[:2], study, test, horizon)
        if statistics.ends_lower(other.loss["it"][:, -1], curves.loss["it"][:, -1], curves.scale):
            tuned, curves = lower, other
    record = {key: value for key, value in tuned[2].items() if key != "finalists"}
    save(path, tuned[:2], curves, study, test, began, record=np.array(json.dumps(statistics.jsonable(record))))
    say(f"{study.name} {name} (rate {record['learning_rate']:g}) on {test.task}: {_brief(curves)}")


# ----- what takes the φ of other parts --------------------------------------------------------------------------------


def leave_rows(work: Path, name: str) -> int:
    """Leaves WORK/NAME.json with the rows; or, where φ are lacking, a line that says which, and status 2."""
    part = AFTER[name]
    lacking = part.missing(work)
    if lacking:
        print(f"{name}: error: no φ of {', '.join(lacking)}; run them first.", file=sys.stderr)
        return 2
    record = {"study": name, "about": part.ABOUT, "environment": environment(), "rows": part.rows(work)}
    write_json(work / f"{name}.json", statistics.jsonable(record))
    return 0


# ----- the process ----------------------------------------------------------------------------------------------------


class Missing(Exception):
    """φ of another part are lacking."""


def run_arm(study: Study, arm: Arm, seeds: int, work: Path, clock: Clock) -> None:
    """Meta-trains, or fetches, what is not there yet of an arm's first seeds, and evaluates it.

    Raises:
      Missing: the study takes the φ of another whose part has not run.
      Stop: a signal came, or the time is up.
    """
    trainer: Trainer | None = None
    for seed in range(seeds):
        folder = work_folder(work, study.name, arm.name) / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        if trained(folder):
            continue
        clock.check()
        if study.phi_of:
            found = trained(work_folder(work, study.phi_of, arm.name) / folder.name)
            if found is None:
                raise Missing(f"{study.phi_of}/{arm.name}")
            for path in (found.parent / ENVIRONMENT, found):
                with replacing(folder / path.name) as part_file:
                    shutil.copyfile(path, part_file)
            continue
        trainer = trainer or Trainer(validate(dataclasses.replace(arm.experiment, num_devices=1)))
        train(trainer, seed, folder, clock)
        say(f"{study.name} {arm.name} seed {seed}: meta-trained")
    evaluate_arm(study, arm, seeds, work, clock)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", choices=[*STUDIES, "after"])
    parser.add_argument("arm")
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--core", type=int, help="the core to stay on")
    parser.add_argument("--until", type=float, help="seconds since the epoch after which no further work begins")
    parsed = parser.parse_args()
    if parsed.core is not None:
        os.sched_setaffinity(0, {parsed.core})  # before jax makes its threads
    configure_jax(1)
    if parsed.study == "after":
        return leave_rows(parsed.work, parsed.arm)
    study, clock = STUDIES[parsed.study], Clock(parsed.until)
    clock.listen()
    try:
        if parsed.arm == "baselines":
            run_baselines(study, parsed.work, clock)
            return 0
        arm = next(arm for arm in study.arms if arm.name == parsed.arm)
        run_arm(study, arm, arm.seeds if parsed.seeds is None else parsed.seeds, parsed.work, clock)
    except Missing as error:
        print(f"{study.name}: error: no φ of {error}; run it first.", file=sys.stderr)
        return 2
    except Stop:
        return STOPPED
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # jax's own end takes a second and has nothing to save
