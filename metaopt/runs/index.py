"""Run folders as they lie on the disk: found, and each read into one record. Reads JSON alone, so needs no jax."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metaopt import files
from metaopt.choices import Choice
from metaopt.errors import UserError
from metaopt.experiment import FAMILY_OPTIONS, Experiment
from metaopt.experiment.plain import to_json, upgraded
from metaopt.registry import REGISTRIES, TASKS
from metaopt.runs import folder
from metaopt.runs.metrics import Digest, Progress
from metaopt.runs.state import read_state, standing

Fields = dict[str, Any]  # dotted name -> value, as `fields_of` gives them
# Beside a config.json that could be another program's, one of these tells that it is a run's.
DEEPEST = 10  # folders below the one that is searched
OWN_FILES = (folder.ENVIRONMENT, folder.STATE, folder.METRICS, folder.OPTIMIZER)


class Run(NamedTuple):
    """One run, as every command that looks at runs has it."""

    path: Path
    name: str  # what a list calls it
    experiment: str
    fields: Fields  # empty where config.json is broken
    state: str  # one of state.ALL_STATES
    note: str  # why, in one line, or what it is doing
    meta_step: int  # done, or of what is saved where it was stopped
    num_meta_steps: int | None  # asked for
    progress: Progress
    best: float | None  # the lowest validation score, as `metrics.score_of` gives it
    best_at: int | None  # its meta-step
    when: str  # begun, UTC, to the minute

    @property
    def seconds_left(self) -> float | None:
        if self.state != "running" or self.progress.pace is None or self.num_meta_steps is None:
            return None
        return (self.num_meta_steps - self.meta_step) * self.progress.pace

    @property
    def done(self) -> str:
        """`500/2000`."""
        return f"{self.meta_step}/{'?' if self.num_meta_steps is None else self.num_meta_steps}"


# ----- finding --------------------------------------------------------------------------------------------------------


def is_run(path: Path) -> bool:
    """Whether a folder holds a run: a config.json, a file of its own, with the fields of an experiment."""
    file = path / folder.CONFIG
    return not file.is_symlink() and _is_experiment(files.read_object(file))


def _is_experiment(config: Mapping[str, Any]) -> bool:
    return {"tasks", "optimizer", "estimator"} <= set(config)


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
    for place, below, names in walk(root):
        if folder.CONFIG in names and is_run(place):
            found.append(place)
            below.clear()  # what lies within a run belongs to it
        elif folder.CONFIG in names and is_broken_run(place):
            broken.append(place)
    return sorted(found, key=_natural), sorted(broken, key=_natural)


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, folders in it, files in it) as `os.walk` has them, so far down as anybody keeps runs.

    Hidden folders are left out; links to folders are not followed.
    """
    for place, below, names in os.walk(root):
        deep = len(Path(place).relative_to(root).parts) >= DEEPEST
        below[:] = [] if deep else [name for name in below if not name.startswith(".")]
        yield Path(place), below, names


