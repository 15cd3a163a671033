"""The microscope's measurements as pictures, tables and a section of the report, from `inspect_optimizer`'s JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from metaopt.report.page import drawings
from metaopt.report.panels import (
    COLOURS,
    INK,
    LEARNED,
    MARKERS,
    Line,
    Panel,
    Style,
    frame,
    panels_figure,
    plain,
    write_title,
)
from metaopt.report.series import numbers, some

Row = list[Any]
PAST_SHOWN = (-2.0, 0.0, 2.0)  # past gradients of which a slice of the response is drawn, over the scale
LAGS_SHOWN = 32
_SHARES = ("β", "R²")  # which are at most 1


def inspect_figures(result: Mapping[str, Any], *, narrow: bool = False) -> dict[str, Figure]:
    """Name -> figure: response, implied, scale, noise, trajectories; what has nothing to show is left out."""
    panels = {"response": _response, "implied": _implied, "scale": _scale, "noise": _noise}
    drawn = {name: panels_figure(list(make(result)), narrow=narrow, legend=True) for name, make in panels.items()}
    for axes in drawn["implied"].axes:
        if axes.get_ylabel() in _SHARES:
            low = min(float(np.nanmin(np.asarray(line.get_ydata(), float), initial=0)) for line in axes.lines)
            axes.set_yscale("linear")
            axes.set_ylim(low - 0.05, 1.05)
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_major_formatter(ScalarFormatter())
    drawn["trajectories"] = _trajectories(result, narrow)
    return {name: figure for name, figure in drawn.items() if figure.axes}


def section(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the report shows: of each measurement its picture and its numbers; None without a result."""
    if not result:
        return None
    forms = {narrow: inspect_figures(result, narrow=narrow) for narrow in (False, True)}
    return {
        "name": result["name"],
        "figures": [
            {
                "drawings": drawings(
                    lambda narrow, name=name: forms[narrow].get(name), f"i{name}", f"{words} {_BELOW}"
                ),
                "caption": words,
                "title": title,
                "columns": columns,
                "rows": rows,
            }
            for name, words in CAPTIONS.items()
            for title, columns, rows in [tables(result)[name]]
        ],
    }


_BELOW = "The data stand in the table below."
CAPTIONS = {
    "response": "The step of one coordinate against its gradient now, for three gradients that it had in the steps "
    "before; all other gradients are noise of the same scale. Gradients are over their scale, steps over the root mean "
    "square of all coordinates' steps. Momentum and Adam respond alike at every scale.",
    "implied": "The rate (all that a gradient moves θ by, now and later) and the momentum β that explain the steps, by "
    "least squares on past gradients in windows that double. R² is the share of the steps' square that is explained; "
    "SGD and momentum reach 1. Above: on independent gradients of root mean square 1. Below: on the gradients of a "
    "classifier, as they are and with each coordinate's over its root mean square, which suits what divides by the "
    "gradient's size, as Adam does.",
    "scale": "Left: the length of a coordinate's step (root mean square) against the scale of the gradients; a level "
    "line is free of scale. Right: how much of a step comes from the gradient of so many steps ago, over the largest.",
    "noise": "A quadratic whose minimum is drawn anew each step with standard deviation σ; loss without the noise, "
    "mean over tasks. Momentum and Adam have the constant rate that ends lowest at that σ. Last: where it comes to "
    "rest.",
    "trajectories": "Paths from one start, with level lines of log f; momentum and Adam have the rate that ends "
    "lowest. The classifier's plane is spanned by the two principal axes of the inspected optimizer's own path.",
}


# ----- panels ---------------------------------------------------------------------------------------------------------


def _style(result: Mapping[str, Any], index: int, label: str) -> Style:
    """The inspected optimizer in colour, those beside it grey, whose labels differ in their rates alone."""
    if index == 0:
        return Style(plain(result["name"], 40), "learned-0", "-", "o", 2.0)
    role, dash = (("baseline-0", "--"), ("baseline-2", ":"))[index - 1]
    return Style(label.partition(",")[0], role, dash, MARKERS[index], 1.5)


