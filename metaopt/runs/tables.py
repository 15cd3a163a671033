"""Tables in the terminal, and numbers, times and sizes as a person reads them. Needs no jax."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from metaopt.errors import printable
from metaopt.experiment import MOMENTA
from metaopt.runs.console import clock, say
from metaopt.runs.index import Run
from metaopt.runs.metrics import number as to_number

Rows = Sequence[Sequence[str]]  # the first one is the header

COLOURS = {
    "running": "cyan",
    "finished": "green",
    "waiting": "bright_black",
    "failed": "red",
    "diverged": "red",
    "lost": "red",
    "interrupted": "yellow",
    "cancelled": "yellow",
}
ORDER = (*("finished", "running", "waiting", "interrupted", "cancelled"), "diverged", "failed", "lost")
NAME_WIDTH = 12  # characters; longer names are folded before columns are left out
LONGEST_NOTE = 160  # characters
WIDE = 200  # columns where there is no terminal, so that no line is broken

# ----- values ---------------------------------------------------------------------------------------------------------


def number(value: Any, digits: int = 3, missing: str = "") -> str:
    """`0.00123`; of "inf" as records hold it too; `missing` for None."""
    return missing if value is None else f"{to_number(value):.{digits}g}"


def interval(values: Sequence[Any] | None) -> str:
    return "" if not values else f"[{number(values[0], missing='?')}, {number(values[1], missing='?')}]"


def ratio(held: Mapping[str, Any] | None) -> Any:
    """Of what `paired_ratio` says, the number that its interval is of; records of old versions had that of means."""
    return None if held is None else held.get("geometric", held.get("of_means"))


def count(fraction: float | None, total: int) -> str:
    """`1/400`: never a rounded share, for one failure of 400 makes a mean infinite and would read 0%."""
    return "" if fraction is None else f"{round(fraction * total)}/{total}"


def share(value: float | None) -> str:
    """`98.3%`; "" for None."""
    return "" if value is None else f"{value:.1%}"


def percent(share: float | None, missing: str = "") -> str:
    """`12%`, and `<1%` for what is not nothing."""
    if share is None:
        return missing
    return "0" if share == 0 else "<1%" if share < 0.01 else f"{share:.0%}"


def size(total: int) -> str:
    """`980 B`, `12 kB`, `3.4 MB`, in thousands."""
    power = 0 if total < 1000 else min(int(math.log10(total) // 3), 4)
    value = total / 1000**power
    return f"{value:.1f} {' kMGT'[power]}B" if power and value < 10 else f"{value:.0f} {' kMGT'[power].strip()}B"


# ----- tables ---------------------------------------------------------------------------------------------------------


def cell(text: str) -> Any:
    """A cell or a title for rich's tables: no markup, no escape, one line."""
    from rich.text import Text

    return Text(printable(text))


