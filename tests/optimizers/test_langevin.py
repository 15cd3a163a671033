"""Langevin dynamics against what is known of it: stationary laws, escapes, limits, keys and refusals."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.linalg import solve_discrete_lyapunov

from metaopt.inner.binding import bind_tasks
from metaopt.optimizers import langevin as lv
from metaopt.registry import OPTIMIZERS
from metaopt.tasks import multimodal
from tests.optimizers.test_registry import make

DRAWING = [name for name, make in OPTIMIZERS.items() if make().noise == "always"]


@pytest.fixture(autouse=True)
def optimised():
    """These are loops of many cheap steps: compiled as users' are."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def chains(tx, gradient, start, length, seed=0, record=None):
    run = jax.jit(
        lambda start, key: lv.run_chains(tx, lambda x, _: gradient(x), start, key, length=length, record=record)
    )
    last, records = run(start, jax.random.key(seed))
    return np.asarray(last, np.float64), records


def well(x):
    return 4 * x * (x**2 - 1)


# ----- stationary laws ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("h", [0.5, 0.1])
def test_the_variance_on_a_parabola_is_that_of_the_step(h):
    kelvin, count = 0.7, 40_000
    x, _ = chains(lv.langevin(h, kelvin), lambda x: x, jnp.zeros(count), int(20 / h))
    expected = kelvin / (1 - h / 2)
    assert abs(x.var() - expected) < 4 * expected * np.sqrt(2 / count)
    assert abs(x.var() - kelvin) > 4 * kelvin * np.sqrt(2 / count)  # and not that of the continuous process
    assert abs(x.mean()) < 4 * np.sqrt(expected / count)


def test_the_way_there_is_that_of_ornstein_and_uhlenbeck():
    h, kelvin, count, length = 0.1, 0.5, 20_000, 30
    moments = lambda x: jnp.stack([x.mean(), x.var()])  # noqa: E731
    _, found = chains(lv.langevin(h, kelvin), lambda x: x, jnp.full(count, 2.0), length, record=moments)
    n = np.arange(1, length + 1)
    variance = kelvin / (1 - h / 2) * (1 - (1 - h) ** (2 * n))
    assert np.all(np.abs(found[:, 0] - 2 * (1 - h) ** n) < 4 * np.sqrt(variance / count))
    assert np.all(np.abs(found[:, 1] - variance) < 4 * variance * np.sqrt(2 / count))


def boltzmann_bins(kelvin, bins):
    """Inner edges of equally probable bins of exp(-f/T) on the double well."""
    grid = np.linspace(-3, 3, 200_001)
    cumulative = np.cumsum(np.exp(-((grid**2 - 1) ** 2) / kelvin))
    return np.interp(np.arange(1, bins) / bins, cumulative / cumulative[-1], grid)


def noncentrality(h, kelvin, edges, count):
    """Of the χ² statistic, from the stationary law of the chain on a grid, by its transition matrix."""
    grid = np.linspace(-2.8, 2.8, 701)
    mean = grid - h * well(grid)
    kernel = np.exp(-((grid[None] - mean[:, None]) ** 2) / (4 * h * kelvin))
    kernel /= kernel.sum(1, keepdims=True)
    law = np.linalg.matrix_power(kernel, 2**14)[350]
    shares = np.histogram(grid, [-9, *edges, 9], weights=law)[0]
    # The grid's own cells are split at the edges in the same way for the law that is asked for.
    even = np.histogram(grid, [-9, *edges, 9], weights=np.exp(-((grid**2 - 1) ** 2) / kelvin))[0]
    return count * np.sum((shares - even / even.sum()) ** 2) * len(shares)


def test_boltzmann_on_the_double_well_at_a_small_step_and_not_at_a_larger_one():
    """χ² of 10,000 chains in 20 equally probable bins, level 0.01; the law of the chain gives the test's power."""
    kelvin, count, edges = 0.5, 10_000, boltzmann_bins(0.5, 20)
    start = jnp.where(jnp.arange(count) % 2 == 0, 1.0, -1.0)
    found = {}
    for h in (0.01, 0.03):
        x, _ = chains(lv.langevin(h, kelvin), well, start, int(20 / h), seed=1)
        counts = np.histogram(x, [-9, *edges, 9])[0]
        found[h] = stats.chisquare(counts).pvalue
    critical = stats.chi2.ppf(0.99, 19)
    power = {h: stats.ncx2.sf(critical, 19, noncentrality(h, kelvin, edges, count)) for h in found}
    assert found[0.01] > 0.01 > found[0.03], (found, power)
    assert power[0.03] > 0.9 and power[0.01] < 0.12


def inertial_moments(h, m, gamma, kelvin):
    """The stationary covariance of (x, v) on f = x²/2, of the step's own linear recursion."""
    k = gamma / m
    c = np.exp(-k * h)
    a = np.array([[1 - (h - (1 - c) / k) / gamma, (1 - c) / k], [-(1 - c) / gamma, c]])
    p = 2 * k * h - 3 + 4 * c - c**2
    noise = kelvin / m * np.array([[p / k**2, (1 - c) ** 2 / k], [(1 - c) ** 2 / k, 1 - c**2]])
    return solve_discrete_lyapunov(a, noise)


