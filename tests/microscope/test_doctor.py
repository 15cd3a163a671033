"""The doctor's figures against direct computation, and a whole examination of something tiny."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.choices import choice, parse_choice
from metaopt.errors import UserError
from metaopt.estimators import truncated_backprop
from metaopt.experiment import Evaluation, Experiment, MetaOptimizer, build_optimizer, part_moved
from metaopt.microscope import doctor, gradient_quality
from metaopt.microscope.advice import reference_in_words
from metaopt.microscope.doctor import Variant, diagnose, plan
from metaopt.microscope.doctor_plan import settle
from metaopt.microscope.doctor_records import describe_inputs
from metaopt.microscope.gradient_quality import (
    Samples,
    assess,
    clip_samples,
    draw,
    prepare_samples,
    resolved_norm,
    sample_gradients,
)
from metaopt.microscope.inner_runs import InnerRuns, watch
from metaopt.microscope.jacobian_growth import growth_along
from metaopt.optimizers.network import GATES, gate_values
from metaopt.report.doctor_pictures import doctor_figures
from metaopt.training.meta_optimizer import make_clips
from metaopt.types import TaskFamily
from tests.toys import bowl, made


def drawn(mean: np.ndarray, spread: float, lives: int, seed: int, windows: int = 1) -> Samples:
    noise = np.random.default_rng(seed).normal(size=(lives, windows, len(mean)))
    return Samples((mean + spread * noise).astype(np.float32), np.ones((lives, windows)))


# ----- gradients ------------------------------------------------------------------------------------------------------


def test_figures_of_gradients_of_known_law() -> None:
    # ‖μ‖² = 25 over a covariance of trace 20 · 2² = 80; the reference lies at 60 degrees and is twice as long.
    mine, theirs = np.zeros(20), np.zeros(20)
    mine[0], theirs[:2] = 5.0, 10 * np.array([0.5, 0.75**0.5])
    quality = assess(drawn(mine, 2.0, 400, 0), drawn(theirs, 1.0, 500, 1))
    assert quality.cosine is not None and quality.norm_ratio is not None
    for measured, truth in ((quality.cosine, 0.5), (quality.norm_ratio, 0.5), (quality.snr, 25 / 80)):
        assert 0 < measured.error < 0.1
        assert abs(measured.value - truth) < 4 * measured.error
    assert quality.one_step_cosine == pytest.approx(0.5 * 5 / 105**0.5, rel=0.1)
    assert quality.norm == pytest.approx(5, rel=0.1)


def test_a_reference_may_have_more_lives_than_what_it_is_compared_with() -> None:
    """Task by task the same in the first places, with noise in common that must not count as agreement."""
    both, more = drawn(np.zeros(20), 1.0, 100, 0).gradient, drawn(np.zeros(20), 1.0, 900, 1).gradient
    own, theirs = np.eye(20)[0] * 3, (np.eye(20)[0] + np.eye(20)[1]) * 2
    few = Samples((own + both).astype(np.float32), np.ones((100, 1)))
    many = Samples((theirs + np.concatenate([both, more])).astype(np.float32), np.ones((1000, 1)))
    for first, second, ratio in ((few, many, 3 / 8**0.5), (many, few, 8**0.5 / 3)):
        quality = assess(first, second)
        assert quality.cosine is not None and quality.norm_ratio is not None
        assert abs(quality.cosine.value - 0.5**0.5) < 4 * quality.cosine.error < 0.2
        assert abs(quality.norm_ratio.value - ratio) < 4 * quality.norm_ratio.error < 0.4
    a, b = few.gradient[:4, 0].astype(float), many.gradient[:7, 0].astype(float)

    def by_hand(without: int | None) -> float:
        pairs = [(i, j) for i in range(4) for j in range(7) if i != j and without not in (i, j)]
        return float(np.mean([a[i] @ b[j] for i, j in pairs]))

    wanted = [by_hand(None), *(by_hand(life) for life in range(7))]
    np.testing.assert_allclose(gradient_quality._across(a, b), wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient_quality._across(b, a), wanted, rtol=1e-6)


def test_draws_go_on_until_the_mean_is_resolved_or_will_not_be() -> None:
    asked: list[int] = []

    def sampler(mean: float, heavy: float = 0.0) -> gradient_quality.Sampler:
        asked.clear()

        def sample(batch: int) -> Samples:
            asked.append(batch)
            found = drawn(np.full(30, mean), 1.0, 20, seed=batch)
            found.gradient[7] += heavy
            return found

        return sample

    found = draw(sampler(0.15), 32)  # a squared norm of 0.7, known to within 8 over the number of lives
    assert asked == [*range(len(found.gradient) // 20)] and 2 <= len(asked) < 32
    assert resolved_norm(found, gradient_quality.CLEARLY)
    assert len(draw(sampler(1.0), 32).gradient) == 20 and asked == [0]
    assert len(draw(sampler(0.0), 5).gradient) == 100 and asked == [0, 1, 2, 3, 4]
    assert len(draw(sampler(0.0, heavy=100.0), 32).gradient) == 20  # one life outweighs all others


def test_what_stands_in_for_an_unresolved_reference_is_named() -> None:
    def variant(name: str, window: int = 8) -> Variant:
        return Variant(choice(name), 8, window)

    noise, known = drawn(np.zeros(9), 1.0, 20, 0), drawn(np.ones(9), 0.1, 20, 1)
    backward = (variant("truncated_backprop"), known)
    smoothed = (variant("evolution_strategies"), known)
    unbiased = variant("reparameterised")
    for samples, others, wanted in (
        (known, [backward, smoothed], ("unbiased", unbiased)),
        (noise, [backward, smoothed], ("smoothed", smoothed[0])),
        (noise, [backward, (smoothed[0], noise)], ("whole_window", backward[0])),
        (noise, [(backward[0], ValueError("no")), (variant("truncated_backprop", 4), known)], ("unbiased", unbiased)),
    ):
        reference = settle(unbiased, samples, others)
        assert (reference.kind, reference.variant) == wanted
        entry = {"kind": reference.kind, "estimator": str(reference.variant.picked), "horizon": 8}
        words = {"unbiased": "the unbiased gradient", "smoothed": "σ = 0.01", "whole_window": "truncated_backprop over"}
        assert words[reference.kind] in reference_in_words(entry)


def test_signal_to_noise_by_hand() -> None:
    # Two windows a life: mean ‖g‖² over meta-steps, less the mean of g_i·g_j over different lives.
    samples = drawn(np.arange(3.0), 1.0, 5, 3, windows=2)
    g = samples.gradient.astype(float)
    lives = g.mean(axis=1)
    square = np.mean([lives[i] @ lives[j] for i in range(5) for j in range(5) if i != j])
    quality = assess(samples, samples)
    assert quality.snr.value == pytest.approx(square / ((g**2).sum(axis=2).mean() - square))


def test_shared_noise_is_no_agreement_and_the_unresolved_is_left_out() -> None:
    noise = drawn(np.zeros(50), 1.0, 100, 0)
    quality = assess(noise, noise)
    assert quality.cosine is None and quality.norm is None and not resolved_norm(noise)
    assert quality.snr.value < 4 * quality.snr.error + 0.01


def test_nonfinite_and_clipped_gradients_are_counted() -> None:
    samples = drawn(np.ones(4), 0.01, 10, 0)
    samples.gradient[3, 0, 1] = np.nan
    samples.gradient[5, 0, 0] = 30.0
    assert assess(samples, samples).nonfinite == pytest.approx(0.1)

    def share(**options: float) -> float:
        return clip_samples(samples, make_clips(MetaOptimizer(**{"clip_norm": None, **options})))[1]

    assert share(clip_norm=5.0) == pytest.approx(1 / 9)
    assert share(clip_norm=5.0, clip_value=3.0) == pytest.approx(1 / 9)
    assert share() == 0
    assert share(clip_norm=0.5, clip_value=40.0) == 1
    assert share(clip_adaptive=2.0) == pytest.approx(
        1 / 9
    )  # in the order of meta-steps, past the one that is not finite
    clipped, _ = clip_samples(samples, make_clips(MetaOptimizer(clip_norm=0.5)))
    norms = np.linalg.norm(clipped.gradient[:, 0], axis=1)
    np.testing.assert_allclose(norms[np.isfinite(norms)], 0.5, rtol=1e-6)


def test_samples_are_the_estimators_own_and_share_tasks() -> None:
    optimizer = build_optimizer(choice("sgd", learning_rate=0.1))
    phi = optimizer.init(jax.random.key(0))
    family, key = bowl(), jax.random.key(5)

    def sampled(horizon: int, window: int) -> tuple[Samples, float]:
        estimator = made(
            truncated_backprop, optimizer, num_tasks=2, horizon=horizon, unroll_length=window, num_devices=1
        )
        samples = sample_gradients(estimator, phi, (family,), key, num_lives=3, windows=horizon // window)
        own = estimator.init(jax.random.fold_in(key, 2), phi, (family,))
        first = estimator.estimate(jax.random.fold_in(key, 2), phi, own, (family,))[0]
        return samples, float(first["learning_rate"])

    whole, once = sampled(4, 4)
    assert whole.gradient.shape == (3, 1, 1) and (whole.alive == 1).all()
    assert whole.gradient[1, 0, 0] == pytest.approx(once, rel=1e-5)
    # The first window of the second life begins with the same tasks: half of the run, from the same starts.
    with_more = prepare_samples(
        made(truncated_backprop, optimizer, num_tasks=2, horizon=4, num_devices=1),
        *(phi, (family,), key),
        num_lives=1,
        windows=1,
    )
    np.testing.assert_allclose([with_more(i).gradient[0] for i in range(3)], whole.gradient, rtol=1e-5)
    halves, _ = sampled(4, 2)
    short, once = sampled(2, 2)
    assert halves.gradient[1, 0, 0] == pytest.approx(short.gradient[1, 0, 0], rel=1e-5)
    assert short.gradient[1, 0, 0] == pytest.approx(once, rel=1e-5)


# ----- Jacobians ------------------------------------------------------------------------------------------------------

EIGENVALUES = jnp.array([0.5, 2.0, 3.0])


def paraboloid() -> TaskFamily:
    """½ x'Ax with known eigenvalues, in a rotated frame."""
    q = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (3, 3)))[0]
    matrix = q @ jnp.diag(EIGENVALUES) @ q.T
    return TaskFamily(
        data=(),
        sample=lambda key, data: (),
        init=lambda key, task: jax.random.normal(key, (3,)),
        batch=lambda key, task, data: (),
        loss=lambda params, task, batch: 0.5 * params @ matrix @ params,
        eval_batch=lambda task, data, split: (),
    )


