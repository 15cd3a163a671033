"""What stopped being usable first in a run that blew up: loss, gradient or parameters."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.batching import compiler_options
from metaopt.experiment import build_optimizer
from metaopt.oracles import minibatch
from metaopt.runs.capsules import Batch, Setting, build_family_of
from metaopt.trees import task_norm, usable_tasks
from metaopt.types import Key, MetaParams, Optimizer, PyTree, Task, TaskFamily, UnrollState
from metaopt.unroll import bind_tasks, reset, unroll

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
    """Runs a capsule's batch once more, one inner step after the other."""
    run = functools.partial(_run, build_optimizer(setting.experiment.optimizer), **setting.how)
    arguments = jax.tree.map(jnp.asarray, (batch.meta_params, build_family_of(setting), batch.keys, batch.start))
    return jax.device_get(jax.jit(run, compiler_options=compiler_options())(*arguments))


def first_cause(steps: Steps, task: int) -> tuple[str, int] | None:
    """(what, in which row) stopped being usable first; None where all stayed so."""
    rows = np.flatnonzero(steps.alive[:, task] & ~steps.usable[:, task].all(axis=1))
    if not len(rows):
        return None
    return PARTS[int((~steps.usable[rows[0], task]).argmax())], int(rows[0])


def _run(
    optimizer: Optimizer,
    meta_params: MetaParams,
    family: TaskFamily,
    keys: Key,
    start: tuple[Task, UnrollState] | None,
    *,
    length: int,
    explore: bool,
    objective_batch: Any,
    differentiable: bool,
) -> Steps:
    tx = bind_tasks(optimizer, meta_params)
    task, state = reset(tx, family, keys) if start is None else start
    oracle = family.oracle or minibatch()

    def gradient_at(task: Task, params: PyTree, oracle_state: Any, key: Key) -> tuple[Any, jax.Array, Any]:
        gradient, value, oracle_state, _ = oracle.estimate(family, task, params, oracle_state, key)
        return gradient, value, oracle_state

    def full(task: Task, params: PyTree) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(family.loss)(params, task, family.eval_batch(task, family.data, "train"))

    def step(state: UnrollState, _: None) -> tuple[UnrollState, Steps]:
        # Keys and order are those of `unroll`.
        step_keys = jax.vmap(jax.random.fold_in)(state.key, state.step)
        keys = [jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(step_keys) for i in range(3)]
        gradient, value, oracle_state = jax.vmap(gradient_at)(task, state.params, state.oracle_state, keys[0])
        updates = tx.update(gradient, state.opt_state, state.params, key=keys[1], value=value, explore=explore)[0]
        moved = jax.tree.map(jnp.add, state.params, updates)
        if objective_batch == "full":
            loss, slope = jax.vmap(full)(task, moved)
        else:
            key = keys[0] if objective_batch == "same" else keys[2]
            slope, loss, _ = jax.vmap(gradient_at)(task, moved, oracle_state, key)
        # What a step does not look at cannot end it: the next one may.
        parts = [value, gradient, moved]
        parts += [] if objective_batch == "none" else [loss, slope] if differentiable else [loss]
        usable = [usable_tasks(part) for part in parts]
        usable += [jnp.ones_like(state.alive)] * (len(PARTS) - len(usable))
        shown = value if objective_batch == "none" else loss
        row = Steps(shown, task_norm(gradient), task_norm(updates), jnp.stack(usable, -1), state.alive)  # type: ignore
        after = unroll(
            tx,
            family,
            task,
            state,
            length=1,
            explore=explore,
            objective_batch=objective_batch,
            differentiable=differentiable,
        )[0]
        return after, row

    return jax.lax.scan(step, state, length=length)[1]
