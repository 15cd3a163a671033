"""Which runs a list shows: by fields of their configuration, by experiment, by state. Needs no jax."""

from __future__ import annotations

import difflib
import math
import operator as op
import re
from collections.abc import Sequence

from metaopt.errors import UserError, suggest
from metaopt.runs.index import Fields, Run, value_words
from metaopt.runs.metrics import number
from metaopt.runs.state import ALL_STATES

ORDERED = {"<": op.lt, ">": op.gt, "<=": op.le, ">=": op.ge}


def where(texts: Sequence[str]) -> list[tuple[str, str, str]]:
    """(field, comparison, value) of each `field=value`, `field!=value`, `field<value` or `field>value`.

    Raises:
      UserError: a text that is none of these, or something to be above or below that is no number.
    """
    found = []
    for text in texts:
        match = re.fullmatch(r"([\w.-]+?)\s*(!=|<=|>=|=|<|>)\s*(.*)", text)
        if match is None:
            raise UserError(f"--where {text!r} is no comparison; write field=value, such as optimizer.hidden_size=20.")
        if match[2] in ORDERED and math.isnan(number(match[3])):
            raise UserError(f"--where {text!r}: {match[3]!r} is not a number; words take = and != only.")
        found.append((match[1].replace("-", "_"), match[2], match[3]))
    return found


def chosen(
    runs: Sequence[Run],
    conditions: Sequence[tuple[str, str, str]] = (),
    experiment: str | None = None,
    state: str | None = None,
) -> list[Run]:
    """The runs that fulfil every condition.

    Raises:
      UserError: no run has a field of that name, or there is no such state.
    """
    if state is not None and state not in ALL_STATES:
        raise UserError(f"state {suggest(state, ALL_STATES)}")
    known = {name for run in runs for name in run.fields}
    for name, _, _ in conditions:
        if runs and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UserError(f"no run has a field {name!r}{hint} Fields are those of config.json, such as tasks.dim.")
    return [
        run
        for run in runs
        if (experiment is None or run.experiment == experiment)
        and (state is None or run.state == state)
        and (run.fields or not conditions)  # what cannot be read has none
        and all(_fulfils(run.fields, *condition) for condition in conditions)
    ]


def _fulfils(fields: Fields, name: str, comparison: str, text: str) -> bool:
    if name not in fields:
        return comparison == "!="
    held = value_words(fields, name)
    try:
        left, right = float(held), float(text)
    except ValueError:  # words have no order
        return {"=": held == text, "!=": held != text}.get(comparison, False)
    return {"=": op.eq, "!=": op.ne, **ORDERED}[comparison](left, right)
