"""Autoencoders, mixtures and flows: models of where data come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.benchmark import sources
from metaopt.benchmark.layers import Activation, forward, mlp, normals
from metaopt.benchmark.parts import Splits, drawn, on_draws, on_examples
from metaopt.types import Key, Params, Scalar, Task, TaskFamily

# ----- variational autoencoders (Kingma and Welling 2014) -------------------------------------------------------------


def vae_china() -> TaskFamily:
    """Patches of a picture by relu networks; squared errors at a deviation of 0.5, and KL, a pixel."""
    data, latent = sources.patches("china"), 8

    def noise(key: Key, patches: jax.Array) -> jax.Array:
        return jax.random.normal(key, (patches.shape[0], latent))

    def loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> Scalar:
        patches, noise = batch
        shown, divergence = _encoded(params, patches, noise, jax.nn.relu)
        return (jnp.mean(jnp.sum((shown - patches) ** 2, axis=-1)) / (2 * 0.5**2) + divergence) / 64

    return on_examples(loss, lambda key: _vae(key, 64, 48, latent), data.splits, 64, noise, sources=(data.source,))


def vae_bars() -> TaskFamily:
    """Random bars on 8 by 8 pixels (Földiák 1990) by tanh networks, always new ones; Bernoulli pixels."""
    latent = 6

    def draw(key: Key, task: Task, num: int) -> tuple[jax.Array, jax.Array]:
        bar_key, noise_key = jax.random.split(key)
        across, down = jax.random.bernoulli(bar_key, 0.15, (2, num, 8))
        pictures = (across[:, :, None] | down[:, None, :]).reshape(num, 64).astype(jnp.float32)
        return pictures, jax.random.normal(noise_key, (num, latent))

    def loss(params: Params, task: Task, batch: tuple[jax.Array, jax.Array]) -> Scalar:
        pictures, noise = batch
        logits, divergence = _encoded(params, pictures, noise, jnp.tanh)
        return jnp.mean(jnp.sum(jax.nn.softplus(logits) - pictures * logits, axis=-1)) + divergence

    return on_draws(loss, lambda key, task: _vae(key, 64, 32, latent), draw, 32, 512)


def _vae(key: Key, inputs: int, width: int, latent: int) -> Params:
    encoder_key, decoder_key = jax.random.split(key)
    return {
        "encoder": mlp(encoder_key, inputs, width, 2 * latent),
        "decoder": mlp(decoder_key, latent, width, inputs),
    }


def _encoded(
    params: Params, inputs: jax.Array, noise: jax.Array, activation: Activation
) -> tuple[jax.Array, jax.Array]:
    """The decoder's outputs for draws of the code, and the mean KL of the code from N(0, I)."""
    mean, log_std = jnp.split(forward(params["encoder"], inputs, activation), 2, axis=-1)
    shown = forward(params["decoder"], mean + jnp.exp(log_std) * noise, activation)
    each = jnp.sum(jnp.exp(2 * log_std) + mean**2 - 1 - 2 * log_std, axis=-1)
    return shown, 0.5 * jnp.mean(each)


# ----- autoencoders of another kind -----------------------------------------------------------------------------------


def denoising_flower() -> TaskFamily:
    """Patches of a picture from noisy ones, through a narrow middle (Vincent et al. 2008)."""
    data = sources.patches("flower")

    def loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> Scalar:
        patches, noise = batch
        return jnp.mean((forward(params, patches + noise, jax.nn.gelu) - patches) ** 2)

    def noise(key: Key, patches: jax.Array) -> jax.Array:
        return 0.4 * jax.random.normal(key, patches.shape)

    return on_examples(loss, lambda key: mlp(key, 64, 96, 16, 96, 64), data.splits, 32, noise, sources=(data.source,))


def sparse_flower() -> TaskFamily:
    """Patches by few of 128 features, with the sum of these features' sizes (a sparse autoencoder)."""
    data = sources.patches("flower")

    def init(key: Key) -> Params:
        return dict(zip(("encoder", "decoder"), mlp(key, 64, 128, 64), strict=True))

    def loss(params: Params, patches: jax.Array) -> Scalar:
        code = jax.nn.relu(patches @ params["encoder"]["w"] + params["encoder"]["b"])
        columns = params["decoder"]["w"]
        sizes = jnp.sqrt(jnp.sum(columns**2, axis=1) + 1e-12)  # else the code shrinks and the columns grow
        errors = jnp.sum((code @ columns + params["decoder"]["b"] - patches) ** 2, axis=-1)
        return jnp.mean(errors + 0.3 * code @ sizes) / 64

    return on_examples(loss, init, data.splits, 64, sources=(data.source,))


# ----- likelihoods of mixtures ----------------------------------------------------------------------------------------

NARROWEST = 0.3  # deviation of a component, below which likelihoods would grow without end


def mixture_iris() -> TaskFamily:
    """Three normal laws with diagonal covariances, on all of iris at once."""
    data = sources.table("iris")
    splits = {split: examples.inputs for split, examples in data.splits.items()}
    lowest = 4 * (0.5 * math.log(2 * math.pi) + math.log(NARROWEST))
    return on_examples(_mixture_loss, _mixture(3, 4, 1.0), splits, lower_bound=lowest, sources=(data.source,))


