"""Meta-objectives: a Trace -> one number a task. All weights w_t = 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metaopt.types import Objective, Trace


def mean(trace: Trace) -> jax.Array:
    """(1/T) Σ_t f(θ_t)."""
    return jnp.mean(trace.loss, axis=0)


def last(trace: Trace) -> jax.Array:
    """f(θ_T)."""
    return trace.loss[-1]


def log(trace: Trace) -> jax.Array:
    """(1/T) Σ_t log f(θ_t), for positive losses; below 1e-12 it is flat."""
    return jnp.mean(jnp.log(jnp.maximum(trace.loss, 1e-12)), axis=0)


def relative(trace: Trace) -> jax.Array:
    """(1/T) Σ_t f(θ_t)/f(θ_0), for positive losses."""
    return jnp.mean(trace.loss, axis=0) / jnp.maximum(trace.initial_loss, 1e-12)


# A task's scale has no part in their gradients, so families need no balancing under them.
SCALE_FREE: frozenset[Objective] = frozenset({log, relative})

OBJECTIVES: dict[str, Objective] = {"mean": mean, "last": last, "log": log, "relative": relative}