@pytest.mark.parametrize(("h", "mass", "friction"), [(0.3, 0.5, 1.0), (0.05, 2.0, 1.5), (0.2, 0.01, 1.0)])
def test_stationary_moments_with_mass(h, mass, friction):
    kelvin, count = 0.7, 40_000
    tx = lv.inertial_langevin(h, kelvin, mass=mass, friction=friction)

    @jax.jit
    def run(key):
        def body(carry, step):
            x, state = carry
            updates, state = tx.update(x, state, key=jax.random.fold_in(key, step))
            return (x + updates, state), None

        start = jnp.zeros(count)
        return jax.lax.scan(body, (start, tx.init(start)), jnp.arange(int(30 / h)))[0]

    x, state = run(jax.random.key(0))
    expected = inertial_moments(h, mass, friction, kelvin)
    found = np.cov(np.asarray(x, np.float64), np.asarray(state.velocity, np.float64))
    sizes = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.all(np.abs(found - expected) < 4 * sizes * np.sqrt(2 / count))
    exact = inertial_moments(1e-3, mass, friction, kelvin)
    np.testing.assert_allclose(np.diag(exact), [kelvin, kelvin / mass], rtol=0.12)  # as h → 0: T and T/m


def test_without_mass_the_steps_become_those_without():
    """With the same key the same numbers, up to the order of √m, which is that of m x'."""
    ends = {}
    start = jnp.linspace(-1.5, 1.5, 64)
    for mass in (1e-4, 1e-6, 1e-8):
        ends[mass] = chains(lv.inertial_langevin(0.02, 0.3, mass=mass), well, start, 50)[0]
    overdamped = chains(lv.langevin(0.02, 0.3), well, start, 50)[0]
    errors = [np.abs(end - overdamped).max() for end in ends.values()]
    assert errors[2] < 5e-3 and 3 < errors[1] / errors[2] < 30 and errors[1] < errors[0]


def test_the_position_spreads_alike_on_both_sides_of_the_series():
    u = np.geomspace(1e-3, 30, 200)
    exact = 2 * u - 3 + 4 * np.exp(-u) - np.exp(-2 * u)
    large = u > 0.02  # below, float64 has no digits either: there the first terms
    expected = np.where(large, exact, u**3 * (2 / 3 - u / 2 + 7 / 30 * u**2))
    np.testing.assert_allclose(lv._squared_spread(jnp.asarray(u, jnp.float32)), expected, rtol=2e-4)


def test_a_preconditioner_leaves_the_law_and_evens_the_time():
    """Two curvatures, 1 and 100: both settle at T/curvature, V being slower than θ, within the bias of step and Γ."""
    curvature = jnp.array([1.0, 100.0])
    tx = lv.preconditioned_sgld(5e-3, 0.5, decay=0.999)
    x, _ = chains(tx, lambda x: curvature * x, jnp.ones((4000, 2)), 5000)
    np.testing.assert_allclose(x.var(0) * np.array([1.0, 100.0]) / 0.5, 1.0, atol=0.15)


# ----- finding the global minimum -------------------------------------------------------------------------------------


def share(inside, expected):
    """Whether a share expected within [low, high] is compatible, at 99.9%, with the successes seen."""
    interval = stats.binomtest(int(inside.sum()), inside.size).proportion_ci(0.999)
    return interval.low <= expected[1] and interval.high >= expected[0], inside.mean()


def test_escape_from_the_wrong_well_by_the_constant_of_the_schedule():
    """50,000 steps at h = .02 from the wrong well, .717 deep. 500 chains tell .14 from .25 and .99 from .96."""
    tilt, depth = 0.3, 0.717
    slope = lambda x: well(x) + tilt  # noqa: E731
    start = jnp.full(500, 0.96)
    for constant, expected in ((0.0, (0.0, 0.0)), (2 * depth, (0.985, 0.995)), (depth, (0.12, 0.16))):
        kelvin = lv.falling_temperature("log", constant)
        x, _ = chains(lv.langevin(0.02, kelvin), slope, start, 50_000, seed=2)
        fits, found = share(x < 0.0752, expected)
        assert fits, (constant, found)


def test_ackley_from_anywhere():
    """300 chains in two dimensions: descent finds the cell it starts in, 1 of 100; a slow log schedule the global."""
    family = multimodal.ackley()
    keys = jax.random.split(jax.random.key(0), 300)
    task = family.sample(keys[0], ())
    start = jax.vmap(lambda key: family.init(key, task))(keys)
    slope = jax.vmap(jax.grad(lambda x: family.loss(x, task, ())))
    for kelvin, expected in ((0.0, (0.005, 0.02)), (lv.falling_temperature("log", 2.0), (0.98, 1.0))):
        x, _ = chains(lv.langevin(0.01, kelvin), slope, start, 10_000)
        inside = np.asarray(jax.vmap(lambda x: family.metrics(x, task, ())["global"])(jnp.asarray(x, jnp.float32)))
        fits, found = share(inside, expected)
        assert fits, found


