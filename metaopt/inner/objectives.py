"""Meta-objectives: a Trace -> one number a task. All weights w_t = 1, b the loss's lower bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metaopt.registry import OBJECTIVES
from metaopt.types import Objective, Trace


@OBJECTIVES.register
def mean() -> Objective:
    """(1/T) Σ_t f(θ_t)."""
    return lambda trace: jnp.mean(trace.loss, axis=0)


@OBJECTIVES.register
def last() -> Objective:
    """f(θ_T)."""
    return lambda trace: trace.loss[-1]


@OBJECTIVES.register(scale_free=True, positive=True)
def log() -> Objective:
    """(1/T) Σ_t log(f(θ_t) - b); below 1e-12 it is flat."""

    def objective(trace: Trace) -> jax.Array:
        return jnp.mean(jnp.log(jnp.maximum(trace.loss - trace.lower_bound, 1e-12)), axis=0)

    return objective


@OBJECTIVES.register(scale_free=True, positive=True)
def relative() -> Objective:
    """(1/T) Σ_t (f(θ_t) - b)/(f(θ_0) - b)."""

    def objective(trace: Trace) -> jax.Array:
        return jnp.mean(_relative(trace), axis=0)

    return objective


@OBJECTIVES.register(scale_free=True, positive=True)
def log_relative(*, floor: float = 1e-5) -> Objective:
    """(1/T) Σ_t log((f(θ_t) - b)/(f(θ_0) - b) + floor): what is lost far below f(θ_0) still counts, down to the floor.

    Without one, tasks whose loss goes to its bound decide alone, and longer steps pay without end.

    Args:
      floor: the share of f(θ_0) - b below which a lower loss gains next to nothing; above 0.
    """
    if not 0 < floor < 1:
        raise ValueError(f"`floor` ({floor}) must lie between 0 and 1; try 1e-5.")

    def objective(trace: Trace) -> jax.Array:
        return jnp.mean(jnp.log(jnp.maximum(_relative(trace), 0.0) + floor), axis=0)

    return objective


def _relative(trace: Trace) -> jax.Array:
    """(f(θ_t) - b)/(f(θ_0) - b), [steps, tasks]."""
    return (trace.loss - trace.lower_bound) / jnp.maximum(trace.initial_loss - trace.lower_bound, 1e-12)
