"""The MLP against a loop in numpy, and what leaves its steps as they are."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import mlp
from metaopt.optimizers.mlps import TIMES
from tests.optimizers.test_controller import away, looped, trees

SHAPES = ((3, 2), (5,), (2, 4, 3))


def factored(squares, decay):
    """Adafactor's estimate of v, and the means it is made of, from the gradients' squares so far."""
    total = sum(decay ** (len(squares) - 1 - i) * (1 - decay) * square for i, square in enumerate(squares))
    mean = total / (1 - decay ** len(squares))
    if mean.ndim < 2:
        return mean, mean, np.zeros_like(mean)
    order = np.argsort(mean.shape, kind="stable")
    short, long = int(order[-2]), int(order[-1])
    row, column = mean.mean(axis=long, keepdims=True), mean.mean(axis=short, keepdims=True)
    # In a tensor of three axes each slice along the first is a matrix of its own.
    v = row * column / row.mean(axis=short, keepdims=True)
    return v, np.broadcast_to(row, mean.shape), np.broadcast_to(column, mean.shape)


def by_hand(phi, params, gradients, output):
    phi = jax.tree.map(lambda x: np.asarray(x, np.float64), phi)
    network, params, out = phi["network"], [np.asarray(x, np.float64) for x in params], []
    past = [[] for _ in params]

    def average(xs, beta):
        return sum(beta ** (len(xs) - 1 - i) * (1 - beta) * x for i, x in enumerate(xs))

    for t, gradient in enumerate(gradients, start=1):
        time, steps = np.tanh(t / np.asarray(TIMES) - 1), []
        for i, g in enumerate(gradient):
            past[i].append(np.asarray(g, np.float64))
            g, squares = past[i][-1], [x**2 for x in past[i]]
            m, root = [average(past[i], beta) for beta in (0.9, 0.99, 0.999)], np.sqrt(average(squares, 0.999))
            v, rows, columns = zip(*(factored(squares, decay) for decay in (0.9, 0.99, 0.999)), strict=True)
            roots = [np.sqrt(x) for x in (*rows, *columns)]
            features = [g, params[i], *m, root, *(x / root for x in m), 1 / root]
            features += [*(g / np.sqrt(x) for x in v), *(a / np.sqrt(b) for a, b in zip(m, v, strict=True))]
            features += [*roots, *(1 / x if x.any() else x for x in roots)]
            features = [x / np.sqrt(np.mean(x**2)) if x.any() else x for x in features]
            x = np.stack([*(x.ravel() for x in features), *(np.full(g.size, one) for one in time)], axis=1)
            linear = x[:, : len(features)] @ phi["linear"]
            for name in sorted(network)[:-1]:
                x = np.maximum(x @ network[name]["kernel"] + network[name]["bias"], 0)
            x = x @ network["output"]["kernel"] + network["output"]["bias"]
            d = linear + x[:, 0]
            if output == "scaled":
                step = -0.001 * d * np.exp(0.001 * x[:, 1])
            else:
                step = -np.exp(phi["log_alpha"]) * d / np.sqrt(np.mean(d**2))
            steps.append(step.reshape(g.shape))
        params = [x + step for x, step in zip(params, steps, strict=True)]
        out.append(steps)
    return out


@pytest.mark.parametrize("output", ["tensor_rms", "scaled"])
def test_steps_equal_a_loop_in_numpy(output):
    optimizer = mlp(output=output)
    phi, (params, gradients, _) = away(optimizer, scale=0.2), trees(4, SHAPES)
    found = looped(optimizer, phi, params, gradients)
    for steps, wanted in zip(found, by_hand(phi, params, gradients, output), strict=True):
        for a, b in zip(steps, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())


def test_it_begins_as_adam_over_its_own_length():
    optimizer, (params, gradients, _) = mlp(), trees(3, SHAPES)
    adam = optax.adam(1.0, b2=0.999, eps=0.0)
    state = adam.init(params)
    for gradient, steps in zip(
        gradients, looped(optimizer, optimizer.init(jax.random.key(0)), params, gradients), strict=True
    ):
        whole, state = adam.update(gradient, state)
        for a, b in zip(steps, whole, strict=True):
            np.testing.assert_allclose(a, math.exp(-4.6) * b / jnp.sqrt(jnp.mean(b**2)), rtol=1e-4)


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**30])
def test_no_step_hangs_on_the_scale_of_the_loss(factor):
    optimizer, (params, gradients, _) = mlp(), trees(3, SHAPES)
    phi = away(optimizer, scale=0.2)
    scaled = jax.tree.map(lambda x: factor * x, gradients)
    for a, b in zip(looped(optimizer, phi, params, gradients), looped(optimizer, phi, params, scaled), strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), a, b)


@pytest.mark.parametrize("options", [dict(hidden_size=0), dict(log_alpha=99.0), dict(output_scale=0.0)])
def test_senseless_options_are_refused(options):
    with pytest.raises(ValueError, match="must"):
        mlp(**options)
