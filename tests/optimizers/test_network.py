"""The features-major pass against flax's own cells."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers.network import LSTM, Head, forward, fuse, gate_values, init_cells, init_params, product, tanh


@pytest.mark.parametrize(("num_layers", "input_units"), [(1, 0), (2, 0), (3, 0), (2, 6)])
def test_forward_equals_flax_over_several_steps(num_layers, input_units):
    network = LSTM(7, num_layers, (Head("direction"), Head("log_alpha", constant=True, bias=-3.0)), input_units)
    params = init_params(network, 4, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    inputs = jax.random.normal(jax.random.key(1), (3, 4, 5))  # [steps, features, columns]
    cells = init_cells(network, 5, jnp.float32)
    carry = [(jnp.zeros((5, 7)), jnp.zeros((5, 7)))] * num_layers
    weights = fuse(network, params)
    for x in inputs:
        outputs, cells = forward(weights, x, cells)
        _, by_gates = gate_values(params, x.T, carry)
        expected, carry = network.apply({"params": params}, x.T, carry)
        np.testing.assert_allclose(outputs.T, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(by_gates[-1][1], carry[-1][1], rtol=1e-5, atol=1e-6)
    for cell, (c, h) in zip(cells, carry, strict=True):
        np.testing.assert_allclose(cell.c.T, c, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(cell.h.T, h, rtol=1e-5, atol=1e-6)


def test_a_constant_head_starts_at_its_bias_for_every_input():
    network = LSTM(5, 2, (Head("direction"), Head("log_alpha", constant=True, bias=-3.0)))
    weights = fuse(network, init_params(network, 2, jax.random.key(0)))
    outputs, _ = forward(
        weights, 10 * jax.random.normal(jax.random.key(1), (2, 6)), init_cells(network, 6, jnp.float32)
    )
    np.testing.assert_array_equal(outputs[1], np.full(6, -3.0, np.float32))
    assert np.std(outputs[0]) > 0.01  # the direction does not start flat


def test_tanh_is_as_exact_as_float32_allows_and_so_is_its_derivative():
    x = jnp.concatenate([jnp.linspace(-12, 12, 100_001), jnp.geomspace(1e-20, 1, 1000)])
    exact = np.tanh(np.asarray(x, np.float64))
    np.testing.assert_allclose(tanh(x), exact, rtol=4e-7)
    slope = jax.vmap(jax.grad(tanh))(x)
    np.testing.assert_allclose(slope, 1 - exact**2, atol=1e-6)
    assert np.isnan(tanh(jnp.asarray(jnp.nan)))


@pytest.mark.parametrize("columns", [6, 40])
@pytest.mark.parametrize("wrt", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_the_product_and_its_derivatives_in_both_modes(columns, wrt):
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = [(4, 6), (2, columns), (3, columns)]
    args = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]

    def plain(matrix, x, h):
        return jnp.sin(matrix[:, :1] + matrix[:, 1:3] @ x + matrix[:, 3:] @ h)

    def ours(matrix, x, h):
        return jnp.sin(product(matrix, x, h))

    np.testing.assert_allclose(ours(*args), plain(*args), rtol=1e-5, atol=1e-6)
    for a, b in zip(*(jax.grad(lambda *a, f=f: f(*a).sum(), wrt)(*args) for f in (ours, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    tangents = [jax.random.normal(key, x.shape) for key, x in zip(keys[3:], args, strict=True)]
    a, b = (jax.jvp(f, args, tangents)[1] for f in (ours, plain))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
