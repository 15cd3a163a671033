"""Functions whose gradient is an expectation under a law that moves with θ, with exact values to judge by.

Each states its `law` for particle oracles (sosmc, impdiff, soul, pcd), while `loss` is in closed form or by quadrature:
a particle estimate alone would be rewarded for its own error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.registry import TASKS
from metaopt.tasks.settings import check_count, check_option, check_positive
from metaopt.types import Batch, Data, Key, Law, Params, Scalar, TaskFamily

# ----- reward tuning of mixtures --------------------------------------------------------------------------------------

Target = Literal["dual", "hexagon_sparse", "hexagon_tight", "asymmetric"]
Reward = Literal["smooth", "hard"]
# Which of the two is averaged over in KL(P‖Q) = E_P log P/Q: `ref_model` is KL(ref‖π_θ), `model_ref` KL(π_θ‖ref).
Divergence = Literal["ref_model", "model_ref"]

_HEXAGON = 4 * np.stack([np.cos(np.pi / 3 * np.arange(6)), np.sin(np.pi / 3 * np.arange(6))], axis=1)
# Target -> centres [K, 2], widths σ [K], logits of the reference [K].
_TARGETS: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {
    "dual": (np.array([[-3.0, 0.0], [3.0, 0.0]]), np.full(2, 0.5**0.5), np.zeros(2)),
    "hexagon_sparse": (_HEXAGON, np.ones(6), 1.5 * (-1.0) ** np.arange(6)),
    "hexagon_tight": (_HEXAGON, np.full(6, 0.1), np.zeros(6)),
    "asymmetric": (
        np.array([[-2.0, 0.5], [1.5, 1.0], [0.5, -2.0]]),
        np.array([0.5, 0.9, 0.7]),
        np.array([0.4, -0.5, 0.1]),
    ),
}
REACH, SPACING = 6.0, 0.4  # of the quadrature around each component, in its widths
SCALE, SOFTNESS = 20.0, 0.5  # of the rewards: how far they reach, squared, and how soft their edge is


class MixtureTask(NamedTuple):
    means: jax.Array  # [K, 2]
    widths: jax.Array  # [K] σ
    reference: jax.Array  # [K] logits
    centre: jax.Array  # [2] of the reward


class Values(NamedTuple):
    """What a mixture is worth, exact to rounding."""

    reward: jax.Array  # E_θ R
    divergence: jax.Array  # KL to the reference, in the family's direction


@TASKS.register
def tuned_mixture(
    target: Target = "dual",
    reward: Reward = "smooth",
    beta: float = 0.1,
    kl: Divergence = "ref_model",
    spread: float = 0.5,
) -> TaskFamily:
    """f(θ) = -E_θ R + β KL, over the weights softmax(θ) of a mixture of Gaussians in the plane, from a reference's.

    π_θ = Σ_i softmax(θ)_i N(μ_i, σ_i² I), so that the normaliser is constant and exact values are at hand; a sampler is
    told U_θ = -log π_θ alone. `dual`: μ = (±3, 0), σ² = ½; `hexagon_sparse`: six on radius 4, σ = 1, reference ±1.5 in
    turn; `hexagon_tight`: the same with σ = .1 and an even reference; `asymmetric`: three of several widths. Rewards:
    sigmoid(2 x_1) exp(-|x - c|²/20)/.7, c = (4, 3.8), and 1{x_1 ≥ 0} exp(-|x - c|²/20)/2.5, c = (10, 3.8) or the tight
    hexagon's (4, 0). Those of Cuin et al. 2026 with `spread` 0, but for the 1e-9 that their energy has beside the sum
    in its logarithm, a flat floor on which particles walk from mode to mode and which is no law's.
    Parameters are one array [K]; θ_0 are the reference's logits.

    Args:
      target: the mixture.
      reward: `smooth`, or `hard`, which has an edge.
      beta: β.
      kl: `ref_model` is KL(ref‖π_θ), whose optimum keeps every mode; `model_ref` is KL(π_θ‖ref), with π ∝ ref e^{R/β}.
      spread: tasks differ by N(0, spread²) in the reference's logits and in c; 0: all are the same.

    Raises:
      ValueError: settings out of range.
    """
    check_option("target", target, get_args(Target))
    check_option("reward", reward, get_args(Reward))
    check_option("kl", kl, get_args(Divergence))
    check_positive("beta", beta, zero=True)
    check_positive("spread", spread, zero=True)
    means, widths, logits = _TARGETS[target]
    hard = (4.0, 0.0) if target == "hexagon_tight" else (10.0, 3.8)
    centre = hard if reward == "hard" else (4.0, 3.8)
    forward = kl == "ref_model"

    def sample(key: Key, data: Data) -> MixtureTask:
        reference_key, centre_key = jax.random.split(key)
        moved = spread * jax.random.normal(reference_key, logits.shape), spread * jax.random.normal(centre_key, (2,))
        return MixtureTask(
            jnp.asarray(means, jnp.float32),
            jnp.asarray(widths, jnp.float32),
            jnp.asarray(logits, jnp.float32) + moved[0],
            jnp.asarray(centre, jnp.float32) + moved[1],
        )

    def energy(params: Params, task: MixtureTask, x: jax.Array) -> Scalar:
        return -_log_density(params, task, x)

    def loss(params: Params, task: MixtureTask, batch: Batch) -> Scalar:
        values = mixture_values(params, task, reward, kl)
        return beta * values.divergence - values.reward

    def surrogate(params: Params, task: MixtureTask, x: jax.Array, weights: jax.Array, batch: Batch) -> Scalar:
        # Along rows of N, as the oracle has them: columns of two numbers each take ten times as long.
        def each(function: Callable[[jax.Array], Scalar]) -> jax.Array:
            return jax.vmap(function, in_axes=1)(x.T)

        energies, gain = each(lambda x: energy(params, task, x)), each(lambda x: _reward(reward, task.centre, x))
        if forward:
            known = _cross_entropy(task.reference, params, task)
            return tuning_surrogate(energies, gain, weights, beta, expected=known)
        before = each(lambda x: energy(task.reference, task, x))
        return tuning_surrogate(energies, gain, weights, beta, reference=before)

    return TaskFamily(
        data=(),
        sample=sample,
        init=lambda key, task: task.reference,
        batch=lambda key, task, data: (),
        loss=loss,
        eval_batch=lambda task, data, split: (),
        lower_bound=lambda task: -jnp.max(_rewards(task, reward)),  # no mixture is worth more than its best component
        evaluated_on="the exact value, by quadrature",
        law=Law(dim=2, energy=energy, start=_draw, surrogate=surrogate),
    )


def tuning_surrogate(
    energies: jax.Array,
    gain: jax.Array,
    weights: jax.Array,
    beta: float,
    *,
    expected: jax.Array | None = None,
    reference: jax.Array | None = None,
) -> Scalar:
    """A number whose gradient in θ, through `energies` [N] and `expected`, estimates that of -E_θ R + β KL.

    -∇E[R] = Cov(R, ∇U); R less its mean, without which the same is estimated with more noise.

    Args:
      gain: [N] R(x_i).
      expected: [] E_ref U_θ, for KL(ref‖π_θ): ∇KL = E_ref[∇U] - E_θ[∇U].
      reference: [N] U_ref(x_i), for KL(π_θ‖ref): ∇KL = Cov(U - U_ref, ∇U).
    """
    if reference is not None:
        gain = gain + beta * jax.lax.stop_gradient(energies - reference)
    pull = weights * (gain - weights @ gain)
    if expected is None:
        return pull @ energies
    return (pull - beta * weights) @ energies + beta * expected


def mixture_values(params: Params, task: MixtureTask, reward: Reward, kl: Divergence) -> Values:
    """E_θ R and KL of one task's mixture, by quadrature around every component; the hard reward in closed form."""
    gained = jax.nn.softmax(params) @ _rewards(task, reward)
    one, other = (task.reference, params) if kl == "ref_model" else (params, task.reference)
    return Values(gained, _cross_entropy(one, other, task) - _cross_entropy(one, one, task))


