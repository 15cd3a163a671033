"""Evaluations of a run: computed, kept in evaluation.json, shown as a table."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from metaopt.choices import Choice, parse_choice
from metaopt.errors import UserError
from metaopt.evaluation import evaluate_run_on
from metaopt.evaluation.early_stopping import EarlyStopping
from metaopt.evaluation.tuning import TUNED, Budget
from metaopt.experiment import TUNING, Experiment, build_family, build_optimizer
from metaopt.files import read_json, try_writing, write_json
from metaopt.inner import limits
from metaopt.inner.checks import check_value, first_estimate
from metaopt.registry import OPTIMIZERS, UnknownEntry
from metaopt.runs import tables
from metaopt.runs.folder import EVALUATION, new_folder
from metaopt.types import MetaParams, Optimizer, TaskFamily

RECORD_BYTES = 12 * 100  # of a task's curve, at least
Result = dict[str, Any]  # one entry of evaluation.json's "results"
Plan = tuple[tuple[Choice, int], ...]  # (task, horizon)


def plan_of(experiment: Experiment) -> Plan:
    """What an experiment asks to be evaluated on: every task at every horizon."""
    tasks = experiment.evaluation.tasks or experiment.tasks
    horizons = experiment.evaluation.horizons or (experiment.horizon, 10 * experiment.horizon)
    return tuple((task, horizon) for task in tasks for horizon in dict.fromkeys(horizons))


def stopping_of(patience: int | None, check_every: int | None) -> EarlyStopping | None:
    """As the command line and an experiment ask for it.

    Raises:
      UserError: counts below 1, or checks that no one waits for.
    """
    if patience is None and check_every is not None:
        raise UserError("`check_every` says how often early stopping looks; give `patience` too, or leave it out.")
    return None if patience is None else EarlyStopping(patience, check_every)


def check(
    plan: Plan,
    baselines: Sequence[str],
    tuning: str = TUNING,
    *,
    num_tasks: int,
    optimizers: Sequence[Optimizer],
    oracle: Choice | None = None,
    early_stopping: EarlyStopping | None = None,
    names: tuple[str, str] = ("horizon", "num_tasks"),
) -> None:
    """Raises what would go wrong in an evaluation before hours are spent on training.

    Args:
      optimizers: the learned ones.
      names: how the user calls horizons and numbers of tasks.

    Raises:
      UserError: an unknown task, option, baseline or budget of its tuning, a missing data set, a horizon below 1, early
        stopping without validation data, or what this machine has no memory or no time for.
    """
    for task in {str(task): task for task, _ in plan}.values():
        horizons = [horizon for other, horizon in plan if other == task]
        if min(horizons) < 1:
            raise UserError(f"`horizon` ({min(horizons)}) must be at least 1.")
        family = build_family(task, oracle=oracle)
        first_estimate(family)
        if early_stopping is not None:
            early_stopping.fitted(family, min(horizons))
        _check_size(task, family, max(horizons), num_tasks, optimizers, names, oracle)
        for text in baselines:
            if parse_choice(text).name in OPTIMIZERS:
                check_value(f"baseline {text!r}", build_optimizer(parse_choice(text)), family)
    Budget.parse(tuning)
    for text in baselines:
        picked = parse_choice(text)
        if picked.name not in OPTIMIZERS:
            error = UnknownEntry(OPTIMIZERS.kind, picked.name, _known_baselines())
            error.args = (f"baseline {error}",)
            raise error
        if OPTIMIZERS.traits(picked.name).untuned:
            build_optimizer(picked)
            continue
        if TUNED in picked.options:
            raise UserError(f"baseline {text!r}: its learning rate is what is tuned; leave {TUNED} out.")
        if TUNED not in build_optimizer(picked).tunable:
            known = ", ".join(_known_baselines())
            raise UserError(f"baseline {text!r} has no learning rate to be tuned; choose from {known}.")


def _check_size(
    task: Choice,
    family: TaskFamily,
    horizon: int,
    num_tasks: int,
    optimizers: Sequence[Optimizer],
    names: tuple[str, str],
    oracle: Choice | None,
) -> None:
    def needed(family: TaskFamily, num_tasks: int) -> int:
        run = max(sum(limits.sizes(optimizer, family)) for optimizer in optimizers)
        return run + num_tasks * (limits.KEY_BYTES + RECORD_BYTES)

    def with_option(key: str) -> Callable[[int], bool]:
        def would(value: int) -> bool:
            smaller = build_family(Choice(task.name, {**task.options, key: value}), oracle=oracle)
            return limits.fits(needed(smaller, num_tasks), horizon, room=limits.ROOM)

        return would

    now = needed(family, num_tasks)
    if limits.fits(now, horizon):
        return
    whole = {key: value for key, value in task.options.items() if type(value) is int}
    settings = [
        limits.Setting(names[0], horizon, lambda value: limits.fits(now, value, room=limits.ROOM)),
        limits.Setting(
            names[1], num_tasks, lambda value: limits.fits(needed(family, value), horizon, room=limits.ROOM)
        ),
        *(limits.Setting(f"{task.name}:{key}", value, with_option(key)) for key, value in whole.items()),
    ]
    limits.refuse(f"{family.name or task}: {limits.why(now, horizon)}", settings)


def _known_baselines() -> list[str]:
    """Registered optimizers whose learning rate can be tuned."""
    known = []
    for name in OPTIMIZERS:
        with contextlib.suppress(UserError):  # one that needs options
            known += [name] * (TUNED in build_optimizer(Choice(name)).tunable)
    return known


def check_writable(path: Path, remedy: str) -> None:
    """Raises before the work what would fail after it.

    Raises:
      UserError: no file can be made in the folder.
    """
    try:
        try_writing(path)
    except OSError as error:
        raise UserError(f"cannot write to the folder {path}: {error.strerror}; {remedy}.") from None


@contextlib.contextmanager
def place_for_results(run: Path, out: str | None, parent: Path, file: str) -> Iterator[tuple[Path, bool]]:
    """(folder, whether it is the run's own), for a `file` of what was found out about a run.

    Args:
      out: another folder; by default the run's own, or the next number in `parent` where `run` is no folder. It is
        taken away again where the block fails without having written the file.

    Raises:
      UserError: it exists with something in it, or cannot be written.
    """
    if out is None and run.is_dir():
        check_writable(run, "give --out")
        yield run, True
        return
    made = new_folder(None if out is None else Path(out), parent)
    try:
        yield made.path, False
    except BaseException:
        if not (made.path / file).exists():
            made.discard()
        raise


def evaluate_all(
    path: Path,
    learned: Mapping[str, tuple[Optimizer, MetaParams]],
    plan: Plan,
    *,
    train_horizon: int | None,
    num_tasks: int,
    seed: int,
    baselines: Sequence[str],
    tuning: str = TUNING,
    oracle: Choice | None = None,
    early_stopping: EarlyStopping | None = None,
    num_devices: int | None = None,
    trained: Mapping[str, int | None] | None = None,
    keep: bool = False,
    experiments: Mapping[str, Experiment] | None = None,
    look: Callable[..., object] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Result]:
    """Evaluates on every part of the plan and writes each result into the folder's evaluation.json as it is done.

    Args:
      trained: name -> the meta-step that its φ is from; it is noted in the results.
      keep: take over a result that is there already for the same φ, tasks and baselines.
      experiments: name -> what φ was meta-trained by.
      look: called with path, learned, experiments, trained, task, num_devices, the family, the key and the curves of
        each evaluation that is computed.
    """
    trained = dict(trained or {})
    results = []
    for number, (task, horizon) in enumerate(plan, 1):
        place = f"{number} of {len(plan)}: "
        family = build_family(task, oracle=oracle)
        stopping = early_stopping and early_stopping.fitted(family, horizon, train_horizon)
        under = None if family.oracle is None else str(oracle)
        name = family.name or str(task)
        wanted = (name, horizon, num_tasks, seed, under, *_stopping(stopping), sorted(set(baselines)))
        result = next((r for r in read_results(path) if identity(r) == wanted), None)
        names = {*learned, *baselines}
        made = {"meta_steps": trained, "tuning": tuning}
        fits = result is not None and made.items() <= result.items() and set(result["optimizers"]) == names
        if not (keep and fits):
            result = evaluate_run_on(
                learned,
                task,
                horizon=horizon,
                train_horizon=train_horizon,
                num_tasks=num_tasks,
                seed=seed,
                baselines=tuple(baselines),
                tuning=tuning,
                oracle=oracle,
                early_stopping=stopping,
                num_devices=num_devices,
                progress=progress and (lambda line, place=place: progress(place + line)),
                look=look and functools.partial(look, path, learned, experiments or {}, trained, task, num_devices),
            )
            result |= {"meta_steps": trained}
            put_result(path, result)
            # No other entry runs the same programs, and each takes up to a thousand of the 65,530 memory mappings that
            # Linux allows a process: some eighty deep networks' programs, and the compiler crashes.
            jax.clear_caches()
        assert result is not None
        results.append(result)
    return results


def read_results(path: Path) -> list[Result]:
    """The results in a folder's evaluation.json; none where there is no such file.

    Raises:
      UserError: it is broken, or an entry lacks what tables and pictures are made of.
    """
    file = path / EVALUATION
    if not file.exists():
        return []
    content = read_json(file)
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise UserError(f"{file} holds no list of results; move it away and evaluate again.")
    for index, result in enumerate(results):
        records = result.get("optimizers")
        missing = [field for field in ("task", "horizon", "num_tasks", "optimizers") if field not in result]
        if isinstance(records, dict):
            every = [record if isinstance(record, dict) else {} for record in records.values()]
            missing += [field for field in ("kind", "final", "curve") if any(field not in record for record in every)]
        elif not missing:
            missing = ["optimizers"]
        if missing:
            lacking = f"result {index + 1} lacks {', '.join(missing)}"
            raise UserError(f"{file}: {lacking}; move it away and evaluate again.")
    return results


def put_result(path: Path, result: Result) -> None:
    """Adds a result to the folder's evaluation.json, in the place of one on the same tasks with the same baselines."""
    results = read_results(path)
    for index, other in enumerate(results):
        if identity(other) == identity(result):
            results[index] = result
            break
    else:
        results.append(result)
    write_json(path / EVALUATION, {"version": 1, "results": results})


def identity(result: Result) -> tuple[Any, ...]:
    """What a new result must share with an older one to take its place."""
    baselines = sorted(name for name, record in result["optimizers"].items() if record["kind"] != "learned")
    stopping = _stopping(result.get("early_stopping"))
    return (*(result.get(key) for key in ("task", "horizon", "num_tasks", "seed", "oracle")), *stopping, baselines)


def _stopping(told: EarlyStopping | Mapping[str, Any] | None) -> tuple[Any, Any]:
    held = dataclasses.asdict(told) if isinstance(told, EarlyStopping) else told or {}
    return held.get("patience"), held.get("every")


# ----- the table ------------------------------------------------------------------------------------------------------


def print_results(console: Any, results: Sequence[Result]) -> None:
    """One table for each result, without the columns in which no optimizer has a value."""
    for result in results:
        steps = result.get("meta_steps") or {}
        rows = [
            _cells(name, record, result["num_tasks"], steps.get(name) if len(steps) > 1 else None)
            for name, record in result["optimizers"].items()
        ]
        shown = [heading for heading in rows[0] if any(row[heading] for row in rows)] if rows else []
        learned = [i for i, record in enumerate(result["optimizers"].values(), 1) if record["kind"] == "learned"]
        console.print()
        title = f"{result['task']}, {result['horizon']} steps, {result['num_tasks']} tasks"
        tables.print_table(console, title, [shown, *([row[name] for name in shown] for row in rows)], bold=learned)


def _cells(name: str, record: Mapping[str, Any], num_tasks: int, meta_step: int | None = None) -> dict[str, str]:
    final, setting = record["final"], tables.setting(record)
    setting = setting if meta_step is None else f"meta-step {meta_step:,}"
    ratio, less = (record.get(f"{kind}_to_best_baseline") for kind in ("ratio", "difference"))
    gap, test, train = record.get("gap"), record.get("test") or {}, record.get("train") or {}
    stopping = record.get("early_stopping") or {}
    return {
        "optimizer": f"{name} ({setting})" if setting else name,
        "final loss, mean": tables.number(final["mean"], missing="?"),
        "95% interval": tables.interval(final.get("mean_interval")) or "too few tasks",
        "median": tables.number(final["median"], missing="?"),
        "above the bound": "" if gap is None else _estimate(gap["mean"], gap["mean_interval"]),
        "to best baseline": "" if ratio is None else _estimate(tables.ratio(ratio), ratio["interval"]),
        # Where a loss has no bound, and so no ratios: in shares of the largest fall.
        "less best baseline": "" if less is None else _estimate(less["mean"], less["interval"]),
        "gradients to tune": tables.number((record.get("tuned") or {}).get("gradients", 0)),
        "failed": tables.count(record.get("failed"), num_tasks),
        "rises": tables.count(record.get("rises"), num_tasks),
        "test loss": tables.number(test.get("loss")),
        "test accuracy": tables.share(test.get("accuracy")),
        "train accuracy": tables.share(train.get("accuracy")) if "accuracy" in test else "",
        **{f"P({event})": _estimate(v["share"], v["interval"]) for event, v in (record.get("events") or {}).items()},
        "steps saved": tables.number(stopping.get("steps_saved")),
        "loss restored": _loss(stopping, "restored"),
        "loss at the end": _loss(stopping, "at_end"),
    }


def _loss(stopping: Mapping[str, Any], where: str) -> str:
    """With the split that early stopping is judged on."""
    held = stopping.get(where) or {}
    return f"{tables.number(held['loss'])} ({stopping['split']})" if "loss" in held else ""


def _estimate(value: Any, interval: Sequence[Any] | None) -> str:
    return f"{tables.number(value, missing='?')} {tables.interval(interval)}".strip()
