"""The thesis's figures 3 to 8 from the reproduction's JSON, in its form and in ours.

Left, as in the thesis: mean over tasks against the iteration, log y, baselines at the thesis's rates. Right: median and
quartile band, baselines tuned for the horizon, the training horizon marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metaopt.report.panels import FAINT, INK, frame, set_log_ticks
from metaopt.report.series import numbers
from metaopt.report.svg import save_png

Record = Mapping[str, Any]
MODELS = {"rl": ("RL model", "#0072B2", "-"), "bp": ("BP model", "#D55E00", "-")}
FIXED = {
    "sgd_lr=1.0000": ("#6b6b6b", "--"),
    "momentum_lr=0.1000": ("#6b6b6b", ":"),
    "momentum_lr=0.0100": ("#a9a9a9", ":"),
    "adam_lr=0.0100": ("#6b6b6b", "-."),
}
TUNED = {
    "sgd": "--",
    "momentum": ":",
    "rmsprop": (0, (6, 2, 1, 2, 1, 2)),
    "adam": "-.",
    "adamw:schedule=cosine": (0, (1, 1)),  # told the horizon, as is the next
    "nadamw:schedule=warmup_cosine": (0, (5, 1, 1, 1)),
}


def one_task(record: Record, task: str, multiple: int, title: str, path: Path) -> None:
    """Figures 3 to 6: one family up to a multiple of the training horizon."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes: tuple[Axes, Axes] = tuple(figure.subplots(1, 2))
    _draw(axes, record, task, multiple)
    axes[0].set_title(f"{title}: mean, the thesis's baselines", loc="left", fontsize=10.5, color=INK)
    axes[1].set_title("median and quartiles, baselines tuned", loc="left", fontsize=10.5, color=INK)
    axes[0].set_ylabel("loss f", color=INK)
    for one in axes:
        one.set_xlabel("inner step", color=INK)
        one.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(figure, path)


