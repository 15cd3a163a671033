"""An experiment's objects, the meta-step, and chunks of meta-steps under one jit."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from metaopt.errors import UserError
from metaopt.estimators.parts import moving
from metaopt.experiment import Experiment, build_families, optimizer_of
from metaopt.inner.checks import check_estimator
from metaopt.inner.devices import compiler_options, matmul_precision, task_mesh
from metaopt.registry import ESTIMATORS
from metaopt.training.checks import check_estimates, check_fits, check_own, check_own_parts
from metaopt.training.estimator import build_estimator, curriculum_levels, under_curriculum
from metaopt.training.meta_optimizer import make_clips, make_meta_optimizer, moving_average
from metaopt.training.size import check_size
from metaopt.trees import usual_rules
from metaopt.types import Families, InnerBatch, Key, MetaParams, Metrics, PyTree


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
        self.levels = curriculum_levels(experiment)
        self.level = 0  # of these; under a `validation` curriculum raised by whoever validates
        if experiment.curriculum.kind != "none":
            self.estimator = under_curriculum(self.estimator, experiment, self.levels)
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


def _replicate(tree: PyTree, sharding: NamedSharding) -> PyTree:
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # Every process has the values already; device_put would send them round to compare.
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.asarray(leaf)[index]), tree
    )
