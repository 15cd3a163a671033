"""Hypergradients compared: `python -m experiments.model_selection.hypergradients.write` (five minutes of one core).

Parts whose results are in results.json are not measured again; `--page` draws and writes from the JSON alone, and names
of parts measure these anew: cosines, benchmark, speed, layer, coordinate.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.model_selection.hypergradients import measure
from metaopt.evaluation.statistics import jsonable
from metaopt.report.panels import INK, frame
from metaopt.report.svg import save_png

HERE = Path(__file__).parent
STYLES = {
    "random search": ("#8c959f", "-"),
    "greedy": ("#cc79a7", "-"),
    "T1-T2": ("#cc79a7", "--"),
    "Neumann": ("#0072b2", "--"),
    "HOAG": ("#0072b2", "-"),
    "DrMAD": ("#009e73", "--"),
    "reverse": ("#d55e00", "-"),
    "forward": ("#d55e00", "--"),
}
TITLES = {"layer": "a decay a layer: 2 hyperparameters", "coordinate": "a decay a coordinate: 10,060 hyperparameters"}


def _curves(axes: Any, part: Mapping[str, Any], value: str, *, shown: bool = False) -> None:
    """The median over seeds at equal seconds, and all seeds faintly behind it."""
    grid = np.linspace(0, part["budget"], 60)
    for name, record in part["methods"].items():
        colour, dash = STYLES[name]
        lines = []
        for seed in record["seeds"]:
            seconds = np.asarray(seed["seconds"])[seed["shown"]] if shown else np.asarray(seed["seconds"])
            lines.append(np.interp(grid, seconds, np.asarray(seed[value], float)))
        axes.plot(grid, np.median(lines, axis=0), color=colour, linestyle=dash, linewidth=1.9, label=name)
    axes.set(xlabel="CPU-seconds")


def draw_benchmark(part: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    _curves(axes, part, "gap")
    axes.set_yscale("log")
    axes.set(ylabel="Q(θ*(h)) - min Q")
    axes.set_title("12 prior precisions, median of 5 data sets", loc="left", fontsize=10.5, color=INK)
    _finish(figure, path)


def draw_digits(record: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    grid = figure.subplots(2, 2)
    for row, part in zip(grid, ("layer", "coordinate"), strict=True):
        for axes, value, label in zip(
            row, ("validation", "accuracy"), ("validation loss", "test accuracy"), strict=True
        ):
            _curves(axes, record[part], value, shown=True)
            axes.set(ylabel=label)
        row[0].set_title(TITLES[part], loc="left", fontsize=10.5, color=INK)
    _finish(figure, path)


def above_the_lowest(part: dict[str, Any]) -> dict[str, Any]:
    """The gaps counted from the lowest Q that anything found: the problem has several minima."""
    for index in range(measure.SEEDS):
        seeds = [method["seeds"][index] for method in part["methods"].values()]
        below = min(0.0, *(min(seed["gap"]) for seed in seeds))
        for seed in seeds:
            seed["gap"] = [gap - below for gap in seed["gap"]]
    return part


def _finish(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        frame(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right center", fontsize=9)
    path.parent.mkdir(exist_ok=True)
    save_png(figure, path)


# ----- the page ---------------------------------------------------------------------------------------------------


def _ends(record: Mapping[str, Any], value: str) -> np.ndarray:
    return np.asarray([seed[value][-1] for seed in record["seeds"]], float)


def _spread(values: np.ndarray, digits: str) -> str:
    return f"{np.median(values):{digits}} [{values.min():{digits}}, {values.max():{digits}}]"


def _at_an_end(part: Mapping[str, Any]) -> str:
    """Which rates were chosen at an end of those tried, in words."""
    ends = {"lowest": min(measure.RATES), "highest": max(measure.RATES)}
    words = []
    for word, rate in ends.items():
        names = [name for name, method in part["methods"].items() if method["rate"] == rate]
        words += [f"the {word} of {', '.join(names)}"] if names else []
    return f"Chosen rates at an end of the range, beyond which may be better ones: {'; '.join(words) or 'none'}."


def page(record: Mapping[str, Any]) -> str:
    """README.md from the JSON alone."""
    cosine = ["| method | median of 20 seeds | lowest |", "| --- | --- | --- |"]
    for name, values in sorted(record["cosines"]["cosines"].items(), key=lambda item: -np.median(item[1])):
        cosine.append(f"| {name} | {np.median(values):.4f} | {min(values):.4f} |")
    bench = ["| method | rate | hypergradients | Q(θ*(h)) - min Q, median [least, most] |", "| --- " * 4 + "|"]
    for name, part in record["benchmark"]["methods"].items():
        number = np.median([seed["number"][-1] for seed in part["seeds"]])
        bench.append(f"| {name} | {part['rate'] or '-'} | {number:,.0f} | {_spread(_ends(part, 'gap'), '.3g')} |")
    tables = {}
    for which in ("layer", "coordinate"):
        lines = ["| method | rate | hypergradients | validation loss | test accuracy |", "| --- " * 5 + "|"]
        any_record = next(iter(record[which]["methods"].values()))
        start = {
            value: np.asarray([seed[value][0] for seed in any_record["seeds"]]) for value in ("validation", "accuracy")
        }
        before = " | ".join(_spread(values, ".3f") for values in start.values())
        lines.append(f"| λ = 0.001, as it was | - | 0 | {before} |")
        for name, part in record[which]["methods"].items():
            number = np.median([seed["number"][-1] for seed in part["seeds"]])
            loss, accuracy = (_spread(_ends(part, value), ".3f") for value in ("validation", "accuracy"))
            lines.append(f"| {name} | {part['rate'] or '-'} | {number:,.0f} | {loss} | {accuracy} |")
        tables[which] = "\n".join([*lines, "", _at_an_end(record[which])])
    speed = record["speed"]
    best = {
        which: min(
            record[which]["methods"],
            key=lambda n, w=which: float(np.median(_ends(record[w]["methods"][n], "validation"))),
        )
        for which in ("layer", "coordinate")
    }
    nearest = min(
        record["benchmark"]["methods"], key=lambda n: float(np.median(_ends(record["benchmark"]["methods"][n], "gap")))
    )
    return PAGE.format(
        cosines="\n".join(cosine),
        differences=f"{record['cosines']['differences']:.0e}",
        benchmark="\n".join([*bench, "", _at_an_end(record["benchmark"])]),
        nearest=nearest,
        budget=record["benchmark"]["budget"],
        whole=record["benchmark"]["whole"],
        cpu=f"{record['benchmark']['cpu_seconds']:.0f}",
        **tables,
        best_layer=best["layer"],
        best_coordinate=best["coordinate"],
        layer_budget=record["layer"]["budget"],
        coordinate_budget=record["coordinate"]["budget"],
        hyperparameters=f"{speed['hyperparameters']:,}",
        ratio=f"{speed['ratio']:.1f}",
        per_step=f"{speed['whole_per_step']:.1f}",
        gradient=f"{1e3 * speed['gradient']:.2f}",
        seeds=measure.SEEDS,
        rates=", ".join(f"{rate:g}" for rate in measure.RATES),
        window=measure.WINDOW,
        retrained=measure.WHOLE,
        examples=measure.EXAMPLES,
    )


PAGE = """# Hypergradients at equal cost

