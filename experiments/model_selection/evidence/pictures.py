"""The pictures of the page, from results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.model_selection.evidence import choice, recovery
from metaopt.report.panels import INK, frame
from metaopt.report.svg import save_png
from metaopt.tasks.structure import CANDIDATES, gumbel_softmax

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6b6b6b", "#b58900")
CRITERIA = dict(zip(choice.CRITERIA, COLOURS, strict=False))
CANDIDATE = dict(zip(CANDIDATES, COLOURS, strict=False))
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])  # of the simplex, on paper


def draw(record: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    shown = {part: held["found"] for part, held in record.items()}
    _linear(shown["linear"], folder / "linear.png")
    _sweep(shown["sweep"], folder / "sweep.png")
    _slides(shown["sweep"]["slides"], folder / "laws.png")
    _recovery(shown, folder / "recovery.png")
    _weights(shown["paths"], folder / "weights.png")
    _simplex(shown["paths"], folder / "simplex.png")
    _stability(shown, folder / "stability.png")
    _configurations(shown, folder / "configurations.png")


def _save(figure: Figure, path: Path) -> None:
    save_png(figure, path)


def _title(axes: Axes, words: str) -> None:
    frame(axes)
    axes.set_title(words, loc="left", fontsize=10.5, color=INK)


def _linear(rows: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    words = {
        "orthogonal": "orthogonal columns: q can be the posterior",
        "any": "columns as drawn: q is diagonal, and cannot",
    }
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), words, strict=True):
        row = rows[kind]
        for colour, (name, gap) in zip(COLOURS, row["gap"].items(), strict=False):
            axes.semilogy(row["steps"], np.maximum(gap, 1e-6), color=colour, label=name, linewidth=1.4)
        if row["least"] > 1e-5:
            axes.axhline(row["least"], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="least of a diagonal q")
        axes.set(xlabel="inner step", ylabel="log evidence - bound, nats" if kind == "orthogonal" else "")
        axes.set_ylim(1e-2, 1e4)
        _title(axes, words[kind])
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    _save(figure, path)


def _sweep(found: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    weights = np.array(found["even"]["weights"])
    left.plot(np.maximum(weights, 0.03), found["even"]["candidates"], "o-", color=COLOURS[0])
    left.set_xscale("log")
    left.set_xticks([0.03, 0.1, 1, 10], ["0", "0.1", "1", "10"])
    left.minorticks_off()
    left.set(xlabel="λ_struct towards the even law", ylabel="candidates an edge, exp(entropy)", ylim=(0.9, 3.1))
    _title(left, "towards the even law: structure is added")
    rows = found["corners"]
    bounds, evidences = ([row[name] for row in rows] for name in ("bound", "evidence"))
    ends = min(bounds) - 1, max(evidences) + 1
    right.plot(ends, ends, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    for row in rows:
        true = row["structure"] == found["truth"]
        right.plot(row["evidence"], row["bound"], "s" if true else "o", color=COLOURS[1 if true else 0], markersize=7)
    right.set(xlabel="log evidence of a structure, closed form", ylabel="bound at λ_struct towards it")
    _title(right, "towards each corner in turn (square: the teacher's)")
    _save(figure, path)


def _triangle(axes: Axes, names: tuple[str, ...]) -> None:
    axes.plot(*CORNERS[[0, 1, 2, 0]].T, color=INK, linewidth=0.9)
    for place, name, (across, up) in zip(CORNERS, names, ((0, -0.05), (0, -0.05), (0, 0.03)), strict=True):
        side = "center" if up > 0 else ("left" if place[0] == 0 else "right")
        axes.text(
            place[0] + across, place[1] + up, name, ha=side, va="bottom" if up > 0 else "top", fontsize=9, color=INK
        )
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set(xlim=(-0.08, 1.08), ylim=(-0.14, 1.0))


def _slides(rows: Any, path: Path) -> None:
    """Draws of p(Γ|h*) of the first edge, and the way of its mean logits' softmax there."""
    figure = Figure(figsize=(11, 4.0), layout="constrained")
    names = tuple(CANDIDATES)[:3]
    for axes, row in zip(figure.subplots(1, 3), rows, strict=True):
        _triangle(axes, names)
        for edge in range(recovery.EDGES):
            way, colour = np.array(row["path"])[:, edge], COLOURS[edge]
            logits = jnp.log(jnp.maximum(jnp.asarray(row["end"])[edge], 1e-12))
            noise = jax.random.gumbel(jax.random.key(edge), (400, 3))
            draws = np.asarray(gumbel_softmax(logits, noise, 0.5)) @ CORNERS
            axes.plot(*draws.T, ".", color=colour, markersize=3, alpha=0.35)
            axes.plot(*(way @ CORNERS).T, color=colour, linewidth=1.6, label=f"edge {edge + 1}")
            axes.plot(*(way[-1] @ CORNERS), "o", color=colour, markersize=8, markeredgecolor="white")
        weights = " ".join(f"{weight:g}" for weight in row["weights"])
        axes.set_title(f"λ_struct = [{weights}]", loc="left", fontsize=10.5, color=INK)
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    _save(figure, path)


