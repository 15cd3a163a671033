"""Lines in panels: told apart by colour, dash and marker, on axes that fit what they show."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from metaopt.errors import printable

# Roles and their colours on a light ground; on a page each is the CSS variable of its role. Learned optimizers in the
# palette of Okabe and Ito, which the colour-blind can tell apart; baselines grey.
INK, FAINT = "#24292f", "#d5d9de"
LEARNED = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#b58900")
BASELINE_COLOURS = ("#57606a", "#6f7882", "#87909a", "#9ea6af", "#4a525b")
LEARNED_DASHES: tuple[Any, ...] = ("-", (0, (7, 1.5)), (0, (7, 1.5, 1.5, 1.5)), (0, (2, 1.2)))
DASHES: tuple[Any, ...] = ("--", "-.", ":", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")
COLOURS = {
    "ink": INK,
    "faint": FAINT,
    **{f"learned-{index}": colour for index, colour in enumerate(LEARNED)},
    **{f"baseline-{index}": colour for index, colour in enumerate(BASELINE_COLOURS)},
}
MOST_ABOVE_START, MOST_BELOW_START = 1e2, 1e-14  # what lies beyond these multiples of the first loss is outside
MOST_STYLES = 10  # more lines than this cannot be told apart: the others are grey


class Style(NamedTuple):
    """How an optimizer is drawn."""

    label: str
    role: str  # a key of COLOURS
    dash: Any  # matplotlib's line style
    marker: str | None = None  # matplotlib's, at some of the points
    width: float = 1.8  # of the line, in points
    hollow: bool = False  # whether the marker is an outline, beside a filled one of the same colour

    @property
    def dasharray(self) -> str:
        """The line style as SVG has it."""
        if isinstance(self.dash, str):
            return {"-": "none", "--": "6 3", "-.": "7 2.5 1.5 2.5", ":": "1.6 2.4"}[self.dash]
        return " ".join(f"{1.6 * length:g}" for length in self.dash[1])


OTHERS = Style("others", "baseline-3", "-", width=1.2)
BASELINE = Style("best baseline", "baseline-0", "--", "o", 1.2)


class Picture(Figure):
    """A figure that a notebook shows, whether or not pyplot has been imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


class Line(NamedTuple):
    """One line of a panel."""

    style: Style
    x: np.ndarray
    y: np.ndarray
    joined: bool = True  # False: points alone
    band: tuple[np.ndarray, np.ndarray] | None = None  # low, high


