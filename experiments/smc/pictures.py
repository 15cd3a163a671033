"""The pictures of the page, from results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.smc import learned, planar
from experiments.smc.mixtures import FORWARD, LARGE, LONG, METHODS, REVERSE, ROWS, STEPS
from metaopt.report.panels import INK, frame
from metaopt.report.svg import save_png
from metaopt.tasks.energy_networks import CELLS, REACH, on_grid, points

FRAME = 3.4  # of the samples' panels
FLOOR = 1e-6  # of a regret in single precision
COLOURS = {
    "SOSMC-ULA": "#0072B2",
    "SOSMC-MALA": "#56B4E9",
    "SOSMC-RWM": "#009E73",
    "SOSMC-HMC": "#b58900",
    "ImpDiff": "#D55E00",
    "SOUL": "#CC79A7",
    "PCD": "#6b6b6b",
}
DASHES = {name: "-" if name.startswith("SOSMC") else (0, (5, 1.5)) for name in METHODS}


def draw(record: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    shown = {name: {part: held["found"] for part, held in parts.items()} for name, parts in record.items()}
    rows = {name: shown[name] for name in ROWS if "SOSMC-ULA" in shown.get(name, {}) and "ImpDiff" in shown[name]}
    dual = [f"dual, smooth, {kl}" for kl in (FORWARD, REVERSE) if f"dual, smooth, {kl}" in rows]
    if dual:
        _cycle({name: rows[name] for name in dual}, folder / "cycle.png")
        _density({name: rows[name] for name in dual}, folder / "density.png")
    watched = [name for name in (f"dual, smooth, {FORWARD}", f"hexagon, tight, {REVERSE}") if name in rows]
    if watched:
        _ess({name: rows[name] for name in watched}, folder / "ess.png")
    plain = [name for name in rows if not name.startswith((LARGE, LONG))]
    if plain:
        _gradients({name: rows[name] for name in plain}, folder / "gradients.png")
    fits = {data: shown[f"energy model, {data}"] for data in planar.DATA if f"energy model, {data}" in shown}
    if fits:
        _samples(fits, folder / "samples.png")
    if len(shown.get("energy model, tuned", {})) > len(planar.TUNING):
        _beta(shown, folder / "beta.png")
    arms = {name: shown[f"learned, {name}"] for name in learned.ORACLES if "RL" in shown.get(f"learned, {name}", {})}
    if arms:
        _learned(arms, folder / "learned.png")


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10.5, color=INK)


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        if axes.get_label() != "image":
            frame(axes)
    save_png(figure, path)


def _cycle(rows: Mapping[str, Any], path: Path) -> None:
    """Of the first seed: the better mode's weight above, exact and reported reward below."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = figure.subplots(2, len(rows), squeeze=False, sharex=True)
    for (name, parts), (above, below) in zip(rows.items(), panels.T, strict=True):
        best = parts["optimum"]
        exact = lambda weight, best=best: weight * max(best["modes"]) + (1 - weight) * min(best["modes"])  # noqa: E731
        for method in ("SOUL", "ImpDiff", "SOSMC-ULA"):
            if method in parts:
                curve = parts[method]["curves"]
                weight, style = np.array(curve["first"]["likely"]), {"color": COLOURS[method], "linewidth": 1.1}
                above.plot(curve["steps"], weight, label=method, **style)
                if method != "SOUL":
                    below.plot(curve["steps"], exact(weight), label=f"{method}, exact", **style)
                    said = curve["first"]["said"]
                    below.plot(
                        curve["steps"], said, ":", label=f"{method}, particles' word", **{**style, "linewidth": 1.4}
                    )
        for axes, value in ((above, max(best["weights"])), (below, best["reward"])):
            axes.axhline(value, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="optimum")
        above.set_ylim(-0.03, 1.05)
        _title(above, f"{name}: weight of the better mode")
        _title(below, "E R")
        below.set_xlabel("outer step")
    for line in panels:
        line[-1].legend(frameon=False, fontsize=8.5, loc="lower right")
    _save(figure, path)


def _density(rows: Mapping[str, Any], path: Path) -> None:
    """The exact density of the first coordinate, by step, of the first seed."""
    names = ("SOSMC-ULA", "ImpDiff")
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    panels = figure.subplots(len(rows), len(names), squeeze=False, sharex=True, sharey=True)
    x = np.linspace(-6, 6, 200)
    left, right = (np.exp(-((x - centre) ** 2)) / np.sqrt(np.pi) for centre in (-3, 3))
    image = None
    for (name, parts), line in zip(rows.items(), panels, strict=True):
        for method, axes in zip(names, line, strict=True):
            axes.set_label("image")
            weight = np.array([0.5, *parts[method]["curves"]["first"]["likely"]])
            density = weight * right[:, None] + (1 - weight) * left[:, None]
            image = axes.imshow(
                density, origin="lower", aspect="auto", extent=(0, STEPS, x[0], x[-1]), cmap="Blues", vmin=0, vmax=0.56
            )
            _title(axes, f"{method}, {name}")
            axes.tick_params(labelsize=9, color=INK, labelcolor=INK)
    for axes in panels[-1]:
        axes.set_xlabel("outer step", color=INK)
    for axes in panels[:, 0]:
        axes.set_ylabel("x₁", color=INK)
    assert image is not None
    bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.01, aspect=30, label="density of π_θ")
    bar.ax.set_label("image")
    _save(figure, path)


