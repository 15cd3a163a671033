"""Meta-training: the host's loop around chunks of meta-steps, and what ends it."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from metaopt.errors import UserError
from metaopt.estimators.hypergradients import INDEFINITE
from metaopt.experiment import Experiment
from metaopt.experiment.checks import validate
from metaopt.progress import Bar
from metaopt.training.trainer import Trainer, TrainState
from metaopt.trees import usual_rules

# Meta-steps looked back on, at least, when a run is judged to have diverged.
LOOK_BACK = 20


class Diverged(RuntimeError):
    """Half of the latest meta-steps had no task alive, or no finite meta-gradient."""


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
