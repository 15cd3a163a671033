"""Evaluations of a run: computed, kept in evaluation.json, shown as a table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from metaopt.errors import UserError, suggest
from metaopt.evaluation import BASELINES, evaluate_run_on
from metaopt.experiment import Experiment, build_family, build_optimizer
from metaopt.files import read_json, replacing, write_json
from metaopt.microscope.capture import keep_failures
from metaopt.registry import Choice, parse_choice
from metaopt.runs.console import say
from metaopt.runs.folder import EVALUATION
from metaopt.types import MetaParams, Optimizer

Result = dict[str, Any]  # one entry of evaluation.json's "results"
Plan = tuple[tuple[Choice, int], ...]  # (task, horizon)


def plan_of(experiment: Experiment) -> Plan:
    """What an experiment asks to be evaluated on: every task at every horizon."""
    tasks = experiment.evaluation.tasks or experiment.tasks
    horizons = experiment.evaluation.horizons or (experiment.horizon, 10 * experiment.horizon)
    return tuple((task, horizon) for task in tasks for horizon in dict.fromkeys(horizons))


def check(plan: Plan, baselines: Sequence[str]) -> None:
    """Raises what would go wrong in an evaluation before hours are spent on training.

    Raises:
      UserError: an unknown task, option or baseline, a missing data set, a horizon below 1.
    """
    for task in {str(task): task for task, _ in plan}.values():
        build_family(task)
    for _, horizon in plan:
        if horizon < 1:
            raise UserError(f"`horizon` ({horizon}) must be at least 1.")
    for text in baselines:
        picked = parse_choice(text)
        if picked.name not in BASELINES:
            raise UserError(f"baseline {suggest(picked.name, BASELINES)}")
        if "learning_rate" in picked.options:
            raise UserError(f"baseline {text!r}: its learning rate is what is tuned; leave learning_rate out.")
        build_optimizer(picked)


def check_writable(path: Path, remedy: str) -> None:
    """Raises before the work what would fail after it.

    Raises:
      UserError: no file can be made in the folder.
    """
    try:
        with replacing(path / EVALUATION):
            raise _Tried
    except _Tried:
        pass
    except OSError as error:
        raise UserError(f"cannot write to the folder {path}: {error.strerror}; {remedy}.") from None


class _Tried(Exception):
    pass


def evaluate_all(
    path: Path,
    learned: Mapping[str, tuple[Optimizer, MetaParams]],
    plan: Plan,
    *,
    train_horizon: int | None,
    num_tasks: int,
    seed: int,
    baselines: Sequence[str],
    num_devices: int | None = None,
    trained: Mapping[str, int | None] | None = None,
    keep: bool = False,
    experiments: Mapping[str, Experiment] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Result]:
    """Evaluates on every part of the plan and writes each result into the folder's evaluation.json as it is done.

    Args:
      trained: name -> the meta-step that its φ is from; it is noted in the results.
      keep: take over a result that is there already for the same φ, tasks and baselines.
      experiments: name -> what φ was meta-trained by; runs of these that fail leave divergence capsules.
    """
    trained = dict(trained or {})
    results = []
    for task, horizon in plan:
        name = build_family(task).name or str(task)
        wanted = (name, horizon, num_tasks, seed, sorted(set(baselines)))
        result = next((r for r in read_results(path) if identity(r) == wanted), None)
        names = {*learned, *baselines}
        fits = result is not None and result.get("meta_steps") == trained and set(result["optimizers"]) == names
        if not (keep and fits):
            result = evaluate_run_on(
                learned,
                task,
                horizon=horizon,
                train_horizon=train_horizon,
                num_tasks=num_tasks,
                seed=seed,
                baselines=tuple(baselines),
                num_devices=num_devices,
                progress=progress,
                look=functools.partial(keep_failures, path, learned, experiments or {}, trained, task, num_devices),
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
    baselines = sorted(name for name, record in result["optimizers"].items() if record["kind"] == "baseline")
    return (*(result.get(key) for key in ("task", "horizon", "num_tasks", "seed")), baselines)


# ----- the table ------------------------------------------------------------------------------------------------------

HEADER = ("optimizer", "final loss, mean", "95% interval", "median", "to best baseline", "failed", "rises", "accuracy")


def print_results(console: Any, results: Sequence[Result]) -> None:
    """One table for each result: boxed in a terminal, aligned columns of plain text elsewhere."""
    from rich import box
    from rich.table import Table

    for result in results:
        title = f"{result['task']}, {result['horizon']} steps, {result['num_tasks']} tasks"
        rows = [_cells(name, record, result["num_tasks"]) for name, record in result["optimizers"].items()]
        # A column in which no optimizer has a value is left out.
        shown = [i for i in range(len(HEADER)) if any(row[i] for row in rows)]
        console.print()
        if not console.is_terminal:
            say(console, _plain_table(title, [HEADER, *rows], shown))
            continue
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for i in shown:
            table.add_column(HEADER[i], justify="left" if i == 0 else "right")
        for row, record in zip(rows, result["optimizers"].values(), strict=True):
            table.add_row(*(row[i] for i in shown), style="bold" if record["kind"] == "learned" else None)
        console.print(table)


def _plain_table(title: str, rows: list[tuple[str, ...]], shown: list[int]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in shown]
    lines = [
        "  ".join(row[i].ljust(w) if i == 0 else row[i].rjust(w) for i, w in zip(shown, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _cells(name: str, record: Mapping[str, Any], num_tasks: int) -> tuple[str, ...]:
    final, ratio, tuned = record["final"], record.get("ratio_to_best_baseline"), record.get("tuned") or {}
    rate = tuned.get("learning_rate")
    return (
        name if rate is None else f"{name} (rate {rate:.3g})",
        _number(final["mean"]),
        _interval(final.get("mean_interval")),
        _number(final["median"]),
        "" if ratio is None else f"{_number(ratio['of_means'])} {_interval(ratio['interval'])}".strip(),
        _count(record.get("failed"), num_tasks),
        _count(record.get("rises"), num_tasks),
        _percent((record.get("test") or {}).get("accuracy")),
    )


def _number(value: Any) -> str:
    return "?" if value is None else f"{float(value):.3g}"


def _interval(values: Any) -> str:
    return "" if not values else f"[{_number(values[0])}, {_number(values[1])}]"


def _count(fraction: Any, total: int) -> str:
    # Never a rounded share: one failure of 400 makes a mean infinite and would read 0%.
    return "" if fraction is None else f"{round(fraction * total)}/{total}"


def _percent(value: Any) -> str:
    return "" if value is None else f"{value:.1%}"
