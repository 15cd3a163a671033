"""Run folders in Python: what was set, what was measured, and φ, with tables as pandas has them."""

from __future__ import annotations

import dataclasses
import functools
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaopt import files
from metaopt.errors import UserError, suggest
from metaopt.experiment import Experiment
from metaopt.report.comparison import runs_among
from metaopt.report.words import number
from metaopt.runs import folder, index
from metaopt.runs.evaluations import read_results
from metaopt.runs.metrics import Row, read_rows
from metaopt.runs.optimizer_file import Trained, read_optimizer
from metaopt.sinks.contents import curve_rows, result_rows

if TYPE_CHECKING:
    import pandas

Place = str | os.PathLike[str]  # a LoadedRun is one too
WORDS = {None: float("nan"), "inf": float("inf"), "-inf": float("-inf")}  # as JSON has them


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class LoadedRun:
    """A run as its folder had it when it was loaded; tables are empty where nothing was measured yet.

    Attributes:
      path: the folder.
      experiment: what config.json holds, with all defaults.
      state: how it stands, such as `finished` or `interrupted`.
      meta_step: meta-steps done.
      best: the lowest validation score; None before the first validation.
      best_at: its meta-step.
      environment: versions, commit, device, data.
      evaluations: the results in evaluation.json, as they stand there; `plots.curves` draws one.
    """

    path: Path
    experiment: Experiment
    state: str
    meta_step: int
    best: float | None
    best_at: int | None
    environment: Mapping[str, Any]
    evaluations: Sequence[Mapping[str, Any]]
    rows: Sequence[Row] = dataclasses.field(repr=False)  # of metrics.jsonl

    @functools.cached_property
    def metrics(self) -> pandas.DataFrame:
        """A row a meta-step: `meta_loss`, `grad_norm`, `horizon`, ..., as they are called in metrics.jsonl."""
        return _of_kind(self.rows, "train")

    @functools.cached_property
    def validations(self) -> pandas.DataFrame:
        """A row a validation, by meta-step: losses on held-out tasks such as `validation/10x/median`."""
        return _of_kind(self.rows, "validation")

    @functools.cached_property
    def results(self) -> pandas.DataFrame:
        """A row an optimizer, task family and horizon, as `metaopt export` writes them."""
        return _frame(result_rows(self.evaluations))

    @functools.cached_property
    def curves(self) -> pandas.DataFrame:
        """A row a recorded inner step of each of those: mean, median and quartiles of the loss over tasks."""
        return _frame(curve_rows(self.evaluations))

    @functools.cached_property
    def picks(self) -> Mapping[str, Path]:
        """The files of φ that the run left, by how φ was picked: `best at 10x`, the one handed out, first."""
        return folder.picks(self.path, self.experiment)

    def trained(self, pick: str | None = None) -> Trained:
        """φ with its optimizer, the experiment that made it, and its card; `metaopt.load(run)` has it as optax does.

        Args:
          pick: one of `picks`; None: the first.

        Raises:
          UserError: there is none yet, or no such one.
        """
        if not self.picks:
            again = folder.resume_command(self.path)
            raise UserError(f"{self.path} has no φ yet; let `{again}` reach a checkpoint.")
        if pick is not None and pick not in self.picks:
            raise UserError(f"`pick`: {suggest(pick, self.picks)}")
        return read_optimizer(self.picks[next(iter(self.picks)) if pick is None else pick])

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"LoadedRun({str(self.path)!r}, {', '.join(f'{name} {value}' for name, value in self._said().items())})"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in self._said().items()
        )
        return f"<table><caption>{html.escape(str(self.path))}</caption>{cells}</table>"

    def _said(self) -> dict[str, str]:
        said = {
            "state": self.state,
            "meta-steps": f"{self.meta_step:,} of {self.experiment.num_meta_steps:,}",
            "optimizer": str(self.experiment.optimizer),
            "tasks": ", ".join(map(str, self.experiment.tasks)),
        }
        if self.best is not None:
            said["best validation"] = f"{number(self.best)} at meta-step {self.best_at:,}"
        if self.evaluations:
            said["evaluated on"] = ", ".join(dict.fromkeys(str(result["task"]) for result in self.evaluations))
        return said


def load_run(path: str | Path) -> LoadedRun:
    """A run folder, whole or as far as it got.

    Raises:
      UserError: it is no run folder, or its config.json or evaluation.json is broken.
    """
    place, experiment = folder.open_run(Path(path))
    run = index.read_run(place)
    return LoadedRun(
        path=place,
        experiment=experiment,
        state=run.state,
        meta_step=run.meta_step,
        best=run.best,
        best_at=run.best_at,
        environment=folder.environment_of(place),
        evaluations=read_results(place),
        rows=read_rows(place / folder.METRICS),
    )


def load_results(places: Place | Sequence[Place]) -> pandas.DataFrame:
    """The evaluations of several runs as one table, a row an optimizer, task family, horizon and run.

    Before the columns of `LoadedRun.results` stand `run`, its folder, and every field in which the runs' configurations
    differ, such as `seed`; where both have a column of a name, that of the configurations is `trained.horizon`. A run
    that was not evaluated yet has no rows.

    Args:
      places: run folders, folders of runs such as a sweep's, or what `load_run` gives; one or several.

    Raises:
      UserError: a place that holds no run, or a run whose evaluation.json is broken.
    """
    every = [places] if isinstance(places, str | os.PathLike) else places
    runs = [index.read_run(path) for path in runs_among([files.place(os.fspath(place)) for place in every])]
    whole = index.with_defaults([run.fields for run in runs])
    axes = index.differing(whole)
    results = [result_rows(read_results(run.path)) for run in runs]
    taken = {"run", *(name for rows in results for row in rows for name in row)}
    names = {axis: f"trained.{axis}" if axis in taken else axis for axis in axes}
    return _frame(
        [
            {"run": run.name, **{name: fields.get(axis) for axis, name in names.items()}, **row}
            for run, fields, rows in zip(runs, whole, results, strict=True)
            for row in rows
        ]
    )


def _of_kind(rows: Sequence[Row], kind: str) -> pandas.DataFrame:
    own = [{name: value for name, value in row.items() if name != "kind"} for row in rows if row.get("kind") == kind]
    return _frame(own).set_index("meta_step") if own else _frame([])


def _frame(table: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    import pandas

    def value(held: Any) -> Any:
        return WORDS.get(held, held) if isinstance(held, str | None) else held

    return pandas.DataFrame([{name: value(held) for name, held in row.items()} for row in table])
