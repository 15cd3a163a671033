"""Curves against loops written by hand; what is shared between optimizers; what compiles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metaopt
from metaopt.evaluation import evaluate, outcomes, statistics
from metaopt.evaluation.recording import plan
from metaopt.experiment import build_optimizer
from metaopt.registry import OPTIMIZERS, TASKS
from metaopt.shipped.loading import SHIPPED, read_optimizer
from metaopt.tasks import classifier, quadratic, with_companion
from metaopt.types import TaskFamily
from tests.toys import bowl, cliff, noisy_bowl

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def family() -> TaskFamily:
    return quadratic(dim=3)


def test_gradient_descent_on_quadratics_equals_a_hand_loop(family: TaskFamily) -> None:
    found = evaluate({"sgd": optax.sgd(0.5)}, family, KEY, horizon=20, num_tasks=5, train_horizon=4)
    assert found.steps.tolist() == list(range(21))
    assert found.loss["sgd"].shape == (5, 21) and found.alive["sgd"].all()
    for task, key in enumerate(jax.random.split(KEY, 5)):
        task_key, init_key = jax.random.split(key, 4)[:2]
        drawn = family.sample(task_key, ())
        matrix, offset = np.asarray(drawn.W, np.float64), np.asarray(drawn.b, np.float64)
        x = np.asarray(family.init(init_key, drawn), np.float64)
        for step in range(21):
            residual = matrix @ x - offset
            np.testing.assert_allclose(found.loss["sgd"][task, step], np.mean(residual**2), rtol=2e-5, atol=1e-9)
            x = x - 0.5 * 2 / 3 * matrix.T @ residual
    np.testing.assert_allclose(found.final["sgd"]["train"]["loss"], found.loss["sgd"][:, -1], rtol=1e-6)
    assert found.evaluated_on == "the exact loss"
    # The mean along the run takes every step, recorded or not.
    coarse = evaluate({"sgd": optax.sgd(0.5)}, family, KEY, horizon=20, num_tasks=5, train_horizon=4, record_every=5)
    every = np.cumsum(found.loss["sgd"][:, 1:], axis=1) / np.arange(1, 21)
    np.testing.assert_allclose(found.along["sgd"][:, 1:], every, rtol=1e-5)
    np.testing.assert_allclose(coarse.along["sgd"][:, 1:], every[:, coarse.steps[1:] - 1], rtol=1e-5)


def test_all_optimizers_see_the_same_tasks_starts_and_minibatches() -> None:
    sgd = OPTIMIZERS["sgd"]()
    phi = {"learning_rate": jnp.log(jnp.float32(0.1))}
    entries = {"one": optax.sgd(0.1), "other": (sgd, phi), "adam": optax.adam(0.1)}
    found = evaluate(entries, noisy_bowl(), KEY, horizon=7, num_tasks=4)
    np.testing.assert_array_equal(found.loss["one"][:, 0], found.loss["adam"][:, 0])
    assert len(set(found.loss["one"][:, 0])) == 4
    np.testing.assert_allclose(found.loss["one"], found.loss["other"], rtol=1e-5)
    alone = evaluate({"adam": entries["adam"]}, noisy_bowl(), KEY, horizon=7, num_tasks=4)
    np.testing.assert_allclose(alone.loss["adam"], found.loss["adam"], rtol=1e-5)


def test_other_parameters_of_an_optimizer_do_not_compile_anew(family: TaskFamily) -> None:
    traced = []
    adam = OPTIMIZERS["adam"]()
    counted = adam._replace(bind=lambda phi: (traced.append(1), adam.bind(phi))[1])
    rates = [{"learning_rate": jnp.log(jnp.float32(rate))} for rate in (0.1, 0.01, 0.001)]
    first = evaluate({"adam": (counted, rates[0])}, family, KEY, horizon=6, num_tasks=3)
    compiled = outcomes._jitted_run()._cache_size()
    for phi in rates[1:]:
        traced.clear()
        other = evaluate({"adam": (counted, phi)}, family, jax.random.key(9), horizon=6, num_tasks=3)
        assert len(traced) <= 1  # the shapes of the state, for the chunks
        assert not np.array_equal(first.loss["adam"], other.loss["adam"])
    assert outcomes._jitted_run()._cache_size() == compiled


def test_a_plain_transformation_compiles_once(family: TaskFamily) -> None:
    adam = optax.adam(0.1)
    evaluate({"adam": adam}, family, KEY, horizon=5, num_tasks=2)
    compiled = outcomes._jitted_run()._cache_size()
    evaluate({"again": adam}, family, jax.random.key(1), horizon=5, num_tasks=2)
    assert outcomes._jitted_run()._cache_size() == compiled


@pytest.mark.parametrize("at_once", [None, 1, 4])
def test_runs_with_phi_of_their_own_equal_a_loop_over_them(at_once: int | None) -> None:
    family, adam = noisy_bowl(), OPTIMIZERS["adam"]()
    rates = jnp.log(jnp.array([0.3, 0.1, 0.01]))
    steps = plan(family, 6, every=2)
    keys = outcomes.task_keys(KEY, 5)
    each = {"learning_rate": jnp.repeat(rates, 5)}, family, jnp.tile(keys, 3)
    found = outcomes.run_each(adam, *each, steps=steps, at_once=at_once, splits=("train",))
    assert found.loss.shape == found.alive.shape == (15, 4)
    assert found.final["train"]["loss"].shape == (15,)
    for index, rate in enumerate(rates):
        one = outcomes.run(adam, {"learning_rate": rate}, family, KEY, steps=steps, num_tasks=5)
        np.testing.assert_allclose(found.loss[5 * index : 5 * index + 5], one.loss, rtol=2e-5)


def test_however_many_runs_there_are_one_program_runs_them() -> None:
    family, adam = noisy_bowl(), OPTIMIZERS["adam"]()
    steps = plan(family, 6, every=2)
    keys = outcomes.task_keys(KEY, 9)
    compiled = outcomes._jitted_run()._cache_size()
    for total in (4, 1, 9):
        rows = {"learning_rate": jnp.zeros(total)}
        outcomes.run_each(adam, rows, family, keys[:total], steps=steps, at_once=4)
    assert outcomes._jitted_run()._cache_size() == compiled + 1


def test_runs_of_other_lengths_go_through_the_same_program_and_begin_alike() -> None:
    family, adam = noisy_bowl(), OPTIMIZERS["adam"]()
    phi, compiled = {"learning_rate": jnp.log(0.1)}, outcomes._jitted_run()._cache_size()
    short, long, uneven = (
        outcomes.run(adam, phi, family, KEY, steps=np.array(steps), num_tasks=3)
        for steps in ([0, 2, 4, 6], [0, 4, 8, 12], [0, 1, 2, 6])
    )
    assert outcomes._jitted_run()._cache_size() == compiled + 1
    np.testing.assert_array_equal(short.loss[:, [0, 2]], long.loss[:, [0, 1]])
    np.testing.assert_array_equal(short.along[:, [1, 3]], uneven.along[:, [2, 3]])
    np.testing.assert_array_equal(short.peak[:, 3], uneven.peak[:, 3])


@pytest.mark.parametrize("num_tasks", [4, 5])
def test_neither_devices_nor_chunks_change_the_numbers(num_tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(jax.local_devices()) == 2  # by tests/conftest.py
    family, adam = noisy_bowl(), optax.adam(0.1)
    results = []
    for devices, state_bytes in ((1, 2**20), (2, 2**20), (1, 100), (2, 100)):
        monkeypatch.setattr(outcomes, "STATE_BYTES", state_bytes)
        found = evaluate({"a": adam}, family, KEY, horizon=5, num_tasks=num_tasks, num_devices=devices)
        assert found.loss["a"].shape == (num_tasks, 6)
        results.append(found.loss["a"])
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-5)


def test_a_dead_task_is_infinite_from_then_on() -> None:
    found = evaluate({"sgd": optax.sgd(0.1)}, cliff(), KEY, horizon=5, num_tasks=12)
    loss, alive = found.loss["sgd"], found.alive["sgd"]
    dead = ~alive[:, -1]
    assert 0 < dead.sum() < 12
    assert np.isfinite(loss[:, 0]).all() and np.isinf(loss[dead, 1:]).all() and np.isfinite(loss[~dead]).all()
    assert np.isinf(found.final["sgd"]["train"]["loss"][dead]).all()


def there_and_back(far: float) -> optax.GradientTransformation:
    """Steps of +far and -far by turns."""

    def update(updates, state, params=None):
        step = jnp.where(state % 2 == 0, far, -far)
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, step), updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def test_a_failure_between_recorded_points_is_seen() -> None:
    jumps = there_and_back(30.0)
    often, seldom = (
        evaluate({"a": jumps}, bowl(), KEY, horizon=4, num_tasks=3, record_every=every) for every in (1, 4)
    )
    start = often.loss["a"][:, :1]
    np.testing.assert_allclose(seldom.loss["a"], np.tile(start, 2), rtol=1e-5)  # back where it began
    np.testing.assert_allclose(seldom.peak["a"][:, 1], often.loss["a"][:, 1], rtol=1e-5)
    np.testing.assert_allclose(often.peak["a"], np.maximum.accumulate(often.loss["a"], axis=1), rtol=1e-5)
    assert (seldom.peak["a"][:, 1] > 10 * start[:, 0]).all()
    for found in (often, seldom):
        assert statistics.failed(found.peak["a"], found.scale).tolist() == [True] * 3


def test_metrics_of_every_split_at_the_end() -> None:
    digits = classifier(hidden_layers=0)
    found = evaluate({"adam": optax.adam(0.05)}, digits, KEY, horizon=40, num_tasks=2, record_every=20)
    assert found.steps.tolist() == [0, 20, 40]
    final = found.final["adam"]
    assert set(final) == {"train", "validation", "test"}
    assert final["test"]["accuracy"].shape == (2,) and (final["test"]["accuracy"] > 0.8).all()
    assert (found.loss["adam"][:, -1] < 0.5 * found.loss["adam"][:, 0]).all()
    assert found.evaluated_on.startswith("the full training set")


def test_the_training_horizon_and_its_tenfold_are_recorded() -> None:
    exact, noisy = quadratic(dim=2), noisy_bowl()
    assert plan(exact, 300, 30).tolist() == list(range(301))
    assert plan(noisy, 500, 50).tolist() == list(range(0, 501, 5))  # one distance
    assert plan(noisy, 50, 50).tolist() == list(range(51))
    odd = plan(noisy, 10_000, 37)
    assert {0, 37, 370, 10_000} <= set(odd.tolist()) and len(odd) < 120
    assert plan(noisy, 20, 7, 10).tolist() == [0, 7, 10, 20]
    assert plan(noisy, 20, 40).tolist() == list(range(21))
    assert len(plan(exact, 50_000, 100)) < 1100


def test_what_cannot_run_is_refused_with_the_reason(family: TaskFamily) -> None:
    with pytest.raises(ValueError, match="'lbfgs' cannot run here.*line search"):
        evaluate({"lbfgs": optax.lbfgs()}, family, KEY, horizon=5, num_tasks=2)
    evaluate({"polyak": optax.polyak_sgd()}, family, KEY, horizon=5, num_tasks=2)  # needs the value, which there is
    with pytest.raises(ValueError, match="'x' is a int"):
        evaluate({"x": 3}, family, KEY, horizon=5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`optimizers` is empty"):
        evaluate({}, family, KEY, horizon=5)
    with pytest.raises(ValueError, match="`family` is 'quadratic'; give a task family"):
        evaluate({"a": optax.sgd(0.1)}, "quadratic", KEY, horizon=5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`key` is 0; give a random key, such as jax.random.key\(0\)"):
        evaluate({"a": optax.sgd(0.1)}, family, 0, horizon=5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`horizon` is '5'; give a whole number"):
        evaluate({"a": optax.sgd(0.1)}, family, KEY, horizon="5")  # pyright: ignore[reportArgumentType]
    for wrong in ({"horizon": 0}, {"horizon": 5, "num_tasks": 0}, {"horizon": 5, "train_horizon": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            evaluate({"a": optax.sgd(0.1)}, family, KEY, **wrong)
    with pytest.raises(ValueError, match="`num_devices` \\(3\\) must be between 1 and 2"):
        evaluate({"a": optax.sgd(0.1)}, family, KEY, horizon=5, num_devices=3)


def test_it_is_the_public_function() -> None:
    assert metaopt.evaluate is evaluate


# f(θ_20) of two tasks in double precision, as the version before one estimate served a step had it.
BEFORE = {
    ("networks_rl", "quadratic"): (0.022846893068699133, 0.003558759408351672),
    ("networks_rl", "rosenbrock"): (1399.4956415552742, 179.1357282153635),
    ("networks_bp", "quadratic"): (0.025138647066785005, 0.03259386199661076),
    ("networks_bp", "rosenbrock"): (511.0673574827379, 213.92981042352338),
}


@pytest.mark.parametrize(("name", "task"), BEFORE)
def test_shipped_optimizers_run_on_deterministic_families_as_they_did(name: str, task: str, x64: None) -> None:
    trained = read_optimizer(SHIPPED / f"{name}.safetensors")
    phi = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), trained.meta_params)
    entry = {name: (build_optimizer(trained.experiment.optimizer), phi)}
    found = evaluate(entry, TASKS[task](), jax.random.key(5), horizon=20, num_tasks=8)
    np.testing.assert_allclose(found.loss[name][:2, 20], BEFORE[name, task], rtol=1e-10)


def test_curves_are_of_f_alone_under_a_companion(family: TaskFamily) -> None:
    found = evaluate({"sgd": optax.sgd(0.5)}, with_companion(family, 4), KEY, horizon=6, num_tasks=3)
    np.testing.assert_allclose(found.loss["sgd"][:, -1], found.final["sgd"]["train"]["loss"], rtol=1e-6)
    assert (found.loss["sgd"][:, -1] < found.loss["sgd"][:, 0]).all()
