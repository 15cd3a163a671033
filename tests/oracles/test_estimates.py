"""Gradients from particles against exact ones, on a law without symmetry; and what they say of themselves."""

from __future__ import annotations

import dataclasses
import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metaopt
from metaopt import UserError, choice
from metaopt.evaluation.curves import as_optimizer, evaluate
from metaopt.experiment import build_family
from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.oracles import family_of, impdiff, particles, pcd, sosmc, soul
from metaopt.registry import ORACLES
from metaopt.tasks import latent_gaussian, tuned_mixture
from metaopt.tasks.energy import mixture_values, separated_optimum
from tests.toys import TINY

KERNELS = ["ula", "mala", "random_walk", "hmc"]
FAMILY = tuned_mixture(target="asymmetric", beta=0.5, spread=0.0)
TASK = FAMILY.sample(jax.random.key(0), ())
PATH = TASK.reference + jnp.array([[0.0, 0, 0], [0.4, -0.2, 0], [0.9, -0.3, 0], [1.2, -0.9, 0.3]])
FEW = {"sosmc": {"num_particles": 20}, "impdiff": {"num_particles": 20}, "soul": {"num_samples": 30, "burn_in": 5},
       "pcd": {"num_particles": 20, "replay": 40, "steps": 2}}  # fmt: skip


# A law on the line, lopsided as well, whose programs compile at once: its "gradient" is E x.
def line_energy(theta: Any, task: Any, x: Any) -> Any:
    return 0.25 * x[0] ** 4 - theta[0] * x[0] + jnp.sin(2 * x[0])


def line_start(key: jax.Array, theta: Any, task: Any, data: Any) -> jax.Array:
    """By the inverse of the distribution function, on a grid that all draws share."""
    grid = jnp.linspace(-4, 4, 801)
    upto = jnp.cumsum(jnp.exp(-line_energy(theta, task, grid[None])))
    return jnp.interp(jax.random.uniform(key), upto / upto[-1], grid)[None]


LINE = family_of(
    metaopt.Law(
        dim=1,
        energy=line_energy,
        start=line_start,
        surrogate=lambda theta, task, x, weights, batch: theta[0] * (weights @ x[:, 0]),
    )
)
AT = jnp.array([[0.0], [0.5], [1.2]])


def estimates(oracle: Any, number: int, family: Any = FAMILY, task: Any = TASK, path: Any = PATH) -> np.ndarray:
    """[number, D] gradients at the end of a path of θ, from so many independent runs."""

    def run(key: jax.Array) -> jax.Array:
        state = oracle.init(family, task, jax.tree.map(lambda leaf: leaf[0], path), jax.random.fold_in(key, 99))

        def body(state: Any, at: Any) -> Any:
            theta, index = at
            found, state = oracle.estimate(family, task, theta, state, jax.random.fold_in(key, index))
            return state, found.gradient

        length = jax.tree.leaves(path)[0].shape[0]
        gradients = jax.lax.scan(body, state, (path, jnp.arange(length)))[1]
        return jnp.concatenate([leaf[-1].ravel() for leaf in jax.tree.leaves(gradients)])

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(7), number)), np.float64)


@functools.cache
def of_kernel(kernel: str, num_particles: int) -> np.ndarray:
    """[64, 3] at the end of PATH."""
    return estimates(sosmc(kernel=kernel, num_particles=num_particles), 64)


@functools.cache
def exact_at(index: int, kl: str = "ref_model") -> np.ndarray:
    """[3] ∇f at a point of PATH."""
    family = tuned_mixture(target="asymmetric", beta=0.5, spread=0.0, kl=kl)
    return np.asarray(jax.jit(jax.grad(family.loss), static_argnums=2)(PATH[index], TASK, ()))