@pytest.mark.parametrize(("name", "rate"), [("sgd", 0.2), ("sgd", 0.8), ("momentum", 0.4)])
def test_growth_of_a_linear_system_is_its_spectral_radius(name: str, rate: float) -> None:
    optimizer = build_optimizer(choice(name, learning_rate=rate))
    phi, keys = optimizer.init(jax.random.key(0)), jax.random.split(jax.random.key(0), 2)
    steps = {"num_starts": 2, "spacing": 3, "length": 3, "iterations": 60}
    growth, alive = growth_along(optimizer, phi, paraboloid(), keys, **steps)
    if name == "sgd":
        truth = float(jnp.max(jnp.abs(1 - rate * EIGENVALUES)))
    else:  # x' = x + b', b' = μ b - α λ x
        radii = [np.abs(np.linalg.eigvals([[1 - rate * a, 0.9], [-rate * a, 0.9]])).max() for a in EIGENVALUES.tolist()]
        truth = max(radii)
    assert growth.shape == (2, 2) and alive.all()
    np.testing.assert_allclose(growth, truth, rtol=0.02)


def test_first_order_growth_holds_the_task_for_constant() -> None:
    optimizer = build_optimizer(choice("sgd", learning_rate=0.8))
    phi, keys = optimizer.init(jax.random.key(0)), jax.random.split(jax.random.key(0), 1)
    growth, _ = growth_along(optimizer, phi, paraboloid(), keys, num_starts=1, spacing=2, length=2, second_order=False)
    np.testing.assert_allclose(growth, 1.0, rtol=1e-6)


