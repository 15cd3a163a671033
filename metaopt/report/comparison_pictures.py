"""Pictures of several runs: lines told apart by colour, dash and marker, a panel for each quantity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from metaopt.report.pictures import (
    COLOURS,
    INK,
    LEARNED,
    LEARNED_DASHES,
    MARKERS,
    Style,
    draw_curve,
    frame,
    maybe_log_y,
)
from metaopt.report.words import shortened

MOST_STYLES = 10  # more lines than this cannot be told apart: the others are grey
OTHERS = Style("others", "baseline-3", "-")
BASELINE = Style("best baseline", "baseline-0", "--", "o")


class Line(NamedTuple):
    """One line of a panel."""

    style: Style
    x: np.ndarray
    y: np.ndarray
    joined: bool = True  # False: points alone


class Panel(NamedTuple):
    """What one pair of axes shows."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    ticks: Sequence[tuple[float, str]] | None = None  # (place, words) along x; None: whole numbers
    log_x: bool = False


def run_style(index: int, label: str) -> Style:
    """The index-th of `MOST_STYLES` ways to draw a run; with the next colour come another dash and another marker."""
    if index >= MOST_STYLES:
        return OTHERS._replace(label=label)
    colour = index % len(LEARNED)
    dash = LEARNED_DASHES[(index + index // len(LEARNED)) % len(LEARNED_DASHES)]
    return Style(label, f"learned-{colour}", dash, MARKERS[(index + index // len(LEARNED)) % len(MARKERS)])


def panels_figure(panels: Sequence[Panel], *, narrow: bool = False) -> Figure:
    """The panels beside one another, at most three to a row; below one another for a phone."""
    columns = 1 if narrow else min(3, len(panels)) if len(panels) != 4 else 2
    rows = -(-len(panels) // columns)
    size = (4.6, 3.3 * rows) if narrow else (6.2, 3.4) if columns == 1 else (10.0, (3.9 if columns < 3 else 3.3) * rows)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.06, wspace=0.04))
    places = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, panel in zip(places, panels, strict=False):
        _draw(axes, panel)
    for axes in places[len(panels) :]:
        axes.remove()
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    frame(axes)
    if panel.log_x:
        axes.set_xscale("log")
    for line in panel.lines:
        _line(axes, line)
    values = np.concatenate([line.y for line in panel.lines] or [np.ones(1)])
    maybe_log_y(axes, values)
    axes.set_title(shortened(panel.title), loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.ticks is None:
        if not panel.log_x:
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        return
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    most = max(6, 32 // max(1, len(panel.ticks)))  # letters that fit
    axes.set_xticks([place for place, _ in panel.ticks], [shortened(words, most) for _, words in panel.ticks])
    if not panel.log_x:
        axes.margins(x=0.12)


def _line(axes: Axes, line: Line) -> None:
    style, grey = line.style, line.style.role.startswith("baseline")
    look: dict[str, Any] = {"color": COLOURS[style.role], "markersize": 5, "zorder": 2 if grey else 4}
    if line.joined:
        look |= {"linestyle": style.dash, "linewidth": 1.2 if grey else 1.7}
        # Markers on some of the points: they tell lines apart, and must not hide them.
        look["markevery"] = max(1, len(line.x) // 8)
    else:
        look["linestyle"] = "none"
    draw_curve(axes, line.x, line.y, marker=style.marker if style.marker or line.joined else ".", **look)
