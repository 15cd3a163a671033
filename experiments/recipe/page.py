"""The page: page.md with what was measured in it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.benchmark.scores import TIE
from metaopt.evaluation.intervals import mean_of

HERE = Path(__file__).parent


def page(record: Mapping[str, Any], arms: Mapping[str, Any]) -> str:
    from experiments.recipe.write import HORIZON, PHIS, REFERENCE, SETTINGS, Setting

    words = (HERE / "page.md").read_text(encoding="utf-8")
    tables = "\n".join(line for name, held in record.items() for line in _table(name, held))
    tasks = Setting._field_defaults["num_tasks"]
    done, of = sum(map(len, record.values())), len(PHIS) * len(SETTINGS)
    lines = [*_answer(record, list(SETTINGS))]
    if done < of:
        lines.append(f"- {done} of {of} rows are measured so far.")
    answer = "\n".join(textwrap.fill(line, 120, subsequent_indent="  ") for line in lines)
    counts = {"horizon": HORIZON, "tasks": tasks, "more": REFERENCE.num_tasks}
    return words.format(**counts, answer=answer, tables=tables, arms="\n".join(_arms(arms)))


def _answer(record: Mapping[str, Any], order: list[str]) -> Iterator[str]:
    """For each φ the estimator of the reference's direction with the least noise."""
    for name, held in record.items():
        resolved = {what: held[what] for what in order if what in held and held[what]["cosine"] is not None}
        against = {what: one for what, one in resolved.items() if one["one_step_cosine"] is not None}
        if not against:
            continue
        best = max(against, key=lambda what: against[what]["one_step_cosine"])
        es = against["NRES, σ = .03"]["one_step_cosine"]
        yield (
            f"- **{name}**: of a single meta-step's gradient the one nearest to the reference's expectation is that of "
            f"{best} (cosine {against[best]['one_step_cosine']:.2f}; NRES itself {es:.2f})."
        )


def _table(name: str, held: Mapping[str, Any]) -> Iterator[str]:
    yield f"### φ {name}\n"
    heads = ("meta-gradient", "cosine", "of one meta-step", "norm", "signal to noise", "non-finite", "core-seconds")
    yield "| " + " | ".join(heads) + " |"
    yield "| --- " * len(heads) + "|"
    for what, one in held.items():
        cells = [_measured(one["cosine"]), _number(one["one_step_cosine"]), _measured(one["norm_ratio"])]
        cells += [_measured(one["snr"]), f"{one['nonfinite']:.0%}", f"{one['core_seconds']:.0f}"]
        yield "| " + " | ".join((what, *cells)) + " |"
    yield ""


def _arms(record: Mapping[str, Any]) -> Iterator[str]:
    """What each arm scores, and its losses over those of the first on the same entries."""
    if not record:
        yield "Not run yet."
        return
    from experiments.recipe.arms import ARMS, FIRST, GONE, RUNS, SEEDS

    record = {name: record[name] for name in (*SEEDS, *RUNS, *GONE, *ARMS) if name in record}
    first = record.get(FIRST, {"scores": {}})
    horizons = list(next(iter(record.values()))["scores"])
    columns = ("≤ best tuned", "≤ best not told", "to tuned Adam", "to the first part [95%]", "failed")
    yield "| " + " | ".join(["arm", *(f"{name}, {at}" for at in horizons for name in columns)]) + " |"
    yield "| --- " * (1 + len(horizons) * len(columns)) + "|"
    for name, arm in record.items():
        cells = [f"{name} (commit {GONE[name]})" if name in GONE else name]
        for at in horizons:
            entries = arm["scores"][at]
            figures = {key: np.array([one[key] for one in entries.values()]) for key in next(iter(entries.values()))}
            whole = first["scores"].get(at, {})
            beside = mean_of(np.array([entries[one]["adam"] - whole[one]["adam"] for one in entries if one in whole]))
            counts = (f"{(figures[key] <= TIE).sum()} of {len(entries)}" for key in ("best", "untold"))
            mean, low, high = (_number(np.exp(value)) for value in (beside.mean, *beside.interval()))
            ratio = "" if name == FIRST or not whole else f"{mean} [{low}, {high}]"
            cells += [*counts, _number(np.exp(figures["adam"].mean())), ratio, f"{figures['failed'].mean():.1%}"]
        yield "| " + " | ".join(cells) + " |"


def _measured(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "–"
    value, error = (found[key] for key in ("value", "error"))
    return f"{_number(value)} ± {_number(error)}"


def _number(value: Any) -> str:
    return "–" if value is None else str(value) if isinstance(value, str) else f"{value:.2g}"
