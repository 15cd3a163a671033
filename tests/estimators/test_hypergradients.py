"""Hypergradients against closed forms, finite differences and one another; what they cannot serve is refused."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.choices import choice, parse_choice
from metaopt.errors import UserError
from metaopt.estimators import Schedule, bilevel
from metaopt.estimators.bilevel import Problem
from metaopt.estimators.hypergradients import INDEFINITE, problem_of
from metaopt.estimators.parts import moving, of_part
from metaopt.experiment import build_family
from metaopt.optimizers import adam, momentum, sgd
from metaopt.registry import ESTIMATORS, OBJECTIVES, TASKS
from metaopt.tasks import ridge_features
from metaopt.tasks.checks import check_family
from metaopt.tasks.hyper import free_starts, with_hyper, with_task
from metaopt.training.loop import meta_train
from metaopt.training.trainer import Trainer
from metaopt.types import Hyper, TaskFamily
from tests.toys import TINY

STEPS = 1000


def benchmark(seed: int) -> tuple[Problem, Any, float]:
    """(the 12 precisions' problem, h -> Q at the exact minimum, λ)."""
    task = ridge_features(seed=seed).sample(jax.random.key(0), ())
    (X, y), (V, z) = task.train, task.validation

    def inner_loss(params: Any, h: Any) -> Any:
        return 0.5 * jnp.sum((y - X @ params) ** 2) + 0.5 * jnp.sum(jnp.exp(h) * params**2)

    def outer_loss(params: Any, h: Any) -> Any:
        return 0.5 * jnp.sum((z - V @ params) ** 2)

    def exact(h: Any) -> Any:
        return outer_loss(jnp.linalg.solve(X.T @ X + jnp.diag(jnp.exp(h)), X.T @ y), h)

    rate = 1 / jnp.linalg.eigvalsh(X.T @ X + jnp.eye(12))[-1]
    return Problem(inner_loss, outer_loss), exact, float(rate)


def cosine(a: Any, b: Any) -> float:
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


def test_cosines_to_the_exact_hypergradient(x64: None) -> None:
    problem, exact, rate = benchmark(1)
    start = jnp.zeros(12)

    @jax.jit
    def found(h: Any) -> Any:
        end = bilevel.descend(problem, start, h, rate=rate, steps=STEPS)
        near = partial(bilevel.solution, problem.inner_loss, end, solve=bilevel.conjugate_gradients)
        steps = 1e-5 * jnp.eye(12)
        long = partial(bilevel.neumann, rate=rate, terms=STEPS)
        gradients = {
            "exact": jax.grad(exact)(h),
            "differences": jax.lax.map(lambda step: (exact(h + step) - exact(h - step)) / 2e-5, steps),
            "reverse": bilevel.unrolled(problem, start, h, rate=rate, steps=STEPS),
            "Neumann": bilevel.implicit(problem, end, h, long, checked=False).gradient,
            "DrMAD": bilevel.drmad(problem, start, end, h, rate=rate, steps=STEPS),
            "custom_root": jax.grad(lambda h: problem.validation_loss(near(h), h))(h),
        }
        return gradients, bilevel.hoag(problem, end, h), near(h) - end, jax.hessian(problem.inner_loss)(end, h)

    gradients, hoag, moved, hessian = found(jnp.zeros(12))
    np.testing.assert_allclose(gradients["exact"], gradients["differences"], rtol=1e-5, atol=1e-8)
    cosines = {name: cosine(value, gradients["exact"]) for name, value in gradients.items()}
    assert cosine(hoag.gradient, gradients["exact"]) > 0.9999 and hoag.positive
    assert cosines["reverse"] > 0.999 and cosines["Neumann"] > 0.999 and cosines["DrMAD"] > 0.993
    np.testing.assert_allclose(gradients["custom_root"], hoag.gradient, rtol=1e-6)
    assert np.all(moved == 0)
    # Lanczos saw a curvature that H has, no smaller than its smallest, the prior's.
    assert 1.0 - 1e-9 <= np.linalg.eigvalsh(hessian)[0] <= hoag.curvature + 1e-9


def test_forward_and_reverse_mode_are_one_and_short_series_are_what_they_say(x64: None) -> None:
    problem, _, rate = benchmark(2)
    h, start = jnp.linspace(-1.0, 1.0, 12), jnp.ones(12)
    settings: dict[str, Any] = dict(rate=rate, steps=30)
    reverse = bilevel.unrolled(problem, start, h, **settings)
    np.testing.assert_allclose(bilevel.unrolled(problem, start, h, forward=True, **settings), reverse, rtol=1e-9)
    # One term is T1-T2 times λ; greedy is that, but for Q's gradient a step later.
    end = bilevel.descend(problem, start, h, **settings)
    one = bilevel.implicit(problem, end, h, partial(bilevel.neumann, rate=rate, terms=1)).gradient
    np.testing.assert_allclose(one, rate * bilevel.implicit(problem, end, h, bilevel.identity).gradient, rtol=1e-12)
    last, after = bilevel.greedy(problem, end, h, rate=rate)
    expected = -rate * jnp.exp(h) * end * jax.grad(problem.validation_loss)(after, h)
    np.testing.assert_allclose(last, expected, rtol=1e-9)
    # Many terms are the solution.
    many = bilevel.implicit(problem, end, h, partial(bilevel.neumann, rate=rate, terms=6000)).gradient
    np.testing.assert_allclose(many, bilevel.hoag(problem, end, h, tolerance=1e-12).gradient, rtol=1e-4, atol=1e-8)


def test_drmad_is_exact_where_the_path_is_its_straight_line(x64: None) -> None:
    """L = ½a|θ - c(h)|² from any start: θ_t moves on a line, and derivatives of its slope do not hang on θ."""
    curvature, rate, steps = 0.7, 0.3, 12

    def centre(h: Any) -> Any:
        return jnp.stack([jnp.sin(h[0]), h[0] * h[1], h[1] ** 2])

    problem = Problem(
        lambda params, h: 0.5 * curvature * jnp.sum((params - centre(h)) ** 2),
        lambda params, h: jnp.sum((params - 1.0) ** 4) + h[0] ** 2,
    )
    h, start = jnp.array([0.3, -1.2]), jnp.array([2.0, -1.0, 0.5])
    end = bilevel.descend(problem, start, h, rate=rate, steps=steps)
    found = bilevel.drmad(problem, start, end, h, rate=rate, steps=steps)
    np.testing.assert_allclose(found, bilevel.unrolled(problem, start, h, rate=rate, steps=steps), rtol=1e-10)
    # Where they do hang on θ, it is the sweep at the points of the line.
    problem, _, rate = benchmark(3)
    h, start = jnp.zeros(12), jnp.zeros(12)
    end = bilevel.descend(problem, start, h, rate=rate, steps=4)
    H = jax.hessian(problem.inner_loss)(end, h)
    slope, total = jax.grad(problem.validation_loss)(end, h), jnp.zeros(12)
    for t in (3, 2, 1, 0):
        total = total - rate * jnp.exp(h) * (t / 4 * end) * slope
        slope = slope - rate * H @ slope
    np.testing.assert_allclose(bilevel.drmad(problem, start, end, h, rate=rate, steps=4), total, rtol=1e-9)


def test_random_search_finds_the_lowest_of_its_draws() -> None:
    problem = Problem(lambda params, h: jnp.sum((params - h) ** 2), lambda params, h: jnp.sum((params - 3.0) ** 2))
    h = jnp.zeros(2)
    settings: dict[str, Any] = dict(scale=2.0, rate=0.5, steps=1)
    best, value = bilevel.random_search(problem, h, h, jax.random.key(0), draws=200, **settings)
    assert value < 1.0 and np.allclose(value, jnp.sum((best - 3.0) ** 2))
    none, value = bilevel.random_search(problem, h, h, jax.random.key(0), draws=1, **settings)
    assert np.all(none == 0) and value == 18.0


@pytest.mark.parametrize(("diagonal", "positive"), [((1.0, 2.0, 30.0), True), ((1.0, -0.2, 30.0), False)])
def test_negative_curvature_is_seen_and_damped(diagonal: Any, positive: bool) -> None:
    scales = jnp.asarray(diagonal)
    problem = Problem(
        lambda params, h: 0.5 * jnp.sum(scales * params**2) - jnp.sum(h * params),
        lambda params, h: jnp.sum(params * jnp.array([1.0, 0.5, 2.0])),
    )
    point = jnp.ones(3)
    found = bilevel.hoag(problem, point, point)
    assert bool(found.positive) == positive
    np.testing.assert_allclose(found.curvature, scales.min(), rtol=1e-4)
    damped = bilevel.hoag(problem, point, point, damping=1.0)
    assert damped.positive
    np.testing.assert_allclose(damped.gradient, jnp.array([1.0, 0.5, 2.0]) / (scales + 1), rtol=1e-4)


# ----- as estimators --------------------------------------------------------------------------------------------------

T, RATE = 6, 0.003
SEED = ridge_features(seed=4)
ZERO = np.zeros(12, np.float32)


def estimated(text: str, optimizer: Any = None, *, steps: int = 1, family: TaskFamily = SEED, **schedule: Any) -> Any:
    """(gradient in h, state, metrics) after so many meta-steps at the same φ."""
    optimizer = with_task(optimizer or sgd(learning_rate=RATE), family)
    schedule = {"num_tasks": 2, "horizon": T, "unroll_length": T, "num_devices": 1, **schedule}
    estimator = of_part(parse_choice(text), optimizer, OBJECTIVES["last"](), Schedule(**schedule))
    phi = optimizer.init(jax.random.key(0))
    state, gradient, metrics = estimator.init(jax.random.key(1), phi, (family,)), phi, {}
    estimate = jax.jit(estimator.estimate)
    for step in range(steps):
        gradient, state, metrics = estimate(jax.random.key(step), phi, state, (family,))
    assert jax.tree.structure(gradient) == jax.tree.structure(phi)
    if ":of=both" not in text and not text.startswith("random"):
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient["optimizer"]))
    return gradient["task"]["precision"], state, metrics


