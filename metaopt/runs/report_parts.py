"""The pieces a report is laid from: numbers in words, tables, figures, the page. Everything is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from metaopt.analysis.pictures import COLOURS, Style, styles

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
    return f'<div class=scroll><table class="settings"><tbody>{body}</tbody></table></div>'


def details_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A folded table of numbers; cells come from `number` and are escaped already."""
    head = "".join(f"<th scope=col>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<div class=scroll><table class=numbers><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    return f"<details><summary>{escape(title)}</summary>{table}</details>"


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
            _cell(number(final["mean"]), range_words(final.get("mean_interval"))),
            _cell(number(final["median"]), range_words((final.get("q25"), final.get("q75")))),
        ]
        if best:
            is_best = name == best
            under = "the best baseline" if is_best else range_words(ratio.get("interval")) if ratio else ""
            cells.append(_cell("1" if is_best else number(ratio["of_means"] if ratio else None), under))
        cells.append(_failure(record.get("failed"), total))
        if beyond:
            cells.append(_failure(record.get("rises"), total))
            cells.append(f"<td>{count_words(record.get('keeps_improving'), total)}</td>")
        if accuracy:
            value = (record.get("test") or {}).get("accuracy")
            cells.append(f"<td>{'–' if value is None else f'{float(value):.1%}'}</td>")
        mark = swatch(drawn[name])
        weight = " class=learned" if record.get("kind") == "learned" else ""
        rate = (record.get("tuned") or {}).get("learning_rate")
        under = "" if rate is None else f"<small>rate {number(rate)}</small>"
        first = f"<th scope=row>{mark}{escape(name)}{under}</th>"
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
    return (
        f"<div class=scroll><table class=results><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div><p class=quiet>{notes}</p>"
    )


def _cell(main: str, under: str = "") -> str:
    return f"<td>{main}{f'<small>{under}</small>' if under else ''}</td>"


def _failure(fraction: float | None, total: int) -> str:
    words = count_words(fraction, total)
    return f"<td class=bad>{words}</td>" if fraction else f"<td>{words}</td>"


# ----- figures --------------------------------------------------------------------------------------------------------


def swatch(style: Style) -> str:
    """A short piece of an optimizer's line."""
    dashes = {"-": "none", "--": "6 3", "-.": "7 2.5 1.5 2.5", ":": "1.6 2.4"}
    if isinstance(style.dash, str):
        dash = dashes[style.dash]
    else:
        dash = " ".join(f"{1.6 * length:g}" for length in style.dash[1])
    width = 3 if style.dash == "-" else 2
    return (
        '<svg class=swatch viewBox="0 0 30 10" aria-hidden="true"><line x1=1 y1=5 x2=29 y2=5 '
        f'style="stroke:var(--{style.role});stroke-width:{width};stroke-dasharray:{dash}"/></svg>'
    )


def legend(drawn: Mapping[Any, Style]) -> str:
    """The lines of a figure and what they are."""
    items = "".join(f"<li>{swatch(style)}{escape(style.label)}</li>" for style in drawn.values())
    return f"<ul class=legend>{items}</ul>"


def figure(drawings: Sequence[str], key: str, caption: str) -> str:
    """A figure in its wide and its narrow form, of which the page shows the one that fits."""
    wide, narrow = drawings
    return (
        f"<figure><div class=wide>{wide}</div><div class=narrow>{narrow}</div>{key}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


# ----- the page -------------------------------------------------------------------------------------------------------

DARK = {
    "ink": "#e3e6ea",
    "faint": "#3a414a",
    **dict(
        zip([f"learned-{i}" for i in range(5)], ["#ff8c42", "#5ab4f0", "#35c79a", "#e59cc8", "#e0b93f"], strict=True)
    ),
    **dict(
        zip([f"baseline-{i}" for i in range(5)], ["#b4bcc6", "#9aa3ae", "#828b96", "#6f7883", "#c8ced6"], strict=True)
    ),
}


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """The whole document."""

    def variables(colours: Mapping[str, str]) -> str:
        return "".join(f"--{role}:{colour};" for role, colour in colours.items())

    style = (files("metaopt.runs") / "report.css").read_text(encoding="utf-8")
    style += f":root{{{variables(COLOURS)}}}@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · metaopt</title><style>{style}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p class=quiet>{escape(subtitle)}</p></header>"
        + "\n".join(sections)
        + "</main></body></html>\n"
    )
