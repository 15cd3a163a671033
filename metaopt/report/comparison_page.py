"""The page that sets several runs beside one another: axes, the best, curves, horizons, what they stood on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote_from_bytes

from metaopt.report.comparison import ComparedRun, Comparison, compare_all, points, runs_among, short_names
from metaopt.report.comparison_curves import axes_picture, curves_picture
from metaopt.report.horizons import Evaluated, horizons
from metaopt.report.page import write_page
from metaopt.report.words import defaults_apart, flatten, wordy
from metaopt.runs import folder
from metaopt.runs.index import bare, value_words
from metaopt.runs.metrics import score_of


def write_comparison(places: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page that compares all runs in some folders. Returns its path.

    Args:
      out: the page; None: report.html in the folder, where there is one folder, else comparison.html here.

    Raises:
      UserError: a place without runs, or a page that cannot be written.
    """
    paths = runs_among(places)
    single = len(places) == 1
    title = places[0].resolve().name if single else "Comparison"
    if out is None:
        out = places[0] / folder.REPORT if single else Path("comparison.html")
    common = Path(os.path.commonpath([path.absolute() for path in paths]))
    root = places[0] if single else common if len(paths) > 1 else common.parent
    if not single:
        paths = [path.absolute() for path in paths]
    comparison = compare_all(paths, root)
    runs, fields = comparison.runs, comparison.runs[0].summary.fields
    apart = (*comparison.axes, *comparison.beside)
    return write_page(
        "comparison.html",
        out,
        title=title,
        subtitle=f"{len(paths)} runs in {root.resolve()}",
        comparison=comparison,
        states=Counter(run.summary.state for run in runs),
        experiments=list(dict.fromkeys(run.summary.experiment for run in runs)),
        axes=[_axis(comparison, name) for name in comparison.axes],
        best=next((run for run in runs if run.summary.best is not None), None),
        runs=[_run(run, comparison, out.absolute().parent) for run in runs],
        groups=[_group(group, comparison) for group in comparison.groups],
        seeds=any(len(group.scores) > 1 for group in comparison.groups),
        fields_picture=axes_picture(comparison),
        curves=curves_picture(comparison),
        horizons=horizons(
            [Evaluated(run.summary.name, run.style, run.results, run.label) for run in runs if run.results]
        ),
        common=defaults_apart(
            [(name, value_words(fields, name)) for name in fields if name not in apart],
            {name: value_words(bare(), name) for name in bare()},
        ),
        environments=_environments(runs),
    )


def _axis(comparison: Comparison, name: str) -> dict[str, Any]:
    choices = list(dict.fromkeys(value for value, _, _ in points(comparison.runs, name, everyone=True)))
    short = short_names(comparison.axes)[name]
    return {"name": name, "short": short, "choices": choices, "words": any(map(wordy, choices))}


def _run(run: ComparedRun, comparison: Comparison, place: Path) -> dict[str, Any]:
    """A line of the table of runs."""
    summary = run.summary
    scores = [score for row in run.rows if (score := score_of(row)) is not None]
    losses = [float(row["meta_loss"]) for row in run.rows if row.get("meta_loss") is not None]
    times = [row["time/meta_step"] for row in run.rows if isinstance(row.get("time/meta_step"), float)]
    # Its own page, where that lies below this one.
    report = summary.path.absolute() / folder.REPORT
    linked = report.is_file() and report.is_relative_to(place)
    return {
        "run": run,
        "summary": summary,
        "href": f"./{quote_from_bytes(os.fsencode(report.relative_to(place)))}" if linked else None,
        "cells": [value_words(summary.fields, name) for name in comparison.axes],
        "last": scores[-1] if scores else None,
        "meta_loss": median(losses[-50:]) if losses else None,
        "milliseconds": 1e3 * median(times) if times else None,
    }


def _group(group: Any, comparison: Comparison) -> dict[str, Any]:
    cells = [value_words(group.fields, name) for name in comparison.axes if name != "seed"]
    return {"group": group, "cells": cells, "median": median(group.scores) if group.scores else None}


def _environments(runs: Sequence[ComparedRun]) -> list[tuple[str, str]]:
    """Versions, code and devices: each distinct value with the number of runs that had it."""
    wanted = ("versions.", "git.", "device.", "data")
    tables = [{name: value for name, value in flatten(run.environment) if name.startswith(wanted)} for run in runs]
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        counts = Counter(table.get(name, "not known") for table in tables)
        words = "; ".join(value if len(counts) == 1 else f"{value} ({n} runs)" for value, n in counts.items())
        rows.append((name, words))
    return rows
