"""The page that sets several runs beside one another: axes, the best, curves, horizons, what they stood on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.errors import UserError
from metaopt.report.compared_curves import axes_section, curves_section
from metaopt.report.compared_runs import (
    ComparedRun,
    Comparison,
    compare_all,
    points,
    runs_among,
    short_names,
)
from metaopt.report.horizon_section import Evaluated, horizon_section
from metaopt.report.page import page, write_page
from metaopt.report.parts import (
    cell,
    data_table,
    definition_table,
    flatten,
    number,
    swatch,
)
from metaopt.runs import folder
from metaopt.runs.index import value_words
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
    comparison = compare_all(paths, title, root)
    sections = [
        _summary(comparison),
        _runs(comparison, out.absolute().parent),
        _groups(comparison),
        axes_section(comparison),
        curves_section(comparison),
        horizon_section([
            Evaluated(run.summary.name, run.style, run.results, run.label) for run in comparison.runs if run.results
        ]),
        _common(comparison),
        _environments(comparison),
    ]  # fmt: skip
    try:
        return write_page(out, page(title, f"{len(paths)} runs in {root.resolve()}", sections))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another --out.") from None


# ----- sections -------------------------------------------------------------------------------------------------------


def _summary(comparison: Comparison) -> str:
    runs = comparison.runs
    states = Counter(run.summary.state for run in runs)
    experiments = Counter(run.summary.experiment for run in runs)
    words = f"{len(runs)} runs of {_listed(experiments)}: " + ", ".join(f"{n} {state}" for state, n in states.items())
    lines = [f"<p>{escape(words)}.</p>"]
    short = short_names(comparison.axes)
    if comparison.axes:
        items = []
        for name in comparison.axes:
            values = list(dict.fromkeys(value for value, _, _ in _values(runs, name)))
            shown = ", ".join(values[:12]) + (f" and {len(values) - 12} more" if len(values) > 12 else "")
            items.append(f"<li><b>{escape(short[name])}</b>: {escape(shown)}</li>")
        lines.append(f"<p>Their configurations differ in:</p><ul>{''.join(items)}</ul>")
    else:
        lines.append("<p>Their configurations ask for the same φ.</p>")
    if comparison.beside:
        lines.append(f"<p class=quiet>They differ in {escape(', '.join(comparison.beside))} too.</p>")
    best = next((run for run in runs if run.summary.best is not None), None)
    if best is None:
        lines.append("<p>No run has been validated yet, so none is called the best.</p>")
    else:
        label = f" ({best.label})" if best.label else ""
        lines.append(
            f"<p>Best: <b>{escape(best.summary.name)}</b>{escape(label)}, with a validation loss of "
            f"{number(best.summary.best)} at meta-step {best.summary.best_at:,}.</p>"
        )
    lines += [f"<p class=quiet>{escape(warning)}</p>" for warning in comparison.warnings]
    return f"<section><h2>In short</h2>{''.join(lines)}</section>"


def _values(runs: Sequence[ComparedRun], axis: str) -> list[tuple[str, float, Any]]:
    everyone = [run._replace(summary=run.summary._replace(best=run.summary.best or 0.0)) for run in runs]
    return points(everyone, axis)


def _listed(names: Mapping[str, int]) -> str:
    shown = list(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more experiments" if len(names) > 5 else "")


def _runs(comparison: Comparison, place: Path) -> str:
    short = short_names(comparison.axes)
    experiments = len({run.summary.experiment for run in comparison.runs}) > 1
    columns = ["Run", "Best validation", *(short[name] for name in comparison.axes)]
    columns += ["Experiment"] if experiments else []
    columns += ["State", "Meta-steps", "Last validation", "Last meta-loss", "ms a meta-step"]
    rows = []
    for run in comparison.runs:
        summary = run.summary
        scores = [score for row in run.rows if (score := score_of(row)) is not None]
        losses = [row["meta_loss"] for row in run.rows if "meta_loss" in row][-50:]
        times = [row["time/meta_step"] for row in run.rows if isinstance(row.get("time/meta_step"), float)]
        each = 1e3 * float(np.median(times)) if times else None
        last = _median(losses)
        done, at = f"{summary.meta_step:,}", "" if summary.best_at is None else f"at {summary.best_at:,}"
        rows.append([
            f"<th scope=row>{swatch(run.style)}{_link(run, place)}</th>",
            cell(number(summary.best), at, value=summary.best),
            *(_field_cell(value_words(summary.fields, name)) for name in comparison.axes),
            *([f'<td class="words">{escape(summary.experiment)}</td>'] if experiments else []),
            _state_cell(summary.state),
            cell(done, f"of {summary.num_meta_steps:,}" if summary.num_meta_steps else "", value=summary.meta_step),
            cell(number(scores[-1] if scores else None), value=scores[-1] if scores else None),
            cell(number(last), value=last),
            cell(number(each), value=each),
        ])  # fmt: skip
    notes = (
        "Validation: median final loss on held-out tasks at the longest horizon validated, by which a run's best φ is "
        "chosen; below it the meta-step. Last meta-loss: median of the last 50 meta-steps. "
        "Press a header to sort by it."
    )
    table = data_table(columns, rows, kind="results", label="Runs")
    return f"<section id=runs><h2>Runs</h2>{table}<p class=quiet>{notes}</p></section>"


def _median(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.median(known)) if known else None


def _field_cell(value: str) -> str:
    try:
        float(value)
    except ValueError:
        return f'<td class="words">{escape(value)}</td>'
    return f"<td>{escape(value)}</td>"


def _state_cell(state: str) -> str:
    bad = " bad" if state in ("diverged", "failed", "lost") else ""
    return f'<td class="words{bad}">{escape(state)}</td>'


def _link(run: ComparedRun, place: Path) -> str:
    """The run's name; as a link to its own page where that lies below this one."""
    name, report = escape(run.summary.name), run.summary.path.absolute() / folder.REPORT
    if not report.is_file() or not report.is_relative_to(place):
        return name
    from urllib.parse import quote

    return f'<a href="./{quote(report.relative_to(place).as_posix())}">{name}</a>'


