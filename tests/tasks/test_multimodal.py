"""Functions of many minima: their minima where they are said to be, starts, shifts, rotations, and P(global)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.choices import Choice, parse_choice
from metaopt.errors import UserError
from metaopt.evaluation import evaluate_run_on
from metaopt.evaluation.statistics import wilson_interval
from metaopt.experiment import build_family
from metaopt.registry import OPTIMIZERS, TASKS
from metaopt.runs import evaluations
from metaopt.tasks import multimodal

LOWEST = {  # a coordinate of the global minimum
    "double_well": 1.0,
    "tilted_double_well": -1.0355788,
    "rastrigin": 0.0,
    "ackley": 0.0,
    "styblinski_tang": -2.9035340,
    "griewank": 0.0,
}
OPTIONS = [{}, {"shift": 0.5, "stretch": 3.0, "rotate": True}]


def drawn(family, seed=0):
    task_key, key = jax.random.split(jax.random.key(seed))
    task = family.sample(task_key, family.data)
    return task, family.init(key, task)


@pytest.mark.parametrize("name", LOWEST)
@pytest.mark.parametrize("dim", [1, 3, 100])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "drawn"])
def test_the_bound_is_reached_at_the_minimum_and_nowhere_passed(name, dim, options):
    family = TASKS[name](dim=dim, **options)
    task, _ = drawn(family)
    z = jnp.full((dim,), LOWEST[name])
    x = task.shift + task.scale * (z @ task.rotation if options else z)
    size = max(1.0, abs(family.lower_bound))
    np.testing.assert_allclose(family.loss(x, task, ()), family.lower_bound, atol=2e-5 * size)
    np.testing.assert_allclose(jax.grad(family.loss)(x, task, ()), 0.0, atol=2e-3)
    near = x + 0.05 * jax.random.normal(jax.random.key(1), (200, dim))
    losses = jax.vmap(lambda x: family.loss(x, task, ()))(near)
    assert np.all(losses >= family.lower_bound - 1e-5 * size)
    if family.metrics:
        assert family.metrics(x, task, ())["global"] == 1.0
        outside = x.at[0].add(task.scale * 9) if not options else x + 9 * task.scale * task.rotation[0]
        assert family.metrics(outside, task, ())["global"] == 0.0


def test_known_numbers():
    assert TASKS["styblinski_tang"](dim=1).lower_bound == pytest.approx(-39.16616570377142)
    tilted = TASKS["tilted_double_well"](start="wrong_basin")
    grid = np.linspace(-1.5, 1.5, 2_000_001)
    assert tilted.lower_bound == pytest.approx(((grid**2 - 1) ** 2 + 0.3 * grid).min(), abs=1e-10)
    task, wrong = drawn(tilted)
    barrier = ((grid**2 - 1) ** 2 + 0.3 * grid)[np.abs(grid) < 0.5].max()
    assert barrier - float(tilted.loss(wrong, task, ())) == pytest.approx(0.717, abs=5e-4)


@pytest.mark.parametrize("name", ["tilted_double_well", "rastrigin", "styblinski_tang"])
def test_the_global_basin_is_where_descent_leads_to_the_global_minimum(name):
    """Of a separable function, by gradient flow from a grid on the line."""
    family = TASKS[name](dim=1)
    task, _ = drawn(family)
    start = jnp.linspace(-2.2, 2.2, 441)[:, None]
    slope = jax.vmap(jax.grad(lambda x: family.loss(x, task, ())))
    end = jax.jit(lambda x: jax.lax.fori_loop(0, 20_000, lambda _, x: x - 1e-3 * slope(x), x))(start)
    arrived = np.abs(np.asarray(end[:, 0]) - LOWEST[name]) < 0.05
    inside = np.asarray(jax.vmap(lambda x: family.metrics(x, task, ())["global"])(start), bool)
    assert 0 < inside.sum() < len(inside)
    # A grid point on the barrier itself may fall to either side.
    assert np.sum(arrived != inside) <= 2


def test_starts():
    def starts(**options):
        family = TASKS["styblinski_tang"](dim=3, **options)
        return jax.vmap(lambda key: drawn_with(family, key))(jax.random.split(jax.random.key(0), 4000))

    def drawn_with(family, key):
        one, two = jax.random.split(key)
        return family.init(two, family.sample(one, ()))

    uniform, normal, wrong = (np.asarray(starts(start=start)) for start in ("uniform", "normal", "wrong_basin"))
    assert np.abs(uniform).max() <= 5 and uniform.std() == pytest.approx(10 / 12**0.5, rel=0.02)
    assert normal.std() == pytest.approx(2.5, rel=0.03)
    np.testing.assert_allclose(wrong, 2.74680, atol=1e-4)
    stretched = np.asarray(starts(stretch=4.0))
    assert 19 < np.abs(stretched).max() <= 20


def test_a_shift_moves_the_minimum_and_not_the_start():
    plain, moved = TASKS["rastrigin"](dim=4), TASKS["rastrigin"](dim=4, shift=0.5)
    np.testing.assert_array_equal(drawn(plain)[1], drawn(moved)[1])
    assert np.all(np.abs(drawn(moved)[0].shift) <= 2.56) and np.any(drawn(moved)[0].shift != 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rastrigin:dim=101", "from 1 to 100"),
        ("ackley:start=wrong_basin", "give uniform or normal"),
        ("ackley:start=far", "'far'"),
        ("griewank:shift=-1", r"`shift` \(-1"),
        ("griewank:stretch=0.5", r"`stretch` \(0.5\) must be at least 1"),
        ("tilted_double_well:tilt=2", "must be above 0 and below 1.5396"),
    ],
)
def test_refuses_with_a_remedy(text, message):
    with pytest.raises((UserError, ValueError), match=message):
        build_family(parse_choice(text))


# ----- P(global) in evaluations ---------------------------------------------------------------------------------------


def test_wilson_interval_by_hand():
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27754), abs=1e-4)
    assert wilson_interval(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.72246, 1.0), abs=1e-4)


def test_the_table_shows_p_global_with_an_interval_for_every_optimizer():
    kinds = {"sgd": {"learning_rate": 0.05}, "simulated_annealing": {"learning_rate": 0.05, "steps": 1000}}
    made = {name: OPTIMIZERS[name](**options) for name, options in kinds.items()}
    entries = {name: (optimizer, optimizer.init(jax.random.key(0))) for name, optimizer in made.items()}
    result = evaluate_run_on(
        entries, Choice("tilted_double_well", {"start": "wrong_basin"}), horizon=1000, num_tasks=50, baselines=()
    )
    sgd, warm = result["optimizers"].values()
    assert sgd["events"]["global"]["share"] == 0.0 and warm["events"]["global"]["share"] > 0.5
    low, high = warm["events"]["global"]["interval"]
    assert low < warm["events"]["global"]["share"] < high
    cells = evaluations._cells("langevin", warm, 50)
    assert cells["P(global)"] == f"{warm['events']['global']['share']:.3g} [{low:.3g}, {high:.3g}]"
    assert multimodal.double_well().metrics is None
