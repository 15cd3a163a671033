"""A whole run: meta-training into a run folder, then evaluation of what came out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from metaopt import files
from metaopt.errors import UserError
from metaopt.experiment import Experiment, placed
from metaopt.experiment.checks import validate
from metaopt.inner.curvature import warn_of_long_steps
from metaopt.registry import OPTIMIZERS
from metaopt.runs import folder, own_entries, processes
from metaopt.runs.checkpoints import to_devices, to_host
from metaopt.runs.console import Progress, make_console, say
from metaopt.runs.environment import check_config, check_data, note_resumption, of_experiment
from metaopt.runs.evaluations import check, check_writable, evaluate_all, plan_of, print_results, stopping_of
from metaopt.runs.faults import NotWritten, in_one_line
from metaopt.runs.interrupts import Interrupted, SignalGuard
from metaopt.runs.optimizer_file import start_of
from metaopt.runs.recorder import Recorder
from metaopt.runs.state import told, write_state
from metaopt.training.loop import Diverged, meta_train
from metaopt.training.trainer import Trainer, TrainState
from metaopt.types import MetaParams

EVALUATION_SEED = 0  # the same for every run, so that runs can be compared
ENDS = {Interrupted: "interrupted", KeyboardInterrupt: "interrupted", Diverged: "diverged"}  # for state.json


class Callbacks(NamedTuple):
    """What else happens in a run; the command line hands in capsules, wandb and the page."""

    chunk: Callable[..., Any] | None = None  # (path, trainer, state at the start, say) -> a callback of `meta_train`
    beside: Callable[..., contextlib.AbstractContextManager[Any]] | None = None  # (path, experiment, say), all along
    look: Callable[..., object] | None = None  # at the curves of an evaluation, see `evaluate_all`
    page: Callable[[Path], Path] | None = None  # written at the end


BARE = Callbacks()


def train(
    experiment: Experiment,
    out: Path | None = None,
    *,
    name: str = "experiment",
    console: Any = None,
    callbacks: Callbacks = BARE,
) -> Path:
    """Meta-trains into a new run folder and evaluates. Returns the folder.

    Nothing is written before the experiment is known to be sound. Where several processes train together, all call
    this, and the first one alone writes, evaluates and returns the folder; the others return `out`.

    Args:
      out: the folder; default: the next number in runs/NAME.

    Raises:
      UserError: the experiment's fault; no folder is left behind.
      Diverged: no inner run survived; what was logged stays.
      Interrupted: a signal came; the state is saved.
      NotWritten: the disk is full or gone; what was saved before stays.
      LostProcess: another process that trained along is gone.
    """
    trainer = prepare(experiment)
    start = _start(trainer)
    if not processes.is_first():
        _take_part(trainer, resumed=False)
        return out or Path()
    _warn_of_long_steps(trainer, start)
    environment = of_experiment(trainer.experiment, folder.safe_name(name))
    with folder.create_run(out, name, trainer.experiment, environment) as made:
        try:
            return _run(made.path, trainer, console or make_console(), callbacks, resumed=False)
        except (processes.LostProcess, NotWritten):
            raise
        except (UserError, RuntimeError, MemoryError):
            # What only tracing finds out, or too little memory; a run that began keeps its folder.
            if not (made.path / folder.METRICS).exists() or not (made.path / folder.METRICS).stat().st_size:
                made.discard()
            raise


def resume(
    path: Path,
    *,
    num_meta_steps: int | None = None,
    num_devices: int | None = None,
    console: Any = None,
    callbacks: Callbacks = BARE,
) -> Path:
    """Goes on with a run from its latest checkpoint, to more meta-steps where asked; ends as `train` does.

    φ comes out bitwise equal to that of a run that was never stopped, on the same number of devices; on another number
    of devices or processes, equal up to the order of summation.

    Args:
      num_devices: in place of the experiment's own.

    Raises:
      UserError: not a run folder, a checkpoint of another architecture, fewer meta-steps than it was begun with, or
        more where the learning rate's schedule has an end, or data other than it was begun with.
      NotWritten: the disk is full or gone.
      LostProcess: another process that trained along is gone.
    """
    path, experiment = folder.open_run(path)
    check_config(path, experiment)
    changed = experiment if num_meta_steps is None else folder.lengthened(path, experiment, num_meta_steps)
    devices = experiment.num_devices if num_devices is None else num_devices
    if num_devices is None and devices is not None and devices % jax.process_count():
        devices = None  # a run begun by fewer processes
    changed = dataclasses.replace(changed, num_devices=devices)
    trainer = prepare(changed)
    if not processes.is_first():
        _take_part(trainer, resumed=True)
        return path
    folder.refuse_bytes(path, "move the run to a folder whose path is, and go on there")
    check_writable(path, "make it writable, or copy it and go on with the copy")
    check_data(path, changed)
    own_entries.refuse_changed(path)
    with folder.locked(path):
        files.sweep(path)
        return _run(path, trainer, console or make_console(), callbacks, resumed=True)


def prepare(experiment: Experiment) -> Trainer:
    """Raises all that can be known to be wrong before a run begins.

    Raises:
      UserError: the experiment's fault, that of its evaluation included.
    """
    experiment = placed(validate(experiment))
    try:
        trainer = Trainer(experiment)
    except UserError:
        raise
    except ValueError as error:  # what the lower floors refuse, such as more devices than there are
        raise UserError(str(error)) from error
    check(
        plan_of(experiment),
        experiment.evaluation.baselines,
        experiment.evaluation.tuning,
        num_tasks=experiment.evaluation.num_tasks,
        optimizers=[trainer.optimizer],
        oracle=experiment.oracle,
        early_stopping=stopping_of(experiment.evaluation.patience, experiment.evaluation.check_every),
        names=("evaluation.horizons", "evaluation.num_tasks"),
    )
    return trainer


def _start(trainer: Trainer) -> MetaParams | None:
    """The φ that the experiment's `start` names; a checkpoint needs it no more."""
    start = trainer.experiment.start
    return None if start is None else start_of(trainer.optimizer, trainer.experiment.optimizer, start)


