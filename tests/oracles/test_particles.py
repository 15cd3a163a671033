"""Kernels leave a lopsided law as it is, resampling keeps expectations, and health tells the truth."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.oracles import particles
from metaopt.tasks.energy import _draw, _log_density, tuned_mixture

FAMILY = tuned_mixture(target="asymmetric", spread=0.0)
TASK = FAMILY.sample(jax.random.key(0), ())
THETA = jnp.array([0.8, -0.3, 0.0])
LOOK = particles.look(FAMILY.law, THETA, TASK, slopes=True)
KERNELS = {
    "mala": particles.mala,
    "random_walk": particles.random_walk,
    "hmc": partial(particles.hmc, leaps=3),
}
SCHEMES = ["systematic", "stratified", "multinomial", "residual"]


def exact_moments() -> np.ndarray:
    """Means of x and of its squares and product under π_θ, from its components."""
    weights = np.asarray(jax.nn.softmax(THETA))
    means, variances = np.asarray(TASK.means), np.asarray(TASK.widths)[:, None] ** 2
    squares = means**2 + variances
    return weights @ np.concatenate([means, squares, means[:, :1] * means[:, 1:]], axis=1)


def statistics(x: jax.Array) -> jax.Array:
    """[5, N]"""
    return jnp.concatenate([x, x**2, x[:1] * x[1:]])


def drawn(key: jax.Array, number: int) -> jax.Array:
    keys = jax.random.split(key, number)
    return jax.vmap(lambda key: _draw(key, THETA, TASK, ()), out_axes=1)(keys)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_leaves_the_law_as_it_is(name):
    """Of 20,000 exact draws, moments after 15 moves; a lopsided law, on which a sign error does not cancel."""

    @jax.jit
    def run(key):
        start_key, move_key = jax.random.split(key)

        def body(at, key):
            return KERNELS[name](key, at, LOOK, jnp.float32(0.15))

        return jax.lax.scan(body, LOOK(drawn(start_key, 20_000)), jax.random.split(move_key, 15))

    at, accepted = run(jax.random.key(3))
    values = np.asarray(statistics(at.x))
    error = values.std(axis=1) / np.sqrt(values.shape[1])
    np.testing.assert_array_less(np.abs(values.mean(axis=1) - exact_moments()), 4 * error)
    assert 0.3 < accepted.mean() < 0.999
    np.testing.assert_allclose(
        at.energy, -jax.vmap(lambda x: _log_density(THETA, TASK, x), 1)(at.x), rtol=1e-4, atol=1e-4
    )


def test_langevin_without_a_test_does_not_and_its_ratio_is_that_of_two_normals():
    h = jnp.float32(0.2)
    before = LOOK(drawn(jax.random.key(0), 50))
    after = LOOK(particles.langevin_step(jax.random.key(1), before, h))

    def log_normal(x, mean):
        return -jnp.sum((x - mean) ** 2, axis=0) / (4 * h)

    ahead = -before.energy + log_normal(after.x, before.x - h * before.slope)
    back = -after.energy + log_normal(before.x, after.x - h * after.slope)
    np.testing.assert_allclose(particles.langevin_log_ratio(before, after, h), back - ahead, rtol=1e-3, atol=1e-4)

    wide = drawn(jax.random.key(2), 20_000)
    walked = jax.jit(
        lambda x: jax.lax.fori_loop(
            0, 15, lambda i, x: particles.langevin_step(jax.random.fold_in(jax.random.key(5), i), LOOK(x), h), x
        )
    )(wide)
    values = np.asarray(statistics(walked))
    error = values.std(axis=1) / np.sqrt(values.shape[1])
    assert np.abs((values.mean(axis=1) - exact_moments()) / error).max() > 8  # so the test above has power


def test_one_leap_of_hmc_proposes_as_mala_does():
    at = LOOK(drawn(jax.random.key(0), 4000))
    one, other = (
        kernel(jax.random.key(1), at, LOOK, jnp.float32(0.1))
        for kernel in (particles.mala, partial(particles.hmc, leaps=1))
    )
    np.testing.assert_allclose(one[0].x, other[0].x, rtol=1e-4, atol=1e-4)


def test_effective_particles():
    """(Σw)²/Σw² = N/(1 + cv²): N of equal ones, 1 where one has all. The text's N/(1 + 1/W) is another thing."""
    assert particles.effective_sample_size(jnp.full(7, 0.3)) == pytest.approx(7)
    assert particles.effective_sample_size(jnp.eye(7)[2]) == 1
    weights = jax.random.uniform(jax.random.key(0), (100,))
    spread = jnp.std(weights) / jnp.mean(weights)
    assert particles.effective_sample_size(weights) == pytest.approx(float(100 / (1 + spread**2)), rel=1e-5)
    np.testing.assert_allclose(particles.normalised(jnp.array([900.0, 900.0, -jnp.inf])), [0.5, 0.5, 0.0])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resampling_copies_in_proportion(scheme):
    number = 40
    weights = particles.normalised(2 * jax.random.normal(jax.random.key(0), (number,)).at[3].set(-jnp.inf))
    keys = jax.random.split(jax.random.key(1), 4000)
    parents = jax.jit(jax.vmap(lambda key: particles.resample(key, weights, scheme)))(keys)
    assert parents.shape == (4000, number) and parents.dtype == jnp.int32
    assert np.all(np.diff(parents) >= 0) and parents.min() >= 0 and parents.max() < number
    copies = np.asarray(jax.vmap(lambda p: jnp.bincount(p, length=number))(parents))
    expected = number * np.asarray(weights)
    error = copies.std(axis=0) / np.sqrt(len(keys))
    np.testing.assert_array_less(np.abs(copies.mean(axis=0) - expected), 4.5 * error + 1e-3)
    assert copies[:, 3].max() == 0
    if scheme in ("systematic", "residual"):
        assert np.all(copies >= np.floor(expected - 1e-3))
    if scheme == "systematic":
        assert np.all(copies <= np.ceil(expected + 1e-3))
    if scheme == "stratified":
        assert np.all(np.abs(copies - expected) < 2)
    variance = {"multinomial": 1.0, "residual": 0.6, "stratified": 0.5, "systematic": 0.5}[scheme]
    assert copies.var(axis=0).sum() < 1.1 * variance * number


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resampling_one_that_has_all_or_equals(scheme):
    assert np.all(particles.resample(jax.random.key(0), jnp.eye(9)[4], scheme) == 4)
    same = particles.resample(jax.random.key(0), jnp.full(9, 1 / 9), scheme)
    if scheme in ("systematic", "stratified"):
        np.testing.assert_allclose(same, np.arange(9), atol=1)