def off(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """How many standard errors the mean is off."""
    return np.abs(found.mean(axis=0) - exact) / (found.std(axis=0) / np.sqrt(len(found)))


# ----- the estimates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_mean_estimate_is_the_exact_gradient_of_a_law_that_has_moved(kernel):
    found = of_kernel(kernel, 1024)
    assert np.all(off(found, exact_at(-1)) < 4), (found.mean(axis=0), exact_at(-1))
    if kernel == "ula":  # particles without weights are of the law that was: the check has power
        assert off(estimates(impdiff(num_particles=600), 60), exact_at(-1)).max() > 8


def test_the_mean_estimate_under_the_other_divergence():
    found = estimates(sosmc(num_particles=600), 60, tuned_mixture(target="asymmetric", beta=0.5, kl="model_ref"))
    assert np.all(off(found, exact_at(-1, "model_ref")) < 4), found.mean(axis=0)


def test_a_sign_error_in_the_weights_does_not_pass(monkeypatch):
    right = particles.langevin_log_ratio
    monkeypatch.setattr(particles, "langevin_log_ratio", lambda *args: -right(*args))
    assert off(estimates(sosmc(num_particles=600), 60), exact_at(-1)).max() > 10


@pytest.mark.parametrize("kernel", ["ula", "mala"])
def test_the_error_falls_with_the_root_of_the_particles(kernel):
    sizes = [64, 1024]
    errors = [((of_kernel(kernel, n) - exact_at(-1)) ** 2).mean() ** 0.5 for n in sizes]
    slope = np.diff(np.log(errors)) / np.diff(np.log(sizes))
    # A root mean square over 64 runs of two free coordinates is known to 1/√256 of itself or so.
    interval = 3 * np.sqrt(2) * (1 / 16) / np.log(sizes[1] / sizes[0])
    assert abs(slope + 0.5) < interval, (slope, errors)


def test_chains_that_are_long_or_short_of_step_come_near():
    still = jnp.tile(PATH[:1], (2, 1))
    for oracle in (
        impdiff(num_particles=2000, step_size=0.003),
        soul(num_samples=2000, burn_in=20, num_chains=1000, step_size=0.003),
        pcd(num_particles=2000, replay=2000, steps=3, step_size=0.003, fresh=0.1),
    ):
        found = estimates(oracle, 20, path=still)
        np.testing.assert_allclose(found.mean(axis=0), exact_at(0), atol=0.01)


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial", "residual"])
def test_every_resampling_serves(scheme):
    """Resampled at every step: copies without regard to the weights are of the law that was."""
    grid = np.linspace(-4, 4, 801)
    exact = np.average(grid, weights=np.exp(-line_energy(np.asarray(AT[-1]), (), grid[None])))
    path = jnp.concatenate([AT, AT[-1:]])
    oracle = sosmc(num_particles=500, step_size=0.03, resampling=scheme, resample_below=1.0)
    found = estimates(oracle, 100, LINE, (), path)
    assert np.all(off(found, exact) < 4), (found.mean(), exact)
    if scheme == "systematic":  # the check has power
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(particles, "resample", lambda key, weights, scheme: jnp.arange(len(weights)))
            assert np.all(off(estimates(oracle, 100, LINE, (), path), exact) > 10)


@pytest.mark.parametrize("kernel", ["ula", "hmc"])
def test_the_latent_gaussian_by_fishers_identity(kernel):
    family = latent_gaussian(dim=4, features=2)
    task = family.sample(jax.random.key(1), ())
    path = {"mean": jnp.array([[0.0, 0.0], [0.3, -0.2], [0.5, -0.2]]), "log_scale": jnp.array([0.0, -0.2, 0.2])}
    end = jax.tree.map(lambda leaf: leaf[-1], path)
    exact = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(jax.grad(family.loss)(end, task, ()))])
    found = estimates(sosmc(kernel=kernel, num_particles=1000), 40, family, task, path)
    assert np.all(off(found, np.asarray(exact)) < 4)