ALONE: dict[str, Any] = {
    "truncated_backprop:of=task,second_order=true": lambda p, start, before, end: bilevel.unrolled(
        p, start, ZERO, rate=RATE, steps=T
    ),
    "truncated_backprop:of=both,second_order=true": lambda p, start, before, end: bilevel.unrolled(
        p, start, ZERO, rate=RATE, steps=T
    ),
    "forward_mode": lambda p, start, before, end: bilevel.unrolled(p, start, ZERO, rate=RATE, steps=T),
    "drmad": lambda p, start, before, end: bilevel.drmad(p, start, end, ZERO, rate=RATE, steps=T),
    "hoag:tolerance=1e-5,least=1e-5": lambda p, start, before, end: bilevel.hoag(p, end, ZERO).gradient,
    "neumann:terms=5": lambda p, start, before, end: (
        bilevel.implicit(p, end, ZERO, partial(bilevel.neumann, rate=RATE, terms=5)).gradient
    ),
    "t1_t2": lambda p, start, before, end: RATE * bilevel.implicit(p, end, ZERO, bilevel.identity).gradient,
    "greedy": lambda p, start, before, end: bilevel.greedy(p, before, ZERO, rate=RATE)[0],
}


@pytest.mark.parametrize("text", ALONE)
def test_estimators_are_the_functions_on_the_familys_own_problem(text: str) -> None:
    problem = benchmark(4)[0]
    before = bilevel.descend(problem, ZERO, ZERO, rate=RATE, steps=T - 1)
    end = bilevel.descend(problem, before, ZERO, rate=RATE, steps=1)
    wanted = ALONE[text](problem, ZERO, before, end)
    loose = text.startswith("hoag")  # in float32
    np.testing.assert_allclose(estimated(text)[0], wanted, rtol=1e-2 if loose else 1e-3, atol=1e-4 if loose else 1e-6)


