"""Every optimizer of the registry under jax's other modes, where optax's own pass: the same steps as in plain use."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import flax.core
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from metaopt.optimizers import blocks
from metaopt.optimizers.guard import guard
from metaopt.registry import OPTIMIZERS
from tests.optimizers.test_registry import make
from tests.toys import in_x64

LEARNED = [name for name in (*OPTIMIZERS, "lstm recursive", "lstm per coordinate") if make(name).observe is not None]
# Hand-designed ones are made in one place; these differ in what they do across coordinates.
NAMES = [*LEARNED, "controller", "mlp", "momentum", "adam", "muon", "prodigy", "mechanize_adam", "guarded lstm"]
STEPS = 3


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few columns at a time."""
    monkeypatch.setattr(blocks, "BLOCK", 8)


@functools.cache
def bound(name: str) -> optax.GradientTransformationExtraArgs:
    if name.startswith("guarded "):
        return guard(bound(name.removeprefix("guarded ")))
    optimizer = make(name)
    tx = optimizer.bind(optimizer.init(jax.random.key(1)))
    if optimizer.needs_value:
        return tx._replace(update=functools.partial(tx.update, value=np.float32(1.0)))
    return tx


def tree(dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 6), "b": (4,), "scale": ()}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def slope(params: Any) -> Any:
    return jax.tree.map(lambda leaf: 2 * leaf, params)


def looped(tx: Any, params: Any, wrap: Any = jax.jit, **extra: Any) -> Any:
    """Parameters after a few steps of an ordinary loop."""

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(slope(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    state, step = tx.init(params), wrap(step)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params


def scanned(tx: Any, params: Any) -> Any:
    """The same in one program, `init` in it too."""

    def body(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(slope(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda params: jax.lax.scan(body, (params, tx.init(params)), length=STEPS)[0][0])(params)


@functools.cache
def plain(name: str) -> Any:
    return looped(bound(name), tree())


def kinds(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def same(found: Any, wanted: Any) -> None:
    assert kinds(found) == kinds(wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


# ----- settings -------------------------------------------------------------------------------------------------------

SETTINGS = {
    "x64": in_x64,
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "nan checks": lambda: jax.debug_nans(True),
    "key reuse checks": lambda: jax.debug_key_reuse(True),
    "leak checks": jax.checking_leaks,
    "no jit": jax.disable_jit,
    "precise products": lambda: jax.default_matmul_precision("highest"),
    "custom keys": lambda: jax.enable_custom_prng(True),
    "transfer guard": lambda: jax.transfer_guard("disallow"),
}


# Promotion hangs on each optimizer's own arithmetic; the other settings on what they share.
CASES = [(name, setting) for name in NAMES for setting in ("x64", "rank promotion", "dtype promotion")]
CASES += [("lstm recursive", setting) for setting in SETTINGS if ("lstm recursive", setting) not in CASES]


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_a_setting_changes_no_step(name: str, setting: str) -> None:
    params, wanted = tree(), plain(name)
    with SETTINGS[setting]():
        same(scanned(bound(name), params), wanted)


@pytest.mark.parametrize("setting", ["rbg", "unsafe_rbg", "key reuse checks", "nan checks", "rank promotion"])
def test_step_noise_under_a_setting(setting: str) -> None:
    optimizer = OPTIMIZERS["lstm"](step_rule="recursive", noise="per_coordinate", hidden_size=2, num_layers=1)
    tx, params = optimizer.bind(optimizer.init(jax.random.key(0))), tree()
    with SETTINGS.get(setting, lambda: jax.default_prng_impl(setting))():
        key = jax.random.key(3)
        update = jax.jit(functools.partial(tx.update, explore=True))
        steps, _ = update(params, tx.init(params), params, key=key)
        again, _ = update(params, tx.init(params), params, key=jax.random.clone(key))
    same(steps, again)
    assert np.isfinite(steps["w"]).all()


# ----- devices --------------------------------------------------------------------------------------------------------


def explicit(params: Any) -> tuple[Any, Any]:
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))
    specs = {"w": P("d", None), "b": P("d"), "scale": P()}
    return mesh, jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), params, specs)


def with_nnx(tx: Any, params: Any) -> Any:
    class Model(nnx.Module):
        def __init__(self) -> None:
            for name, leaf in params.items():
                setattr(self, name, nnx.Param(leaf))

    model = Model()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        gradients = nnx.grad(lambda model: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(nnx.state(model))))(model)
        optimizer.update(model, gradients)

    for _ in range(STEPS):
        step(model, optimizer)
    return {name: getattr(model, name)[...] for name in params}


WAYS = {"loop": looped, "scan": scanned, "nnx": with_nnx, "without jit": lambda *args: looped(*args, lambda f: f)}


def sharded(name: str, way: str, *, context: bool = True) -> None:
    (mesh, params), tx = explicit(tree()), bound(name)  # whose φ lies on no mesh
    with jax.set_mesh(mesh) if context else contextlib.nullcontext():
        found = WAYS[way](tx, params)
    same(found, plain(name))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


@pytest.mark.parametrize("way", ["scan", "nnx"])
@pytest.mark.parametrize("name", NAMES)
def test_explicit_sharding(name: str, way: str) -> None:
    sharded(name, way)


@pytest.mark.parametrize("way", WAYS)
def test_explicit_sharding_in_blocks(in_blocks: None, way: str) -> None:
    sharded("lstm", way)


def test_explicit_sharding_that_the_arrays_alone_know() -> None:
    sharded("lstm", "loop", context=False)


def test_the_state_is_sharded_over_the_devices_of_the_parameters(in_blocks: None) -> None:
    mesh, params = explicit(tree())
    with jax.set_mesh(mesh):
        optimizer = make("lstm")  # bound where the mesh is known
        tx = optimizer.bind(optimizer.init(jax.random.key(1)))
        before = tx.init(params)
        after = jax.jit(tx.update)(params, before, params)[1]
    for state in (before, after):
        assert state.cells[0].c.sharding.spec == P(None, None, "d") and state.cells[0].c.shape[-1] % 2 == 0
        assert state.features[0].first.sharding.spec == P(None, "d")


@pytest.mark.parametrize(
    ("name", "blocked"),
    [*((name, False) for name in [*LEARNED, "controller", "guarded lstm"]), ("lstm", True), ("rnnprop", True)],
)
def test_one_optimizer_a_device_inside_shard_map(name: str, blocked: bool, request: pytest.FixtureRequest) -> None:
    if blocked:
        request.getfixturevalue("in_blocks")
    params, tx = tree(), bound(name)
    other = jax.tree.map(lambda leaf: 1 + leaf, params)
    wanted = jax.tree.map(lambda *leaves: jnp.stack(leaves), plain(name), looped(tx, other))
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))

    def local(params: Any) -> Any:
        alone = scanned(tx, jax.tree.map(lambda leaf: leaf[0], params))
        return jax.tree.map(lambda leaf: leaf[None], alone)

    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, other)
    same(jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("d"), out_specs=P("d")))(both), wanted)


