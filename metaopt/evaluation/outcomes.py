"""The programs that run one optimizer on many tasks: with one φ for all runs, or with one for each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from metaopt.evaluation import early_stopping as stopping
from metaopt.evaluation.early_stopping import EarlyStopping, Stopped, Watch
from metaopt.inner.binding import bind_tasks, judged_params
from metaopt.inner.devices import compiler_options, map_chunks, matmul_precision
from metaopt.inner.step import estimated_anew, reset, step
from metaopt.trees import usual_rules
from metaopt.types import Key, MetaParams, Optimizer, Split, TaskFamily, UnrollState

# Parameters and optimizer state that one chunk of tasks may hold on a device: what lies above falls out of the cache.
STATE_BYTES = 4 * 2**20
EACH_STATE_BYTES = 2**18  # where every run has its own φ: many small gradients need the cache more


class Outcome(NamedTuple):
    """Curves of one optimizer, one entry a run."""

    loss: Any  # [runs, points]
    peak: Any  # [runs, points]
    alive: Any  # [runs, points]
    along: Any  # [runs, points] mean of the steps' losses so far
    final: dict[Split, dict[str, Any]]  # [runs]
    lower_bound: Any  # [runs]
    stopped: Stopped | None = None


class Losses(NamedTuple):
    """Of a run so far, [runs]."""

    last: jax.Array
    peak: jax.Array
    total: jax.Array


class Running(NamedTuple):
    """What the loop over recorded points carries."""

    state: UnrollState
    losses: Losses
    watch: Watch | None


@usual_rules()
def run(
    optimizer: Optimizer,
    meta_params: MetaParams,
    family: TaskFamily,
    key: Key,
    *,
    steps: np.ndarray,
    num_tasks: int,
    splits: tuple[Split, ...] | None = None,
    early_stopping: EarlyStopping | None = None,
    num_devices: int | None = None,
) -> Outcome:
    """Runs one optimizer on `num_tasks` tasks.

    Runs of other lengths with as many recorded points go through the same program; but an optimizer that goes by the
    length of the run is told it, and compiled for it. Losses and metrics are taken where the optimizer is to
    be judged; deaths, and the largest loss, also where it takes gradients.
    `steps`: [points] where it is recorded, from 0 on; see `metaopt.evaluation.recording.plan`.
    `splits`: where the final loss and metrics are taken; default: every split of the family.
    `early_stopping`: with its `every`, whose multiples are recorded steps.
    """
    optimizer = _told(optimizer, steps)
    keys = task_batches(optimizer, meta_params, family, key, num_tasks, num_devices)
    mesh = _mesh(_num_devices(num_tasks, num_devices))
    how = {"splits": family.splits if splits is None else splits, "mesh": mesh}
    # Placed here, so that it does not matter for the compiled code where φ and the data come from.
    shared = jax.device_put((meta_params, family, steps.astype(np.int32)), NamedSharding(mesh, PartitionSpec()))
    keys = jax.device_put(keys, NamedSharding(mesh, PartitionSpec("tasks")))
    static = {"early_stopping": early_stopping, "each": False}
    return _finished(_jitted_run()(optimizer, *shared, keys, **how, **static), num_tasks)


@usual_rules()
def run_each(
    optimizer: Optimizer,
    meta_params: MetaParams,
    family: TaskFamily,
    keys: Key,
    *,
    steps: np.ndarray,
    at_once: int | None = None,
    splits: tuple[Split, ...] = (),
    num_devices: int | None = None,
) -> Outcome:
    """Run i has its own φ, row i of every leaf of `meta_params`, and its own task, that of `keys[i]`, as `run` has it.

    Args:
      at_once: the runs of one block; however many runs there are, they go through the program for this many. Default:
        all of them. Fewer, where their state is large.
    """
    optimizer, total = _told(optimizer, steps), len(keys)
    devices = _num_devices(at_once or total, num_devices)
    first = jax.tree.map(lambda leaf: leaf[0], meta_params)
    most = max(1, EACH_STATE_BYTES // _state_bytes(optimizer, first, family))
    size = min(most, -(-(at_once or total) // devices))
    mesh = _mesh(devices)
    spread = NamedSharding(mesh, PartitionSpec("tasks"))
    shared = jax.device_put((family, steps.astype(np.int32)), NamedSharding(mesh, PartitionSpec()))
    parts = []
    for start in range(0, total, devices * size):
        # A fuller last block repeats runs, which are cut off again.
        rows = np.arange(start, start + devices * size).reshape(devices, size) % total
        block = jax.device_put(jax.tree.map(lambda leaf, rows=rows: leaf[rows], (meta_params, keys)), spread)
        how = {"splits": splits, "mesh": mesh, "early_stopping": None}
        outcome = _jitted_run()(optimizer, block[0], *shared, block[1], **how, each=True)
        parts.append(_finished(outcome, min(devices * size, total - start)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _told(optimizer: Optimizer, steps: np.ndarray) -> Optimizer:
    return optimizer if optimizer.at_horizon is None else optimizer.at_horizon(int(steps[-1]))


def _finished(outcome: Outcome, total: int) -> Outcome:
    """The first `total` runs, in numpy."""
    outcome = jax.tree.map(lambda leaf: leaf[:total], jax.device_get(outcome))
    # Infinite from the first non-finite loss on, also where the run came back to numbers.
    alive = np.logical_and.accumulate(outcome.alive & np.isfinite(outcome.loss), axis=-1)
    losses = (outcome.loss, outcome.peak, outcome.along)
    loss, peak, along = (np.where(alive, part, np.inf).astype(np.float64) for part in losses)
    bound, stopped = outcome.lower_bound, outcome.stopped
    if stopped is not None:
        # What is restored is from before a death.
        stopped = stopped._replace(final=_of_those(np.isfinite(stopped.validation), stopped.final))
    final = _of_those(alive[..., -1], outcome.final)
    return Outcome(loss, peak, alive, along, final, bound.astype(np.float64), stopped)


def _of_those(alive: np.ndarray, final: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Losses and metrics by split; of the others infinity and nan."""
    return {
        split: {
            name: np.where(alive, value, np.inf if name == "loss" else np.nan).astype(np.float64)
            for name, value in values.items()
        }
        for split, values in final.items()
    }