def mixture_ring() -> TaskFamily:
    """Eight clusters on a ring, found by ten normal laws from minibatches."""

    def examples(key: Key) -> Splits:
        turn_key, key = jax.random.split(key)
        turn = jax.random.uniform(turn_key, (), maxval=2 * jnp.pi)

        def one(key: Key) -> jax.Array:
            which_key, noise_key = jax.random.split(key)
            angle = turn + 2 * jnp.pi * jax.random.randint(which_key, (), 0, 8) / 8
            return 3 * jnp.stack([jnp.cos(angle), jnp.sin(angle)]) + 0.4 * jax.random.normal(noise_key, (2,))

        return drawn(key, one, 1024, 512)

    lowest = 2 * (0.5 * math.log(2 * math.pi) + math.log(NARROWEST))
    return on_examples(_mixture_loss, _mixture(10, 2, 0.5), examples, 64, lower_bound=lowest)


def _mixture(components: int, dim: int, spread: float):
    def init(key: Key) -> Params:
        means = spread * jax.random.normal(key, (components, dim))
        return {"means": means, "log_std": jnp.zeros_like(means), "logits": jnp.zeros(components)}

    return init


def _mixture_loss(params: Params, x: jax.Array) -> Scalar:
    std = NARROWEST + jnp.exp(params["log_std"])
    each = -0.5 * ((x[:, None] - params["means"]) / std) ** 2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)
    return -jnp.mean(jax.nn.logsumexp(jax.nn.log_softmax(params["logits"]) + jnp.sum(each, axis=-1), axis=-1))


# ----- normalising flows (Dinh et al. 2017) ---------------------------------------------------------------------------


class _Drawn(NamedTuple):
    x: jax.Array  # [n, dim]
    log_density: jax.Array  # [n]


def flow_moons() -> TaskFamily:
    """The density of two moons by six affine couplings."""
    std = 0.1

    def curve(side: jax.Array, angle: jax.Array) -> jax.Array:
        x, y = jnp.cos(angle) + side - 0.5, jnp.sin(angle) * (1 - 2 * side) + 0.5 * side - 0.25
        return jnp.stack([x, y], axis=-1)

    def draw(key: Key, task: Task, num: int) -> _Drawn:
        side_key, angle_key, noise_key = jax.random.split(key, 3)
        side = jax.random.bernoulli(side_key, 0.5, (num,)).astype(jnp.float32)
        angle = jnp.pi * jax.random.uniform(angle_key, (num,))
        x = curve(side, angle) + std * jax.random.normal(noise_key, (num, 2))
        angles = jnp.pi * (jnp.arange(64) + 0.5) / 64
        centres = curve(jnp.repeat(jnp.arange(2.0), 64), jnp.tile(angles, 2))
        squares = jnp.sum((x[:, None] - centres) ** 2, axis=-1)
        density = jax.nn.logsumexp(-squares / (2 * std**2), axis=1, b=1 / 128) - math.log(2 * math.pi * std**2)
        return _Drawn(x, density)

    return _flow(2, 6, draw)


def flow_banana() -> TaskFamily:
    """Eight coordinates, each bent by the one before."""

    def draw(key: Key, task: Task, num: int) -> _Drawn:
        normal = jax.random.normal(key, (8, num))
        columns = [2.0 * normal[0]]
        for row in normal[1:]:
            columns.append(0.5 * columns[-1] ** 2 / (1 + 0.1 * columns[-1] ** 2) - 1 + 0.5 * row)
        scales = math.log(2.0) + 7 * math.log(0.5)
        density = -0.5 * jnp.sum(normal**2, axis=0) - 4 * math.log(2 * math.pi) - scales
        return _Drawn(jnp.stack(columns, axis=-1), density)

    return _flow(8, 4, draw)


def _flow(dim: int, depth: int, draw: Callable[[Key, Task, int], _Drawn]) -> TaskFamily:
    """Judged by the divergence from the true density, a mean over draws, which chance may take a little below 0."""
    half, width = dim // 2, 24

    def init(key: Key, task: Task) -> Params:
        into, out = normals(key, (depth, half, width), (depth, width, 2 * half))
        zeros = jnp.zeros((depth, 2 * half))
        return {"w": half**-0.5 * into, "b": jnp.zeros((depth, width)), "v": 0.1 * width**-0.5 * out, "c": zeros}

    def loss(params: Params, task: Task, batch: _Drawn) -> Scalar:
        x = batch.x
        kept, moved = x[:, :half], x[:, half:]
        log_slope = jnp.zeros(x.shape[0])
        for layer in range(depth):
            hidden = jnp.tanh(kept @ params["w"][layer] + params["b"][layer])
            slope, shift = jnp.split(hidden @ params["v"][layer] + params["c"][layer], 2, axis=-1)
            slope = 2 * jnp.tanh(slope / 2)
            moved = moved * jnp.exp(slope) + shift
            log_slope = log_slope + jnp.sum(slope, axis=-1)
            kept, moved = moved, kept
        square = jnp.sum(kept**2, axis=-1) + jnp.sum(moved**2, axis=-1)
        return jnp.mean(batch.log_density + 0.5 * square - log_slope) + 0.5 * dim * math.log(2 * math.pi)

    return on_draws(loss, init, draw, 64, 1024, lower_bound=-0.02)