def _groups(comparison: Comparison) -> str:
    if all(len(group.scores) < 2 for group in comparison.groups):
        return ""
    axes = [name for name in comparison.axes if name != "seed"]
    short = short_names(comparison.axes)
    rows = []
    for group in comparison.groups:
        scores = group.scores
        shown = _median(scores), min(scores, default=None), max(scores, default=None)
        rows.append([
            f"<th scope=row>{swatch(group.style)}{escape(group.label)}</th>",
            *(_field_cell(value_words(group.fields, name)) for name in axes),
            f"{len(scores)}",
            *(cell(number(value), value=value) for value in shown),
        ])  # fmt: skip
    columns = ["Configuration", *(short[name] for name in axes), "Seeds", "Median", "Lowest", "Highest"]
    table = data_table(columns, rows, kind="results", label="Configurations over seeds")
    words = "The best validation of each run, over the runs that differ in nothing but the seed."
    return f"<section id=seeds><h2>Over seeds</h2><p class=quiet>{words}</p>{table}</section>"


def _common(comparison: Comparison) -> str:
    first = comparison.runs[0].summary.fields
    rows = [(name, value_words(first, name)) for name in first if name not in (*comparison.axes, *comparison.beside)]
    return f"<section><h2>What they have in common</h2>{definition_table(rows)}</section>"


def _environments(comparison: Comparison) -> str:
    """Versions, code and devices: each distinct value with the number of runs that had it."""
    wanted = ("versions.", "git.", "device.", "data")
    tables = [
        {name: value for name, value in flatten(run.environment) if name.startswith(wanted)} for run in comparison.runs
    ]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = []
    for name in names:
        counts = Counter(table.get(name, "not known") for table in tables)
        words = "; ".join(value if len(counts) == 1 else f"{value} ({n} runs)" for value, n in counts.items())
        rows.append((name, words))
    if not rows:
        return ""
    return f"<section><h2>Versions and machines</h2>{definition_table(rows)}</section>"
