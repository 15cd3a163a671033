"""What a finished run folder gives a tracker: rows of tables, pictures, the optimizer's card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.runs import tables
from metaopt.runs.folder import CONFIG, ENVIRONMENT, EVALUATION, OPTIMIZER

Table = list[dict[str, Any]]  # rows, whose keys are the columns


def result_rows(results: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each optimizer on each task and horizon; losses are means over tasks, counts shares of the tasks.

    A row has the columns of its own events, and those of early stopping where there was any.
    """
    rows = []
    for result, name, record in _records(results):
        parts = ("final", "gap", "ratio_to_best_baseline", "difference_to_best_baseline")
        final, gap, ratio, difference = (record.get(part) or {} for part in parts)
        low, high = final.get("mean_interval") or (None, None)
        rows.append(
            {
                "task": result["task"],
                "horizon": result["horizon"],
                "tasks": result["num_tasks"],
                "optimizer": name,
                "kind": record.get("kind"),
                "learning_rate": (record.get("tuned") or {}).get("learning_rate"),
                "mean": _number(final.get("mean")),
                "mean_low": _number(low),
                "mean_high": _number(high),
                "median": _number(final.get("median")),
                "mean_above_bound": _number(gap.get("mean")),
                "to_best_baseline": _number(tables.ratio(ratio)),
                "difference_to_best_baseline": _number(difference.get("mean")),
                "failed": record.get("failed"),
                "rises": record.get("rises"),
                "keeps_improving": record.get("keeps_improving"),
                "accuracy": (record.get("test") or {}).get("accuracy"),
                **_event_columns(record.get("events") or {}),
                **_stopping_columns(record.get("early_stopping") or {}),
            }
        )
    return rows


def _event_columns(events: Mapping[str, Any]) -> dict[str, Any]:
    columns = {}
    for event, held in events.items():
        low, high = held.get("interval") or (None, None)
        shares = {"": held.get("share"), "_low": low, "_high": high}
        columns |= {f"P({event}){end}": _number(value) for end, value in shares.items()}
    return columns


def _stopping_columns(told: Mapping[str, Any]) -> dict[str, Any]:
    if not told:
        return {}
    restored, end = (_number((told.get(where) or {}).get("loss")) for where in ("restored", "at_end"))
    return {"steps_saved": _number(told.get("steps_saved")), "restored_loss": restored, "loss_at_end": end}


def curve_rows(results: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each inner step of each curve."""
    rows = []
    for result, name, record in _records(results):
        curve = record.get("curve") or {}
        where = {"task": result["task"], "horizon": result["horizon"], "optimizer": name}
        parts = [part for part in ("mean", "median", "q25", "q75") if part in curve]
        for step, *values in zip(*(curve.get(part, []) for part in ("steps", *parts)), strict=True):
            rows.append({**where, "step": step, **dict(zip(parts, map(_number, values), strict=True))})
    return rows


def _records(results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    for result in results:
        for name, record in result["optimizers"].items():
            yield result, name, record


def doctor_rows(doctor: Mapping[str, Any]) -> Table:
    """One row for each estimator, horizon and window that the doctor measured."""
    rows = []
    for entry in doctor.get("estimators") or []:
        row = {key: entry.get(key) for key in ("estimator", "own", "horizon", "window", "num_lives")}
        for key in ("cosine", "norm_ratio", "snr"):
            measured = entry.get(key) or {}
            row |= {key: _number(measured.get("value")), f"{key}_error": _number(measured.get("error"))}
        for key in ("one_step_cosine", "tasks_for_snr_1", "nonfinite", "clipped", "diverged"):
            row[key] = _number(entry.get(key))
        rows.append({**row, "own": bool(row["own"]), "reason": entry.get("reason")})
    return rows


def _number(value: Any) -> float | None:
    return None if value is None else float(value)  # "inf" too


def pictures(
    results: Sequence[Mapping[str, Any]], doctor: Mapping[str, Any], folder: Path
) -> Iterator[tuple[str, Path, str]]:
    """(name, PNG file, caption) of the evaluation's curves and the doctor's figures."""
    if not results and not doctor:
        return
    from metaopt.report.pictures import evaluation_figure
    from metaopt.report.svg import save_png

    folder.mkdir(parents=True, exist_ok=True)
    for index, result in enumerate(results):
        caption = f"{result['task']}, {result['horizon']} steps, {result['num_tasks']} tasks"
        file = save_png(evaluation_figure(result), folder / f"evaluation_{index}.png")
        yield f"evaluation/{result['task']}/{result['horizon']}", file, caption
    if doctor:
        from metaopt.report.doctor_pictures import CAPTIONS, doctor_figures

        for name, figure in doctor_figures(doctor).items():
            yield f"doctor/{name}", save_png(figure, folder / f"doctor_{name}.png"), CAPTIONS[name]


def artifact_files(path: Path) -> list[Path]:
    """The optimizer and what tells of it; none where there is no optimizer yet."""
    if not (path / OPTIMIZER).is_file():
        return []
    names = (OPTIMIZER, CONFIG, ENVIRONMENT, EVALUATION)
    return [path / name for name in names if (path / name).is_file()]


def card_of(path: Path) -> dict[str, Any]:
    """The card and the experiment in the header of a run's optimizer.safetensors; empty where it cannot be read."""
    try:
        with open(path / OPTIMIZER, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        about = json.loads(header["__metadata__"]["metaopt"])
        return {**about["card"], "experiment": about["experiment"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
