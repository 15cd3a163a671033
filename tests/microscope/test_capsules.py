"""Divergence capsules: kept when tasks blow up, a bounded number, and the same bits when shown again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from metaopt.choices import choice
from metaopt.cli.entry import main
from metaopt.errors import UserError
from metaopt.experiment import Curriculum, Evaluation, Experiment, Log, MetaOptimizer, Validation, build_optimizer
from metaopt.microscope import capsules
from metaopt.microscope.capsules import capsules_in, make_capsule, read_capsule, replay, run_again
from metaopt.microscope.capture import CapsuleKeeper, keep_failures, training_batches
from metaopt.microscope.last_steps import first_cause, look_closely
from metaopt.registry import TASKS
from metaopt.runs.evaluations import evaluate_all
from metaopt.training.loop import meta_train
from metaopt.training.trainer import Trainer
from metaopt.types import TaskFamily
from tests.toys import bowl, cliff


@pytest.fixture(autouse=True)
def with_cliff(register: Callable[..., None]) -> None:
    register(TASKS, "cliff", cliff)
    register(TASKS, "steep", steep)


def steep() -> TaskFamily:
    return dataclasses.replace(bowl(1), loss=lambda x, task, batch: 0.5 * jnp.sum(x**2))


def falling(**changes: object) -> Experiment:
    """Half of the tasks die at the first step."""
    experiment = Experiment(
        tasks=(choice("cliff"),),
        optimizer=choice("sgd", learning_rate=0.1),
        estimator=choice("truncated_backprop"),
        num_meta_steps=14,
        num_tasks=8,
        horizon=4,
        num_devices=1,
        validation=Validation(every=0),
        evaluation=Evaluation(num_tasks=4, horizons=(4,), baselines=()),
        log=Log(every=2),
    )
    return dataclasses.replace(experiment, **changes)  # type: ignore[arg-type]


def train_with_capsules(experiment: Experiment, path: Path) -> list[Path]:
    trainer, said = Trainer(experiment), []
    state = trainer.init()
    keeper = CapsuleKeeper(path, trainer, state, said.append)
    meta_train(trainer, state=state, callbacks=[keeper])
    found = capsules_in(path, "training")
    assert [line.split("`")[1] for line in said] == [f"metaopt replay {file}" for file in found]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unroll_length": 2, "chunk_size": 4},
        {"estimator": choice("evolution_strategies", tasks_per_perturbation=2)},
        {"estimator": choice("persistent_evolution_strategies", tasks_per_perturbation=2), "unroll_length": 2},
        {
            "unroll_length": 2,
            "curriculum": Curriculum(kind="fixed", horizons=(2,), every=4),
            "meta_optimizer": MetaOptimizer(ema=0.9),
            "num_devices": 2,
        },
    ],
    ids=["whole", "windows", "pairs", "pairs in windows", "curriculum, average and two devices"],
)
def test_training_keeps_a_bounded_number_and_each_shows_the_same_bits(changes: dict, tmp_path: Path) -> None:
    found = train_with_capsules(falling(**changes), tmp_path)
    assert len(found) == capsules.LIMIT  # of seven chunks with deaths
    for path in (found[0], found[-1]):
        capsule = read_capsule(path)
        assert capsule.died and all(step == 1 for _, step in capsule.died)
        # The dead are those whose task lies above one half, by an independent draw from the same keys.
        keys = jax.vmap(lambda key: jax.random.split(key, 4)[0])(capsule.batch.keys)
        drawn = np.asarray(jax.vmap(jax.random.uniform)(keys))
        if capsule.batch.start is not None:  # in the middle of a run, whose keys are of an earlier meta-step
            drawn = np.where(capsule.batch.start[1].alive, capsule.batch.start[0], 0.0)
        assert [task for task, _ in capsule.died] == np.flatnonzero(drawn > 0.5)[: capsules.TASKS_KEPT].tolist()
        assert np.isinf(capsule.loss).all()
        assert replay(capsule).same
        assert path.stat().st_size < 20_000


def test_a_capsule_has_the_very_phi_of_its_meta_step(tmp_path: Path) -> None:
    experiment = falling()
    found = train_with_capsules(experiment, tmp_path)
    last = read_capsule(found[-1])
    assert last.setting.meta_step == 9
    state = meta_train(Trainer(dataclasses.replace(experiment, num_meta_steps=8)))
    wanted = np.asarray(state.meta_params["learning_rate"])
    assert np.asarray(last.batch.meta_params["learning_rate"]).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("changes", [{"rescale": 0.5, "companion": 2, "bfloat16": 0.5}, {"min_batch_size": 2}])
def test_augmented_tasks_show_the_same_bits(changes: dict, tmp_path: Path) -> None:
    """At a rate that overflows: the tasks are rebuilt with all that the experiment adds to them."""
    task = choice("quadratic", dim=2)
    if "min_batch_size" in changes:
        task = choice("linear_regression", dim=2, num_examples=8, batch_size=8)
    trainer = Trainer(falling(tasks=(task,), optimizer=choice("sgd", learning_rate=1e9), num_tasks=4, **changes))
    ((_, setting, batch),) = training_batches(trainer, trainer.init())
    capsule = make_capsule(setting, batch, trainer.families[0])
    assert capsule is not None
    path = capsules.write_capsule(tmp_path, capsule)
    assert path is not None and replay(read_capsule(path)).same


def test_a_rise_of_the_dead_is_looked_at_first(tmp_path: Path) -> None:
    trainer = Trainer(falling())
    keeper = CapsuleKeeper(tmp_path, trainer, trainer.init(), print)
    assert keeper._suspects(np.array([0, 2, 2, 3])).tolist() == [1, 3]
    assert keeper._suspects(np.array([3, 3, 4, 4])).tolist() == [2]  # three were dead before
    assert keeper._suspects(np.array([4, 0, 0])).tolist() == [0]  # a reset may hide one
    assert keeper._suspects(np.array([0, 0])).tolist() == []


def test_batches_are_those_of_the_meta_step() -> None:
    # The estimator's own count of the dead, and its mean loss of the living, from the batches alone.
    trainer = Trainer(falling(unroll_length=2, chunk_size=4, num_meta_steps=5, log=Log(every=1)))
    state = trainer.init()
    for _ in range(5):
        dead, losses = 0, []
        for _, setting, batch in training_batches(trainer, state):
            trace, _ = run_again(setting, batch)
            dead += int((~trace.alive[-1]).sum())
            losses += trace.loss.mean(axis=0)[trace.alive[-1]].tolist()
        state, metrics = trainer.run_chunk(state)
        assert dead == metrics["diverged"][0]
        np.testing.assert_allclose(np.mean(losses), metrics["meta_loss"][0], rtol=1e-6)


def test_a_task_that_lives_leaves_none() -> None:
    trainer = Trainer(falling(tasks=(choice("quadratic", dim=2),)))
    assert all(make_capsule(setting, batch) is None for _, setting, batch in training_batches(trainer, trainer.init()))


def test_evaluation_keeps_the_task_that_failed_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = falling(optimizer=choice("sgd", learning_rate=50.0))
    optimizer = build_optimizer(experiment.optimizer)
    evaluate_all(
        tmp_path,
        {"fast": (optimizer, optimizer.init(jax.random.key(0)))},
        ((choice("quadratic", dim=2), 6), (choice("cliff"), 6)),
        train_horizon=4,
        num_tasks=5,
        seed=0,
        baselines=(),
        experiments={"fast": experiment},
        look=keep_failures,
    )
    found = capsules_in(tmp_path, "evaluation")
    assert [read_capsule(path).setting.task.name for path in found] == ["cliff", "quadratic"]
    capsule = read_capsule(found[1])
    task, step = capsule.died[0]
    growth = capsule.loss[: step + 1, 0] / capsule.initial_loss[0]
    assert growth[-1] > 10 and (growth[:-1] <= 10).all()
    assert main(["replay", str(found[1])]) == 0
    out = capsys.readouterr().out
    assert f"task {task} blew up at step {step}" in out and "the same bits" in out
    shown = ", ".join(str(task) for task, _ in capsule.died)
    assert f"shown: task {shown} of {len(capsule.batch.keys)} in the batch" in out and "gradient norm" in out
    assert "stayed finite and below 1e+15; the loss rose above 10 f(θ_0)" in out


def test_the_first_to_blow_up_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """½x² at a rate of 10: |x| grows 9-fold a step and f 81-fold; the loss passes 1e15 first, by hand."""
    trainer = Trainer(falling(tasks=(choice("steep"),), optimizer=choice("sgd", learning_rate=10.0), horizon=12))
    ((_, setting, batch),) = training_batches(trainer, trainer.init())
    capsule = make_capsule(setting, batch, trainer.families[0])
    assert capsule is not None
    path = capsules.write_capsule(tmp_path, capsule)
    task, step = capsule.died[0]
    start = capsule.initial_loss[0]
    assert step == next(t for t in range(1, 13) if start * 81.0**t > 1e15)
    closely = look_closely(setting, batch)
    x = np.sqrt(2 * start) * 9.0 ** np.arange(step)
    np.testing.assert_allclose(closely.gradient_norm[:step, task], x, rtol=1e-4)
    np.testing.assert_allclose(closely.update_norm[:step, task], 10 * x, rtol=1e-4)
    assert first_cause(closely, task) == ("loss", step - 1)
    assert main(["replay", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"first to be non-finite or above 1e+15: the loss, at step {step}" in out
    assert "shown: task 0, 1, 2, 3, 4, 5, 6, 7 of 8 in the batch" in out and " inf" not in out


def test_other_bits_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsule = read_capsule(train_with_capsules(falling(num_meta_steps=2), tmp_path)[0])
    norm = capsule.update_norm.copy()
    norm[-1, 0] = np.nextafter(norm[-1, 0], np.float32(9))
    (tmp_path / "other").mkdir()
    path = capsules.write_capsule(tmp_path / "other", capsule._replace(update_norm=norm))
    assert main(["replay", str(path)]) == 1
    assert "DIFFER" in capsys.readouterr().out


def test_what_is_no_capsule_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no divergence capsule"):
        read_capsule(tmp_path / "a.safetensors")
    assert main(["replay", str(tmp_path / "missing")]) == 2


def test_a_folder_and_an_optimizer_are_no_capsules_and_are_told_apart(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(falling())
    ((_, setting, batch),) = training_batches(trainer, trainer.init())
    capsule = make_capsule(setting, batch)
    assert capsule is not None
    path = capsules.write_capsule(tmp_path, capsule)
    optimizer = finished / "optimizer.safetensors"
    for words, remedy in (
        (["replay", str(tmp_path)], f"it is a folder; try `metaopt replay {path}`"),
        (["replay", str(finished)], "it is a folder, and it holds none"),
        (["replay", str(optimizer)], f"it is an optimizer; `metaopt doctor {optimizer}` examines it"),
        (["doctor", str(path)], f"is a divergence capsule; `metaopt replay {path}` shows it"),
    ):
        assert main(words) == 2
        assert remedy in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"length": "abc"},
        {"length": 0},
        {"explore": [1]},
        {"objective_batch": "x"},
        {"died": []},
        {"died": [[99, 1]]},
        {"died": [["a", 1]]},
        {"died": [[0]]},
        {"kind": 3},
        {"about": 3},
        {"keys": np.zeros(4, np.uint32)},
        {"keys": np.zeros((8, 2), np.float32)},
        {"loss": np.zeros(1, np.float32)},
    ],
    ids=str,
)
def test_a_strangers_file_is_refused_in_one_line(change: dict, tmp_path: Path) -> None:
    trainer = Trainer(falling())
    ((_, setting, batch),) = training_batches(trainer, trainer.init())
    died, shown = ((0, 1),), np.zeros((1, 1), np.float32)
    path = capsules.write_capsule(tmp_path, capsules.Capsule(setting, batch, died, shown, shown, shown[0]))
    assert path is not None and read_capsule(path).died == died
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["metaopt"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (name,) = change
    (tensors if name in tensors else about).update(change)
    save_file(tensors, path, {"metaopt": json.dumps(about)})
    with pytest.raises(UserError, match="no divergence capsule"):
        read_capsule(path)
