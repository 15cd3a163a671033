"""The doctor's examination as a section of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from metaopt.microscope.advice import reference_in_words
from metaopt.report.doctor_pictures import CAPTIONS, GATE_NAMES, doctor_figures
from metaopt.report.page import drawings
from metaopt.report.series import some

Row = list[Any]


def examination(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the section shows: advice, then a picture of each kind of figure and its numbers; None without a result.

    Where a picture would be empty there are the numbers alone.
    """
    if not result:
        return None
    forms = {narrow: doctor_figures(result, narrow=narrow) for narrow in (False, True)}
    tables = {name: list(rows(result)) for name, (_, _, rows) in _TABLES.items()}
    more = {"estimators": " ".join(_references(result)), "inputs": result.get("inputs_in_words") or ""}
    return {
        "result": result,
        "figures": [
            {
                "drawings": drawings(
                    lambda narrow, name=name: forms[narrow].get(name), f"d{name}", f"{CAPTIONS[name]} {_BELOW}"
                ),
                "caption": f"{CAPTIONS[name] if name in forms[False] else _EMPTY[name]} {more.get(name, '')}".strip(),
                "title": _TABLES[name][0],
                "columns": _TABLES[name][1].split("|"),
                "rows": rows,
            }
            for name, rows in tables.items()
            if rows
        ],
    }


def _references(result: Mapping[str, Any]) -> Iterator[str]:
    for entry in result["references"]:
        state = "" if entry["resolved"] else ", which do not tell it from zero"
        words = f"{reference_in_words(entry)}, {entry['num_lives']:,} draws{state}"
        yield f"Reference over {entry['horizon']:,} steps: {words}."


def _estimators(result: Mapping[str, Any]) -> Iterator[Row]:
    for entry in result["estimators"]:
        name = entry["estimator"] + (" (the run's own)" if entry.get("own") else "")
        where = [name, entry["horizon"], entry["window"]]
        if "reason" in entry:
            yield [*where, f"cannot: {entry['reason']}", *[""] * 9]
            continue
        cosine, ratio, snr = (entry[key] or {} for key in ("cosine", "norm_ratio", "snr"))
        measured = [entry["num_lives"], cosine.get("value"), cosine.get("error"), ratio.get("value")]
        keys = ("tasks_for_snr_1", "nonfinite", "clipped", "diverged")
        yield [*where, *measured, entry["one_step_cosine"], snr.get("value"), *(entry[key] for key in keys)]


def _jacobian(result: Mapping[str, Any]) -> Iterator[Row]:
    for entry in result["jacobian"]:
        for figures in zip(entry["start"], entry["median"], entry["largest"], strict=True):
            yield [entry["task"], entry["order"], *figures]


def _inputs(result: Mapping[str, Any]) -> Iterator[Row]:
    for entry in (result["inputs"] or {}).get("tasks", ()):
        for name, magnitudes in zip(result["inputs"]["names"], entry["magnitude"], strict=True):
            yield [entry["task"], entry["steps"], name, *magnitudes[1:4]]


def _gates(result: Mapping[str, Any]) -> Iterator[Row]:
    for entry in result["gates"] or ():
        for index, layer in enumerate(entry["layers"], 1):
            for gate, share in layer.items():
                yield [entry["task"], entry["steps"], index, GATE_NAMES.get(gate, gate), f"{share:.1%}"]


def _steps(result: Mapping[str, Any]) -> Iterator[Row]:
    for entry in result["steps"]:
        for i in some(len(entry["step"]), 10):
            yield [entry["task"], entry["step"][i], *(entry[part][i] for part in ("q10", "median", "q90"))]


_BELOW = "The data stand in the table below."
_EMPTY = {
    "estimators": "No estimator's meta-gradient could be measured.",
    "jacobian": "No growth of the Jacobian is finite.",
    "inputs": "No inputs were measured.",
    "gates": "On training tasks every gate has less than 1% of its activations in the outer 5% of its range.",
    "steps": "No step length is finite.",
}
_TABLES: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], Iterator[Row]]]] = {
    "estimators": (
        "Meta-gradients as numbers",
        "Estimator|steps|window|draws|cosine|±|norm ratio|one step's cosine|signal to noise|tasks for 1|not finite|"
        "clipped|runs not finite",
        _estimators,
    ),
    "jacobian": (
        "Growth of the Jacobian as numbers",
        "Task|derivatives|from step|growth a step, median|largest",
        _jacobian,
    ),
    "inputs": ("Inputs as numbers", "Task|steps|input|1%|median|99%", _inputs),
    "gates": ("Gates as numbers", "Task|steps|layer|gate|saturated", _gates),
    "steps": ("Step lengths as numbers", "Task|step|10%|median|90%", _steps),
}
