"""Protocols, state records and aliases: the words that every other module speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
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
Metrics = dict[str, jax.Array]
Split = Literal["train", "validation", "test"]


def _static(**kwargs: Any) -> Any:
    return field(metadata={"static": True}, **kwargs)


class Estimate(NamedTuple):
    """What an oracle says of f at θ."""

    gradient: Params
    value: Scalar | None  # None: f has no value here (an unnormalised energy)
    info: dict[str, Scalar] = {}  # health: ess, acceptance, energy gradients spent, ...


class Oracle(NamedTuple):
    """Where a task's gradient comes from. It carries a state, so particle methods fit.

    `init(family, task, params, key) -> state` and `estimate(family, task, params, state, key) -> (Estimate, state)`;
    written for one task, called once an inner step.
    """

    init: Callable[[TaskFamily, Task, Params, Key], OracleState]
    estimate: Callable[[TaskFamily, Task, Params, OracleState, Key], tuple[Estimate, OracleState]]


class Law(NamedTuple):
    """π_θ ∝ exp(-U_θ) over x [dim], under which ∇f is an expectation: what particle oracles follow. For one task."""

    dim: int
    energy: Callable[[Params, Task, jax.Array], Scalar] | None  # U_θ(x); None: only its slope is known
    start: Callable[[Key, Params, Task, Data], jax.Array]  # one x, drawn from π_θ0 or near it
    # (θ, task, x [N, dim], weights [N] of sum 1, batch) -> a number whose gradient in θ, at fixed particles, estimates
    # ∇f: Σ w_i U_θ(x_i) for E[∇U], Σ w_i (R_i - Σ w_j R_j) U_θ(x_i) for Cov(R, ∇U) = -∇E[R].
    surrogate: Callable[[Params, Task, jax.Array, jax.Array, Batch], Scalar]
    slope: Callable[[Params, Task, jax.Array], jax.Array] | None = None  # ∇U_θ(x); None: by differentiating U
    smooth: bool = True  # False: U has no gradient in x, and only random walks can follow it


class DataSource(NamedTuple):
    """A data set that a family reads, as a run records it to tell whether it is still the same."""

    name: str  # empty: that of the family
    source: str  # where it was found
    sha256: str
    classes: tuple[str, ...] = ()  # what the classes 0, 1, ... were called


class Bijection(NamedTuple):
    """Between a setting, as a person writes it, and a number that may be moved freely."""

    forward: Callable[[Any], Any]  # free -> setting
    inverse: Callable[[Any], Any]  # setting -> free


LOG = Bijection(forward=jnp.exp, inverse=jnp.log)  # of settings above 0
SHARE = Bijection(forward=jax.nn.sigmoid, inverse=lambda value: jnp.log(value) - jnp.log1p(-value))  # between 0 and 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hyper:
    """A setting of a family's loss that is left to others to choose: a weight decay, a precision for each layer."""

    start: Any  # the setting as a person writes it: a number or an array of any shape
    bijection: Bijection = _static(default=LOG)


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
    loss: Callable[..., Scalar] = _static()  # (params, task, batch) -> f, and `hyper=` where there are such
    eval_batch: Callable[[Task, Data, Split], Batch] = _static()  # all of a split, or a large fixed batch
    metrics: Callable[[Params, Task, Batch], dict[str, Scalar]] | None = _static(default=None)
    oracle: Oracle | None = _static(default=None)  # None: value and gradient of `loss` on a fresh batch
    name: str = _static(default="")
    splits: tuple[Split, ...] = _static(default=("train",))  # the splits that `eval_batch` knows
    evaluated_on: str = _static(default="the exact loss")  # what `eval_batch` holds, in words, for reports
    # What no loss on `eval_batch` falls below: a number, a function of the task, or None where it is not known.
    lower_bound: float | Callable[[Task], Any] | None = _static(default=0.0)
    # The metrics that a run has or has not, 1.0 or 0.0: reported as the share of tasks, P(name), with an interval.
    events: tuple[str, ...] = _static(default=())
    sources: tuple[DataSource, ...] = _static(default=())  # the data sets that `data` was read from
    law: Law | None = _static(default=None)  # what a particle oracle draws from; None: there is none
    # What is left to others to choose, by name; `loss` then takes a keyword `hyper`, a dict of settings, by default the
    # starts. Nothing else of the family reads it.
    hyper: Mapping[str, Hyper] = field(default_factory=dict)
    # By which `hyper` is chosen, and what curves then show: a loss of these arguments without it.
    validation_loss: Callable[[Params, Task, Batch], Scalar] | None = _static(default=None)

    @property
    def judged_loss(self) -> Callable[[Params, Task, Batch], Scalar]:
        """What says how good parameters are: `validation_loss` where there is one."""
        return self.loss if self.validation_loss is None else self.validation_loss

    @property
    def judged_on(self) -> Split:
        """The split that curves are drawn on."""
        return "train" if self.validation_loss is None else "validation"

    @property
    def batch_size(self) -> int | None:
        """The examples of a minibatch; None for a deterministic family, whose batch is ()."""

        def draw(key: Key) -> Batch:
            return self.batch(key, self.sample(key, self.data), self.data)

        leaves = jax.tree.leaves(jax.eval_shape(draw, jax.random.key(0)))
        return leaves[0].shape[0] if leaves and leaves[0].shape else 1 if leaves else None