# ----- inner runs -----------------------------------------------------------------------------------------------------


def test_inputs_gates_and_steps_are_those_of_the_optimizer() -> None:
    picked = choice("lstm", hidden_size=4, features="all")
    optimizer, family = build_optimizer(picked), bowl(3)
    phi = optimizer.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 2)
    assert optimizer.observe is not None and optimizer.observe.inputs[1] == "∇²"
    assert len(optimizer.observe.inputs) == 10 and optimizer.observe.gates == GATES
    runs = watch(optimizer, phi, family, keys, horizon=5, explore=False, num_coordinates=3)
    assert runs.inputs is not None and runs.saturated is not None
    # By hand, task by task, through the public update.
    order = jax.random.permutation(jax.random.key(0), 3)
    for index, key in enumerate(keys):
        task_key, init_key, *_ = jax.random.split(key, 4)
        task = family.sample(task_key, ())
        params = family.init(init_key, task)
        tx = optimizer.bind(phi)
        state = tx.init(params)
        gradients = []
        for step in range(5):
            gradient = jax.grad(family.loss)(params, task, ())
            gradients.append(gradient)
            updates, state = tx.update(gradient, state, params)
            params = params + updates
            assert float(runs.loss[step, index]) == pytest.approx(float(family.loss(params, task, ())), rel=1e-5)
            assert float(runs.update_norm[step, index]) == pytest.approx(float(jnp.linalg.norm(updates)), rel=1e-4)
        seen = runs.inputs[4, index]
        v = sum(0.999 ** (4 - t) * 0.001 * g**2 for t, g in enumerate(gradients))
        unit = gradients[4] / jnp.linalg.norm(gradients[4])
        for column, truth in ((0, gradients[4]), (3, v), (5, unit)):
            np.testing.assert_allclose(seen[:, column], truth[order], rtol=1e-4, atol=1e-6)


