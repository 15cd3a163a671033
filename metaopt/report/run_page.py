"""A run as one page: report.html, which opens from disk without network or other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.errors import UserError
from metaopt.experiment.plain import upgraded
from metaopt.files import read_json
from metaopt.report.examination import examination
from metaopt.report.horizons import horizons, one_run
from metaopt.report.inspect_pictures import section
from metaopt.report.page import drawings, write_page
from metaopt.report.pictures import evaluation_figure, meta_training_figure, styles, validation_styles
from metaopt.report.series import is_above_bound, is_without_bound, some, validation_series
from metaopt.report.words import defaults_apart, flatten
from metaopt.runs.evaluations import check_writable, read_results
from metaopt.runs.folder import BEGUN_WITH, CONFIG, DOCTOR, ENVIRONMENT, INSPECTION, METRICS, REPORT, open_run
from metaopt.runs.index import bare, read_run
from metaopt.runs.metrics import number, read_rows


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
    train_rows = [row for row in rows if row.get("kind", "train") == "train" and "meta_loss" in row]
    results, planned = read_results(run_dir), config.get("num_meta_steps")
    title = str(environment.get("experiment") or run_dir.resolve().name)
    return write_page(
        "run.html",
        out,
        title=title,
        subtitle=f"Run folder {run_dir.resolve()}",
        done=train_rows[-1]["meta_step"] if train_rows else 0,
        planned=planned if isinstance(planned, int) else None,
        ended=read_run(run_dir),
        horizons=horizons([one_run(title, results)]),
        evaluations=[_evaluation(result, index) for index, result in enumerate(results)],
        examination=examination(_optional(run_dir / DOCTOR)),
        inspection=section(_optional(run_dir / INSPECTION)),
        training=_meta_training(rows, train_rows) if train_rows else None,
        configuration=defaults_apart(flatten(upgraded(config)), _defaults()),
        environment=_environment(environment),
    )


def _defaults() -> dict[str, str]:
    return dict(flatten({name: list(value) if isinstance(value, tuple) else value for name, value in bare().items()}))


def _optional(path: Path) -> Any:
    return read_json(path) if path.is_file() else {}


def _evaluation(result: Mapping[str, Any], index: int) -> dict[str, Any]:
    label = f"Loss curves on {result['task']} over {result['horizon']} steps; the data stand in the table below."
    curves = {name: record["curve"] for name, record in result["optimizers"].items()}
    steps = next(iter(curves.values()))["steps"] if curves else []
    return {
        "result": result,
        "index": index,
        "styles": styles(result),
        "gap": is_above_bound(result),
        "free": is_without_bound(result),
        "drawings": drawings(
            lambda narrow: evaluation_figure(result, narrow=narrow, legend=False), f"e{index}", label
        ),
        "columns": ["step", *(f"{name}, {part}" for name in curves for part in ("mean", "median"))],
        "rows": [
            [steps[i], *(curve[part][i] for curve in curves.values() for part in ("mean", "median"))]
            for i in some(len(steps))
        ],
    }  # fmt: skip


def _meta_training(rows: Sequence[Mapping[str, Any]], train_rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    label = "Meta-loss and validation loss against the meta-step; the data stand in the table below."
    shown = [train_rows[i] for i in some(len(train_rows))]
    names = ("meta_step", "meta_loss", "grad_norm", "alive", "learning_rate")
    columns = [name for name in names if any(name in row for row in shown)]
    failed = [row["failed"] for row in train_rows if row.get("failed") is not None]
    prefixes = ("validation/", "validation_ema/")
    oracle = [name for name in dict.fromkeys(name for row in shown for name in row) if name.startswith("oracle/")]
    held_out = [row for row in rows if any(key.startswith(prefixes) for key in row)]
    keys = [key for key in dict.fromkeys(key for row in held_out for key in row) if key.startswith(prefixes)]
    return {
        "drawings": drawings(lambda narrow: meta_training_figure(rows, narrow=narrow, legend=False), "m", label),
        "styles": list(validation_styles(rows).values()),
        # Keys such as validation/10x/quadratic/median are there when there are several families.
        "families": any(key.startswith("validation/") and key.count("/") > 2 for key in keys),
        "averaged": bool(validation_series(rows, "validation_ema")),
        "diverged": int(sum(row.get("diverged") or 0 for row in train_rows)),
        "skipped": int(sum(row.get("skipped") or 0 for row in train_rows)),
        "failed": sum(failed) / len(failed) if failed else 0,
        "columns": [name.replace("_", "-") for name in columns],
        "rows": [[row.get(name) for name in columns] for row in shown],
        "oracle_columns": ["meta-step", *(name.removeprefix("oracle/").replace("_", " ") for name in oracle)],
        "oracle_rows": [[row["meta_step"], *(row.get(name) for name in oracle)] for row in shown] if oracle else [],
        "collapsed": sum(number(row.get("oracle/collapsed") or 0) for row in train_rows) / len(train_rows),
        "validations": [[row["meta_step"], *(row.get(key) for key in keys)] for row in held_out],
        "validation_columns": [
            "meta-step",
            *(
                key.replace("validation_ema/", "averaged φ, ").removeprefix("validation/").replace("/", ", ")
                for key in keys
            ),
        ],
    }


def _environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not environment:
        return []
    git, command = environment.get("git"), environment.get("command")
    if git is None:
        environment = {**environment, "git": "not run from a git checkout"}
    elif isinstance(git, Mapping) and git.get("dirty") is not None:
        changed = "with changes that were not committed" if git["dirty"] else "without changes"
        environment = {**environment, "git": f"commit {git.get('commit')}, {changed}"}
    if isinstance(command, list):
        environment = {**environment, "command": " ".join(map(str, command))}
    return flatten({name: value for name, value in environment.items() if name != BEGUN_WITH})
