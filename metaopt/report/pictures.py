"""Pictures of evaluations and of meta-training: PNG files, and SVG that takes its colours from the page around it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from metaopt.report.series import binned, is_above_bound, numbers, series, validation_series

# Roles and their colours on a light ground; on a page each is the CSS variable of its role. Learned optimizers in the
# palette of Okabe and Ito, which the colour-blind can tell apart; baselines grey.
INK, FAINT = "#24292f", "#d5d9de"
LEARNED = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#b58900")
BASELINE = ("#57606a", "#6f7882", "#87909a", "#9ea6af", "#4a525b")
LEARNED_DASHES: tuple[Any, ...] = ("-", (0, (7, 1.5)), (0, (7, 1.5, 1.5, 1.5)), (0, (2, 1.2)))
DASHES: tuple[Any, ...] = ("--", "-.", ":", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")
COLOURS = {
    "ink": INK,
    "faint": FAINT,
    **{f"learned-{index}": colour for index, colour in enumerate(LEARNED)},
    **{f"baseline-{index}": colour for index, colour in enumerate(BASELINE)},
}
WIDE, NARROW = (10.0, 4.0), (4.6, 6.8)  # inches: two panels beside each other, or one above the other
MOST_ABOVE_START, MOST_BELOW_START = 1e2, 1e-14  # what lies beyond these multiples of the first loss is outside


class Style(NamedTuple):
    """How an optimizer is drawn."""

    label: str
    role: str  # a key of COLOURS
    dash: Any  # matplotlib's line style
    marker: str | None = None  # matplotlib's, at some of the points

    @property
    def dasharray(self) -> str:
        """The line style as SVG has it."""
        if isinstance(self.dash, str):
            return {"-": "none", "--": "6 3", "-.": "7 2.5 1.5 2.5", ":": "1.6 2.4"}[self.dash]
        return " ".join(f"{1.6 * length:g}" for length in self.dash[1])


def styles(result: Mapping[str, Any]) -> dict[str, Style]:
    """name -> style for an entry of evaluation.json; a baseline's label holds its tuned learning rate."""
    chosen: dict[str, Style] = {}
    counts = {"learned": 0, "baseline": 0}
    for name, record in result["optimizers"].items():
        kind = "learned" if record.get("kind") == "learned" else "baseline"
        index = counts[kind]
        counts[kind] += 1
        tuned = record.get("tuned") or {}
        rate = tuned.get("learning_rate")
        label = name if rate is None else f"{name}, rate {float(rate):.2g}"
        size = len(LEARNED if kind == "learned" else BASELINE)
        # The first learned one is solid; others are told apart by more than their colour.
        dashes = LEARNED_DASHES if kind == "learned" else DASHES
        dash = dashes[index % len(dashes)]
        chosen[name] = Style(label, f"{kind}-{index % size}", dash)
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
        marker = MARKERS[index % len(MARKERS)] if dash == "-" else None
        style = Style(label, f"learned-{index % len(LEARNED)}", dash, marker)
        chosen[prefix, multiple, statistic] = style, found[prefix, multiple, statistic]
    return chosen


def validation_styles(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], Style]:
    """The styles of `validation_lines`."""
    return {key: style for key, (style, _) in validation_lines(rows).items()}


# ----- figures --------------------------------------------------------------------------------------------------------


