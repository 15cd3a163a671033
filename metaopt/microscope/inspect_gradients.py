"""What an optimizer makes of gradients: of a drawn stream of them, and of those it met on a task."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import matmul_precision
from metaopt.microscope.gradient_quality import QUICKLY_COMPILED
from metaopt.types import Key, MetaParams, Optimizer

SHAPE = (12, 12)  # of the one parameter that drawn gradients are of: a matrix, for there are optimizers of matrices
SCALES = tuple(10.0**power for power in range(-4, 5, 2))  # of the drawn gradients; 1 is among them
LENGTH = 1024  # steps of the stream
LAGS = 64  # past gradients that a step is explained by
RESPONSE_SCALES = (1e-2, 1.0, 1e2)
RESPONSE_GRID = np.linspace(-3, 3, 13)  # of a coordinate's gradient, over the scale of all
BEFORE, HELD = 64, 5  # steps of noise before a response is measured; steps for which the past gradient is held


class Stream(NamedTuple):
    """Gradients with the steps that were made of them."""

    gradient: Any  # [steps, ..., coordinates]
    update: Any
    params: Any  # θ before the step


# ----- a drawn stream -------------------------------------------------------------------------------------------------


def _constant_loss(shape: tuple[int, ...]) -> jax.Array:
    return jnp.ones(shape)  # gradients without a function have no loss: one that neither falls nor rises


@functools.partial(jax.jit, static_argnames=("optimizer", "length"), compiler_options=QUICKLY_COMPILED)
def drawn_stream(optimizer: Optimizer, meta_params: MetaParams, key: Key, length: int = LENGTH) -> Stream:
    """[steps, scales, coordinates]: independent normal gradients, the same up to their `SCALES`; θ_0 ~ N(0, 1)."""
    tx = bind_tasks(optimizer, meta_params)
    start_key, noise_key, update_key = jax.random.split(key, 3)
    scales, tasks = jnp.array(SCALES)[:, None, None], len(SCALES)
    params = jnp.broadcast_to(jax.random.normal(start_key, SHAPE), (tasks, *SHAPE))

    def one_step(carry: tuple[Any, Any], count: jax.Array) -> tuple[tuple[Any, Any], Stream]:
        params, state = carry
        gradient = scales * jax.random.normal(jax.random.fold_in(noise_key, count), SHAPE)
        keys = jax.random.split(jax.random.fold_in(update_key, count), tasks)
        update, state = tx.update(gradient, state, params, key=keys, value=_constant_loss((tasks,)), explore=False)
        seen = Stream(*(jnp.reshape(leaf, (tasks, -1)) for leaf in (gradient, jnp.asarray(update), params)))
        return (params + update, state), seen

    with matmul_precision("highest"):
        return jax.lax.scan(one_step, (params, tx.init(params)), jnp.arange(length))[1]


@functools.partial(jax.jit, static_argnames="optimizer", compiler_options=QUICKLY_COMPILED)
def responses(optimizer: Optimizer, meta_params: MetaParams, key: Key) -> tuple[jax.Array, jax.Array]:
    """([scales, past, now] the step of one coordinate, [scales] the root mean square of the others').

    All gradients are noise but that coordinate's: ± the scale in turn, then `past` for `HELD` steps, then `now`.
    """
    tx = optimizer.bind(meta_params)
    grid = jnp.asarray(RESPONSE_GRID, jnp.float32)
    start_key, noise_key, update_key = jax.random.split(key, 3)
    start = jax.random.normal(start_key, SHAPE)

    def step(scale: jax.Array, carry: tuple[Any, Any], count: jax.Array, probe: jax.Array) -> Any:
        params, state = carry
        gradient = jax.random.normal(jax.random.fold_in(noise_key, count), SHAPE).at[0, 0].set(probe)
        update, state = tx.update(
            scale * gradient, state, params, key=jax.random.fold_in(update_key, count), value=_constant_loss(()),
            explore=False,
        )  # fmt: skip
        return (params + update, state), update

    def at_scale(scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        def before(carry: Any, count: jax.Array) -> Any:
            return step(scale, carry, count, 1.0 - 2.0 * (count % 2))

        carry, updates = jax.lax.scan(before, (start, tx.init(start)), jnp.arange(BEFORE))

        def after(past: jax.Array) -> jax.Array:
            held, _ = jax.lax.scan(
                lambda carry, count: step(scale, carry, count, past), carry, BEFORE + jnp.arange(HELD)
            )
            return jax.vmap(lambda now: step(scale, held, jnp.int32(BEFORE + HELD), now)[1][0, 0])(grid)

        return jax.vmap(after)(grid), jnp.sqrt(jnp.mean(updates[-1] ** 2))

    with matmul_precision("highest"):
        return jax.lax.map(at_scale, jnp.array(RESPONSE_SCALES))


# ----- the rate, momentum and decay that explain the steps ------------------------------------------------------------


def implied(stream: Stream, begin: int, end: int, *, lags: int = LAGS) -> dict[str, Any]:
    """Least squares of the steps `begin` to `end` on the gradients of the last `lags` steps and on θ.

    u_t = -Σ_k w_k ∇_{t-k} - λ θ_t, one w for all coordinates; gradients before the first count as zero. A stream is
    [steps, coordinates]. The decay of w over the lags is fitted by a β^k: SGD and momentum have (rate, μ), and Adam on
    gradients of root mean square 1 has (rate (1 - β1), β1).

    Returns:
      rate: a, how far a gradient moves θ at once. total_rate: a/(1-β), by all later steps too. beta: β. decay: λ,
      a step. r2: the share of the steps' square that the regression explains; exponential_r2: the share of w's that
      a β^k explains. weights: w. None where the steps are not finite or all zero.
    """
    gradient, update, params = (np.asarray(part, np.float64) for part in stream)
    y = update[begin:end].ravel()
    past = np.concatenate([np.zeros((lags - 1, gradient.shape[1])), gradient])[: lags - 1 + end]
    columns = [past[lags - 1 + begin - lag : lags - 1 + end - lag].ravel() for lag in range(lags)]
    x = np.stack([*columns, params[begin:end].ravel()], axis=1)
    size = np.sqrt(np.mean(x**2, axis=0))
    if not (np.isfinite(y).all() and np.isfinite(size).all() and np.any(y)):
        return dict.fromkeys(("rate", "total_rate", "beta", "decay", "r2", "exponential_r2", "weights"))
    size[size == 0] = 1.0
    x /= size
    solution = np.linalg.lstsq(x.T @ x, x.T @ y, rcond=1e-12)[0]  # of least length where gradients are collinear
    weights, decay = -solution[:lags] / size[:lags], float(-solution[lags] / size[lags])
    amplitude, beta, fits = _exponential(weights)
    return {
        "rate": amplitude,
        "total_rate": amplitude / (1 - beta),
        "beta": beta,
        "decay": decay,
        "r2": 1 - float(np.sum((y - x @ solution) ** 2) / np.sum(y**2)),
        "exponential_r2": fits,
        "weights": weights,
    }


def _exponential(weights: np.ndarray) -> tuple[float, float, float]:
    """(a, β, share of Σw² explained) of the least squares fit of a β^k to w_k; β in (-1, 1)."""
    lags, middle, width = np.arange(len(weights)), 0.0, 0.9999
    for _ in range(4):
        betas = np.clip(middle + width * np.linspace(-1, 1, 401), -0.9999, 0.9999)
        powers = np.power(betas[:, None], lags)  # [betas, lags]; 0^0 = 1
        explained = (powers @ weights) ** 2 / np.sum(powers**2, axis=1)
        best = int(np.argmax(explained))
        middle, width = float(betas[best]), width / 100
    amplitude = float(powers[best] @ weights / np.sum(powers[best] ** 2))
    return amplitude, middle, float(explained[best] / max(np.sum(weights**2), 1e-300))


def windows(length: int, first: int = 32) -> list[tuple[int, int]]:
    """(begin, end) of the parts of a run, each as long as all before it."""
    edges = [0, first]
    while 2 * edges[-1] <= length:
        edges.append(2 * edges[-1])
    return list(zip(edges, edges[1:], strict=False))


def over_time(stream: Stream) -> list[dict[str, Any]]:
    """`implied` of every window, and with each coordinate's gradients over their root mean square in it.

    What divides by the gradient's size, as Adam does, is explained better by the latter.
    """
    found = []
    for begin, end in windows(len(stream.gradient)):
        entry = {"begin": begin, "end": end, **implied(stream, begin, end)}
        gradient = np.asarray(stream.gradient, np.float64)
        size = np.sqrt(np.mean(gradient[begin:end] ** 2, axis=0))
        normalised = implied(stream._replace(gradient=gradient / np.where(size > 0, size, 1.0)), begin, end)
        found.append({**entry, "normalised": {name: normalised[name] for name in normalised if name != "weights"}})
    return found


def lengths(stream: Stream) -> dict[str, Any]:
    """Root mean square of a coordinate's step against the scale of the gradients, over the stream's second half.

    `slope` of the logarithms: 0 is free of scale, 1 is proportional to the gradient.
    """
    half = np.asarray(stream.update, np.float64)[len(stream.update) // 2 :]
    with np.errstate(all="ignore"):
        length = np.sqrt(np.mean(half**2, axis=(0, 2)))
        known = np.isfinite(length) & (length > 0)
        slope = np.polyfit(np.log(np.array(SCALES)[known]), np.log(length[known]), 1)[0] if known.sum() > 1 else None
    return {"scale": SCALES, "length": length, "slope": slope}
