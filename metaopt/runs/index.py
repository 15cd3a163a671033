"""Run folders as they lie on the disk: found and summed up. Reads JSON alone, so that it needs no jax."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metaopt import files
from metaopt.errors import UserError
from metaopt.experiment.plain import upgraded
from metaopt.runs import folder
from metaopt.runs.metrics import parse_row
from metaopt.runs.state import STATES, read_state

Fields = dict[str, Any]  # dotted name -> value, as `fields_of` gives them
UNREADABLE = "unreadable"  # its config.json is broken
RUN_STATES = (*STATES, "cancelled", "lost", "unknown", UNREADABLE)
# Beside a config.json that could be another program's, one of these tells that it is a run's.
OWN_FILES = (folder.ENVIRONMENT, folder.STATE, folder.METRICS, folder.OPTIMIZER)


class RunSummary(NamedTuple):
    """What a list of runs says of one of them."""

    path: Path
    name: str  # the path as the list shows it
    experiment: str
    fields: Fields
    state: str  # one of RUN_STATES
    meta_steps: int  # of the last row of metrics.jsonl
    planned: int | None
    best: float | None  # the lowest validation score, as `scores` gives it
    best_at: int | None  # its meta-step
    when: str  # begun, UTC, to the minute
    size: int  # bytes


# ----- finding --------------------------------------------------------------------------------------------------------


def is_run(path: Path) -> bool:
    """Whether a folder holds a run: a config.json, a file of its own, with the fields of an experiment."""
    file = path / folder.CONFIG
    if file.is_symlink() or not file.is_file():
        return False
    try:
        config = files.read_json(file)
    except UserError:
        return False
    return isinstance(config, dict) and {"tasks", "optimizer", "estimator"} <= set(config)


def is_broken_run(path: Path) -> bool:
    """Whether a folder looks like a run's but its config.json does not hold an experiment."""
    file = path / folder.CONFIG
    if file.is_symlink() or not file.is_file() or is_run(path):
        return False
    return not files.read_object(file) or any((path / name).is_file() for name in OWN_FILES)


def is_folder_of_runs(path: Path) -> bool:
    """Whether a folder is no run itself but holds some, as a sweep's does."""
    return path.is_dir() and not (path / folder.CONFIG).exists() and bool(find_runs(path))


def find_runs(root: Path) -> list[Path]:
    """The run folder itself, or every run folder below a folder, sorted by path; links to folders are not followed.

    Raises:
      UserError: there is no such folder.
    """
    return find_all(root)[0]


def find_all(root: Path) -> tuple[list[Path], list[Path]]:
    """(the runs as `find_runs` has them, the folders of runs with a broken config.json).

    Raises:
      UserError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}.")
    found, broken = [], []
    for place, below, names in os.walk(root):
        if folder.CONFIG in names and is_run(Path(place)):
            found.append(Path(place))
            below.clear()  # what lies within a run belongs to it
        elif folder.CONFIG in names and is_broken_run(Path(place)):
            broken.append(Path(place))
        below[:] = [name for name in below if not name.startswith(".")]
    return sorted(found, key=_natural), sorted(broken, key=_natural)


def _natural(path: Path) -> list[tuple[int, float, str]]:
    """Sorts 9 before 10, and 0.001 before 0.01."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))
    return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]


# ----- a configuration as fields --------------------------------------------------------------------------------------


def fields_of(config: Any) -> Fields:
    """Dotted name -> value; a registry's choice gives its name and, below it, its options.

    `{"optimizer": {"name": "lstm", "options": {"hidden_size": 20}}}` becomes `optimizer = "lstm"` and
    `optimizer.hidden_size = 20`. A list of one choice counts as the choice; a longer one is a tuple of their texts.
    What an older version meant stands as the current one would write it.
    """
    found: Fields = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping) and set(value) == {"name", "options"} and isinstance(value["options"], Mapping):
            found[name] = value["name"]
            for key, entry in value["options"].items():
                found[f"{name}.{key}"] = tuple(entry) if isinstance(entry, list) else entry
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                walk(entry, f"{name}.{key}" if name else str(key))
        elif isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
            walk(value[0], name)
        elif isinstance(value, list):
            found[name] = tuple(_choice_words(entry) if isinstance(entry, Mapping) else entry for entry in value)
        else:
            found[name] = value

    walk(upgraded(config), "")
    return found


