"""Pictures of the doctor's figures, from the JSON that `diagnose` gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metaopt.report.panels import (
    COLOURS,
    INK,
    LEARNED,
    LEARNED_DASHES,
    MARKERS,
    frame,
    mark_lone,
    plain,
    set_log_ticks,
    write_title,
)
from metaopt.report.series import numbers

TRAINING, OTHER = "learned-1", "learned-0"
GATE_NAMES = {"i": "input", "f": "forget", "g": "cell", "o": "output"}  # of an LSTM
SMALLEST = 1e-10  # magnitudes below count as this on a logarithmic axis


def doctor_figures(result: Mapping[str, Any], *, narrow: bool = False) -> dict[str, Figure]:
    """Name -> figure: estimators, jacobian, inputs, gates, steps; what would be empty is left out."""
    drawn = {
        "estimators": _estimators(result, narrow),
        "jacobian": _jacobian(result, narrow),
        "inputs": _inputs(result, narrow),
        "gates": _gates(result, narrow),
        "steps": _steps(result, narrow),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


CAPTIONS = {
    "estimators": "Meta-gradients on the frozen φ. Left: the cosine of each estimator's expectation with the reference "
    "of the same horizon (a bar is two standard errors; none where the draws do not resolve it). Right: the "
    "signal-to-noise ratio of one meta-step. The run's own estimator is bold.",
    "jacobian": "Growth a step of the unroll's Jacobian along training runs: the spectral radius of products of it, "
    "median over tasks, the thin line the largest. Solid: with second derivatives; dashed: what a first-order "
    "estimator back-propagates through. Above 1, meta-gradients explode with the window.",
    "inputs": "What the network reads: magnitudes from the 1% to the 99% quantile, a dot at the median; training tasks "
    "within their horizon and beyond it, and the families of the evaluation.",
    "gates": "Share of gate activations in the outer 5% of their range, on training tasks.",
    "steps": "Step lengths ‖g‖ along the runs, median over tasks with the band from 10 to 90%; the dashed line marks "
    "the training horizon.",
}


def _figure(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, columns, **options)).tolist()
    for axes in panels:
        frame(axes)
    return figure, panels


def _estimators(result: Mapping[str, Any], narrow: bool) -> Figure | None:
    entries = [entry for entry in result["estimators"] if "reason" not in entry]
    if not entries:
        return None
    labels = []
    for entry in entries:
        name, _, options = str(entry["estimator"]).partition(":")
        name = plain((entry.get("short") or name) + (f":{options}" if options else ""), 22 if narrow else 34)
        labels.append(f"{name}\n{entry['window']:,} of {entry['horizon']:,} steps")
    height = 1.2 + 0.42 * len(entries)
    noisy = any((entry["snr"] or {}).get("value") for entry in entries)
    figure, (left, *others) = _figure(4.6 if narrow else 10.0, height, 2 if noisy else 1, sharey=True)
    rows = np.arange(len(entries))
    for row, entry in zip(rows, entries, strict=True):
        colour, marker = (COLOURS[OTHER], "D") if entry.get("own") else (COLOURS[TRAINING], "o")
        cosine, snr = entry["cosine"], (entry["snr"] or {}).get("value")
        if cosine is None or entry.get("is_reference"):
            words = "not resolved" if cosine is None else "the reference"
            left.text(0.03, float(row), words, va="center", fontsize=8.5, color=INK)
        else:
            value = float(np.clip(cosine["value"], -1, 1))
            left.errorbar(value, row, xerr=2 * cosine["error"], fmt=marker, color=colour, capsize=3, markersize=5)
        if snr:
            others[0].plot(snr, row, marker, color=colour, markersize=6)
    left.set_yticks(rows, labels, fontsize=8.5)
    for label, entry in zip(left.get_yticklabels(), entries, strict=True):
        label.set_fontweight("bold" if entry.get("own") else "normal")
    left.set_ylim(len(entries) - 0.5, -0.5)
    negative = any((entry["cosine"] or {}).get("value", 0) < 0 for entry in entries)
    left.set_xlim(-1.05 if negative else 0, 1.05)
    left.axvline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    write_title(left, "Cosine")
    for right in others:
        right.axvline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        right.set_xscale("log")
        set_log_ticks(right.xaxis, 4 if narrow else 7)
        right.tick_params(labelleft=False)
        write_title(right, "Signal to noise")
    return figure


def _jacobian(result: Mapping[str, Any], narrow: bool) -> Figure | None:
    if not any(np.isfinite(numbers(entry["median"])).any() for entry in result["jacobian"]):
        return None
    figure, (axes,) = _figure(4.6 if narrow else 10.0, 3.2)
    tasks = list(dict.fromkeys(entry["task"] for entry in result["jacobian"]))
    for entry in result["jacobian"]:
        index = tasks.index(entry["task"])
        colour, marker = LEARNED[index % len(LEARNED)], MARKERS[index % len(MARKERS)]
        dash = "-" if entry["order"] == "second" else "--"
        label = f"{plain(entry['task'], 46)}, {entry['order']} order"
        axes.plot(
            entry["start"], numbers(entry["median"]), dash, color=colour, marker=marker, markersize=4, label=label
        )
        largest = numbers(entry["largest"])
        axes.plot(entry["start"], largest, dash, color=colour, linewidth=0.8, alpha=0.7)
        mark_lone(axes, entry["start"], largest, colour=colour, hollow=True, alpha=0.7)
    axes.axhline(1.0, color=INK, linewidth=1.0)
    axes.set_xlabel("inner step")
    axes.set_ylabel("spectral radius")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    write_title(axes, "Jacobian's growth a step")
    _legend(figure, axes, narrow)
    return figure


def _inputs(result: Mapping[str, Any], narrow: bool) -> Figure | None:
    inputs = result["inputs"]
    if not inputs or not inputs["tasks"]:
        return None
    names = inputs["names"]
    shown = [entry for entry in inputs["tasks"] if entry["training"]]
    # A family of the evaluation is one bar: its part within the training horizon comes first there.
    shown += [entry for entry in inputs["tasks"] if not entry["training"] and entry["steps"] == "beyond"]
    others = {entry["task"] for entry in shown if not entry["training"]}
    shown += [entry for entry in inputs["tasks"] if not entry["training"] and entry["task"] not in others]
    figure, (axes,) = _figure(4.6 if narrow else 10.0, 4.4 if narrow else 3.8)
    columns = np.arange(len(names))
    width = 0.8 / len(shown)
    trained, lowest = 0, np.inf
    for index, entry in enumerate(shown):
        magnitude = np.maximum(np.array([numbers(row) for row in entry["magnitude"]]), SMALLEST)  # [inputs, quantiles]
        colour = _shade(entry, index, trained)
        trained += entry["training"]
        hatched = entry["training"] and entry["steps"] == "beyond"
        at = columns + (index - (len(shown) - 1) / 2) * width
        low, middle, high = magnitude[:, 1], magnitude[:, 2], magnitude[:, 3]
        label = plain(entry["task"], 46) + (f", training, {entry['steps']} T" if entry["training"] else "")
        axes.bar(at, high - low, width * 0.82, bottom=low, label=label, **_fill(colour, hatched))
        axes.plot(at, middle, "o", color="white", markeredgecolor="black", markersize=3.5, markeredgewidth=0.8)
        lowest = min(lowest, float(low.min()))
    axes.set_yscale("log")
    axes.set_ylim(bottom=lowest / 2)
    set_log_ticks(axes.yaxis)
    axes.set_xticks(columns, names)
    axes.set_ylabel("magnitude")
    write_title(axes, "Range of the inputs")
    _legend(figure, axes, narrow)
    return figure


def _fill(colour: str, hatched: bool) -> dict[str, Any]:
    if not hatched:
        return {"color": colour, "linewidth": 0}
    return {"facecolor": "none", "edgecolor": colour, "hatch": "////", "linewidth": 1.0}


def _shade(entry: Mapping[str, Any], index: int, trained: int) -> str:
    if entry["training"]:
        return COLOURS[f"baseline-{3 * (trained // 2) % 5}"]  # a family's two bars differ by their hatching
    return LEARNED[(index - trained) % len(LEARNED)]


def _gates(result: Mapping[str, Any], narrow: bool) -> Figure | None:
    entries = [entry for entry in result["gates"] or () if entry["training"]]
    if max((share for entry in entries for layer in entry["layers"] for share in layer.values()), default=0) < 0.01:
        return None
    figure, (axes,) = _figure(4.6 if narrow else 10.0, 3.2)
    layers = len(entries[0]["layers"])
    places = [(layer, gate) for layer in range(layers) for gate in entries[0]["layers"][layer]]
    columns, width = np.arange(len(places)), 0.8 / len(entries)
    for index, entry in enumerate(entries):
        shares = [entry["layers"][layer][gate] for layer, gate in places]
        at = columns + (index - (len(entries) - 1) / 2) * width
        colour = LEARNED[index % len(LEARNED)]
        axes.bar(at, shares, width * 0.85, color=colour, label=f"{plain(entry['task'], 46)}, {entry['steps']} T")
    words = [f"{GATE_NAMES.get(gate, gate)}\nlayer {layer + 1}" for layer, gate in places]
    axes.set_xticks(columns, words, fontsize=7.5 if narrow else 9, rotation=90 if narrow else 0)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of activations")
    write_title(axes, "Saturated gates")
    _legend(figure, axes, narrow)
    return figure


def _steps(result: Mapping[str, Any], narrow: bool) -> Figure | None:
    if not any(np.isfinite(numbers(entry["median"])).any() for entry in result["steps"]):
        return None
    figure, (axes,) = _figure(4.6 if narrow else 10.0, 3.4)
    for index, entry in enumerate(result["steps"]):
        colour = LEARNED[index % len(LEARNED)]
        low, middle, high = (np.maximum(numbers(entry[part]), SMALLEST) for part in ("q10", "median", "q90"))
        label = plain(entry["task"], 46) + (", training" if entry["training"] else "")
        axes.plot(entry["step"], middle, color=colour, linewidth=1.8, label=label, linestyle=_dash(index))
        axes.fill_between(entry["step"], low, high, color=colour, alpha=0.15, linewidth=0)
        mark_lone(axes, entry["step"], middle, colour=colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 10 * low:  # a step length that stays is a level line, not a noisy one
        axes.set_ylim(low / 3, high * 3)
    axes.axvline(result["horizon"], color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    set_log_ticks(axes.xaxis)
    set_log_ticks(axes.yaxis)
    axes.set_xlabel("inner step")
    axes.set_ylabel("step length ‖g‖")
    write_title(axes, "Step lengths")
    _legend(figure, axes, narrow)
    return figure


def _dash(index: int) -> Any:
    return LEARNED_DASHES[index % len(LEARNED_DASHES)]


def _legend(figure: Figure, axes: Axes, narrow: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if narrow else min(len(labels), 2)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.19 * (-(-len(labels) // columns) - 1))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False,
        labelcolor=INK, fontsize=9,
    )  # fmt: skip
