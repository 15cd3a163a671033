"""Where capsules come from: a callback of meta-training, and a look at the curves of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.choices import Choice
from metaopt.evaluation import Curves, statistics
from metaopt.evaluation.outcomes import task_batches
from metaopt.experiment import Experiment
from metaopt.microscope.capsules import LIMIT, Batch, Setting, capsules_in, make_capsule, write_capsule
from metaopt.runs.checkpoints import to_devices, to_host
from metaopt.training.trainer import Trainer, TrainState
from metaopt.types import Key, TaskFamily

Say = Callable[[str], None]


class CapsuleKeeper:
    """A callback of `meta_train`: after a chunk in which tasks died it goes back to the first such meta-step.

    It keeps the state before every chunk on the host, runs the chunk's own program up to that meta-step, whose φ is so
    the very one, and then the batches of the meta-step forward until it finds the dead one. One capsule a chunk,
    `LIMIT` a run; none where several processes train together, or where an estimator does not tell its inner runs.
    """

    def __init__(self, path: Path, trainer: Trainer, state: TrainState, say: Say) -> None:
        self._path, self._say = path, say
        self._off = jax.process_count() > 1 or trainer.estimator.batches is None
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
    """(index of the family, how, what) of every batch of inner runs that the state's next meta-step consists of."""
    experiment = trainer.experiment
    for inner in trainer.inner_batches(state):
        setting = Setting(
            kind="training",
            experiment=experiment,
            task=experiment.tasks[inner.family],
            as_trained=True,
            length=inner.length,
            explore=inner.explore,
            objective_batch=inner.objective_batch,
            meta_step=int(state.meta_step) + 1,
            about={"estimator": str(experiment.estimator), "seed": experiment.seed, "family": inner.family},
        )
        yield inner.family, setting, Batch(inner.meta_params, inner.keys, inner.start)


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
        over: np.ndarray = statistics.exceeds(curves.peak[name], curves.scale)
        failed = np.asarray(over.any(axis=1))
        if not failed.any() or len(capsules_in(path, "evaluation")) >= LIMIT:
            continue
        optimizer, meta_params = learned[name]
        points = np.where(failed, over.argmax(axis=1), len(curves.steps))
        first = int(points.argmin())
        seen, horizon = int(curves.steps[points[first]]), int(curves.steps[-1])
        batches = task_batches(optimizer, meta_params, family, key, len(failed), num_devices)
        setting = Setting(
            kind="evaluation",
            experiment=experiment,
            task=task,
            as_trained=False,
            length=seen or min(1, horizon),
            explore=optimizer.noise == "always",  # its noise is on: see `optimizers.noise.with_noise`
            objective_batch="fresh",
            meta_step=meta_steps.get(name),
            about={"optimizer": name, "horizon": horizon, "task_of_evaluation": first, "seen_at_step": seen},
        )
        batch = Batch(jax.tree.map(jnp.asarray, meta_params), batches[first // batches.shape[1]], None)
        capsule = make_capsule(setting, batch, family)
        if capsule is not None:
            write_capsule(path, capsule)
