"""README.md and the picture, from results.json."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.hypertuned.write import ESTIMATORS, LEARNED, MULTIPLES, PARTS, SEARCHES, SEEDS, SUBJECTS, TASKS_EACH
from metaopt.report.panels import INK, frame, set_log_ticks
from metaopt.report.svg import save_png
from metaopt.runs import tables
from metaopt.runs.metrics import number

HERE = Path(__file__).parent

COLOURS = {
    "momentum": "#0072B2",
    "adam": "#D55E00",
    "adam with a curve": "#009E73",
    "learned": "#CC79A7",
    "as it comes": "#9a9a9a",
    "searched": "#6b6b6b",
}
HOW = (*ESTIMATORS, *SEARCHES)
GRIDS = ("as it comes", "rate for 1x", "rate and momentum for 1x", "rate and momentum for 10x")


def rows(parts: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(name, kind, record) of everything that was tested on a family, in the order of the table."""
    for grid in GRIDS:
        for optimizer, record in parts[grid].items():
            if isinstance(record, dict):
                yield f"{optimizer}: {grid}", "as it comes" if grid == GRIDS[0] else "searched", record
    for subject in SUBJECTS:
        for how in HOW:
            yield f"{subject}: {how}", subject, parts[f"{subject}: {how}"]
    for name in LEARNED:
        yield name, "learned", parts[name]


def means(record: Mapping[str, Any], multiple: int) -> np.ndarray:
    """[seeds] mean final losses; those whose meta-training diverged are infinite."""
    found = [number(value) for value in record.get(f"{multiple}x", {}).get("mean", [])]
    return np.array([*found, *[math.inf] * record.get("diverged", 0)])


def middle(record: Mapping[str, Any], multiple: int) -> float:
    found = means(record, multiple)
    return float(np.median(found)) if len(found) else math.inf


def text(value: float) -> str:
    return f"{value:.2g}" if np.isfinite(value) else "∞"


def cell(record: Mapping[str, Any], multiple: int) -> str:
    if "refused" in record:
        return "refused"
    found = means(record, multiple)
    spread = f" [{text(found.min())}, {text(found.max())}]" if len(found) > 1 else ""
    failed = [number(value) for value in record.get(f"{multiple}x", {}).get("failed", [])]
    worst = f", {tables.percent(max(failed))} failed" if failed and max(failed) > 0 else ""
    return f"{text(middle(record, multiple))}{spread}{worst}"


def best(parts: Mapping[str, Any], names: Iterator[str] | list[str], multiple: int) -> tuple[str, float]:
    held = {name: middle(parts[name], multiple) for name in names}
    name = min(held, key=lambda each: held[each])
    return name, held[name]


def ladder(parts: Mapping[str, Any], multiple: int) -> list[tuple[str, float]]:
    """What is known -> the lowest median over meta-seeds that it gives, from nothing to a learned network."""
    grids = lambda name: min(middle(r, multiple) for r in parts[name].values() if isinstance(r, dict))  # noqa: E731
    constant = [f"{subject}: {how}" for subject in list(SUBJECTS)[:2] for how in HOW]
    curve = [f"{list(SUBJECTS)[2]}: {how}" for how in HOW]
    return [
        ("as it comes", grids(GRIDS[0])),
        ("the rate", grids(GRIDS[1])),
        ("rate and momentum", grids(GRIDS[2])),
        ("every setting", best(parts, constant, multiple)[1]),
        ("and a curve of the rate", best(parts, curve, multiple)[1]),
        ("LSTM", best(parts, list(LEARNED), multiple)[1]),
        (f"rate and momentum, tuned for {MULTIPLES[-1]}× itself", grids(GRIDS[3])),
    ]


HOW_FAR = ("as they come", "the rate alone", "all settings", "a curve besides", "LSTM")


def answer(name: str, parts: Mapping[str, Any]) -> Iterator[str]:
    for multiple in MULTIPLES:
        steps = dict(ladder(parts, multiple))
        start, learned = steps["as it comes"], steps["LSTM"]
        tuned = min(steps["every setting"], steps["rate and momentum"], steps["the rate"])
        curve = min(tuned, steps["and a curve of the rate"])
        way = math.log(start / learned)
        where = f"- **{name}, {multiple} T**:"
        compared = f"the LSTM's loss is {learned / curve:.2g} times the best tuned one's"
        if way <= 0.05 or curve < 0.9 * learned:  # then shares of the way say little
            values = (start, steps["the rate"], tuned, curve, learned)
            shown = dict(zip(HOW_FAR, values, strict=True))
            said = ", ".join(f"{words} {value:.2g}" for words, value in shown.items())
            ahead = "tuning is ahead of the LSTM" if curve < 0.9 * learned else "there is next to nothing to gain"
            yield f"{where} {ahead} (mean losses: {said}); {compared}."
            continue
        rate, every, curved = (math.log(start / value) / way for value in (steps["the rate"], tuned, curve))
        yield (
            f"{where} of the way, in log loss, from an optimizer as it comes to the LSTM, the rate alone makes "
            f"{rate:.0%}, all settings {every:.0%}, a curve besides {curved:.0%}; {compared}."
        )


