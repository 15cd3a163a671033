"""A run as one page: report.html, which opens from disk without network or other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from metaopt.errors import UserError
from metaopt.experiment.plain import upgraded
from metaopt.files import read_json
from metaopt.report import pictures
from metaopt.report.doctor_section import doctor_section
from metaopt.report.horizon_section import horizon_section, one_run
from metaopt.report.page import page, write_page
from metaopt.report.parts import (
    count_words,
    definition_table,
    details_table,
    figure,
    flatten,
    legend,
    number,
    ratio_words,
    results_table,
    validation_table,
)
from metaopt.report.series import validation_series
from metaopt.runs.folder import CONFIG, DOCTOR, ENVIRONMENT, METRICS, REPORT, open_run
from metaopt.runs.index import Run, read_run
from metaopt.runs.metrics import read_rows
from metaopt.runs.results import check_writable, read_results


def read_config(run_dir: Path) -> dict[str, Any]:
    """The object in a run folder's config.json, as the page needs it.

    Raises:
      UserError: the path is no run folder, or the file is broken.
    """
    if not (run_dir / CONFIG).is_file():
        open_run(run_dir)  # raises, with the remedy
    config = read_json(run_dir / CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{run_dir / CONFIG} does not hold an experiment; restore it from another copy of the run.")
    return config


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Writes the page of a run folder from what is there; what is missing is said on it. Returns its path.

    Args:
      out: the page; None: report.html in the folder.

    Raises:
      UserError: the path is no run folder or cannot be written, or a file in it is broken.
    """
    run_dir = Path(run_dir)
    config = read_config(run_dir)
    if out is None:
        check_writable(run_dir, "make it writable, or give --out PAGE.html")
        out = run_dir / REPORT
    environment = _optional(run_dir / ENVIRONMENT)
    rows = read_rows(run_dir / METRICS)
    results = read_results(run_dir)
    title = str(environment.get("experiment") or run_dir.resolve().name)
    train_rows = [row for row in rows if row.get("kind", "train") == "train" and "meta_loss" in row]
    sections = [
        _summary(config, results, train_rows, read_run(run_dir)),
        horizon_section([one_run(title, results)]),
        *(_evaluation(result, index) for index, result in enumerate(results)),
        doctor_section(_optional(run_dir / DOCTOR)),
        _meta_training(rows, train_rows),
        _configuration(upgraded(config)),
        _environment(environment),
    ]
    try:
        return write_page(out, page(title, f"Run folder {run_dir.resolve()}", sections))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another --out.") from None


_ENDS = {
    "interrupted": "The run was interrupted",
    "diverged": "The run diverged",
    "failed": "The run failed",
    "lost": "The run's process ended without a word",
}


def _optional(path: Path) -> Any:
    return read_json(path) if path.is_file() else {}


# ----- sections -------------------------------------------------------------------------------------------------------


def _summary(config: Any, results: Sequence[Any], train_rows: Sequence[Any], ended: Run) -> str:
    planned = config.get("num_meta_steps") if isinstance(config, Mapping) else None
    done = train_rows[-1]["meta_step"] if train_rows else 0
    if not train_rows:
        state = "No meta-step has been recorded yet."
    elif planned and done < planned:
        state = f"Meta-training stands at meta-step {done:,} of {planned:,}."
    else:
        state = f"Meta-training is done: {done:,} meta-steps."
    lines = [f"<p>{escape(state)}</p>"]
    if ended.state in _ENDS:
        words = f"{_ENDS[ended.state]}: {ended.note}" if ended.note else f"{_ENDS[ended.state]}."
        lines.append(f"<p class=bad>{escape(words)}</p>")
    if not results:
        lines.append(
            "<p>It has not been evaluated yet: <code>metaopt evaluate</code> adds curves and a table here.</p>"
        )
    items = []
    for index, result in enumerate(results):
        for name, record in result["optimizers"].items():
            if record.get("kind") == "learned":
                items.append(
                    f'<li><a href="#evaluation-{index}">{_where(result)}</a>: {_verdict(name, record, result)}</li>'
                )
    return (
        "<section><h2>In short</h2>" + "".join(lines) + (f"<ul>{''.join(items)}</ul>" if items else "") + "</section>"
    )


def _where(result: Mapping[str, Any]) -> str:
    return f"<b>{escape(str(result['task']))}</b>, {result['horizon']:,} steps"