def test_slopes_by_rows_are_those_of_vectors():
    """An energy of few coordinates is differentiated by each, where there are many particles; the same numbers."""
    x = jax.random.normal(jax.random.key(0), (2, particles.FEW + 1))
    look = jax.jit(particles.look(FAMILY.law, PATH[1], TASK, slopes=True))
    many, few = look(x), look(x[:, :5])
    np.testing.assert_allclose(many.slope[:, :5], few.slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many.energy[:5], few.energy, rtol=1e-6)


# ----- weights and steps ----------------------------------------------------------------------------------------------


def second(oracle: Any, thetas: jax.Array) -> tuple[Any, Any]:
    """Estimate and state after LINE's oracle has seen each θ."""

    def run(key: jax.Array) -> tuple[Any, Any]:
        state, found = oracle.init(LINE, (), thetas[0], key), None
        for index in range(len(thetas)):
            found, state = oracle.estimate(LINE, (), thetas[index], state, jax.random.fold_in(key, index))
        return found, state

    return jax.jit(run)(jax.random.key(0))


@pytest.mark.parametrize("kernel", KERNELS)
def test_under_a_theta_that_rests_weights_stay_equal_if_the_kernel_is_invariant(kernel):
    oracle = sosmc(kernel=kernel, num_particles=200, step_size=0.3, adapt="none", resample_below=0.0)
    found, state = second(oracle, jnp.tile(AT[:1], (4, 1)))
    weights = particles.normalised(state.log_weights) * 200
    # Of all that has come together since the last resampling, not of the last step's gain alone.
    assert found.info["ess"] == pytest.approx(float(1 / np.mean(weights**2)), rel=1e-4)
    if kernel == "ula":
        assert found.info["ess"] < 0.95 and weights.std() > 0.1  # what a test would refuse, its weights say
    else:
        np.testing.assert_allclose(weights, 1.0, rtol=1e-4)
        assert found.info["ess"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("below", "resampled"), [(0.0, 0.0), (1.0, 1.0)])