def _recovery(shown: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    for axes, noise in zip(figure.subplots(1, 2, sharey=True), recovery.NOISES, strict=True):
        rows = [("all structures, by evidence", shown[f"enumeration {noise}"], COLOURS[4])]
        rows += [(f"Adam, τ = {name}", shown[f"schedule {name}, {noise}"], COLOURS[0]) for name in recovery.SCHEDULES]
        rows += [(f"{name}, τ = 2 to 0.5", row, COLOURS[1]) for name, row in shown[f"optimizers {noise}"].items()]
        for index, (_, row, colour) in enumerate(rows):
            axes.plot(row["interval"], [-index, -index], color=colour, linewidth=2)
            axes.plot([row["share"]], [-index], "o", color=colour, markersize=6)
        axes.set_yticks([-index for index in range(len(rows))], [name for name, _, _ in rows], fontsize=9)
        axes.set(xlim=(-0.03, 1.03), xlabel=f"share of {recovery.SEEDS} teachers recovered, 95%")
        _title(axes, f"noise {noise:g}")
    _save(figure, path)


def _weights(paths: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    grid = figure.subplots(3, 3, sharex=True, sharey=True)
    for row, (name, found) in zip(grid, paths.items(), strict=True):
        weights = np.array(found["weights"])[:, 0]
        steps = np.arange(len(weights)) * (recovery.HORIZON // 60)
        for edge, axes in enumerate(row):
            truth = found["truth"][0][edge]
            for index, (candidate, colour) in enumerate(list(CANDIDATE.items())[:3]):
                width = 2.6 if index == truth else 1.1
                axes.plot(steps, weights[:, edge, index], color=colour, linewidth=width, label=candidate)
            axes.set_ylim(-0.03, 1.03)
            _title(axes, f"τ = {name}, edge {edge + 1}: {list(CANDIDATES)[truth]}")
            if edge == 0:
                axes.set_ylabel("softmax of q's logits")
    for axes in grid[-1]:
        axes.set_xlabel("inner step")
    grid[0, 0].legend(frameon=False, fontsize=8, loc="center right")
    _save(figure, path)


def _simplex(paths: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 4.0), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, 3), paths.items(), strict=True):
        _triangle(axes, tuple(CANDIDATES)[:3])
        ways, truths = np.array(found["weights"]), np.array(found["truth"])
        for task in range(ways.shape[1]):
            for edge in range(ways.shape[2]):
                colour = COLOURS[truths[task][edge]]
                way = ways[:, task, edge] @ CORNERS
                axes.plot(*way.T, color=colour, linewidth=0.9, alpha=0.7)
                axes.plot(*way[-1], "o", color=colour, markersize=6, markeredgecolor="white")
        for place, colour in zip(CORNERS, COLOURS, strict=False):
            axes.plot(*place, "o", markersize=13, markerfacecolor="none", markeredgecolor=colour)
        axes.set_title(f"τ = {name}", loc="left", fontsize=10.5, color=INK)
    _save(figure, path)


def _stability(shown: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 8), layout="constrained")
    (complexity, spread_of), (error, spread) = figure.subplots(2, 2)
    degrees = np.arange(1, choice.DEGREES + 1)
    for colour, examples in zip(COLOURS, choice.SIZES, strict=False):
        fixed = shown[f"size {examples}"]["fixed"]
        for kind, dash in (("least squares", ":"), ("evidence", "-")):
            label = f"N = {examples}" if kind == "evidence" else None
            for axes, what in ((complexity, "error"), (spread_of, "spread")):
                values = [row[what] for row in fixed[kind]]
                axes.semilogy(degrees, values, dash, color=colour, linewidth=1.5, label=label)
    for axes, words in ((complexity, "mean squared error"), (spread_of, "its standard deviation over resampled data")):
        axes.set(xlabel="features (first Legendre polynomials)", ylabel=words)
        axes.set_ylim(7e-4, 3.0)
    _title(complexity, "error against complexity (dotted: least squares)")
    _title(spread_of, "spread against complexity")
    complexity.legend(frameon=False, fontsize=8, ncols=2)
    for name, colour in CRITERIA.items():
        rows = [shown[f"size {examples}"]["chosen"][name] for examples in choice.SIZES]
        for axes, what in ((error, "error"), (spread, "spread")):
            axes.loglog(choice.SIZES, [row[what] for row in rows], "o-", color=colour, markersize=4, label=name)
    for axes, words in ((error, "mean squared error"), (spread, "its standard deviation over resampled data")):
        axes.set_xticks(choice.SIZES, [str(size) for size in choice.SIZES])
        axes.minorticks_off()
        axes.set(xlabel="examples", ylabel=words)
        axes.set_ylim(bottom=7e-4)
    _title(error, "error of the chosen model against sample size")
    _title(spread, "spread of the chosen model's error")
    error.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _configurations(shown: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    grid = figure.subplots(2, 4)
    for column, name in enumerate(choice.CONFIGURATIONS):
        top, bottom = grid[:, column]
        rows = shown[name]
        for index, criterion in enumerate(choice.CRITERIA):
            row, colour = rows[criterion], CRITERIA[criterion]
            top.plot([max(row["error"] - row["spread"], 0), row["error"] + row["spread"]], [-index] * 2,
                     color=colour, linewidth=1.2)  # fmt: skip
            top.plot(row["interval"], [-index] * 2, color=colour, linewidth=4)
            top.plot(row["error"], -index, "o", color=colour, markersize=6)
        top.set_yticks([-index for index in range(5)], choice.CRITERIA if column == 0 else [""] * 5)
        top.set(xlabel="error ± spread")
        top.set_xlim(left=0)
        top.xaxis.set_major_locator(MaxNLocator(4))
        _title(top, name)
        often = np.array([rows[criterion]["often"] for criterion in choice.CRITERIA])
        bottom.imshow(often, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for i, j in np.ndindex(*often.shape):
            tone = "white" if often[i, j] > 0.6 else INK
            bottom.text(j, i, f"{100 * often[i, j]:.0f}", ha="center", va="center", fontsize=7, color=tone)
        bottom.set_yticks(range(5), choice.CRITERIA if column == 0 else [""] * 5)
        bottom.set_xticks(range(choice.FEATURES), [str(j + 1) for j in range(choice.FEATURES)])
        bottom.set(xlabel="feature, chosen in % of the data")
        frame(bottom)
        bottom.grid(False)
    _save(figure, path)