@pytest.mark.parametrize("step_rule", ["recursive", "direct"])
def test_inside_shard_map_keys_alone_may_vary(step_rule: str) -> None:
    optimizer = OPTIMIZERS["lstm"](step_rule=step_rule, noise="per_coordinate", hidden_size=2, num_layers=1)
    tx, params = optimizer.bind(optimizer.init(jax.random.key(0))), tree()
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))

    def local(params: Any, keys: Any) -> Any:
        return tx.update(params, tx.init(params), params, key=keys[0], explore=True)[0]["b"]

    steps = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d")))
    one, two = steps(params, jax.random.split(jax.random.key(0))).reshape(2, -1)
    assert not np.allclose(one, two)


# ----- parameters of every kind ---------------------------------------------------------------------------------------

TREES = {
    "no leaves": lambda: {},
    "a scalar": lambda: jnp.float32(0.3),
    "no coordinates": lambda: {"w": jnp.zeros((0, 3))},
    "one leaf without any": lambda: {"e": jnp.zeros((0, 3)), **tree()},
    "none and masked": lambda: {"n": None, "m": optax.MaskedNode(), **tree()},
    "frozen": lambda: flax.core.freeze(tree()),
    "float16": lambda: tree(jnp.float16),
    "complex": lambda: jax.tree.map(lambda leaf: leaf + 1j * (1 - leaf), tree()),
}


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize(
    "name", ["lstm recursive", "lstm per coordinate", "rnnprop", "controller with a network", "adam", "guarded lstm"]
)
def test_trees(name: str, kind: str) -> None:
    tx, params = bound(name), TREES[kind]()
    with jax.debug_nans(True):
        found = scanned(tx, params)
    assert kinds(found) == kinds(params)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(found))
    if kind == "complex" and name != "adam":
        same(found, scanned(optax.contrib.split_real_and_imaginary(tx), params))


@pytest.mark.parametrize("name", [*LEARNED, "controller", "guarded lstm"])
def test_gradients_without_digits_are_refused(name: str) -> None:
    tx, params = bound(name), {"w": jnp.ones(2), "n": jnp.arange(3)}
    state = tx.init({"w": jnp.ones(2)})
    for gradient in (params, {**params, "n": np.zeros(3, jax.dtypes.float0)}):
        with pytest.raises(ValueError, match=r"\['n'\] is of type .* optax.masked"):
            tx.update(gradient, state)


@pytest.mark.parametrize("name", ["lstm recursive", "rnnprop", "controller", "adam", "guarded lstm"])
def test_shapes_vmap_and_donation(name: str) -> None:
    tx, params = bound(name), tree()
    assert kinds(jax.eval_shape(tx.init, params)) == kinds(tx.init(params))
    same(looped(tx, params, lambda step: jax.jit(step, donate_argnums=1)), plain(name))
    one = jax.tree.map(lambda leaf: leaf[None], params)
    same(jax.vmap(lambda params: scanned(tx, params))(one), jax.tree.map(lambda leaf: leaf[None], plain(name)))