def test_resampling_takes_place_where_it_is_asked_for_and_leaves_equal_weights(below, resampled):
    found, state = second(sosmc(num_particles=100, resample_below=below), AT[:2])
    assert found.info["resampled"] == resampled
    assert (jnp.ptp(state.log_weights) == 0) == bool(resampled)
    # What is kept of the energy is that of the particles, also after they were copied.
    at = particles.look(LINE.law, AT[1], (), slopes=True)(state.particles.x)
    np.testing.assert_allclose(at.energy, state.particles.energy, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(at.slope, state.particles.slope, rtol=1e-4, atol=1e-4)
    assert found.info["max_weight"] * 100 > 1.1 and found.info["ess"] < 0.99  # there was something to do


def test_steps_adapt_by_effective_particles_or_by_acceptance():
    def grown(step_size, **options):
        oracle = sosmc(num_particles=300, step_size=step_size, max_step_size=9.0, **options)
        return float(second(oracle, AT[:1])[1].step_size / step_size)

    longer, shorter = pytest.approx(1.01), pytest.approx(1 / 1.01)
    assert grown(1.5, kernel="mala") == longer  # nothing is uneven under a θ that rests
    assert grown(1.5, kernel="mala", adapt="acceptance") == shorter
    assert grown(0.002, kernel="mala", adapt="acceptance") == longer
    assert grown(0.002) == longer and grown(0.5) == shorter
    assert grown(0.5, adapt="none") == 1


# ----- in the loop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEW)
def test_vmapped_is_looped_and_two_windows_are_one(name):
    family = dataclasses.replace(LINE, oracle=ORACLES[name](**FEW[name]), init=lambda key, task: 1 + jnp.zeros(1))
    optimizer, phi = as_optimizer(optax.adam(0.1), family)
    tx, keys = bind_tasks(optimizer, phi), jax.random.split(jax.random.key(0), 3)
    begin = jax.jit(partial(reset, tx, family))
    window = jax.jit(partial(unroll, tx, family), static_argnames="length")
    end, trace = window(*begin(keys), length=4)
    params, info = end.params, trace.info
    assert np.all(np.isfinite(params)) and np.ptp(params, axis=0).min() > 0
    assert {"ess", "acceptance", "resampled", "energy_gradients", "collapsed", "nonfinite"} <= set(info)
    for index in range(3):  # alone, and in two windows
        task, state = begin(keys[index : index + 1])
        state, first = window(task, state, length=2)
        state, then = window(task, state, length=2)
        np.testing.assert_allclose(state.params[0], params[index], rtol=2e-4, atol=2e-5)
        own = np.concatenate([first.info["ess"], then.info["ess"]])
        np.testing.assert_allclose(own[:, 0], info["ess"][:, index], rtol=1e-3)


def test_one_device_or_two():
    family = dataclasses.replace(latent_gaussian(dim=3, features=2), oracle=sosmc(num_particles=30))
    one, two = (
        evaluate({"adam": optax.adam(0.1)}, family, jax.random.key(0), horizon=5, num_tasks=4, num_devices=devices)
        for devices in (1, 2)
    )
    np.testing.assert_allclose(one.loss["adam"], two.loss["adam"], rtol=1e-4)
    assert one.loss["adam"][:, -1].mean() < one.loss["adam"][:, 0].mean()
    assert tuned_mixture().evaluated_on == "the exact value, by quadrature"


def test_sosmc_settles_at_the_dual_optimum_and_langevin_chains_cycle():
    family = tuned_mixture(spread=0.0)
    task = family.sample(jax.random.key(0), ())
    best = separated_optimum(np.array([0.000798, 0.648630]), np.full(2, 0.5), 0.1, "ref_model")
    np.testing.assert_allclose(best, [0.0713, 0.9287], atol=1e-4)
    adam = optax.adam(0.1)

    def weights(oracle):  # [steps, seeds] of the right mode
        def run(key):
            theta = family.init(key, task)

            def body(carry, key):
                theta, state, moments = carry
                found, state = oracle.estimate(family, task, theta, state, key)
                updates, moments = adam.update(found.gradient, moments)
                return (optax.apply_updates(theta, updates), state, moments), jax.nn.softmax(theta)[1]

            start = (theta, oracle.init(family, task, theta, key), adam.init(theta))
            return jax.lax.scan(body, start, jax.random.split(key, 500))[1]

        return np.asarray(jax.jit(jax.vmap(run, out_axes=1))(jax.random.split(jax.random.key(1), 3)))

    # Single runs of 1,000 particles lie between .919 and .942 (experiments/smc); here are three of 500.
    assert np.abs(weights(sosmc(num_particles=500))[-200:].mean() - best[1]) < 0.02
    assert np.ptp(weights(impdiff(num_particles=200))[-200:]) > 0.9
    values = mixture_values(jnp.log(jnp.asarray(best, jnp.float32)), task, "smooth", "ref_model")
    assert float(values.reward) == pytest.approx(0.6024, abs=1e-4)
    tuned = separated_optimum(np.array([0.000798, 0.648630]), np.full(2, 0.5), 0.1, "model_ref")
    np.testing.assert_allclose(tuned, [0.0015, 0.9985], atol=1e-4)


# ----- what goes wrong is told ----------------------------------------------------------------------------------------


def told(energy: Any, jump: float = 0.0, **options: Any) -> tuple[dict[str, float], Any]:
    """Health and gradient of the second estimate of a one-dimensional law; θ moves by `jump` before it."""
    law = metaopt.Law(
        dim=1,
        energy=energy,
        start=lambda key, params, task, data: jax.random.normal(key, (1,)),
        surrogate=lambda params, task, x, weights, batch: weights @ ((x[:, 0] - params[0]) ** 2),
    )
    family, oracle, theta = family_of(law), sosmc(num_particles=50, **options), jnp.zeros(1)
    state = oracle.init(family, (), theta, jax.random.key(0))
    for index in range(2):
        found, state = oracle.estimate(family, (), theta + jump * index, state, jax.random.key(index))
    return {name: float(value) for name, value in found.info.items()}, found.gradient


def test_collapse_is_reported():
    def plain(theta, task, x):
        return 0.5 * jnp.sum((x - 1000.0 * theta) ** 2)

    health, _ = told(plain)
    assert health["collapsed"] == 0 and health["ess"] > 0.5 and health["nonfinite"] == 0
    health, gradient = told(plain, jump=1.0)  # the law has gone where no particle is: one has all of the weight
    assert health["collapsed"] == 1 and health["ess"] == pytest.approx(1 / 50, rel=1e-3) and health["max_weight"] > 0.99
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_energy_that_is_nan_costs_its_particles_or_all(kernel):
    def half(theta, task, x):
        return jnp.where(x[0] > 0.5, jnp.nan, 0.5 * jnp.sum(x**2))

    health, gradient = told(half, kernel=kernel)
    assert np.isfinite(gradient).all() and 0 <= health["nonfinite"] < 0.6 and health["ess"] > 0.1
    nowhere = lambda theta, task, x: jnp.nan * jnp.sum(x)  # noqa: E731
    health, gradient = told(nowhere, kernel=kernel)
    assert health["collapsed"] == 1 and health["nonfinite"] == 1 and np.isnan(gradient).all()


@pytest.mark.parametrize("name", ["impdiff", "soul", "pcd"])
def test_chains_that_leave_the_numbers_are_reported(name):
    family = dataclasses.replace(LINE, law=LINE.law._replace(slope=lambda params, task, x: x * jnp.inf))
    oracle = ORACLES[name](**FEW[name])
    estimate = lambda key: oracle.estimate(family, (), AT[0], oracle.init(family, (), AT[0], key), key)[0]  # noqa: E731
    found = jax.jit(estimate)(jax.random.key(0))
    assert found.info["collapsed"] == 1 and found.info["nonfinite"] > 0 and not np.isfinite(found.gradient).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"oracle": choice("sosmc", num_particles=1)}, "`num_particles` .1. must be at least 2"),
        ({"oracle": choice("sosmc", step_size=0.0)}, "`step_size` .0.0. must be above 0"),
        ({"oracle": choice("sosmc", min_step_size=0.0)}, "`min_step_size` .0.0. must be above 0"),
        ({"oracle": choice("sosmc", step_size=1.0)}, "between `min_step_size` .0.001. and `max_step_size` .0.99."),
        ({"oracle": choice("sosmc", adapt="acceptance")}, "kernel ula accepts every move"),
        ({"oracle": choice("sosmc", kernel="nuts")}, "give one of ula, mala, random_walk, hmc"),
        ({"oracle": choice("sosmc", resample_below=1.5)}, "is a share of the particles"),
        ({"oracle": choice("soul", num_samples=10, num_chains=3)}, "must be a multiple of `num_chains`"),
        ({"oracle": choice("pcd", replay=300)}, "`replay` .300. must be a multiple of `num_particles` .250.; try 250"),
        ({"oracle": choice("impdiff", steps=0)}, "`steps` .0. must be at least 1"),
        ({"tasks": (choice("quadratic", dim=2),)}, "follows the law of an energy, and quadratic:dim=2 states none"),
        ({"estimator": choice("persistent_evolution_strategies")}, "set its option exact_value=true"),
        ({"objective": "log"}, "objective log reads the values"),
        ({"estimator": choice("truncated_backprop", second_order=True)}, "set the estimator's `second_order` to false"),
        ({"estimator": choice("mixture")}, "`second_order` to false"),
    ],
)  # fmt: skip
def test_refused_at_configuration(changes, message):
    few = choice("sosmc", num_particles=10)
    given = dataclasses.replace(TINY, **{"tasks": (choice("tuned_mixture"),), "oracle": few, **changes})
    with pytest.raises(UserError, match=message):
        metaopt.Trainer(given)


