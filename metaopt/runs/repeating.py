"""What has changed since a run, for one that is to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaopt import files, plugins
from metaopt.experiment import Experiment
from metaopt.experiment.plain import from_json, to_json
from metaopt.runs import folder, index, own_entries
from metaopt.runs.environment import describe_environment
from metaopt.runs.index import differing, value_words


def what_differs(path: Path, experiment: Experiment) -> str:
    """One line: fields, versions, code, data and devices that are not those of a run, or that they are all the same."""
    recorded = files.read_json(path / folder.CONFIG)
    # Through the reader and back, so that a field that an older version did not know has its default.
    configs = [index.fields_of(to_json(each)) for each in (from_json(recorded, str(path), unversioned=1), experiment)]
    found = [
        f"{name} {value_words(configs[0], name)} -> {value_words(configs[1], name)}" for name in differing(configs)
    ]
    file = path / folder.ENVIRONMENT
    before = files.read_json(file) if file.is_file() else {}
    if not isinstance(before, Mapping) or not before.get("versions"):
        found.append("its versions are not known, for there are none in its environment.json")
    else:
        now = describe_environment("", [*experiment.tasks, *experiment.evaluation.tasks])
        found += _of_environment(before, now)
    found += plugins.changed(own_entries.recorded(path))
    if not found:
        return f"repeating {path}: the same configuration, versions, code, data and devices."
    return f"repeating {path}; different from then: {'; '.join(found)}."


def _of_environment(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    old, new = _mapping(before.get("versions")), _mapping(now.get("versions"))
    for package in dict.fromkeys((*old, *new)):
        if old.get(package) != new.get(package):
            found.append(f"{package} {old.get(package, 'not there')} -> {new.get(package, 'not there')}")
    found += _of_code(before.get("git"), now.get("git"))
    hashes = [{_entry(one, "name"): _entry(one, "sha256") for one in each.get("data") or ()} for each in (before, now)]
    for name in dict.fromkeys((*hashes[0], *hashes[1])):
        was, has = (str(each.get(name, "not read"))[:8] for each in hashes)
        if hashes[0].get(name) != hashes[1].get(name):
            found.append(f"data {name} {was} -> {has}")
    old, new = _mapping(before.get("device")), _mapping(now.get("device"))
    for key, words in (("kind", "device"), ("count", "devices"), ("processes", "processes")):
        if old.get(key) != new.get(key):
            found.append(f"{words} {old.get(key, 'not known')} -> {new.get(key, 'not known')}")
    if before.get("platform") != now.get("platform"):
        found.append(f"platform {before.get('platform', 'not known')} -> {now.get('platform')}")
    return found


def _of_code(before: Any, now: Any) -> list[str]:
    was, has = (_entry(each, "commit")[:8] if isinstance(each, Mapping) else "no checkout" for each in (before, now))
    if was != has:
        return [f"commit {was} -> {has}"]
    changed = [
        when for when, each in (("then", before), ("now", now)) if isinstance(each, Mapping) and each.get("dirty")
    ]
    return [f"code with changes that were not committed {' and '.join(changed)}"] if changed else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _entry(value: Any, key: str) -> str:
    return str(_mapping(value).get(key))