# ----- schedules, keys, refusals --------------------------------------------------------------------------------------


def test_temperature_schedules_by_hand():
    n = np.arange(0, 7)
    at = lambda *args, **options: np.array([float(lv.falling_temperature(*args, **options)(jnp.int32(i))) for i in n])  # noqa: E731
    part = np.minimum(n, 5) / 5
    np.testing.assert_allclose(at("constant", 3.0), 3.0)
    np.testing.assert_allclose(at("log", 3.0), 3 / np.log(n + 2), rtol=1e-6)
    np.testing.assert_allclose(at("geometric", 4.0, end=0.25, steps=5), 4 * (1 / 16) ** part, rtol=1e-5)
    np.testing.assert_allclose(at("linear", 4.0, end=1.0, steps=5), 4 - 3 * part, rtol=1e-6)
    np.testing.assert_allclose(at("polynomial", 4.0, steps=5, power=3.0), 4 * (1 - part) ** 3, atol=1e-6)


def test_steps_by_hand_in_the_convention_of_the_mean():
    """Of f a mean over N: θ - h ∇f + √(2hT/N) ξ; preconditioned, both with G from V = 0."""
    g, key = jnp.array([0.5, -2.0, 0.0]), jax.random.key(3)
    xi = np.asarray(jax.random.normal(key, (3,)))
    found, state = lv.sgld(0.1, 2.0, num_examples=50).update(g, lv.LangevinState(jnp.int32(4)), key=key)
    np.testing.assert_allclose(found, -0.1 * g + np.sqrt(2 * 0.1 * 2.0 / 50) * xi, rtol=1e-5)
    assert state.count == 5
    tx = lv.preconditioned_sgld(0.1, 2.0, num_examples=50, decay=0.9, eps=0.1)
    scale = 1 / (0.1 + np.sqrt(0.1 * np.asarray(g) ** 2))
    found, _ = tx.update(g, tx.init(g), key=key)
    np.testing.assert_allclose(found, -0.1 * scale * g + np.sqrt(2 * 0.1 * scale * 2.0 / 50) * xi, rtol=1e-4)


@pytest.mark.parametrize("name", DRAWING)
def test_every_task_has_noise_of_its_own_and_a_key_decides_it(name):
    optimizer = make(name)
    tx = bind_tasks(optimizer, optimizer.init(jax.random.key(0)))
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((3, 4))}
    slope, state = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    keys = jax.random.split(jax.random.key(1), 3)
    moves, again = (tx.update(slope, state, params, key=keys, value=jnp.ones(3))[0] for _ in range(2))
    other = tx.update(slope, state, params, key=jax.random.split(jax.random.key(2), 3), value=jnp.ones(3))[0]
    rows = np.concatenate([moves["a"], moves["b"], other["a"], other["b"]])
    assert len(np.unique(rows, axis=0)) == 12  # tasks, leaves and keys all differ
    np.testing.assert_array_equal(moves["a"], again["a"])


@pytest.mark.parametrize("name", DRAWING)
def test_without_a_key_it_says_so(name):
    optimizer = make(name)
    tx = optimizer.bind(optimizer.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"draws noise at every step; call `update\(..., key=\)`"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


def test_without_temperature_it_is_descent_and_has_a_slope_in_the_rate():
    def moved(rate):
        tx = lv.langevin(rate, 0.0)
        return jnp.sum(tx.update(jnp.ones(2), tx.init(jnp.ones(2)), key=jax.random.key(0))[0])

    np.testing.assert_allclose(jax.value_and_grad(moved)(0.1), (-0.2, -2.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (functools.partial(lv.langevin, 0.1, -1.0), r"`temperature` \(-1.0\) must be at least 0"),
        (functools.partial(lv.inertial_langevin, 0.1, mass=0.0), r"`mass` \(0.0\) must be above 0"),
        (functools.partial(lv.sgld, 0.1, num_examples=0), "`num_examples` is 0"),
        (functools.partial(lv.preconditioned_sgld, 0.1, decay=1.0), r"`decay` \(1.0\)"),
        (functools.partial(lv.falling_temperature, "cosine"), "'cosine'; give one of constant, log, geometric"),
        (functools.partial(lv.falling_temperature, "geometric", 1.0), "has no ratio; give `temperature` and `end`"),
        (functools.partial(lv.falling_temperature, "linear", 1.0, end=-0.1), r"`end` \(-0.1\)"),
        (functools.partial(lv.falling_temperature, "linear", steps=0), "`steps` is 0"),
        *((functools.partial(OPTIMIZERS[name], temperature=-1.0), "must be at least 0") for name in DRAWING),
        *((functools.partial(OPTIMIZERS[name], learning_rate=0.0), "must be above 0") for name in DRAWING),
    ],
)
def test_refuses_with_a_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()