class Panel(NamedTuple):
    """What one pair of axes shows."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    ticks: Sequence[tuple[float, str]] | None = None  # (place, words) along x; None: whole numbers
    log_x: bool = False
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None  # the y axis is linear, then
    mark: tuple[int, str] | None = None  # a place along x, and the words above it
    start: float | None = None  # the loss that all lines start from, against which the y axis is limited

    @property
    def is_empty(self) -> bool:
        """Whether no line has a point that can be drawn."""
        return not any(np.isfinite(line.y).any() for line in self.lines)


def run_style(index: int, label: str) -> Style:
    """The index-th of `MOST_STYLES` ways to draw a run; with the next colour come another dash and another marker."""
    if index >= MOST_STYLES:
        return OTHERS._replace(label=label)
    colour = index % len(LEARNED)
    dash = LEARNED_DASHES[(index + index // len(LEARNED)) % len(LEARNED_DASHES)]
    return Style(label, f"learned-{colour}", dash, MARKERS[(index + index // len(LEARNED)) % len(MARKERS)])


def panels_figure(panels: Sequence[Panel], *, narrow: bool = False, legend: bool = False) -> Figure:
    """The panels beside one another, at most three to a row; below one another for a phone.

    Those without a point to draw are left out; a figure without axes has nothing to show.

    Args:
      legend: the lines are explained below.
    """
    panels = [panel for panel in panels if not panel.is_empty]
    if not panels:
        return Picture()
    columns = 1 if narrow else min(3, len(panels)) if len(panels) != 4 else 2
    rows = -(-len(panels) // columns)
    size = (4.6, 3.4 * rows) if narrow else (6.2, 3.4) if columns == 1 else (10.0, (4.0 if columns < 3 else 3.3) * rows)
    figure = Picture(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.05, wspace=0.04))
    places = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, panel in zip(places, panels, strict=False):
        _draw(axes, panel)
    for axes in places[len(panels) :]:
        axes.remove()
    if legend:
        every = [axes.get_legend_handles_labels() for axes in places[: len(panels)]]
        found = {label: handle for handles, labels in every for handle, label in zip(handles, labels, strict=True)}
        figure.legend(
            list(found.values()), list(found), loc="outside lower center", frameon=False,
            ncols=_legend_columns(list(found), size[0]), labelcolor=INK, fontsize=10, handlelength=3,
        )  # fmt: skip
    return figure


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """As many, up to five, as the labels leave room for in so many inches."""
    for columns in range(min(len(labels), 5), 1, -1):
        lengths = np.array_split([len(label) for label in labels], columns)  # as matplotlib fills them
        longest = [int(column.max()) for column in lengths]
        if 0.08 * sum(longest) + 0.85 * len(longest) < width:  # a letter; the line and the gaps
            return columns
    return 1


def _draw(axes: Axes, panel: Panel) -> None:
    frame(axes)
    if panel.log_x:
        axes.set_xscale("log")
    values = [np.ravel([line.y, *(line.band or ())]) for line in panel.lines]
    if panel.y_limits is not None:
        axes.set_ylim(*panel.y_limits)
    else:
        _scale_y(axes, np.concatenate(values or [np.ones(1)]), panel.start)
    for line in panel.lines:
        _line(axes, line)
    write_title(axes, plain(panel.title), pad=20 if panel.mark else 10)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.x_limits is not None:
        axes.set_xlim(*panel.x_limits)
    if panel.mark is not None:
        _mark(axes, *panel.mark)
    if panel.ticks is not None:
        axes.xaxis.set_minor_locator(NullLocator())
        most = max(6, 32 // max(1, len(panel.ticks)))  # letters that fit
        axes.set_xticks([place for place, _ in panel.ticks], [plain(words, most) for _, words in panel.ticks])
        if not panel.log_x:
            axes.margins(x=0.12)
    elif panel.log_x:
        set_log_ticks(axes.xaxis)
    else:
        low, high = axes.get_xlim()
        if high - low < 2:  # of a single point
            axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _line(axes: Axes, line: Line) -> None:
    """It ends in a cross where its values become infinite."""
    style, colour, grey = line.style, COLOURS[line.style.role], line.style.role.startswith("baseline")
    log, (bottom, top) = axes.get_yscale() == "log", axes.get_ylim()
    values = _plottable(line.y, log)
    look: dict[str, Any] = {
        "color": colour,
        "markersize": 5,
        "zorder": 3 if grey else 4,
        "label": plain(style.label, 200),
    }
    if line.joined:
        look |= {"linestyle": style.dash, "linewidth": style.width}
        # Markers on some of the points: they tell lines apart, and must not hide them.
        look["markevery"] = max(1, len(line.x) // 8)
    else:
        look["linestyle"] = "none"
    if style.hollow:
        look["markerfacecolor"] = "none"
    axes.plot(line.x, values, marker=style.marker if style.marker or line.joined else ".", **look)
    if line.joined:
        mark_lone(axes, line.x, values, colour=colour, marker=style.marker or "o", hollow=style.hollow, zorder=4)
    lost = np.flatnonzero(np.isposinf(line.y))
    if len(lost) and lost[0] > 0:
        last = lost[0] - 1
        axes.plot(line.x[last], values[last], "x", color=colour, markersize=8, markeredgewidth=2, zorder=5)
    if line.band is not None:
        # Where its upper end is infinite the band leaves the picture.
        outside = 1e30 if log else top + 10 * (top - bottom)
        low, high = _plottable(line.band[0], log), _plottable(line.band[1], log, outside)
        axes.fill_between(line.x, low, high, color=colour, alpha=0.13 if grey else 0.2, linewidth=0, zorder=2)


def mark_lone(
    axes: Axes, x: Any, y: np.ndarray, *, colour: str, marker: str = "o", hollow: bool = False, **look: Any
) -> None:
    """Markers where a line has no neighbouring point to go to, for it draws nothing there."""
    known = np.pad(np.isfinite(y), 1)
    lone = known[1:-1] & ~known[:-2] & ~known[2:]
    if lone.any():
        face = "none" if hollow else colour
        axes.plot(
            np.asarray(x)[lone], y[lone], marker, color=colour, markersize=5, markerfacecolor=face, **look
        )  # fmt: skip


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


def plain(text: str, most: int = 40) -> str:
    """Words to draw: cut in the middle, for options at the end tell families apart; a dollar sign begins no formula."""
    text = printable(text)
    cut = text if len(text) <= most else f"{text[: most // 3]}…{text[-(most - most // 3 - 1) :]}"
    return cut.replace("$", r"\$")


def write_title(axes: Axes, words: str, pad: float = 10) -> None:
    """A panel's title, flush left."""
    axes.set_title(words, loc="left", fontsize=11, fontweight="bold", color=INK, pad=pad)


