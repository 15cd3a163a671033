"""Loss curves of optimizers on a task family: the same tasks, starts and minibatches for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.evaluation.early_stopping import EarlyStopping, Stopped
from metaopt.evaluation.outcomes import run
from metaopt.evaluation.recording import plan
from metaopt.evaluation.statistics import Scale, scale
from metaopt.inner.curvature import warn_of_long_steps
from metaopt.progress import Bar
from metaopt.trees import usual_rules
from metaopt.types import Key, MetaParams, Optimizer, Split, TaskFamily

Entry = tuple[Optimizer, MetaParams] | optax.GradientTransformation


class Curves(NamedTuple):
    """What `evaluate` reports; numpy throughout, one entry a name."""

    steps: np.ndarray  # [points] inner steps, from 0 to the horizon; the training horizon is among them
    loss: dict[str, np.ndarray]  # [tasks, points]: column 0 is f(θ_0), the same for all; inf once a task is dead
    # [tasks, points]: the largest loss up to there, also between recorded points; column 0 is f(θ_0). A step's own loss
    # counts as it came with the step's gradient: exact on deterministic families, else a minibatch's.
    peak: dict[str, np.ndarray]
    alive: dict[str, np.ndarray]  # [tasks, points] bool
    final: dict[str, dict[Split, dict[str, np.ndarray]]]  # split -> "loss" and the family's metrics at the end, [tasks]
    lower_bound: np.ndarray  # [tasks] what no loss falls below; nan where that is not known
    evaluated_on: str  # what the losses of the curve are taken on, in words
    train_horizon: int | None
    # [tasks, points]: the mean of f(θ_1), ..., f(θ_t) over every step, recorded or not; column 0 is f(θ_0). Where there
    # are minibatches, of the losses as they came with the gradients, each on a fresh batch.
    along: dict[str, np.ndarray] = {}
    stopped: dict[str, Stopped | None] = {}  # what early stopping would have made of it; None where not asked for

    @property
    def scale(self) -> Scale:
        """What losses are measured by; see `metaopt.evaluation.statistics.scale`."""
        return scale(self.lower_bound, next(iter(self.loss.values()))[:, 0], self.loss.values())


@usual_rules()
def evaluate(
    optimizers: Mapping[str, Entry],
    family: TaskFamily,
    key: Key,
    *,
    horizon: int,
    num_tasks: int = 100,
    train_horizon: int | None = None,
    record_every: int | None = None,
    early_stopping: EarlyStopping | None = None,
    searched: Collection[str] = (),
    num_devices: int | None = None,
    progress: Callable[[str], None] | bool = True,
) -> Curves:
    """Runs every optimizer on the same `num_tasks` tasks, from the same starts, on the same minibatches.

    Evaluating other φ of the same optimizer, family object, horizon and number of tasks does not compile anew.

    Args:
      optimizers: name -> (optimizer, φ), or any optax transformation that needs no more than gradients, parameters and
        the loss's value; one whose parameters to be judged are others, as `schedule_free`, goes as an `Optimizer` with
        `eval_params`.
      key: decides tasks, starts and minibatches.
      horizon: inner steps.
      train_horizon: the horizon an optimizer was meta-trained on; it and its tenfold are among the recorded steps.
      record_every: inner steps between recorded points; default: at most about 1000 points where the loss is exact and
        about 100 where a record means a pass over a data set.
      early_stopping: on the validation loss; its checks are among the recorded points. Runs go on to the horizon all
        the same, and `Curves.stopped` says where they would have stopped, and how good they were.
      searched: names whose rates were found by trying; of the others' one is warned where it lies above what their
        steps are stable at.
      num_devices: default: every local device.
      progress: show a bar in a terminal or a notebook; or what is called with each name before it runs.

    Raises:
      ValueError: counts below 1, early stopping without validation data, or a transformation that needs what an inner
        loop does not have.
    """
    if not isinstance(family, TaskFamily):
        raise ValueError(f"`family` is {family!r}; give a task family, such as metaopt.TASKS['quadratic']()")
    if not isinstance(key, jax.Array | np.ndarray):
        raise ValueError(f"`key` is {key!r}; give a random key, such as jax.random.key(0)")
    if not optimizers:
        raise ValueError("`optimizers` is empty; give at least one name -> (optimizer, φ) or optax transformation")
    bound = {name: as_optimizer(entry, family, name) for name, entry in optimizers.items()}
    if early_stopping is not None:
        early_stopping = EarlyStopping(early_stopping.patience, early_stopping.every or record_every)
        early_stopping = early_stopping.fitted(family, horizon, train_horizon)
        if record_every not in (None, early_stopping.every):
            raise ValueError("checks are recorded points; leave `record_every` out where they have an `every`.")
        record_every = early_stopping.every
    steps = plan(family, horizon, train_horizon, record_every)
    runs = {}
    quiet = progress is not True or jax.process_index() > 0
    with Bar("evaluating", len(bound), quiet=quiet, text="") as bar:
        for name, (optimizer, meta_params) in bound.items():
            (progress if callable(progress) else functools.partial(bar.update, len(runs)))(name)
            if name not in searched:
                warn_of_long_steps(name, optimizer, meta_params, family, key)
            runs[name] = run(
                optimizer,
                meta_params,
                family,
                key,
                steps=steps,
                num_tasks=num_tasks,
                early_stopping=early_stopping,
                num_devices=num_devices,
            )
        bar.update(len(runs), "")
    return Curves(
        steps=steps,
        loss={name: outcome.loss for name, outcome in runs.items()},
        peak={name: outcome.peak for name, outcome in runs.items()},
        alive={name: outcome.alive for name, outcome in runs.items()},
        final={name: outcome.final for name, outcome in runs.items()},
        lower_bound=next(iter(runs.values())).lower_bound,
        evaluated_on=family.evaluated_on,
        train_horizon=train_horizon,
        along={name: outcome.along for name, outcome in runs.items()},
        stopped={name: outcome.stopped for name, outcome in runs.items()},
    )


# ----- optax transformations ------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=128)
def _wrapped(transformation: optax.GradientTransformation) -> Optimizer:
    # Cached, for the compiled code hangs on the Optimizer's identity.
    extended = optax.with_extra_args_support(transformation)
    return Optimizer(init=lambda key: (), bind=lambda meta_params: extended)


@usual_rules()
def as_optimizer(entry: Entry, family: TaskFamily, name: str = "optimizer") -> tuple[Optimizer, MetaParams]:
    """(optimizer, φ) as it is, or an optax transformation as an optimizer with φ = ().

    Raises:
      ValueError: neither of the two, or a transformation such as a line search that needs further arguments.
    """
    if not isinstance(entry, optax.GradientTransformation):
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], Optimizer)):
            raise ValueError(f"{name!r} is a {type(entry).__name__}; give (optimizer, φ) or an optax transformation")
        return entry
    optimizer = _wrapped(entry)

    def one_update(key: Key) -> Any:
        params = family.init(key, family.sample(key, family.data))
        tx = optimizer.bind(())
        return tx.update(params, tx.init(params), params, key=key, value=jnp.float32(0.0), explore=False)

    try:
        jax.eval_shape(one_update, jax.random.key(0))
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(
            f"{name!r} cannot run here: its update asks for more than gradients, state, parameters, `key` and `value` "
            f"({error}). A line search evaluates the loss again (`value_fn`), which the inner loop does not offer, for "
            "its cost is not that of the others; give an optimizer without a line search."
        ) from error
    return optimizer, ()
