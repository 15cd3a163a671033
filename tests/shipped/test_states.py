"""The state of a learned optimizer is saved and restored by the libraries that people save theirs with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from safetensors.flax import load_file, save_file

import metaopt
from metaopt import build_optimizer, choice

PARAMS = {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones(4)}


def learned(name: str) -> Any:
    if name == "networks_rl":
        return metaopt.load(name)
    optimizer = build_optimizer(choice(name))
    return optimizer.bind(optimizer.init(jax.random.key(0)))


def gone_on(tx: Any, params: Any, state: Any, steps: int) -> tuple[Any, Any]:
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", ["networks_rl", "controller"])
def test_a_state_goes_through_orbax_and_safetensors(name: str, tmp_path: Path) -> None:
    tx = learned(name)
    params, state = gone_on(tx, PARAMS, tx.init(PARAMS), 3)
    whole, _ = gone_on(tx, params, state, 3)

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", {"params": params, "state": state})
        checkpointer.wait_until_finished()
        like = jax.tree.map(jnp.zeros_like, {"params": params, "state": tx.init(params)})
        held = checkpointer.restore(tmp_path / "orbax", like)
    leaves = {f"{number:03}": leaf for number, leaf in enumerate(jax.tree.leaves(state))}
    save_file(leaves, tmp_path / "state.safetensors")
    found = load_file(tmp_path / "state.safetensors")
    second = jax.tree.unflatten(jax.tree.structure(tx.init(params)), [found[number] for number in sorted(found)])

    for restored in (held["state"], second):
        again, _ = gone_on(tx, held["params"], restored, 3)
        for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(one, other)