def evaluation_figure(result: Mapping[str, Any], *, narrow: bool = False, legend: bool = True) -> Figure:
    """Mean over tasks, and median with its interquartile band, against the inner step; T is marked by a dashed line."""
    figure, (mean_axes, median_axes) = _two_panels(narrow)
    drawn = styles(result)
    horizon, train_horizon = result["horizon"], result.get("train_horizon")
    far = bool(train_horizon) and horizon > 20 * train_horizon
    recorded = [step for record in result["optimizers"].values() for step in record["curve"]["steps"] if step > 0]
    first = min(recorded, default=1)  # where a logarithmic axis begins
    values = {
        part: np.concatenate([numbers(record["curve"][part]) for record in result["optimizers"].values()])
        for part in ("mean", "median", "q25", "q75")
    }
    every = np.concatenate(list(values.values()))
    negative = bool((every < 0).any())  # losses without a bound
    outside = 100 * np.abs(every[np.isfinite(every)]).max(initial=1.0) if negative else 1e30
    for name, record in result["optimizers"].items():
        style, curve = drawn[name], record["curve"]
        steps = numbers(curve["steps"])
        learned = record.get("kind") == "learned"
        look: dict[str, Any] = {
            "color": COLOURS[style.role],
            "linestyle": style.dash,
            "linewidth": 2.0 if learned else 1.3,
            "zorder": 4 if learned else 3,
        }
        draw_curve(mean_axes, steps, numbers(curve["mean"]), label=style.label, **look)
        draw_curve(median_axes, steps, numbers(curve["median"]), **look)
        if learned or name == result.get("best_baseline"):
            low, high = _plottable(numbers(curve["q25"])), _plottable(numbers(curve["q75"]), top=outside)
            alpha = 0.2 if learned else 0.13
            median_axes.fill_between(steps, low, high, color=COLOURS[style.role], alpha=alpha, linewidth=0, zorder=2)
    for axes, field, title in (
        (mean_axes, ("mean",), "Mean over tasks"),
        (median_axes, ("median", "q25", "q75"), "Median and interquartile band"),
    ):
        shown = np.concatenate([values[part] for part in field])
        (_linear_y if negative else _log_y)(axes, shown, start=values[field[0]][0] if len(shown) else 1.0)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=20)
        axes.set_xlabel("inner step")
        if far:
            axes.set_xscale("log")
            axes.set_xlim(first, horizon)
            axes.xaxis.set_major_formatter(FuncFormatter(_power_of_ten))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, horizon)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if train_horizon and train_horizon <= horizon:
            _mark(axes, train_horizon, f"trained to {train_horizon:,}")
    mean_axes.set_ylabel("loss above its bound" if is_above_bound(result) else "loss")
    if legend:
        _legend_below(figure, mean_axes)
    return figure