def test_gates_are_flaxs() -> None:
    x = jax.random.normal(jax.random.key(0), (5, 3))
    cells = [tuple(jax.random.normal(jax.random.key(i + j), (5, 4)) for j in (1, 2)) for i in (0, 2)]
    cell = nn.OptimizedLSTMCell(4)
    params = [cell.init(jax.random.key(9 + i), cells[i], size)["params"] for i, size in enumerate((x, cells[0][1]))]
    gates, after = gate_values({f"lstm_{i}": layer for i, layer in enumerate(params)}, x, cells)
    below = x
    for layer in range(2):
        (c, h), below = cell.apply({"params": params[layer]}, cells[layer], below)
        np.testing.assert_allclose(after[layer][0], c, rtol=1e-5)
        np.testing.assert_allclose(after[layer][1], h, rtol=1e-5)
        assert set(gates[layer]) == set(GATES)


def test_ranges_of_inputs_by_hand() -> None:
    def run(values: np.ndarray) -> InnerRuns:
        steps = len(values)
        inputs = values.reshape(steps, 1, 1, 1)
        alive = np.ones((steps, 1), bool)
        return InnerRuns(np.ones((steps, 1)), np.ones(1), np.zeros(1), np.ones((steps, 1)), alive, inputs, None)

    training, other = np.linspace(-1, 1, 1001), np.array([0.0, 0.5, 0.9979, 0.9981, 7.0, -9.0])
    training = np.append(training, [50.0, 0.0])  # beyond the horizon
    found = describe_inputs([("a", True, run(training)), ("b", False, run(other))], ["∇"], 1001)
    assert found["range"]["low"] == pytest.approx(-0.998) and found["range"]["high"] == pytest.approx(0.998)
    within, beyond, evaluation = found["tasks"]
    assert within["outside"] == pytest.approx(2 / 1001)
    assert beyond["outside"] == pytest.approx(0.5)
    assert evaluation["outside"] == pytest.approx(3 / 6)
    np.testing.assert_allclose(evaluation["quantiles"][0][[0, 2, 4]], [-9, (0.5 + 0.9979) / 2, 7])
    np.testing.assert_allclose(evaluation["magnitude"][0][[0, 4]], [0, 9])


# ----- the whole ------------------------------------------------------------------------------------------------------


def test_plan_compares_windows_and_every_estimator_once() -> None:
    experiment = tiny(estimator=choice("truncated_backprop"), horizon=20, unroll_length=10)
    variants, references = plan(experiment, build_optimizer(experiment.optimizer), lambda variant: 1.0)
    shown = [(variant.picked.name, variant.horizon, variant.window) for variant in variants]
    assert len(set(shown)) == len(shown)
    assert shown[:4] == [("truncated_backprop", 20, window) for window in (10, 20, 4, 1)]
    assert variants[0].own and not any(variant.own for variant in variants[1:])
    assert {name for name, horizon, _ in shown if horizon == 20} >= {"mixture", "evolution_strategies"}
    assert [reference.horizon for reference in references] == [20, 200]
    values = tiny(estimator=choice("evolution_strategies", objective_batch="full"))
    _, (reference, *_) = plan(values, build_optimizer(values.optimizer), lambda variant: 1.0)
    assert reference.picked.options == {"second_order": True, "objective_batch": "full"}
    dear, _ = plan(experiment, build_optimizer(experiment.optimizer), lambda variant: 1e9)
    assert {variant.horizon for variant in dear} == {20}


