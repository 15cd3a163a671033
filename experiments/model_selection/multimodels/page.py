"""Pictures and README.md of the multimodels, from results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

from metaopt.evaluation.statistics import wilson_interval
from metaopt.report.panels import INK, LEARNED, frame
from metaopt.report.svg import save_png

COLOURS = dict(zip(("EM", "networks_bp", "networks_rl"), LEARNED, strict=False)) | {"sgd": "#57606a", "adam": "#9ea6af"}
EXPERTS = (LEARNED[0], LEARNED[1], LEARNED[2])
WORDS = {
    "EM": "EM", "sgd": "SGD, tuned", "adam": "Adam, tuned", "networks_bp": "learned, networks_bp",
    "networks_rl": "learned, networks_rl",
}  # fmt: skip
Record = Mapping[str, Any]


def draw(record: Record, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    known = record["optimizers"]["known experts"]
    _save(_curves(record["optimizers"]), folder / "curves.png")
    _save(_experts(known), folder / "experts.png")
    _save(_gates(known), folder / "gate.png", plain=True)
    _save(_choice(record["choice"]), folder / "choice.png")


def _save(figure: Figure, path: Path, plain: bool = False) -> None:
    for axes in figure.axes:
        frame(axes)
        if plain:
            axes.grid(False)
    save_png(figure, path)


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10.5, color=INK)


def _curves(optimizers: Record) -> Figure:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, (name, held) in zip(figure.subplots(1, 2), optimizers.items(), strict=True):
        steps = np.array(held["steps"]) + 1
        lowest = min(min(map(float, row["curve"][1])) for row in held["rows"].values())
        first = float(held["rows"]["EM"]["curve"][1][0])
        for called, row in held["rows"].items():
            low, middle, high = (np.array(part, float) for part in row["curve"])
            axes.plot(steps, middle - lowest + 1e-3, color=COLOURS[called], label=WORDS[called], linewidth=1.8)
            axes.fill_between(steps, low - lowest + 1e-3, high - lowest + 1e-3, color=COLOURS[called], alpha=0.12)
        axes.set(xscale="log", yscale="log", xlabel="step + 1", ylabel="loss above the lowest median + 0.001")
        axes.set_ylim(8e-4, 3 * (first - lowest))
        _title(axes, f"{name}: median and quartiles over tasks")
    figure.axes[0].legend(frameon=False, fontsize=8.5)
    return figure


def _experts(held: Record) -> Figure:
    figure = Figure(figsize=(12, 3.1), layout="constrained")
    truth = np.array(held["truth"]["experts"])
    panels = figure.subplots(1, len(held["rows"]), sharex=True, sharey=True)
    paths = {called: np.array(row["path"], float) for called, row in held["rows"].items()}
    for axes, (called, path) in zip(panels, paths.items(), strict=True):
        for k, colour in enumerate(EXPERTS):
            axes.plot(*path[:, k, :2].T, color=colour, linewidth=1.3)
            axes.plot(*path[0, k, :2], "o", color=colour, markersize=4, markerfacecolor="white")
            axes.plot(*path[-1, k, :2], "o", color=colour, markersize=5)
        axes.plot(*truth[:, :2].T, "x", color=INK, markersize=9, markeredgewidth=1.6)
        axes.set(xlabel="first coefficient")
        _title(axes, WORDS[called])
    # Not what a run that leaves the plane shows.
    around = np.concatenate([truth[:, :2], *(path[0, :, :2] for path in paths.values())])
    low, high = around.min(0) - 1, around.max(0) + 1
    panels[0].set(ylabel="second coefficient", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def _gates(held: Record) -> Figure:
    figure = Figure(figsize=(13, 2.9), layout="constrained")
    panels = figure.subplots(1, len(held["rows"]) + 1, sharex=True, sharey=True)
    truth = np.array(held["truth"]["experts"])
    colours = np.array([to_rgb(colour) for colour in EXPERTS])
    X, member = np.array(held["truth"]["X"]), np.array(held["truth"]["member"])
    panels[0].scatter(*X.T, c=colours[member], s=7)
    _title(panels[0], "nearest true expert")
    for axes, (called, row) in zip(panels[1:], held["rows"].items(), strict=True):
        order = _order(np.array(row["path"], float)[-1], truth)  # expert -> true one
        image = np.array(row["gate"], float) @ colours[order]
        axes.imshow(np.clip(image, 0, 1), extent=(-3, 3, -3, 3), origin="lower", aspect="auto")
        _title(axes, WORDS[called])
    panels[0].set(xlim=(-3, 3), ylim=(-3, 3), ylabel="second input")
    for axes in panels:
        axes.set(xlabel="first input")
    return figure


def _order(experts: np.ndarray, truth: np.ndarray) -> np.ndarray:
    squares = ((experts[:, None] - truth[None]) ** 2).sum(-1)
    return linear_sum_assignment(squares)[1]


def chosen(held: Record) -> dict[str, tuple[list[int], list[float]]]:
    """rule -> (K, test -log p) of every data set."""
    evidence, validation, test = (np.array(held[name], float) for name in ("evidence", "validation", "test"))
    found = {}
    for rule, K in (("evidence", evidence.argmax(0)), ("validation sample", validation.argmin(0))):
        found[rule] = (K + 1).tolist(), np.take_along_axis(test, K[None], 0)[0].tolist()
    for alpha, pruned in held["pruned"].items():
        found[f"pruning at α = {alpha}"] = pruned["K"], pruned["test"]
    return found


def _choice(record: Record) -> Figure:
    figure = Figure(figsize=(11, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in (("known", LEARNED[0]), ("diabetes", LEARNED[1])):
        evidence = np.array(record[name]["evidence"], float)
        relative = evidence - evidence.max(0)
        K = np.arange(1, len(evidence) + 1)
        middle = np.median(relative, 1)
        label = "three true experts, median and quartiles" if name == "known" else "diabetes"
        left.plot(K, middle, "o-", color=colour, label=label)
        left.fill_between(K, *np.quantile(relative, (0.25, 0.75), axis=1), color=colour, alpha=0.15)
    left.set(xlabel="experts K", ylabel="log evidence below the best")
    left.set_yscale("symlog", linthresh=1)
    left.legend(frameon=False)
    _title(left, "evidence by Laplace's method")
    rules, values = chosen(record["known"]), []
    for index, (rule, (values, _)) in enumerate(rules.items()):
        counts = np.bincount(values, minlength=7)[1:]
        right.bar(np.arange(1, 7) + 0.2 * (index - 1.5), counts, width=0.19, color=LEARNED[index], label=rule)
    right.set(xlabel="experts chosen", ylabel=f"of {len(values)} data sets")
    right.legend(frameon=False)
    _title(right, "choices on data of three experts")
    return figure


# ----- README -----------------------------------------------------------------------------------------------------


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _ways(held: Record) -> str:
    rows = []
    for called, row in held["rows"].items():
        low, middle, high = (f"{float(v):.3f}" for v in row["nll"])
        rate = f"{row['rate']:.2g}" if "rate" in row else ""
        cells = [WORDS[called], rate, f"{float(row['loss']):.3f}", f"{middle} [{low}, {high}]"]
        if "recovered" in row:
            cells.append("{:.2f} [{:.2f}, {:.2f}]".format(row["recovered"], *row["interval"]))
        rows.append(cells)
    head = ["", "rate", "loss at the end, median", "test -log p(y given x), median [quartiles]", "P(recovered), 95%"]
    return _table(head[: len(rows[0])], rows)


def _same(held: Record) -> str:
    names, share = held["same"]["names"], held["same"]["share"]
    rows = [[WORDS[name], *(f"{value:.2f}" for value in row)] for name, row in zip(names, share, strict=True)]
    return _table(["", *(WORDS[name] for name in names)], rows)


def _chosen(held: Record) -> str:
    rows = []
    for rule, (K, test) in chosen(held).items():
        rows.append([rule, *map(str, np.bincount(K, minlength=7)[1:]), f"{np.median(test):.3f}"])
    return _table(["", *(f"K = {k}" for k in range(1, 7)), "test -log p, median"], rows)


def _level(record: Record) -> str:
    rows = []
    for name, (count, trials) in record.items():
        low, high = wilson_interval(count, trials)
        rows.append([name, f"{count / trials:.3f} [{low:.3f}, {high:.3f}]", str(trials)])
    return _table(["", "share, 95%", "trials"], rows)


def _requirement(record: Record) -> str:
    names = list(next(iter(record["pairs"].values())))
    rows = [[words, *(f"{row[name]:.4g}" for name in names)] for words, row in record["pairs"].items()]
    return _table(["", *names], rows)


def write(record: Record) -> str:
    """README.md."""
    held = record["optimizers"]
    parts: dict[str, Any] = {}
    for name, key in (("known experts", "known"), ("diabetes", "table")):
        parts[key], parts[f"same_{key}"] = _ways(held[name]), _same(held[name])
        parts[f"cost_{key}"] = f"{held[name]['flops']['EM'] / held[name]['flops']['gradient']:.0f}"
    values = [[words, f"{value:.5f}"] for words, value in record["requirement"]["table"].items()]
    known, level = chosen(record["choice"]["known"]), record["level"]
    usual, strict = record["choice"]["known"]["pruned"]
    hits = {rule: sum(k == 3 for k in K) for rule, (K, _) in known.items()}
    shares = {name: f"{level[name][0] / level[name][1]:.0%}" for name in ("complete", "observed")}
    return PAGE.format(
        by_evidence=hits["evidence"],
        by_usual=hits[f"pruning at α = {usual}"],
        by_strict=hits[f"pruning at α = {strict}"],
        strict=strict,
        values=_table(["laws", "s"], values),
        requirement=_requirement(record["requirement"]),
        level=_level(record["level"]),
        chosen=_chosen(record["choice"]["known"]),
        diabetes=_chosen(record["choice"]["diabetes"]),
        sets=len(record["choice"]["known"]["evidence"][0]),
        steps=held["diabetes"]["steps"][-1],
        tasks=held["diabetes"]["tasks"],
        **shares,
        **parts,
    )


PAGE = """# Multimodels: fitted by EM and by optimizers, chosen by evidence and by the s-score

