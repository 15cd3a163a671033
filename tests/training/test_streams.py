"""Training, validation, tuning and evaluation draw from four streams: spies on the keys that tasks are drawn from."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.choices import choice
from metaopt.evaluation import evaluate_run_on
from metaopt.evaluation.record import evaluation_keys
from metaopt.experiment import Experiment
from metaopt.registry import TASKS
from metaopt.runs.train import EVALUATION_SEED
from metaopt.training import validation
from metaopt.training.loop import meta_train
from metaopt.training.trainer import Trainer
from metaopt.training.validation import Validator
from metaopt.types import TaskFamily

Drawn = dict[str, list[tuple[int, ...]]]
PHASES = ("training", "validation", "tuning", "evaluation")


class Spy:
    """A family that notes the key of every task, start and minibatch that is drawn, under the phase of the moment."""

    def __init__(self) -> None:
        self.phase = ""
        self.drawn: dict[str, Drawn] = defaultdict(lambda: defaultdict(list))

    def begin(self, phase: str) -> None:
        jax.effects_barrier()
        self.phase = phase

    def note(self, what: str, key: jax.Array) -> jax.Array:
        """Zero, which depends on nothing."""

        def keep(data: np.ndarray) -> None:
            self.drawn[self.phase][what].append(tuple(np.asarray(data).tolist()))

        jax.debug.callback(keep, jax.random.key_data(key))
        return jnp.zeros(())

    def family(self) -> TaskFamily:
        def sample(key: jax.Array, data: Any) -> jax.Array:
            return 1.0 + self.note("task", key)

        def init(key: jax.Array, task: jax.Array) -> jax.Array:
            return jax.random.normal(key, (2,)) + self.note("start", key)

        def batch(key: jax.Array, task: jax.Array, data: Any) -> jax.Array:
            return 0.1 * jax.random.normal(key, (2,)) + self.note("batch", key)

        return TaskFamily(
            data=(),
            sample=sample,
            init=init,
            batch=batch,
            loss=lambda params, task, batch: jnp.sum((params - batch) ** 2),
            eval_batch=lambda task, data, split: jnp.zeros(2),
            name="spied",
        )


EXPERIMENT = Experiment(
    tasks=(choice("spied"),),
    optimizer=choice("momentum", learning_rate=0.1),
    estimator=choice("truncated_backprop"),
    num_meta_steps=5,
    num_tasks=4,
    horizon=2,
    num_devices=1,
)


@pytest.fixture
def drawn(register: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> dict[str, Drawn]:
    """What each phase of a run of seed 0 and its evaluation draws, in the seed's own streams."""
    spy = Spy()
    register(TASKS, "spied", cache(spy.family))
    experiment = dataclasses.replace(
        EXPERIMENT,
        seed=EVALUATION_SEED,
        validation=dataclasses.replace(EXPERIMENT.validation, num_tasks=6, multiples=(1,)),
    )
    trainer = Trainer(experiment)
    spy.begin("training")
    state = meta_train(trainer)
    validator = Validator(trainer)
    for phase in ("validation", "validation again"):
        spy.begin(phase)
        validator(state.meta_params)

    def progress(line: str) -> None:
        spy.begin("tuning" if ": tuning" in line else "evaluation")

    evaluate_run_on(
        {},
        choice("spied"),
        horizon=2,
        num_tasks=5,
        seed=EVALUATION_SEED,
        baselines=("sgd",),
        num_tuning_tasks=3,
        num_devices=1,
        progress=progress,
    )
    spy.begin("")
    return spy.drawn


def test_the_four_phases_draw_from_four_streams(drawn: dict[str, Drawn]) -> None:
    # As many tasks as there should be, and in training new ones at every meta-step.
    numbers = {"training": 20, "validation": 6, "tuning": 3, "evaluation": 5}
    assert {phase: len(set(drawn[phase]["task"])) for phase in PHASES} == numbers
    assert set(drawn["validation again"]["task"]) == set(drawn["validation"]["task"])
    for one, other in itertools.combinations(PHASES, 2):
        for what in ("task", "start", "batch"):
            assert drawn[one][what] and not set(drawn[one][what]) & set(drawn[other][what]), (one, other, what)


def roots(seed: int, trainer: Trainer) -> dict[str, jax.Array]:
    """The keys that everything is drawn from: those that a run splits, and those of validation and evaluation."""
    base = jax.random.key(seed)
    reported, tuned = evaluation_keys(seed)
    of_run = {f"run {index}": key for index, key in enumerate(jax.random.split(base, 3))}
    return {
        "seed": base,
        **of_run,
        "validation": jax.random.fold_in(base, validation.STREAM),
        **{f"validation {index}": key for index, key in enumerate(Validator(trainer)._keys)},
        "evaluation": reported,
        "tuning": tuned,
    }


def test_no_key_serves_twice(tiny: Experiment) -> None:
    """Not even as the key of something else: what φ begins from is drawn from the seed as well."""
    seen: dict[tuple[int, ...], tuple[int, str]] = {}
    two = dataclasses.replace(tiny, tasks=(choice("quadratic", dim=2), choice("rosenbrock", pairs=1)))
    for seed in range(3):
        trainer = Trainer(dataclasses.replace(two, seed=seed))
        for name, key in roots(seed, trainer).items():
            other = seen.setdefault(tuple(np.asarray(jax.random.key_data(key)).tolist()), (seed, name))
            assert other == (seed, name)
    # The first three are those of a run.
    run_key = jax.random.split(jax.random.key(2), 3)[2]
    np.testing.assert_array_equal(jax.random.key_data(trainer.init().key), jax.random.key_data(run_key))
