"""One evaluation as a row of a table: README's and the cards' of shipped optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
TOLD = "†"  # marks a baseline that is told the horizon
COLUMNS = (
    *("evaluated on", "at step", "tasks", "loss, learned", "best baseline", "test accuracy", "ratio (95%)"),
    *("to the best not told", "failed"),
)


def number(value: float | str | None) -> str:
    """Two significant digits."""
    if not isinstance(value, int | float):
        return "∞" if value == "inf" else "?"
    if value == 0 or 1e-3 <= abs(value) < 100:
        return f"{value:.2g}"
    if abs(value) < 1e4:
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.1e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def losses(record: Record) -> str:
    """The mean final loss, and that on the test split where there is one."""
    test = (record.get("test") or {}).get("loss")
    return number(record["final"]["mean"]) + ("" if test is None else f", test {number(test)}")


def accuracy(record: Record) -> str:
    held = (record.get("test") or {}).get("accuracy")
    return "" if held is None else f"{held:.1%}"


def ratio(held: Record | None) -> str:
    """The geometric mean of the ratios with its interval; a dash where losses have no bound."""
    if held is None or "geometric" not in held:
        return "–"
    return f"{number(held['geometric'])} [{', '.join(map(number, held['interval']))}]"


def told(record: Record) -> bool:
    return bool((record["tuned"] or {}).get("knows_horizon"))


def called(name: str, record: Record) -> str:
    return name.partition(":")[0] + (TOLD if told(record) else "")


def best(result: Record, *, untold: bool = False) -> str:
    """The best tuned baseline; with `untold`, of those that are not told the horizon."""
    held = {
        name: record["ratio_to_best_baseline"]["geometric"]
        for name, record in result["optimizers"].items()
        if record["kind"] == "baseline" and not (untold and told(record))
    }
    return min(held, key=lambda name: held[name])


def row(result: Record, name: str) -> dict[str, str]:
    """What the columns say of one learned optimizer."""
    records = result["optimizers"]
    own, first, other = records[name], best(result), best(result, untold=True)
    accuracies = [accuracy(records[each]) for each in (name, first)]
    return dict(
        zip(
            COLUMNS,
            (
                result["task"],
                f"{result['horizon']:,}",
                str(result["num_tasks"]),
                losses(own),
                f"{losses(records[first])} ({called(first, records[first])})",
                f"{accuracies[0]}, baseline {accuracies[1]}" if accuracies[0] else "",
                ratio(own["to_each_baseline"][first]),
                "the same" if other == first else f"{ratio(own['to_each_baseline'][other])} ({other})",
                str(round(own["failed"] * result["num_tasks"])),
            ),
            strict=True,
        )
    )


def table(rows: list[dict[str, str]]) -> list[str]:
    """Markdown, without the columns that are empty everywhere."""
    shown = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [shown, ["---"] * len(shown), *([row[name] for name in shown] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def compact(result: dict[str, Any]) -> dict[str, Any]:
    """The record with curves of some 60 points and of each task the losses at the end alone, to four digits."""
    for record in result["optimizers"].values():
        curve, keep = record["curve"], max(1, len(record["curve"]["steps"]) // 60)
        record["curve"] = {name: [*values[:-1:keep], values[-1]] for name, values in curve.items()}
        record["per_task"] = {"final": short(record["per_task"]["final"])}
        if (record.get("tuned") or {}).get("finalists"):
            record["tuned"] = {key: value for key, value in record["tuned"].items() if key != "finalists"}
    result.pop("landscape", None)
    return result


def short(value: Any) -> Any:
    """The same with every number to four digits."""
    if isinstance(value, dict):
        return {key: short(one) for key, one in value.items()}
    if isinstance(value, list):
        return [short(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
