from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from metaopt.choices import choice
from metaopt.errors import UserError
from metaopt.experiment import Experiment
from metaopt.inner.devices import task_mesh
from metaopt.runs.checkpoints import Checkpoints
from metaopt.training.trainer import Trainer, TrainState


class State(NamedTuple):
    params: dict[str, jax.Array]
    opt_state: optax.OptState
    key: jax.Array
    step: jax.Array


def make(seed: int, size: int = 3) -> State:
    key = jax.random.key(seed)
    params = {"w": jax.random.normal(key, (size, 2)), "b": jnp.ones((), jnp.bfloat16)}
    state = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params)
    return State(params, state, jax.random.split(key, 2), jnp.asarray(seed, jnp.int32))


def same(one: Any, other: Any) -> bool:
    def numbers(leaf: jax.Array) -> np.ndarray:
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    assert jax.tree.structure(one) == jax.tree.structure(other)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(numbers(a), numbers(b)) for a, b in pairs)


def test_states_come_back_bitwise_with_their_keys_and_record(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore_latest(make(0)) is None
    checkpoints.save(1, make(1), {"best": 0.1, "due": True})
    checkpoints.close()
    restored = Checkpoints(tmp_path).restore_latest(make(0))
    assert restored is not None
    state, record, remarks = restored
    assert same(state, make(1)) and record == {"best": 0.1, "due": True, "num_devices": 1} and remarks == []


def test_the_latest_three_and_the_best_of_each_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 7):
        checkpoints.save(step, make(step), {"best_step": 1 if step < 4 else 2 if step == 4 else 4})
    assert checkpoints.steps == [2, 4, 5, 6]  # 2 was the best when 4 was saved
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)  # another process knows it too
    checkpoints.save(7, make(7), {"best_step": 4})
    assert checkpoints.steps == [4, 5, 6, 7]
    for step in (8, 9):
        checkpoints.save(step, make(step), {"best_step": 4})
    assert checkpoints.steps == [4, 7, 8, 9]
    assert same(checkpoints.restore(4, make(0))[0], make(4))


@pytest.mark.parametrize("how", ["emptied", "removed", "record"])
def test_a_broken_checkpoint_is_passed_over(tmp_path: Path, how: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make(step), {"step": step})
    part = tmp_path / "2" / ("record" if how == "record" else "state")
    for file in [entry for entry in part.rglob("*") if entry.is_file()]:
        file.write_bytes(b"") if how == "emptied" else file.unlink()
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore_latest(make(0))
    assert restored is not None
    state, record, remarks = restored
    assert same(state, make(1)) and record["step"] == 1
    assert len(remarks) == 1 and remarks[0].startswith("the checkpoint of meta-step 2 cannot be read (")
    assert checkpoints.steps == [1]
    checkpoints.save(2, make(3), {})
    assert same(checkpoints.restore(2, make(0))[0], make(3))


def test_a_save_cut_off_by_a_kill_is_not_seen(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make(1), {})
    (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps == [1]
    checkpoints.save(2, make(2), {})
    assert checkpoints.steps == [1, 2]


def test_nothing_readable_is_the_users_to_know(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make(1), {})
    for file in [entry for entry in (tmp_path / "1").rglob("*") if entry.is_file()]:
        file.write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        Checkpoints(tmp_path).restore_latest(make(0))


class Truncated(NamedTuple):
    """Inner runs under way: arrays [chunks, ...] as estimators lay them out."""

    estimator_state: dict[str, Any]
    step: jax.Array


def under_way(num_tasks: int, size: int, ages: str = "one") -> Truncated:
    chunks = num_tasks // size
    tasks = jnp.arange(num_tasks, dtype=jnp.float32)
    columns = tasks[:, None] + jnp.asarray([0.0, 0.1])  # two coordinates a task
    age = jnp.full(chunks, 3, jnp.int32) + (jnp.arange(chunks, dtype=jnp.int32) if ages == "several" else 0)
    held = {
        "task": tasks.reshape(chunks, size),
        "columns": jnp.stack([columns, -columns]).reshape(2, chunks, 2 * size).swapaxes(0, 1),
        "labels": jnp.arange(num_tasks, dtype=jnp.int32).reshape(chunks, size),
        "key": jax.random.split(jax.random.key(1), num_tasks).reshape(chunks, size),
        "state": {"step": jnp.repeat(age[:, None], size, axis=1), "count": age},
        "common": jnp.broadcast_to(jnp.arange(3.0), (chunks, 3)),
    }
    return Truncated(held, jnp.zeros((), jnp.int32))


@pytest.mark.parametrize(("size", "other"), [(4, 2), (2, 4), (8, 1), (1, 8)])
def test_tasks_are_shared_out_in_other_chunks(size: int, other: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, under_way(8, size), {})
    restored, _ = checkpoints.restore(1, under_way(8, other))
    assert same(restored, under_way(8, other))


def test_chunks_out_of_step_and_other_numbers_of_tasks_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, under_way(8, 4, "several"), {})
    assert int(checkpoints.restore(1, under_way(8, 4))[0].estimator_state["state"]["count"][1]) == 4
    with pytest.raises(UserError, match="on 1 devices, whose chunks of tasks are out of step .* --num-devices 1.$"):
        checkpoints.restore(1, under_way(8, 2))
    with pytest.raises(UserError, match="another architecture"):
        checkpoints.restore(1, under_way(16, 4))


@pytest.mark.parametrize("family", ["logistic_regression", "linear_regression"])
def test_windows_of_tasks_with_data_of_their_own_go_on_on_another_number_of_devices(
    family: str, tmp_path: Path
) -> None:
    def trainer(num_devices: int) -> Trainer:
        return Trainer(
            Experiment(
                tasks=(choice(family, num_examples=8, dim=3, batch_size=4),),
                optimizer=choice("lstm", hidden_size=4, num_layers=1),
                estimator=choice("truncated_backprop"),
                num_tasks=4,
                horizon=6,
                unroll_length=3,
                num_devices=num_devices,
            )
        )

    def tasks(state: TrainState) -> list[np.ndarray]:
        return [np.asarray(leaf).reshape(4, -1) for leaf in jax.tree.leaves(state.estimator_state[0].run.task)]

    checkpoints = Checkpoints(tmp_path)
    saved = trainer(1).init()
    checkpoints.save(1, saved, {})
    state, _ = checkpoints.restore(1, trainer(2).init())
    (run,) = (carried.run for carried in state.estimator_state)
    assert run.state.step.shape == (2, 2)
    for got, wanted in zip(tasks(state), tasks(saved), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("saved_on", "restored_on"), [(1, 2), (2, 1)])
def test_states_move_between_meshes(saved_on: int, restored_on: int, tmp_path: Path) -> None:
    def on(num_devices: int, seed: int) -> State:
        return jax.device_put(make(seed), NamedSharding(task_mesh(2, num_devices), PartitionSpec()))

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, on(saved_on, 1), {})
    state, record = checkpoints.restore(1, on(restored_on, 0))
    assert same(state, make(1)) and record["num_devices"] == saved_on
    assert all(leaf.sharding.num_devices == restored_on for leaf in jax.tree.leaves(state))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make(1), {})
    with pytest.raises(UserError) as caught:
        checkpoints.restore_latest(make(0, size=4))
    text = str(caught.value)
    assert "another architecture" in text and "float32[3, 2] there and float32[4, 2]" in text and "\n" not in text
