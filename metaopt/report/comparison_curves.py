"""The curves of several runs on one page: meta-training, validation, and the best against each field."""

from __future__ import annotations

from typing import Any

import numpy as np

from metaopt.report.comparison import ComparedRun, Comparison, points, short_names, shown_groups
from metaopt.report.page import drawings
from metaopt.report.panels import Line, Panel, Style, panels_figure, plain
from metaopt.report.series import binned, series, validation_series

MOST_AXES = 6  # panels of the picture of the axes
_BEST = "best validation: median final loss"
_MEDIAN = Style("median", "baseline-2", "-")


def axes_panels(comparison: Comparison) -> list[Panel]:
    """Best validation against each axis on which there is something to see."""
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
        panels.append(Panel(short[axis], plain(axis, 46), _BEST, lines, ticks))
    return panels


def axes_picture(comparison: Comparison) -> dict[str, Any] | None:
    """Best validation against each axis; None where there is nothing to see."""
    panels = axes_panels(comparison)
    if not panels:
        return None
    label, shown = "Best validation loss against each field; the data stand in the table of runs.", panels[:MOST_AXES]
    return {
        "drawings": drawings(lambda narrow: panels_figure(shown, narrow=narrow), "a", label),
        "panels": len(shown),
        "fields": len(panels),
    }


def curves_panels(comparison: Comparison) -> list[Panel]:
    """Meta-losses, and validations at the shortest and the longest horizon; none where no meta-step is recorded yet."""
    meta_lines, validations = [], {}
    for run in reversed(comparison.runs):  # the best are drawn last, on top
        at, _, middle, _ = binned(*series(run.rows, "meta_loss"), bins=100)
        if len(at):
            meta_lines.append(Line(run.style, at, middle))
        for multiple, (at, values) in _medians(run).items():
            validations.setdefault(multiple, []).append(Line(run.style, at, values))
    if not meta_lines:
        return []
    panels = [Panel("Meta-loss", "meta-step", "median of neighbouring meta-losses", meta_lines)]
    # The shortest and the longest horizon of those at which most runs were validated.
    common = max(len(lines) for lines in validations.values()) if validations else 0
    shown = sorted(multiple for multiple, lines in validations.items() if len(lines) == common)
    for multiple in dict.fromkeys((*shown[:1], *shown[-1:])):
        title = f"Validation at {multiple}× the horizon"
        panels.append(Panel(title, "meta-step", "median final loss", validations[multiple]))
    return panels


def curves_picture(comparison: Comparison) -> dict[str, Any] | None:
    """Meta-losses and validations against the meta-step, and as numbers; None where no meta-step is recorded yet."""
    panels = curves_panels(comparison)
    if not panels:
        return None
    meta_rows = []
    for run in comparison.runs:
        at, _, middle, _ = binned(*series(run.rows, "meta_loss"), bins=10)
        meta_rows += [[run.summary.name, round(step), loss] for step, loss in zip(at, middle, strict=True)]
    validated = sorted({multiple for run in comparison.runs for multiple in _medians(run)})
    label = "Meta-loss and validation losses of the runs against the meta-step; the data stand in the tables below."
    return {
        "drawings": drawings(lambda narrow: panels_figure(panels, narrow=narrow), "c", label),
        "styles": list(shown_groups(comparison).values()),
        "panels": len(panels),
        "meta_losses": meta_rows,
        "columns": ["Run", "Meta-step", *(f"median at {multiple}×" for multiple in validated)],
        "validations": [row for run in comparison.runs for row in _validations(run, validated)],
    }


def _validations(run: ComparedRun, multiples: list[int]) -> list[list[Any]]:
    held: dict[int, dict[int, float]] = {}  # meta-step -> multiple -> median
    for multiple, (steps, values) in _medians(run).items():
        for step, value in zip(steps, values, strict=True):
            held.setdefault(int(step), {})[multiple] = float(value)
    return [[run.summary.name, step, *map(held[step].get, multiples)] for step in sorted(held)]


def _medians(run: ComparedRun) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Multiple of the horizon -> (meta-steps, medians); of φ averaged over meta-steps where the run averages."""
    found = validation_series(run.rows) | validation_series(run.rows, "validation_ema")
    return {int(multiple.rstrip("x")): line for (multiple, part), line in found.items() if part == "median"}