@pytest.mark.parametrize(("estimator", "part"), [("hoag", "task"), ("evolution_strategies:of=both", "both")])
def test_plan_compares_estimators_of_one_part_of_phi(estimator: str, part: str) -> None:
    """Hypergradients move the task's settings by default and others the optimizer: they have no direction in common."""
    experiment = tiny(estimator=parse_choice(estimator), optimizer=choice("sgd"), tasks=(choice("ridge_features"),))
    variants, references = plan(experiment, build_optimizer(experiment.optimizer), lambda variant: 1.0)
    assert {part_moved(variant.picked) for variant in [*variants, *references]} == {part}
    assert variants[0].picked == experiment.estimator and len(references) == 2
    names = {variant.picked.name for variant in variants}
    assert names >= {"truncated_backprop", "forward_mode"} and ("drmad" in names) == (part == "task")


def tiny(**changes: object) -> Experiment:
    experiment = Experiment(
        tasks=(choice("quadratic", dim=2),),
        optimizer=choice("lstm", hidden_size=4, num_layers=1, noise="per_step"),
        estimator=choice("reparameterised"),
        num_tasks=2,
        horizon=8,
        num_devices=1,
        evaluation=Evaluation(tasks=(choice("rosenbrock", pairs=1),), horizons=(16,)),
    )
    return dataclasses.replace(experiment, **changes)  # type: ignore[arg-type]


def test_staggered_tasks_are_sampled_in_whole_lives() -> None:
    """A task that lived on from one draw to the next would make their noise agree."""
    found = []
    for options in ({}, {"staggered": True}):
        experiment = tiny(
            optimizer=choice("sgd"), estimator=choice("truncated_backprop", **options), unroll_length=4, num_tasks=4
        )
        phi = build_optimizer(experiment.optimizer).init(jax.random.key(0))
        examination = doctor._Examination(experiment, phi, 4, seed=0)
        found.append(examination.sample(Variant(experiment.estimator, 8, 4, own=True), 1e-9)(0).gradient)
    np.testing.assert_array_equal(*found)


def test_estimates_from_particles_are_refused_at_once() -> None:
    experiment = Experiment(
        tasks=(choice("tuned_mixture"),),
        optimizer=choice("sgd"),
        estimator=choice("truncated_backprop"),
        oracle=choice("sosmc", num_particles=10),
    )
    with pytest.raises(UserError, match="^oracle sosmc: its estimates have no derivative in θ"):
        diagnose(experiment, build_optimizer(choice("sgd")).init(jax.random.key(0)))


def test_a_whole_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIVES", (4, 12))
    monkeypatch.setattr(doctor, "FAR", 2)
    whole = plan

    def few(*arguments: Any) -> tuple[list[Variant], list[Variant]]:
        variants, references = whole(*arguments)
        return [variant for variant in variants if variant.own or "score" in variant.picked.name], references[:1]

    monkeypatch.setattr(doctor, "plan", few)
    experiment = tiny()
    optimizer = build_optimizer(experiment.optimizer)
    parts: list[tuple[int, int]] = []
    result = diagnose(
        experiment, optimizer.init(jax.random.key(0)), progress=lambda done, of, what: parts.append((done, of))
    )
    assert parts == [(i, 7) for i in range(7)]
    own, refused = result["estimators"]
    assert own["own"] and own["num_lives"] in (12, 24, 48) and own["nonfinite"] == 0
    assert "one draw a step lies on a ray" in refused["reason"]
    assert [entry["order"] for entry in result["jacobian"]] == ["second", "first"]
    assert [entry["task"] for entry in result["steps"]] == ["quadratic:dim=2", "rosenbrock:pairs=1"]
    assert {entry["steps"] for entry in result["inputs"]["tasks"]} == {"within", "beyond"}
    assert all(0 <= share <= 1 for entry in result["gates"] for share in entry["layers"][0].values())
    assert set(doctor_figures(result)) == {"estimators", "jacobian", "inputs", "steps"}  # no gate is saturated
    assert set(doctor_figures(result, narrow=True)) == set(doctor_figures(result))
