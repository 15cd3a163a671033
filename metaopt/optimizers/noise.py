"""Step noise ξ ~ Gamma(2, 1): what makes a learned optimizer a stochastic policy."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

Noise = Literal["none", "per_step", "per_coordinate"]
NoiseInUse = Literal["one", "two", "on"]


def gamma_noise(keys: jax.Array, num_coordinates: int, dtype: Any) -> jax.Array:
    """[tasks, num_coordinates] draws of Gamma(2, 1), one key a task; a sum of two unit exponentials."""
    draw = jax.vmap(lambda key: jax.random.exponential(key, (2, num_coordinates), dtype))
    return jnp.sum(draw(keys), axis=1)


def gamma_log_prob(x: jax.Array, scale: jax.Array) -> jax.Array:
    """[tasks] Σ_i log Gamma(x_i; 2, scale_i) of x [tasks, D]; coordinates of no scale are certain and left out."""
    certain = (scale <= 0) | (x <= 0)
    x, scale = jnp.where(certain, 1.0, x), jnp.where(certain, 1.0, scale)
    return jnp.sum(jnp.where(certain, 0.0, jnp.log(x) - x / scale - 2 * jnp.log(scale)), axis=1)