def _choice_words(value: Mapping[str, Any]) -> str:
    options = value.get("options")
    words = ",".join(f"{key}={_plain(entry)}" for key, entry in options.items()) if isinstance(options, Mapping) else ""
    return f"{value.get('name')}:{words}" if words else str(value.get("name"))


def differing(configs: Sequence[Fields]) -> list[str]:
    """The fields in which configurations differ, in the order of the first; one that some lack counts as different."""
    names = list(dict.fromkeys(name for fields in configs for name in fields))
    return [name for name in names if len({_same(fields.get(name, _MISSING)) for fields in configs}) > 1]


_MISSING = object()


def _same(value: Any) -> Any:
    # 1 and 1.0 are one value of a number's field; true is not 1.
    return ("flag", value) if isinstance(value, bool) else value


def value_words(fields: Fields, name: str) -> str:
    """A field's value as a person writes it; "default" for an option that the configuration leaves out."""
    if name not in fields:
        return "default"
    value = fields[name]
    if isinstance(value, tuple):
        return " ".join(map(_plain, value)) or "none"
    return _plain(value)


def _plain(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# ----- one run --------------------------------------------------------------------------------------------------------


def summarise(path: Path, root: Path | None = None) -> RunSummary:
    """What there is to say of a run folder; what is missing or broken is None or 0.

    Args:
      root: the list's folder, below which names are counted from; None: the path as it is.
    """
    config = files.read_object(path / folder.CONFIG)
    environment = files.read_object(path / folder.ENVIRONMENT)
    rows, meta_steps = validation_rows(path)
    found = [(score, row["meta_step"]) for row in rows if (score := score_of(row)) is not None]
    best, best_at = min(found, default=(None, None))
    state = read_state(path)
    planned = state.num_meta_steps or config.get("num_meta_steps")
    name = str(path) if root is None or path == root else str(path.relative_to(root))
    return RunSummary(
        path=path,
        name=name,
        experiment=str(environment.get("experiment") or path.resolve().parent.name),
        fields=fields_of(config),
        state=_state(path, state.state),
        meta_steps=meta_steps,
        planned=planned if isinstance(planned, int) else None,
        best=best,
        best_at=best_at,
        when=str(environment.get("started") or "")[:16].replace("T", " "),
        size=size_of(path),
    )


def _state(path: Path, told: str) -> str:
    done = told in ("running", "finished", "diverged")
    return "cancelled" if not done and (path / folder.CANCELLED).exists() else told


def validation_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(the validations in a run's metrics.jsonl, the meta-step of its last complete row)."""
    rows, last = [], b""
    try:
        with open(path / folder.METRICS, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # cut off by a crash, or being written
                # A run has a hundred rows of training for each validation: only these are read.
                if b'"validation' in line and (row := parse_row(line)):
                    rows.append(row)
                last = line if line.startswith(b"{") else last
    except OSError:
        return [], 0
    final = parse_row(last)
    return rows, final["meta_step"] if final else 0


def score_of(row: Mapping[str, Any]) -> float | None:
    """The number by which a run's best φ is chosen: the median at the longest horizon of a validation.

    Where φ is averaged over meta-steps it is that of the average. None where the row holds none, or an infinite one.
    """
    found = [
        (prefix == "validation_ema", int(multiple), value)
        for name, value in row.items()
        for prefix, multiple in re.findall(r"^(validation(?:_ema)?)/(\d+)x/median$", name)
    ]
    if not found:
        return None
    value = max(found, key=lambda entry: entry[:2])[2]
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def size_of(path: Path) -> int:
    """Bytes of the files in a folder; links count as links."""
    total = 0
    for place, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                pass  # gone in between
    return total


def each_run(places: Sequence[Path]) -> Iterator[RunSummary]:
    """The runs in several folders, each once; those with a broken config.json too, as UNREADABLE and without fields."""
    seen = set()
    for place in places:
        found, broken = find_all(place)
        for path in sorted([*found, *broken], key=_natural):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                summary = summarise(path)
                yield summary._replace(state=UNREADABLE, fields={}, planned=None) if path in broken else summary
