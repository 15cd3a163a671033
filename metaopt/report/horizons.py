"""How far optimizers generalise beyond the horizon they were trained for: losses at 1, 10, 100 times it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metaopt.report.page import drawings
from metaopt.report.panels import BASELINE, OTHERS, Line, Panel, Style, panels_figure, run_style
from metaopt.report.series import numbers

Result = Mapping[str, Any]  # an entry of evaluation.json
MOST_PANELS = 6


class Evaluated(NamedTuple):
    """A run's evaluations, and how the run is drawn and called."""

    name: str  # of the run
    style: Style
    results: Sequence[Result]
    label: str = ""  # beside the name


class Point(NamedTuple):
    """An optimizer at one horizon; values as in the JSON."""

    multiple: float  # of the horizon that it was trained for
    horizon: int
    num_tasks: int
    median: Any
    mean: Any
    above_bound: bool = False  # what the two and `baseline` are of
    ratio: Mapping[str, Any] | None = None  # to the best baseline, as `paired_ratio` has it
    difference: Mapping[str, Any] | None = None  # where there is no bound, and no ratio
    failed: float | None = None
    baseline: Any = None  # the best baseline's median


def one_run(name: str, results: Sequence[Result]) -> Evaluated:
    """A single run's."""
    return Evaluated(name, run_style(0, name), results)


def points_of(results: Sequence[Result], task: str) -> list[Point]:
    """A learned optimizer's points on a task family, by rising horizon; of two at the same, the one with more tasks."""
    found: dict[int, Point] = {}
    for result in results:
        trained, horizon, num_tasks = result.get("train_horizon"), result["horizon"], result["num_tasks"]
        record = next((one for one in result["optimizers"].values() if one.get("kind") == "learned"), None)
        if result["task"] != task or not trained or record is None:
            continue
        part = "gap" if record.get("gap") else "final"
        rival = result["optimizers"].get(result.get("best_baseline")) or {}
        at = Point(
            horizon / trained,
            horizon,
            num_tasks,
            record[part].get("median"),
            record[part].get("mean"),
            part == "gap",
            record.get("ratio_to_best_baseline"),
            record.get("difference_to_best_baseline"),
            record.get("failed"),
            (rival.get(part) or {}).get("median"),
        )
        before = found.get(horizon)
        if before is None or before.failed is None or before.num_tasks <= num_tasks:
            found[horizon] = at
        within = record.get("at_train_horizon")
        if within and trained < horizon and part == "final":  # on its way it passed the training horizon
            point = Point(1.0, trained, num_tasks, within.get("median"), within.get("mean"))
            found.setdefault(trained, point)
    return sorted(found.values(), key=lambda point: point.horizon)


def at_horizons(runs: Sequence[Evaluated]) -> dict[str, list[list[Point]]]:
    """Task family -> the points of each run, of the families that a run was evaluated on at two horizons or more."""
    tasks = dict.fromkeys(str(result["task"]) for run in runs for result in run.results)
    points = {task: [points_of(run.results, task) for run in runs] for task in tasks}
    return {task: found for task, found in points.items() if any(len(own) > 1 for own in found)}


def horizons(runs: Sequence[Evaluated]) -> dict[str, Any] | None:
    """What the section shows: a panel for each task family evaluated at two horizons or more, and its numbers.

    Of several runs evaluated at one horizon each there are the numbers alone; None where there is nothing to compare.
    """
    tasks = dict.fromkeys(str(result["task"]) for run in runs for result in run.results)
    several = at_horizons(runs)
    points = several or {task: [points_of(run.results, task) for run in runs] for task in tasks}
    rows = [
        {"task": task, "run": run, "point": point}
        for task, found in points.items()
        for run, own in zip(runs, found, strict=True)
        for point in own
    ]
    if not several and (len(runs) < 2 or not rows):
        return None
    return {
        "rows": rows,
        "runs": len(runs),
        "tasks": len({row["task"] for row in rows}),
        "ratios": any(row["point"].ratio for row in rows),
        "differences": any(row["point"].difference for row in rows),
        "picture": _picture(runs, several) if several else None,
    }


def panels_of(
    runs: Sequence[Evaluated], points: Mapping[str, Sequence[Sequence[Point]]], most: int | None = MOST_PANELS
) -> list[Panel]:
    """A panel for each task family, `most` of them or all (None); `points` hold those of each run."""
    return [_panel(task, runs, found) for task, found in list(points.items())[:most]]


def _picture(runs: Sequence[Evaluated], points: Mapping[str, Sequence[Sequence[Point]]]) -> dict[str, Any]:
    panels = panels_of(runs, points)
    label = "Final loss against multiples of the training horizon; the data stand in the table below."
    styles = {run.style.label: run.style for run in runs if not run.style.role.startswith("baseline")}
    if len(styles) < len({run.style.label for run in runs}):
        styles["others"] = OTHERS
    rivals = any(line.style is BASELINE for panel in panels for line in panel.lines)
    return {
        "drawings": drawings(lambda narrow: panels_figure(panels, narrow=narrow), "h", label),
        "styles": [*styles.values(), *([BASELINE] if rivals else [])],
        "rivals": rivals,
        "panels": len(panels),
        "families": len(points),
        "uneven": len({point.num_tasks for found in points.values() for own in found for point in own}) > 1,
    }


def _panel(task: str, runs: Sequence[Evaluated], points: Sequence[Sequence[Point]]) -> Panel:
    every = [point for found in points for point in found]
    lines = [
        Line(run.style, numbers(point.multiple for point in found), numbers(point.median for point in found))
        for run, found in zip(runs, points, strict=True)
        if found
    ]
    multiples = sorted({point.multiple for point in every})
    rivals: dict[float, list[float]] = {}
    for point in sorted(every, key=lambda point: point.multiple):
        if point.baseline is not None:
            rivals.setdefault(point.multiple, []).append(float(point.baseline))
    if rivals:
        lines.append(Line(BASELINE, numbers(rivals), numbers(np.median(medians) for medians in rivals.values())))
    shown = multiples if len(multiples) <= 5 else [multiple for multiple in multiples if multiple in (1, 10, 100, 1000)]
    what = "median final loss" + (" above its bound" if any(point.above_bound for point in every) else "")
    return Panel(
        task, "horizon, in multiples of the training horizon", what, lines, [(m, f"{m:g}×") for m in shown], log_x=True
    )
