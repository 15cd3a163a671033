"""What can be named on the command line, each with the first line of its description."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from metaopt.errors import UserError, suggest
from metaopt.experiment import FAMILY_OPTIONS
from metaopt.experiment.plain import to_json
from metaopt.registry import ESTIMATORS, OPTIMIZERS, ORACLES, TASKS, Choice
from metaopt.runs.experiments import experiment_files, first_line, load_experiment
from metaopt.shipped.loading import SHIPPED, pretrained, read_optimizer

MAIN_FIELDS = (
    "tasks",
    "optimizer",
    "estimator",
    "objective",
    "num_meta_steps",
    "num_tasks",
    "horizon",
    "unroll_length",
)


def show_list(names: list[str]) -> None:
    """The command.

    Raises:
      UserError: a name that nothing has.
    """
    if any(word in ("-h", "--help") for word in names):
        print("usage: metaopt list [NAME ...]\n\nWithout a name: everything that can be named. With: its options.")
        return
    for name in names:
        print_entry(name)
    if not names:
        print_listing()


def print_listing() -> None:
    """Experiments, task families, optimizers, estimators, oracles and pretrained optimizers."""
    sections: dict[str, Mapping[str, str]] = {
        "experiments": {name: first_line(path) for name, path in experiment_files().items()},
        "task families": _described(TASKS),
        "optimizers": _described(OPTIMIZERS),
        "estimators": _described(ESTIMATORS),
        "oracles": _described(ORACLES),
        "pretrained": {
            name: str(read_optimizer(SHIPPED / f"{name}.safetensors").experiment.optimizer) for name in pretrained()
        },
    }
    for index, (title, entries) in enumerate(sections.items()):
        print(("\n" if index else "") + title)
        width = max(map(len, entries), default=0)
        for name, text in entries.items():
            print(f"  {name:{width}}  {text}".rstrip())
        if not entries:
            print("  none yet")


def print_entry(name: str) -> None:
    """What one experiment, task family, optimizer, estimator or oracle is, and its fields, or options with defaults.

    Raises:
      UserError: no registry has the name.
    """
    registries: dict[str, Mapping[str, Any]] = {
        "task family": TASKS,
        "optimizer": OPTIMIZERS,
        "estimator": ESTIMATORS,
        "oracle": ORACLES,
    }
    files = experiment_files()
    if name in files:
        _print_experiment(name, files[name])
        return
    found = [(kind, registry[name]) for kind, registry in registries.items() if name in registry]
    if not found:
        raise UserError(suggest(name, {*files, *(name for registry in registries.values() for name in registry)}))
    for kind, factory in found:
        print(f"{kind} {name}: {inspect.getdoc(factory) or _first_line(factory)}\n\noptions, as {name}:key=value,...")
        hints = get_type_hints(factory)
        for key, parameter in inspect.signature(factory).parameters.items():
            # What has no default, and how tasks are cut up, comes from the experiment's own fields.
            if parameter.default is not parameter.empty and key not in ("chunk_size", "num_devices"):
                print(f"  {key}={Choice('', {key: parameter.default}).text(key)}  {_type_in_words(hints[key])}")
        if kind == "task family":
            print("\nevery task family also takes, as the experiment's fields of these names do for all of them")
            for key, (hint, default) in FAMILY_OPTIONS.items():
                print(f"  {key}={default}  {_type_in_words(hint)}")
        if name in OPTIMIZERS and OPTIMIZERS.traits(name).inputs_in_words:
            print(f"\n{OPTIMIZERS.traits(name).inputs_in_words}")


def _print_experiment(name: str, path: Path) -> None:
    values = to_json(load_experiment(name)[1])
    print(f"experiment {name}: {ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))}\n")
    for key in MAIN_FIELDS:
        value = values[key]
        listed = value if isinstance(value, list) else [value]
        print(f"  {key}: {' '.join(_in_words(one) for one in listed)}")
    print(f"\n`metaopt train {name} --help` lists all fields; {path}")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return str(Choice(value["name"], value.get("options", {})))
    return "none" if value is None else str(value)


def _type_in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_args(hint):
        return " | ".join(_type_in_words(one) for one in get_args(hint))
    words = {"NoneType": "none", "str": "text", "int": "whole number", "float": "number", "bool": "true | false"}
    name = str(getattr(hint, "__name__", hint))
    return words.get(name, name)


def _described(registry: Mapping[str, Any]) -> dict[str, str]:
    return {name: _first_line(factory) for name, factory in registry.items()}


def _first_line(factory: Any) -> str:
    text = inspect.getdoc(factory) or inspect.getdoc(inspect.getmodule(factory)) or ""
    return text.partition("\n")[0]
