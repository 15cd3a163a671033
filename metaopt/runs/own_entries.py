"""What run folders and optimizer files say of people's own entries: kept, compared, and shown where one is unknown.

Nothing is imported because of it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaopt import files, plugins
from metaopt.errors import UserError, warn
from metaopt.experiment import Experiment, entries_of
from metaopt.registry import REGISTRIES, UnknownEntry

PLUGINS = "plugins"  # in environment.json, and in the card of an optimizer's file


def record(experiment: Experiment) -> dict[str, Any]:
    """`{"plugins": [...]}`: those whose entries an experiment uses; nothing where all come with the package."""
    found = plugins.describe(entries_of(experiment))
    return {PLUGINS: found} if found else {}


def recorded(path: Path) -> list[dict[str, Any]]:
    """The plugins of a run folder, of the run that a file lies in, or of a sweep's first run with any."""
    places = [path, *path.parents[:2]] if path.is_file() else [path, *sorted(path.glob("*/"))]
    found = (plugins.sound(files.read_object(place / "environment.json").get(PLUGINS)) for place in places)
    return next(filter(None, found), [])


def flags(path: Path) -> list[str]:
    """What the plugins of a run have to be given with, `--plugin NAME ...`, for a command to be shown."""
    return [word for held in recorded(path) if held["name"] != plugins.SESSION for word in (plugins.FLAG, held["name"])]


def check_known(path: Path) -> None:
    """Refuses a run whose plugins have not been given, before another process finds out.

    Raises:
      UnknownEntry: one of its entries is not there.
      UserError: a plugin's hash is another.
    """
    for held in recorded(path):
        for registry in REGISTRIES:
            for name in held["entries"].get(registry.kind, ()):
                registry.entry(name)
    refuse_changed(path)


def refuse_changed(path: Path) -> None:
    """Refuses to go on with a run by other code than it was begun with.

    Raises:
      UserError: a plugin's hash is another.
    """
    found = plugins.changed(recorded(path))
    if found:
        again = shlex.join(["metaopt", "train", "--from", str(path), *flags(path)])
        raise UserError(
            f"{path} was begun with other code ({', '.join(found)}), and would go on as another run; put the file back "
            f"as it was, or begin a new run with `{again}`."
        )


def tell_changed(held: Any, where: Path) -> None:
    """Warns where an optimizer or a capsule is used with other code than it was made with, once for all of a run."""
    found = plugins.changed(held)
    if found:
        if (where.parent / "environment.json").exists():  # one of the φ of a run
            where = where.parent
        warn(f"{where} was made with other code: {', '.join(found)}")


def with_files_to_import(error: UnknownEntry, path: Path, held: Any) -> UnknownEntry:
    """The error as Python's users read it: which file to import first; `explained` makes a command of it."""
    error.where, error.record = str(path), plugins.sound(held)
    for each in error.record:
        if error.name in each["entries"].get(error.kind, ()):
            error.args = (
                f"{error.kind} {error.name!r} is unknown here; {path} has it from {each['name']}: import that first.",
            )
    return error


def explained(error: UnknownEntry, words: Sequence[str]) -> str:
    """The error with the command that works, if a run or a file that the command names had the entry from a plugin.

    Args:
      words: of the command, without `metaopt`.
    """
    texts = [word.partition("=")[2] if word.startswith("-") else word for word in words]
    held = [(Path(text), each) for text in texts if text and os.path.exists(text) for each in recorded(Path(text))]
    held += [(Path(error.where), each) for each in plugins.sound(error.record)]
    for place, each in held:
        if error.name in each["entries"].get(error.kind, ()):
            return f"{error.kind} {error.name!r} is unknown here; {_remedy(place, each['name'], held, words)}"
    return str(error)


def _remedy(place: Path, name: str, held: Any, words: Sequence[str]) -> str:
    if name == plugins.SESSION:
        return f"{place} has it from {name}: put it into a file, and give that with --plugin FILE."
    names = dict.fromkeys(each["name"] for where, each in held if where == place and each["name"] not in words)
    command = ["metaopt", *words, *(word for each in names for word in (plugins.FLAG, each))]
    return f"{place} has it from {name}: `{shlex.join(command)}`"
