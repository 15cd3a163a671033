"""The pictures that pages show, as matplotlib figures, of runs as `load_run` gives them and of what `evaluate` returns.

What `metaopt.plots` returns can be changed and saved as any figure; a notebook shows it.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from metaopt import files
from metaopt.benchmark import running, scores
from metaopt.errors import UserError, suggest
from metaopt.evaluation.curves import Curves
from metaopt.evaluation.statistics import describe, jsonable
from metaopt.report.benchmark_page import profile_panel
from metaopt.report.comparison import compare_all, runs_among
from metaopt.report.comparison_curves import axes_panels, curves_panels
from metaopt.report.horizons import Evaluated, at_horizons, panels_of
from metaopt.report.panels import panels_figure, run_style
from metaopt.report.pictures import evaluation_figure, meta_training_figure
from metaopt.results import LoadedRun, Place, load_run

Run = LoadedRun | str | Path


def curves(
    run: Run | Curves, task: str | None = None, horizon: int | None = None, *, baselines: Collection[str] = ()
) -> Figure:
    """Loss against the inner step in one of a run's evaluations, beside the baselines: mean, median, quartiles.

    Args:
      run: a run, or what `metaopt.evaluate` returned.
      task: a family of `run.results`; None: the first.
      horizon: one at which it was evaluated; None: the longest.
      baselines: names of what `evaluate` ran that are drawn as such; of a run they are known.

    Raises:
      UserError: it was not evaluated, or not there, or no loss is finite.
    """
    if isinstance(run, Curves):
        return _with_axes(evaluation_figure(_described(run, baselines)), "these curves")
    results = _run(run).evaluations
    if not results:
        raise UserError(f"{_run(run).path} was not evaluated yet; `metaopt evaluate` does it.")
    for name, asked in (("task", task), ("horizon", horizon)):
        known = dict.fromkeys(str(result[name]) for result in results)
        if asked is not None:
            results = [result for result in results if str(result[name]) == str(asked)]
            if not results:
                raise UserError(f"`{name}`: {suggest(str(asked), known)}")
    first = results[0]["task"]
    shown = max((one for one in results if one["task"] == first), key=lambda one: one["horizon"])
    return _with_axes(evaluation_figure(shown), f"{first} at {shown['horizon']} steps")


def meta_training(run: Run) -> Figure:
    """Meta-loss and validation losses against the meta-step.

    Raises:
      UserError: no meta-step with a finite loss is recorded yet.
    """
    loaded = _run(run)
    return _with_axes(meta_training_figure(loaded.rows), str(loaded.path))


def horizons(*runs: Run) -> Figure:
    """Median final losses at multiples of the horizon that runs were trained for, a panel a task family.

    Raises:
      UserError: no run was evaluated at two horizons.
    """
    loaded = [_run(run) for run in runs]
    drawn = [
        Evaluated(one.path.name, run_style(index, f"{one.path.parent.name}/{one.path.name}"), one.evaluations)
        for index, one in enumerate(loaded)
    ]
    points = at_horizons(drawn)
    if not points:
        raise UserError("none of these runs was evaluated at two horizons of one task family.")
    return panels_figure(panels_of(drawn, points, most=None), legend=True)


def compare(*places: Place) -> Figure:
    """Runs, or folders of runs such as a sweep's: meta-losses, validations, and the best against each field.

    Raises:
      UserError: a place that holds no run, or no meta-step with a finite loss is recorded yet.
    """
    if not places:
        raise UserError("name at least one run, or a folder of runs such as a sweep's.")
    roots = [files.place(os.fspath(_one(place))) for place in places]
    comparison = compare_all(runs_among(roots), roots[0])
    panels = [*curves_panels(comparison), *axes_panels(comparison)]
    return _with_axes(panels_figure(panels, legend=True), "these runs")


def profile(folder: str | Path, horizon: int | None = None) -> Figure:
    """Performance profiles (Dolan and Moré 2002) of what `metaopt benchmark` measured.

    The share of tasks on which an optimizer ends within a factor of the best of those shown.

    Args:
      folder: the one that `metaopt benchmark` printed.
      horizon: one of those it ran; None: each has a panel.

    Raises:
      UserError: no benchmark lies there, or it has not run that horizon.
    """
    path = files.place(folder) / running.RECORDS
    if not path.is_file():
        raise UserError(f"{folder} holds no {running.RECORDS}; give the folder that `metaopt benchmark` printed.")
    record = files.read_json(path)
    if not isinstance(record, dict) or not {"suite", "optimizers", "entries"} <= set(record):
        raise UserError(f"{path} is not as `metaopt benchmark` writes it; move it away and run it again.")
    known = sorted({int(at) for held in record["entries"].values() for at in held})
    if not known:
        raise UserError(f"{folder} has no task measured yet; run `metaopt benchmark` again, with more --minutes.")
    if horizon is not None and horizon not in known:
        raise UserError(f"`horizon` ({horizon}): {folder} has {', '.join(map(str, known))}.")
    baselines = running.held_baselines(record["suite"])
    shown = known if horizon is None else [horizon]
    own = list(record["optimizers"])
    panels = [profile_panel(scores.joined(baselines, record["entries"], at), own, at) for at in shown]
    return panels_figure(panels, legend=True)


def _described(curves: Curves, baselines: Collection[str]) -> dict[str, Any]:
    """What a run's evaluation.json would hold of them."""
    unknown = [name for name in baselines if name not in curves.loss]
    if unknown:
        raise UserError(f"`baselines`: {suggest(unknown[0], curves.loss)}")
    about: dict[str, Any] = {"train_horizon": curves.train_horizon, "scale": curves.scale}
    optimizers = {
        name: {
            "kind": "baseline" if name in baselines else "learned",
            **jsonable(describe(loss, curves.steps, peak=curves.peak[name], **about)),
        }
        for name, loss in curves.loss.items()
    }
    return {"horizon": int(curves.steps[-1]), "train_horizon": curves.train_horizon, "optimizers": optimizers}


def _with_axes(figure: Figure, where: str) -> Figure:
    if not figure.axes:
        raise UserError(f"{where}: there is no finite loss to draw.")
    return figure


def _run(run: Run) -> LoadedRun:
    return run if isinstance(run, LoadedRun) else load_run(os.fspath(_one(run)))


def _one(place: Place) -> Place:
    if isinstance(place, str | os.PathLike):
        return place
    kind = type(place).__name__
    raise UserError(f"a {kind} is no run: give folders or what `load_run` gives, each as an argument of its own.")