def test_theta_is_kept_between_meta_steps_and_the_tolerance_falls() -> None:
    problem, start, h, rate = benchmark(4)[0], ZERO, ZERO, RATE
    before = bilevel.descend(problem, start, h, rate=rate, steps=3)
    kept = estimated("greedy", steps=4, horizon=50, unroll_length=1)
    np.testing.assert_allclose(kept[0], bilevel.greedy(problem, before, h, rate=rate)[0], rtol=1e-3, atol=1e-6)
    end = bilevel.descend(problem, start, h, rate=rate, steps=3 * T)
    found, state, metrics = estimated("hoag:decay=0.01", steps=3, horizon=10 * T)
    assert state[0].memory == 3 and np.all(state[0].run.state.step == 3 * T)
    np.testing.assert_allclose(found, bilevel.hoag(problem, end, h).gradient, rtol=2e-2, atol=1e-3)
    np.testing.assert_allclose(metrics["meta_loss"], problem.validation_loss(end, h), rtol=1e-5)
    assert metrics[f"oracle/{INDEFINITE}"] == 0


def test_h_of_now_sets_the_step_from_a_state_that_an_older_h_left() -> None:
    """Between windows φ moves: the carried gradient is taken anew, as if the run had gone on under this h."""
    family, optimizer = SEED, with_task(momentum(learning_rate=1e-3), SEED)
    schedule = Schedule(num_tasks=1, horizon=4, unroll_length=2, num_devices=1)
    picked = parse_choice("truncated_backprop:of=task,second_order=true")
    estimator = of_part(picked, optimizer, OBJECTIVES["last"](), schedule)
    phi, estimate = optimizer.init(jax.random.key(0)), jax.jit(estimator.estimate)
    state = estimate(jax.random.key(0), phi, estimator.init(jax.random.key(1), phi, (family,)), (family,))[1]

    def at(shift: Any) -> Any:
        here = {**phi, "task": {"precision": phi["task"]["precision"] + 1.0 + shift}}
        return estimate(jax.random.key(1), here, state, (family,))

    step = 0.1 * jnp.eye(12)[1]
    ahead, behind = (at(sign * step)[2]["meta_loss"] for sign in (1, -1))
    np.testing.assert_allclose(at(0.0)[0]["task"]["precision"][1], (ahead - behind) / 0.2, rtol=2e-2)


