"""Bayesian regression: the first level in closed form and by Laplace's approximation, and the evidence lower bound.

The error is S = E_w + E_D = -log p(w) - log p(y|X, w), constants included, so that exp(-S) is the joint law and its
integral over w the evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.registry import TASKS
from metaopt.tasks.settings import check_count, check_positive
from metaopt.types import Data, Key, Params, Scalar, Split, TaskFamily

LOG_2PI = math.log(2 * math.pi)


class Posterior(NamedTuple):
    """A Gaussian law of w, and what it makes of the data."""

    mean: jax.Array  # [dim]
    precision: jax.Array  # [dim, dim] the Hessian of S
    log_evidence: jax.Array  # [] log p(y|X)


def linear_error(w: jax.Array, X: jax.Array, y: jax.Array, prior: jax.Array, noise: jax.Array | float) -> Scalar:
    """S(w) = E_w + E_D of y ~ N(Xw, I/noise), w ~ N(0, diag(prior)⁻¹); `prior` [dim] and `noise` are precisions."""
    of_prior = 0.5 * jnp.sum(prior * w**2 - jnp.log(prior) + LOG_2PI)
    return of_prior - log_likelihood(w, X, y, noise)


def log_likelihood(w: jax.Array, X: jax.Array, y: jax.Array, noise: jax.Array | float) -> Scalar:
    """log N(y | Xw, I/noise)."""
    squares = jnp.sum((y - X @ w) ** 2)
    return -0.5 * (noise * squares + y.shape[0] * (LOG_2PI - jnp.log(noise)))


def linear_posterior(X: jax.Array, y: jax.Array, prior: jax.Array, noise: jax.Array | float) -> Posterior:
    """The posterior of w and the evidence of y ~ N(Xw, I/noise) under w ~ N(0, diag(prior)⁻¹), in closed form."""
    precision = jnp.diag(prior) + noise * X.T @ X
    factor = jnp.linalg.cholesky(precision)
    mean = noise * jax.scipy.linalg.cho_solve((factor, True), X.T @ y)
    half_volume = 0.5 * X.shape[1] * LOG_2PI - jnp.sum(jnp.log(jnp.diagonal(factor)))
    return Posterior(mean, precision, half_volume - linear_error(mean, X, y, prior, noise))


def laplace(error: Callable[[jax.Array], Scalar], start: jax.Array, *, steps: int = 50) -> Posterior:
    """The Gaussian at the minimum of S with S's Hessian there, and ∫ exp(-S) under it; exact where S is quadratic.

    Newton's method, each step halved until S does not rise. Not for use inside of `jax.jit`.

    Args:
      error: S of w [dim], its constants included.
      start: [dim].

    Raises:
      ValueError: the Hessian is not positive where the search ended, so that there is no Gaussian.
    """
    slope, curvature = jax.jit(jax.value_and_grad(error)), jax.jit(jax.hessian(error))
    w, (value, gradient) = start, slope(start)
    for _ in range(steps):
        hessian = np.asarray(curvature(w), np.float64)
        # Where S curves downwards its Newton step leads up: by the sizes of the curvatures it leads down.
        sizes, axes = np.linalg.eigh(hessian)
        step = axes @ ((axes.T @ np.asarray(gradient, np.float64)) / np.maximum(np.abs(sizes), 1e-12))
        for halvings in range(30):
            trial = w - jnp.asarray(step * 0.5**halvings, w.dtype)
            if (found := slope(trial))[0] <= value:
                break
        else:
            break
        done = bool(jnp.all(trial == w))
        w, (value, gradient) = trial, found
        if done:
            break
    hessian = curvature(w)
    sizes = np.linalg.eigvalsh(np.asarray(hessian, np.float64))
    if not sizes.min() > 0:
        raise ValueError(
            f"the error's Hessian at its minimum has the eigenvalue {sizes.min():.3g}; a Gaussian posterior needs them "
            "above 0: give every parameter a prior of positive precision, or start elsewhere."
        )
    log_evidence = 0.5 * w.shape[0] * LOG_2PI - 0.5 * float(np.sum(np.log(sizes))) - value
    return Posterior(w, hessian, log_evidence)


def normal_divergence(mean: jax.Array, log_scale: jax.Array, precision: jax.Array) -> jax.Array:
    """KL(N(mean, e^{2 log_scale}) ‖ N(0, 1/precision)), entry by entry."""
    return 0.5 * (precision * (mean**2 + jnp.exp(2 * log_scale)) - 1 - jnp.log(precision)) - log_scale


# ----- the evidence lower bound ---------------------------------------------------------------------------------------


class LinearTask(NamedTuple):
    X: jax.Array  # [examples, dim]
    y: jax.Array  # [examples]


@TASKS.register
def elbo_linear(
    num_examples: int = 20,
    dim: int = 4,
    noise: float = 1.0,
    prior_precision: float = 1.0,
    num_samples: int = 4,
    orthogonal: bool = False,
) -> TaskFamily:
    """The negative evidence lower bound of a Bayesian linear regression, in nats: KL(q‖p) - E_q log p(y|X, w).

    y ~ N(Xw, noise² I), w ~ N(0, I/prior_precision), both true of the data; x ~ N(0, I). q = N(μ, diag σ²), and
    parameters are {"mean": μ [dim], "log_scale": log σ [dim]}, from a draw of the prior and the prior's widths. A batch
    are the ε ~ N(0, I) of w = μ + σε. The bound is -log p(y|X), in closed form: the metric `log_evidence`; `gap` is
    what the loss lies above it, KL(q‖p(w|X, y)), at least ½ (Σ log P_jj - log|P|) for a posterior of precision P.
    Evaluated on 2 dim points of q that have its mean and covariance, exact for what is quadratic in w. A drawn batch's
    loss may fall below the bound; objectives that divide by the gap want `objective_batch=full`.

    Args:
      noise: of the observations, their standard deviation.
      prior_precision: of every weight.
      num_samples: ε in a batch.
      orthogonal: columns of X are made orthogonal, of squared length `num_examples`, so that the posterior is diagonal
        and the gap closes.

    Raises:
      ValueError: settings out of range.
    """
    check_count("dim", dim)
    least, why = (dim, ", for `dim` orthogonal columns") if orthogonal else (1, "")
    check_count("num_examples", num_examples, least=least, why=why)
    check_count("num_samples", num_samples)
    check_positive("noise", noise)
    check_positive("prior_precision", prior_precision)
    precision = 1 / noise**2

    def sample(key: Key, data: Data) -> LinearTask:
        input_key, truth_key, noise_key = jax.random.split(key, 3)
        X = jax.random.normal(input_key, (num_examples, dim))
        if orthogonal:
            X = math.sqrt(num_examples) * jnp.linalg.qr(X)[0]
        truth = jax.random.normal(truth_key, (dim,)) / math.sqrt(prior_precision)
        return LinearTask(X, X @ truth + noise * jax.random.normal(noise_key, (num_examples,)))

    def init(key: Key, task: LinearTask) -> Params:
        width = 1 / math.sqrt(prior_precision)
        mean = width * jax.random.normal(key, (dim,))
        return {"mean": mean, "log_scale": jnp.full_like(mean, math.log(width))}

    def batch(key: Key, task: LinearTask, data: Data) -> jax.Array:
        return jax.random.normal(key, (num_samples, dim))

    def loss(params: Params, task: LinearTask, batch: jax.Array) -> Scalar:
        w = params["mean"] + jnp.exp(params["log_scale"]) * batch
        squares = jnp.mean(jnp.sum((task.y - w @ task.X.T) ** 2, axis=1))
        fit = 0.5 * (precision * squares + num_examples * (LOG_2PI - math.log(precision)))
        return fit + jnp.sum(normal_divergence(params["mean"], params["log_scale"], jnp.asarray(prior_precision)))

    def eval_batch(task: LinearTask, data: Data, split: Split) -> jax.Array:
        corners = math.sqrt(dim) * jnp.eye(dim, dtype=task.y.dtype)
        return jnp.concatenate([corners, -corners])

    def log_evidence(task: LinearTask) -> Scalar:
        return linear_posterior(task.X, task.y, jnp.full((dim,), prior_precision), precision).log_evidence

    def metrics(params: Params, task: LinearTask, batch: jax.Array) -> dict[str, Scalar]:
        known = log_evidence(task)
        return {"log_evidence": known, "gap": loss(params, task, batch) + known}

    return TaskFamily(
        data=(),
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics,
        lower_bound=lambda task: -log_evidence(task),
        evaluated_on="the exact bound",
    )
