"""Features against sequences computed by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers.features import gradient_statistics, log_and_sign, normalise, rnnprop_inputs, safe_sqrt


def run(features, gradients):
    state = features.init(gradients.shape[1:], gradients.dtype)
    rows = []
    for t, gradient in enumerate(gradients):
        columns, state = features.apply(gradient, jnp.asarray(t + 1), state)
        rows.append(np.stack(columns))
    return np.stack(rows)  # [steps, features, tasks, D]


def by_hand(gradients, form, beta1=0.9, beta2=0.999, eps=1e-8):
    m = v = mn = vn = 0.0
    rows = []
    for t, g in enumerate(np.asarray(gradients, np.float64), start=1):
        n = g / np.linalg.norm(g, axis=-1, keepdims=True)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        mn, vn = beta1 * mn + (1 - beta1) * n, beta2 * vn + (1 - beta2) * n**2

        def ratio(first, second, t=t):
            first, second = first / (1 - beta1**t), second / (1 - beta2**t)
            return first / ((np.sqrt(second) if form == "adam" else second) + eps)

        rows.append(np.stack([g, g**2, m, v, ratio(m, v), n, n**2, mn, vn, ratio(mn, vn)]))
    return np.stack(rows)


@pytest.mark.parametrize("form", ["adam", "printed"])
def test_all_ten_features_follow_the_hand_computed_sequence(form):
    gradients = jax.random.normal(jax.random.key(0), (5, 3, 4)) + 0.5
    expected = by_hand(gradients, form)
    np.testing.assert_allclose(run(gradient_statistics("all", form), gradients), expected, rtol=2e-4, atol=1e-6)


def test_scale_free_features_are_six_and_do_not_change_with_the_scale_of_the_loss():
    gradients = jax.random.normal(jax.random.key(1), (5, 2, 6))
    features = gradient_statistics("scale_free", "adam")
    assert features.size == 6
    np.testing.assert_allclose(run(features, gradients), run(features, 1000.0 * gradients), rtol=1e-4)
    np.testing.assert_allclose(run(features, gradients), by_hand(gradients, "adam")[:, 4:], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(("size", "short"), [(1e-3, 1e-5), (1e-6, 0.0099), (1e-8, 0.5)])
def test_scale_free_features_stop_being_so_at_epsilon(size, short):
    features = gradient_statistics("scale_free", "adam")
    s, n, *_ = run(features, jnp.full((1, 1, 3), size))[0]
    np.testing.assert_allclose(1 - s, short, rtol=0.02, atol=2e-5)
    np.testing.assert_allclose(n, 3**-0.5, rtol=1e-5)
    assert not np.any(run(features, jnp.full((1, 1, 3), 1e-16))[0][1])


def test_gradient_feature_is_the_gradient():
    gradients = jax.random.normal(jax.random.key(2), (2, 2, 3))
    np.testing.assert_array_equal(run(gradient_statistics("gradient", "adam"), gradients)[:, 0], gradients)


@pytest.mark.parametrize("name", ["gradient", "all", "scale_free"])
@pytest.mark.parametrize("form", ["adam", "printed"])
def test_a_zero_gradient_gives_finite_features_and_finite_derivatives(name, form):
    features = gradient_statistics(name, form)

    def total(gradient):
        columns, state = features.apply(gradient, jnp.asarray(1), features.init((1, 3), jnp.float32))
        columns, _ = features.apply(gradient, jnp.asarray(2), state)
        return sum(jnp.sum(column) for column in columns)

    value, derivative = jax.value_and_grad(total)(jnp.zeros((1, 3)))
    assert value == 0.0
    assert np.isfinite(derivative).all()


def test_log_and_sign_matches_the_formula_on_both_branches():
    gradient = jnp.array([[np.e, -np.exp(-5.0), np.exp(-12.0), 0.0]])
    (log, sign), _ = log_and_sign(10.0).apply(gradient, jnp.asarray(1), ())
    np.testing.assert_allclose(log[0], [0.1, -0.5, -1.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(sign[0], [1.0, -1.0, np.exp(-2.0), 0.0], rtol=1e-5)


def test_rnnprop_inputs_match_the_hand_computed_sequence():
    gradients = jax.random.normal(jax.random.key(3), (4, 1, 5))
    m = v = 0.0
    for t, g in enumerate(np.asarray(gradients, np.float64), start=1):
        m, v = 0.95 * m + 0.05 * g, 0.95 * v + 0.05 * g**2
        root = np.sqrt(v / (1 - 0.95**t))
        expected = np.stack([m / (1 - 0.95**t) / root, g / root])
    np.testing.assert_allclose(run(rnnprop_inputs(), gradients)[-1], expected, rtol=1e-4)


def test_normalise_and_safe_sqrt_at_zero():
    assert jax.jacobian(normalise)(jnp.zeros(3)).tolist() == [[0.0] * 3] * 3
    assert jax.grad(safe_sqrt)(0.0) == 0.0
    np.testing.assert_allclose(jnp.linalg.norm(normalise(jnp.array([3e-8, 4e-8]))), 1.0, rtol=1e-6)