def _warn_of_long_steps(trainer: Trainer, start: MetaParams | None) -> None:
    if trainer.optimizer.stable_below is None:
        return
    optimizer, key = trainer.optimizer, jax.random.key(trainer.experiment.seed)
    meta_params = optimizer.init(key) if start is None else start
    for family in trainer.alone().families:
        warn_of_long_steps(str(trainer.experiment.optimizer), optimizer, meta_params, family, key)


def _run(path: Path, trainer: Trainer, console: Any, callbacks: Callbacks, *, resumed: bool) -> Path:
    experiment = trainer.experiment
    with contextlib.ExitStack() as beside, SignalGuard() as guard, in_one_line(path):
        say(console, f"run folder: {path}")
        recorder = Recorder(path, trainer.alone(), guard)
        with contextlib.closing(recorder):
            state = _take_up(path, trainer, recorder, console) if resumed else None
            beside.enter_context(told(path, num_meta_steps=experiment.num_meta_steps, ends=ENDS))
            beside.enter_context(in_one_line(path))
            if callbacks.beside is not None:  # to the end of the evaluation
                beside.enter_context(callbacks.beside(path, experiment, lambda text: say(console, text)))
            state = _meta_train(path, trainer, state, recorder, console, callbacks)
            picks = recorder.finish(state)
        processes.leave()
        if guard.received is not None:
            raise Interrupted(guard.received, f"saved; go on with `{folder.resume_command(path)}`")
        _evaluate(path, trainer, picks, guard, console, callbacks)
    return path


def _take_up(path: Path, trainer: Trainer, recorder: Recorder, console: Any) -> TrainState | None:
    """The state to go on from, None where there was no checkpoint; the folder is cut back to it."""
    state, remarks = recorder.resume(trainer)
    state = _from_first(state, held=state is not None)
    for remark in remarks:
        say(console, remark)
    folder.write_config(path, trainer.experiment)
    note_resumption(path, trainer.experiment, 0 if state is None else int(state.meta_step))
    return state


