"""`metaopt export`: a run's metrics and evaluation as files that other programs read."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from metaopt import files
from metaopt.errors import UserError
from metaopt.runs import folder, index
from metaopt.runs.metrics import Follower, Row, begun, grouped, time_of
from metaopt.sinks.contents import curve_rows, result_rows

REMEDY = "pip install 'metaopt-jax[export]'"


@dataclass(frozen=True)
class ExportArguments:
    """Writes what runs logged as files for other programs, or logs it to wandb."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]  # run folders, or folders of runs
    to: Literal["csv", "parquet", "tensorboard", "wandb"]
    out: str | None = None  # a folder; None: each run's own folder


def export_runs(arguments: ExportArguments) -> Iterator[str]:
    """Exports run after run; yields the files or folders written.

    Raises:
      UserError: no run, nothing logged yet, a library that is not installed, or a folder that cannot be written to.
    """
    if arguments.to == "wandb" and arguments.out is not None:
        raise UserError("wandb's files are in the run's folder, where it looks for them; leave --out out.")
    if not arguments.runs:
        raise UserError(f"name at least one run's folder: `metaopt export RUN ... --to {arguments.to}`.")
    paths = {path: root for root in map(Path, arguments.runs) for path in _runs_below(root)}
    write = {"csv": _csv, "parquet": _parquet, "tensorboard": _tensorboard, "wandb": _wandb}[arguments.to]
    for path, root in paths.items():
        rows = Follower(path / folder.METRICS).new_rows()
        if not rows:
            raise UserError(f"{path} has no {folder.METRICS} with rows in it yet; let it reach its first chunk.")
        out = path if arguments.out is None else Path(arguments.out)
        if arguments.out is not None and len(paths) > 1:
            out /= path.relative_to(root) if path != root else path.name
        try:
            out.mkdir(parents=True, exist_ok=True)
            yield from write(path, rows, out)
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror}; give another --out.") from None


def _runs_below(root: Path) -> list[Path]:
    found, broken = index.find_all(root)
    for path in [] if found else broken:
        folder.open_run(path)  # raises what is wrong with it
    if not found:
        raise UserError(f"there is no run below {root}; name a run's folder.")
    return found


def tables(path: Path, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """File name -> rows: `metrics` as in metrics.jsonl; `evaluation` and `curves` where there is an evaluation."""
    results = files.read_object(path / folder.EVALUATION).get("results") or []
    found = {"metrics": list(rows), "evaluation": result_rows(results), "curves": curve_rows(results)}
    return {name: table for name, table in found.items() if table}


# ----- csv and parquet ------------------------------------------------------------------------------------------------


def _csv(path: Path, rows: Sequence[Row], out: Path) -> Iterator[str]:
    """An empty cell: the row has no such value; nan: it has one that is not a number."""
    import pandas

    for name, table in tables(path, rows).items():
        cells = [{key: _cell(value) for key, value in row.items()} for row in table]
        with files.replacing(out / f"{name}.csv") as part:
            pandas.DataFrame(cells, dtype=object).to_csv(part, index=False, errors="backslashreplace")
        yield str(out / f"{name}.csv")


def _cell(value: Any) -> Any:
    return "nan" if value is None else str(value).lower() if isinstance(value, bool) else value


def _parquet(path: Path, rows: Sequence[Row], out: Path) -> Iterator[str]:
    """Null: the row has no such value; nan: it has one that is not a number. A data frame would make them one."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"parquet needs pyarrow, which is not installed; {REMEDY}") from None
    special = {None: float("nan"), "inf": float("inf"), "-inf": float("-inf")}
    for name, table in tables(path, rows).items():
        columns = dict.fromkeys(key for row in table for key in row)
        arrays = {key: [special.get(row[key], row[key]) if key in row else None for row in table] for key in columns}
        with files.replacing(out / f"{name}.parquet") as part:
            parquet.write_table(pyarrow.table(arrays), part)
        yield str(out / f"{name}.parquet")


# ----- TensorBoard ----------------------------------------------------------------------------------------------------


def _tensorboard(path: Path, rows: Sequence[Row], out: Path) -> Iterator[str]:
    """Scalars against the meta-step under the names of the dashboards, and evaluation curves against the inner step."""
    try:
        import tensorboardX
    except ImportError:
        raise UserError(f"TensorBoard's files need tensorboardX, which is not installed; {REMEDY}") from None
    target = out / "tensorboard"
    if target.exists():
        shutil.rmtree(target)  # files of an earlier export would be shown as well
    began = begun(path)
    logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # it would warn of every infinite loss
    with contextlib.closing(tensorboardX.SummaryWriter(str(target), write_to_disk=True)) as writer:
        for row in rows:
            when = time_of(row, began).timestamp()
            for name, value in grouped(row).items():
                writer.add_scalar(name, value, row["meta_step"], walltime=when)
        for row in tables(path, rows).get("curves", []):
            for name in ("mean", "median"):
                if row.get(name) is not None:
                    tag = f"evaluation/{row['task']}/{row['horizon']}/{row['optimizer']}/{name}"
                    writer.add_scalar(tag, row[name], row["step"], walltime=began.timestamp())
        fields = index.fields_of(files.read_object(path / folder.CONFIG))
        lines = [f"| {name} | {index.value_words(fields, name)} |" for name in fields]
        writer.add_text("config", "\n".join(["| field | value |", "| --- | --- |", *lines]), walltime=began.timestamp())
    yield str(target)


# ----- wandb ----------------------------------------------------------------------------------------------------------


def _wandb(path: Path, rows: Sequence[Row], out: Path) -> Iterator[str]:
    """The whole run offline, with what came after training, such as the doctor's examination."""
    from metaopt.runs.optimizer_file import refuse_nonfinite_file
    from metaopt.sinks.wandb_logger import logging_beside

    refuse_nonfinite_file(path / folder.OPTIMIZER)  # which goes along
    said: list[str] = []
    with logging_beside(path, "offline", said.append, patience=600.0, stats=False):
        pass
    if any("off from here on" in line for line in said):
        raise UserError(said[-1])
    part = said[0].removeprefix("wandb: offline in ")
    yield f"{part}; `wandb sync {part}` uploads it"
