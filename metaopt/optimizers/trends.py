"""What a controller keeps of the loss that it is told: whether it falls, and as foretold, and whether it has risen."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from metaopt.optimizers.tensors import TINY, inverse_root
from metaopt.trees import LARGEST

Kind = Literal["spread", "log"]
SHARES = (0.2, 0.03)  # of a new loss in the fast and the slow average
FAST, SLOW, VARIANCE, LAST, CHANGE, FORETOLD, LOWEST, NOISE, SEEN, SINCE = range(10)
FEWEST = 10  # losses before any is judged to have risen
FORGOTTEN = 0.01  # a step, of how far the slow average lies above the lowest that it has been, while it has risen


def unseen(dtype: Any) -> jax.Array:
    """[10] fast and slow average of the loss, its variance about the slow one (below 0: none seen), the last one, fast
    averages of its change and of what was foretold of it, the lowest that the slow average has been of late, a mean of
    |change|, how many losses were seen, and what is foretold since the last one."""
    return jnp.zeros(10, dtype).at[VARIANCE].set(-1.0)


def share(a: jax.Array, b: jax.Array) -> jax.Array:
    """a/(|a| + |b|), 0 where both are."""
    # In units of the larger, which the quotient does not depend on: its gradient has the square of what it divides by.
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.abs(a), jnp.abs(b)))
    unit = jnp.where(unit > 0, unit, 1.0)
    a, b = a / unit, b / unit
    both = jnp.abs(a) + jnp.abs(b)
    return jnp.where(both > 0, a / jnp.where(both > 0, both, 1.0), 0.0)


def polyak(trend: jax.Array, slope: jax.Array, log_alpha: jax.Array) -> jax.Array:
    """Log of how far to go along a slope until the last loss were 0, less log α; 0 before there was a loss."""
    # Not the log of the quotient, for the sake of its gradient.
    length = jnp.log(jnp.maximum(jnp.abs(trend[LAST]), TINY)) - jnp.log(slope)
    return jnp.where(trend[VARIANCE] < 0, 0.0, length - log_alpha)


def rises(trend: jax.Array, noise: float) -> jax.Array:
    """Whether the loss's fast average lies above the lowest slow one by more than so many mean changes of a step.

    Meanwhile the lowest is forgotten, in some hundred steps: a loss that is higher for good would have risen for good.
    """
    return (trend[SEEN] >= FEWEST) & (trend[FAST] > trend[LOWEST] + noise * trend[NOISE])


def follow(
    trend: jax.Array, value: jax.Array | None, foretold: jax.Array, kind: Kind, noise: float | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What is kept of the loss with one more, whether it falls (below 0) or rises, and its changes [2]; 0s without.

    Args:
      foretold: the change of the loss by the last step to first order, of the part along the bank's own directions.
      noise: as of `rises`; the mean change stays as it was while the loss does, for what explodes is noisy too.
    """
    foretold = trend[SINCE] + foretold
    if value is None:
        return trend.at[SINCE].set(foretold), jnp.zeros((), trend.dtype), jnp.zeros(2, trend.dtype)
    value = jnp.asarray(value, trend.dtype).reshape(())
    seen = jnp.abs(value) <= LARGEST  # whose squares are finite
    raw = value = jnp.where(seen, value, trend[LAST])
    if kind == "log":
        value = jnp.log(jnp.maximum(jnp.abs(value), 1e-12))
    fast, slow, variance = trend[FAST], trend[SLOW], trend[VARIANCE]
    change, slower = raw - trend[LAST], slow + SHARES[1] * (value - slow)
    noisy = jnp.maximum(SHARES[1], 1 / jnp.maximum(trend[SEEN], 1)) * (jnp.abs(change) - trend[NOISE])
    lowest = trend[LOWEST]
    if noise is not None:
        risen = rises(trend, noise)
        noisy = jnp.where(risen, 0.0, noisy)
        lowest = lowest + jnp.where(risen, FORGOTTEN * jnp.maximum(slower - lowest, 0.0), 0.0)
    new = jnp.stack(
        [
            fast + SHARES[0] * (value - fast),
            slower,
            variance + SHARES[1] * (jnp.square(value - slow) - variance),
            raw,
            trend[CHANGE] + SHARES[0] * (change - trend[CHANGE]),
            trend[FORETOLD] + SHARES[0] * (foretold - trend[FORETOLD]),
            jnp.minimum(lowest, slower),
            trend[NOISE] + noisy,
            trend[SEEN] + 1,
            jnp.zeros_like(value),
        ]
    )
    zero = jnp.zeros_like(value)
    first = [value, value, zero, raw, zero, zero, value, zero, zero + 1, zero]
    new = jnp.where(variance < 0, jnp.stack(first), new)
    new = jnp.where(seen, new, trend.at[SINCE].set(foretold))
    difference = jnp.where(new[VARIANCE] < 0, 0.0, new[FAST] - new[SLOW])
    falling = difference if kind == "log" else difference * inverse_root(new[VARIANCE])
    at_once = jnp.where((variance < 0) | ~seen, 0.0, share(change, foretold))
    return new, falling, jnp.stack([at_once, share(new[CHANGE], new[FORETOLD])])
