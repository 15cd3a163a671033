"""What a run stood on: versions, git commit, devices, data sets."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

import metaopt
from metaopt import files
from metaopt.choices import Choice
from metaopt.errors import UserError
from metaopt.experiment import Experiment, build_family
from metaopt.experiment.plain import from_json, to_json
from metaopt.runs import folder, index, own_entries

MAY_CHANGE = ("num_meta_steps", "num_devices", "checkpoint_every", "evaluation", "log.wandb", "log.project")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "wandb", "scikit-learn", "mlxtend")


def describe_environment(name: str, tasks: Iterable[Choice]) -> dict[str, Any]:
    """The contents of environment.json for a run on these task families."""
    devices = jax.local_devices()
    return {
        "experiment": name,
        "command": ["metaopt", *sys.argv[1:]],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "versions": _versions(),
        "git": _git(Path(metaopt.__file__).resolve().parent),
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "data": describe_data(tasks),
    }


def provenance() -> dict[str, Any]:
    """What decides the last digits of a φ made by this process: versions, commit, CPU and device."""
    device = jax.local_devices()[0]
    return {
        "versions": _versions(),
        "git": _git(Path(metaopt.__file__).resolve().parent),
        "cpu": _cpu(),
        "device": device.device_kind,
    }


def of_experiment(experiment: Experiment, name: str) -> dict[str, Any]:
    """The contents of environment.json for a run of an experiment of this name."""
    held = {folder.BEGUN_WITH: to_json(experiment)}
    return {**describe_environment(name, _tasks(experiment)), **own_entries.record(experiment), **held}


def check_config(path: Path, experiment: Experiment) -> None:
    """Refuses a config.json that was edited since its run began in what decides φ: the run would be neither.

    Raises:
      UserError: it names the field.
    """
    held = folder.environment_of(path).get(folder.BEGUN_WITH)
    if not isinstance(held, dict):  # not begun yet, or by an older version
        return
    begun, now = (index.fields_of(to_json(each)) for each in (from_json(held, str(path), unversioned=1), experiment))
    for name in index.differing([begun, now]):
        if not name.startswith(MAY_CHANGE):
            before, after = (index.value_words(fields, name) for fields in (begun, now))
            raise UserError(
                f"`{name}` in {path / folder.CONFIG} is {after}, and the run was begun with {before}; put that back, "
                f"or begin a new run by `metaopt train --from {shlex.quote(str(path))}`."
            )


def _tasks(experiment: Experiment) -> list[Choice]:
    return [*experiment.tasks, *experiment.evaluation.tasks]


def check_data(path: Path, experiment: Experiment) -> None:
    """Refuses data sets that changed since a run began: it would go on as another one, in silence.

    Raises:
      UserError: one is not what environment.json says.
    """
    held = folder.environment_of(path).get("data")
    before = {entry.get("name"): entry.get("sha256") for entry in held if isinstance(entry, dict)} if held else {}
    for entry in describe_data(_tasks(experiment)):
        was, now = before.get(entry["name"], entry["sha256"]), entry["sha256"]
        if was != now:
            raise UserError(
                f"the data set {entry['name']} in {entry['source']} (sha256 {now[:12]}) is not the one that {path} was "
                f"begun with (sha256 {str(was)[:12]}); put that one back, or begin a new run."
            )


def note_resumption(path: Path, experiment: Experiment, meta_step: int) -> None:
    """environment.json tells of every process that took part."""
    before = folder.environment_of(path)
    now = of_experiment(experiment, folder.experiment_name(path) or path.resolve().parent.name)
    if "started" in before:  # a sweep names the experiment of a run that is yet to begin
        changed = {key: value for key, value in now.items() if before.get(key) != value}
        now = {**before, "resumed": [*before.get("resumed", []), {"meta_step": meta_step, **changed}]}
    files.write_json(path / folder.ENVIRONMENT, now)


def describe_data(tasks: Iterable[Choice]) -> list[dict[str, Any]]:
    """Name, source and hash of every data set that the families read, and what its classes were called."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for picked in tasks:
        family = build_family(picked)
        for data in family.sources:
            name = data.name or family.name
            entry = {"name": name, "source": data.source, "sha256": data.sha256}
            # Named sets have the digits themselves.
            mapped = data.classes != tuple(map(str, range(len(data.classes))))
            entry = {**entry, "classes": list(data.classes)} if mapped else entry
            found[name, data.source] = {**found.get((name, data.source), {}), **entry}
    return list(found.values())


def _cpu() -> str:
    """The processor's model: two of them round, and so meta-train, differently."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, model = line.partition(":")
            if name.strip() == "model name":
                return model.strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {"metaopt": metaopt.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(package: Path) -> dict[str, Any] | None:
    """Commit of the package's own checkout, and whether files were changed; None where it is not a checkout."""
    if not (package.parent / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(package.parent), *words]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
