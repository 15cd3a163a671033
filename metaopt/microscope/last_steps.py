"""What stopped being usable first in a run that blew up: loss, gradient or parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.inner.step import Seen
from metaopt.microscope.capsules import Batch, Setting, run_again
from metaopt.trees import task_norm, usable_tasks

# In the order in which an inner step meets them: the first two before it, the others after it.
PARTS = ("loss", "gradient", "parameters", "loss", "gradient")


class Steps(NamedTuple):
    """Step by step, as computed: nothing is masked in the step at which a task blows up; [length, tasks]."""

    loss: np.ndarray  # f(θ_t) after the step
    gradient_norm: np.ndarray  # ‖∇_t‖ that the step was taken from
    update_norm: np.ndarray  # ‖g_t‖
    usable: np.ndarray  # [length, tasks, PARTS] finite, and at most 1e15
    alive: np.ndarray  # before the step


def look_closely(setting: Setting, batch: Batch) -> Steps:
    """Runs a capsule's batch once more, and is shown every step."""
    trace, _ = run_again(setting, batch, observe=_look)
    return trace.observed


def _look(seen: Seen) -> Steps:
    before, after = seen.before.estimate, seen.estimate
    parts = (before.value, before.gradient, seen.moved, after.value, after.gradient)
    loss: Any = after.value if after.value is not None else jnp.zeros_like(seen.before.initial_loss)
    return Steps(
        loss=loss,
        gradient_norm=task_norm(before.gradient),  # type: ignore[arg-type]
        update_norm=task_norm(seen.updates),  # type: ignore[arg-type]
        usable=jnp.stack([_usable(part, seen.before.alive) for part in parts], -1),  # type: ignore[arg-type]
        alive=seen.before.alive,  # type: ignore[arg-type]
    )


def _usable(part: Any, alive: jax.Array) -> jax.Array:
    return jnp.ones_like(alive) if part is None else usable_tasks(part)


def first_cause(steps: Steps, task: int) -> tuple[str, int] | None:
    """(what, in which row) stopped being usable first; None where all stayed so."""
    rows = np.flatnonzero(steps.alive[:, task] & ~steps.usable[:, task].all(axis=1))
    if not len(rows):
        return None
    return PARTS[int((~steps.usable[rows[0], task]).argmax())], int(rows[0])
