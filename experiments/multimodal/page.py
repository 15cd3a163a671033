"""Pictures and README.md of the experiment, from results.json; the moving one from a run of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from metaopt.report.moving import level_map
from metaopt.report.panels import INK, LEARNED, frame
from metaopt.report.series import numbers
from metaopt.report.svg import save_png

Rows = Sequence[Mapping[str, Any]]
ANNEALING = "annealing"
MODE_COLOURS = ("#CC79A7", "#0072B2", "#009E73")
FRAMES, SIDE = 51, 4.6  # of the moving picture, and its side in inches at 100 dots


# ----- pictures ---------------------------------------------------------------------------------------------------


def draw_shares(rows: Rows, path: Path) -> None:
    """P(global) with intervals: a panel a family, a row a method, a colour a budget."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    methods, modes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("method", "mode"))
    columns = 3
    figure = Figure(figsize=(12, 0.32 * len(methods) * -(-len(families) // columns) + 1.6), layout="constrained")
    places = np.atleast_1d(figure.subplots(-(-len(families) // columns), columns, sharey=True)).ravel()
    for axes, family in zip(places, families, strict=False):
        for row in (row for row in rows if row["family"] == family):
            mode = modes.index(row["mode"])
            at = len(methods) - methods.index(row["method"]) + (0.25, 0.0, -0.25)[mode]
            axes.plot(row["interval"], [at, at], color=MODE_COLOURS[mode], linewidth=1.6)
            label = row["mode"] if row["method"] == methods[0] else None
            axes.plot([row["share"]], [at], "o", color=MODE_COLOURS[mode], markersize=4, label=label)
        axes.set(xlim=(-0.03, 1.03), xlabel="P(global)")
        axes.set_yticks(range(len(methods), 0, -1), methods, fontsize=9)
        axes.set_title(family, loc="left", fontsize=10.5, color=INK)
        frame(axes)
    for axes in places[len(families) :]:
        axes.remove()
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(exist_ok=True)
    save_png(figure, path)


def draw_paths(view: Mapping[str, Any], title: str, moving: Path, still: Path) -> None:
    """The paths step by step as a GIF that plays three times, and whole as a PNG for who wants no motion."""
    figure = Figure(figsize=(SIDE, SIDE + 0.5), dpi=100, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    level_map(axes, view)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    steps, paths = view["steps"], {name: np.array([numbers(p) for p in path]) for name, path in view["paths"].items()}
    lines, dots = {}, {}
    for index, (name, path) in enumerate(reversed(paths.items())):
        colour = (*LEARNED, INK)[len(paths) - 1 - index]
        (lines[name],) = axes.plot(*path.T, color=colour, linewidth=1.4, label=name)
        (dots[name],) = axes.plot(*path[-1:].T, "o", color=colour, markersize=6)
    figure.legend(
        handles=[lines[name] for name in paths], loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    canvas.draw()
    figure.set_layout_engine("none")  # as it is now: a title of another length must not move the picture
    frames, palette = [], _palette([line.get_color() for line in lines.values()])
    for last in np.unique(np.linspace(0, len(steps) - 1, FRAMES).round().astype(int)):
        for name, path in paths.items():
            lines[name].set_data(*path[: last + 1].T)
            dots[name].set_data(*path[last : last + 1].T)
        axes.set_title(f"{title}: step {steps[last]}", loc="left", fontsize=10, color=INK)
        canvas.draw()
        drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        frames.append(drawn.quantize(palette=palette, dither=Image.Dither.NONE))
    held = [90] * (len(frames) - 1) + [2500]  # milliseconds
    moving.parent.mkdir(exist_ok=True)
    frames[0].save(moving, save_all=True, append_images=frames[1:], duration=held, loop=2, optimize=True)
    save_png(figure, still)


def _palette(colours: Sequence[Any]) -> Image.Image:
    """The picture's own colours, paler and paler: one found from a frame leaves out a line that is hardly seen."""
    shares = np.linspace(0, 1, 12)[:, None]
    mixed = [255 * (shares + (1 - shares) * np.array(to_rgb(colour))) for colour in (INK, *colours)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(mixed).round().astype(np.uint8).ravel().tolist())
    return palette


# ----- README -----------------------------------------------------------------------------------------------------


def write(record: Mapping[str, Any]) -> str:
    """README.md from the JSON."""
    rows: Rows = record["rows"]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    return PAGE.format(
        shares="\n\n".join(f"{mode}:\n\n{_table(rows, mode, _share)}" for mode in modes),
        gaps="\n\n".join(f"{mode}:\n\n{_table(rows, mode, _gap)}" for mode in modes),
        paired=_paired(rows, modes),
        answer=_answer(rows, modes),
        training=_training(record["training"]),
        annealing=_annealing(record),
        tasks=record["tasks"],
        tuning=record["tuning"],
    )


def _table(rows: Rows, mode: str, cell: Any) -> str:
    own = [row for row in rows if row["mode"] == mode]
    families, methods = (list(dict.fromkeys(row[key] for row in own)) for key in ("family", "method"))
    held = {(row["method"], row["family"]): row for row in own}
    new = {row["family"] for row in own if row["new"]}
    head = [f"{name} (new)" if name in new else name for name in families]
    lines = [f"| | {' | '.join(head)} |", "| --- " * (len(families) + 1) + "|"]
    for method in methods:
        bold = "**" if held[method, families[0]]["learned"] else ""
        cells = [cell(held[method, family]) for family in families]
        lines.append(f"| {bold}{method}{bold} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['share']:.2f} [{low:.2f}, {high:.2f}]"


def _gap(row: Mapping[str, Any]) -> str:
    return f"{float(row['gap']):.2g}"


def _comparisons(rows: Rows, mode: str, against: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(row, its comparison) of the learned at a budget: with annealing run alike, in its better way, or the hardest."""
    found = []
    for row in rows:
        if row["learned"] and row["mode"] == mode:
            annealed = row["paired"][:-1]
            found.append((row, {"alike": annealed[0], "better": annealed[-1], "hardest": row["paired"][-1]}[against]))
    return found


def _budgets(modes: Sequence[str]) -> list[tuple[str, str, str]]:
    """(words, mode of the learned, how annealing ran)."""
    return [
        (f"Annealing, equal steps: {modes[0]}", modes[0], "alike"),
        (f"Annealing, equal steps: {modes[1]}", modes[1], "alike"),
        (f"Annealing in the better of its two ways, equal gradients: one run of {modes[1]}", modes[1], "better"),
        (f"Annealing in the better of its two ways, equal gradients: best of {modes[2]}", modes[2], "better"),
        *((f"Whichever hand-designed one did best there, {mode}", mode, "hardest") for mode in modes),
    ]


def _paired(rows: Rows, modes: Sequence[str]) -> str:
    parts = []
    for words, mode, against in _budgets(modes):
        pairs = _comparisons(rows, mode, against)
        families = list(dict.fromkeys(row["family"] for row, _ in pairs))
        lines = [f"{words}:", "", f"| | {' | '.join(families)} |", "| --- " * (len(families) + 1) + "|"]
        for method in dict.fromkeys(row["method"] for row, _ in pairs):
            cells = []
            for row, pair in pairs:
                if row["method"] == method:
                    mean, low, high = pair["share"]
                    mark = "**" if low > 0 else "*" if high < 0 else ""
                    cells.append(f"{mark}{mean:+.2f}{mark} [{low:+.2f}, {high:+.2f}]")
            lines.append(f"| {method} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _answer(rows: Rows, modes: Sequence[str]) -> str:
    counts: dict[str, dict[str, list[int]]] = {}
    for words, mode, against in _budgets(modes):
        for row, pair in _comparisons(rows, mode, against):
            _, low, high = pair["share"]
            won = counts.setdefault(words, {}).setdefault(row["method"], [0, 0, 0])
            won[0 if low > 0 else 2 if high < 0 else 1] += 1
    methods = list(next(iter(counts.values())))
    lines = [f"| against | {' | '.join(methods)} |", "| --- " * (len(methods) + 1) + "|"]
    lines += [
        f"| {words} | {' | '.join(' / '.join(map(str, held[method])) for method in methods)} |"
        for words, held in counts.items()
    ]
    return "\n".join(lines)


def _training(training: Mapping[str, Any]) -> str:
    lines = ["| | meta-loss, first and last hundred | RMS step length, the same |", "| --- " * 3 + "|"]
    for arm, seeds in training.items():
        cells = []
        for name in ("meta_loss", "step_length"):
            cells.append("; ".join(f"{log[0][name]:.2f} → {log[-1][name]:.2f}" for log in seeds))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _annealing(record: Mapping[str, Any]) -> str:
    lines = ["| | steps | h | T | falls to | h falls | inside the grid |", "| --- " * 7 + "|"]
    for family, each in record["tuned"].items():
        for steps, row in each.items():
            falls, inside = ("yes" if row[key] else "no" for key in ("falls", "inside"))
            lines.append(
                f"| {family} | {steps} | {row['h']:.2g} | {row['T']:.2g} | {row['end']:g} T | {falls} | {inside} |"
            )
    for steps, (h, hot, end, falls) in record["one_setting"].items():
        lines.append(f"| one setting | {steps} | {h:.2g} | {hot:.2g} | {end:g} T | {'yes' if falls else 'no'} | |")
    return "\n".join(lines)


PAGE = """# Functions of many minima: does a learned optimizer with its noise on beat annealing?

Written by `python -m experiments.multimodal.write` from `results.json`; the pictures come with it.

**On the tilted double well, at equal steps, yes; nearly everywhere else no.** There the thesis's policy with its
noise on, meta-trained by evolution strategies (`RL, evolution`), is in the global well more often than tuned
annealing, after 100 steps and after 1,000; with the same φ and the noise off it is not. At equal gradients its ten
short runs beat annealing on the 5-D Styblinski-Tang function alone, as those of every learned optimizer here do.
None of these wins holds against the hand-designed optimizer that did best there, Adam or Langevin dynamics of one
temperature. On Ackley's function annealing tuned to the family wins by far at any budget, and after 1,000 steps
everywhere but on the double well. What rivals it on Ackley's and Rastrigin's functions is plain gradient descent
whose rate falls to 0 from one so large that it jumps across cells: it needs no noise at all.

Won, not told apart, and lost families, by the 95% interval of the difference in P(global) on the same tasks:

{answer}

<picture><source media="(prefers-reduced-motion: reduce)" srcset="figures/paths.png">
<img src="figures/paths.gif" alt="Paths of four optimizers on one task, step by step" width=460></picture>

The first of the reported tasks, not a chosen one. Level lines of the loss, the stronger the lower.

## What was run

Families of shifted (within half the box), stretched (by up to 2 either way) and rotated functions, 1 to 10
dimensions; the one marked new is in no meta-training. {tasks} tasks a family, the same for all. P(global) is the
share of runs that end in the cell of the global minimum, with Wilson's interval; of learned optimizers over three
meta-seeds together, whose own spread the interval does not hold.

*Learned.* One small LSTM (8 units) for each coordinate, scale-free features, steps of α ξ d/RMS(d), meta-trained
over 100 steps on the log of the loss above its bound at the end, relative to the start. `RL`: α is an output;
`recursive`: α_t = α_(t-1) γ_t. Noise ξ ~ Gamma(2, 1) per coordinate; `quiet` never had any. Meta-gradients by
evolution strategies, or reparameterised as the thesis has them. φ is that of the last meta-step of each seed. None
is tuned to a family, nor told the horizon; `off` is the same φ with ξ = 1.

*Hand-designed.* Tuned for each family and horizon on other tasks: {tuning[points]} settings of annealing (step h,
first temperature, how far it falls, whether h falls too) on {tuning[coarse]} tasks, the best {tuning[kept]} by
P(global) and the best {tuning[kept]} by the loss again on {tuning[fine]}. P(global) is shown for what is best by
it, the loss for what is best by that. `annealing, one setting` has the setting whose P(global) is best on average
over the families of meta-training.

*Budgets.* Every step takes one gradient. 1,000 gradients make one run of 1,000 steps, ten times the horizon of
meta-training, or the lowest end of ten runs of 100 steps from new starts (hand-designed ones tuned to 100 steps).

## P(global)

{shares}

![P(global) by family and method](figures/shares.png)

## Differences to annealing, and to the best hand-designed one

In P(global), on the same tasks, mean over seeds, with a bootstrap interval over tasks. Bold: above it; italic: below.

{paired}

## Median loss above its bound, over that of the first start

{gaps}

## Meta-training

{training}

- *Noise.* The RL policy's step hardly shrinks and its noise makes it wander: trained by evolution, it goes on
  finding more minima up to ten times its horizon, and loses most of that with the noise off. Trained by
  reparameterised gradients noise helped on 2-D Ackley and hurt on 10-D. A recursive step length shrinks by itself,
  comes to rest within its horizon, and gains nothing from ten times the steps; meta-trained without noise it is
  better on Ackley's function and worse on the double well.
- *Which noise.* ξ scales each coordinate's step and never turns its sign, so a policy at rest at the bottom of a
  cell leaves it only by steps that are long anyway, while Langevin noise of the right temperature crosses any
  barrier in time.
- *Meta-gradients.* P(global) has no derivative; evolution strategies see it through the loss at the end. The
  reparameterised gradient follows how a run moves within its cells, its seeds differ most, and their meta-loss is
  worst.
- *What made no difference, or did not help* (tried by hand, one seed each; no numbers kept): the mean of f relative
  to f(θ_0) as objective was useless, for one quartic thrown outside decides it; the mean over all steps of the
  logarithm did about as well as the loss at the end; noise per step did a little worse than per coordinate; two
  layers of 20 units did as well as one of 8.
- *Scale.* One setting of annealing for all families fails on the quartics, whose slopes are too steep for it; steps
  of normalised length, as all the learned ones have, need no tuning for that.

## What tuning chose for annealing, by P(global)

{annealing}

Where the best lies at the edge of its grid annealing could be better still.
"""
