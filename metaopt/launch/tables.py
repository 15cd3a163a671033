"""Runs and the points of sweeps as tables in the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from metaopt.launch.grid import Point
from metaopt.launch.states import Standing

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
ORDER = ("finished", "running", "waiting", "interrupted", "cancelled", "diverged", "failed", "lost")
NAME_WIDTH = 12  # characters; longer names are folded before columns are left out
LONGEST_NOTE = 160  # characters
WIDE = 200  # columns where there is no terminal, so that no line is broken


def standings(rows: Sequence[Standing], title: str | None = None) -> Any:
    """Runs with state, meta-step, meta-loss, validation at each multiple of the horizon, rate, time left; then why."""
    from rich.console import Group
    from rich.text import Text

    noted = [row for row in rows if row.note and row.state != "running"]
    return Group(*_titles(title), _Fitting(rows), *(Text(f"{row.name}: {_shortened(row.note)}") for row in noted))


class _Fitting:
    """A table of runs that leaves columns out, those that are missed least first, where a terminal is narrow."""

    def __init__(self, rows: Sequence[Standing]) -> None:
        multiples = sorted({m for row in rows for m in row.progress.validation}, key=_multiple)
        self._rows, self._running = rows, any(row.state == "running" for row in rows)
        self._multiples = multiples
        losses = ["loss", *(f"val {m}" for m in multiples)]  # the last: what the best φ is chosen by
        self._columns = ["meta-step", *losses, *(["steps/s", "left"] * self._running)]
        self._spare = [*(["steps/s"] * self._running), *losses[:-1], *(["left"] * self._running), "meta-step"]

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
        table.add_column("state", no_wrap=True)
        for heading in shown:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self._rows:
            runs = row.state == "running"
            state = (row.note or row.state) if runs else row.state  # a running one is compiling, evaluating ...
            goes = runs and row.note != "evaluating"
            values = {
                "meta-step": f"{row.meta_step}/{row.num_meta_steps if row.num_meta_steps is not None else '?'}",
                "loss": number(row.progress.meta_loss),
                "steps/s": number(row.progress.rate) if goes else "",
                "left": clock(row.seconds_left) if goes else "",
                **{f"val {m}": number(row.progress.validation.get(m)) for m in self._multiples},
            }
            cells = (Text(values[name]) for name in shown)
            table.add_row(Text(row.name[:name_width]), Text(state, style=COLOURS.get(row.state, "")), *cells)
        return table


def points(points: Sequence[Point], title: str) -> Any:
    """A table of a sweep's points before they begin."""
    from rich.console import Group
    from rich.text import Text

    table = _table()
    table.add_column("run", no_wrap=True, overflow="fold")
    for name in points[0].overrides:
        table.add_column(name)
    for point in points:
        table.add_row(Text(point.run), *(Text(value) for value in point.overrides.values()))
    return Group(*_titles(title), table)


def _table() -> Any:
    from rich.table import Table

    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)


def _titles(title: str | None) -> list[Any]:
    from rich.text import Text

    return [] if title is None else [Text(title, style="bold")]  # not the table's own, which breaks to its width


def _shortened(note: str) -> str:
    note = note.partition("; go on with")[0]  # the table's reader has `metaopt resume`
    return note if len(note) <= LONGEST_NOTE else f"{note[: LONGEST_NOTE - 4]} ..."


def counts(rows: Iterable[Standing]) -> str:
    """`3 finished, 2 running, 1 waiting`."""
    found = Counter(row.state for row in rows)
    return ", ".join(f"{found[state]} {state}" for state in ORDER if found[state])


def number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}g}" if math.isfinite(value) else str(value)


def clock(seconds: float | None) -> str:
    """`1:02:03`; nothing for None."""
    if seconds is None:
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _multiple(name: str) -> float:
    try:
        return float(name.removesuffix("x"))
    except ValueError:
        return math.inf
