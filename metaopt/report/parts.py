"""The pieces a report is laid from: numbers in words, tables, figures, the page. Everything is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from metaopt.report.pictures import Style, styles

# ----- numbers and words ----------------------------------------------------------------------------------------------


def number(value: Any) -> str:
    """A number of a JSON record in at most four digits; "∞" for "inf", "unknown" for null."""
    if value is None:
        return "–"
    try:
        value = float(value)
    except (TypeError, ValueError):
        return escape(str(value))
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        return text.replace("-", "−")
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def range_words(interval: Sequence[Any] | None) -> str:
    """`0.1 to 0.2`."""
    return "" if not interval else f"{number(interval[0])} to {number(interval[1])}"


def ratio_words(ratio: Any) -> str:
    """`1.2 times`."""
    return f"{number(ratio)} times" if ratio is not None else "not comparable with"


def count_words(fraction: float | None, total: int) -> str:
    """`none of 16`, `3 of 16`, `all 16`; a dash where it does not apply."""
    if fraction is None:
        return "–"
    count = round(fraction * total)
    return f"none of {total:,}" if count == 0 else f"all {total:,}" if count == total else f"{count:,} of {total:,}"


def flatten(value: Any, name: str = "") -> list[tuple[str, str]]:
    """(dotted name, text) of every leaf of nested JSON; a registry's choice stays on one line."""
    if isinstance(value, Mapping):
        if set(value) == {"name", "options"} and isinstance(value["options"], Mapping):
            options = ", ".join(f"{key} = {_plain(entry)}" for key, entry in value["options"].items())
            return [(name, f"{value['name']}: {options}" if options else str(value["name"]))]
        return [pair for key, entry in value.items() for pair in flatten(entry, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        if not any(isinstance(entry, (Mapping, list)) for entry in value):
            return [(name, ", ".join(_plain(entry) for entry in value) or "none")]
        if len(value) == 1:
            return flatten(value[0], name)
        return [pair for i, entry in enumerate(value, 1) for pair in flatten(entry, f"{name} {i}")]
    return [(name, _plain(value))]


def _plain(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# ----- tables ---------------------------------------------------------------------------------------------------------


def definition_table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    body = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return _scrolling(f'<table class="settings"><tbody>{body}</tbody></table>', "Settings")


def _scrolling(table: str, label: str) -> str:
    # What scrolls has to be in reach of the keyboard, and then needs a name.
    return f'<div class=scroll tabindex=0 role=region aria-label="{escape(label, quote=True)}">{table}</div>'


def data_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, kind: str = "numbers") -> str:
    """A table whose headers sort it; cells come from `number`, `cell` or `head_cell` and are escaped already."""
    first = rows[0] if rows else [""] * len(columns)
    sides = [" class=words" if text.startswith('<td class="words') else "" for text in first]
    head = "".join(f"<th scope=col{side}>{escape(name)}</th>" for name, side in zip(columns, sides, strict=True))
    body = "".join(
        "<tr>" + "".join(text if text.startswith(("<td", "<th")) else f"<td>{text}</td>" for text in row) + "</tr>"
        for row in rows
    )
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return _scrolling(table, label)


def details_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A folded table of numbers, as `data_table`."""
    return f"<details><summary>{escape(title)}</summary>{data_table(columns, rows, label=title)}</details>"


def cell(main: str, under: str = "", *, value: Any = None, bad: bool = False) -> str:
    """A cell with small print below, and the value by which its column is sorted where the words do not tell it."""
    sort = "" if value is None else f' data-sort="{escape(str(value), quote=True)}"'
    return f"<td{sort}{' class=bad' if bad else ''}>{main}{f'<small>{under}</small>' if under else ''}</td>"


def results_table(result: Mapping[str, Any]) -> str:
    """Final losses with intervals, ratios to the best baseline, the three words for failure, and the test split."""
    drawn, total = styles(result), result["num_tasks"]
    optimizers: Mapping[str, Any] = result["optimizers"]
    best = result.get("best_baseline")
    beyond = any(record.get("rises") is not None for record in optimizers.values())
    accuracy = any("accuracy" in (record.get("test") or {}) for record in optimizers.values())
    columns = ["Optimizer", "Mean final loss", "Median"]
    columns += ["Ratio to best baseline"] if best else []
    columns += ["Failed"] + (["Rises", "Keeps improving"] if beyond else []) + (["Test accuracy"] if accuracy else [])
    lines = []
    for name, record in optimizers.items():
        final, ratio = record["final"], record.get("ratio_to_best_baseline")
        cells = [
            cell(number(final["mean"]), range_words(final.get("mean_interval")), value=final["mean"]),
            cell(number(final["median"]), range_words((final.get("q25"), final.get("q75"))), value=final["median"]),
        ]
        if best:
            is_best = name == best
            under = "the best baseline" if is_best else range_words(ratio.get("interval")) if ratio else ""
            of_means = 1 if is_best else ratio["of_means"] if ratio else None
            cells.append(cell(number(of_means), under, value=of_means))
        cells.append(share_cell(record.get("failed"), total, bad=True))
        if beyond:
            cells.append(share_cell(record.get("rises"), total, bad=True))
            cells.append(share_cell(record.get("keeps_improving"), total))
        if accuracy:
            value = (record.get("test") or {}).get("accuracy")
            cells.append(cell("–" if value is None else f"{float(value):.1%}", value=value))
        weight = " class=learned" if record.get("kind") == "learned" else ""
        rate = (record.get("tuned") or {}).get("learning_rate")
        under = "" if rate is None else f"<small>rate {number(rate)}</small>"
        first = f"<th scope=row>{swatch(drawn[name])}{escape(name)}{under}</th>"
        lines.append(f"<tr{weight}>{first}{''.join(cells)}</tr>")
    head = "".join(f"<th scope=col>{column}</th>" for column in columns)
    notes = (
        "Small print under a mean or a ratio (of means, on the same tasks): its 95% bootstrap interval; under a "
        "median: the quartiles. Failed: not finite, or above 10 times the first loss, at any step; on tasks with "
        "minibatches the loss of a step between two recorded ones is its minibatch's."
    )
    if beyond:
        at = result.get("keeps_improving_at")
        notes += " Rises: the last 5% of the curve lie above twice the loss at the training horizon."
        notes += f" Keeps improving: lower at step {at:,} than at the training horizon." if at else ""
    table = f"<table class=results><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"{_scrolling(table, 'Results')}<p class=quiet>{notes}</p>"


def validation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every validation of a run, folded; "" where there was none."""
    prefixes = ("validation/", "validation_ema/")
    held_out = [row for row in rows if any(key.startswith(prefixes) for key in row)]
    if not held_out:
        return ""
    keys = [key for key in dict.fromkeys(key for row in held_out for key in row) if key.startswith(prefixes)]
    cells = [[f"{row['meta_step']:,}", *(number(row.get(key)) for key in keys)] for row in held_out]
    names = [
        key.replace("validation_ema/", "averaged φ, ").removeprefix("validation/").replace("/", ", ") for key in keys
    ]
    return details_table("Validation as numbers", ["meta-step", *names], cells)


def share_cell(fraction: float | None, total: int, *, bad: bool = False) -> str:
    """A share of tasks in words; coloured where there are any and that is bad."""
    return cell(count_words(fraction, total), value=fraction, bad=bad and bool(fraction))


# ----- figures --------------------------------------------------------------------------------------------------------


MARKS = {
    "o": "M15 2a3 3 0 1 0 .01 0z",
    "s": "M12 2h6v6h-6z",
    "^": "M15 1.2l3.6 6.6h-7.2z",
    "D": "M15 .8l4 4.2-4 4.2-4-4.2z",
    "v": "M15 8.8l3.6-6.6h-7.2z",
}


def swatch(style: Style) -> str:
    """A short piece of an optimizer's line."""
    dashes = {"-": "none", "--": "6 3", "-.": "7 2.5 1.5 2.5", ":": "1.6 2.4"}
    if isinstance(style.dash, str):
        dash = dashes[style.dash]
    else:
        dash = " ".join(f"{1.6 * length:g}" for length in style.dash[1])
    width = 3 if style.dash == "-" and style.marker is None else 2
    mark = f'<path d="{MARKS[style.marker]}" style="fill:var(--{style.role})"/>' if style.marker else ""
    return (
        '<svg class=swatch viewBox="0 0 30 10" aria-hidden="true"><line x1=1 y1=5 x2=29 y2=5 '
        f'style="stroke:var(--{style.role});stroke-width:{width};stroke-dasharray:{dash}"/>{mark}</svg>'
    )


def legend(drawn: Mapping[Any, Style]) -> str:
    """The lines of a figure and what they are."""
    items = "".join(f"<li>{swatch(style)}{escape(style.label)}</li>" for style in drawn.values())
    return f"<ul class=legend>{items}</ul>"


def figure(drawings: Sequence[str], key: str, caption: str, *, half: bool = False) -> str:
    """A figure in its wide and its narrow form, of which the page shows the one that fits.

    Args:
      half: it has a single panel, which does not fill the page.
    """
    wide, narrow = drawings
    return (
        f"<figure{' class=half' if half else ''}><div class=wide>{wide}</div><div class=narrow>{narrow}</div>{key}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
