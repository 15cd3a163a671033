"""What has changed since a run, for one that is to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metaopt import files, plugins
from metaopt.experiment import Experiment
from metaopt.experiment.plain import from_json, to_json
from metaopt.runs import folder, index, own_entries
from metaopt.runs.environment import of_experiment
from metaopt.runs.index import differing, value_words

DEVICE = {"kind": "device", "count": "devices", "processes": "processes"}


def what_differs(path: Path, experiment: Experiment) -> str:
    """One line: fields, versions, code, data and devices that are not those of a run, or that they are all the same."""
    recorded = files.read_json(path / folder.CONFIG)
    # Through the reader and back, so that a field that an older version did not know has its default.
    both = (from_json(recorded, str(path), unversioned=1), experiment)
    then, now = index.with_defaults([index.fields_of(to_json(each)) for each in both])
    found = [f"{name} {value_words(then, name)} -> {value_words(now, name)}" for name in differing([then, now])]
    before = files.read_json(path / folder.ENVIRONMENT) if (path / folder.ENVIRONMENT).is_file() else {}
    if not _part(before, "versions"):
        found.append("its versions are not known, for there are none in its environment.json")
    else:
        found += _of_environment(before, of_experiment(experiment, ""))
    found += plugins.changed(own_entries.recorded(path))
    if not found:
        return f"repeating {path}: the same configuration, versions, code, data and devices."
    return f"repeating {path}; different from then: {'; '.join(found)}."


def _of_environment(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    then, has = (_told(each) for each in (before, now))
    for name in dict.fromkeys((*then, *has)):
        absent = "not read" if name.startswith("data ") else "not there"
        was, is_now = then.get(name, absent), has.get(name, absent)
        if was != is_now:
            yield f"{name} {was} -> {is_now}"
    changed = [when for when, each in (("then", before), ("now", now)) if _part(each, "git").get("dirty")]
    if changed and then["commit"] == has["commit"]:
        yield f"code with changes that were not committed {' and '.join(changed)}"


def _told(environment: Mapping[str, Any]) -> dict[str, str]:
    """What an environment.json tells of versions, code, data and devices, by what a reader calls it."""
    data = environment.get("data")
    read = [entry for entry in data if isinstance(entry, Mapping)] if isinstance(data, list) else []
    device, commit = _part(environment, "device"), _part(environment, "git").get("commit")
    return {
        **{str(package): str(version) for package, version in _part(environment, "versions").items()},
        "commit": str(commit)[:8] if commit else "no checkout",
        **{f"data {entry.get('name')}": str(entry.get("sha256"))[:8] for entry in read},
        **{words: str(device.get(key, "not known")) for key, words in DEVICE.items()},
        "platform": str(environment.get("platform", "not known")),
    }


def _part(environment: Any, name: str) -> Mapping[str, Any]:
    value = environment.get(name) if isinstance(environment, Mapping) else None
    return value if isinstance(value, Mapping) else {}