def separated_optimum(rewards: np.ndarray, reference: np.ndarray, beta: float, kl: Divergence) -> np.ndarray:
    """[K] the weights that maximise Σ v_i R_i - β KL between weights: the optimum where no components overlap.

    KL(ref‖v): v_i = β p_i/(λ - R_i) with λ such that Σ v = 1, found by bisection; KL(v‖ref): v ∝ p e^{R/β}.
    """
    if kl == "model_ref":
        weights = reference * np.exp((rewards - rewards.max()) / beta)
        return weights / weights.sum()
    low, high = rewards.max() + beta * reference[rewards.argmax()], rewards.max() + beta
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sum(beta * reference / (middle - rewards)) > 1 else (low, middle)
    weights = beta * reference / (high - rewards)
    return weights / weights.sum()


def _log_density(logits: jax.Array, task: MixtureTask, x: jax.Array) -> jax.Array:
    """log π(x) at x [2], without its constant -log 2π; written out, so that under vmap every number is a row of N."""
    scaled = jax.nn.log_softmax(logits) - 2 * jnp.log(task.widths)
    half = -0.5 / task.widths**2
    terms = [
        scaled[i] + half[i] * ((x[0] - task.means[i, 0]) ** 2 + (x[1] - task.means[i, 1]) ** 2)
        for i in range(task.means.shape[0])
    ]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, terms))
    return top + jnp.log(sum(jnp.exp(term - top) for term in terms))


