"""Step noise ξ ~ Gamma(2, 1): what makes a learned optimizer a stochastic policy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from metaopt.types import MetaParams, Optimizer

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


@functools.lru_cache(maxsize=128)  # the compiled code hangs on the Optimizer's identity
def with_noise(optimizer: Optimizer) -> Optimizer:
    """The same optimizer whose every update draws the step noise of meta-training, from `key=`.

    Raises:
      ValueError: it has no step noise that could be on or off; in `update`, no `key`.
    """
    if not optimizer.explores:
        raise ValueError("this optimizer has no step noise of its own; take one such as lstm with noise=per_step.")

    def on(bind: Callable[[MetaParams], optax.GradientTransformationExtraArgs]) -> Callable[[MetaParams], Any]:
        def noisy(meta_params: MetaParams) -> optax.GradientTransformationExtraArgs:
            tx = bind(meta_params)

            def update(updates: Any, state: Any, params: Any = None, *, key: Any = None, **extra: Any) -> Any:
                if key is None:
                    raise ValueError("step noise is drawn from `key`; call update(..., key=step_key)")
                return tx.update(updates, state, params, key=key, **{**extra, "explore": True})

            return optax.GradientTransformationExtraArgs(tx.init, update)

        return noisy

    bind_tasks = None if optimizer.bind_tasks is None else on(optimizer.bind_tasks)
    told = optimizer.at_horizon
    return optimizer._replace(
        bind=on(optimizer.bind),
        bind_tasks=bind_tasks,
        noise="always",
        at_horizon=None if told is None else lambda horizon: with_noise(told(horizon)),
    )
