"""The pictures, from results.json alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.lecture.families import FAMILIES
from experiments.lecture.measure import SCHEDULES, VIEWS, view
from experiments.lecture.search import FLOOR, GRIDS, NAMES, best_of, ratio
from metaopt.report.panels import INK, frame, set_log_ticks, write_title
from metaopt.report.series import numbers
from metaopt.report.svg import save_png

COLOURS = {
    "sgd": "#4a525b", "momentum": "#d55e00", "nesterov": "#e0a000", "adagrad": "#009e73", "rmsprop": "#56b4e9",
    "adam": "#0072b2", "adamw": "#cc79a7",
}  # fmt: skip
DASHES: dict[str, Any] = {
    "sgd": "-", "momentum": "-", "nesterov": (0, (5, 1.5)), "adagrad": "-", "rmsprop": "-", "adam": "-",
    "adamw": (0, (5, 1.5)),
}  # fmt: skip
OTHERS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e0a000", "#56b4e9", "#4a525b", "#8a5a00")


def _look(name: str, width: float = 1.7) -> dict[str, Any]:
    return {"color": COLOURS[name], "linestyle": DASHES[name], "linewidth": width, "label": NAMES[name]}


def _legend(figure: Figure, axes: Axes, columns: int = 7) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK, fontsize=10,
        handlelength=2.6,
    )  # fmt: skip


def _log_y(axes: Axes, low: float, high: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(low / 1.3, high * 1.3)
    set_log_ticks(axes.yaxis)


def _log_x(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    set_log_ticks(axes.xaxis)


def _row(count: int, width: float = 4.4, height: float = 4.3, rows: int = 1) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width * -(-count // rows), height * rows), layout="constrained")
    places = np.atleast_1d(figure.subplots(rows, -(-count // rows))).ravel()
    for axes in places:
        frame(axes)
    return figure, list(places)


# ----- the families ---------------------------------------------------------------------------------------------------


def families(record: Mapping[str, Any]) -> Figure:
    """Ratio to the best, optimizer by optimizer."""
    found = record["families"]
    table = np.array(
        [[ratio(found[where][name]["logs"], found[where][best_of(record, where)]["logs"])[0] for name in GRIDS]
         for where in FAMILIES]
    )  # fmt: skip
    figure = Figure(figsize=(9.6, 0.42 * len(FAMILIES) + 1.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, norm=LogNorm(1, 1000), cmap="YlOrRd", aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        words = f"{value:.3g}" if value < 1000 else f"{value:.0e}".replace("e+0", "e")
        light = value > 60
        axes.text(column, row, words, ha="center", va="center", fontsize=9.5, color="white" if light else INK)
    axes.set_xticks(range(len(GRIDS)), list(NAMES.values()), color=INK)
    axes.set_yticks(range(len(FAMILIES)), list(FAMILIES), color=INK)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, extend="max")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.set_label("loss over the best optimizer's", color=INK)
    return figure


def curves(record: Mapping[str, Any]) -> Figure:
    figure, places = _row(len(FAMILIES), 3.9, 3.1, rows=-(-len(FAMILIES) // 3))
    for axes, where in zip(places, FAMILIES, strict=False):
        lows, highs = [], []
        for name, found in record["families"][where].items():
            steps, median = numbers(found["steps"]), numbers(found["median"])
            median = np.maximum(median, FLOOR * median[0])
            begin = 1 if FAMILIES[where].online else 0
            axes.plot(steps[begin:], median[begin:], **_look(name, 1.5))
            lows.append(np.nanmin(median[np.isfinite(median)]))
            highs.append(median[0])
        _log_y(axes, min(lows), 1.5 * max(highs))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        write_title(axes, where)
    for axes in places[-3:]:
        axes.set_xlabel("step")
    for axes in places[::3]:
        axes.set_ylabel("median loss")
    _legend(figure, places[0])
    return figure


def rates_matter(record: Mapping[str, Any]) -> Figure:
    shown = ("ravine", "rare words", "noise", "network")
    figure, places = _row(len(shown), 3.7, 3.6)
    for axes, where in zip(places, shown, strict=True):
        for name, found in record["families"][where].items():
            axes.plot(numbers(found["rates"]), numbers(found["by_rate"]), **_look(name))
        _log_x(axes, 1e-3, 1e2)
        low = min(min(found["by_rate"]) for found in record["families"][where].values())
        _log_y(axes, low, 10.0)
        axes.set_xlabel("rate")
        write_title(axes, where)
    places[0].set_ylabel("loss at the end, over that at the start")
    _legend(figure, places[0])
    return figure


# ----- landscapes -----------------------------------------------------------------------------------------------------


def _heights(axes: Axes, name: str) -> None:
    (left, right, low, high), start = VIEWS[name]
    family = view(name)
    x, y = np.linspace(left, right, 161), np.linspace(low, high, 161)
    points = jnp.stack(jnp.meshgrid(jnp.asarray(x), jnp.asarray(y)), axis=-1)
    loss = np.asarray(jax.vmap(jax.vmap(lambda point: family.loss(point, family.data, ())))(points))
    axes.grid(False)
    axes.contour(x, y, np.log10(np.maximum(loss, 1e-3)), levels=14, colors=[INK], linewidths=0.6, alpha=0.3,
                 linestyles="solid")  # fmt: skip
    axes.plot(*start, "o", color=INK, markersize=6, zorder=6)
    axes.set(xlim=(left, right), ylim=(low, high))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))


def _paths(axes: Axes, name: str, paths: Iterable[tuple[Any, dict[str, Any]]]) -> None:
    _heights(axes, name)
    (left, right, low, high), _ = VIEWS[name]
    size = np.array([right - left, high - low])
    for path, look in paths:
        path = np.clip(numbers(np.ravel(path)).reshape(-1, 2), [left, low] - 3 * size, [right, high] + 3 * size)
        axes.plot(*path.T, marker=".", markersize=3.5, **look)


def landscape(record: Mapping[str, Any], name: str) -> Figure:
    found = record["landscapes"][name]
    figure, (left, middle, right) = _row(3)
    groups = {"without a rate for each parameter": tuple(GRIDS)[:3], "with one": tuple(GRIDS)[3:]}
    for axes, (title, names) in zip((left, middle), groups.items(), strict=True):
        _paths(
            axes,
            name,
            [
                (found[each]["path"], _look(each, width))
                for each, width in zip(names, (3.2, 2.2, 1.5, 1.0), strict=False)
            ],
        )
        write_title(axes, f"{name}, {title}")
    for each in GRIDS:
        loss = numbers(found[each]["loss"])
        right.plot(np.arange(1, len(loss) + 1), np.maximum(loss, 1e-8), **_look(each))
    highest = max(np.nanmax(numbers(entry["loss"])[:3]) for entry in found.values())
    lowest = min(np.nanmin(numbers(entry["loss"])) for entry in found.values())
    _log_y(right, max(lowest, 1e-8), highest)
    right.set_xlabel("step")
    write_title(right, "f")
    _legend(figure, right)
    return figure


def steps(record: Mapping[str, Any]) -> Figure:
    figure, (left, right) = _row(2, 5.4, 4.4)
    looks = [
        {"color": OTHERS[i], "linewidth": 1.4, "label": f"{entry['rate'] * 50:.3g}/L"}
        for i, entry in enumerate(record["steps"]["descent"])
    ]
    drawn = list(zip(record["steps"]["descent"], looks, strict=True))
    _paths(left, "ravine", [(entry["path"][:40], look) for entry, look in drawn])
    write_title(left, "gradient descent in the ravine, 40 steps")
    for entry, look in drawn:
        loss = numbers(entry["loss"])
        right.plot(np.arange(1, len(loss) + 1), loss, **look)
    _log_y(right, 1e-4, 1e3)
    right.set_xlabel("step")
    write_title(right, "f")
    right.legend(frameon=False, title="rate, L = 50", loc="lower left")
    return figure


# ----- parts ----------------------------------------------------------------------------------------------------------


def batches(record: Mapping[str, Any]) -> Figure:
    figure, places = _row(2, 5.4, 4.3)
    titles = {"steps": "at equal steps", "examples": "at equal gradients of examples"}
    for axes, (budget, title) in zip(places, titles.items(), strict=True):
        for colour, (name, found) in zip(OTHERS, record["batches"].items(), strict=False):
            entry = found[budget]
            axes.plot(numbers(entry[budget]), numbers(entry["mean"]), color=colour, linewidth=1.7,
                      label=f"batch {name}", marker=".", markersize=4)  # fmt: skip
        values = np.concatenate([numbers(found[budget]["mean"]) for found in record["batches"].values()])
        _log_y(axes, float(values.min()), float(values[0]))
        axes.set_xlabel("step" if budget == "steps" else "gradients of examples")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        write_title(axes, title)
    places[0].set_ylabel("training loss, digits")
    _legend(figure, places[0], 3)
    return figure


def nesterov(record: Mapping[str, Any]) -> Figure:
    figure, places = _row(2, 5.0, 4.0)
    found = record["nesterov"]
    titles = {"end": "f at the end, over the start", "rise": "all rises of f, over the start"}
    for axes, (part, title) in zip(places, titles.items(), strict=True):
        for name in ("momentum", "nesterov"):
            axes.plot(numbers(found["rates"]), np.clip(numbers(found[name][part]), 1e-12, 1e3), **_look(name))
        values = np.concatenate([numbers(found[name][part]) for name in ("momentum", "nesterov")])
        _log_y(axes, max(float(np.nanmin(values)), 1e-9), 10.0)
        axes.set_xlabel("rate, of 1/L")
        write_title(axes, title)
    _legend(figure, places[0], 2)
    return figure


def rates(record: Mapping[str, Any]) -> Figure:
    figure, (words, *times) = _row(3, 4.3, 3.9)
    for name, found in record["rates"]["words"].items():
        values = numbers(found["rate"])
        words.plot(numbers(found["frequency"]), values / values[0], marker="o", markersize=4, **_look(name))
    _log_x(words, 4e-3, 0.7)
    _log_y(words, 0.7, 20)
    words.set_xlabel("frequency of the word")
    write_title(words, "rate, over that of the commonest")
    for axes, (where, found) in zip(times, record["rates"]["time"].items(), strict=True):
        every = []
        for name in ("adagrad", "rmsprop"):
            values = numbers(found[name])
            axes.plot(numbers(found["steps"]), values, **_look(name))
            every.append(values)
        _log_x(axes, 1, found["steps"][-1])
        _log_y(axes, float(np.min(every)), float(np.max(every)))
        axes.set_xlabel("step")
        write_title(axes, f"step over gradient, {where}")
    _legend(figure, words, 3)
    return figure


LABELS = {"penalty": "penalty in the loss", "decoupled": "AdamW"}


def decay(record: Mapping[str, Any]) -> Figure:
    figure, places = _row(3, 4.5, 4.0)
    found = record["decay"]
    tables = {name: np.asarray(found[name]["test"], float).mean(axis=-1) for name in LABELS}
    low = min(table.min() for table in tables.values())
    for axes, (name, table) in zip(places, tables.items(), strict=False):
        axes.grid(False)
        axes.imshow(table, norm=LogNorm(low, 4 * low), cmap="YlOrRd", aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8.5,
                      color="white" if value > 2.2 * low else INK)  # fmt: skip
        words = [f"{value:g}".removeprefix("0") or "0" for value in found["decays"]]
        axes.set_xticks(range(len(words)), words, fontsize=8.5)
        axes.set_yticks(range(len(found["rates"])), [f"{value:g}" for value in found["rates"]])
        axes.set(xlabel="decay λ", ylabel="rate")
        write_title(axes, f"test loss, {LABELS[name]}")
    alone = found["alone"]
    for colour, name in zip(OTHERS, tables, strict=False):
        places[2].plot(numbers(alone["sizes"]), numbers(alone[name]), color=colour, marker="o", label=LABELS[name])
    _log_x(places[2], 5e-4, 20)
    places[2].set(xlabel="size of the gradients", ylim=(-0.05, 1.1))
    places[2].legend(frameon=False)
    write_title(places[2], "left of a weight after 1,000 steps")
    return figure


def schedules(record: Mapping[str, Any]) -> Figure:
    figure, places = _row(3, 4.5, 4.0)
    found = record["schedules"]
    relative = found["relative"]
    names = list(SCHEDULES)
    for colour, name in zip(OTHERS, names, strict=True):
        places[0].plot(numbers(relative["steps"]), numbers(relative[name]), color=colour, label=name)
        for axes, where in zip(places[1:], ("noise", "network"), strict=True):
            curve = numbers(found[where][name]["median"])
            axes.plot(numbers(found[where]["steps"]), curve, color=colour, linewidth=1.5)
    places[0].set(xlabel="step", ylim=(-0.03, 1.05))
    write_title(places[0], "rate, of its largest")
    for axes, where in zip(places[1:], ("noise", "network"), strict=True):
        values = np.concatenate([numbers(found[where][name]["median"]) for name in names])
        _log_y(axes, float(values.min()), float(values[0]))
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        write_title(axes, f"{where}, {NAMES[found[where]['optimizer']]}: median loss")
    _legend(figure, places[0], 8)
    return figure


def stopping(record: Mapping[str, Any]) -> Figure:
    figure, (left, right) = _row(2, 5.0, 3.9)
    found = record["stopping"]
    for colour, (name, rows) in zip(OTHERS, found["runs"].items(), strict=False):
        places = range(len(rows))
        left.plot(places, [row["loss"][1] for row in rows], color=colour, marker="o", label=f"{name}, restored")
        left.plot(places, [row["loss"][0] for row in rows], color=colour, linestyle=":", label=f"{name}, at the end")
        right.plot(places, [row["saved"] for row in rows], color=colour, marker="o")
    for axes, title in ((left, "test loss"), (right, "share of the steps saved")):
        axes.set_xticks(range(len(rows)), [str(row["patience"]) for row in rows])  # pyright: ignore
        axes.set_xlabel("patience, checks every 10 steps")
        write_title(axes, title)
    right.set_ylim(0, 1)
    _legend(figure, left, 3)
    return figure


def draw(record: Mapping[str, Any], folder: Path) -> None:
    """Every picture whose part has been measured."""
    folder.mkdir(exist_ok=True)
    for make in (families, curves, rates_matter, steps, batches, nesterov, rates, decay, schedules, stopping):
        save_png(make(record), folder / f"{make.__name__}.png")
    for name in VIEWS:
        save_png(landscape(record, name), folder / f"landscape_{name.replace(' ', '_')}.png")