def networks(record: Record, batch_norm: bool, path: Path) -> None:
    """Figures 7 and 8: classifiers above, autoencoders below, deeper to the right; mean and tuned Adam."""
    tasks = [test["task"] for test in record["tests"] if ("batch_norm=true" in test["task"]) == batch_norm]
    rows = [[task for task in tasks if task.startswith(kind)] for kind in ("classifier", "autoencoder")]
    columns = max(map(len, rows))
    figure = Figure(figsize=(max(7.5, 2.6 * columns), 5.6), layout="constrained")
    panels = figure.subplots(2, columns, squeeze=False)
    for kind, line, axes_line in zip(("classifier", "autoencoder"), rows, panels, strict=True):
        for task, axes in zip(line, axes_line, strict=True):
            _draw((axes, None), record, task, 10, tuned=True)
            depth = next(part.split("=")[1] for part in task.split(":")[1].split(",") if "hidden_layers" in part)
            arms = {name: record["arms"][name] for name in MODELS if name in record["arms"]}
            lost = {name: arm["tests"][task]["at"]["10"]["failed"] for name, arm in arms.items()}
            words = ", ".join(f"{name.upper()} {share:.0%} failed" for name, share in lost.items() if share)
            title = f"{kind}, {depth} hidden" + (f"\n{words}" if words else "")
            axes.set_title(title, loc="left", fontsize=9.5, color=INK)
            axes.tick_params(labelsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("inner step", color=INK, fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel("loss", color=INK, fontsize=9)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    ncols = min(len(labels), int(figure.get_figwidth() / 1.6))  # of the longest label
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(figure, path)


def step_lengths(record: Record, path: Path) -> None:
    """Length of the steps of every meta-seed, a panel a family; in use solid, with the inputs held dotted."""
    tasks = list(dict.fromkeys(row["task"] for row in record["rows"]))
    figure = Figure(figsize=(2.9 * len(tasks), 3.6), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for task, axes in zip(tasks, panels, strict=True):
        rows = [row for row in record["rows"] if row["task"] == task]
        for row in rows:
            label, colour, _ = MODELS[row["model"]]
            first = row["seed"] == 0
            axes.plot(row["steps"], numbers(row["length"]), color=colour, linewidth=1.6, label=label if first else None)
            held = f"{label}, inputs held" if first else None
            axes.plot(row["steps"], numbers(row["held"]), color=colour, linewidth=1.1, linestyle=":", label=held)
        frame(axes)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(1, rows[0]["steps"][-1])
        axes.set_ylim(2e-14, 1e5)
        set_log_ticks(axes.xaxis, 5)
        set_log_ticks(axes.yaxis)
        axes.axvline(rows[0]["horizon"], color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_title(task, loc="left", fontsize=9.5, color=INK)
        axes.set_xlabel("inner step", color=INK, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(True, color=FAINT, linewidth=0.6, alpha=0.6)
    panels[0].set_ylabel("length of a step", color=INK, fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(figure, path)


def _draw(axes: tuple[Axes, Axes | None], record: Record, task: str, multiple: int, tuned: bool = False) -> None:
    horizon = record["horizon"]
    end = horizon * multiple
    left, right = axes
    baselines = record["baselines"][task]
    fixed = {} if tuned else FIXED
    for name, (colour, dash) in fixed.items():
        _line(left, baselines[name]["curve"], "mean", end, colour, dash, 1.2, name)
    panels = [(right, TUNED)] if right is not None else [(left, TUNED)] if tuned else []
    for panel, dashes in panels:
        for name, dash in dashes.items():
            found = baselines.get(f"{name}@{multiple}")
            if found is None:  # records of the first protocol
                continue
            plain, _, schedule = name.partition(":schedule=")
            label = f"{plain}, {schedule}" if schedule else plain
            label = label if tuned else f"{label} {found['record']['learning_rate']:.3g}"
            _line(panel, found["curve"], "median", end, "#8a8a8a", dash, 1.1, label)
    for name, (label, colour, dash) in MODELS.items():
        if name not in record["arms"]:
            continue
        arm = record["arms"][name]
        test = arm["tests"][task]
        failed = test["at"][str(multiple)]["failed"]
        words = label + (f" ({failed:.0%} failed)" if failed and not tuned else "")
        _line(left, test["curve"], "median" if tuned else "mean", end, colour, dash, 2.2, words)
        if right is not None:
            _line(right, test["curve"], "median", end, colour, dash, 2.2, label)
        for panel in (right,) if right is not None else (left,):
            steps, inside = _steps(test["curve"], end)
            low, high = (np.clip(numbers(test["curve"][q])[inside], 1e-30, 1e30) for q in ("q25", "q75"))
            panel.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
    for panel in (left, right):
        if panel is None:
            continue
        frame(panel)
        panel.set_yscale("log")
        panel.set_xlim(0, end)
        _limit(panel, record, task, end)
        if multiple > 1:
            panel.axvline(horizon, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)


def _steps(curve: Record, end: int) -> tuple[np.ndarray, np.ndarray]:
    steps = np.asarray(curve["steps"])
    return steps[steps <= end], steps <= end


def _line(
    axes: Axes, curve: Record, which: str, end: int, colour: str, dash: Any, width: float, label: str
) -> None:  # fmt: skip
    if curve[which] is None:
        return
    steps, inside = _steps(curve, end)
    values = numbers(curve[which])[inside]
    values = np.where(np.isfinite(values), np.maximum(values, 1e-30), np.nan)
    axes.plot(steps, values, color=colour, linestyle=dash, linewidth=width, label=label)


def _limit(axes: Axes, record: Record, task: str, end: int) -> None:
    """A diverging run leaves the picture at the top, and a run at zero at the bottom, instead of squeezing the rest."""
    curves = [entry["curve"] for entry in record["baselines"][task].values()]
    curves += [record["arms"][name]["tests"][task]["curve"] for name in MODELS if name in record["arms"]]
    start = max(numbers(curve["median"])[0] for curve in curves)
    low = min(np.nanmin(numbers(curve["median"])[_steps(curve, end)[1]]) for curve in curves)
    both = [(curve, numbers(curve[which])) for curve in curves for which in ("mean", "median") if curve[which]]
    shown = [values[_steps(curve, end)[1]] for curve, values in both]
    high = max(np.max(values[np.isfinite(values)], initial=start) for values in shown)
    low, high = max(low / 2, start * 1e-7), min(2 * high, 30 * start)
    axes.set_ylim(low, high)
    set_log_ticks(axes.yaxis)
    axes.grid(True, color=FAINT, linewidth=0.6, alpha=0.6)