def aligned(rows: Rows, right: Collection[str] = (), gap: str = "  ") -> Iterator[str]:
    """Lines of plain text, for grep as for a terminal of any width.

    Args:
      right: the headings of columns that are flush right.
    """
    rows = [[printable(text) for text in row] for row in rows]
    columns = [(max(map(len, column)), column[0] in right) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (text.rjust(w) if flush else text.ljust(w) for text, (w, flush) in zip(row, columns, strict=True))
        yield gap.join(cells).rstrip()


def print_table(console: Any, title: str, rows: Rows, bold: Sequence[int] = ()) -> None:
    """The first column to the left, the others to the right: boxed in a terminal, plain text elsewhere.

    Args:
      bold: which of the rows stand out, the header being 0.
    """
    if not console.is_terminal:
        say(console, "\n  ".join([title, *aligned(rows, rows[0][1:])]))
        return
    from rich import box
    from rich.table import Table

    table = Table(title=cell(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for index, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if index else "left")
    for index, row in enumerate(rows[1:], 1):
        table.add_row(*map(cell, row), style="bold" if index in bold else None)
    console.print(table)


def unboxed(title: str | None, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """A table as wide as it needs to be."""
    from rich.console import Group

    table = _table()
    for index, heading in enumerate(header):
        table.add_column(heading, no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    return Group(*_titles(title), table)


def _table() -> Any:
    from rich.table import Table

    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)


def _titles(title: str | None) -> list[Any]:
    if title is None:
        return []
    made = cell(title)
    made.stylize("bold")
    return [made]  # not the table's own, which breaks to its width


# ----- where runs stand -----------------------------------------------------------------------------------------------


def standings(runs: Sequence[Run], title: str | None = None) -> Any:
    """Runs with state, meta-step, meta-loss, validation at each multiple of the horizon, rate, time left; then why."""
    from rich.console import Group

    noted = [run for run in runs if run.note and run.state != "running"]
    return Group(*_titles(title), _Fitting(runs), *(cell(f"{run.name}: {_shortened(run.note)}") for run in noted))


class _Fitting:
    """A table of runs that leaves columns out, those that are missed least first, where a terminal is narrow."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs, active = runs, any(run.state == "running" for run in runs)
        multiples = {multiple for run in runs for multiple in run.progress.validation}
        losses = ["loss", *(f"val {one}" for one in sorted(multiples, key=lambda one: int(one.removesuffix("x"))))]
        self._columns = ["meta-step", *losses, *(["steps/s", "left"] * active)]
        # The last loss is the one by which the best φ is chosen.
        self._spare = [*(["steps/s"] * active), *losses[:-1], *(["left"] * active), "meta-step"]

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.measure import Measurement

        shown, spare = list(self._columns), list(self._spare)
        wide = options.update(width=10**4)
        while spare and Measurement.get(console, wide, self._table(shown, NAME_WIDTH)).minimum > options.max_width:
            shown.remove(spare.pop(0))
        yield self._table(shown)

    def _table(self, shown: Sequence[str], name_width: int | None = None) -> Any:
        from rich.text import Text

        table = _table()
        table.add_column("run", overflow="fold", min_width=NAME_WIDTH)  # in a narrow terminal names give way first
        for heading in ("state", *shown):
            table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
        for run in self._runs:
            runs = run.state == "running"
            state = (run.note or run.state) if runs else run.state  # a running one is compiling, evaluating ...
            goes = runs and run.note != "evaluating"
            values = {
                "meta-step": run.done,
                "loss": number(run.progress.meta_loss),
                "steps/s": number(run.progress.rate) if goes else "",
                "left": clock(run.seconds_left) if goes else "",
                **{f"val {multiple}": number(value) for multiple, value in run.progress.validation.items()},
            }
            cells = (Text(values.get(name, "")) for name in shown)
            table.add_row(cell(run.name)[:name_width], Text(state, style=COLOURS.get(run.state, "")), *cells)
        return table


def _shortened(note: str) -> str:
    note = note.partition("; go on with")[0]  # the table's reader has `metaopt resume`
    return note if len(note) <= LONGEST_NOTE else f"{note[: LONGEST_NOTE - 4]} ..."


def counts(runs: Iterable[Run]) -> str:
    """`3 finished, 2 running, 1 waiting`."""
    found = Counter(run.state for run in runs)
    return ", ".join(f"{found[state]} {state}" for state in (*ORDER, *sorted({*found} - {*ORDER})) if found[state])


def setting(record: Mapping[str, Any]) -> str:
    """How a baseline of an evaluation was set, in words: its tuned settings, and what others were not told."""
    tuned = record.get("tuned") or {}
    rate = tuned.get("learning_rate")
    words = ["as it comes"] if tuned.get("untuned") else [] if rate is None else [f"rate {float(rate):.3g}"]
    words += [f"{name} {float(tuned[name]):.3g}" for name in MOMENTA if name in tuned]
    words += [word for word in [tuned.get("schedule", "constant")] if word != "constant"]
    return ", ".join(words + ["told the horizon"] * bool(tuned.get("knows_horizon")))
