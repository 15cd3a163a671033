"""`metaopt list`: what can be named on the command line, each with the first line of its description."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from metaopt.choices import Choice, hints_of
from metaopt.cli import devices
from metaopt.errors import UserError, suggest
from metaopt.experiment import FAMILY_OPTIONS, OF
from metaopt.experiment.plain import to_json
from metaopt.registry import ESTIMATORS, OPTIMIZERS, REGISTRIES, TASKS, Registry
from metaopt.runs.experiments import experiment_files, first_line, load_experiment
from metaopt.shipped.loading import SHIPPED, pretrained, read_optimizer

MAIN_FIELDS = "tasks optimizer estimator objective num_meta_steps num_tasks horizon unroll_length".split()
HELP = "usage: metaopt list [NAME ...]\n\nWithout a name: everything that can be named. With: its options."
# What has no default, and how tasks are cut up, comes from the experiment's own fields.
NOT_OPTIONS = ("chunk_size", "num_devices")
TYPES = {
    "Any": "anything",
    "NoneType": "none",
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true | false",
}


def show_list(names: list[str]) -> None:
    """The command.

    Raises:
      UserError: a name that nothing has.
    """
    if any(word in ("-h", "--help") for word in names):
        print(HELP)
        return
    devices.configure_jax(1)
    devices.see_devices()
    for name in names:
        print_entry(name)
    if not names:
        print_listing()


def listing() -> dict[str, dict[str, str]]:
    """Experiments, the entries of all registries, and pretrained optimizers: title -> name -> what it is."""
    sections = {"experiments": {name: first_line(path) for name, path in experiment_files().items()}}
    for registry in REGISTRIES:
        sections[plural(registry.kind)] = {name: _first_line(factory) for name, factory in registry.items()}
    files = {name: SHIPPED / f"{name}.safetensors" for name in pretrained()}
    sections["pretrained"] = {name: str(read_optimizer(file).experiment.optimizer) for name, file in files.items()}
    return sections


def plural(kind: str) -> str:
    """Of a registry's kind."""
    return kind.removesuffix("y") + "ies" if kind.endswith("y") else f"{kind}s"


def print_listing() -> None:
    """All of `listing`, in columns."""
    for index, (title, entries) in enumerate(listing().items()):
        print(("\n" if index else "") + title)
        width = max(map(len, entries), default=0)
        print("\n".join(f"  {name:{width}}  {text}".rstrip() for name, text in entries.items()) or "  none yet")


def print_entry(name: str) -> None:
    """What an experiment is, with its fields, or the entries of this name, with their options and defaults.

    Raises:
      UserError: no registry has the name.
    """
    files = experiment_files()
    if name in files:
        _print_experiment(name, files[name])
        return
    found = [registry for registry in REGISTRIES if name in registry]
    if not found:
        raise UserError(suggest(name, {*files, *(entry for registry in REGISTRIES for entry in registry)}))
    for registry in found:
        print_options(name, registry)


def print_options(name: str, registry: Registry[Any]) -> None:
    """What an entry of a registry is, and its options with defaults and types."""
    factory = registry[name]
    text = inspect.getdoc(factory) or _first_line(factory)
    print(f'{registry.kind} {name}: {text}\n\noptions, as {name}:key=value,... (key="a,b": with a comma in it)')
    hints = hints_of(factory)
    for key, parameter in inspect.signature(factory).parameters.items():
        if parameter.default is not parameter.empty and key not in NOT_OPTIONS:
            print(f"  {key}={Choice('', {key: parameter.default}).text(key)}  {_type_in_words(hints.get(key, Any))}")
    if registry is TASKS:
        print("\nevery task family also takes, as the experiment's fields of these names do for all of them")
        for key, (hint, default) in FAMILY_OPTIONS.items():
            print(f"  {key}={default}  {_type_in_words(hint)}")
    if registry is ESTIMATORS:
        moves = ESTIMATORS.traits(name).moves
        print(f"\nwhat it moves: the optimizer, or the task's hyperparameters\n  {OF}={moves[0]}  {' | '.join(moves)}")
    if registry is OPTIMIZERS and OPTIMIZERS.traits(name).inputs_in_words:
        print(f"\n{OPTIMIZERS.traits(name).inputs_in_words}")


def _print_experiment(name: str, path: Path) -> None:
    values = to_json(load_experiment(name)[1])
    print(f"experiment {name}: {ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))}\n")
    for key in MAIN_FIELDS:
        listed = values[key] if isinstance(values[key], list) else [values[key]]
        print(f"  {key}: {' '.join(_in_words(one) for one in listed)}")
    print(f"\n`metaopt train {name} --help` lists all fields; {path}")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return str(Choice(value["name"], value.get("options", {})))
    return "none" if value is None else str(value)


def _type_in_words(hint: Any) -> str:
    if get_args(hint):
        return " | ".join(str(one) if get_origin(hint) is Literal else _type_in_words(one) for one in get_args(hint))
    name = str(getattr(hint, "__name__", hint))
    return TYPES.get(name, name)


def _first_line(factory: Any) -> str:
    text = inspect.getdoc(factory) or inspect.getdoc(inspect.getmodule(factory)) or ""
    return text.partition("\n")[0]
