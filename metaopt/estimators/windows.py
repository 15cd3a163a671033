"""Windows of inner runs: what all estimators share. An estimator adds what happens with one chunk of tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

from metaopt.experiment.checks import check_windows
from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import pick_chunk_size, sum_over_chunks, task_mesh
from metaopt.inner.step import ObjectiveBatch, check_objective_batch, reset
from metaopt.numbers import divisors
from metaopt.trees import leaf_sizes, usual_rules
from metaopt.types import (
    Families,
    InnerBatch,
    Key,
    MetaGradient,
    MetaParams,
    Metrics,
    Optimizer,
    PyTree,
    Task,
    TaskFamily,
    UnrollState,
)


class Run(NamedTuple):
    """The inner runs of a chunk between two windows."""

    task: Task
    state: UnrollState


class Carried(NamedTuple):
    """What a family keeps from one meta-step to the next."""

    run: Any  # leaves [chunks, ...], as the method's `start` makes them; None where one window is the whole horizon
    memory: PyTree  # the method's own, the same for all chunks


class Sums(NamedTuple):
    """Sums over the alive tasks of a chunk, then of all chunks and devices; [] but for the gradient and `extra`."""

    gradient: MetaParams
    alive: jax.Array  # how many
    loss: jax.Array  # the objective
    last_loss: jax.Array  # f at the window's end
    step_length: jax.Array  # ‖g_t‖ averaged over the window
    initial_gap: jax.Array  # f(θ_0) less its lower bound; nan where that is not known
    failed: jax.Array  # whether the loss rose above `FAILURE_FACTOR` f(θ_0) in the window, both less their bound
    extra: PyTree = ()  # whatever else the method's `finish` wants summed
    health: dict[str, jax.Array] = {}  # what the oracle says of itself, of the dead too; "tasks": how many


def start_run(optimizer: Optimizer, meta_params: MetaParams, family: TaskFamily, keys: Key) -> Run:
    """Draws the tasks of a chunk, keys [tasks], and their starting points."""
    return Run(*reset(bind_tasks(optimizer, meta_params), family, keys))


@dataclass(frozen=True)
class How:
    """How a method unrolls; what `unroll` has to be told to do the same again."""

    explore: bool = False
    objective_batch: ObjectiveBatch = "fresh"
    differentiates: bool = False

    def __post_init__(self) -> None:
        check_objective_batch(self.objective_batch)


# (φ, keys of a chunk, what it carries or None where it begins now) -> (φ, keys [tasks], (task, state) or None) of every
# unroll it is made of.
Unrolls = Callable[[MetaParams, Key, Any], Iterator[tuple[MetaParams, Key, Any]]]


class Method(NamedTuple):
    """What sets one estimator apart from another.

    `start` draws a chunk's tasks; what it returns has a field `state`, whose `step` counts inner steps.
    `gradient(meta_params, family, memory, keys, run)` goes one window further and returns a chunk's sums and the run
    at the window's end. `keys` are new at every meta-step, and those that `start` had if the run has just begun;
    [tasks], or [groups, tasks] under `group_size`.
    """

    start: Callable[[MetaParams, TaskFamily, Key], Any]
    gradient: Callable[[MetaParams, TaskFamily, PyTree, Key, Any], tuple[Sums, Any]]
    how: How
    # (coordinates of a task, tasks of a family) -> how many of these belong together; chunks hold whole groups.
    group_size: Callable[[int, int], int] | None = None
    sides: int = 1  # runs of each task side by side, for the size of a chunk
    memory: Callable[[MetaParams], PyTree] = lambda meta_params: ()
    # (sums over all chunks, memory) -> the mean gradient and the next memory; None: sum over number alive.
    finish: Callable[[Sums, PyTree], tuple[MetaParams, PyTree]] | None = None
    unrolls: Unrolls | None = None  # None: one cannot be told from the others


def whole_chunk(meta_params: MetaParams, keys: Key, run: Any) -> Iterator[tuple[MetaParams, Key, Any]]:
    """`unrolls` of a method whose chunk is one unroll."""
    yield meta_params, keys.ravel(), None if run is None else tuple(run)


@dataclass(frozen=True)
class Schedule:
    """How many tasks, for how long, and how they are cut up: what every estimator is given.

    Raises:
      ValueError: the windows do not fill the horizon, or there is nothing to stagger.
    """

    num_tasks: int  # a meta-step
    horizon: int  # inner steps until tasks are drawn anew, a multiple of `unroll_length`
    unroll_length: int  # inner steps of a window
    chunk_size: int | None = None  # tasks at once on a device; None: fitted to the cache
    num_devices: int | None = None  # None: as many as divide the tasks
    memory: float | None = None  # GiB for the residuals of a chunk's unroll; None: chosen from what a device has
    balanced: bool = True  # several families count alike, whatever the scale of their losses
    staggered: bool = False  # chunks begin at different ages, so that they are drawn anew at different meta-steps

    def __post_init__(self) -> None:
        check_windows(self.horizon, self.unroll_length)
        if self.memory is not None and self.memory <= 0:
            raise ValueError(f"`memory` ({self.memory}) must be above 0 GiB.")
        if self.staggered and self.unroll_length == self.horizon:
            raise ValueError(
                f"`staggered` needs several windows in a horizon; set `unroll_length` below {self.horizon}."
            )
        if self.staggered and self.num_tasks < 2:
            raise ValueError("`staggered` needs at least 2 tasks, to reset at different times; raise `num_tasks`.")


def at_least(least: int, number: int) -> int:
    """The smallest divisor of `number` that is at least `least`, or `number` itself."""
    return next((n for n in divisors(number) if n >= least), number)


def group_mesh(tasks: int, group: int, num_devices: int | None) -> Mesh:
    """The devices of `task_mesh(tasks, num_devices)`, "tasks" over as many of them as share whole groups evenly.

    Where that is fewer, the others do the same work again ("copies"): which tasks belong together must not hang on the
    devices, and one program with several families needs the same devices for all.

    Raises:
      ValueError: the groups do not divide over the devices asked for.
    """
    devices, groups = task_mesh(tasks, num_devices).devices, tasks // group
    sharing = math.gcd(groups, devices.size)
    if num_devices is not None and sharing < num_devices:
        raise ValueError(
            f"the {tasks} tasks of a family make {groups} group{'s' * (groups > 1)} of {group}, which `num_devices` "
            f"({num_devices}) does not divide; set it to {sharing}, or raise `num_tasks`."
        )
    return Mesh(devices.reshape(sharing, -1), ("tasks", "copies"), axis_types=(AxisType.Auto, AxisType.Auto))


def windowed(method: Method, schedule: Schedule) -> MetaGradient:
    """A meta-gradient over one window of `unroll_length` steps a meta-step.

    Runs go on from window to window; after `horizon` steps a chunk's tasks are drawn anew. `staggered` chunks begin at
    different ages, so that they do so at different meta-steps; their first lives are the shorter for it. Tasks come in
    equal numbers from every family, each family's gradient scaled by 1/mean (f(θ_0) - bound) under `balanced`; with a
    single task a meta-step one family is drawn. Dead tasks are left out of the mean.
    """
    num_tasks, horizon, unroll_length = schedule.num_tasks, schedule.horizon, schedule.unroll_length

    chunking, tasks_each = partial(_chunking, method, schedule), partial(_tasks_each, schedule)

    @usual_rules()
    def init(key: Key, meta_params: MetaParams, families: Families) -> tuple[Carried, ...]:
        carried = []
        for index, family in enumerate(families):
            run, tasks = None, tasks_each(families)
            shape = chunking(family, tasks)[1]  # settings that do not fit are refused here, whatever is carried
            if unroll_length < horizon:
                keys = jax.random.split(jax.random.fold_in(key, index), tasks).reshape(shape)
                run = jax.lax.map(lambda keys, family=family: method.start(meta_params, family, keys), keys)
                if schedule.staggered:
                    run = run._replace(state=run.state._replace(step=_aged(run.state.step, schedule)))
            carried.append(Carried(run, method.memory(meta_params)))
        return tuple(carried) if jax.tree.leaves(carried) else ()

    def chunk_gradient(shared: tuple[MetaParams, TaskFamily, PyTree], chunk: tuple[Key, Any]) -> tuple[Sums, Any]:
        meta_params, family, memory = shared
        keys, run = chunk
        if run is None:
            current = method.start(meta_params, family, keys)
        else:
            done = run.state.step.ravel()[0] >= horizon
            current = jax.lax.cond(done, lambda: method.start(meta_params, family, keys), lambda: run)
        sums, end = method.gradient(meta_params, family, memory, keys, jax.lax.stop_gradient(current))
        return sums, None if run is None else end

    def family_means(
        key: Key, meta_params: MetaParams, family: TaskFamily, carried: Carried, tasks: int
    ) -> tuple[Sums, Carried]:
        """Means over alive tasks (`alive` stays a count) and what is carried on."""
        mesh, shape = chunking(family, tasks)
        chunks = (jax.random.split(key, tasks).reshape(shape), carried.run)
        sums, run = sum_over_chunks(chunk_gradient, mesh, (meta_params, family, carried.memory), chunks)
        means = jax.tree.map(lambda leaf: leaf / jnp.maximum(sums.alive, 1.0), sums._replace(extra=()))
        gradient, memory = means.gradient, carried.memory
        if method.finish is not None:
            gradient, memory = method.finish(sums, memory)
            memory = jax.tree.map(lambda new, old: new.astype(old.dtype), memory, carried.memory)
        return means._replace(gradient=gradient, alive=sums.alive), Carried(run, memory)

    @usual_rules()
    def estimate(
        key: Key, meta_params: MetaParams, state: tuple[Carried, ...], families: Families
    ) -> tuple[MetaParams, tuple[Carried, ...], Metrics]:
        tasks = tasks_each(families)
        before: Sequence[Carried] = state or (Carried(None, ()),) * len(families)

        def one(index: int) -> tuple[Sums, Carried]:
            family_key = jax.random.fold_in(key, index)
            return family_means(family_key, meta_params, families[index], before[index], tasks)

        def branch(index: int) -> tuple[Sums, tuple[Carried, ...]]:
            means, carried = one(index)
            return means, (*state[:index], carried, *state[index + 1 :]) if state else ()

        def without_health(means: Sums, carried: tuple[Carried, ...]) -> tuple[Sums, tuple[Carried, ...]]:
            return means._replace(health={}), carried

        if num_tasks == 1 and len(families) > 1:
            picked = jax.random.randint(jax.random.fold_in(key, len(families)), (), 0, len(families))
            # Families may have oracles of their own, whose words on themselves are not those of others.
            branches = [lambda index=index: without_health(*branch(index)) for index in range(len(families))]
            means, state = jax.lax.switch(picked, branches)
            return _combine(meta_params, [means], schedule.balanced), state, _metrics([means], tasks)
        means, carried = zip(*(one(index) for index in range(len(families))), strict=True)
        gradient = _combine(meta_params, means, schedule.balanced and len(families) > 1)
        return gradient, carried if state else (), _metrics(means, tasks)

    def batches(
        key: Key, meta_params: MetaParams, state: tuple[Carried, ...], families: Families
    ) -> Iterator[InnerBatch]:
        assert method.unrolls is not None
        tasks, how = tasks_each(families), method.how
        which: Sequence[int] = range(len(families))
        if num_tasks == 1 and len(families) > 1:
            which = [int(jax.random.randint(jax.random.fold_in(key, len(families)), (), 0, len(families)))]
        for index in which:
            keys = jax.random.split(jax.random.fold_in(key, index), tasks).reshape(chunking(families[index], tasks)[1])
            runs = state[index].run if state else None
            for chunk, part in enumerate(keys):
                run = None if runs is None else jax.tree.map(lambda leaf, chunk=chunk: leaf[chunk], runs)
                if run is not None and int(run.state.step.ravel()[0]) >= horizon:
                    run = None
                for phi, own_keys, start in method.unrolls(meta_params, part, run):
                    yield InnerBatch(
                        index, phi, own_keys, start, unroll_length, how.explore, how.objective_batch, how.differentiates
                    )

    return MetaGradient(init, estimate, None if method.unrolls is None else batches)


def _chunking(method: Method, schedule: Schedule, family: TaskFamily, tasks: int) -> tuple[Mesh, tuple[int, ...]]:
    """The mesh, and (chunks, tasks of each), or (chunks, groups of each, tasks of a group)."""
    task = jax.eval_shape(family.sample, jax.random.key(0), family.data)
    params = jax.eval_shape(family.init, jax.random.key(0), task)
    dim = sum(leaf_sizes(jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), params)))
    group = 1 if method.group_size is None else method.group_size(dim, tasks)
    mesh = group_mesh(tasks, group, schedule.num_devices)
    on_device = tasks // mesh.shape["tasks"]
    most = None if schedule.chunk_size is None else max(1, schedule.chunk_size // group)
    groups = pick_chunk_size(on_device // group, method.sides * group * dim, most)
    if schedule.staggered and groups * group == tasks:
        # One chunk would leave nothing to stagger.
        groups = pick_chunk_size(groups, dim, max(1, groups // 2))
    if method.group_size is None:
        return mesh, (tasks // groups, groups)
    return mesh, (tasks // (groups * group), groups, group)


def _tasks_each(schedule: Schedule, families: Families) -> int:
    """Tasks of every family in a meta-step; with a single one a meta-step it is one family's."""
    if schedule.num_tasks != 1 and schedule.num_tasks % len(families):
        raise ValueError(
            f"`num_tasks` ({schedule.num_tasks}) must be a multiple of the number of families ({len(families)}), or 1."
        )
    for family in families:
        if schedule.balanced and len(families) > 1 and family.lower_bound is None:
            raise ValueError(
                f"{family.name or 'a family'} does not know its loss's lower bound, so it cannot be balanced with "
                "others; state its `lower_bound`, or meta-train on it alone."
            )
    return max(1, schedule.num_tasks // len(families))


def _aged(step: jax.Array, schedule: Schedule) -> jax.Array:
    """`step` [chunks, ...] with the chunks' ages spread evenly over the windows of a horizon."""
    chunks, windows = step.shape[0], schedule.horizon // schedule.unroll_length
    if chunks < 2:
        raise ValueError("`staggered` needs tasks in two chunks at least; raise `num_tasks`.")
    ages = jnp.arange(chunks, dtype=step.dtype) * windows // chunks * schedule.unroll_length
    return step + ages.reshape(-1, *(1,) * (step.ndim - 1))


def _combine(meta_params: MetaParams, means: Sequence[Sums], scaled: bool) -> MetaParams:
    """Mean of the families' gradients, each over its mean f(θ_0) - bound where there are several to balance."""
    gradients = []
    for mean in means:
        scale = jnp.where(mean.initial_gap > 0, mean.initial_gap, 1.0) if scaled else 1.0
        gradients.append(jax.tree.map(lambda leaf, scale=scale: leaf / scale, mean.gradient))
    # In φ's types: sums over tasks come in those of their losses, which may be wider.
    return jax.tree.map(
        lambda like, *leaves: jnp.asarray(sum(leaves) / len(leaves), like.dtype), meta_params, *gradients
    )


def _metrics(means: Sequence[Sums], tasks_each: int) -> Metrics:
    """Scalars of one meta-step; losses are averaged over the families with a task alive, nan where there is none."""

    def shown(mean: Sums, name: str) -> jax.Array:
        return jnp.where(mean.alive > 0, getattr(mean, name), jnp.nan)

    def average(name: str) -> jax.Array:
        return jnp.nanmean(jnp.stack([shown(mean, name) for mean in means]))

    tasks, alive = tasks_each * len(means), sum(mean.alive for mean in means)
    metrics = {
        "meta_loss": average("loss"),
        "last_loss": average("last_loss"),
        "step_length": average("step_length"),
        "alive": alive / tasks,
        "diverged": tasks - alive,
        "failed": (tasks - alive + sum(mean.alive * mean.failed for mean in means)) / tasks,  # the dead among them
    }
    for name in dict.fromkeys(name for mean in means for name in mean.health if name != "tasks"):
        told = [mean.health[name] / mean.health["tasks"] for mean in means if name in mean.health]
        metrics[f"oracle/{name}"] = sum(told) / len(told)
    if len(means) > 1:
        metrics |= {f"meta_loss/{index}": shown(mean, "loss") for index, mean in enumerate(means)}
    return metrics
