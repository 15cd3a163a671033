"""The commands of `metaopt` by name. jax and the rest are imported when a command needs them."""

from __future__ import annotations

import importlib
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command is, and what is done before its module is imported, so that --help and mistakes need not wait."""

    place: str  # MODULE:FUNCTION of this room
    arguments: str | None = None  # a class in `arguments`, which the words are read into; None: it takes the words
    takes_devices: bool = False  # jax gets its devices, --num-devices of them
    needs_jax: bool = False  # whatever it is to do


COMMANDS = {
    "train": Command("train:train", needs_jax=True),
    "launch": Command("launching:launch", needs_jax=True),
    "status": Command("launching:status"),
    "cancel": Command("launching:cancel"),
    "resume": Command("launching:resume", needs_jax=True),
    "evaluate": Command("evaluate:evaluate", "EvaluateArguments", takes_devices=True, needs_jax=True),
    "benchmark": Command("benchmark:benchmark", "BenchmarkArguments", takes_devices=True, needs_jax=True),
    "report": Command("report:report", "ReportArguments"),
    "doctor": Command("examine:doctor", "DoctorArguments", takes_devices=True, needs_jax=True),
    "inspect": Command("inspecting:inspect", "InspectArguments", takes_devices=True, needs_jax=True),
    "replay": Command("examine:replay", "ReplayArguments", takes_devices=True, needs_jax=True),
    "runs": Command("runs:runs"),
    "dashboard": Command("report:dashboard"),
    "export": Command("report:export"),
    "list": Command("list:show_list", needs_jax=True),
}


def run(name: str, words: list[str]) -> None:
    """Runs a command with the words that follow its name."""
    command = COMMANDS[name]
    given = words
    if command.needs_jax:
        from metaopt.cli import devices

        devices.check_environment()
    if command.arguments is not None:
        from metaopt.cli import arguments, devices
        from metaopt.experiment.flags import parse

        given = parse(getattr(arguments, command.arguments), given, prog=f"metaopt {name}")
        if command.takes_devices:
            devices.configure_jax(getattr(given, "num_devices", 1))
            devices.see_devices(getattr(given, "num_devices", None))
    module, function = command.place.split(":")
    getattr(importlib.import_module(f"metaopt.cli.{module}"), function)(given)