def _verdict(name: str, record: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    ratio, best = record.get("ratio_to_best_baseline"), result.get("best_baseline")
    words = f"{escape(name)} ends at a mean loss of {number(record['final']['mean'])}"
    if ratio and best:
        rival = pictures.styles(result)[best].label
        words += f", {ratio_words(ratio['of_means'])} that of the best baseline ({escape(rival)})"
    failed = count_words(record.get("failed"), result["num_tasks"])
    rises = count_words(record.get("rises"), result["num_tasks"])
    words += f"; failed on {failed} tasks"
    if record.get("rises") is not None:
        words += f", rises after its training horizon on {rises}"
    return words + "."


def _evaluation(result: Mapping[str, Any], index: int) -> str:
    trained = result.get("train_horizon")
    horizon = result["horizon"]
    caption = (
        f"Evaluated on {result.get('evaluated_on', 'the exact loss')}; {result['num_tasks']:,} tasks, the same for "
        "every optimizer. First the mean, which a single failed task can lift; a cross marks where it becomes "
        "infinite. Then the median, with the band that holds the middle half of the tasks."
    )
    if trained and trained <= horizon:
        caption += f" The dashed line marks the training horizon, {trained:,} steps."
    label = f"Loss curves on {result['task']} over {horizon} steps; the data stand in the table below."
    drawings = [
        pictures.to_svg(
            pictures.evaluation_figure(result, narrow=narrow, legend=False),
            prefix=f"e{index}{'n' if narrow else 'w'}",
            description=label,
        )
        for narrow in (False, True)
    ]
    title = f"{escape(str(result['task']))} <span class=quiet>{horizon:,} steps</span>"
    return (
        f'<section id="evaluation-{index}"><h2>{title}</h2>'
        + figure(drawings, legend(pictures.styles(result)), caption)
        + results_table(result)
        + _tuning_notes(result)
        + details_table("Curves as numbers", *_curve_rows(result))
        + "</section>"
    )


def _tuning_notes(result: Mapping[str, Any]) -> str:
    notes = []
    for name, record in result["optimizers"].items():
        tuned = record.get("tuned")
        if not tuned:
            continue
        rates = [point["learning_rate"] for point in tuned.get("grid", [])]
        words = f"{name}: rate {number(tuned['learning_rate'])}"
        if rates:
            words += f" of {len(rates)} from {number(min(rates))} to {number(max(rates))}"
        if tuned.get("extended_by"):
            words += f", after {tuned['extended_by']} more at the edge"
        if tuned.get("inside") is False:
            words += ", the bound of the search"
        if tuned.get("criterion") == "median":
            words += ", by the median, for every rate failed on some task"
        if tuned.get("lowered_from") is not None:
            words += f", lowered from {number(tuned['lowered_from'])}, which failed on some of the tasks reported here"
        notes.append(words)
    if not notes:
        return ""
    tasks = next(r["tuned"].get("num_tasks") for r in result["optimizers"].values() if r.get("tuned"))
    text = f"Learning rates chosen by the mean final loss on {tasks} other tasks. " + "; ".join(notes) + "."
    return f"<p class=quiet>{escape(text)}</p>"


def _curve_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    names = list(result["optimizers"])
    columns = ["step", *(f"{name}, {part}" for name in names for part in ("mean", "median"))]
    curves = [result["optimizers"][name]["curve"] for name in names]
    if not curves:
        return columns, []
    points = len(curves[0]["steps"])
    shown = sorted({*range(0, points, max(1, points // 20)), points - 1})
    rows = [
        [f"{curves[0]['steps'][i]:,}", *(number(curve[part][i]) for curve in curves for part in ("mean", "median"))]
        for i in shown
    ]
    return columns, rows


def _meta_training(rows: Sequence[Mapping[str, Any]], train_rows: Sequence[Mapping[str, Any]]) -> str:
    if not train_rows:
        return "<section><h2>Meta-training</h2><p>No meta-step has been recorded yet.</p></section>"
    drawings = [
        pictures.to_svg(
            pictures.meta_training_figure(rows, narrow=narrow, legend=False),
            prefix=f"m{'n' if narrow else 'w'}",
            description="Meta-loss and validation loss against the meta-step; the data stand in the table below.",
        )
        for narrow in (False, True)
    ]
    diverged = sum(row.get("diverged") or 0 for row in train_rows)
    skipped = sum(row.get("skipped") or 0 for row in train_rows)
    health = "No inner run became non-finite."
    if diverged:
        health = f"{diverged:,.0f} inner runs became non-finite and were masked."
    shares = [row["failed"] for row in train_rows if row.get("failed") is not None]
    if any(shares):
        health += f" {sum(shares) / len(shares):.1%} of the inner runs failed (a loss above 10 f(θ_0))."
    health += f" {skipped:,.0f} meta-steps had no usable gradient and were skipped." if skipped else ""
    validation = validation_series(rows)
    caption = "The meta-loss: median of neighbouring meta-steps, with the band from 10 to 90%. "
    if validation:
        caption += "Validation: the loss at the end of runs on held-out tasks, at multiples of the training horizon"
        # Keys such as validation/10x/quadratic/median are there when there are several families.
        several = any(key.startswith("validation/") and key.count("/") > 2 for row in rows for key in row)
        caption += ", relative to the first loss and averaged over the families. " if several else ". "
        if validation_series(rows, "validation_ema"):
            caption += "Of φ averaged over meta-steps, which is what the run leaves, and of φ itself. "
    shown = [
        train_rows[i] for i in sorted({*range(0, len(train_rows), max(1, len(train_rows) // 20)), len(train_rows) - 1})
    ]
    columns = [
        c for c in ("meta_step", "meta_loss", "grad_norm", "alive", "learning_rate") if any(c in row for row in shown)
    ]
    cells = [[number(row.get(c)) if c != "meta_step" else f"{row[c]:,}" for c in columns] for row in shown]
    tables = details_table("Meta-training as numbers", [c.replace("_", "-") for c in columns], cells)
    tables += validation_table(rows)
    return (
        "<section><h2>Meta-training</h2>"
        + figure(drawings, legend(pictures.validation_styles(rows)) if validation else "", caption + health)
        + tables
        + "</section>"
    )


def _configuration(config: Any) -> str:
    rows = [(key, value) for key, value in flatten(config)]
    return f"<section><h2>Configuration</h2>{definition_table(rows)}</section>"


def _environment(environment: Any) -> str:
    if not environment:
        words = "This run has no environment.json, so its versions are not known."
        return f"<section><h2>Versions and machine</h2><p>{words}</p></section>"
    git = environment.get("git")
    if git is None:
        environment = {**environment, "git": "not run from a git checkout"}
    elif isinstance(git, Mapping) and git.get("dirty") is not None:
        changed = "with changes that were not committed" if git["dirty"] else "without changes"
        environment = {**environment, "git": f"commit {git.get('commit')}, {changed}"}
    if isinstance(environment.get("command"), list):
        environment = {**environment, "command": " ".join(map(str, environment["command"]))}
    return f"<section><h2>Versions and machine</h2>{definition_table(flatten(environment))}</section>"
