"""Hand-designed optimizers against their formulas in numpy; their settings as φ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers import adam, adamw, momentum, sgd
from metaopt.registry import OPTIMIZERS
from metaopt.types import Optimizer

STEPS = 5
Array = np.ndarray


def sequences(shape: tuple[int, ...] = (4,)) -> tuple[Array, Array]:
    """(gradients, parameters), [STEPS, ...], of very different sizes; parameters do not follow the steps."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** np.arange(-6, -6 + 2 * shape[0], 2).reshape((-1,) + (1,) * (len(shape) - 1))
    return rng.normal(size=(STEPS, *shape)) * sizes, rng.normal(size=(STEPS, *shape))


def steps(optimizer: Optimizer, gradients: Array, params: Array, values: Any = None, phi: Any = None) -> Array:
    """[STEPS, ...] the updates."""
    tx = optimizer.bind(optimizer.init(jax.random.key(0)) if phi is None else phi)
    given = [jnp.asarray(x, jnp.result_type(float)) for x in (gradients, params)]
    values = jnp.ones(len(gradients)) if values is None else jnp.asarray(values)

    @jax.jit
    def run(gradients: Any, params: Any, values: Any) -> Any:
        def body(state: Any, now: Any) -> Any:
            gradient, params, value = now
            update, state = tx.update(gradient, state, params, value=value)
            return state, update

        return jax.lax.scan(body, tx.init(params[0]), (gradients, params, values))[1]

    return np.asarray(run(*given, values))


# ----- formulas -------------------------------------------------------------------------------------------------------


def momenta(gradients: Array, beta: float) -> tuple[Array, Array]:
    """(m_t, m̂_t), [STEPS, ...]."""
    m, out = np.zeros_like(gradients[0]), []
    for gradient in gradients:
        m = beta * m + (1 - beta) * gradient
        out.append(m)
    correction = 1 - beta ** np.arange(1, STEPS + 1).reshape((-1,) + (1,) * m.ndim)
    return np.stack(out), np.stack(out) / correction


def buffer(gradients: Array, mu: float) -> Array:
    h, out = np.zeros_like(gradients[0]), []
    for gradient in gradients:
        h = mu * h + gradient
        out.append(h)
    return np.stack(out)


def by_adam(g: Array) -> Array:
    return -0.1 * momenta(g, 0.9)[1] / (np.sqrt(momenta(g**2, 0.999)[1]) + 1e-8)


def by_nadamw(g: Array, theta: Array) -> Array:
    t = np.arange(1, STEPS + 1)[:, None]
    ahead = 0.9 * momenta(g, 0.9)[0] / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    return -0.1 * (ahead / (np.sqrt(momenta(g**2, 0.999)[1]) + 1e-8) + 0.01 * theta)


def by_lion(g: Array, theta: Array) -> Array:
    before = np.concatenate([np.zeros_like(g[:1]), momenta(g, 0.99)[0][:-1]])
    return -0.1 * (np.sign(0.9 * before + 0.1 * g) + 0.02 * theta)


def by_adan(g: Array, theta: Array) -> Array:
    change = np.diff(g, axis=0, prepend=g[:1])  # none at the first step
    n = momenta((g + 0.92 * change) ** 2, 0.99)[1]
    ahead = momenta(g, 0.98)[1] + 0.92 * momenta(change, 0.92)[1]
    return -0.1 * (ahead / (np.sqrt(n) + 1e-8) + 0.02 * theta)


