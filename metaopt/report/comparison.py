"""Several runs as one thing to look at: what they differ in, which belong together, which is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from metaopt import files
from metaopt.errors import UserError
from metaopt.report.panels import MOST_STYLES, Style, run_style
from metaopt.runs import folder, index
from metaopt.runs.evaluations import read_results
from metaopt.runs.index import Fields, Run, differing, value_words
from metaopt.runs.metrics import read_rows

# What is evaluated, logged and kept, and where it is computed: not what is learned.
BESIDE = ("evaluation.", "log.", "checkpoint_every", "chunk_size", "num_devices", "memory")
LONGEST_LABEL = 70  # characters; where runs differ in more, they are called by their names


class ComparedRun(NamedTuple):
    """A run among others."""

    summary: Run
    label: str  # its values of the axes, seed included; "" where these are too many
    group: int  # of `Comparison.groups`
    style: Style
    rows: list[dict[str, Any]]  # of metrics.jsonl
    results: list[dict[str, Any]]  # of evaluation.json
    environment: Mapping[str, Any]
    trouble: str | None  # why its evaluations are left out


class Group(NamedTuple):
    """Runs that differ in nothing but the seed."""

    label: str
    fields: Fields  # of its first run
    style: Style
    scores: list[float]  # the best validation of each run that has one


class Comparison(NamedTuple):
    """Runs, the best first."""

    runs: list[ComparedRun]
    groups: list[Group]  # the best first
    axes: list[str]  # fields in which configurations differ and which decide φ, the seed last
    beside: list[str]  # those that decide it not
    warnings: list[str]  # why scores may not be comparable


def compare_all(paths: Sequence[Path], root: Path) -> Comparison:
    """Reads runs and sets them beside one another. The best come first, those without a validation last.

    Args:
      root: the folder below which they are named, where they lie in it.
    """
    summaries = [
        index.read_run(path, str(path.relative_to(root)) if path != root and path.is_relative_to(root) else None)
        for path in paths
    ]
    whole = index.with_defaults([summary.fields for summary in summaries])
    summaries = [summary._replace(fields=fields) for summary, fields in zip(summaries, whole, strict=True)]
    every = differing(whole)
    beside = [name for name in every if name.startswith(BESIDE)]
    axes = [name for name in every if name != "seed" and name not in beside]
    axes += ["seed"] if "seed" in every else []
    short = short_names(axes)
    kinds: dict[tuple[str, ...], list[Run]] = {}
    for summary in summaries:
        kind = tuple(value_words(summary.fields, name) for name in axes if name != "seed")
        kinds.setdefault(kind, []).append(summary)

    def standing(runs: list[Run]) -> tuple[bool, float]:
        scores = [run.best for run in runs if run.best is not None]
        return not scores, median(scores) if scores else 0.0

    ordered = sorted(kinds.values(), key=standing)
    groups, runs = [], []
    for rank, members in enumerate(ordered):
        label = _label(members[0].fields, [name for name in axes if name != "seed"], short) or members[0].name
        if len(ordered) == 1:
            label = "all runs"
        style = run_style(rank, label)
        groups.append(Group(label, members[0].fields, style, [run.best for run in members if run.best is not None]))
        for member in members:
            own = _label(member.fields, axes, short)
            runs.append(_read(member, own, rank, style))
    runs.sort(key=lambda run: (run.summary.best is None, run.summary.best or 0.0))
    warnings = _warnings(summaries) + [run.trouble for run in runs if run.trouble]
    return Comparison(runs, groups, axes, beside, warnings)


def _read(summary: Run, label: str, group: int, style: Style) -> ComparedRun:
    environment = files.read_object(summary.path / folder.ENVIRONMENT)
    rows = read_rows(summary.path / folder.METRICS)
    trouble = None
    try:
        results = read_results(summary.path)
    except UserError as error:  # one broken file among many does not keep the page from the others
        results, trouble = [], str(error)
    return ComparedRun(summary, label, group, style, rows, results, environment, trouble)


def short_names(axes: Sequence[str]) -> dict[str, str]:
    """Dotted names without what comes before the last dot, where that leaves them apart."""
    last = [name.rpartition(".")[2] for name in axes]
    return {name: short if last.count(short) == 1 else name for name, short in zip(axes, last, strict=True)}


def _label(fields: Fields, axes: Sequence[str], short: Mapping[str, str]) -> str:
    """The values of the axes; "" where there are none, or more than a line takes."""
    words = ", ".join(f"{short[name]} {value_words(fields, name)}" for name in axes)
    return words if len(words) <= LONGEST_LABEL else ""


def _warnings(runs: Sequence[Run]) -> list[str]:
    found = []
    validations = {
        tuple(value_words(run.fields, name) for name in run.fields if name.startswith(("tasks", "validation.")))
        + (value_words(run.fields, "horizon"),)
        for run in runs
        if run.best is not None
    }
    if len(validations) > 1:
        found.append(
            "Not all runs are validated on the same tasks at the same horizons, so their validation losses say little "
            "about which is better; evaluate them on common tasks."
        )
    elif len({value_words(run.fields, "seed") for run in runs if run.best is not None}) > 1:
        found.append("Runs of different seeds are validated on different tasks of the same families.")
    return found


def points(runs: Sequence[ComparedRun], axis: str, *, everyone: bool = False) -> list[tuple[str, float, Style]]:
    """(value of an axis, best validation, style) of every run that has one, by rising value.

    `everyone`: of the others too, with a best validation of 0.
    """

    def place(entry: tuple[str, float, Style]) -> tuple[int, float, str]:
        try:
            return 0, float(entry[0]), ""
        except ValueError:
            return 1, 0.0, entry[0]

    found = [
        (value_words(run.summary.fields, axis), run.summary.best or 0.0, run.style)
        for run in runs
        if everyone or run.summary.best is not None
    ]
    return sorted(found, key=place)


def shown_groups(comparison: Comparison) -> dict[str, Style]:
    """The legend: the groups that have a style of their own, and one entry for all others."""
    styles = {group.label: group.style for group in comparison.groups[:MOST_STYLES]}
    rest = len(comparison.groups) - MOST_STYLES
    if rest > 0:
        styles["others"] = run_style(MOST_STYLES, f"the other {rest}")
    return styles


def runs_among(places: Sequence[Path]) -> list[Path]:
    """The run folders that are named, and those below the folders that are named, each once.

    Raises:
      UserError: a place that is no folder, or holds no run.
    """
    found: dict[Path, Path] = {}
    for place in places:
        if (place / folder.CONFIG).is_file():
            folder.open_run(place)
        inside = index.find_runs(place)
        if not inside:
            raise UserError(f"there is no run in {place}; give run folders, or a folder of runs such as a sweep's.")
        found |= {path.resolve(): path for path in inside if path.resolve() not in found}
    return list(found.values())
