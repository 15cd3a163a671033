"""Signals by networks of sines, and pictures made whole again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.benchmark import sources
from metaopt.benchmark.layers import forward, normals
from metaopt.benchmark.parts import Examples, Splits, on_examples
from metaopt.types import Key, Params, Scalar, TaskFamily

# ----- networks of sines (SIREN, Sitzmann et al. 2020) ----------------------------------------------------------------


def siren_china() -> TaskFamily:
    """A picture of 40 by 40 pixels from minibatches of half of them, the others being the test."""
    picture, source = sources.picture("china", 40)
    line = np.linspace(-1, 1, 40, dtype=np.float32)
    places = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    values = (picture.reshape(-1, 1) - picture.mean()) / picture.std()
    order = np.random.default_rng(0).permutation(len(places))
    splits: Splits = {
        split: Examples(places[rows], values[rows])
        for split, rows in zip(("train", "test"), np.split(order, 2), strict=True)
    }
    return on_examples(_sine_errors, _sines(15.0, 2, 48, 48, 1), splits, 128, sources=(source,))


def siren_sound() -> TaskFamily:
    """A second of a chirp with overtones, on all 256 moments; each task its own."""

    def examples(key: Key) -> Splits:
        heights, pitch = normals(key, (3,), ())
        times = jnp.linspace(-1.0, 1.0, 256)[:, None]
        phase = (12 + 2 * pitch) * (times + 0.3 * times**2)
        return {"train": Examples(times, jnp.sin(phase * jnp.arange(1, 4)) @ heights[:, None])}

    return on_examples(_sine_errors, _sines(30.0, 1, 32, 32, 32, 1), examples)


def _sines(frequency: float, *sizes: int):
    """Weights so that every layer's sine sees a deviation of about 1, the first `frequency`/√3."""

    def init(key: Key) -> Params:
        shapes = list(zip(sizes, sizes[1:], strict=False))
        keys = jax.random.split(key, len(shapes))
        layers = []
        for index, (each, shape) in enumerate(zip(keys, shapes, strict=True)):
            limit = frequency / shape[0] if index == 0 else (6 / shape[0]) ** 0.5
            draw = jax.random.uniform(each, shape, minval=-limit, maxval=limit)
            layers.append({"w": draw, "b": jnp.zeros_like(draw[0])})
        return layers

    return init


def _sine_errors(params: Params, batch: Examples) -> Scalar:
    return jnp.mean((forward(params, batch.inputs, jnp.sin) - batch.targets) ** 2)


# ----- restoration: a parameter a pixel, convex, all at once ----------------------------------------------------------


def denoised_flower() -> TaskFamily:
    """A picture of 60 by 60 pixels without its noise, by total variation (Rudin et al. 1992), smoothed at 0.01."""
    picture, source = sources.picture("flower", 60)

    def examples(key: Key, picture: jax.Array) -> Splits:
        return {"train": picture + 0.15 * jax.random.normal(key, picture.shape)}

    def loss(params: Params, noisy: jax.Array) -> Scalar:
        down, right = jnp.diff(params, axis=0)[:, :-1], jnp.diff(params, axis=1)[:-1]
        variation = jnp.sqrt(down**2 + right**2 + 0.01**2)
        return jnp.mean((params - noisy) ** 2) / 2 + 0.1 * jnp.mean(variation)

    return _restored(loss, examples, (picture,), picture, source)


def deblurred_flower() -> TaskFamily:
    """A picture of 48 by 48 pixels from a blurred one, with a small decay of slopes: a condition number near 1e4."""
    picture, source = sources.picture("flower", 48)
    offsets = np.arange(48)[:, None] - np.arange(48)
    blur = np.exp(-0.5 * (offsets / 1.2) ** 2)
    blur = (blur / blur.sum(axis=1, keepdims=True)).astype(np.float32)

    def examples(key: Key, blurred: jax.Array, blur: jax.Array) -> Splits:
        return {"train": (blurred + 0.01 * jax.random.normal(key, blurred.shape), blur)}

    def loss(params: Params, seen: tuple[jax.Array, jax.Array]) -> Scalar:
        blurred, blur = seen
        slopes = jnp.mean(jnp.diff(params, axis=0) ** 2) + jnp.mean(jnp.diff(params, axis=1) ** 2)
        return jnp.mean((blur @ params @ blur.T - blurred) ** 2) + 1e-4 * slopes

    return _restored(loss, examples, (blur @ picture @ blur.T, blur), picture, source)


def _restored(loss, examples, shared, picture: np.ndarray, source) -> TaskFamily:
    return on_examples(
        loss,
        lambda key: jnp.full(picture.shape, 0.5, jnp.float32),
        examples,
        sources=(source,),
        whole=True,
        shared=shared,
    )
