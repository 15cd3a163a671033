"""The curves of several runs on one page: meta-training, validation, and the best against each field."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from metaopt.report.compared_runs import ComparedRun, Comparison, points, short_names, shown_groups
from metaopt.report.comparison_pictures import Line, Panel, panels_drawings
from metaopt.report.parts import details_table, figure, legend, number
from metaopt.report.pictures import Style
from metaopt.report.series import binned, series, validation_series

MOST_AXES = 6  # panels of the picture of the axes
_MEDIAN = Style("median", "baseline-2", "-")


def axes_section(comparison: Comparison) -> str:
    """Best validation against each axis; "" where there is nothing to see."""
    panels, short = [], short_names(comparison.axes)
    for axis in comparison.axes:
        found = points(comparison.runs, axis)
        values = list(dict.fromkeys(value for value, _, _ in found))
        if axis == "seed" or len(values) < 2:
            continue
        places = {value: float(place) for place, value in enumerate(values)}
        lines = [
            Line(style, np.array([places[value]]), np.array([score]), joined=False) for value, score, style in found
        ]
        middle = [float(np.median([score for other, score, _ in found if other == value])) for value in values]
        lines.append(Line(_MEDIAN, np.array(list(places.values())), np.array(middle)))
        step = -(-len(values) // 8)
        ticks = [(place, value) for value, place in places.items()][::step]
        panels.append(Panel(short[axis], "", "best validation", lines, ticks))
    if not panels:
        return ""
    caption = (
        "The best validation loss of every run against each field in which the runs differ; the grey line goes through "
        "the medians. The data stand in the table of runs."
    )
    if len(panels) > MOST_AXES:
        caption += f" The first {MOST_AXES} of {len(panels)} fields."
    label = "Best validation loss against each field; the data stand in the table of runs."
    return (
        "<section id=axes><h2>What the fields do</h2>"
        + _figure(panels[:MOST_AXES], "a", label, "", caption)
        + "</section>"
    )


def _figure(panels: Sequence[Panel], prefix: str, label: str, key: str, caption: str) -> str:
    return figure(panels_drawings(panels, prefix, label), key, caption, half=len(panels) == 1)


def curves_section(comparison: Comparison) -> str:
    runs = list(reversed(comparison.runs))  # the best are drawn last, on top
    meta_lines, validations = [], {}
    for run in runs:
        steps, losses = series(run.rows, "meta_loss")
        steps, _, middle, _ = binned(steps, losses, bins=100)
        if len(steps):
            meta_lines.append(Line(run.style, steps, middle))
        for multiple, (at, values) in _medians(run).items():
            validations.setdefault(multiple, []).append(Line(run.style, at, values))
    if not meta_lines:
        return "<section><h2>Meta-training</h2><p>No meta-step has been recorded yet.</p></section>"
    panels = [Panel("Meta-loss", "meta-step", "meta-loss", meta_lines)]
    # The shortest and the longest horizon of those at which most runs were validated.
    common = max(len(lines) for lines in validations.values()) if validations else 0
    shown = sorted(multiple for multiple, lines in validations.items() if len(lines) == common)
    for multiple in dict.fromkeys((*shown[:1], *shown[-1:])):
        panels.append(
            Panel(f"Validation at {multiple}× the horizon", "meta-step", "median final loss", validations[multiple])
        )
    caption = (
        "The meta-loss: medians of neighbouring meta-steps. Validation: the median loss at the end of runs on held-out "
        "tasks; of φ averaged over meta-steps where a run averages. Runs that differ in the seed alone are drawn alike."
    )
    label = "Meta-loss and validation losses of the runs against the meta-step; the data stand in the tables below."
    tables = _meta_losses(comparison) + _validations(comparison, sorted(validations))
    key = legend(shown_groups(comparison))
    return f"<section id=curves><h2>Meta-training</h2>{_figure(panels, 'c', label, key, caption)}{tables}</section>"


def _meta_losses(comparison: Comparison) -> str:
    rows = []
    for run in comparison.runs:
        steps, losses = series(run.rows, "meta_loss")
        steps, _, middle, _ = binned(steps, losses, bins=10)
        rows += [[_name(run), f"{step:,.0f}", number(loss)] for step, loss in zip(steps, middle, strict=True)]
    return details_table("Meta-losses as numbers", ["Run", "Meta-step", "Meta-loss, median"], rows)


def _validations(comparison: Comparison, multiples: Sequence[int]) -> str:
    rows = []
    for run in comparison.runs:
        held = {
            (int(step), multiple): value
            for multiple, (steps, values) in _medians(run).items()
            for step, value in zip(steps, values, strict=True)
        }
        for step in sorted({step for step, _ in held}):
            rows.append([_name(run), f"{step:,}", *(number(held.get((step, multiple))) for multiple in multiples)])
    columns = ["Run", "Meta-step", *(f"median at {multiple}×" for multiple in multiples)]
    return details_table("Validations as numbers", columns, rows) if rows else ""


def _medians(run: ComparedRun) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Multiple of the horizon -> (meta-steps, medians); of φ averaged over meta-steps where the run averages."""
    found = validation_series(run.rows) | validation_series(run.rows, "validation_ema")
    return {int(multiple.rstrip("x")): line for (multiple, part), line in found.items() if part == "median"}


def _name(run: ComparedRun) -> str:
    return f"<th scope=row>{escape(run.summary.name)}</th>"
