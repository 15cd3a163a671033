from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.experiment import UserError
from metaopt.runs.checkpoints import Checkpoints


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


def same(one: State, other: State) -> bool:
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


def test_the_latest_three_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 7):
        checkpoints.save(step, make(step), {}, best_step=1 if step < 4 else 2 if step == 4 else 4)
    assert checkpoints.steps == [4, 5, 6]
    for step in range(7, 10):
        checkpoints.save(step, make(step), {}, best_step=4)
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


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make(1), {})
    with pytest.raises(UserError) as caught:
        checkpoints.restore_latest(make(0, size=4))
    text = str(caught.value)
    assert "another architecture" in text and "float32[3, 2] there and float32[4, 2]" in text and "\n" not in text