def page(record: Mapping[str, Any]) -> str:
    done = {name: parts for name, parts in record.items() if all(what in parts for what in needed())}
    answers = [wrapped(line) for name, parts in done.items() for line in answer(name, parts)]
    tabled = [line for name, parts in done.items() for line in table(name, parts)]
    words = (HERE / "page.md").read_text(encoding="utf-8")
    return words.format(seeds=SEEDS, answer="\n".join(answers), tables="\n".join(tabled))


def wrapped(line: str) -> str:
    return textwrap.fill(line, 120, subsequent_indent="  " if line.startswith("- ") else "", break_on_hyphens=False)


def table(name: str, parts: Mapping[str, Any]) -> Iterator[str]:
    part, longest = PARTS[name], MULTIPLES[-1]
    minutes = sum(number(entry["core_seconds"]) for entry in parts.values()) / 60
    yield f"## {name}"
    yield ""
    searched = part.cost // part.horizon // TASKS_EACH
    yield wrapped(
        f"T = {part.horizon}. {part.cost:,} inner steps for each φ: {part.num_meta_steps} meta-steps of "
        f"{part.num_tasks} tasks, or a random search over {searched:,} φ on {TASKS_EACH} tasks each. Mean final loss "
        f"over {part.tested} tasks that nothing was tuned on. What was found for T is used at {longest} T as it is; "
        f"the curve is told the horizon. {minutes:.0f} core-minutes."
    )
    yield from ("", f"| | mean loss at T | at {longest} T | core-seconds |", "| --- | --- | --- | --- |")
    for label, _, entry in rows(parts):
        yield f"| {label} | {cell(entry, 1)} | {cell(entry, longest)} | {entry.get('core_seconds', '')} |"
    yield ""
    yield from found_settings(parts)


def needed() -> list[str]:
    return [*GRIDS, *LEARNED, *(f"{subject}: {how}" for subject in SUBJECTS for how in HOW)]


def found_settings(parts: Mapping[str, Any]) -> list[str]:
    """What the best φ of each subject says."""
    lines = []
    for subject in SUBJECTS:
        name, value = best(parts, [f"{subject}: {how}" for how in HOW], 1)
        held = means(parts[name], 1)
        settings = [entry for entry in parts[name]["settings"] if entry is not None]
        one = settings[int(np.argsort(held)[len(held) // 2])] if len(settings) == len(held) else settings[0]
        said = ", ".join(f"{key} {words(each)}" for key, each in one.items())
        lines.append(wrapped(f"- Best {subject}: by {name.split(': ')[1]} ({text(value)} at T), {said}."))
    return [*lines, ""]


def words(value: Any) -> str:
    return f"[{', '.join(map(words, value))}]" if isinstance(value, list) else text(number(value))


def draw(record: Mapping[str, Any], path: Path) -> None:
    done = {name: parts for name, parts in record.items() if all(what in parts for what in needed())}
    if not done:
        return
    height = max(len(list(rows(parts))) for parts in done.values())
    figure = Figure(figsize=(5.2 * len(MULTIPLES) + 2.2, len(done) * (0.21 * height + 0.9)), layout="constrained")
    panels = figure.subplots(len(done), len(MULTIPLES), sharey="row", squeeze=False)
    for (name, parts), line in zip(done.items(), panels, strict=True):
        listed = list(rows(parts))
        for multiple, axes in zip(MULTIPLES, line, strict=True):
            frame(axes)
            axes.set_xscale("log")
            for y, (_, kind, entry) in enumerate(listed):
                values = means(entry, multiple)
                seen = values[np.isfinite(values)]
                axes.plot(seen, [y] * len(seen), "o", color=COLOURS[kind], markersize=5, alpha=0.8)
                if len(seen) < len(values):
                    axes.annotate(
                        "×", (0.99, y), xycoords=("axes fraction", "data"), ha="right", va="center", color=INK
                    )
            lowest = min(middle(parts[each], multiple) for each in LEARNED)
            axes.axvline(lowest, color=COLOURS["learned"], linewidth=1, linestyle=(0, (4, 3)))
            axes.set_yticks(range(len(listed)), [label for label, _, _ in listed], fontsize=8)
            axes.set_ylim(len(listed) - 0.5, -0.5)
            axes.set_title(f"{name}, {multiple} T", fontsize=11, color=INK, loc="left")
            axes.set_xlabel("mean final loss")
            set_log_ticks(axes.xaxis)
    save_png(figure, path)
