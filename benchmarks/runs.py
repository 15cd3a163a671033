"""The parts of benchmarks/bench that time whole meta-training: core-seconds to a validation loss, logging."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from benchmarks.cases import chunks, digits, experiment
from benchmarks.measure import Options, Row, measured
from benchmarks.plain_reference import plain_chunks
from metaopt.evaluation.curves import evaluate
from metaopt.experiment import Experiment, Validation
from metaopt.microscope.capture import CapsuleKeeper
from metaopt.runs.console import Progress
from metaopt.runs.interrupts import SignalGuard
from metaopt.runs.recorder import Recorder
from metaopt.training.loop import meta_train
from metaopt.training.trainer import Trainer
from metaopt.types import MetaParams

# ----- whole runs -----------------------------------------------------------------------------------------------------


class Goal(NamedTuple):
    """Meta-training until the mean final loss on validation tasks is below `target`."""

    experiment: Experiment
    target: float
    validation_tasks: int
    most: int  # chunks of `log.every` meta-steps until it is given up


# Tuned Adam ends at 0.0035 on these quadratics; the loss on digits begins at 2.4.
GOALS = {
    "quadratics, T = 100": Goal(experiment("BP", 16, 25), 0.0035, 256, 100),
    "digits, T = 50": Goal(digits(5), 0.8, 16, 60),
}
VALIDATION_SEED = 0x7A11


class Contender(NamedTuple):
    """`run` does a chunk; `spent` are the core-seconds of every chunk so far, the first with compilation and all."""

    run: Callable[[], MetaParams]
    spent: list[float]


def whole_run(options: Options) -> Iterator[Row]:
    """Core-seconds until a validation loss is reached, by the framework and the plain reference, from the same φ.

    Both draw the same tasks, and the same held-out tasks judge them; validation's own time is not counted. A chunk each
    in turn, so that a disturbance of the machine meets both.
    """
    for name, goal in GOALS.items():
        if options.quick:
            goal = goal._replace(most=2)
        yield from _race(name, goal)


def _race(name: str, goal: Goal) -> Iterator[Row]:
    described, seed = goal.experiment, goal.experiment.seed
    trainer = Trainer(described)
    contenders = {"metaopt": _timed(chunks(described)), "plain": _timed(plain_chunks(described))}
    key = jax.random.key(VALIDATION_SEED)

    def validate(meta_params: MetaParams) -> float:
        curves = evaluate(
            {"learned": (trainer.optimizer, meta_params)},
            trainer.families[0],
            key,
            horizon=described.horizon,
            num_tasks=goal.validation_tasks,
            record_every=described.horizon,
            num_devices=1,
        )
        return float(curves.loss["learned"][:, -1].mean())

    losses: dict[str, list[float]] = {program: [] for program in contenders}
    for _ in range(goal.most):
        running = [program for program in contenders if not losses[program] or losses[program][-1] > goal.target]
        if not running:
            break
        for program in running:
            losses[program].append(validate(contenders[program].run()))
    costs: dict[str, float] = {}
    totals: dict[str, dict[str, float]] = {"with compilation": {}, "without compilation": {}}
    for program, contender in contenders.items():
        costs[program] = statistics.median(contender.spent[1:] or contender.spent)
        totals["with compilation"][program] = sum(contender.spent)
        totals["without compilation"][program] = sum(contender.spent[1:]) + costs[program]
    steps = {program: len(losses[program]) * described.log.every for program in contenders}
    reached = {program: losses[program][-1] <= goal.target for program in contenders}
    for kind, by_program in totals.items():
        figure = f"core-seconds to the validation loss, {kind}"
        for program, total in by_program.items():
            settings = {"task": name, "loss": goal.target, "seed": seed, "program": program}
            note = f"{steps[program]} meta-steps, loss {losses[program][-1]:.3g}"
            if not reached[program]:
                note = f"not reached in {note}"
            value = total if reached[program] else None
            yield Row("whole_run", figure, settings, "core-seconds", value, note=note)
        if all(reached.values()):
            settings = {"task": name, "loss": goal.target, "seed": seed}
            ratio = by_program["plain"] / by_program["metaopt"]
            yield Row("whole_run", f"the plain reference's over metaopt's, {kind}", settings, "times", ratio)
    # Where rounding has led the two apart, one may need fewer meta-steps by luck; this figure is free of that.
    ratio = costs["plain"] / costs["metaopt"]
    settings = {"task": name, "seed": seed}
    yield Row("whole_run", "the plain reference's a meta-step over metaopt's", settings, "times", ratio)


def _timed(chunk: Callable[[], MetaParams]) -> Contender:
    spent: list[float] = []

    def run() -> MetaParams:
        began = time.process_time()
        meta_params = jax.block_until_ready(chunk())
        spent.append(time.process_time() - began)
        return meta_params

    return Contender(run, spent)


# ----- overhead -------------------------------------------------------------------------------------------------------


def overhead(options: Options) -> Iterator[Row]:
    """Logging, checkpoints and progress as a share of a quadratic run's time: runs with and without, interleaved."""
    steps = 100 if options.quick else 500
    described = experiment(
        "BP",
        16,
        50,
        num_meta_steps=steps,
        checkpoint_every=steps,
        validation=Validation(every=0),
    )
    trainer = Trainer(described)
    meta_train(trainer)  # compiles
    recorded, inside, bare = [], [], []
    for turn in range(2 if options.quick else options.repeats):
        pair: dict[str, Callable[[], None]] = {
            "bare": lambda: bare.append(_bare(trainer)),
            "recorded": lambda: _record(trainer, recorded, inside),
        }
        for name in sorted(pair, reverse=turn % 2 == 1):  # whoever goes first
            pair[name]()
    settings = {"meta_steps": steps, "checkpoints": 1, "tasks": 16}
    shares = [100 * (a / b - 1) for a, b in zip(recorded, bare, strict=True)]
    yield measured("overhead", "a run with logging, checkpoints and progress", settings, "% more core-seconds", shares)
    yield measured("overhead", "time spent in the callbacks", settings, "% of the run", inside)


def _bare(trainer: Trainer) -> float:
    state = trainer.init()
    return _core_seconds(lambda: meta_train(trainer, state=state))


def _record(trainer: Trainer, recorded: list[float], inside: list[float]) -> None:
    """A run as `metaopt train` records it, to a terminal that is not there; the folder is made and closed outside."""
    with tempfile.TemporaryDirectory() as scratch, SignalGuard() as guard:
        path = Path(scratch)
        console = Console(file=io.StringIO(), force_terminal=True)
        recorder, spent = Recorder(path, trainer, guard), [0.0]
        recorder.start(None, [Progress(console, trainer.experiment.num_meta_steps)])
        state = trainer.init()
        keeper = CapsuleKeeper(path, trainer, state, lambda text: None)

        def callback(*args: Any) -> bool:
            began = time.perf_counter()
            stop = recorder(*args)
            keeper(*args)
            spent[0] += time.perf_counter() - began
            return stop

        try:
            began = time.perf_counter()
            recorded.append(_core_seconds(lambda: meta_train(trainer, state=state, callbacks=[callback])))
            inside.append(100 * spent[0] / (time.perf_counter() - began))
        finally:
            recorder.close()


def _core_seconds(run: Callable[[], object]) -> float:
    """Of all threads of this process: others on the machine move it less than they move the clock."""
    began = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - began