FORMULAS: dict[str, tuple[dict[str, Any], Callable[[Array, Array], Array]]] = {
    "sgd": ({}, lambda g, theta: -0.1 * g),
    "momentum": (dict(mu=0.8), lambda g, theta: buffer(-0.1 * g, 0.8)),
    "momentum torch": (dict(mu=0.8, form="torch"), lambda g, theta: -0.1 * buffer(g, 0.8)),
    "nesterov": (dict(mu=0.8), lambda g, theta: -0.1 * (g + 0.8 * buffer(g, 0.8))),
    "adagrad": ({}, lambda g, theta: -0.1 * g / (np.sqrt(np.cumsum(g**2, axis=0)) + 1e-10)),
    "rmsprop": ({}, lambda g, theta: -0.1 * g / (np.sqrt(momenta(g**2, 0.99)[0]) + 1e-8)),
    "adam": ({}, lambda g, theta: by_adam(g)),
    "adamw": ({}, lambda g, theta: by_adam(g) - 0.1 * 0.01 * theta),
    "nadamw": ({}, by_nadamw),
    "lion": (dict(weight_decay=0.02), by_lion),
    "adan": (dict(weight_decay=0.02), by_adan),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_steps_equal_the_formula(name: str, x64: None) -> None:
    options, formula = FORMULAS[name]
    optimizer = OPTIMIZERS[name.split()[0]](learning_rate=0.1, **options)
    gradients, params = sequences()
    np.testing.assert_allclose(steps(optimizer, gradients, params), formula(gradients, params), rtol=2e-5)  # φ: float32


def test_the_two_momenta_differ_under_a_falling_rate(x64: None) -> None:
    gradients, params = sequences()
    rates = 0.1 * (1 + np.arange(STEPS)[:, None]) ** -0.5
    inside = steps(momentum(learning_rate=0.1, mu=0.8, power=0.5), gradients, params)
    outside = steps(momentum(learning_rate=0.1, mu=0.8, power=0.5, form="torch"), gradients, params)
    np.testing.assert_allclose(inside, buffer(-rates * gradients, 0.8), rtol=2e-5)
    np.testing.assert_allclose(outside, -rates * buffer(gradients, 0.8), rtol=2e-5)


def test_muon_steps_along_orthogonal_matrices(x64: None) -> None:
    gradients, params = sequences((2, 3))
    gradients = gradients * np.array([1e6, 1e4])[:, None]
    found = steps(OPTIMIZERS["muon"](learning_rate=0.1, weight_decay=0.02), gradients, params)
    m = momenta(gradients, 0.95)[0]
    t = np.arange(1, STEPS + 1)[:, None, None]
    ahead = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * gradients / (1 - 0.95**t)
    for step, matrix, theta in zip(found, ahead, params, strict=True):
        x = matrix / (np.linalg.norm(matrix) + 1e-8)
        for _ in range(5):  # Newton and Schulz
            a = x @ x.T
            x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
        np.testing.assert_allclose(step, -0.1 * (np.sqrt(3 / 2) * x + 0.02 * theta), rtol=1e-4)
        assert np.all(np.abs(np.linalg.svd(x)[1] - 1) < 0.35)
    # What is no matrix takes NAdam's step.
    vectors, params = sequences()
    flat = steps(OPTIMIZERS["muon"](learning_rate=0.1, weight_decay=0.01), vectors, params)
    np.testing.assert_allclose(flat, by_nadamw(vectors, params), rtol=2e-5)


# ----- settings as φ --------------------------------------------------------------------------------------------------


def test_phi_holds_what_is_asked_for_and_nothing_else() -> None:
    key = jax.random.key(0)
    assert adamw().init(key).keys() == {"learning_rate"}
    chosen = adamw(tunes="beta1, weight_decay", beta1=0.8)
    phi = chosen.init(key)
    assert phi.keys() == chosen.tunable.keys() == {"beta1", "weight_decay"}
    values = {name: float(chosen.tunable[name].forward(value)) for name, value in phi.items()}
    assert values == pytest.approx({"beta1": 0.8, "weight_decay": 0.01}, rel=1e-6)
    everything = {"learning_rate", "beta1", "beta2", "eps", "weight_decay", "knots"}
    assert adamw(tunes="all", schedule="knots").init(key).keys() == everything


def test_a_grid_is_a_vmap_over_phi() -> None:
    optimizer = adam(tunes="all")
    grid = [dict(learning_rate=0.1, beta1=0.5, beta2=0.9, eps=1e-3), dict(learning_rate=0.01, beta1=0.99)]
    phis = [adam(tunes="all", **settings).init(jax.random.key(0)) for settings in grid]
    gradients, params = (jnp.asarray(each, jnp.float32) for each in sequences())

    def update(phi: Any) -> Any:
        tx = optimizer.bind(phi)
        return tx.update(gradients[1], tx.update(gradients[0], tx.init(params[0]), params[0])[1], params[1])[0]

    found = jax.vmap(update)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *phis))
    for row, settings in zip(found, grid, strict=True):
        np.testing.assert_allclose(row, steps(adam(**settings), *sequences())[1], rtol=1e-3)


