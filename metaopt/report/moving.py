"""Paths over a landscape of two parameters: a picture whose paths the page's script can draw step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metaopt.evaluation.landscape import level_lines
from metaopt.report.panels import INK, Style, frame
from metaopt.report.series import numbers
from metaopt.report.svg import to_svg

SIZE = (5.4, 5.2)  # inches
UNIT = 1000  # of the paths' coordinates, a side of the landscape


def level_map(axes: Axes, view: Mapping[str, Any]) -> None:
    """Level lines of the loss, the lower the stronger, on axes of equal scale."""
    frame(axes)
    axes.grid(False)
    x, y = numbers(view["x"]), numbers(view["y"])
    heights = np.array([numbers(row) for row in view["loss"]])
    levels = level_lines(heights)
    for level, alpha in zip(levels, np.linspace(0.75, 0.2, len(levels)), strict=True):
        if np.nanmin(heights) < level < np.nanmax(heights):
            axes.contour(x, y, heights, levels=[level], colors=[INK], linewidths=0.7, alpha=alpha, linestyles="solid")
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel="first parameter", ylabel="second")
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))


def moving(result: Mapping[str, Any], styles: Mapping[str, Style], prefix: str) -> dict[str, Any] | None:
    """What the page shows of an evaluation's landscape: the drawing, paths whole, and the steps of their points.

    Without a script, on paper, and until the button is pressed every path is there from start to end.
    """
    view = result.get("landscape")
    if not view or not set(view["paths"]) <= set(styles):
        return None
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    level_map(axes, view)
    words = f"Paths on {result['task']} over {result['horizon']} steps, from one start."
    drawn = to_svg(figure, prefix=prefix, description=words)
    box, (width, height) = axes.get_position(), 72 * np.array(SIZE)
    place = (box.x0 * width, (1 - box.y1) * height, box.width * width, box.height * height)
    # A picture within the picture, which cuts off what leaves it. The first is drawn last, over the others.
    lines = "".join(_path(view, path, styles[name]) for name, path in reversed(view["paths"].items()))
    inner = 'x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"'.format(*place)
    over = f'<svg {inner} viewBox="0 0 {UNIT} {UNIT}" preserveAspectRatio="none">{lines}</svg>'
    return {
        "drawing": Markup(drawn.removesuffix("</svg>\n").removesuffix("</svg>") + over + "</svg>"),
        "steps": view["steps"],
    }


def _path(view: Mapping[str, Any], path: Any, style: Style) -> str:
    """A polyline and, after it, the dot at its end; a path ends where it is no longer finite."""
    points = np.array([numbers(point) for point in path])
    lost = np.flatnonzero(~np.isfinite(points).all(axis=1))
    points = points[: lost[0]] if len(lost) else points
    sides = [(values[0], values[-1]) for values in (numbers(view["x"]), numbers(view["y"]))]
    shares = [(points[:, i] - low) / (high - low) for i, (low, high) in enumerate(sides)]
    placed = np.stack([shares[0], 1 - shares[1]], axis=1) * UNIT
    placed = np.clip(placed, -5 * UNIT, 6 * UNIT).round().astype(int)
    text = " ".join(f"{x},{y}" for x, y in placed)
    end = f"{text.rpartition(' ')[2]} " * 2
    look = f"fill:none;stroke:var(--{style.role});vector-effect:non-scaling-stroke"
    line = f"{look};stroke-width:{style.width};stroke-dasharray:{style.dasharray};stroke-linejoin:round"
    dot = f"{look};stroke-width:8;stroke-linecap:round"
    return f'<polyline class="path" points="{text}" style="{line}"/><polyline points="{end.strip()}" style="{dot}"/>'