def _response(result: Mapping[str, Any]) -> Iterator[Panel]:
    response, names = result["response"], result["optimizers"]
    grid = numbers(response["gradient"])
    middle = len(response["scale"]) // 2
    places = [(0, scale) for scale in range(len(response["scale"]))] + [(1, middle), (2, middle)]
    for index, scale in places:
        found, lines = response["optimizers"][index], []
        rms = numbers([found["rms"][scale]])[0]
        for order, past in enumerate(PAST_SHOWN):
            step = numbers(found["step"][scale][int(np.argmin(np.abs(grid - past)))])
            style = Style(
                f"past gradient {past:+g}".replace("-", "−").replace("+0", "0"),
                f"learned-{order}",
                "-",
                MARKERS[order],
                1.6,
            )
            lines.append(Line(style, grid, step / rms if rms > 0 else step * np.nan))
        name = names[index].partition(",")[0] if index else plain(names[0], 24)
        title = f"{name}, scale {response['scale'][scale]:g}" if index == 0 else name
        yield Panel(title, "gradient now", "step", lines)


def _implied(result: Mapping[str, Any]) -> Iterator[Panel]:
    drawn = [(result["optimizers"][i], windows) for i, windows in enumerate(result["drawn"])]
    task = [(entry["name"], entry["windows"]) for entry in result["task"]]

    def better(window: Mapping[str, Any]) -> Mapping[str, Any]:
        other = window["normalised"]
        return other if (other["r2"] or 0) > (window["r2"] or 0) else window

    for title, label, groups, value in (
        ("Rate", "rate", drawn, lambda window: window["total_rate"]),
        ("Momentum", "β", drawn, lambda window: window["beta"]),
        ("Explained", "R²", drawn, lambda window: window["r2"]),
        ("Momentum, classifier", "β", task, lambda window: better(window)["beta"]),
        ("Explained by ∇, classifier", "R²", task, lambda window: window["r2"]),
        ("By ∇ over its size", "R²", task, lambda window: window["normalised"]["r2"]),
    ):
        lines = [
            Line(
                _style(result, index, name),
                numbers(window["end"] for window in windows),
                numbers(value(window) for window in windows),
            )
            for index, (name, windows) in enumerate(groups)
        ]
        yield Panel(title, "inner step", label, lines, log_x=True)


def _scale(result: Mapping[str, Any]) -> Iterator[Panel]:
    names = result["optimizers"]
    lines = [
        Line(_style(result, index, names[index]), numbers(found["scale"]), numbers(found["length"]))
        for index, found in enumerate(result["length"])
    ]
    yield Panel("Step length and the gradient's scale", "scale of the gradients", "step", lines, log_x=True)
    lines = []
    for index, windows in enumerate(result["drawn"]):
        weights = numbers((windows[-1]["weights"] or [None] * LAGS_SHOWN)[:LAGS_SHOWN])
        largest = np.nanmax(np.abs(weights)) if np.isfinite(weights).any() else np.nan
        lines.append(Line(_style(result, index, names[index]), np.arange(len(weights)), weights / largest))
    yield Panel("Weight of past gradients", "steps ago", "weight", lines)


def _noise(result: Mapping[str, Any]) -> Iterator[Panel]:
    levels = result["noise"]
    for level in [*levels[:2], levels[-1]]:
        curves = [
            Line(_style(result, i, entry["name"])._replace(marker=None), numbers(level["step"]), numbers(entry["loss"]))
            for i, entry in enumerate(level["optimizers"])
        ]
        yield Panel(f"σ = {level['noise']:g}", "inner step", "mean loss", curves, start=float(curves[0].y[0]))
    levels = [level for level in levels if level["noise"]]
    lines = [
        Line(
            _style(result, i, entry["name"]),
            np.arange(len(levels)),
            numbers(level["optimizers"][i]["stationary"] for level in levels),
        )
        for i, entry in enumerate(levels[0]["optimizers"])
    ]
    ticks = [(i, f"{level['noise']:g}") for i, level in enumerate(levels)]
    yield Panel("Where it comes to rest", "σ", "mean loss, last tenth", lines, ticks=ticks)


