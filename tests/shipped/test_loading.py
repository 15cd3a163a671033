from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metaopt
from metaopt.choices import choice
from metaopt.errors import UserError
from metaopt.experiment import Experiment, build_optimizer
from metaopt.shipped import loading as pretrained
from metaopt.shipped.loading import find_optimizer, save_optimizer

PARAMS: Any = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2), "b": jnp.array(0.5), "h": jnp.ones((2,), jnp.bfloat16)}


def experiment(**options: object) -> Experiment:
    return Experiment(
        tasks=(choice("quadratic"),),
        optimizer=choice("lstm", hidden_size=3, **options),
        estimator=choice("truncated_backprop"),
    )


def saved(path: Path, described: Experiment) -> dict:
    meta_params = build_optimizer(described.optimizer).init(jax.random.key(1))
    save_optimizer(path, meta_params, described, {"meta_step": 7})
    return meta_params


def test_a_file_gives_back_the_same_optimizer(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    meta_params = saved(path, experiment())
    trained = find_optimizer(path)
    assert trained.card == {"meta_step": 7} and trained.experiment == experiment()
    assert jax.tree.structure(trained.meta_params) == jax.tree.structure(meta_params)
    assert all(map(np.array_equal, jax.tree.leaves(trained.meta_params), jax.tree.leaves(meta_params)))
    bound = build_optimizer(experiment().optimizer).bind(meta_params)
    loaded = metaopt.load(path)
    one, _ = bound.update(PARAMS, bound.init(PARAMS), PARAMS)
    other, _ = loaded.update(PARAMS, loaded.init(PARAMS), PARAMS)
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_files_are_deterministic(tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors", experiment())
    saved(tmp_path / "b.safetensors", experiment())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_loaded_optimizer_drops_into_an_optax_loop(finished: Path) -> None:
    tx = metaopt.load(finished)
    params, state = PARAMS, tx.init(PARAMS)

    @jax.jit
    def step(params, state):
        gradient = jax.tree.map(lambda leaf: 2 * leaf, params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), PARAMS
    )
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(params))


def test_noise_needs_a_key_and_an_optimizer_that_has_some(tmp_path: Path) -> None:
    for quiet in (experiment(noise="none"), experiment(noise="per_step")):  # back-propagation never draws any
        saved(tmp_path / "quiet.safetensors", quiet)
        with pytest.raises(UserError, match="without step noise"):
            metaopt.load(tmp_path / "quiet.safetensors", noise=True)
    noisy = dataclasses.replace(experiment(noise="per_step"), estimator=choice("reparameterised"))
    saved(tmp_path / "noisy.safetensors", noisy)
    tx = metaopt.load(tmp_path / "noisy.safetensors", noise=True)
    state = tx.init(PARAMS)

    def update(seed: int) -> Any:
        steps: Any = tx.update(PARAMS, state, PARAMS, key=jax.random.key(seed))[0]
        return steps["w"]

    with pytest.raises(ValueError, match="key=step_key"):
        tx.update(PARAMS, state, PARAMS)
    one, other = (update(seed) for seed in (0, 1))
    assert not np.allclose(one, other)


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="or .safetensors file nowhere; .* 'nowhere' is unknown. Known: networks_bp"):
        metaopt.load("nowhere")
    with pytest.raises(UserError, match="is not a run folder"):
        metaopt.load(tmp_path)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="is no trained optimizer"):
        metaopt.load(tmp_path / "junk.safetensors")


def test_phi_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    meta_params = build_optimizer(choice("lstm", hidden_size=4)).init(jax.random.key(0))
    save_optimizer(path, meta_params, experiment(), {})
    with pytest.raises(UserError, match="is of another architecture: .* there and .* in lstm:hidden_size=3"):
        metaopt.load(path)


def test_shipped_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path)
    assert metaopt.pretrained() == []
    saved(tmp_path / "digits.safetensors", experiment())
    assert metaopt.pretrained() == ["digits"]
    assert metaopt.load("digits") is not None
    with pytest.raises(UserError, match="did you mean 'digits'"):
        metaopt.load("digts")


def test_a_hand_designed_optimizer_by_name_and_one_that_goes_by_the_horizon(tmp_path: Path) -> None:
    def steps(tx: Any) -> np.ndarray:
        state, found = tx.init(jnp.zeros(2)), []
        for _ in range(4):
            step, state = tx.update(jnp.ones(2), state, jnp.zeros(2))
            found.append(step[0])
        return np.stack(found)

    np.testing.assert_allclose(steps(metaopt.load("sgd:learning_rate=0.5", horizon=3)), -0.5)
    falling = "sgd:schedule=linear,learning_rate=0.5"
    np.testing.assert_allclose(steps(metaopt.load(falling, horizon=4)), [-0.5, -0.375, -0.25, -0.125])
    np.testing.assert_allclose(steps(metaopt.load(f"{falling},steps=2")), [-0.5, -0.25, 0, 0])
    trained = dataclasses.replace(experiment(), optimizer=choice("sgd", schedule="linear", learning_rate=0.5))
    saved(tmp_path / "mine.safetensors", trained)
    np.testing.assert_allclose(
        steps(metaopt.load(tmp_path / "mine.safetensors", horizon=2))[:, None], [[-0.5], [-0.25], [0], [0]]
    )
    for name in (falling, tmp_path / "mine.safetensors", "simulated_annealing"):
        with pytest.raises(UserError, match=r"goes by the length of the run; say how many.*load\(..., horizon=N\)"):
            metaopt.load(name)
    with pytest.raises(UserError, match="`horizon` .0. must be at least 1"):
        metaopt.load(falling, horizon=0)
    with pytest.raises(UserError, match="lstm is nothing before it is trained"):
        metaopt.load("lstm")
    with pytest.raises(UserError, match="adam has no parameters for evaluation apart"):
        pretrained.eval_params("adam")
    judged = pretrained.eval_params("schedule_free_adamw")
    tx = metaopt.load("schedule_free_adamw")
    np.testing.assert_allclose(judged(tx.init(jnp.ones(2)), jnp.ones(2)), 1.0, rtol=1e-6)