Written by `python -m experiments.model_selection.multimodels.write` from `results.json`; the pictures come with it.

## The s-score

s(g1, g2) = ∫ g1(w) g2(w) dw / max_b ∫ g1(w - b) g2(w) dw.

{values}

Requirement 5: near 1 where one law says little. A similarity made of a distance falls as the distance grows, whatever
the function; so it fails wherever a law that says little is further away than one that contradicts:

{requirement}

Every distance puts N(10, 1e10) further from N(0, 1) than N(1.6, 1), and all but Bregman's further than N(3, 1); the
s-score alone has them the right way round.

## The test's level

Two experts are told apart at level α = 0.05 if -2 log s ≥ χ²_(d, 0.95). Here both have the same true line:

{level}

*Two samples*: each expert has objects of its own, the multi-level model whose partition is known; that is the test's
hypothesis, and the level holds. The others: a mixture of two with constant weights on one sample from one line, the
best of eight starts of EM, with laws from the complete information (responsibilities taken as known weights) and from
the observed one. **There the level does not hold**: EM chooses each expert's objects by their residuals, so that two
shares of one line are different by construction, and the test takes them for two models in {complete} and {observed} of
the samples. Adequacy at a usual α is a licence to merge what is not told apart, not to keep what is.

## How many experts

{sets} data sets of 200 objects from three experts, constant weights, noise known. Evidence: Laplace's method for K = 1
to 6, uniform law on the weights, N(0, 1) on coefficients, the law that the true ones are drawn from. Pruning: EM with
6, merge what is not told apart, EM again. Each EM from the best of eight starts.