@pytest.mark.parametrize(
    ("law", "options", "message"),
    [
        ({"energy": None, "slope": lambda p, t, x: x}, {}, "needs the energy's values"),
        ({"energy": lambda p, t, x: None}, {}, "the energy is without a value"),
        ({"energy": lambda p, t, x: x}, {}, r"the energy is of shape \(2,\)"),
        ({"smooth": False}, {}, "take sosmc with kernel=random_walk"),
        ({"smooth": False}, {"kernel": "hmc"}, "needs the energy's gradient in x"),
    ],
)  # fmt: skip
def test_laws_that_do_not_serve(register, law, options, message):
    register(metaopt.TASKS, "odd", lambda: dataclasses.replace(FAMILY, name="odd", law=FAMILY.law._replace(**law)))
    given = dataclasses.replace(TINY, tasks=(choice("odd"),), oracle=choice("sosmc", num_particles=10, **options))
    with pytest.raises(UserError, match=message) as raised:
        metaopt.Trainer(given)
    assert "\n" not in str(raised.value)


def test_a_law_without_a_gradient_is_walked_on_and_one_without_values_is_followed():
    def found(oracle, **law):
        return estimates(oracle, 2, dataclasses.replace(LINE, law=LINE.law._replace(**law)), (), AT)

    walk, chains, slope = sosmc("random_walk", 200), impdiff(200), jax.grad(LINE.law.energy, argnums=2)
    np.testing.assert_array_equal(found(walk, smooth=False), found(walk))
    np.testing.assert_allclose(found(chains, energy=None, slope=slope), found(chains), rtol=1e-4)


