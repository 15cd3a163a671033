"""Where capsules come from: a callback of meta-training, and a look at the curves of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from metaopt.batching import pick_chunk_size, task_mesh
from metaopt.estimators.curriculum import Curricular
from metaopt.estimators.pairs import SIDES, PairSettings, perturbations
from metaopt.evaluation import Curves, statistics
from metaopt.evaluation.curves import task_batches
from metaopt.experiment import Choice, Experiment, explores
from metaopt.runs.capsules import LIMIT, Batch, Setting, capsules_in, make_capsule, write_capsule
from metaopt.runs.checkpoints import to_devices, to_host
from metaopt.training import Trainer, TrainState
from metaopt.trees import FAILURE_FACTOR
from metaopt.types import Key, MetaParams, TaskFamily, UnrollState

Say = Callable[[str], None]
PAIRED = ("evolution_strategies", "persistent_evolution_strategies", "mixture")
DIFFERENTIATED = ("truncated_backprop", "reparameterised", "mixture")


class CapsuleKeeper:
    """A callback of `meta_train`: after a chunk in which tasks died it goes back to the first such meta-step.

    It keeps the state before every chunk on the host, runs the chunk's own program up to that meta-step, whose φ is so
    the very one, and then the batches of the meta-step forward until it finds the dead one. One capsule a chunk,
    `LIMIT` a run; none where several processes train together, or where runs share tasks (score_function with
    baseline=leave_one_out).
    """

    def __init__(self, path: Path, trainer: Trainer, state: TrainState, say: Say) -> None:
        self._path, self._say = path, say
        own = trainer.experiment.estimator
        self._off = jax.process_count() > 1 or own.options.get("baseline") == "leave_one_out"
        self._before: Any = None
        self._dead = 0.0  # at the end of the chunk before
        if not self._full():
            self._note(trainer, state)

    def _full(self) -> bool:
        return self._off or len(capsules_in(self._path, "training")) >= LIMIT

    def _note(self, trainer: Trainer, state: TrainState) -> None:
        self._before = to_host(state), trainer.level

    def __call__(self, trainer: Trainer, state: TrainState, metrics: dict[str, np.ndarray]) -> None:
        if self._full():
            self._before = None
            return
        bad = self._suspects(metrics["diverged"])
        if len(bad) and self._before is not None:
            try:
                self._keep(trainer, state, int(metrics["meta_step"][bad[0]]) - 1)
            except Exception as error:  # a lost capsule must not end a run of hours
                self._say(f"no capsule was kept of meta-step {metrics['meta_step'][bad[0]]}: {error}")
        self._note(trainer, state)

    def _suspects(self, diverged: np.ndarray) -> np.ndarray:
        """Meta-steps of the chunk in which a task may have died.

        Windows carry the dead on, so a rise of their number comes first; without one, resets may hide a death.
        """
        rises = diverged > np.append(self._dead, diverged[:-1])
        self._dead = diverged[-1]
        return np.flatnonzero(rises if rises.any() else diverged > 0)

    def _keep(self, trainer: Trainer, like: TrainState, meta_step: int) -> None:
        before, level = self._before
        state = trainer.state_before(to_devices(before, like), meta_step, level)
        for index, setting, batch in training_batches(trainer, state):
            capsule = make_capsule(setting, batch, trainer.families[index])
            if capsule is not None:
                path = write_capsule(self._path, capsule)
                if path is not None:
                    task, step = capsule.died[0]
                    self._say(f"a task blew up at its step {step}: `metaopt replay {path}` shows it")
                return


def training_batches(trainer: Trainer, state: TrainState) -> Iterator[tuple[int, Setting, Batch]]:
    """(index of the family, how, what) of every batch of inner runs that the state's next meta-step consists of.

    Keys derive as in `metaopt.estimators.windows`: fold_in(run key, meta-step), fold_in(., family), split over tasks.
    """
    experiment, meta_step = trainer.experiment, int(state.meta_step)
    own, families = experiment.estimator, trainer.families
    key = jax.random.fold_in(jax.device_get(state.key), meta_step)
    tasks = max(1, experiment.num_tasks // len(families))
    which: Any = range(len(families))
    if experiment.num_tasks == 1 and len(families) > 1:
        which = [int(jax.random.randint(jax.random.fold_in(key, len(families)), (), 0, len(families)))]
    for index in which:
        setting = Setting(
            kind="training",
            experiment=experiment,
            task=experiment.tasks[index],
            as_trained=True,
            length=experiment.unroll_length or experiment.horizon,
            explore=explores(experiment, trainer.optimizer),
            objective_batch=str(own.options.get("objective_batch", "fresh")),
            differentiable=own.name in DIFFERENTIATED,
            meta_step=meta_step + 1,
            about={"estimator": str(own), "seed": experiment.seed, "family": index},
        )
        keys = jax.random.split(jax.random.fold_in(key, index), tasks)
        chunks = _chunks(state.estimator_state, index, experiment.horizon)
        batches = _pairs if own.name in PAIRED else _plain
        for batch in batches(trainer, trainer.families[index], jax.device_get(state.meta_params), keys, chunks):
            yield index, setting, batch


Chunks = list[tuple[Any, bool]] | None  # (what a chunk of tasks carries, whether it is reset now)


def _chunks(state: Any, index: int, longest: int) -> Chunks:
    """What the estimator carries of a family; None where every meta-step begins with a reset."""
    horizons = None
    if isinstance(state, Curricular):
        state, horizons = state.carried, np.asarray(state.horizons[index])
    run = state[index].run if state else None
    if run is None:
        return None
    chunks = []
    for chunk in range(run.state.step.shape[0]):
        one = jax.tree.map(lambda leaf, chunk=chunk: leaf[chunk], run)
        done = int(one.state.step.ravel()[0]) >= (longest if horizons is None else int(horizons[chunk]))
        chunks.append((one, done))
    return chunks


def _plain(trainer: Trainer, family: TaskFamily, meta_params: MetaParams, keys: Key, chunks: Chunks) -> Iterator[Batch]:
    experiment = trainer.experiment
    if chunks is None:
        on_device = len(keys) // task_mesh(len(keys), experiment.num_devices).size
        size = pick_chunk_size(on_device, _dim(family), experiment.chunk_size)
        for part in keys.reshape(-1, size):
            yield Batch(meta_params, part, None)
        return
    for part, (run, fresh) in zip(keys.reshape(len(chunks), -1), chunks, strict=True):
        yield Batch(meta_params, part, None if fresh else tuple(run))


def _pairs(trainer: Trainer, family: TaskFamily, meta_params: MetaParams, keys: Key, chunks: Chunks) -> Iterator[Batch]:
    """Both sides of every group, each with its own φ ± σε."""
    experiment = trainer.experiment
    options = experiment.estimator.options
    settings = PairSettings(
        options.get("sigma", 0.01),
        options.get("tasks_per_perturbation"),
        explore=True,
        objective_batch="fresh",
        halved=experiment.estimator.name == "mixture",
    )
    flat, unravel = ravel_pytree(meta_params)
    if chunks is None:
        chunks = [(None, True)]
        grouped = keys.reshape(1, -1, settings.group_size(_dim(family), len(keys)))
    else:
        grouped = keys.reshape(len(chunks), *chunks[0][0].state.step.shape)
    for groups, (pairs, fresh) in zip(grouped, chunks, strict=True):
        steps = perturbations(settings, meta_params, groups)
        for group, part in enumerate(groups):
            for side, sign in enumerate((1, -1)):
                start = None
                if not fresh:
                    task = jax.tree.map(lambda leaf, group=group: leaf[group], pairs.task)
                    start = (task, _one_side(pairs.state, group, side))
                yield Batch(unravel(flat + sign * steps[group]), part, start)


def _one_side(state: UnrollState, group: int, side: int) -> UnrollState:
    def take(leaf: jax.Array, shared: bool) -> jax.Array:
        return leaf[group] if shared else leaf[group, side]

    return UnrollState(
        *(
            jax.tree.map(lambda leaf, axis=axis: take(leaf, axis is None), field)
            for axis, field in zip(SIDES, state, strict=True)
        )
    )


def _dim(family: TaskFamily) -> int:
    def start(key: Key) -> Any:
        return family.init(key, family.sample(key, family.data))

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(start, jax.random.key(0))))


# ----- evaluation -----------------------------------------------------------------------------------------------------


def keep_failures(
    path: Path,
    learned: Mapping[str, Any],
    experiments: Mapping[str, Experiment],
    meta_steps: Mapping[str, int | None],
    task: Choice,
    num_devices: int | None,
    family: TaskFamily,
    key: Key,
    curves: Curves,
) -> None:
    """Keeps, of every learned optimizer, the batch of the task that failed first, while there is room."""
    for name, experiment in experiments.items():
        failed = statistics.failed(curves.peak[name])
        if not failed.any() or len(capsules_in(path, "evaluation")) >= LIMIT:
            continue
        optimizer, meta_params = learned[name]
        over = ~np.isfinite(curves.peak[name]) | (curves.peak[name] > FAILURE_FACTOR * curves.peak[name][:, :1])
        points = np.where(failed, over.argmax(axis=1), len(curves.steps))
        first = int(points.argmin())
        seen, horizon = int(curves.steps[points[first]]), int(curves.steps[-1])
        batches = task_batches(optimizer, meta_params, family, key, len(failed), num_devices)
        setting = Setting(
            kind="evaluation",
            experiment=experiment,
            task=task,
            as_trained=False,
            # One further: a step's loss is the one that comes with its gradient, before it.
            length=min(seen + 1, horizon),
            explore=False,
            objective_batch="none",
            differentiable=False,
            meta_step=meta_steps.get(name),
            about={"optimizer": name, "horizon": horizon, "task_of_evaluation": first, "seen_at_step": seen},
        )
        batch = Batch(jax.tree.map(jnp.asarray, meta_params), batches[first // batches.shape[1]], None)
        capsule = make_capsule(setting, batch, family)
        if capsule is not None:
            write_capsule(path, capsule)