def _meta_train(
    path: Path, trainer: Trainer, state: TrainState | None, recorder: Recorder, console: Any, callbacks: Callbacks
) -> TrainState:
    experiment = trainer.experiment
    done = 0 if state is None else int(state.meta_step)
    if done:
        say(console, f"going on from meta-step {done} of {experiment.num_meta_steps}")
    progress = Progress(console, experiment.num_meta_steps, done)

    def record(trainer: Trainer, state: TrainState, metrics: dict[str, np.ndarray]) -> bool:
        stop = recorder(trainer, _readable(state), metrics)
        processes.meet("chunk")
        return stop

    try:
        recorder.start(None if state is None else _readable(state), [progress])
        trainer.level = recorder.stage.level
        processes.where_the_first_writes(path)
        state = trainer.init(_start(trainer)) if state is None else state
        more = [] if callbacks.chunk is None else [callbacks.chunk(path, trainer, state, progress.say)]
        return meta_train(
            trainer,
            state=state,
            callbacks=[record, *more],
            # The other processes of a job know of none, and all have to judge alike.
            history=recorder.history if jax.process_count() == 1 else (),
            progress=False,  # the recorder's
        )
    except Diverged as error:
        raise Diverged(f"{error} The metrics are in {path / folder.METRICS}.") from None
    except KeyboardInterrupt:
        message = f"stopped at once; go on from the last checkpoint with `{folder.resume_command(path)}`"
        raise Interrupted(2, message) from None


def _take_part(trainer: Trainer, *, resumed: bool) -> None:
    """What the processes other than the first do: compute, with nothing to say and nothing to write."""
    with SignalGuard(silent=True):
        with in_one_line(None):
            # The first makes a state before it restores one, and programs must start in one order everywhere.
            state = _from_first(trainer.init(), held=False) if resumed else None
            path = processes.where_the_first_writes(Path())
        with in_one_line(path):
            state = trainer.init(_start(trainer)) if state is None else state
            meta_train(trainer, state=state, callbacks=[lambda *_: processes.meet("chunk")], progress=False)
            processes.leave()


def _from_first(state: TrainState | None, *, held: bool) -> TrainState | None:
    """The state that the first process has restored, in every process; None where there was none.

    Args:
      state: in the first process what it has restored, in the others any of the same structure.
      held: in the first process, whether there was one.
    """
    if jax.process_count() == 1:
        return state
    if not multihost_utils.broadcast_one_to_all(np.asarray(held)) or state is None:
        return None
    return to_devices(multihost_utils.broadcast_one_to_all(to_host(state)), state)


def _readable(state: TrainState) -> TrainState:
    """The state with φ where this process can use it without the others."""
    if jax.process_count() == 1:
        return state
    here = jax.tree.map(lambda leaf: leaf.addressable_data(0), (state.meta_params, state.ema))
    return state._replace(meta_params=here[0], ema=here[1])


def _evaluate(
    path: Path,
    trainer: Trainer,
    picks: Mapping[str, tuple[int, MetaParams]],
    guard: SignalGuard,
    console: Any,
    callbacks: Callbacks,
) -> None:
    """Evaluation, page and table. It is repeated rather than saved, so a signal ends it at once."""
    experiment, name = trainer.experiment, learned_name(path)
    named = folder.named(name, picks)
    for (how, (step, _)), called in zip(picks.items(), named, strict=True):
        say(console, f"evaluating φ of meta-step {step} ({how}) as {called}")
    write_state(path, "running", num_meta_steps=experiment.num_meta_steps)
    guard.at_once = True
    try:
        if guard.received is not None:  # a moment ago
            raise KeyboardInterrupt
        results = evaluate_all(
            path,
            {called: (trainer.optimizer, jax.device_put(meta_params)) for called, (_, meta_params) in named.items()},
            plan_of(experiment),
            train_horizon=experiment.horizon,
            num_tasks=experiment.evaluation.num_tasks,
            seed=EVALUATION_SEED,
            baselines=experiment.evaluation.baselines,
            tuning=experiment.evaluation.tuning,
            oracle=experiment.oracle,
            early_stopping=stopping_of(experiment.evaluation.patience, experiment.evaluation.check_every),
            num_devices=trainer.alone().experiment.num_devices,
            trained={called: step for called, (step, _) in named.items()},
            keep=True,
            experiments=dict.fromkeys(named, experiment),
            look=callbacks.look,
            progress=lambda line: say(console, f"  {line}"),
        )
        page = None if callbacks.page is None else callbacks.page(path)
    except KeyboardInterrupt:
        message = f"meta-training is done and saved; finish the evaluation with `{folder.resume_command(path)}`"
        raise Interrupted(guard.received or 2, message) from None
    finally:
        guard.at_once = False
    print_results(console, results)
    say(console, f"\nrun folder: {path}" + ("" if page is None else f"\nreport: {page}"))


def learned_name(path: Path) -> str:
    """What a run's optimizer is called in evaluations: its experiment's name, unless an optimizer is called so."""
    name = folder.experiment_name(path) or folder.safe_name(path.resolve().name)
    return f"learned {name}" if name in OPTIMIZERS else name