def _draw(key: Key, params: Params, task: MixtureTask, data: Data) -> jax.Array:
    which_key, noise_key = jax.random.split(key)
    which = jax.random.categorical(which_key, params)
    return task.means[which] + task.widths[which] * jax.random.normal(noise_key, (2,))


def _reward(reward: Reward, centre: jax.Array, x: jax.Array) -> jax.Array:
    near = jnp.exp(-((x[0] - centre[0]) ** 2 + (x[1] - centre[1]) ** 2) / SCALE)
    return (x[0] >= 0) * near / 2.5 if reward == "hard" else jax.nn.sigmoid(x[0] / SOFTNESS) * near / 0.7


def _nodes(task: MixtureTask) -> tuple[jax.Array, jax.Array]:
    """([K, nodes, 2], [nodes]): points and weights of the trapezoid rule under each component.

    It converges faster than any power of its spacing for what is smooth at the scale of a width.
    """
    side = jnp.arange(-REACH, REACH + SPACING / 2, SPACING, dtype=task.means.dtype)
    line = jnp.exp(-0.5 * side**2)
    line = line / jnp.sum(line)
    grid = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    return task.means[:, None] + task.widths[:, None, None] * grid, jnp.outer(line, line).ravel()


def _cross_entropy(one: jax.Array, other: jax.Array, task: MixtureTask) -> jax.Array:
    """E[-log π] of the mixture with logits `other` under that with `one`, without its constant log 2π."""
    points, weights = _nodes(task)
    logs = jax.vmap(jax.vmap(lambda x: _log_density(other, task, x)))(points)
    return -jax.nn.softmax(one) @ (logs @ weights)


def _rewards(task: MixtureTask, reward: Reward) -> jax.Array:
    """[K] E R under each component."""
    if reward == "smooth":
        points, weights = _nodes(task)
        return jax.vmap(jax.vmap(lambda x: _reward(reward, task.centre, x)))(points) @ weights
    half = SCALE / 2  # a Gaussian of this variance times one of variance σ²: a Gaussian, cut at the edge
    variance = task.widths[:, None] ** 2
    near = jnp.prod(
        jnp.sqrt(half / (half + variance)) * jnp.exp(-0.5 * (task.means - task.centre) ** 2 / (half + variance)), axis=1
    )
    mean = (half * task.means[:, 0] + variance[:, 0] * task.centre[0]) / (half + variance[:, 0])
    beyond = jax.scipy.stats.norm.cdf(mean / jnp.sqrt(half * variance[:, 0] / (half + variance[:, 0])))
    return near * beyond / 2.5