{chosen}

Evidence finds three in {by_evidence} of {sets}, pruning at α = 0.05 in {by_usual} (it keeps too many, as the level
above says), at α = {strict} in {by_strict}. That α was chosen after the first runs had shown the level.

Diabetes (309 objects, 10 features, noise 0.7 given):

{diabetes}

![Evidence and choices](figures/choice.png)

## EM against optimizers

Mixture of three experts with a gate network, all objects at each step, {steps} steps, the same {tasks} tasks and starts
for all. SGD's and Adam's rates are tuned (9x1) on other tasks; the learned ones come with the package, were trained on
other families, and are not told the horizon. A step of EM takes {cost_known} times a gradient's floating-point
operations (diabetes: {cost_table} times), most of them for the gate. `recovered`: every true expert within 0.25.

Known experts:

{known}

Diabetes, where tasks are starts:

{table}

EM is lowest on the objects that it was fitted to and not on others: the prior on the gate is weak (0.01), and what has
come less far fits it less. No other's interval of P(recovered) lies apart from EM's. networks_bp leaves its range on
known experts.

![Loss by step](figures/curves.png)

The first of the known-expert tasks, not a chosen one. Crosses: true experts; open circles: start; filled: end. In the
gate's picture an expert has the colour of the true one that it is matched with.

![Experts during training](figures/experts.png)

![Gate](figures/gate.png)

## Which runs end in the same model

The share of tasks on which two ways, from one start, end in models that the s-score of matched experts does not tell
apart at level 0.05 (Laplace's laws at the end of the run). Known experts:

{same_known}

Diabetes:

{same_table}
"""
