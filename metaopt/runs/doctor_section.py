"""The doctor's examination as a section of the report."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from metaopt.analysis import pictures
from metaopt.analysis.doctor_pictures import CAPTIONS, doctor_figures
from metaopt.runs.report_parts import details_table, figure, number


def doctor_section(result: Mapping[str, Any]) -> str:
    """Advice first, then a picture of each kind of figure, then the meta-gradients as numbers; "" without a result."""
    if not result:
        return ""
    phi = "a fresh φ" if result.get("meta_step") is None else f"φ of meta-step {result['meta_step']:,}"
    advice = "".join(f"<li>{escape(entry['text'])}</li>" for entry in result["advice"])
    words = f"<ol>{advice}</ol>" if advice else "<p>Nothing to complain about.</p>"
    wide, narrow = doctor_figures(result), doctor_figures(result, narrow=True)
    figures = []
    for name in wide:
        drawings = [
            pictures.to_svg(drawn[name], prefix=f"d{name}{'n' if drawn is narrow else 'w'}", description=CAPTIONS[name])
            for drawn in (wide, narrow)
        ]
        figures.append(figure(drawings, "", CAPTIONS[name]))
    return (
        f"<section id=doctor><h2>Examination</h2><p>By <code>metaopt doctor</code>, of {escape(phi)}, with "
        f"{result['num_tasks']:,} tasks a meta-step.</p>{words}{''.join(figures)}{_table(result)}</section>"
    )


def _table(result: Mapping[str, Any]) -> str:
    columns = ["Estimator", "steps", "window", "draws", "cosine", "±", "norm ratio", "one step's cosine"]
    columns += ["signal to noise", "tasks for 1", "not finite", "clipped", "diverged"]
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