def _ess(rows: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    panels = figure.subplots(2, len(rows), squeeze=False, sharex=True)
    for (name, parts), (above, below) in zip(rows.items(), panels.T, strict=True):
        for method in METHODS:
            if method.startswith("SOSMC") and method in parts:
                curve, style = parts[method]["curves"], {"color": COLOURS[method], "linewidth": 1.4}
                above.plot(parts[method]["steps"], curve["ess"], label=method, **style)
                below.plot(parts[method]["steps"], curve["step_size"], label=method, **style)
        above.axhline(0.9, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="resampled below")
        above.set(xscale="log")
        below.set(yscale="log", xlabel="outer step")
        _title(above, f"{name}: ESS/N, mean over seeds")
        _title(below, "step size h")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9
    )
    _save(figure, path)


def _gradients(rows: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 3.1 * -(-len(rows) // 2) + 0.4), layout="constrained")
    panels = figure.subplots(-(-len(rows) // 2), 2, squeeze=False, sharex=True).ravel()
    for axes in panels[len(rows) :]:
        axes.remove()
    for (name, parts), axes in zip(rows.items(), panels, strict=False):
        for method in METHODS:
            if method in parts and parts[method]["gradients"]:
                entry = parts[method]
                spent = entry["gradients"] * np.array(entry["steps"])
                style = {"color": COLOURS[method], "linestyle": DASHES[method], "linewidth": 1.5}
                axes.plot(spent, entry["curves"]["reward"], label=method, **style)
        axes.axhline(parts["optimum"]["reward"], color=INK, linewidth=1, linestyle=(0, (2, 2)), label="optimum")
        axes.set(xscale="log")
        _title(axes, f"{name}: exact E R")
    for axes in panels[max(0, len(rows) - 2) : len(rows)]:
        axes.set_xlabel("energy gradients")
        axes.tick_params(labelbottom=True)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False, fontsize=9
    )
    _save(figure, path)


def _samples(fits: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(9, 3.0 * len(planar.FITTING) + 0.3), layout="constrained")
    panels = figure.subplots(len(planar.FITTING), len(planar.DATA), squeeze=False, sharex=True, sharey=True)
    for column, data in enumerate(planar.DATA):
        real = points(data, planar.SHOWN, 2)
        for row, method in enumerate(planar.FITTING):
            axes = panels[row, column]
            axes.plot(*real.T, ".", color=INK, markersize=2.5, alpha=0.6, label="data")
            if method in fits.get(data, {}):
                entry = fits[data][method]
                drawn = np.array(entry["samples"])
                axes.plot(*drawn.T, ".", color="#D55E00", markersize=2.5, alpha=0.7, label="model")
                _title(axes, f"{method}, {data}")
                inside = np.mean(np.all(np.abs(drawn) < FRAME, axis=1))
                if inside < 0.99:
                    axes.text(0, 3.0, f"{inside:.0%} within the frame", ha="center", fontsize=9, color=INK)
            axes.set(xlim=(-FRAME, FRAME), ylim=(-FRAME, FRAME), aspect="equal")
    panels[0, 0].legend(frameon=False, fontsize=8.5, loc="lower left", markerscale=3)
    _save(figure, path)


def _beta(shown: Mapping[str, Any], path: Path) -> None:
    parts = shown["energy model, tuned"]
    laws = [("fitted", shown["energy model, circles"]["SOSMC-ULA"]["theta"])]
    for beta in sorted((*planar.BETAS, planar.BETA), reverse=True):
        part = "SOSMC-ULA" if beta == planar.BETA else f"β = {beta:g}"
        if part in parts:
            laws.append((f"β = {beta:g}", parts[part]["theta"]))
    figure = Figure(figsize=(2.3 * len(laws), 2.7), layout="constrained")
    for axes, (name, theta) in zip(figure.subplots(1, len(laws), sharey=True), laws, strict=True):
        axes.set_label("image")
        density = np.exp(np.asarray(on_grid(planar.in_layers(theta)).log_probabilities))
        extent = (-REACH, REACH, -REACH, REACH)
        axes.imshow(density.reshape(CELLS, CELLS), origin="lower", extent=extent, cmap="Blues")
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
        axes.tick_params(labelsize=9, color=INK, labelcolor=INK)
        _title(axes, name)
    _save(figure, path)


def _learned(arms: Mapping[str, Any], path: Path) -> None:
    colours = {"BP": "#0072B2", "RL": "#D55E00", "ES": "#009E73"}
    colours |= {"BP, exact meta-loss": "#56B4E9", "RL, exact meta-loss": "#b58900"}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
    for (name, parts), axes in zip(arms.items(), panels, strict=True):
        for multiple, dash in zip(learned.MULTIPLES, ((0, (2, 1.5)), "-"), strict=True):
            entry = parts["Adam"][f"for {multiple}x"]
            label = f"Adam, tuned for {multiple} T"
            axes.plot(
                entry["steps"],
                np.maximum(entry["curve"][0], FLOOR),
                color=INK,
                linestyle=dash,
                linewidth=1.3,
                label=label,
            )
        for arm, colour in colours.items():
            if arm in parts:
                curve = np.maximum(np.array(parts[arm]["curve"], float), FLOOR)
                dash = (0, (5, 1.5)) if "exact" in arm else "-"
                middle, steps = np.median(curve, axis=0), parts[arm]["steps"]
                axes.plot(steps, middle, color=colour, linewidth=1.6, linestyle=dash, label=arm)
                axes.fill_between(
                    parts[arm]["steps"], curve.min(0), curve.max(0), color=colour, alpha=0.18, linewidth=0
                )
        axes.axvline(learned.HORIZON, color=INK, linewidth=0.8, linestyle=":")
        axes.set(yscale="log", xlabel="inner step")
        _title(axes, name)
    panels[0].set_ylabel("median exact regret")
    figure.legend(
        *panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False, fontsize=8.5
    )
    _save(figure, path)
