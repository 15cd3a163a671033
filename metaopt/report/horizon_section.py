"""How far optimizers generalise beyond the horizon they were trained for: losses at 1, 10, 100 times it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from metaopt.report.comparison_pictures import BASELINE, OTHERS, Line, Panel, panels_drawings, run_style
from metaopt.report.parts import cell, data_table, figure, legend, number, range_words, share_cell, swatch
from metaopt.report.pictures import Style
from metaopt.report.series import numbers

Result = Mapping[str, Any]  # an entry of evaluation.json


class Evaluated(NamedTuple):
    """A run's evaluations, and how the run is drawn and called."""

    name: str  # of the run
    style: Style
    results: Sequence[Result]
    label: str = ""  # beside the name


class Point(NamedTuple):
    """An optimizer at one horizon."""

    multiple: float  # of the horizon that it was trained for
    horizon: int
    median: float
    mean: float
    num_tasks: int
    ratio: Mapping[str, Any] | None = None  # of mean losses, to the best baseline
    failed: float | None = None
    baseline: float | None = None  # the best baseline's median


def one_run(name: str, results: Sequence[Result]) -> Evaluated:
    """A single run's."""
    return Evaluated(name, run_style(0, name), results)


def points_of(results: Sequence[Result], task: str) -> list[Point]:
    """A learned optimizer's points on a task family, by rising horizon; of two at the same, the one with more tasks."""
    found: dict[int, Point] = {}
    for result in results:
        trained = result.get("train_horizon")
        record = next((one for one in result["optimizers"].values() if one.get("kind") == "learned"), None)
        if result["task"] != task or not trained or record is None:
            continue
        rival = result["optimizers"].get(result.get("best_baseline")) or {}
        at = _point(record["final"], result["horizon"], trained, result["num_tasks"])._replace(
            ratio=record.get("ratio_to_best_baseline"),
            failed=record.get("failed"),
            baseline=_float((rival.get("final") or {}).get("median")),
        )
        before = found.get(at.horizon)
        if before is None or before.failed is None or before.num_tasks <= at.num_tasks:
            found[at.horizon] = at
        within = record.get("at_train_horizon")
        if within and trained < result["horizon"]:  # on its way it passed the training horizon
            found.setdefault(trained, _point(within, trained, trained, result["num_tasks"]))
    return sorted(found.values(), key=lambda point: point.horizon)


def _point(summary: Mapping[str, Any], horizon: int, trained: int, num_tasks: int) -> Point:
    median, mean = (_float(summary.get(name)) for name in ("median", "mean"))
    nan = float("nan")
    return Point(
        horizon / trained, horizon, nan if median is None else median, nan if mean is None else mean, num_tasks
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def horizon_section(runs: Sequence[Evaluated]) -> str:
    """A picture with a panel for each task family evaluated at two horizons or more, and its numbers.

    Of several runs evaluated at one horizon each there are the numbers alone; "" where there is nothing to compare.
    """
    tasks = dict.fromkeys(str(result["task"]) for run in runs for result in run.results)
    points = {task: [points_of(run.results, task) for run in runs] for task in tasks}
    several = [task for task, found in points.items() if any(len(own) > 1 for own in found)]
    if several:
        points = {task: points[task] for task in several}
        return _section("Horizon generalisation", _picture(runs, points) + _table(runs, points))
    return _section("Evaluation", _table(runs, points)) if len(runs) > 1 and any(map(any, points.values())) else ""


def _section(title: str, content: str) -> str:
    return f'<section id="horizons"><h2>{title}</h2>{content}</section>'


def _picture(runs: Sequence[Evaluated], points: Mapping[str, Sequence[Sequence[Point]]]) -> str:
    tasks = list(points)
    drawn = tasks[:6]
    panels = [_panel(task, runs, points[task]) for task in drawn]
    label = "Final loss against multiples of the training horizon; the data stand in the table below."
    styles = {run.style.label: run.style for run in runs if not run.style.role.startswith("baseline")}
    if len(styles) < len({run.style.label for run in runs}):
        styles["others"] = OTHERS
    rivals = any(point.baseline is not None for task in drawn for found in points[task] for point in found)
    caption = (
        "Median final loss over tasks at multiples of the horizon that the run was meta-trained for, on tasks that "
        "neither meta-training nor the tuning of the baselines has seen."
    )
    if rivals:
        over = ", median over the runs" if len(runs) > 1 else ""
        caption += f" Grey: the best tuned baseline of that horizon{over}."
    caption += f" The first {len(drawn)} of {len(tasks)} families." if len(drawn) < len(tasks) else ""
    if len({point.num_tasks for task in tasks for found in points[task] for point in found}) > 1:
        caption += " Not all were evaluated on equally many tasks: see the table."
    key = legend({**styles, **({"baseline": BASELINE} if rivals else {})})
    return figure(panels_drawings(panels, "h", label), key, caption, half=len(panels) == 1)


def _panel(task: str, runs: Sequence[Evaluated], points: Sequence[Sequence[Point]]) -> Panel:
    lines = []
    for run, found in zip(runs, points, strict=True):
        if found:
            x, y = (numbers(getattr(point, part) for point in found) for part in ("multiple", "median"))
            lines.append(Line(run.style, x, y))
    multiples = sorted({point.multiple for found in points for point in found})
    rivals = {
        multiple: [p.baseline for found in points for p in found if p.multiple == multiple and p.baseline is not None]
        for multiple in multiples
    }
    known = [multiple for multiple in multiples if rivals[multiple]]
    if known:
        medians = np.array([np.median(rivals[multiple]) for multiple in known])
        lines.append(Line(BASELINE, np.array(known), medians))
    shown = multiples if len(multiples) <= 5 else [multiple for multiple in multiples if multiple in (1, 10, 100, 1000)]
    return Panel(
        task, "times the training horizon", "median final loss", lines, [(m, f"{m:g}×") for m in shown], log_x=True
    )


def _table(runs: Sequence[Evaluated], points: Mapping[str, Sequence[Sequence[Point]]]) -> str:
    columns = [
        "Run",
        "Task",
        "Times T",
        "Steps",
        "Tasks",
        "Median final loss",
        "Mean",
        "Ratio to best baseline",
        "Failed",
    ]
    rows = []
    for task, found in points.items():
        for run, own in zip(runs, found, strict=True):
            under = f"<small class=beside>{escape(run.label)}</small>" if run.label else ""
            for point in own:
                ratio = point.ratio or {}
                of_means = ratio.get("of_means")
                rows.append([
                    f"<th scope=row>{swatch(run.style)}{escape(run.name)}{under}</th>",
                    f'<td class="words">{escape(task)}</td>',
                    cell(f"{point.multiple:g}×", value=point.multiple),
                    cell(f"{point.horizon:,}", value=point.horizon),
                    f"{point.num_tasks:,}",
                    cell(number(point.median), value=point.median),
                    cell(number(point.mean), value=point.mean),
                    cell(number(of_means), range_words(ratio.get("interval")), value=of_means),
                    share_cell(point.failed, point.num_tasks, bad=True),
                ])  # fmt: skip
    if len(runs) == 1:
        rows = [row[1:] for row in rows]
        columns = columns[1:]
    return data_table(columns, rows, kind="results", label="Evaluation")