def task_batches(
    optimizer: Optimizer,
    meta_params: MetaParams,
    family: TaskFamily,
    key: Key,
    num_tasks: int,
    num_devices: int | None = None,
) -> Key:
    """[batches, tasks] the keys of the tasks as `run` lays them out; task i is at i of the flattened array."""
    if num_tasks < 1:
        raise ValueError(f"`num_tasks` ({num_tasks}) must be at least 1")
    devices = _num_devices(num_tasks, num_devices)
    chunks, size = _chunks(optimizer, meta_params, family, -(-num_tasks // devices))
    # A fuller last chunk repeats tasks, which are cut off again: nothing depends on how the tasks are spread.
    padded = jnp.arange(devices * chunks * size) % num_tasks
    return task_keys(key, num_tasks)[padded].reshape(devices * chunks, size)


def task_keys(key: Key, num_tasks: int) -> Key:
    """[num_tasks] the key of each task."""
    return jax.random.split(key, num_tasks)


def _num_devices(num_tasks: int, num_devices: int | None) -> int:
    available = len(jax.local_devices())
    if num_devices is not None and not 1 <= num_devices <= available:
        raise ValueError(f"`num_devices` ({num_devices}) must be between 1 and {available}, the devices there are")
    return min(num_devices or available, num_tasks)


def _chunks(optimizer: Optimizer, meta_params: MetaParams, family: TaskFamily, tasks: int) -> tuple[int, int]:
    """(chunks, tasks a chunk) for the tasks of one device, so that memory is bounded however many there are."""
    chunks = -(-tasks // max(1, STATE_BYTES // _state_bytes(optimizer, meta_params, family)))
    return chunks, -(-tasks // chunks)


def _state_bytes(optimizer: Optimizer, meta_params: MetaParams, family: TaskFamily) -> int:
    """What the parameters of one task and the optimizer's state take."""

    def start(meta_params: MetaParams, key: Key) -> UnrollState:
        return reset(bind_tasks(optimizer, meta_params), family, key[None])[1]

    shapes = jax.tree.leaves(jax.eval_shape(start, meta_params, jax.random.key(0)))
    numbers = [leaf for leaf in shapes if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in numbers)


def _mesh(num_devices: int) -> Mesh:
    # This process's own devices: every process of a job evaluates for itself.
    devices = jax.local_devices()[:num_devices]
    return jax.make_mesh((num_devices,), ("tasks",), axis_types=(AxisType.Auto,), devices=devices)


@functools.cache
def _jitted_run() -> Callable[..., Outcome]:
    static = ("optimizer", "splits", "early_stopping", "each", "mesh")
    return jax.jit(_run, static_argnames=static, compiler_options=compiler_options())


def _run(
    optimizer: Optimizer,
    meta_params: MetaParams,  # with `each`: [chunks of all devices, runs a chunk, ...]
    family: TaskFamily,
    steps: jax.Array,
    keys: Key,  # [chunks of all devices, runs a chunk]
    *,
    splits: tuple[Split, ...],
    early_stopping: EarlyStopping | None,
    each: bool,
    mesh: Mesh,
) -> Outcome:
    static = {"splits": splits, "early_stopping": early_stopping}

    def chunk(shared: tuple[MetaParams, TaskFamily, jax.Array], keys: Key) -> Outcome:
        meta_params, family, steps = shared
        return _run_chunk(optimizer, meta_params, family=family, steps=steps, keys=keys, **static)

    def chunk_of_each(shared: tuple[TaskFamily, jax.Array], runs: tuple[MetaParams, Key]) -> Outcome:
        family, steps = shared

        def one(meta_params: MetaParams, key: Key) -> Outcome:
            outcome = _run_chunk(optimizer, meta_params, family=family, steps=steps, keys=key[None], **static)
            return jax.tree.map(lambda leaf: leaf[0], outcome)

        return jax.vmap(one)(*runs)

    with matmul_precision("highest"):
        if each:
            outcome = map_chunks(chunk_of_each, mesh, (family, steps), (meta_params, keys))
        else:
            outcome = map_chunks(chunk, mesh, (meta_params, family, steps), keys)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outcome)


def _estimates_are_full(family: TaskFamily) -> bool:
    """Whether a step's own estimate is the loss on all of the training split: nothing is drawn, and the same is judged.

    An oracle's value may be another thing; under a companion the batch to train on is marked, and its loss the sum.
    """

    def batches(key: Key) -> Any:
        task = family.sample(key, family.data)
        return family.batch(key, task, family.data), family.eval_batch(task, family.data, "train")

    drawn, judged = jax.eval_shape(batches, jax.random.key(0))
    same = jax.tree.structure(drawn) == jax.tree.structure(judged)
    return family.oracle is None and same and not jax.tree.leaves((drawn, judged))


def _run_chunk(
    optimizer: Optimizer,
    meta_params: MetaParams,
    *,
    family: TaskFamily,
    steps: jax.Array,
    keys: Key,
    splits: tuple[Split, ...],
    early_stopping: EarlyStopping | None,
) -> Outcome:
    tx = bind_tasks(optimizer, meta_params)
    task, state = reset(tx, family, keys)

    def full_loss(params: Any, split: Split) -> jax.Array:
        return jax.vmap(
            lambda params, task: family.judged_loss(params, task, family.eval_batch(task, family.data, split))
        )(params, task)

    itself = family.validation_loss is None  # what is judged is the loss that is descended
    known = _estimates_are_full(family) and optimizer.eval_params is None and itself

    def judged_loss(state: UnrollState) -> jax.Array:
        return full_loss(judged_params(optimizer, state), family.judged_on)

    def watched(watch: Watch | None, state: UnrollState, now: jax.Array) -> Watch | None:
        if early_stopping is None or watch is None:
            return None
        params = judged_params(optimizer, state)
        value = jnp.where(state.alive, full_loss(params, "validation"), jnp.inf)
        due = now % (early_stopping.every or 1) == 0
        return stopping.look(watch, early_stopping.patience, value, params, state.step, due)

    def advance(carry: Running, until: tuple[jax.Array, jax.Array]) -> Any:
        length, now = until
        state = estimated_anew(tx, family, task, carry.state)

        def one_step(_: Any, so_far: tuple[UnrollState, Losses]) -> tuple[UnrollState, Losses]:
            state, losses = so_far
            state, record = step(tx, family, task, state)
            peak = jnp.maximum(losses.peak, record.loss) if itself else losses.peak
            return state, Losses(record.loss, peak, losses.total + record.loss)

        # As many steps as the argument says, so that runs of other lengths need no program of their own.
        state, losses = jax.lax.fori_loop(0, length, one_step, (state, carry.losses))
        loss = losses.last if known else judged_loss(state)
        losses = losses._replace(peak=jnp.maximum(losses.peak, loss))
        record = (loss, losses.peak, state.alive, losses.total)
        return Running(state, losses, watched(carry.watch, state, now)), record

    first, watch = judged_loss(state), None
    if early_stopping is not None:
        judged = judged_params(optimizer, state)
        watch = stopping.begin(full_loss(judged, "validation"), judged)
    alive = state.alive
    running = Running(state, Losses(first, first, jnp.zeros_like(first)), watch)
    (state, _, watch), records = jax.lax.scan(advance, running, (jnp.diff(steps), steps[1:]))
    starts = (first, first, alive, first)
    loss, peak, alive, total = (
        jnp.concatenate([start[None], rest]).T for start, rest in zip(starts, records, strict=True)
    )
    along = total / jnp.maximum(steps, 1)

    def at(params: Any, split: Split) -> dict[str, jax.Array]:
        def one(params: Any, task: Any) -> dict[str, jax.Array]:
            batch = family.eval_batch(task, family.data, split)
            metrics = {} if family.metrics is None else family.metrics(params, task, batch)
            return {"loss": family.judged_loss(params, task, batch), **metrics}

        return jax.vmap(one)(params, task)

    end, stopped = judged_params(optimizer, state), None
    if watch is not None:
        ended = jnp.where(watch.stopped < 0, state.step, watch.stopped)
        stopped = Stopped(ended, watch.best_step, watch.best, {split: at(watch.params, split) for split in splits})
    final: dict[Split, dict[str, Any]] = {split: at(end, split) for split in splits}
    return Outcome(loss, peak, alive, along, final, state.lower_bound, stopped)