def _trajectories(result: Mapping[str, Any], narrow: bool) -> Figure:
    views = [*result["landscapes"], result["network"]]
    rows, columns = (len(views), 1) if narrow else (-(-len(views) // 2), 2)
    figure = Figure(figsize=(4.6, 3.6 * rows) if narrow else (10.0, 4.0 * rows), layout="constrained")
    places = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, view in zip(places, views, strict=True):
        _paths(axes, result, view)
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2 if narrow else 3, frameon=False, labelcolor=INK,
        fontsize=10, handlelength=3,
    )  # fmt: skip
    return figure


def _paths(axes: Axes, result: Mapping[str, Any], view: Mapping[str, Any]) -> None:
    frame(axes)
    axes.grid(False)
    x, y = numbers(view["x"]), numbers(view["y"])
    heights = np.array([numbers(row) for row in view["log_loss"]])
    if np.isfinite(heights).any() and np.nanmax(heights) > np.nanmin(heights):
        axes.contour(x, y, heights, levels=9, colors=[INK], linewidths=0.7, alpha=0.35, linestyles="solid")
    limits = np.array([[x[0], x[-1]], [y[0], y[-1]]])
    size = limits[:, 1] - limits[:, 0]
    for index, entry in enumerate(view["paths"]):
        path = np.array([numbers(point) for point in entry["path"]])
        path = np.clip(path, limits[:, 0] - 3 * size, limits[:, 1] + 3 * size)  # what leaves the picture has left it
        style = _style(result, index, entry["name"])
        axes.plot(
            *path.T, linestyle=style.dash, color=COLOURS[style.role], linewidth=style.width, marker=style.marker,
            markersize=3,
            markevery=max(1, len(path) // 40), label=style.label, zorder=5 - index,
        )  # fmt: skip
    start = numbers(view["paths"][0]["path"][0])
    axes.plot(*start, "D", color=LEARNED[1], markersize=7, zorder=6)
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    explained = view.get("explained")
    axes.set_xlabel("x" if explained is None else "first principal axis of θ")
    axes.set_ylabel("y" if explained is None else "second")
    write_title(axes, view["name"] if explained is None else f"{view['name']} ({explained:.0%} of the path)")


# ----- tables ---------------------------------------------------------------------------------------------------------


def tables(result: Mapping[str, Any]) -> dict[str, tuple[str, list[str], list[Row]]]:
    """Name of a figure -> (title, columns, rows) of what it shows."""
    names, response = result["optimizers"], result["response"]
    grid = response["gradient"]
    responses = [
        [name, response["scale"][scale], past, grid[now], found["step"][scale][grid.index(past)][now]]
        for name, found in zip(names, response["optimizers"], strict=True)
        for scale in range(len(response["scale"]))
        for past in PAST_SHOWN
        for now in some(len(grid), 6)
    ]
    groups = [(name, "drawn", windows) for name, windows in zip(names, result["drawn"], strict=True)]
    groups += [(entry["name"], "classifier", entry["windows"]) for entry in result["task"]]
    implied = [
        [
            name, source, f"{window['begin']} to {window['end']}",
            *(window[part] for part in ("rate", "total_rate", "beta", "decay", "r2")),
            *(window["normalised"][part] for part in ("total_rate", "beta", "r2")),
        ]
        for name, source, windows in groups
        for window in windows
    ]  # fmt: skip
    scales = [[name, found["slope"], *found["length"]] for name, found in zip(names, result["length"], strict=True)]
    noise = [
        [entry["name"], level["noise"], entry["stationary"]]
        for level in result["noise"]
        for entry in level["optimizers"]
    ]
    ends = [
        [entry["name"], view["name"], entry["final"]]
        for view in (*result["landscapes"], result["network"])
        for entry in view["paths"]
    ]
    return {
        "response": ("Steps of a coordinate as numbers", ["Optimizer", "scale", "past", "now", "step"], responses),
        "implied": (
            "Implied rate and momentum as numbers",
            ["Optimizer", "gradients", "steps", "rate at once", "in all", "momentum", "decay a step", "R²",
             "over ∇'s size: in all", "momentum", "R²"],
            implied,
        ),
        "scale": (
            "Step lengths as numbers",
            ["Optimizer", "slope", *(f"scale {scale:g}" for scale in result["length"][0]["scale"])],
            scales,
        ),
        "noise": ("Stationary losses as numbers", ["Optimizer", "σ", "loss, last tenth"], noise),
        "trajectories": ("Ends of the paths as numbers", ["Optimizer", "landscape", "final loss"], ends),
    }  # fmt: skip
