"""The laws tasks are drawn from, and their known minima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from metaopt.tasks import linear_regression, logistic_regression, quadratic, rosenbrock

NUM_TASKS = 500


def draw(family, num_tasks=NUM_TASKS, seed=0):
    task_keys, init_keys = jax.random.split(jax.random.key(seed), (2, num_tasks))
    tasks = jax.jit(jax.vmap(family.sample, (0, None)))(task_keys, family.data)
    return tasks, jax.jit(jax.vmap(family.init))(init_keys, tasks)


def assert_centred_normal(draws, variance):
    """Mean and variance within 4 standard errors, and the shape."""
    draws = np.asarray(draws, np.float64).ravel()
    assert abs(draws.mean()) < 4 * np.sqrt(variance / draws.size)
    assert abs((draws**2).mean() - variance) < 4 * variance * np.sqrt(2 / draws.size)
    assert stats.kstest(draws / np.sqrt(variance), "norm").pvalue > 1e-4


def independent(*draws):
    """Every correlation between the given variables within 4 standard errors."""
    table = np.asarray(np.corrcoef([np.asarray(x, np.float64).ravel() for x in draws]))
    off_diagonal = table[~np.eye(len(draws), dtype=bool)]
    return bool(np.all(np.abs(off_diagonal) < 4 / np.sqrt(np.size(draws[0]))))


def test_quadratic_law():
    tasks, params = draw(quadratic())
    assert tasks.W.shape == (NUM_TASKS, 10, 10) and params.shape == (NUM_TASKS, 10)
    for draws in (tasks.W, tasks.b, params):
        assert_centred_normal(draws, 0.1)
    assert independent(tasks.W[:, :, 0], tasks.b, params)


def test_quadratic_value_and_minimum(x64):
    family = quadratic(dim=6)
    tasks, params = draw(family, 20)
    W, b, x = (np.asarray(value) for value in (*tasks, params))
    expected = [np.sum((W[i] @ x[i] - b[i]) ** 2) / 6 for i in range(20)]
    loss = jax.jit(jax.vmap(lambda p, t: family.loss(p, t, ())))
    np.testing.assert_allclose(loss(params, tasks), expected, rtol=1e-12)
    minima = np.linalg.solve(W, b[..., None])[..., 0]
    assert np.all(loss(minima, tasks) < 1e-20)


def test_rosenbrock_law():
    tasks, params = draw(rosenbrock())
    for draws in (tasks.a, params["x"], params["y"]):
        assert_centred_normal(draws, 1.0)
    log_b = np.log(np.asarray(tasks.b, np.float64)).ravel()
    assert log_b.min() >= 0 and log_b.max() <= 3 + 1e-6
    assert abs(log_b.mean() - 1.5) < 4 * np.sqrt(0.75 / log_b.size)
    assert stats.kstest(log_b / 3, "uniform").pvalue > 1e-4
    assert independent(tasks.a, log_b, params["x"], params["y"])


def test_rosenbrock_value_and_minimum(x64):
    family = rosenbrock(pairs=3)
    (a, b), params = tasks, params = draw(family, 20)
    loss = jax.jit(jax.vmap(lambda p, t: family.loss(p, t, ())))
    x, y = params["x"], params["y"]
    np.testing.assert_allclose(loss(params, tasks), np.sum((x - a) ** 2 + b * (y - x**2) ** 2, axis=1), rtol=1e-12)
    assert np.all(loss({"x": a, "y": a**2}, tasks) < 1e-28)  # not 0 where a² is contracted into a fused product
    assert np.all(loss({"x": a + 1e-3, "y": a**2}, tasks) > 0)


def test_linear_regression_law_and_closed_form(x64):
    family = linear_regression()
    tasks, params = draw(family, 300)
    assert_centred_normal(tasks.X, 0.01)
    assert_centred_normal(params, 1.0)
    minima, residuals = [], []
    for X, y in zip(np.asarray(tasks.X), np.asarray(tasks.y), strict=True):
        solution, squares = np.linalg.lstsq(X, y, rcond=None)[:2]
        minima.append(solution)
        residuals.append(squares[0])
    assert_centred_normal(minima, 1 + 1e-4 / (0.01 * 200))  # least squares adds its own error to ŵ
    degrees = 300 * (200 - 10)
    assert abs(np.sum(residuals) / degrees - 1e-4) < 4 * 1e-4 * np.sqrt(2 / degrees)
    batches = jax.vmap(lambda t: family.eval_batch(t, (), "train"))(tasks)
    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(family.loss)))(jnp.array(minima), tasks, batches)
    np.testing.assert_allclose(losses, np.array(residuals) / 200, rtol=1e-9)
    assert np.abs(gradients).max() < 1e-12


def test_minibatches_are_rows_drawn_uniformly_with_replacement():
    family = linear_regression(num_examples=30, batch_size=20)
    task = family.sample(jax.random.key(0), ())
    batches = jax.jit(jax.vmap(lambda key: family.batch(key, task, ())))(jax.random.split(jax.random.key(1), 300))
    rows = {float(y): i for i, y in enumerate(task.y)}
    drawn = np.array([rows[float(y)] for y in np.asarray(batches.y).ravel()])
    np.testing.assert_array_equal(np.asarray(batches.X).reshape(-1, 10), np.asarray(task.X)[drawn])
    assert stats.chisquare(np.bincount(drawn, minlength=30)).pvalue > 1e-4


def test_sparse_inputs_keep_their_length_and_leave_gradients_out() -> None:
    family = linear_regression(num_examples=500, dim=40, batch_size=4, density=0.05)
    keys = jax.random.split(jax.random.key(0), 3)
    task = family.sample(keys[0], ())
    assert np.mean(task.X != 0) == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / task.X.size) ** 0.5)
    lengths = np.sum(np.square(task.X), axis=1)
    assert float(lengths.mean()) == pytest.approx(40 * 0.1**2, abs=4 * float(lengths.std()) / 500**0.5)
    batch = family.batch(keys[1], task, ())
    slope = jax.grad(family.loss)(family.init(keys[2], task), task, batch)
    assert np.array_equal(slope != 0, np.any(batch.X != 0, axis=0))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_logistic_regression_against_numpy(num_classes, x64):
    family = logistic_regression(num_classes=num_classes)
    tasks, params = draw(family, 50)
    assert_centred_normal(tasks.X, 0.01)
    assert_centred_normal(params, 1.0)
    assert tasks.labels.dtype == jnp.int32 and params.shape == (50, 10, num_classes)
    share = np.mean([np.bincount(labels, minlength=num_classes) / 200 for labels in np.asarray(tasks.labels)], axis=0)
    np.testing.assert_allclose(share, 1 / num_classes, atol=0.1)
    task, W = jax.tree.map(lambda x: x[0], tasks), params[0]
    batch = family.eval_batch(task, (), "train")
    scores = np.asarray(task.X @ W)
    picked = scores[np.arange(200), task.labels]
    np.testing.assert_allclose(family.loss(W, task, batch), np.mean(np.log(np.exp(scores).sum(1)) - picked), rtol=1e-12)
    assert family.metrics is not None
    accuracy = np.mean(scores.argmax(1) == np.asarray(task.labels))
    np.testing.assert_allclose(family.metrics(W, task, batch)["accuracy"], accuracy, rtol=1e-6)


def test_logistic_regression_optimum_against_sklearn(x64):
    family = logistic_regression(num_classes=3)
    task = jax.jit(family.sample)(jax.random.key(0), ())
    C = 10.0
    fitted = LogisticRegression(C=C, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(task.X, task.labels)
    W = jnp.array(fitted.coef_.T)
    # scikit-learn minimises C · sum of losses + ½‖W‖².
    gradient = jax.jit(jax.grad(family.loss))(W, task, family.eval_batch(task, (), "train")) + W / (C * 200)
    assert float(jnp.abs(gradient).max()) < 1e-7
    assert float(jnp.abs(W).max()) > 0.1
    assert family.metrics is not None
    accuracy = family.metrics(W, task, family.eval_batch(task, (), "train"))["accuracy"]
    np.testing.assert_allclose(accuracy, fitted.score(task.X, task.labels), rtol=1e-6)