Written by `python -m experiments.model_selection.hypergradients.write` from `results.json`; the pictures come with it.
What each method is, its bias and its cost stand in `metaopt/estimators/bilevel.py`, which works on any two functions
L(θ, h) and Q(θ, h) by itself: `examples/own_hypergradients.py`. gradhpo (JAX: T1-T2, greedy, one step, distilled) and
hippotrainer (torch: HOAG, DrMAD, Neumann) are libraries of such methods for one training run; here they are entries
beside all other estimators, move h of a task family under any optimizer, and nothing of those libraries' code is used.

## Against the exact hypergradient

12 prior precisions e^h, 40 training and 40 validation points; h = θ_0 = 0, 1000 steps at λ = 1/λ_max, float64. Exact is
the derivative of the closed form, which agrees with finite differences to {differences} of its size. Cosines to it:

{cosines}

Greedy and T1-T2 see what h does at one step and are another direction here. Neumann's series is as long as its terms
are many: 20 are too few where the curvatures span two orders, 1000 are about as good as the run itself.

## 12 precisions at {budget} CPU-seconds each

Adam in h, held to [-6, 5]; its rate of {rates} chosen for each method on a data set apart, the other {seeds} are
reported. Those that keep θ make {window} inner steps a hypergradient (greedy one), the others run {whole} from 0. The
gap is exact: Q at the closed-form θ*(h), above the lowest Q that L-BFGS-B or any method found in the
box.

{benchmark}

![The gap against seconds](figures/benchmark.png)

{nearest} ended lowest by the median. Whole-run methods minimise Q at the θ that their run reaches, not at θ*: the h
that suits a run which stops early is not the best for one that does not. This part took {cpu} CPU-seconds in all.

## A digits network

A 64-134-10 network on {examples} digits, all of them at every step, cross-entropy and ½Σλ_i θ_i²; λ begins at 0.001
and is kept in [1e-6, 1]. h is chosen by the validation digits; what is shown is the network trained anew with h, from
the same first weights (a decay for each coordinate means another thing on others), {retrained} steps, as many as those
of DrMAD and of exact modes. HOAG and Neumann have a damping of 0.1. This is the second design: in a first one networks
were retrained from other first weights and for longer, and hardly any method gained. {seeds} seeds, each with its own
training digits and first weights; median [least, most].

A decay a layer, {layer_budget} CPU-seconds each (lowest median of the validation loss: {best_layer}):

{layer}

A decay a coordinate, {hyperparameters} of them, {coordinate_budget} CPU-seconds each (lowest median of the validation
loss: {best_coordinate}); forward mode would take as many runs a hypergradient and is left out:

{coordinate}

![Validation loss and test accuracy against seconds](figures/digits.png)

Two decays hardly matter on so short a run. One for each coordinate does, and is chosen by validation digits, which so
become training data of another kind: the test accuracy is of digits that neither saw. The number of steps shown is the
one that DrMAD and reverse mode optimise for; those that keep θ aim at the minimum, and the signals of greedy and T1-T2
go on moving h when they no longer help.

## Speed

At {hyperparameters} hyperparameters a gradient of the inner loss takes {gradient} CPU-milliseconds, and each further
step of HOAG's conjugate gradients {ratio} of them; a whole hypergradient of 12 steps {per_step} for each of its steps.
"""


def main() -> None:
    file = HERE / "results.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name, part in measure.PARTS.items():
        if "--page" not in sys.argv and (name not in record or name in sys.argv):
            record[name] = jsonable(part())
            text = json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
            file.write_text(text, encoding="utf-8")
    above_the_lowest(record["benchmark"])
    draw_benchmark(record["benchmark"], HERE / "figures" / "benchmark.png")
    draw_digits(record, HERE / "figures" / "digits.png")
    (HERE / "README.md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
