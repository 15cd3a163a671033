"""Regressions other than least squares: counts, outliers, quantiles, margins, ranks, Gaussian processes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.benchmark import sources
from metaopt.benchmark.layers import cross_entropy, forward, mlp, normals
from metaopt.benchmark.parts import Examples, Splits, drawn, on_examples
from metaopt.types import Key, Params, Scalar, TaskFamily


def _linear(inputs: int, outputs: int = 1, deviation: float = 0.1):
    def init(key: Key) -> Params:
        return {"w": deviation * jax.random.normal(key, (inputs, outputs)), "b": jnp.zeros(outputs)}

    return init


def _scores(params: Params, x: jax.Array) -> jax.Array:
    return x @ params["w"] + params["b"]


# ----- Poisson regression ---------------------------------------------------------------------------------------------


def _half_deviance(params: Params, batch: Examples) -> Scalar:
    """0 where every count is what was expected."""
    log_rate, counts = _scores(params, batch.inputs), batch.targets
    return jnp.mean(jnp.exp(log_rate) - counts * log_rate + jax.scipy.special.xlogy(counts, counts) - counts)


def poisson_linnerud() -> TaskFamily:
    """Counts of three exercises by weight, waist and pulse, on all 20 men."""
    data = sources.linnerud()
    return on_examples(_half_deviance, _linear(3, 3), data.splits, lower_bound=-1e-4, sources=(data.source,))


def poisson_counts() -> TaskFamily:
    """Counts by 100 features of falling scale, from minibatches."""

    def examples(key: Key) -> Splits:
        truth_key, key = jax.random.split(key)
        scales = 10.0 ** -jnp.linspace(0.0, 1.5, 100)
        truth = 0.5 * jax.random.normal(truth_key, (100,))

        def one(key: Key) -> Examples:
            x_key, count_key = jax.random.split(key)
            x = scales * jax.random.normal(x_key, (100,))
            rate = jnp.exp(jnp.clip(x @ truth + 0.5, -5.0, 3.0))
            # Inversion, unrolled: `jax.random.poisson` loops until all have ended.
            odds = jnp.cumsum(jnp.exp(jnp.arange(60) * jnp.log(rate) - rate - jax.lax.lgamma(jnp.arange(60) + 1.0)))
            return Examples(x, jnp.sum(jax.random.uniform(count_key, ()) > odds, keepdims=True).astype(jnp.float32))

        return drawn(key, one, 1024, 512)

    return on_examples(_half_deviance, _linear(100), examples, 32, lower_bound=-1e-4)


# ----- robust and quantile regression ---------------------------------------------------------------------------------


def huber_outliers() -> TaskFamily:
    """Huber's loss where a fifth of the answers is far off, with correlated inputs, from minibatches."""

    def loss(params: Params, batch: Examples) -> Scalar:
        errors = jnp.abs(_scores(params, batch.inputs) - batch.targets)
        return jnp.mean(jnp.where(errors < 1, 0.5 * errors**2, errors - 0.5))

    return on_examples(loss, _linear(30), _outliers, 32)


def least_absolute() -> TaskFamily:
    """Absolute errors on the same kind of data, all at once: not smooth."""

    def loss(params: Params, batch: Examples) -> Scalar:
        return jnp.mean(jnp.abs(_scores(params, batch.inputs) - batch.targets))

    return on_examples(loss, _linear(30), _outliers)


def _outliers(key: Key) -> Splits:
    mix_key, truth_key, key = jax.random.split(key, 3)
    mix = jax.random.orthogonal(mix_key, 30) * 10.0 ** -jnp.linspace(0.0, 1.5, 30)
    truth = 3 * jax.random.normal(truth_key, (30,))

    def one(key: Key) -> Examples:
        key, far_key = jax.random.split(key)
        x, noise, far = normals(key, (30,), (1,), (1,))
        x = mix @ x
        error = jnp.where(jax.random.bernoulli(far_key, 0.2), 20 * far, 0.1 * noise)
        return Examples(x, x @ truth + error)

    return drawn(key, one, 512, 256)