# ----- meta-training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmented", [{}, {"rescale": 1.0, "companion": 2}])
def test_meta_training_by_the_surrogate(augmented):
    """First order, without values, or with the family's own; augmented, the oracle sees what is inside."""
    few = choice("sosmc", num_particles=30)
    given = dataclasses.replace(TINY, tasks=(choice("latent_gaussian", dim=3, features=2),), oracle=few, **augmented)
    metrics = {}
    for exact in (True,) if augmented else (False, True):
        oracle = choice("sosmc", num_particles=30, exact_value=exact)
        trainer = metaopt.Trainer(dataclasses.replace(given, oracle=oracle))
        _, metrics[exact] = trainer.run_chunk(trainer.init())
    assert np.all(metrics[True]["alive"] == 1) and np.all(metrics[True]["grad_norm"] > 0)
    assert np.all(metrics[True]["oracle/ess"] > 0.3) and np.all(np.isfinite(metrics[True]["meta_loss"]))
    if augmented:
        return
    np.testing.assert_allclose(metrics[False]["grad_norm"], metrics[True]["grad_norm"], rtol=1e-4)
    assert np.all(np.isnan(metrics[False]["meta_loss"]))  # unknown


@pytest.mark.parametrize("options", ["rescale=1", "companion=3", "bfloat16=1"])
def test_a_law_under_an_augmentation_is_that_of_what_is_inside(options):
    """The oracle put on the augmented family itself: the same gradient, of the whole's parameters."""
    name, value = options.split("=")
    typed = float(value) if name != "companion" else int(value)
    family = build_family(choice("tuned_mixture", target="asymmetric", **{name: typed}))
    task = family.sample(jax.random.key(0), family.data)
    theta = family.init(jax.random.key(1), task)
    oracle = sosmc(num_particles=4000)

    @jax.jit
    def both(theta):
        state = oracle.init(family, task, theta, jax.random.key(2))
        found, _ = oracle.estimate(family, task, theta, state, jax.random.key(3))
        return found.gradient, jax.grad(family.loss)(theta, task, family.batch(jax.random.key(0), task, family.data))

    found, exact = both(theta)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(one, other, atol=0.08)