def test_steps_stay_within_their_bounds():
    assert particles.adapted(jnp.float32(0.1), jnp.bool_(True), 0.01, 0.99) == pytest.approx(0.101)
    assert particles.adapted(jnp.float32(0.1), jnp.bool_(False), 0.01, 0.99) == pytest.approx(0.1 / 1.01)
    assert particles.adapted(jnp.float32(0.985), jnp.bool_(True), 0.01, 0.99) == pytest.approx(0.99)
    assert particles.adapted(jnp.float32(0.01), jnp.bool_(False), 0.01, 0.99) == pytest.approx(0.01)


# ----- a second opinion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_blackjax_moves_alike(name):
    """From the same points with the same step: shares accepted, and means and squares of the moves."""
    blackjax = pytest.importorskip("blackjax", reason="blackjax is not installed")

    def logdensity(x):
        return _log_density(THETA, TASK, x)

    h, number = 0.4, 20_000
    other = (
        blackjax.mala(logdensity, h)
        if name == "mala"
        else blackjax.hmc(logdensity, (2 * h) ** 0.5, jnp.ones(2), num_integration_steps=3)
    )
    x = drawn(jax.random.key(0), number)
    keys = jax.random.split(jax.random.key(1), number)
    states, info = jax.jit(jax.vmap(lambda key, x: other.step(key, other.init(x)), (0, 1)))(keys, x)
    ours, accepted = KERNELS[name](jax.random.key(2), LOOK(x), LOOK, jnp.float32(h))
    theirs = float(jnp.mean(info.is_accepted))
    assert float(accepted) == pytest.approx(theirs, abs=4 * (2 * theirs * (1 - theirs) / number) ** 0.5)
    moves = [np.asarray(statistics(y - x)) for y in (ours.x, states.position.T)]
    error = np.sqrt(sum(move.var(axis=1) for move in moves) / number)
    np.testing.assert_array_less(np.abs(moves[0].mean(axis=1) - moves[1].mean(axis=1)), 4 * error)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_blackjax_resamples_alike(scheme):
    """Means and variances of the numbers of copies."""
    blackjax = pytest.importorskip("blackjax", reason="blackjax is not installed")
    theirs = getattr(blackjax.smc.resampling, scheme)
    weights = particles.normalised(jax.random.normal(jax.random.key(0), (30,)))
    keys = jax.random.split(jax.random.key(1), 8000)
    copies = [
        np.asarray(jax.jit(jax.vmap(lambda key, pick=pick: jnp.bincount(pick(key), length=30)))(keys))
        for pick in (
            lambda key: particles.resample(key, weights, scheme),
            lambda key: theirs(key, weights, 30),
        )
    ]
    error = np.sqrt(sum(each.var(axis=0) for each in copies) / len(keys))
    np.testing.assert_array_less(np.abs(copies[0].mean(axis=0) - copies[1].mean(axis=0)), 4.5 * error + 1e-3)
    np.testing.assert_allclose(copies[0].var(axis=0), copies[1].var(axis=0), rtol=0.15, atol=0.02)