def _plottable(values: np.ndarray, log: bool, infinity: float = np.nan) -> np.ndarray:
    # Zeros sit on the floor of a logarithmic axis; infinities end a line.
    raised = np.maximum(values, 1e-30) if log else values
    return np.where(np.isfinite(values), raised, np.where(np.isposinf(values), infinity, np.nan))


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


def _scale_y(axes: Axes, values: np.ndarray, start: float | None) -> None:
    """A logarithmic axis where no value is below 0 (without a start: nor 0), with limits that no explosion decides."""
    known = values[np.isfinite(values)]
    if start is None or not np.isfinite(start):
        if len(known) and (known > 0).all():
            _log_y(axes, known, float(known.max()))
    elif (known < 0).any():
        low, high = known.min(), known.max()
        high = min(high, start + max(start - low, 0.0))
        margin = 0.05 * (high - low) or 0.5
        axes.set_ylim(low - margin, high + margin)
    else:
        _log_y(axes, known, start)


def _log_y(axes: Axes, values: np.ndarray, start: float) -> None:
    known = values[np.isfinite(values) & (values > 0)]
    start = start if np.isfinite(start) and start > 0 else 1.0
    low, high = (known.min(), known.max()) if len(known) else (0.1, 1.0)
    high = min(high, MOST_ABOVE_START * start)
    low = min(max(low, MOST_BELOW_START * start), high / 1.5)
    axes.set_yscale("log")
    axes.set_ylim(low / 1.3, high * 1.3)
    set_log_ticks(axes.yaxis)


class LogTicks(Formatter):
    """Numbers of a logarithmic axis in one notation: 0.01, 0.1, 1, 10 where all are of such sizes, else 10⁻⁴, 10⁰."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Any) -> list[str]:
        """The words at all places; those outside of the picture do not decide how the others are written."""
        low, high = sorted(self.axis.get_view_interval())  # pyright: ignore
        seen = [value for value in values if low <= value <= high]
        if all(1e-3 <= value < 1e4 for value in seen):
            return [f"{value:,.4g}" for value in values]
        return [_power_of_ten(value) for value in values]


def set_log_ticks(axis: Axis, most: int = 7) -> None:
    """At least two labelled places on a logarithmic axis whose limits are set, about `most` where it spans decades."""
    low, high = sorted(axis.get_view_interval())
    if high < 6 * low:
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    elif high < 300 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axis.set_major_locator(LogLocator(numticks=most))
    axis.set_major_formatter(LogTicks())
    axis.set_minor_locator(NullLocator())


def _power_of_ten(value: float) -> str:
    factor, _, exponent = f"{value:.2e}".partition("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if float(factor) == 1 else f"{float(factor):g}×{power}"