# ----- maximum marginal likelihood ------------------------------------------------------------------------------------


class LatentTask(NamedTuple):
    design: jax.Array  # [dim, features] W
    observed: jax.Array  # [dim] y


@TASKS.register
def latent_gaussian(dim: int = 8, features: int = 3, noise: float = 0.5) -> TaskFamily:
    """f(θ) = -log p(y|θ), the latent x out of it: x ~ N(Wμ, e^{2ρ} I), y ~ N(x, noise² I), θ = (μ, ρ).

    ∇f is the mean of ∇U_θ(x) = -∇log p(x, y|θ) under p(x|y, θ), a Gaussian that moves with θ (Fisher's identity), and
    f = ½ d log 2πv + |y - Wμ|²/2v, v = e^{2ρ} + noise², is known. W is of normal entries of variance 1/features, y of a
    μ from N(0, I) and ρ = 0. Parameters are {"mean": [features], "log_scale": []}, from 0 and 0.

    Args:
      dim: of x and y, d.
      features: of μ, below dim.
      noise: of the observation, its standard deviation.

    Raises:
      ValueError: settings out of range.
    """
    check_count("features", features)
    check_count("dim", dim, least=features + 1, why=", more than `features`")
    check_positive("noise", noise)

    def sample(key: Key, data: Data) -> LatentTask:
        design_key, mean_key, latent_key, noise_key = jax.random.split(key, 4)
        design = jax.random.normal(design_key, (dim, features)) / math.sqrt(features)
        latent = design @ jax.random.normal(mean_key, (features,)) + jax.random.normal(latent_key, (dim,))
        return LatentTask(design, latent + noise * jax.random.normal(noise_key, (dim,)))

    def energy(params: Params, task: LatentTask, x: jax.Array) -> Scalar:
        spread = jnp.sum((x - task.design @ params["mean"]) ** 2) * jnp.exp(-2 * params["log_scale"])
        return 0.5 * (spread + jnp.sum((task.observed - x) ** 2) / noise**2) + dim * params["log_scale"]

    def surrogate(params: Params, task: LatentTask, x: jax.Array, weights: jax.Array, batch: Batch) -> Scalar:
        return weights @ jax.vmap(lambda x: energy(params, task, x))(x)

    def start(key: Key, params: Params, task: LatentTask, data: Data) -> jax.Array:
        prior, precision = jnp.exp(-2 * params["log_scale"]), 1 / noise**2
        mean = (prior * (task.design @ params["mean"]) + precision * task.observed) / (prior + precision)
        return mean + jax.random.normal(key, (dim,)) / jnp.sqrt(prior + precision)

    def at(squares: jax.Array, variance: jax.Array) -> Scalar:
        return 0.5 * (dim * jnp.log(2 * jnp.pi * variance) + squares / variance)

    def loss(params: Params, task: LatentTask, batch: Batch) -> Scalar:
        squares = jnp.sum((task.observed - task.design @ params["mean"]) ** 2)
        return at(squares, jnp.exp(2 * params["log_scale"]) + noise**2)

    def lower_bound(task: LatentTask) -> Scalar:
        """At least squares; no variance is below that of the noise."""
        q, _ = jnp.linalg.qr(task.design)
        squares = jnp.sum((task.observed - q @ (q.T @ task.observed)) ** 2)
        return at(squares, jnp.maximum(squares / dim, noise**2))

    return TaskFamily(
        data=(),
        sample=sample,
        init=lambda key, task: {"mean": jnp.zeros(features), "log_scale": jnp.zeros(())},
        batch=lambda key, task, data: (),
        loss=loss,
        eval_batch=lambda task, data, split: (),
        lower_bound=lower_bound,
        law=Law(dim=dim, energy=energy, start=start, surrogate=surrogate),
    )