def _natural(path: Path) -> list[tuple[int, float, str]]:
    """Sorts 9 before 10, and 0.001 before 0.01."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))
    return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]


# ----- a configuration as fields --------------------------------------------------------------------------------------


def fields_of(config: Any) -> Fields:
    """Dotted name -> value; a registry's choice gives its name and, below it, its options.

    `{"optimizer": {"name": "lstm", "options": {"hidden_size": 20}}}` becomes `optimizer = "lstm"` and
    `optimizer.hidden_size = 20`. A list of one choice counts as the choice; a longer one is a tuple of their texts.
    What an older version meant stands as the current one would write it, with the fields that it did not know.
    """
    found = _walked(config)
    return {**found, **{name: value for name, value in bare().items() if name not in found}} if found else found


@functools.cache
def bare() -> Fields:
    """What every field of an experiment is unless it is given; without the three that always are."""
    given = ("tasks", "optimizer", "estimator")
    found = _walked(to_json(Experiment(tasks=(), optimizer=Choice(""), estimator=Choice(""))))
    return {name: value for name, value in found.items() if name not in given}


def _walked(config: Any) -> Fields:
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


def with_defaults(configs: Sequence[Fields], names: Sequence[str] | None = None) -> list[Fields]:
    """The same configurations with the options that they leave out, where their entries take them.

    Imports these entries, and jax with them, where one is left out.

    Args:
      names: the options; None: all that any of the configurations has.
    """
    if names is None:
        names = list(dict.fromkeys(name for fields in configs for name in fields))
    return [{**fields, **dict(_left_out(fields, [n for n in names if n not in fields]))} for fields in configs]


def _left_out(fields: Fields, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    registries = {registry.kind: registry for registry in REGISTRIES}
    kinds = {"tasks": "task family", "evaluation.tasks": "task family"}
    for name in names:
        field, _, option = name.rpartition(".")
        registry, entry = registries.get(kinds.get(field, field)), fields.get(field)
        if registry is None or not isinstance(entry, str) or entry not in registry:
            continue
        parameter = inspect.signature(registry[entry]).parameters.get(option)
        if parameter is not None and parameter.default is not parameter.empty:
            yield name, parameter.default
        elif registry is TASKS and option in FAMILY_OPTIONS:
            yield name, fields.get(option)  # the field of this name stands for all families


def differing(configs: Sequence[Fields]) -> list[str]:
    """The fields in which configurations differ, in the order of the first; one that some lack counts as different."""
    names = list(dict.fromkeys(name for fields in configs for name in fields))
    return [name for name in names if len({_same(fields.get(name, _MISSING)) for fields in configs}) > 1]


_MISSING = object()


def _same(value: Any) -> Any:
    # 1 and 1.0 are one value of a number's field; true is not 1.
    return ("flag", value) if isinstance(value, bool) else value


def value_words(fields: Fields, name: str) -> str:
    """A field's value as a person writes it; "-" for an option that the configuration does not have."""
    if name not in fields:
        return "-"
    value = fields[name]
    if isinstance(value, tuple):
        return " ".join(map(_plain, value)) or "none"
    return _plain(value)


def _plain(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# ----- one run --------------------------------------------------------------------------------------------------------

Seen = dict[Path, Digest]  # what was read before, for those who look again and again


def read_run(path: Path, name: str | None = None, seen: Seen | None = None) -> Run:
    """All there is to say of a run folder. Never raises for what is in it: what is missing or broken is None or 0.

    Args:
      name: what to call it; None: the path.
      seen: kept by the caller between calls, so that of a metrics.jsonl only what is new is read.
    """
    config, environment = (files.read_object(path / name) for name in (folder.CONFIG, folder.ENVIRONMENT))
    fields = fields_of(config)
    every = fields.get("log.every")
    digest = ({} if seen is None else seen).setdefault(path, Digest(path / folder.METRICS))
    progress = digest.progress(every if isinstance(every, int) and every > 0 else 50)
    told, readable = read_state(path), _is_experiment(config)
    asked = fields.get("num_meta_steps") if readable else None
    asked = asked if isinstance(asked, int) else None
    steps = told.num_meta_steps or asked
    state, note = standing(path, told, meta_step=progress.meta_step, num_meta_steps=steps)
    if state == "finished" and asked is not None and asked > (steps or asked):  # lengthened since, and not begun again
        steps, state, note = asked, "waiting", f"to be lengthened from {steps} meta-steps"
    if not readable and state != "running":
        state, note = "unreadable", f"its {folder.CONFIG} does not hold an experiment"
    saved = state in ("interrupted", "cancelled", "failed", "waiting")  # rows after what is saved go on resuming
    return Run(
        path=path,
        name=str(path) if name is None else name,
        experiment=str(environment.get("experiment") or path.resolve().parent.name),
        fields=fields if readable else {},
        state=state,
        note=note,
        meta_step=told.meta_step if saved else progress.meta_step,
        num_meta_steps=steps,
        progress=progress,
        best=progress.best,
        best_at=progress.best_at,
        when=str(environment.get("started") or "")[:16].replace("T", " "),
    )


def each_run(places: Sequence[Path]) -> Iterator[Run]:
    """The runs in several folders, each once; those with a broken config.json too."""
    seen = set()
    for place in places:
        for path in sorted([path for found in find_all(place) for path in found], key=_natural):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                yield read_run(path)


def size_of(path: Path) -> int:
    """Bytes of the files in a folder; links count as links."""
    total = 0
    for place, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # gone in between
                total += os.lstat(os.path.join(place, name)).st_size
    return total