def test_a_minibatch_family_with_a_learned_optimizers_kin_moves_its_decay() -> None:
    """Any optimizer and minibatches: reverse and forward mode agree, and evolution shakes h alone."""
    family = build_family(choice("regularised_classifier", width=3, batch_size=16, decay=0.1, num_examples=64))
    optimizer = with_task(adam(learning_rate=0.03), family)
    phi = optimizer.init(jax.random.key(0))
    schedule = Schedule(num_tasks=2, horizon=4, unroll_length=4, num_devices=1)
    found = {}
    for text in ("truncated_backprop:of=task,second_order=true", "forward_mode", "evolution_strategies:of=task"):
        estimator = of_part(parse_choice(text), optimizer, OBJECTIVES["last"](), schedule)
        state = estimator.init(jax.random.key(1), phi, (family,))
        gradient, _, metrics = jax.jit(estimator.estimate)(jax.random.key(2), phi, state, (family,))
        found[text] = gradient["task"]["decay"]
        assert gradient["optimizer"]["learning_rate"] == 0 and metrics["alive"] == 1
    reverse, forward, evolution = found.values()
    assert reverse.shape == (2,)
    np.testing.assert_allclose(reverse, forward, rtol=1e-3, atol=1e-6)
    assert np.all(np.isfinite(evolution))


def test_the_scale_of_a_noise_on_the_inputs_has_the_slope_of_finite_differences(x64: None) -> None:
    """An augmentation's scale beside a decay: of the training loss alone, along drawn batches and at the minimum."""
    options: dict[str, Any] = dict(hidden_layers=0, per="network", num_examples=12, batch_size=5)
    family = build_family(choice("regularised_classifier", decay=0.3, input_noise=0.4, **options))
    start: Any = {name: jnp.float64(value) for name, value in free_starts(family).items()}
    params = family.init(jax.random.key(0), ())
    held_out = family.eval_batch((), family.data, "validation")
    first, second = (family.batch(jax.random.key(key), (), family.data) for key in (1, 2))
    assert jax.tree.structure(held_out) != jax.tree.structure(first) and np.any(first.noise != second.noise)

    def of_loss(batch: Any) -> Any:
        return jax.grad(lambda free: with_hyper(family, free).loss(params, (), batch))(start)["input_noise"]

    assert of_loss(held_out) == 0 and of_loss(first) != 0
    assert family.judged_loss(params, (), first) == family.judged_loss(params, (), first.examples)

    # Along batches, each with a noise of its own.
    picked = parse_choice("truncated_backprop:of=task,second_order=true")
    optimizer = with_task(sgd(learning_rate=0.3), family)
    schedule = Schedule(num_tasks=1, horizon=4, unroll_length=4, num_devices=1)
    estimator = of_part(picked, optimizer, OBJECTIVES["last"](), schedule)
    phi = {**optimizer.init(jax.random.key(0)), "task": start}
    state, estimate = estimator.init(jax.random.key(1), phi, (family,)), jax.jit(estimator.estimate)

    def at(free: Any) -> Any:
        return estimate(jax.random.key(2), {**phi, "task": free}, state, (family,))

    # At the minimum, under one noise: HOAG against the minimum found anew.
    problem = problem_of(family, ())

    @jax.jit
    def minimum(free: Any) -> Any:
        return bilevel.descend(problem, params, free, rate=0.2, steps=400)

    slopes = {
        "batches": (at(start)[0]["task"], lambda free: at(free)[2]["meta_loss"]),
        "minimum": (
            bilevel.hoag(problem, minimum(start), start, tolerance=1e-10).gradient,
            lambda free: problem.validation_loss(minimum(free), free),
        ),
    }
    for name, (slope, value) in slopes.items():
        for part in ("input_noise", "decay"):
            ahead, behind = (value({**start, part: start[part] + step}) for step in (1e-3, -1e-3))
            assert abs(slope[part]) > 1e-3
            np.testing.assert_allclose(slope[part], (ahead - behind) / 2e-3, rtol=1e-3, err_msg=f"{name}, {part}")


