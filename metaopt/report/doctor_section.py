"""The doctor's examination as a section of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from metaopt.microscope.advice import reference_in_words
from metaopt.report import pictures
from metaopt.report.doctor_pictures import CAPTIONS, GATE_NAMES, doctor_figures
from metaopt.report.parts import details_table, figure, number


def doctor_section(result: Mapping[str, Any]) -> str:
    """Advice first, then a picture of each kind of figure, then the meta-gradients as numbers; "" without a result."""
    if not result:
        return ""
    phi = "a fresh φ" if result.get("meta_step") is None else f"φ of meta-step {result['meta_step']:,}"
    advice = "".join(f"<li>{escape(entry['text'])}</li>" for entry in result["advice"])
    advice = f"<ol>{advice}</ol>" if advice else "<p>Nothing to complain about.</p>"
    wide, narrow = doctor_figures(result), doctor_figures(result, narrow=True)
    figures = []
    for name in wide:
        drawings = [
            pictures.to_svg(drawn[name], prefix=f"d{name}{'n' if drawn is narrow else 'w'}", description=CAPTIONS[name])
            for drawn in (wide, narrow)
        ]
        more = list(_references(result)) if name == "estimators" else []
        more += [result.get("inputs_in_words") or ""] if name == "inputs" else []
        caption = " ".join([CAPTIONS[name], *filter(None, more)])
        figures.append(figure(drawings, "", caption) + _TABLES[name](result))
    return (
        f"<section id=doctor><h2>Examination</h2><p>By <code>metaopt doctor</code>, of {escape(phi)}, with "
        f"{result['num_tasks']:,} tasks a meta-step.</p>{advice}{''.join(figures)}</section>"
    )


def _references(result: Mapping[str, Any]) -> Iterator[str]:
    for entry in result["references"]:
        state = "" if entry["resolved"] else ", which do not tell it from zero"
        words = f"{reference_in_words(entry)}, {entry['num_lives']:,} draws{state}"
        yield f"Reference over {entry['horizon']:,} steps: {words}."


def _estimators(result: Mapping[str, Any]) -> str:
    columns = ["Estimator", "steps", "window", "draws", "cosine", "±", "norm ratio", "one step's cosine"]
    columns += ["signal to noise", "tasks for 1", "not finite", "clipped", "runs not finite"]
    rows = []
    for entry in result["estimators"]:
        name = escape(entry["estimator"]) + (" (the run's own)" if entry.get("own") else "")
        where = [name, f"{entry['horizon']:,}", f"{entry['window']:,}"]
        if "reason" in entry:
            rows.append([*where, f"cannot: {escape(entry['reason'])}", *[""] * (len(columns) - 4)])
            continue
        cosine, ratio, snr = (entry[key] or {} for key in ("cosine", "norm_ratio", "snr"))
        shown = [cosine.get("value"), cosine.get("error"), ratio.get("value"), entry["one_step_cosine"]]
        shown += [snr.get("value"), entry["tasks_for_snr_1"], entry["nonfinite"], entry["clipped"], entry["diverged"]]
        rows.append([*where, f"{entry['num_lives']:,}", *(number(value) for value in shown)])
    return details_table("Meta-gradients as numbers", columns, rows)


def _jacobian(result: Mapping[str, Any]) -> str:
    rows = [
        [escape(entry["task"]), entry["order"], f"{start:,}", number(middle), number(largest)]
        for entry in result["jacobian"]
        for start, middle, largest in zip(entry["start"], entry["median"], entry["largest"], strict=True)
    ]
    columns = ["Task", "derivatives", "from step", "growth a step, median", "largest"]
    return details_table("Growth of the Jacobian as numbers", columns, rows)


def _inputs(result: Mapping[str, Any]) -> str:
    rows = [
        [escape(entry["task"]), escape(str(entry["steps"])), escape(name), *(number(magnitudes[i]) for i in (1, 2, 3))]
        for entry in result["inputs"]["tasks"]
        for name, magnitudes in zip(result["inputs"]["names"], entry["magnitude"], strict=True)
    ]
    return details_table("Inputs as numbers", ["Task", "steps", "input", "1%", "median", "99%"], rows)


def _gates(result: Mapping[str, Any]) -> str:
    rows = [
        [
            escape(entry["task"]),
            escape(str(entry["steps"])),
            f"{index + 1}",
            GATE_NAMES.get(gate, gate),
            f"{layer[gate]:.1%}",
        ]
        for entry in result["gates"]
        for index, layer in enumerate(entry["layers"])
        for gate, share in layer.items()
    ]
    return details_table("Gates as numbers", ["Task", "steps", "layer", "gate", "saturated"], rows)


def _steps(result: Mapping[str, Any]) -> str:
    rows = []
    for entry in result["steps"]:
        every = max(1, len(entry["step"]) // 10)
        parts = list(zip(entry["step"], entry["q10"], entry["median"], entry["q90"], strict=True))
        for step, low, middle, high in [*parts[:-1:every], parts[-1]]:
            rows.append([escape(entry["task"]), f"{step:,}", number(low), number(middle), number(high)])
    return details_table("Step lengths as numbers", ["Task", "step", "10%", "median", "90%"], rows)


_TABLES = {"estimators": _estimators, "jacobian": _jacobian, "inputs": _inputs, "gates": _gates, "steps": _steps}
