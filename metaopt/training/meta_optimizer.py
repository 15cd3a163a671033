"""The optimizer of φ: clipping of the meta-gradient, the schedule of the rate, averages over meta-steps."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.errors import UserError
from metaopt.experiment import MetaOptimizer
from metaopt.types import PyTree


def moving_average(mean: PyTree, value: PyTree, count: jax.Array, decay: float) -> PyTree:
    """The debiased moving average of `count` values, the last one `value`: Σ_i d^(count-i) v_i / Σ_i d^(count-i).

    `mean` is that of the values before; with a count of 1 it does not matter.
    """
    # expm1: where d is close to 1, few digits of 1 - d^count would be left in float32.
    weight = (1 - decay) / -jnp.expm1(count * math.log(decay))

    def one(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(count == 1, new, old + weight.astype(old.dtype) * (new - old))

    return jax.tree.map(one, mean, value)


class AdaptiveClip(NamedTuple):
    """What `clip_adaptively` carries."""

    mean: jax.Array  # [] of the norms after clipping
    count: jax.Array  # [] int32


def clip_adaptively(multiple: float, decay: float = 0.99) -> optax.GradientTransformation:
    """Clips by norm at a multiple of the average norm so far (Pascanu et al. 2013 go by the same statistic).

    The average is over meta-steps, of the norms after clipping, so that one outlier raises it little; a lasting change
    of scale is followed as long as the multiple is above 1. The first gradient that is not zero passes. optax's
    `adaptive_grad_clip` (Brock et al. 2021) compares each unit's gradient with its weights, and φ is one vector here,
    without units.

    Raises:
      ValueError: a multiple of at most 1, which would drive the average to zero.
    """
    if not 1 < multiple < math.inf:
        raise ValueError(f"the multiple of the average norm ({multiple}) must be above 1; try 3.")

    def init(params: PyTree) -> AdaptiveClip:
        return AdaptiveClip(jnp.zeros((), jax.tree.leaves(params)[0].dtype), jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, AdaptiveClip]:
        norm, count = optax.global_norm(updates), state.count + 1
        # An average of zero, from gradients that were, would hold every later one at zero.
        threshold = jnp.where(state.mean > 0, multiple * state.mean, jnp.inf).astype(norm.dtype)
        over = norm > threshold
        factor = jnp.where(over, threshold / jnp.where(over, norm, 1.0), 1.0)
        mean = moving_average(state.mean, jnp.minimum(norm, threshold), count, decay)
        return jax.tree.map(lambda leaf: factor * leaf, updates), AdaptiveClip(mean, count)

    return optax.GradientTransformation(init, update)


def make_clips(config: MetaOptimizer) -> list[optax.GradientTransformation]:
    """By value, then adaptively, then by norm; those that are set."""
    clips = []
    if config.clip_value is not None:
        clips.append(optax.clip(config.clip_value))
    if config.clip_adaptive is not None:
        try:
            clips.append(clip_adaptively(config.clip_adaptive))
        except ValueError as error:
            raise UserError(f"`meta_optimizer.clip_adaptive`: {error}") from error
    if config.clip_norm is not None:
        clips.append(optax.clip_by_global_norm(config.clip_norm))
    return clips


def follows_length(config: MetaOptimizer) -> bool:
    """Whether a longer gradient makes a longer meta-step, as it does where nothing divides by its size."""
    tx = getattr(optax, config.name)(1.0)
    params = jnp.ones(1)
    once, twice = (tx.update(scale * params, tx.init(params), params)[0] for scale in (1.0, 2.0))
    return bool(jnp.abs(twice - once)[0] > 0.5)


def make_meta_optimizer(
    config: MetaOptimizer, num_meta_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optax chain (`make_clips`, optimizer) at learning rate 1, and the schedule of the rate.

    The rate multiplies the chain's updates by the meta-step, so that it ends where the run does, whatever was skipped.

    Raises:
      UserError: the warm-up takes up the whole run, or the optimizer has no decay.
    """
    options, factory = {}, getattr(optax, config.name)
    if config.weight_decay is not None:
        options["weight_decay"] = config.weight_decay
    if not set(options) <= set(inspect.signature(factory).parameters):
        raise UserError(f"`meta_optimizer.weight_decay` is set, and {config.name} has none; take name=adamw.")
    rate, end, warmup = config.learning_rate, config.final_fraction, config.warmup_steps
    if warmup and warmup >= num_meta_steps:
        raise UserError(f"`warmup_steps` ({warmup}) must be below `num_meta_steps` ({num_meta_steps}).")
    steps = max(num_meta_steps - warmup, 1)
    if config.schedule == "cosine":
        schedule: optax.Schedule = optax.cosine_decay_schedule(rate, steps, alpha=end)
    elif config.schedule == "exponential":
        schedule = optax.exponential_decay(rate, steps, end)
    else:
        schedule = optax.constant_schedule(rate)
    if warmup:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), schedule], [warmup])
    return optax.chain(*make_clips(config), factory(1.0, **options)), schedule