class Observe(NamedTuple):
    """How a learned optimizer's network is followed, coordinate by coordinate, from the gradients alone.

    `init(meta_params, shape) -> state` for [tasks, coordinates]; `apply(meta_params, gradient [tasks, D], sample
    [coordinates], count, state) -> (inputs [tasks, coordinates, inputs], layers of gates by name [tasks, coordinates,
    hidden], state)`, with `count` from 1 and `sample` the coordinates that are followed.
    """

    inputs: tuple[str, ...]  # what the network reads, by name
    gates: tuple[str, ...]  # in (0, 1), but those in `signed`
    signed: tuple[str, ...]  # gates in (-1, 1)
    init: Callable[[MetaParams, tuple[int, int]], PyTree]
    apply: Callable[..., tuple[jax.Array, list[dict[str, jax.Array]], PyTree]]


class Optimizer(NamedTuple):
    """An optimizer with parameters φ, learned and hand-designed alike."""

    init: Callable[[Key], MetaParams]  # LSTM weights, or {"learning_rate": ...}, each as `tunable` says
    bind: Callable[[MetaParams], optax.GradientTransformationExtraArgs]
    # The same update on leaves with a leading task axis, `key` and `value` of shape [tasks]; its state is opaque.
    # None: vmap of bind's.
    bind_tasks: Callable[[MetaParams], optax.GradientTransformationExtraArgs] | None = None
    # "exploring": `update(..., explore=True)` draws step noise from `key`; "always": every update does.
    noise: Literal["none", "exploring", "always"] = "none"
    # Entries of a dict φ that a search or a meta-gradient may move: name of the setting -> where φ keeps it, and how.
    tunable: Mapping[str, Bijection] = {}
    observe: Observe | None = None
    # (state of `bind`, params) -> the parameters to be judged, of one task: averages, say, while gradients are taken
    # elsewhere. With a `bind_tasks` of its own, of all tasks. None: params themselves.
    eval_params: Callable[[PyTree, Params], Params] | None = None
    needs_value: bool = False  # `update` has to be given `value=`, the loss that the gradient is of
    # The same optimizer, told how many inner steps a run has, and itself where its own settings say it; None: it does
    # not go by that. Whoever knows says it.
    at_horizon: Callable[[int], Optimizer] | None = None
    # φ -> the free numbers of the family's `hyper` that φ holds beside the optimizer's own; None: it holds none.
    hyper: Callable[[MetaParams], dict[str, Any]] | None = None
    # The largest product of `learning_rate` and curvature at which its steps on a parabola do not grow; None: not told.
    stable_below: float | None = None

    def __hash__(self) -> int:
        return hash((self.init, self.bind, self.bind_tasks, self.noise))  # compiled code hangs on it; a dict has none

    @property
    def explores(self) -> bool:
        """Whether `update(..., explore=True)` differs from `explore=False`."""
        return self.noise == "exploring"

    @property
    def knows_horizon(self) -> bool:
        """Whether its steps hang on how long the run is, which others are not told."""
        return self.at_horizon is not None


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
    estimate: Estimate  # of f at `params`, [tasks, ...]; zeros once a task is dead
    step: jax.Array  # [tasks] int32, inner steps done since the reset
    key: Key  # [tasks] typed keys, fixed for a whole inner run
    alive: jax.Array  # [tasks] bool, False from the first non-finite loss or gradient on
    initial_loss: jax.Array  # [tasks] f(θ_0)
    lower_bound: jax.Array  # [tasks] what no loss falls below; nan where it is not known


class Trace(NamedTuple):
    """What an inner run reports."""

    loss: jax.Array  # [length, tasks] f(θ_1) ... f(θ_length); infinity once a task is dead
    alive: jax.Array  # [length, tasks] bool
    update_norm: jax.Array  # [length, tasks] ‖g_t‖
    initial_loss: jax.Array  # [tasks] f(θ_0)
    lower_bound: jax.Array  # [tasks]; nan where it is not known
    log_prob: jax.Array | None = None  # [length, tasks] log p(g_t; φ) of the drawn steps, where asked for
    info: dict[str, jax.Array] = {}  # [length, tasks] the oracle's health at θ_1 ... θ_length
    observed: PyTree = None  # [length, ...] what `observe` gave, where asked for


Objective = Callable[[Trace], jax.Array]  # Trace -> [tasks]
Families = tuple[TaskFamily, ...]


class InnerBatch(NamedTuple):
    """Inner runs that go through one program together, as an estimator runs them in one of its meta-steps."""

    family: int  # which of the families
    meta_params: MetaParams
    keys: Key  # [tasks], of runs that begin now
    start: tuple[Task, UnrollState] | None  # of runs that are under way
    length: int
    explore: bool
    objective_batch: str
    differentiates: bool


class MetaGradient(NamedTuple):
    """An estimator of the meta-gradient: `truncated_backprop(...)`, `reparameterised(...)`."""

    init: Callable[[Key, MetaParams, Families], PyTree]
    estimate: Callable[[Key, MetaParams, PyTree, Families], tuple[MetaParams, PyTree, Metrics]]
    # (key, φ, state, families) -> the inner runs of `estimate`; for looking at single ones afterwards. None: not told.
    batches: Callable[[Key, MetaParams, PyTree, Families], Iterator[InnerBatch]] | None = None