def meta_training_figure(rows: Sequence[Mapping[str, Any]], *, narrow: bool = False, legend: bool = True) -> Figure:
    """The meta-loss against the meta-step, and the validation losses where there are any."""
    validation = validation_lines(rows)
    if validation:
        figure, (left, right) = _two_panels(narrow)
    else:
        figure = Figure(figsize=(NARROW[0], 3.4) if narrow else (WIDE[0], 3.4), layout="constrained")
        left, right = figure.subplots(), None
        frame(left)
    steps, losses = series(rows, "meta_loss")
    steps, low, middle, high = binned(steps, losses)
    colour = COLOURS["learned-0"]
    left.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    left.plot(steps, middle, color=colour, linewidth=1.8, label="meta-loss (median, and 10 to 90%)")
    maybe_log_y(left, np.concatenate([low, middle, high]))
    left.set_title("Meta-loss", loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    left.set_ylabel("meta-loss")
    panels = [left]
    if right is not None:
        panels.append(right)
        shown = []
        for style, (at, values) in validation.values():
            look = {"color": COLOURS[style.role], "linestyle": style.dash, "linewidth": 1.8 if style.marker else 1.1}
            draw_curve(right, at, values, label=style.label, marker=style.marker, markersize=4.5, **look)
            shown.append(values)
        maybe_log_y(right, np.concatenate(shown))
        right.set_title(
            "Validation: final loss on held-out tasks", loc="left", fontsize=11, fontweight="bold", color=INK, pad=10
        )
        right.set_ylabel("loss")
        if legend:
            _legend_below(figure, right)
    for axes in panels:
        axes.set_xlabel("meta-step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def _two_panels(narrow: bool) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=NARROW if narrow else WIDE, layout=ConstrainedLayoutEngine(hspace=0.05))
    panels = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
    for axes in panels:
        frame(axes)
    return figure, (panels[0], panels[1])


def frame(axes: Axes) -> None:
    """The look of all axes: no box, quiet ticks and grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", color=FAINT, labelcolor=INK, labelsize=10)
    axes.tick_params(which="minor", length=0)
    axes.grid(True, color=FAINT, linewidth=0.7, alpha=0.6)
    axes.set_axisbelow(True)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)


def _plottable(values: np.ndarray, top: float = np.nan) -> np.ndarray:
    # Zeros sit on the floor of the axis, logarithmic where no value is below 0; infinities end a line.
    raised = values if (values < 0).any() else np.maximum(values, 1e-30)
    return np.where(np.isfinite(values), raised, np.where(np.isposinf(values), top, np.nan))


def draw_curve(axes: Axes, steps: np.ndarray, values: np.ndarray, **look: Any) -> None:
    """A line that ends in a cross where its values become infinite."""
    axes.plot(steps, _plottable(values), **look)
    lost = np.flatnonzero(np.isposinf(values))
    if len(lost) and lost[0] > 0:
        last = lost[0] - 1
        axes.plot(steps[last], values[last], "x", color=look["color"], markersize=8, markeredgewidth=2, zorder=5)


def _mark(axes: Axes, step: int, words: str) -> None:
    axes.axvline(step, color=INK, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    place = axes.transData.transform((step, 1))[0]
    left, right = axes.transData.transform([(edge, 1) for edge in axes.get_xlim()])[:, 0]
    fraction = (place - left) / (right - left)
    align = "left" if fraction < 0.3 else "right" if fraction > 0.7 else "center"
    axes.annotate(
        words, (step, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
        ha=align, va="bottom", fontsize=10, color=INK, annotation_clip=False,
    )  # fmt: skip


def _log_y(axes: Axes, values: np.ndarray, start: float) -> None:
    known = values[np.isfinite(values) & (values > 0)]
    start = start if np.isfinite(start) and start > 0 else 1.0
    low, high = (known.min(), known.max()) if len(known) else (0.1, 1.0)
    high = min(high, MOST_ABOVE_START * start)
    low = min(max(low, MOST_BELOW_START * start), high / 1.5)
    axes.set_yscale("log")
    axes.set_ylim(low / 1.3, high * 1.3)
    if high / low < 30:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    else:
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _linear_y(axes: Axes, values: np.ndarray, start: float) -> None:
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if len(known) else (-1.0, 1.0)
    # What rises above its start by more than the others fall is outside.
    high = min(high, start + max(start - low, 1e-30)) if np.isfinite(start) else high
    margin = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(6))


def maybe_log_y(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic axis where all values are above 0, with limits that one explosion does not decide."""
    known = values[np.isfinite(values)]
    if len(known) and (known > 0).all():
        _log_y(axes, known, start=float(known.max()))


def _power_of_ten(value: float, _: Any) -> str:
    exponent = round(np.log10(value))
    if 0 <= exponent <= 3:
        return f"{10**exponent:,}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), 2 if figure.get_figwidth() < 6 else 5)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK, fontsize=10,
        handlelength=3,
    )  # fmt: skip


# ----- files ----------------------------------------------------------------------------------------------------------


def save_png(figure: Figure, path: Path) -> Path:
    """Writes a figure on white, 160 dots an inch."""
    figure.savefig(path, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return path


def to_svg(figure: Figure, *, prefix: str, description: str) -> str:
    """A figure as an `<svg>` element for a page: transparent, as wide as its place, colours as CSS variables.

    `prefix` keeps its ids apart from other figures'; `description` is what a screen reader says. Escaped here.
    """
    from html import escape
    from io import StringIO

    buffer = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    # A tenth of a point is finer than a screen shows; that, and no blanks, halves the page.
    body = re.sub(
        r' (d|x|y|transform)="[^"]*"',
        lambda found: re.sub(r"\d+\.\d+", lambda n: f"{float(n[0]):.1f}".removesuffix(".0"), found[0]),
        body,
    )
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\s*([MLQCzZ])\s*", r"\1", path[0]).replace('="', '="', 1), body)
    body = re.sub(r' transform="rotate\(-?0 [^"]*"', "", re.sub(r">\s+<", "><", body))
    body = re.sub(r"(?<=[:;]) (?=[^\"<>]*\")", "", body)
    body = re.sub(r'id="([^"]*)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{prefix}-\1"', body)
    # The page's own font; matplotlib laid the text out with one that is a little wider.
    body = re.sub(r"font-family:[^;\"]*;?", "", body)
    body = re.sub(r"font: ?([^;\"]*?)'[^;\"]*", r"font:\1system-ui, sans-serif", body)
    for role, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{role}, {colour})")
    label = escape(description, quote=True)
    return f'<svg {box[0]} role="img" aria-label="{label}">{body}'
