"""Random rescaling: the same functions, seen through other coordinates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metaopt.registry import TASKS
from metaopt.tasks import classifier, quadratic, rescaled
from metaopt.types import Estimate, Oracle


@pytest.mark.parametrize("name", TASKS)
def test_same_start_same_values_and_chain_rule(name, x64):
    plain = TASKS[name]()
    family = rescaled(plain, 1.5)

    @jax.jit
    def run(key):
        task_key, init_key, batch_key = jax.random.split(key, 3)
        task = family.sample(task_key, family.data)
        z, x = family.init(init_key, task), plain.init(init_key, task.task)
        batch = family.batch(batch_key, task, family.data)
        rescaled_one = jax.value_and_grad(family.loss)(z, task, batch)
        plain_one = jax.value_and_grad(plain.loss)(x, task.task, batch)
        metrics = [f.metrics(*at, batch) for f, at in ((family, (z, task)), (plain, (x, task.task))) if f.metrics]
        return task.drawn, z, x, rescaled_one, plain_one, metrics

    scales, z, x, (loss, gradient), (plain_loss, plain_gradient), metrics = run(jax.random.key(0))
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-10)
    leaves = (jax.tree.leaves(tree) for tree in (scales, z, x, gradient, plain_gradient))
    for c, z_i, x_i, g, plain_g in zip(*leaves, strict=True):
        np.testing.assert_allclose(c * z_i, x_i, rtol=1e-12)
        np.testing.assert_allclose(g, c * plain_g, rtol=1e-7, atol=1e-12)
    assert (family.metrics is None) == (plain.metrics is None)
    assert not metrics or metrics[0] == metrics[1]


def test_law_of_the_scales():
    family = rescaled(classifier(), 2.0)
    scales = jax.jit(family.sample)(jax.random.key(0), family.data).drawn
    logs = [np.log(np.asarray(leaf, np.float64)).ravel() for leaf in jax.tree.leaves(scales)]
    everything = np.concatenate(logs)
    assert stats.kstest(everything, "uniform", args=(-2, 4)).pvalue > 1e-4
    assert abs(everything.mean()) < 4 * np.sqrt(4 / 3 / everything.size)
    assert not np.isclose(logs[0][:10], logs[1][:10]).any()  # leaves have their own draws


def test_everything_else_passes_through():
    plain = classifier(hidden_layers=2)
    family = rescaled(plain, 1.0)
    assert family.data is plain.data and family.splits == plain.splits and family.evaluated_on == plain.evaluated_on
    assert family.name == "classifier:hidden_layers=2 rescaled by exp(±1)"


def test_oracle_sees_the_familys_own_coordinates(x64):
    def estimate(family, task, params, state, key):
        value, gradient = jax.value_and_grad(family.loss)(params, task, ())
        return Estimate(gradient, value, {"shift": family.data}), state + 1

    oracle = Oracle(init=lambda family, task, params, key: jnp.sum(params), estimate=estimate)
    plain = dataclasses.replace(quadratic(dim=4), oracle=oracle, data=jnp.zeros(()))
    family = dataclasses.replace(rescaled(plain, 1.0), data=jnp.ones(()))
    key = jax.random.key(0)
    task = family.sample(key, family.data)
    z = family.init(key, task)
    assert family.oracle is not None
    state = family.oracle.init(family, task, z, key)
    np.testing.assert_allclose(state, jnp.sum(task.drawn * z))
    (gradient, value, aux), state = family.oracle.estimate(family, task, z, state, key)
    np.testing.assert_allclose(value, family.loss(z, task, ()))
    np.testing.assert_allclose(gradient, jax.grad(family.loss)(z, task, ()), rtol=1e-10)
    assert aux["shift"] == 1  # the data of the family that is passed, not a constant