def quantiles() -> TaskFamily:
    """Five quantiles of noise that grows with x, by a network (Koenker and Bassett 1978), from minibatches."""
    levels = (0.1, 0.3, 0.5, 0.7, 0.9)

    def examples(key: Key) -> Splits:
        phase_key, key = jax.random.split(key)
        phase = jax.random.uniform(phase_key, (), maxval=6.0)

        def one(key: Key) -> Examples:
            x, noise = normals(key, (1,), (1,))
            return Examples(x, jnp.sin(2 * x + phase) + 0.3 * jnp.exp(0.5 * x) * noise)

        return drawn(key, one, 1024, 512)

    def loss(params: Params, batch: Examples) -> Scalar:
        errors = batch.targets - forward(params, batch.inputs, jnp.tanh)
        level = jnp.asarray(levels, errors.dtype)
        return jnp.mean(jnp.maximum(level * errors, (level - 1) * errors))

    return on_examples(loss, lambda key: mlp(key, 1, 24, 24, 5), examples, 64)


# ----- linear classifiers on a table ----------------------------------------------------------------------------------


def logistic_breast_cancer() -> TaskFamily:
    """Logistic regression on inputs that almost repeat each other, with a small decay, on all examples at once."""
    data = sources.table("breast_cancer")

    def loss(params: Params, batch: Examples) -> Scalar:
        return cross_entropy(_scores(params, batch.inputs), batch.targets) + 0.5e-3 * jnp.sum(params["w"] ** 2)

    return on_examples(loss, _linear(30, 2), data.splits, sources=(data.source,))


def hinge_breast_cancer() -> TaskFamily:
    """Squared hinge on all 465 products of inputs and the inputs, from minibatches."""
    data = sources.table("breast_cancer")
    upper = np.triu_indices(30)

    def products(examples: Examples) -> Examples:
        x = np.clip(examples.inputs, -5, 5)
        return Examples(np.concatenate([x, (x[:, :, None] * x[:, None])[:, *upper] / 4], axis=1), examples.targets)

    def loss(params: Params, batch: Examples) -> Scalar:
        margins = (2.0 * batch.targets - 1) * _scores(params, batch.inputs)[:, 0]
        return jnp.mean(jax.nn.relu(1 - margins) ** 2) + 0.5e-3 * jnp.sum(params["w"] ** 2)

    splits = {split: products(examples) for split, examples in data.splits.items()}
    return on_examples(loss, _linear(495), splits, 32, sources=(data.source,))


# ----- ranks ----------------------------------------------------------------------------------------------------------


def ordinal() -> TaskFamily:
    """Five ordered grades by a proportional-odds model (McCullagh 1980), on all examples at once."""
    cuts = np.array([-1.5, -0.5, 0.5, 1.5], np.float32)

    def examples(key: Key) -> Splits:
        truth_key, key = jax.random.split(key)
        scales = 10.0 ** -jnp.linspace(0.0, 1.0, 20)
        truth = jax.random.normal(truth_key, (20,)) / jnp.sqrt(jnp.sum(scales**2))

        def one(key: Key) -> Examples:
            draw, noise = normals(key, (20,), ())
            x = scales * draw
            return Examples(x, jnp.sum(2 * x @ truth + 0.5 * noise > cuts))

        return drawn(key, one, 400, 200)

    def init(key: Key) -> Params:
        return {"w": 0.1 * jax.random.normal(key, (20,)), "first": -jnp.ones(()), "log_gaps": jnp.zeros(3)}

    def loss(params: Params, batch: Examples) -> Scalar:
        gaps = jnp.concatenate([params["first"][None], jnp.exp(params["log_gaps"])])
        over = jnp.cumsum(gaps) - (batch.inputs @ params["w"])[:, None]
        log_below = jnp.pad(jax.nn.log_sigmoid(over), ((0, 0), (0, 1)))
        log_above = jnp.pad(jax.nn.log_sigmoid(-over), ((0, 0), (1, 0)))
        # log(P(below the upper cut) - P(below the lower)), without the cancellation
        width = jnp.pad(gaps[1:], (1, 1), constant_values=80.0)
        log_odds = log_below + log_above + jnp.log(-jnp.expm1(-width))
        return -jnp.mean(jnp.sum(log_odds * jax.nn.one_hot(batch.targets, 5), axis=-1))

    return on_examples(loss, init, examples)


