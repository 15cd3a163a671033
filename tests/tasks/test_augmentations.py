"""Companions, rounding to bfloat16 and minibatches of several sizes, each against what it says it does."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metaopt.choices import choice, parse_choice
from metaopt.errors import UserError
from metaopt.experiment import build_family
from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import sgd
from metaopt.oracles import exact
from metaopt.registry import TASKS
from metaopt.tasks import (
    in_bfloat16,
    linear_regression,
    quadratic,
    rescaled,
    rosenbrock,
    with_batch_sizes,
    with_companion,
)


def many(family, count, seed=0):
    """Tasks, [count, ...]."""
    return jax.jit(jax.vmap(family.sample, (0, None)))(jax.random.split(jax.random.key(seed), count), family.data)


# ----- companion ------------------------------------------------------------------------------------------------------


def test_companion_by_hand(x64):
    plain, n = linear_regression(num_examples=30, dim=3, batch_size=5), 4
    family = with_companion(plain, n)
    task_key, init_key, batch_key, at_key = jax.random.split(jax.random.key(0), 4)
    task = family.sample(task_key, family.data)
    start = family.init(init_key, task)
    np.testing.assert_array_equal(start["companion"], np.zeros(n))
    np.testing.assert_array_equal(start["task"], plain.init(init_key, task.task))
    params = {"task": start["task"], "companion": jax.random.normal(at_key, (n,))}
    batch = family.batch(batch_key, task, family.data)
    value, gradient = jax.value_and_grad(family.loss)(params, task, batch)
    own, own_gradient = jax.value_and_grad(plain.loss)(params["task"], task.task, batch.batch)
    offset = np.asarray(params["companion"], np.float64) - np.asarray(task.drawn, np.float64)
    np.testing.assert_allclose(value, own + (offset**2).sum() / n, rtol=1e-12)
    np.testing.assert_allclose(gradient["companion"], 2 * offset / n, rtol=1e-12)
    np.testing.assert_allclose(gradient["task"], own_gradient, rtol=1e-12)
    held_out = family.eval_batch(task, family.data, "train")
    reported, slope = jax.value_and_grad(family.loss)(params, task, held_out)
    assert reported == plain.loss(params["task"], task.task, held_out)  # f alone
    assert (np.asarray(slope["companion"]) == 0).all()


def test_law_of_the_companions_targets():
    targets = np.asarray(many(with_companion(quadratic(dim=2), 20), 200).drawn, np.float64).ravel()
    assert stats.kstest(targets, "uniform", args=(-1, 2)).pvalue > 1e-4


def test_a_companion_beside_an_oracle_is_descended_too(x64):
    plain = dataclasses.replace(quadratic(dim=3), oracle=exact())
    family = with_companion(rescaled(plain, 1.0), 4)
    tx = bind_tasks(sgd(), {"learning_rate": jnp.log(0.1)})
    task, state = reset(tx, family, jax.random.split(jax.random.key(0), 2))
    end, trace = unroll(tx, family, task, state, length=1)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], task)
        before = jax.tree.map(lambda x, i=i: x[i], state.params)
        gradient = jax.grad(family.loss)(before, one, family.batch(jax.random.key(0), one, ()))
        for name in ("task", "companion"):
            np.testing.assert_allclose(end.params[name][i], before[name] - 0.1 * gradient[name], rtol=1e-6, atol=1e-9)
        after = jax.tree.map(lambda x, i=i: x[i], end.params)
        value = family.loss(after, one, family.batch(jax.random.key(0), one, ()))
        np.testing.assert_allclose(trace.loss[0, i], value, rtol=1e-6)


def test_a_deterministic_task_stays_one_with_a_companion():
    family = with_companion(quadratic(dim=2), 3)
    task = family.sample(jax.random.key(0), ())
    assert not jax.tree.leaves(family.batch(jax.random.key(0), task, ()))
    assert family.batch_size is None


# ----- bfloat16 -------------------------------------------------------------------------------------------------------


def test_rounding_is_exactly_that_of_bfloat16():
    """Parameters and gradient of f(x) = Σ sin x_i, as numpy's bfloat16 has them, under optimised compilation too."""
    plain = dataclasses.replace(
        quadratic(dim=1000),
        init=lambda key, task: jnp.zeros(1000),
        loss=lambda params, task, batch: jnp.sum(jnp.sin(params)),
    )
    family = in_bfloat16(plain, 1.0)
    task = family.sample(jax.random.key(0), ())
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=960), 10.0 ** rng.uniform(-30, 30, 39), [0.0]]).astype(np.float32)
    x[:2] = [1 + 2**-8, 1 + 3 * 2**-8]  # ties, to even

    def run(x):
        return jax.value_and_grad(family.loss)(x, task, ())

    expected = x.astype(jnp.bfloat16).astype(np.float32)
    assert (expected != x).mean() > 0.9
    for value, gradient in (run(x), jax.jit(run, compiler_options={"xla_allow_excess_precision": True})(x)):
        np.testing.assert_allclose(value, np.sum(np.sin(expected)), rtol=1e-4, atol=1e-3)
        cosine = np.asarray(jnp.cos(jnp.asarray(expected))).astype(jnp.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(gradient[:960], cosine[:960])
        assert (np.asarray(gradient).astype(jnp.bfloat16).astype(np.float32) == gradient).all()
    linear = dataclasses.replace(plain, loss=lambda params, task, batch: jnp.sum(params * jnp.asarray(x)))
    slope = jax.jit(jax.grad(in_bfloat16(linear, 1.0).loss))(jnp.ones(1000), task, ())
    np.testing.assert_array_equal(slope, expected)


def test_the_share_of_rounded_tasks_and_the_others_to_the_bit():
    plain, n = quadratic(dim=5), 2000
    family = in_bfloat16(plain, 0.3)
    tasks = many(family, n)
    params = jax.random.normal(jax.random.key(1), (n, 5))
    rounded = np.asarray(tasks.drawn)
    assert abs(rounded.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n)
    gradient = jax.jit(jax.vmap(jax.grad(family.loss), (0, 0, None)))(params, tasks, ())
    own = jax.jit(jax.vmap(jax.grad(plain.loss), (0, 0, None)))(params, tasks.task, ())
    same = (np.asarray(gradient) == np.asarray(own)).all(axis=1)
    np.testing.assert_array_equal(same, ~rounded)


def test_small_steps_add_up_in_the_parameters_that_the_optimizer_moves():
    family = in_bfloat16(quadratic(dim=2), 1.0)
    tx = bind_tasks(sgd(), {"learning_rate": jnp.log(1e-4)})
    task, state = reset(tx, family, jax.random.split(jax.random.key(0), 2))
    end, _ = unroll(tx, family, task, state, length=5)
    assert (np.asarray(end.params) != np.asarray(state.params)).all()
    assert (np.abs(np.asarray(end.params) - np.asarray(state.params)) < 2**-8 * np.abs(state.params)).any()


# ----- minibatches ----------------------------------------------------------------------------------------------------


def test_a_minibatch_of_fewer_has_exactly_its_gradient_and_its_noise():
    full, n, draws = 12, 3, 4000
    plain = linear_regression(num_examples=50, dim=2, batch_size=full)
    family = with_batch_sizes(plain, 2)
    task = family.sample(jax.random.key(0), ())._replace(drawn=jnp.int32(n))
    small = linear_regression(num_examples=50, dim=2, batch_size=n)
    params, keys = jnp.asarray([0.7, -0.3]), jax.random.split(jax.random.key(1), draws)
    batches = jax.jit(jax.vmap(family.batch, (0, None, None)))(keys, task, ())
    gradients = jax.jit(jax.vmap(jax.grad(family.loss), (None, None, 0)))(params, task, batches)
    first = jax.tree.map(lambda x: x[:, :n], batches)  # the examples that differ
    np.testing.assert_allclose(
        gradients, jax.vmap(jax.grad(small.loss), (None, None, 0))(params, task.task, first), rtol=1e-4, atol=1e-7
    )
    each = jax.vmap(lambda x, y: jax.grad(small.loss)(params, None, type(task.task)(x[None], y[None])))(*task.task)
    deviation = np.asarray(gradients, np.float64) - np.asarray(each, np.float64).mean(axis=0)
    truth = np.asarray(each, np.float64).var(axis=0) / n
    error = (deviation**2).std(axis=0) / np.sqrt(draws)
    assert (np.abs((deviation**2).mean(axis=0) - truth) < 4 * error).all()
    assert (truth - truth * n / full > 8 * error).all()  # the full batch's noise is far off


def test_every_size_is_as_likely():
    family = with_batch_sizes(linear_regression(batch_size=20), 3)
    sizes, n = np.asarray(many(family, 4000).drawn), 4000
    assert set(sizes) == {4, 5, 10, 20}
    assert stats.chisquare([(sizes == size).sum() for size in (4, 5, 10, 20)]).pvalue > 1e-4
    assert family.batch_size == 20 and sizes.size == n


def test_batch_statistics_are_those_of_the_smaller_batch():
    plain = TASKS["classifier"](hidden_layers=1, width=4, batch_norm=True, batch_size=8)
    family = with_batch_sizes(plain, 4)
    key = jax.random.key(0)
    task = family.sample(key, family.data)._replace(drawn=jnp.int32(4))
    params, batch = family.init(key, task), family.batch(key, task, family.data)
    four = jax.tree.map(lambda x: x[:4], batch)
    np.testing.assert_allclose(family.loss(params, task, batch), plain.loss(params, (), four), rtol=1e-5)


# ----- as options -----------------------------------------------------------------------------------------------------


def test_options_come_before_arguments_and_combine():
    family = build_family(
        parse_choice("linear_regression:companion=7,rescale=1,bfloat16=0.5,min_batch_size=5"), companion=3
    )
    task = family.sample(jax.random.key(0), ())
    assert jax.tree.map(jnp.shape, family.init(jax.random.key(0), task)) == {"task": (10,), "companion": (7,)}
    assert family.name == (
        "linear_regression in batches of 5 to 20 rescaled by exp(±1) with a companion of 7 in bfloat16 "
        "(0.5 of the tasks)"
    )
    plain = build_family(choice("quadratic"), min_batch_size=4)
    assert plain.name == "quadratic"  # the argument leaves families without minibatches as they are
    assert (
        build_family(choice("linear_regression", min_batch_size="none"), min_batch_size=4).name == "linear_regression"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quadratic:companion=-2", "`companion` is -2; give a whole number of 1 or more"),
        ("quadratic:companion=1.5", "companion is 1.5"),
        ("quadratic:bfloat16=1.5", "`bfloat16` is 1.5; give the share of tasks"),
        ("quadratic:bfloat16=-1", "above 0 and at most 1"),
        ("quadratic:min_batch_size=2", "the family has no minibatches"),
        ("linear_regression:min_batch_size=0", "`min_batch_size` is 0"),
        ("linear_regression:min_batch_size=11", "leaves no size but `batch_size` .20.; try 10 or less"),
    ],
)
def test_refuses_with_a_remedy(text, message):
    with pytest.raises(UserError, match=message):
        build_family(parse_choice(text))


@pytest.mark.parametrize("wrap", [lambda f: with_companion(f, 3), lambda f: in_bfloat16(f, 0.5)])
def test_wrapped_families_keep_types_and_the_rest(wrap):
    plain = rosenbrock(pairs=2)
    family = wrap(plain)
    task = jax.eval_shape(family.sample, jax.random.key(0), ())
    params = jax.eval_shape(family.init, jax.random.key(0), task)
    assert all(leaf.dtype == jnp.float32 and not leaf.weak_type for leaf in jax.tree.leaves(params))
    assert family.splits == plain.splits and family.evaluated_on == plain.evaluated_on and family.metrics is None
