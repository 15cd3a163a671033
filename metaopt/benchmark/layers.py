"""Small networks on plain pytrees: layers, normalisations, convolution, losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.types import Key, Params, Scalar

Activation = Callable[[jax.Array], jax.Array]


def normals(key: Key, *shapes: tuple[int, ...]) -> list[jax.Array]:
    """Standard normal arrays from one draw: a generator for each would take long to compile."""
    counts = [math.prod(shape) for shape in shapes]
    parts = jnp.split(jax.random.normal(key, (sum(counts),)), np.cumsum(counts)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def mlp(key: Key, *sizes: int, gain: float = 2.0, normalised: bool = False) -> list[dict[str, jax.Array]]:
    """Layers "w" [inputs, outputs] of variance gain/inputs (1/inputs in the last) and "b" 0; "scale" if normalised."""
    shapes = list(zip(sizes, sizes[1:], strict=False))
    layers = []
    for index, draw in enumerate(normals(key, *shapes)):
        last = index == len(shapes) - 1
        layer = {"w": ((1.0 if last else gain) / draw.shape[0]) ** 0.5 * draw, "b": jnp.zeros_like(draw[0])}
        layers.append(layer | ({"scale": jnp.ones_like(draw[0])} if normalised and not last else {}))
    return layers


def forward(layers: Params, x: jax.Array, activation: Activation, normalise: Activation | None = None) -> jax.Array:
    """[..., inputs] -> [..., outputs]; the last layer is linear."""
    for layer in layers[:-1]:
        x = x @ layer["w"]
        if normalise is not None:
            x = layer["scale"] * normalise(x)
        x = activation(x + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def over_features(x: jax.Array) -> jax.Array:
    """Layer normalisation without its parameters."""
    return _normalise(x, -1)


def over_examples(x: jax.Array) -> jax.Array:
    """Batch normalisation with the statistics of the batch at hand, without its parameters; the last axis stays."""
    return _normalise(x, tuple(range(x.ndim - 1)))


def _normalise(x: jax.Array, axis: Any) -> jax.Array:
    centred = x - jnp.mean(x, axis, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis, keepdims=True) + 1e-5)


def windows(x: jax.Array, stride: int) -> jax.Array:
    """[n, h, w, c] -> [n, h/stride, w/stride, 9c], what a 3 by 3 convolution multiplies with its weights.

    A product of matrices stays one in a batch of tasks, where a convolution becomes a slow one in groups.
    """
    padded, (height, width) = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), x.shape[1:3]
    return jnp.concatenate(
        [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)], axis=-1
    )


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> Scalar:
    """Mean over all labels, or weighted; with one-hot labels, since an indexed pick has a slow gradient."""
    each = -jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, logits.shape[-1]), axis=-1)
    return jnp.mean(each) if weights is None else jnp.sum(weights * each) / jnp.sum(weights)