def test_random_search_steps_to_the_best_draw() -> None:
    optimizer = with_task(sgd(learning_rate=RATE), SEED)
    schedule = Schedule(num_tasks=1, horizon=T, unroll_length=T, num_devices=1)
    estimator = of_part(choice("random_search"), optimizer, OBJECTIVES["last"](), schedule)
    phi = optimizer.init(jax.random.key(0))
    state = estimator.init(jax.random.key(1), phi, (SEED,))
    lowest, estimate = np.inf, jax.jit(estimator.estimate)
    for step in range(5):
        gradient, state, metrics = estimate(jax.random.key(step), phi, state, (SEED,))
        phi = optax.tree.sub(phi, gradient)
        lowest = min(lowest, float(metrics["meta_loss"]))
        memory = state[0].memory
        np.testing.assert_allclose(memory.value, lowest, rtol=1e-6)
        np.testing.assert_allclose(phi["task"]["precision"], memory.best["precision"], rtol=1e-5)


def test_a_draw_that_no_task_survives_moves_nothing() -> None:
    optimizer = with_task(sgd(learning_rate=1e20), SEED)
    schedule = Schedule(num_tasks=1, horizon=T, unroll_length=T, num_devices=1)
    estimator = of_part(choice("random_search"), optimizer, OBJECTIVES["last"](), schedule)
    phi = {**optimizer.init(jax.random.key(0)), "task": {"precision": jnp.ones(12)}}
    state = estimator.init(jax.random.key(1), phi, (SEED,))
    gradient, state, metrics = jax.jit(estimator.estimate)(jax.random.key(0), phi, state, (SEED,))
    assert metrics["alive"] == 0 and state[0].memory.count == 1 and np.isinf(state[0].memory.value)
    assert np.all(gradient["task"]["precision"] == 0)


REFUSED = [
    ("drmad", momentum(), {}, "plain gradient descent"),
    ("drmad", None, dict(horizon=2 * T), "whole runs"),
    ("t1_t2", adam(), {}, "plain gradient descent"),
    ("hoag:tolerance=2.0", None, {}, r"`tolerance` \(2.0\) must be in \(0, 1\)"),
    ("hoag:damping=-1.0", None, {}, r"`damping` \(-1.0\)"),
    ("neumann:terms=0", None, {}, "`terms`"),
    ("hoag:of=optimizer", None, {}, "of is 'optimizer'; give one of task"),
    ("truncated_backprop:of=tasks", None, {}, "give one of optimizer, task, both"),
    ("truncated_backprop:of=task,objective_batch=fresh", None, {}, "take validation"),
]


