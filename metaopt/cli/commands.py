"""The commands of `metaopt` by name. jax and the rest are imported when a command needs them."""

from __future__ import annotations

from collections.abc import Callable

from metaopt.cli import launching, looking
from metaopt.cli import outputs as watching
from metaopt.cli import runs as keeping
from metaopt.cli import train as training

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": training.train,
    "launch": launching.launch,
    "status": launching.status,
    "cancel": launching.cancel,
    "resume": launching.resume,
    "evaluate": looking.evaluate,
    "report": looking.report,
    "doctor": looking.doctor,
    "replay": looking.replay,
    "runs": keeping.runs,
    "dashboard": watching.dashboard,
    "export": watching.export,
    "list": looking.show_list,
}
