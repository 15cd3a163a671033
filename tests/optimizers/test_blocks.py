"""Columns block by block against all at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import blocks, lstm, rnnprop
from tests.toys import bowl

OPTIMIZERS = {
    "all": lstm(hidden_size=4, num_layers=1, features="all"),
    "scale_free": lstm(hidden_size=4, num_layers=1, features="scale_free"),
    "rnnprop": rnnprop(hidden_size=4, input_units=3),
}


def value_and_gradient(optimizer, second_order):
    family = bowl(9)
    phi = jax.jit(optimizer.init)(jax.random.key(0))

    def loss(phi):
        tx = bind_tasks(optimizer, phi)
        task, state = reset(tx, family, jax.random.split(jax.random.key(1), 3))
        state, trace = unroll(tx, family, task, state, length=4, second_order=second_order)
        return jnp.mean(trace.loss), state.params

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(phi)


@pytest.mark.parametrize(
    ("name", "second_order"),
    [("all", False), ("scale_free", False), ("rnnprop", False), ("all", True), ("rnnprop", True)],
)
def test_an_unroll_and_its_gradient_are_the_same_in_blocks(monkeypatch, name, second_order):
    assert blocks.count_blocks(27) == (1, 27)
    whole = value_and_gradient(OPTIMIZERS[name], second_order)
    monkeypatch.setattr(blocks, "BLOCK", 8)
    assert blocks.count_blocks(27) == (4, 7)  # 28 columns, one of them padding
    parts = value_and_gradient(OPTIMIZERS[name], second_order)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), parts, whole)


def test_blocks_have_a_forward_mode_too(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    optimizer = OPTIMIZERS["all"]
    tx = optimizer.bind(optimizer.init(jax.random.key(0)))
    gradient = jax.random.normal(jax.random.key(1), (30,))
    state = tx.init(gradient)

    def step(gradient):
        return tx.update(gradient, state)[0]

    tangent = jax.random.normal(jax.random.key(2), (30,))
    forward = jax.jvp(step, (gradient,), (tangent,))[1]
    cotangent = jax.random.normal(jax.random.key(3), (30,))
    (reverse,) = jax.vjp(step, gradient)[1](cotangent)
    np.testing.assert_allclose(cotangent @ forward, reverse @ tangent, rtol=1e-4)


def test_memory_of_an_update_stays_a_small_multiple_of_the_parameters():
    optimizer = lstm()
    tx = optimizer.bind(optimizer.init(jax.random.key(0)))
    params = jnp.zeros(100_000)
    state = jax.eval_shape(tx.init, params)
    update = jax.jit(tx.update, donate_argnums=1).lower(params, state).compile()
    assert update.memory_analysis().temp_size_in_bytes < 8 * params.nbytes
