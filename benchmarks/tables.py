"""What benchmarks/bench does with its rows: the JSON file, the comparison of two, the tables of docs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, number

MARKER = "speed"
SPEED_PARTS = ("meta_step", "inference", "start", "whole_run")  # on docs/speed.md; the others on docs/scaling.md
PARTS: tuple[str, ...] = (
    "meta_step",
    "network",
    "evolution",
    "particles",
    "inference",
    "scale",
    "devices",
    "start",
    "whole_run",
    "overhead",
    "cost_model",
)  # in this order


def load(path: Path) -> dict[str, Any]:
    """{"machines": part -> what it ran on, "rows": [...], "cost_model": ...}; empty where there is no file.

    Raises:
      SystemExit: not a file that the bench wrote.
    """
    if not path.exists():
        return {"machines": {}, "rows": [], "cost_model": None}
    record = json.loads(path.read_text(encoding="utf-8"))
    if "machines" not in record:
        raise SystemExit(f"{path} was not written by this bench; give another file or remove it.")
    return record


def store(path: Path, part: str, machine: dict[str, Any], rows: Iterable[Row], model: dict | None) -> None:
    """Puts a part's rows into the file in place of those of an earlier run; other parts stay."""
    record = load(path)
    record["machines"][part] = machine
    others = [row for row in record["rows"] if row["part"] != part]
    record["rows"] = sorted(
        others + [dataclasses.asdict(row) for row in rows], key=lambda row: PARTS.index(row["part"])
    )
    if model is not None:
        record["cost_model"] = model
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def rows_of(record: dict[str, Any]) -> list[Row]:
    def limits(value: list[float] | None) -> tuple[float, float] | None:
        return None if value is None else (value[0], value[1])

    return [
        Row(**{**row, "range": limits(row["range"]), "ratio_range": limits(row["ratio_range"])})
        for row in record["rows"]
    ]


# ----- two files ------------------------------------------------------------------------------------------------------


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A Markdown table of every figure that both hold: by ratios to the bound where there are, else by values.

    The mark `*` stands where the two ranges have nothing in common; a figure without ranges gets none.
    """
    old = {_key(row): row for row in rows_of(before)}
    lines = ["| part | figure | settings | before | after | after / before | |", "| --- " * 7 + "|"]
    for row in rows_of(after):
        other = old.get(_key(row))
        if other is None or row.value is None or other.value is None:
            continue
        by_ratio = row.ratio is not None and other.ratio is not None
        a, b = (other.ratio, row.ratio) if by_ratio else (other.value, row.value)
        ranges = (other.ratio_range, row.ratio_range) if by_ratio else (other.range, row.range)
        assert a is not None and b is not None
        change = f"{b / a:.2f}" if a else "-"
        unit = "of the bound" if by_ratio else row.unit
        lines.append(
            f"| {row.part} | {row.figure} | {_settings(row)} | {number(a)} | {number(b)} {unit} | {change}"
            f" | {'*' if _apart(*ranges) else ''} |"
        )
    return lines


def _key(row: Row) -> tuple[str, str, str]:
    return row.part, row.figure, json.dumps(row.settings, sort_keys=True)


def _apart(a: tuple[float, float] | None, b: tuple[float, float] | None) -> bool:
    return a is not None and b is not None and (a[1] < b[0] or b[1] < a[0])


def _settings(row: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.settings.items())


# ----- docs ---------------------------------------------------------------------------------------------------------


def table(record: dict[str, Any], parts: Sequence[str]) -> list[str]:
    """Lines for a reader: where it ran, then the figures that tell most, in the order of the parts."""
    machines = [record["machines"][part] for part in parts if part in record["machines"]]
    places = sorted({f"{machine['cpu']}, jax {machine['jax']}" for machine in machines})
    days = sorted({machine["date"][:10] for machine in machines})
    lines = [
        f"Measured on {'; '.join(places)}, {days[0]}{f' to {days[-1]}' if len(days) > 1 else ''}.",
        "",
        "| what | value (range) | bound | of the bound (range) |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows_of(record):
        if row.part in parts and _tells_most(row):
            bound = "" if row.bound is None else number(row.bound)
            ratio = _with_range(row.ratio, row.ratio_range)
            if row.note and row.value is not None:
                bound, ratio = (row.note, "") if "not valid" in row.note else (bound, f"{ratio} ({row.note})".strip())
            lines.append(f"| {row.figure}: {_settings(row)} | {_value(row)} | {bound} | {ratio} |")
    return lines


def _tells_most(row: Row) -> bool:
    if row.part == "meta_step":
        ours = "recompute bound" in row.figure and row.settings.get("program") != "plain"
        return ours or row.figure.startswith("speed over")
    if row.part == "inference":
        return row.figure != "compilations"
    if row.part == "whole_run":
        return "over metaopt's" in row.figure
    if row.part == "scale":  # how far cost is from linear, and what the settings for memory do
        return row.settings.get("axis") == "memory" or row.figure.startswith("cost at")
    return not (row.part == "cost_model" and row.settings.get("points") == "fitted on")


def _value(row: Row) -> str:
    if row.value is None:
        return f"not measured: {row.note}"
    return f"{_with_range(row.value, row.range)} {row.unit}".rstrip()


def _with_range(value: float | None, limits: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return number(value) + (f" ({number(limits[0])} to {number(limits[1])})" if limits else "")


def write_tables(docs: Path, record: dict[str, Any]) -> None:
    """Those of docs/speed.md and docs/scaling.md."""
    rewrite(docs / "speed.md", table(record, SPEED_PARTS))
    rewrite(docs / "scaling.md", table(record, [part for part in PARTS if part not in SPEED_PARTS]))


def rewrite(path: Path, lines: list[str], marker: str = MARKER) -> None:
    """Puts the lines between the marker's two comments."""
    text = path.read_text(encoding="utf-8")
    start, end = f"<!-- {marker} -->\n", f"<!-- end of {marker} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise SystemExit(f"{path} needs one {start.strip()} and one {end}.")
    before, rest = text.split(start)
    path.write_text(before + start + "\n".join(lines) + "\n" + end + rest.split(end)[1], encoding="utf-8")
