"""Meta-training: the meta-step, chunks of meta-steps under one jit, and the host's loop around them."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from metaopt.choices import Choice, build, parse_choice
from metaopt.errors import UserError
from metaopt.estimators.curriculum import check_curriculum, log_uniform, stages, with_curriculum
from metaopt.estimators.hypergradients import INDEFINITE
from metaopt.estimators.parts import moving, of_part
from metaopt.estimators.windows import Schedule
from metaopt.experiment import Experiment, build_families, optimizer_of
from metaopt.experiment.checks import validate
from metaopt.inner.checks import check_estimator
from metaopt.inner.devices import compiler_options, matmul_precision, task_mesh
from metaopt.progress import Bar
from metaopt.registry import ESTIMATORS, OBJECTIVES
from metaopt.training.checks import check_estimates, check_fits, check_own, check_own_parts
from metaopt.training.meta_optimizer import make_clips, make_meta_optimizer, moving_average
from metaopt.training.size import check_size
from metaopt.trees import usual_rules
from metaopt.types import Families, InnerBatch, Key, MetaGradient, MetaParams, Metrics, Optimizer, PyTree

# Meta-steps looked back on, at least, when a run is judged to have diverged.
LOOK_BACK = 20


class Diverged(RuntimeError):
    """Half of the latest meta-steps had no task alive, or no finite meta-gradient."""


class TrainState(NamedTuple):
    """All that meta-training carries; saved and restored whole."""

    meta_params: MetaParams
    opt_state: PyTree  # the meta-optimizer's, on φ as one vector
    estimator_state: PyTree
    key: Key
    meta_step: jax.Array  # [] int32, meta-steps done
    ema: MetaParams = ()  # the average of φ after each meta-step so far, under `meta_optimizer.ema`


def averaged(state: TrainState) -> MetaParams:
    """The φ to validate, evaluate and save: its average over meta-steps where there is one, else φ itself."""
    return state.ema if jax.tree.leaves(state.ema) else state.meta_params


class Trainer:
    """An experiment's objects, ready to run: families, optimizer, estimator, and the jitted chunk."""

    @usual_rules()
    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.families: Families = build_families(experiment)
        if experiment.min_batch_size is not None and all(family.batch_size is None for family in self.families):
            raise UserError("`min_batch_size` is set, but none of the task families has minibatches; leave it out.")
        self.optimizer = optimizer_of(experiment)
        check_own_parts(experiment, self.optimizer, self.families)
        self.values_known = check_estimates(experiment, self.optimizer, self.families)
        check_size(experiment, self.optimizer, self.families)
        self.estimator = build_estimator(experiment, experiment.estimator, self.optimizer, self.families)
        check_own(
            ESTIMATORS, experiment.estimator, lambda: check_estimator(self.estimator, self.optimizer, self.families)
        )
        self.levels = _levels(experiment)
        self.level = 0  # of these; under a `validation` curriculum raised by whoever validates
        if experiment.curriculum.kind != "none":
            self.estimator = _with_curriculum(self.estimator, experiment, self.levels)
        check_fits(
            self.estimator,
            experiment.estimator.name,
            self.optimizer,
            self.families,
            bounded=experiment.memory is not None,
        )
        decay = experiment.meta_optimizer.ema
        if decay is not None and not 0 < decay < 1:
            raise UserError(f"`meta_optimizer.ema` ({decay}) must lie between 0 and 1; try 0.99.")
        # The part of φ that does not move is left alone by a meta-optimizer's decay too.
        self._moving = moving(self.optimizer, experiment.estimator)
        self._clips = make_clips(experiment.meta_optimizer)
        self.meta_optimizer, self.schedule = make_meta_optimizer(experiment.meta_optimizer, experiment.num_meta_steps)
        # Fixed at every border of a chunk; a sharding that changed after the first chunk would compile it twice.
        tasks_each = max(1, experiment.num_tasks // len(self.families))
        self._replicated = NamedSharding(task_mesh(tasks_each, experiment.num_devices), PartitionSpec())
        self.families = _replicate(self.families, self._replicated)
        self._chunk = jax.jit(
            self._run,
            static_argnames="length",
            donate_argnums=0,
            out_shardings=(self._replicated, self._replicated),
            compiler_options=compiler_options(),
        )

    @usual_rules()
    def init(self, start: MetaParams | None = None) -> TrainState:
        """The state before the first meta-step, decided by the experiment's seed.

        Args:
          start: φ to begin with; None: the optimizer's own.
        """

        def make(key_data: jax.Array, start: MetaParams | None, families: Families) -> TrainState:
            init_key, estimator_key, run_key = jax.random.split(jax.random.wrap_key_data(key_data), 3)
            meta_params = self.optimizer.init(init_key) if start is None else start
            return TrainState(
                meta_params=meta_params,
                opt_state=self.meta_optimizer.init(ravel_pytree(meta_params)[0]),
                estimator_state=self.estimator.init(estimator_key, meta_params, families),
                key=run_key,
                meta_step=jnp.zeros((), jnp.int32),
                ema=() if self.experiment.meta_optimizer.ema is None else jax.tree.map(jnp.copy, meta_params),
            )

        key_data = _replicate(jax.random.key_data(jax.random.key(self.experiment.seed)), self._replicated)
        once = compiler_options(runs_once=True)
        start = _replicate(start, self._replicated)
        return jax.jit(make, out_shardings=self._replicated, compiler_options=once)(key_data, start, self.families)

    def alone(self) -> Trainer:
        """The same with the families on this process's own devices, for what it does without the others."""
        if jax.process_count() == 1:
            return self
        alone = copy.copy(self)
        each = self._replicated.num_devices // jax.process_count()
        alone.experiment = dataclasses.replace(self.experiment, num_devices=each)
        alone.families = jax.tree.map(lambda leaf: leaf.addressable_data(0), self.families)
        return alone

    @usual_rules()
    def run_chunk(self, state: TrainState) -> tuple[TrainState, dict[str, np.ndarray]]:
        """`log.every` meta-steps, fewer at the end. Returns the next state and metrics, each [steps].

        The given state is donated: use the returned one.
        """
        experiment = self.experiment
        length = min(experiment.log.every, experiment.num_meta_steps)
        first = int(state.meta_step)
        last = min(first + length, experiment.num_meta_steps)
        level = np.asarray(self.level, np.int32) if experiment.curriculum.kind == "validation" else None
        state, metrics = self._chunk(state, self.families, np.asarray(last, np.int32), level, length=length)
        fetched = {name: values[: last - first] for name, values in jax.device_get(metrics).items()}
        fetched = self._name_families(fetched)
        return state, {"meta_step": np.arange(first + 1, last + 1)} | fetched

    @usual_rules()
    def state_before(self, state: TrainState, meta_step: int, level: int) -> TrainState:
        """The state before a later meta-step of the chunk that begins with `state`, by the chunk's own program.

        The given state is donated; `level` is the curriculum's in that chunk.
        """
        length = min(self.experiment.log.every, self.experiment.num_meta_steps)
        at = np.asarray(level, np.int32) if self.experiment.curriculum.kind == "validation" else None
        return self._chunk(state, self.families, np.asarray(meta_step, np.int32), at, length=length)[0]

    def inner_batches(self, state: TrainState) -> Iterator[InnerBatch]:
        """The inner runs that the state's next meta-step consists of; none where the estimator does not tell."""
        if self.estimator.batches is None:
            return
        key = jax.random.fold_in(jax.device_get(state.key), int(state.meta_step))
        yield from self.estimator.batches(key, jax.device_get(state.meta_params), state.estimator_state, self.families)

    def _name_families(self, metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = {f"meta_loss/{i}": f"meta_loss/{choice}" for i, choice in enumerate(self.experiment.tasks)}
        if not self.values_known:  # they count as 0, which is no loss
            metrics = metrics | {name: np.full_like(metrics[name], np.nan) for name in metrics if "loss" in name}
        return {names.get(name, name): values for name, values in metrics.items()}

    @usual_rules()
    def _run(
        self, state: TrainState, families: Families, stop: jax.Array, level: jax.Array | None, *, length: int
    ) -> tuple[TrainState, Metrics]:
        meta_step = jax.jit(self._meta_step)  # traced once, for its shapes and for itself

        def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            # A short last chunk skips its tail, so that one compilation serves every chunk.
            shapes = jax.eval_shape(meta_step, state, families, level)[1]
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return jax.lax.cond(
                state.meta_step < stop, lambda: meta_step(state, families, level), lambda: (state, nothing)
            )

        with matmul_precision(self.experiment.matmul_precision):
            return jax.lax.scan(body, state, None, length=length)

    def _meta_step(
        self, state: TrainState, families: Families, level: jax.Array | None = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.meta_step)
        estimator_state, curriculum = state.estimator_state, self.experiment.curriculum
        if curriculum.kind == "fixed":
            level = state.meta_step // curriculum.every
        if level is not None:
            estimator_state = estimator_state._replace(level=jnp.minimum(level, len(self.levels) - 1))
        gradient, estimator_state, metrics = self.estimator.estimate(key, state.meta_params, estimator_state, families)
        # As one vector: the meta-optimizer's arithmetic on each of a score of small leaves takes longer to compile.
        gradient, _ = ravel_pytree(gradient)
        before, unravel = ravel_pytree(state.meta_params)
        gradient = gradient.astype(before.dtype)  # an estimator of someone's own may sum in wider types
        finite = jnp.all(jnp.isfinite(gradient))
        usable = finite & (metrics["alive"] > 0)
        gradient = jnp.where(usable, gradient, 0.0)
        clipped = gradient
        for clip, clip_state in zip(self._clips, state.opt_state, strict=False):
            clipped, _ = clip.update(clipped, clip_state, before)
        updates: Any
        updates, opt_state = self.meta_optimizer.update(gradient, state.opt_state, before)
        rate = jnp.asarray(self.schedule(state.meta_step), before.dtype)
        updates = rate * updates
        updates = updates if self._moving is None else jnp.where(self._moving, updates, 0.0)
        # A meta-step without a usable gradient leaves φ and the meta-optimizer's moments as they were.
        meta_params = unravel(jnp.where(usable, before + updates, before))
        opt_state = jax.tree.map(lambda new, old: jnp.where(usable, new, old), opt_state, state.opt_state)
        metrics |= {
            "grad_norm": jnp.linalg.norm(gradient),
            "update_norm": jnp.where(usable, jnp.linalg.norm(updates), 0.0),
            "learning_rate": rate,
            "clipped": jnp.any(clipped != gradient).astype(jnp.int32),
            "skipped": (~usable).astype(jnp.int32),
            "nonfinite_gradient": (~finite).astype(jnp.int32),
        }
        ema, decay, done = state.ema, self.experiment.meta_optimizer.ema, state.meta_step + 1
        if decay is not None:
            ema = moving_average(ema, meta_params, done, decay)
        return TrainState(meta_params, opt_state, estimator_state, state.key, done, ema), metrics


def build_estimator(
    experiment: Experiment,
    picked: Choice,
    optimizer: Optimizer,
    families: Families,
    *,
    num_tasks: int | None = None,
    horizon: int | None = None,
    unroll_length: int | None = None,
) -> MetaGradient:
    """The estimator that a choice names, under an experiment's objective, with its schedule or parts of another one.

    Raises:
      UserError: choices that do not fit together.
    """
    objective = parse_choice(experiment.objective)
    traits = OBJECTIVES.traits(objective.name)
    unbounded = [family.name for family in families if family.lower_bound is None]
    if traits.positive and unbounded:
        raise UserError(
            f"objective {objective} needs to know how low a loss can get, and {unbounded[0]} does not say; state its "
            "`lower_bound`, or take --objective mean or last."
        )
    horizon = horizon or experiment.horizon
    try:
        schedule = Schedule(
            num_tasks=num_tasks or experiment.num_tasks,
            horizon=horizon,
            unroll_length=unroll_length or experiment.unroll_length or horizon,
            chunk_size=experiment.chunk_size,
            num_devices=experiment.num_devices,
            memory=experiment.memory,
            balanced=not traits.scale_free,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return of_part(picked, optimizer, build(objective, OBJECTIVES), schedule)


def _levels(experiment: Experiment) -> tuple[int, ...]:
    curriculum, longest = experiment.curriculum, experiment.horizon
    window = experiment.unroll_length or longest
    try:
        lengths = {"longest": longest, "unroll_length": window, "power": curriculum.power}
        levels = check_curriculum(curriculum.kind, curriculum.horizons, curriculum.shortest, **lengths)
    except ValueError as error:
        raise UserError(str(error)) from error
    if curriculum.kind == "validation" and not experiment.validation.every:
        raise UserError(
            "the curriculum goes on by validation, and `validation.every` is 0; set it, or take kind=fixed."
        )
    return levels


def _with_curriculum(estimator: MetaGradient, experiment: Experiment, levels: Sequence[int]) -> MetaGradient:
    longest, window = experiment.horizon, experiment.unroll_length or experiment.horizon
    shortest = experiment.curriculum.shortest or window
    draw = stages(levels) if levels else log_uniform(shortest, longest, window, experiment.curriculum.power)
    return with_curriculum(estimator, draw, longest=longest, unroll_length=window)


def _replicate(tree: PyTree, sharding: NamedSharding) -> PyTree:
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # Every process has the values already; device_put would send them round to compare.
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.asarray(leaf)[index]), tree
    )


Callback = Callable[[Trainer, TrainState, dict[str, np.ndarray]], bool | None]


@usual_rules()
def meta_train(
    experiment: Experiment | Trainer,
    *,
    state: TrainState | None = None,
    callbacks: Sequence[Callback] = (),
    history: Iterable[tuple[bool, bool]] = (),
    progress: bool = True,
) -> TrainState:
    """Meta-trains, from `state` on where one is given.

    Args:
      callbacks: each is called as `callback(trainer, state, metrics)` after every chunk of `log.every` meta-steps,
        where metrics maps names to arrays [steps]; one that returns True ends the run after that chunk. Where several
        processes train together, it is the first one's word that counts.
      history: of the meta-steps before `state`, whether no task was alive and whether each was skipped; so that a
        resumed run is judged to have diverged where an undisturbed one would be.
      progress: show a bar in a terminal or a notebook; elsewhere there is none.

    Raises:
      Diverged: half of the latest chunk of meta-steps (20 at least) had no task alive, or no finite meta-gradient.
      UserError: the experiment's choices do not fit together, or a hypergradient needs damping.
    """
    if not isinstance(experiment, Experiment | Trainer):
        raise UserError(f"`experiment` is a {type(experiment).__name__}; give an `Experiment` (metaopt.Experiment).")
    trainer = experiment if isinstance(experiment, Trainer) else Trainer(validate(experiment))
    if state is None and trainer.experiment.start is not None:
        raise UserError(
            "`start` is a file for `metaopt train`; here give its φ, "
            "`state=Trainer(experiment).init(metaopt.shipped.loading.find_optimizer(NAME).meta_params)`."
        )
    state = trainer.init() if state is None else state
    num_meta_steps, every = trainer.experiment.num_meta_steps, trainer.experiment.log.every
    recent: deque[tuple[bool, bool]] = deque(history, maxlen=max(LOOK_BACK, every))
    quiet = not progress or jax.process_index() > 0
    with Bar("meta-training", num_meta_steps, int(state.meta_step), quiet=quiet) as bar:
        callbacks = (*callbacks, functools.partial(_show, bar))
        while int(state.meta_step) < num_meta_steps:
            if trainer.experiment.curriculum.kind == "validation":
                trainer.level = _first_ones(trainer.level)
            state, metrics = trainer.run_chunk(state)
            stop = [bool(callback(trainer, state, metrics)) for callback in callbacks]
            _check_positive(metrics)
            recent.extend(zip(metrics["alive"] == 0, metrics["skipped"] > 0, strict=True))
            if len(recent) >= LOOK_BACK or int(state.meta_step) == num_meta_steps:
                _check_alive(recent, int(state.meta_step))
            if _agreed(any(stop)):
                break
    return state


def _show(bar: Bar, trainer: Trainer, state: TrainState, metrics: dict[str, np.ndarray]) -> None:
    bar.update(int(state.meta_step), f"loss {np.mean(metrics['meta_loss']):.4g}")


def _check_positive(metrics: dict[str, np.ndarray]) -> None:
    """Refuses to go on with hypergradients at what is no minimum: they are left out, and nothing is learned."""
    share = float(np.mean(metrics.get(f"oracle/{INDEFINITE}", 0.0)))
    if share >= 0.5:
        raise UserError(
            f"the Hessian of the inner loss is not positive at the end of {share:.0%} of the latest windows, so that "
            "no minimum depends on the hyperparameters there; set the estimator's `damping` (0.1, say), or take more "
            "inner steps."
        )


def _agreed(stop: bool) -> bool:
    # A process that went on alone would wait for the others for ever.
    return stop if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.asarray(stop)))


def _first_ones(number: int) -> int:
    # The first process validates, and all go on at its level.
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.asarray(number)))


def _check_alive(recent: Iterable[tuple[bool, bool]], meta_step: int) -> None:
    dead, skipped = np.mean(list(recent), axis=0)
    if skipped < 0.5:
        return
    what, why, clip = (
        (f"no task was alive in {dead:.0%}", "every inner run ended in a non-finite loss", "")
        if dead >= 0.5
        else (
            f"the meta-gradient was not finite in {skipped - dead:.0%}",
            "nothing was learned from them",
            "each task's gradient clipped by itself (--estimator :clip_task_norm=1 under back-propagation), ",
        )
    )
    raise Diverged(
        f"{what} of the last {len(list(recent))} meta-steps, up to meta-step {meta_step}: {why}. Try {clip}a lower "
        "--meta-optimizer.learning-rate, a shorter --horizon, shorter first steps (such as --optimizer :alpha_bias=-4 "
        "of an lstm), or features=scale_free; `metaopt replay` shows runs kept in the run's folder `capsules`."
    )