def test_gradients_in_every_setting(x64: None) -> None:
    optimizer = adamw(tunes="all", eps=0.01, schedule="knots", knots=3, steps=4)
    phi = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), optimizer.init(jax.random.key(0)))
    phi["knots"] = jnp.array([0.0, -1.0, -2.0])
    gradients = np.random.default_rng(1).normal(size=(4, 3)) * np.array([1.0, 0.1, 0.0])  # the last never has one

    @jax.jit
    @jax.value_and_grad
    def total(phi: Any) -> Any:
        tx, params = optimizer.bind(phi), jnp.ones(3)
        state = tx.init(params)
        for gradient in gradients:
            step, state = tx.update(jnp.asarray(gradient), state, params)
            params = params + step
        return jnp.sum(params**2)

    _, slope = total(phi)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(slope))
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size) + 1.0).reshape(leaf.shape), phi)
    for name in phi:
        one = {other: direction[other] * (other == name) for other in phi}
        up, down = (total(jax.tree.map(lambda a, b: a + side * 1e-4 * b, phi, one))[0] for side in (1, -1))  # noqa: B023
        assert float(jnp.vdot(slope[name], direction[name])) == pytest.approx(float(up - down) / 2e-4, rel=1e-4), name
        assert float(jnp.max(jnp.abs(slope[name]))) > 0, name


REFUSED = {
    "'beta3' is unknown.*beta1": lambda: adam(tunes="beta3"),
    "`weight_decay` is 0": lambda: adamw(tunes="weight_decay", weight_decay=0.0),
    r"`beta1` \(1.0\) must be in": lambda: adam(beta1=1.0),
    "`eps` .* at least 0": lambda: adam(eps=-1.0),
    "`learning_rate` .* above 0": lambda: sgd(learning_rate=0.0),
    "`steps` says nothing under schedule=constant": lambda: sgd(steps=5),
    "`power` says nothing under schedule=cosine": lambda: sgd(schedule="cosine", power=0.5),
    "`every` says it all": lambda: sgd(schedule="step", every=2, steps=4),
    "`factor` .* between 0 and 1": lambda: sgd(schedule="step", factor=1.5),
    "`knots` .* at least 2": lambda: sgd(schedule="knots", knots=1),
    "`final` .* in": lambda: sgd(schedule="linear", final=-0.1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_senseless_settings_are_refused_in_one_line(message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        REFUSED[message]()
    assert "\n" not in str(caught.value)


HAND_DESIGNED = [
    name
    for name in OPTIMIZERS
    if "schedule" in OPTIMIZERS.entry(name).factory.__annotations__ and OPTIMIZERS[name]().noise == "none"
]


@pytest.mark.parametrize("name", HAND_DESIGNED)
def test_a_start_without_a_gradient_is_survived(name: str) -> None:
    optimizer = OPTIMIZERS[name]()
    optimizer = optimizer.at_horizon(STEPS) if optimizer.at_horizon else optimizer
    gradients = np.where(np.arange(STEPS)[:, None] < 2, 0.0, sequences()[0])
    found = steps(optimizer, gradients, sequences()[1])
    assert np.isfinite(found).all() and found[-1].any()