def pairwise_ranks() -> TaskFamily:
    """Which of two items is the better, by a network's scores (RankNet, Burges et al. 2005), from minibatches."""

    def examples(key: Key) -> Splits:
        net_key, key = jax.random.split(key)
        net = mlp(net_key, 12, 16, 1, gain=4.0)

        def one(key: Key) -> Examples:
            pair, noise = normals(key, (2, 12), ())
            better, worse = forward(net, pair, jnp.tanh)[:, 0]
            return Examples(pair, (better - worse + 0.3 * noise > 0).astype(jnp.int32))

        return drawn(key, one, 1024, 512)

    def loss(params: Params, batch: Examples) -> Scalar:
        scores = forward(params, batch.inputs, jax.nn.relu)[..., 0]  # [n, 2]
        return jnp.mean(jax.nn.softplus((1 - 2.0 * batch.targets) * (scores[:, 0] - scores[:, 1])))

    return on_examples(loss, lambda key: mlp(key, 12, 32, 32, 1), examples, 64)


def preferences() -> TaskFamily:
    """Which items users take, by products of vectors (Bayesian personalised ranking, Rendle 2009): sparse gradients."""
    users, items, rank = 200, 150, 16

    def examples(key: Key) -> Splits:
        taste_key, key = jax.random.split(key)
        tastes, kinds = normals(taste_key, (users, 4), (items, 4))

        def one(key: Key) -> tuple[jax.Array, jax.Array]:
            user_key, item_key, noise_key = jax.random.split(key, 3)
            user, pair = jax.random.randint(user_key, (), 0, users), jax.random.randint(item_key, (2,), 0, items)
            better = kinds[pair] @ tastes[user] + 0.3 * jax.random.normal(noise_key, (2,))
            return user, jnp.where(better[0] > better[1], pair, pair[::-1])

        return drawn(key, one, 8192, 2048)

    def init(key: Key) -> Params:
        own, other = normals(key, (users, rank), (items, rank))
        return {"users": 0.1 * own, "items": 0.1 * other}

    def loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> Scalar:
        user, pair = batch
        own, both = params["users"][user], params["items"][pair]
        gaps = jnp.sum(own * (both[:, 0] - both[:, 1]), axis=-1)
        return jnp.mean(jax.nn.softplus(-gaps) + 0.01 * (jnp.sum(own**2, axis=-1) + jnp.sum(both**2, axis=(1, 2))))

    return on_examples(loss, init, examples, 128)


# ----- Gaussian processes (Rasmussen and Williams 2006) ---------------------------------------------------------------

LEAST_NOISE = 0.05  # standard deviation


def process_evidence() -> TaskFamily:
    """Ten length scales, a height and a noise by the evidence of 48 points, of which three inputs matter."""
    num, dim = 48, 10

    def examples(key: Key) -> Splits:
        x_key, truth_key = jax.random.split(key)
        (x, noise), (wave,) = normals(x_key, (num, dim), (num,)), normals(truth_key, (3,))
        return {"train": Examples(x, jnp.sin(x[:, :3] @ wave * 2) + 0.2 * noise)}

    def init(key: Key) -> Params:
        return {"log_scales": jnp.zeros(dim) + 0.5, "log_height": jnp.zeros(()), "log_noise": jnp.zeros(())}

    def loss(params: Params, data: Examples) -> Scalar:
        scaled = data.inputs * jnp.exp(-params["log_scales"])
        squares = jnp.sum((scaled[:, None] - scaled) ** 2, axis=-1)
        variance = LEAST_NOISE**2 + jnp.exp(2 * params["log_noise"])
        kernel = jnp.exp(2 * params["log_height"] - 0.5 * squares) + variance * jnp.eye(num)
        factor = jnp.linalg.cholesky(kernel)
        white = jax.scipy.linalg.solve_triangular(factor, data.targets, lower=True)
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
        return (0.5 * jnp.sum(white**2) + log_det) / num + 0.5 * math.log(2 * math.pi)

    lowest = math.log(LEAST_NOISE) + 0.5 * math.log(2 * math.pi)
    return on_examples(loss, init, examples, lower_bound=lowest, whole=True)
