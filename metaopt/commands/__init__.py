"""The commands of `metaopt` by name. jax and the rest are imported when a command needs them."""

from __future__ import annotations

from collections.abc import Callable

from metaopt.commands import launching, looking, training

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": training.train,
    "launch": launching.launch,
    "evaluate": looking.evaluate,
    "report": looking.report,
    "doctor": looking.doctor,
    "replay": looking.replay,
    "list": looking.show_list,
}
