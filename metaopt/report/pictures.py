"""Pictures of a run: its evaluations, and its meta-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metaopt.report.panels import (
    BASELINE_COLOURS,
    DASHES,
    LEARNED,
    LEARNED_DASHES,
    MARKERS,
    Line,
    Panel,
    Style,
    panels_figure,
)
from metaopt.report.series import binned, is_above_bound, numbers, series, validation_series
from metaopt.runs import tables


def styles(result: Mapping[str, Any]) -> dict[str, Style]:
    """name -> style for an entry of evaluation.json; a baseline's label holds its tuned learning rate."""
    chosen: dict[str, Style] = {}
    counts = {"learned": 0, "baseline": 0}
    for name, record in result["optimizers"].items():
        kind = "learned" if record.get("kind") == "learned" else "baseline"
        index = counts[kind]
        counts[kind] += 1
        setting = tables.setting(record)
        label = f"{name}, {setting}" if setting else name
        size = len(LEARNED if kind == "learned" else BASELINE_COLOURS)
        # The first learned one is solid; others are told apart by more than their colour.
        dashes = LEARNED_DASHES if kind == "learned" else DASHES
        dash = dashes[index % len(dashes)]
        chosen[name] = Style(label, f"{kind}-{index % size}", dash, width=2.0 if kind == "learned" else 1.3)
    return chosen


def validation_lines(
    rows: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str, str], tuple[Style, tuple[np.ndarray, np.ndarray]]]:
    """(prefix, multiple, statistic) -> (style, (meta-steps, losses)): a colour and a marker for each multiple.

    The median is solid and the mean dotted. Where φ is averaged over meta-steps the averaged φ's median is the solid
    one, φ's own is dashed, and there are no means.
    """
    found = {("validation", *key): line for key, line in validation_series(rows).items()}
    averaged = {("validation_ema", *key): line for key, line in validation_series(rows, "validation_ema").items()}
    if averaged:
        found = {key: line for key, line in {**averaged, **found}.items() if key[2] == "median"}
    keys = sorted(found, key=lambda key: (int(key[1].rstrip("x")), key[2] != "median", key[0] == "validation"))
    order = list(dict.fromkeys(multiple for _, multiple, _ in keys))
    chosen = {}
    for prefix, multiple, statistic in keys:
        index = order.index(multiple)
        dash = ":" if statistic == "mean" else "--" if averaged and prefix == "validation" else "-"
        words = "the training horizon" if multiple == "1x" else f"{multiple.rstrip('x')} times it"
        label = f"{statistic} at {words}" + (", averaged φ" if prefix == "validation_ema" else "")
        marker, role, first = MARKERS[index % len(MARKERS)], f"learned-{index % len(LEARNED)}", dash == "-"
        style = Style(label, role, dash, marker, 1.8 if first else 1.1, hollow=not first)
        chosen[prefix, multiple, statistic] = style, found[prefix, multiple, statistic]
    return chosen


def validation_styles(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], Style]:
    """The styles of `validation_lines`."""
    return {key: style for key, (style, _) in validation_lines(rows).items()}


def evaluation_figure(result: Mapping[str, Any], *, narrow: bool = False, legend: bool = True) -> Figure:
    """Mean over tasks, and median with its interquartile band, against the inner step; T is marked by a dashed line."""
    drawn, horizon, trained = styles(result), result["horizon"], result.get("train_horizon")
    curves = {
        name: {part: numbers(values) for part, values in record["curve"].items()}
        for name, record in result["optimizers"].items()
    }
    banded = {name for name, record in result["optimizers"].items() if record.get("kind") == "learned"}
    banded.add(result.get("best_baseline"))
    means = [Line(drawn[name], curve["steps"], curve["mean"]) for name, curve in curves.items()]
    medians = [
        Line(
            drawn[name],
            curve["steps"],
            curve["median"],
            band=(curve["q25"], curve["q75"]) if name in banded else None,
        )
        for name, curve in curves.items()
    ]
    far = bool(trained) and horizon > 20 * trained
    recorded = [step for curve in curves.values() for step in curve["steps"] if step > 0]
    what = "loss above its bound" if is_above_bound(result) else "loss"
    panels = [
        Panel(
            title,
            "inner step",
            words,
            lines,
            log_x=far,
            x_limits=(min(recorded, default=1) if far else 0, horizon),
            mark=(trained, f"trained to {trained:,}") if trained and trained <= horizon else None,
            start=float(lines[0].y[0]) if lines and len(lines[0].y) else 1.0,
        )
        for title, words, lines in (
            ("Mean over tasks", what, means),
            ("Median and interquartile band", what, medians),
        )
    ]
    return panels_figure(panels, narrow=narrow, legend=legend)


def meta_training_figure(rows: Sequence[Mapping[str, Any]], *, narrow: bool = False, legend: bool = True) -> Figure:
    """The meta-loss against the meta-step, and the validation losses where there are any."""
    steps, low, middle, high = binned(*series(rows, "meta_loss"))
    style = Style("meta-loss (median, and 10 to 90%)", "learned-0", "-")
    validation = [Line(style, at, values) for style, (at, values) in validation_lines(rows).values()]
    panels = []
    if len(steps) or not validation:  # gradients may come without values
        panels = [Panel("Meta-loss", "meta-step", "meta-loss", [Line(style, steps, middle, band=(low, high))])]
    if validation:
        panels.append(Panel("Validation: final loss on held-out tasks", "meta-step", "loss", validation))
    return panels_figure(panels, narrow=narrow, legend=legend and bool(validation))
