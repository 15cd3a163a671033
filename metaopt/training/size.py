"""Whether an experiment can be computed on this machine at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from metaopt.choices import Choice
from metaopt.experiment import Experiment, build_families, optimizer_of
from metaopt.inner import limits
from metaopt.types import Families, Optimizer

COPIES = 4  # of φ: itself, its gradient, the meta-optimizer's two moments
METRIC_BYTES = 64  # of a meta-step


def check_size(experiment: Experiment, optimizer: Optimizer, families: Families) -> None:
    """Refuses a meta-step that this machine has no memory or no time for.

    Raises:
      UserError: in one line, with the setting that is too large and a value that would do.
    """
    needed, steps = _needs(experiment, optimizer, families)
    if not limits.fits(needed, steps):
        limits.refuse(limits.why(needed, steps), _settings(experiment))


def _needs(experiment: Experiment, optimizer: Optimizer, families: Families) -> tuple[int, int]:
    """(bytes that any program for a meta-step takes, inner steps of the longest program)."""
    sizes = [limits.sizes(optimizer, family) for family in families]
    window = experiment.unroll_length or experiment.horizon
    largest = max(run.task for run in sizes)
    carried = largest if window < experiment.horizon else 0
    tasks = experiment.num_tasks * (limits.KEY_BYTES + carried)
    validation = experiment.validation
    longest = max(validation.multiples, default=1) * experiment.horizon if validation.every else 0
    held_out = validation.num_tasks * limits.KEY_BYTES if validation.every else 0
    logged = min(experiment.log.every, experiment.num_meta_steps) * METRIC_BYTES
    once = COPIES * sizes[0].meta_params + largest + 4 * window
    return once + max(tasks, held_out) + logged, max(window, longest)


def _settings(experiment: Experiment) -> Iterator[limits.Setting]:
    """Every whole number that decides the size of a meta-step."""

    def fits(change: Callable[[int], Experiment]) -> Callable[[int], bool]:
        def would(value: int) -> bool:
            changed = change(value)
            needed, steps = _needs(changed, optimizer_of(changed), build_families(changed))
            return limits.fits(needed, steps, room=limits.ROOM)

        return would

    def replaced(value: Any, names: list[str], new: Any) -> Any:
        if not names:
            return new
        first, rest = names[0], names[1:]
        if isinstance(value, Choice):
            return Choice(value.name, {**value.options, first: new})
        if isinstance(value, tuple):
            return tuple(replaced(each, rest, new) if str(i) == first else each for i, each in enumerate(value))
        return dataclasses.replace(value, **{first: replaced(getattr(value, first), rest, new)})

    def integers(value: Any, path: list[str], name: str) -> Iterator[tuple[list[str], str, int]]:
        if isinstance(value, Choice):
            items, name = list(value.options.items()), f"{value.name}:"
        elif isinstance(value, tuple):
            items = [(str(index), each) for index, each in enumerate(value)]
        elif dataclasses.is_dataclass(value):
            items = [(entry.name, getattr(value, entry.name)) for entry in dataclasses.fields(value)]
        else:
            items = []
        if isinstance(value, int) and not isinstance(value, bool):
            yield path, name, value
        for part, each in items:
            inner = f"{name}{part}" if isinstance(value, Choice) else ".".join([*path, part])
            yield from integers(each, [*path, part], inner)

    for path, name, value in integers(experiment, [], ""):
        if path[0] not in ("seed", "evaluation"):
            change = fits(lambda new, path=path: replaced(experiment, path, new))
            yield limits.Setting(name, value, change)
