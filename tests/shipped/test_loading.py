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
from metaopt.cli.inspecting import find
from metaopt.errors import UserError
from metaopt.experiment import Experiment, build_optimizer
from metaopt.runs import optimizer_file
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
    with pytest.raises(UserError, match="file nowhere; .* 'nowhere' is unknown. Known: controller, lstm_policy"):
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
    monkeypatch.setattr(optimizer_file, "SHIPPED", tmp_path)
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
    for wrong in ("5", 5.0):
        with pytest.raises(UserError, match=f"`horizon` is {wrong!r}; give a whole number"):
            metaopt.load(falling, horizon=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="`name_or_path` is a list; give one name or path"):
        metaopt.load([falling])  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="lstm is nothing before it is trained"):
        metaopt.load("lstm")
    with pytest.raises(UserError, match="adam has no parameters for evaluation apart"):
        pretrained.eval_params("adam")
    judged = pretrained.eval_params("schedule_free_adamw")
    tx = metaopt.load("schedule_free_adamw")
    np.testing.assert_allclose(judged(tx.init(jnp.ones(2)), jnp.ones(2)), 1.0, rtol=1e-6)


# ----- knobs ----------------------------------------------------------------------------------------------------------


def after(tx: Any, steps: int = 1, params: Any = None, gradient: Any = None, **extra: Any) -> Any:
    """Parameters after steps of one gradient."""
    params = PARAMS if params is None else params
    gradient = jax.tree.map(jnp.ones_like, params) if gradient is None else gradient
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(gradient, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params


def test_multiplier_and_decay_are_as_documented() -> None:
    theta, g = PARAMS["w"], -0.5
    for multiplier, decay in ((1.0, 0.0), (0.1, 0.0), (1.0, 0.2), (0.1, 0.2), (0, 0.2)):
        tx = metaopt.load("sgd:learning_rate=0.5", learning_rate_multiplier=multiplier, weight_decay=decay)
        wanted = theta * (1 - multiplier * decay) + multiplier * g
        np.testing.assert_allclose(after(tx)["w"], wanted, rtol=1e-6, err_msg=f"{multiplier}, {decay}")
    falling = metaopt.load("sgd:learning_rate=0.5", learning_rate_multiplier=optax.linear_schedule(1.0, 0.0, 2))
    np.testing.assert_allclose(after(falling, 4)["w"], theta - 0.5 * (1 + 0.5), rtol=1e-6)


@pytest.mark.parametrize(
    "mask",
    [{"w": True, "b": False, "h": False}, lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)],
    ids=["tree", "callable"],
)
def test_the_mask_is_that_of_adamw(mask: Any) -> None:
    found = after(metaopt.load("adam:learning_rate=0.1", weight_decay=0.02, mask=mask), 3)
    wanted = after(optax.adamw(0.1, weight_decay=0.2, mask=mask), 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)


def test_knobs_that_say_nothing_leave_the_transformation_as_it_is() -> None:
    plain, same = metaopt.load("networks_rl"), metaopt.load("networks_rl", learning_rate_multiplier=1, weight_decay=0)
    assert jax.tree.structure(plain.init(PARAMS)) == jax.tree.structure(same.init(PARAMS))


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"learning_rate_multiplier": -1.0}, "`learning_rate_multiplier` .-1.0. must be at least 0 and finite"),
        ({"learning_rate_multiplier": float("nan")}, "must be at least 0 and finite"),
        ({"learning_rate_multiplier": "fast"}, "is a str; give a number or a schedule, step -> factor"),
        ({"learning_rate_multiplier": jnp.ones(3)}, "give a number or a schedule"),
        ({"weight_decay": 1.0}, "`weight_decay` .1.0. must be at least 0 and below 1"),
        ({"weight_decay": lambda step: 0.1}, "`weight_decay` is a function; give a number[.]"),
        ({"mask": True}, "give a `weight_decay` above 0 with it"),
    ],
)
def test_bad_knobs_are_one_line(knobs: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        metaopt.load("sgd", **knobs)
    assert "\n" not in str(error.value)


KNOBS: Any = {"learning_rate_multiplier": 0.5, "weight_decay": 0.01}


@pytest.mark.parametrize(("name", "guard"), [("networks_rl", False), ("adam", True)])
def test_everything_of_optax_stands_around_it(name: str, guard: bool) -> None:
    tx = metaopt.load(name, guard=guard, **KNOBS)
    plain = metaopt.load(name)
    one = jax.tree.map(lambda a, b: 0.5 * (a - b - 0.01 * b), after(plain), PARAMS)

    def same(found: Any, steps: Any = one) -> None:
        for name, atol in (("w", 1e-6), ("h", 8e-3)):  # h is bfloat16, and 1
            moved = np.asarray(found[name] - PARAMS[name], np.float32)
            np.testing.assert_allclose(moved, np.asarray(steps[name], np.float32), rtol=1e-4, atol=atol)

    same(after(tx))
    same(after(tx, value=jnp.float32(1.0)))
    same(after(optax.chain(optax.clip(1.0), tx)))
    same(after(optax.MultiSteps(tx, 2), 2))
    injected = optax.inject_hyperparams(metaopt.load)(name, guard=guard, **KNOBS)
    same(after(injected))
    state = injected.init(PARAMS)
    state.hyperparams["learning_rate_multiplier"] = jnp.zeros(())
    assert not jax.jit(injected.update)(PARAMS, state, PARAMS)[0]["w"].any()
    alone = after(optax.masked(tx, {"w": True, "b": False, "h": False}))
    np.testing.assert_allclose(alone["b"], 1.5)  # another's gradient, as optax.masked leaves it
    assert float(jnp.max(jnp.abs(alone["w"] - PARAMS["w"]))) < 0.5
    parts = optax.multi_transform({"on": tx, "off": optax.set_to_zero()}, {"w": "on", "b": "off", "h": "off"})
    np.testing.assert_array_equal(after(parts)["b"], PARAMS["b"])
    np.testing.assert_allclose(after(parts)["w"], alone["w"], rtol=1e-6)


@pytest.mark.parametrize("words", ["networks_rl:guard=true", "adam:learning_rate=0.1,guard=true", "optax:sgd:0"])
def test_a_guard_by_name(words: str) -> None:
    if words.startswith("optax"):
        words = "optax:sgd:learning_rate=0.1,guard=true"
    name, entry, _ = find(words)
    assert name == words
    tx = entry if isinstance(entry, optax.GradientTransformation) else entry[0].bind(entry[1])
    assert optax.tree.get(tx.init(PARAMS), "steps_guarded") == 0
    with pytest.raises(UserError, match="unknown|nothing to inspect"):
        find("guard=true")
    if not words.startswith("optax"):
        for guard in (False, True):  # once, whichever says it
            assert optax.tree.get(metaopt.load(words, guard=guard).init(PARAMS), "steps_guarded") == 0


def test_a_guard_by_name_is_seen_through_where_parameters_are_judged() -> None:
    words = "schedule_free_adamw:guard=true"
    state = metaopt.load(words).init(PARAMS)
    judged, bare = pretrained.eval_params(words), pretrained.eval_params("schedule_free_adamw")
    jax.tree.map(np.testing.assert_array_equal, judged(state, PARAMS), bare(state.inner, PARAMS))
