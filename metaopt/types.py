"""Protocols, state records and aliases: the words that every other module speaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import optax

Key = jax.Array
Scalar = jax.Array
PyTree = Any
Params = PyTree
MetaParams = PyTree
Task = PyTree
Data = PyTree
Batch = PyTree
OracleState = PyTree
Aux = PyTree
Metrics = dict[str, jax.Array]
Split = Literal["train", "validation", "test"]


def _static(**kwargs: Any) -> Any:
    return field(metadata={"static": True}, **kwargs)


class Oracle(NamedTuple):
    """Where a task's gradient comes from. It carries a state, so particle methods fit.

    `init(family, task, params, key) -> state` and
    `estimate(family, task, params, state, key) -> (gradient, value, state, aux)`; written for one task.
    """

    init: Callable[[TaskFamily, Task, Params, Key], OracleState]
    estimate: Callable[[TaskFamily, Task, Params, OracleState, Key], tuple[Params, Scalar, OracleState, Aux]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TaskFamily:
    """A distribution over optimisation problems, written for one task and vmapped by the callers.

    It passes through `jax.jit` as an argument: `data` is traced, everything else is static. A factory that is called
    twice makes two families with different callables, so keep the object to keep the compiled code.
    """

    data: Data  # arrays shared by all tasks, or (); an argument, never a compiled constant
    sample: Callable[[Key, Data], Task] = _static()
    init: Callable[[Key, Task], Params] = _static()
    batch: Callable[[Key, Task, Data], Batch] = _static()  # () where the task is deterministic
    loss: Callable[[Params, Task, Batch], Scalar] = _static()
    eval_batch: Callable[[Task, Data, Split], Batch] = _static()  # all of a split, or a large fixed batch
    metrics: Callable[[Params, Task, Batch], dict[str, Scalar]] | None = _static(default=None)
    oracle: Oracle | None = _static(default=None)  # None: value and gradient of `loss` on a fresh batch
    name: str = _static(default="")
    splits: tuple[Split, ...] = _static(default=("train",))  # the splits that `eval_batch` knows
    evaluated_on: str = _static(default="the exact loss")  # what `eval_batch` holds, in words, for reports


class Optimizer(NamedTuple):
    """An optimizer with parameters φ, learned and hand-designed alike."""

    init: Callable[[Key], MetaParams]  # LSTM weights, or {"log_learning_rate": ...}
    bind: Callable[[MetaParams], optax.GradientTransformationExtraArgs]
    # The same update on leaves with a leading task axis, `key` and `value` of shape [tasks]; its state is opaque.
    # None: vmap of bind's.
    bind_tasks: Callable[[MetaParams], optax.GradientTransformationExtraArgs] | None = None
    explores: bool = False  # whether `update(..., explore=True)` draws step noise from `key`


# Whether a step is drawn with noise; `scored`: with noise, as a constant, its log-probability left in a `Scored`.
Explore = bool | Literal["scored"]


class Scored(NamedTuple):
    """What `update(..., explore="scored")` leaves in its state, around a part of it, if the noise has a density."""

    state: PyTree
    log_prob: jax.Array  # [tasks], differentiable in φ; the step itself counts as a constant


class UnrollState(NamedTuple):
    """What an inner run carries from step to step; every leaf but `opt_state`'s has a leading task axis."""

    params: Params  # [tasks, ...]
    opt_state: PyTree  # as the task-batched optimizer lays it out
    oracle_state: OracleState  # [tasks, ...]
    step: jax.Array  # [tasks] int32, inner steps done since the reset
    key: Key  # [tasks] typed keys, fixed for a whole inner run
    alive: jax.Array  # [tasks] bool, False from the first non-finite loss or gradient on
    initial_loss: jax.Array  # [tasks] f(θ_0)


class Trace(NamedTuple):
    """What an inner run reports."""

    loss: jax.Array  # [length, tasks] f(θ_1) ... f(θ_length); infinity once a task is dead
    alive: jax.Array  # [length, tasks] bool
    update_norm: jax.Array  # [length, tasks] ‖g_t‖
    initial_loss: jax.Array  # [tasks] f(θ_0)
    log_prob: jax.Array | None = None  # [length, tasks] log p(g_t; φ) of the drawn steps, where asked for


Objective = Callable[[Trace], jax.Array]  # Trace -> [tasks]
Families = tuple[TaskFamily, ...]


class MetaGradient(NamedTuple):
    """An estimator of the meta-gradient: `truncated_backprop(...)`, `reparameterised(...)`."""

    init: Callable[[Key, MetaParams, Families], PyTree]
    estimate: Callable[[Key, MetaParams, PyTree, Families], tuple[MetaParams, PyTree, Metrics]]