@pytest.mark.parametrize(("text", "optimizer", "settings", "message"), REFUSED)
def test_what_does_not_fit_is_refused(text: str, optimizer: Any, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        estimated(text, optimizer, **settings)
    assert "\n" not in str(caught.value)


def test_without_hyperparameters_in_phi_there_is_nothing_to_move() -> None:
    schedule = Schedule(num_tasks=1, horizon=T, unroll_length=T, num_devices=1)
    with pytest.raises(ValueError, match="with_task"):
        ESTIMATORS["hoag"](sgd(), OBJECTIVES["last"](), schedule)


# ----- in an experiment -----------------------------------------------------------------------------------------------

RIDGE = dataclasses.replace(
    TINY,
    tasks=(choice("ridge_features", seed=1),),
    optimizer=choice("sgd", learning_rate=3e-3),
    estimator=choice("hoag"),
    objective="last",
    num_tasks=1,
)


def saddle(validation: str = "validation") -> TaskFamily:
    """½(θ_0² - θ_1²) + ..., that no descent ends on."""

    def loss(params: Any, task: Any, batch: Any, *, hyper: Any = None) -> Any:
        weight = 1.0 if hyper is None else hyper["weight"]
        return 0.5 * (params[0] ** 2 - 0.1 * params[1] ** 2) + weight * jnp.sum((params - task)[:1]) + 0 * batch

    return TaskFamily(
        data=(),
        sample=lambda key, data: jax.random.normal(key, (2,)),
        init=lambda key, task: jnp.ones(2),
        batch=lambda key, task, data: jnp.zeros(()),
        loss=loss,
        eval_batch=lambda task, data, split: jnp.asarray(0.0 if split == "train" else len(validation) - 5.0),
        splits=("train", "validation"),
        lower_bound=None,
        hyper={"weight": Hyper(np.float32(1.0))},
        validation_loss=lambda params, task, batch: jnp.sum((params - 2.0) ** 2) + 0 * batch,
    )


def test_a_hessian_that_is_not_positive_ends_a_run_with_the_remedy(register: Any) -> None:
    register(TASKS, "saddle", saddle)
    experiment = dataclasses.replace(RIDGE, tasks=(choice("saddle"),), num_tasks=2)
    with pytest.raises(UserError, match="not positive at the end of 100% .* set the estimator's `damping`") as caught:
        meta_train(experiment)
    assert "\n" not in str(caught.value)
    state = meta_train(dataclasses.replace(experiment, estimator=choice("hoag", damping=0.5)))
    assert state.meta_params["task"]["weight"] != 0


def test_families_that_cannot_be_chosen_for_are_refused_in_one_line(register: Any) -> None:
    register(TASKS, "itself", lambda: saddle("train"))
    with pytest.raises(UserError, match="the validation data of itself are its training data"):
        Trainer(dataclasses.replace(RIDGE, tasks=(choice("itself"),)))
    with pytest.raises(UserError, match="quadratic leaves none to choose"):
        Trainer(dataclasses.replace(RIDGE, tasks=(choice("quadratic"),)))
    with pytest.raises(UserError, match="give one of the 2 `tasks`"):
        Trainer(dataclasses.replace(RIDGE, tasks=(choice("quadratic"), choice("ridge_features")), num_tasks=2))
    with pytest.raises(ValueError, match="give `validation_loss`"):
        check_family(dataclasses.replace(saddle(), validation_loss=None))
    with pytest.raises(ValueError, match="add validation to `splits`"):
        check_family(dataclasses.replace(saddle(), splits=("train",)))


def test_what_does_not_move_is_left_alone_by_decay_too() -> None:
    experiment = dataclasses.replace(
        RIDGE, meta_optimizer=dataclasses.replace(RIDGE.meta_optimizer, name="adamw", learning_rate=0.1)
    )
    trainer = Trainer(experiment)
    before = jax.device_get(trainer.init().meta_params)
    after = meta_train(trainer).meta_params
    assert after["optimizer"]["learning_rate"] == before["optimizer"]["learning_rate"]
    assert np.all(after["task"]["precision"] != before["task"]["precision"])
    mask = moving(trainer.optimizer, experiment.estimator)
    assert mask is not None and mask.sum() == 12 and len(mask) == 13


@pytest.mark.parametrize("augmentation", [{}, {"rescale": 0.5}, {"companion": 3}])
def test_augmented_families_carry_their_hyperparameters(augmentation: Any) -> None:
    family = build_family(choice("ridge_features", noise_precision=True, **augmentation))
    free = free_starts(family)
    assert set(free) == {"precision", "noise_precision"}
    task = family.sample(jax.random.key(0), ())
    params = jax.tree.map(lambda leaf: leaf + 0.1, family.init(jax.random.key(1), task))
    batch = family.batch(jax.random.key(2), task, ())
    plain = family.loss(params, task, batch)
    np.testing.assert_allclose(with_hyper(family, free).loss(params, task, batch), plain, rtol=1e-6)
    more = {**free, "precision": free["precision"] + 1.0}
    assert with_hyper(family, more).loss(params, task, batch) > plain
    assert with_hyper(family, {"other": jnp.zeros(())}) is family  # of another family: its own starts stay
    held_out = family.eval_batch(task, (), "validation")
    assert family.validation_loss is not None and family.judged_on == "validation"
    assert family.validation_loss(params, task, held_out) > 0


def test_an_oracle_beside_an_augmentation_is_refused() -> None:
    with pytest.raises(UserError, match="hides the hyperparameters"):
        build_family(choice("ridge_features"), rescale=1.0, oracle=choice("exact"))
