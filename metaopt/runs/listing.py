"""What can be named on the command line, each with the first line of its description."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from metaopt.estimators import ESTIMATORS
from metaopt.optimizers import OPTIMIZERS
from metaopt.oracles import ORACLES
from metaopt.runs.config import experiment_files, first_line
from metaopt.runs.pretrained import SHIPPED, pretrained, read_optimizer
from metaopt.tasks import TASKS


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


def _described(registry: Mapping[str, Any]) -> dict[str, str]:
    return {name: _first_line(factory) for name, factory in registry.items()}


def _first_line(factory: Any) -> str:
    text = inspect.getdoc(factory) or inspect.getdoc(inspect.getmodule(factory)) or ""
    return text.partition("\n")[0]
