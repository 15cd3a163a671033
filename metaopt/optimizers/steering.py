"""One update of a controller: what is kept of a run, what the network reads of it, and the step that comes of it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.optimizers import mlps, trends
from metaopt.optimizers.noise import NoiseInUse
from metaopt.optimizers.step_rules import LOG_ALPHA_RANGE
from metaopt.optimizers.tensors import TINY, Layout, inverse_root, over_tensors, sums, to_rows
from metaopt.types import MetaParams

Outputs = Literal["both", "alpha", "weights"]
Noise = Literal["none", "per_step", "per_tensor"]
Start = Literal["fixed", "polyak"]

LARGEST_FEATURE = 4.0
SHARPNESS = 2.0  # of the softmax over directions
SHORTEST = 1e-8  # a mixture of directions shorter than this counts as that long
SHARE = 0.2  # of a new length in the mean of lengths of late


class Rule(NamedTuple):
    """A controller's options, checked."""

    bank: tuple[tuple[int, bool] | None, ...]  # None: the network's direction
    features: tuple[str, ...]
    hidden_size: int
    outputs: Outputs
    loss_trend: trends.Kind
    start: Start
    max_change: float
    early_change: float
    gain: float
    bound: float | None
    brake: float | None
    surge: float | None
    weight_decay: float
    noise: Noise
    noise_in_use: NoiseInUse
    betas: tuple[float, ...]
    seconds: tuple[float, ...]


class TensorState(NamedTuple):
    """What is kept of each tensor."""

    second: jax.Array  # [tensors, 2] means of the fast and the slow second moment, not debiased
    first: jax.Array  # [tensors, 3] mean squares of the momenta, not debiased
    step: jax.Array  # [tensors, 6] the last step in terms of m/√v and m, see `_along`
    slope: jax.Array  # [tensors] ∇ · the last step, at its start
    log_change: jax.Array  # [tensors] log α since the start; log α_0 is a part of φ, and moves with it
    hidden: jax.Array  # [tensors, hidden]
    length: jax.Array  # [tensors] mean length of the mixture of directions of late, 0 before the first gradient


class ControllerState(NamedTuple):
    """Four numbers a coordinate, and a few a tensor."""

    count: jax.Array  # [] int32, updates done
    first: tuple[jax.Array, ...]  # [rows, width] each: the fast, the medium and the slow momentum
    second: jax.Array  # [rows, width]
    tensors: TensorState
    trend: jax.Array  # [10] of the loss, see `trends.unseen`
    began: jax.Array  # [] log α less log α_0 as the first step came
    network: mlps.MLPState | tuple[()] = ()  # where the bank has one


def one_update(
    rule: Rule,
    layout: Layout,
    meta_params: MetaParams,
    gradient: jax.Array,
    theta: jax.Array,
    learned: jax.Array | None,
    state: ControllerState,
    value: jax.Array | None,
    noise: jax.Array | float,
) -> tuple[jax.Array, ControllerState]:
    """Steps [rows, width] and the next state, from gradients, parameters and the network's directions [rows, width]."""
    dtype, count, before = gradient.dtype, state.count + 1, state.tensors
    t = count.astype(dtype)
    size, owners = jnp.asarray(layout.sizes, dtype)[:, None], layout.owners(dtype, count > 0)

    first = tuple(b * m + (1 - b) * gradient for b, m in zip(rule.betas, state.first, strict=True))
    second = rule.seconds[1] * state.second + (1 - rule.seconds[1]) * jnp.square(gradient)
    inverse = inverse_root(second)
    last = -_along(to_rows(owners, before.step), state.first, state.second)
    terms = [*(gradient * m for m in state.first), *map(jnp.square, first), *(jnp.abs(m) * inverse for m in first)]
    terms += [gradient * m * inverse for m in first]
    terms += [gradient * last, jnp.square(gradient), jnp.square(last), jnp.square(theta)]
    means = over_tensors(owners, jnp.stack(sums(*terms), axis=-1)) / size  # [tensors, terms]
    along, squares, adams, along_own, rest = jnp.split(means, [3, 6, 9, 12], axis=1)
    along_last, square, square_last, square_theta = jnp.split(rest, 4, axis=1)

    b1, b2 = jnp.asarray(rule.betas, dtype), jnp.asarray(rule.seconds, dtype)
    seconds = b2 * before.second + (1 - b2) * square
    # 1 - β^t by expm1: where β is close to 1 few digits of the difference would be left.
    debias1, debias2 = -1 / jnp.expm1(t * jnp.log(b1)), -1 / jnp.expm1(t * jnp.log(b2))
    fast, slow = jnp.split(seconds * debias2, 2, axis=1)
    log_alpha_0 = meta_params["log_alpha"].astype(dtype)
    began = state.began
    trend, falling, changed = trends.follow(state.trend, value, jnp.sum(before.slope), rule.loss_trend, rule.brake)
    if rule.start == "polyak":
        slope = jnp.sum(size * jnp.sqrt(jnp.maximum(fast, TINY)))
        length = jnp.clip(trends.polyak(trend, slope, log_alpha_0), -LARGEST_FEATURE, LARGEST_FEATURE)
        began = jnp.where(count == 1, meta_params["polyak"].astype(dtype) * length, began)
    log_alpha = log_alpha_0 + jnp.where(count == 1, began, before.log_change[:, None])
    log_theta = 0.5 * jnp.log(jnp.maximum(square_theta, 1e-12))
    read = {
        "size": _log_ratio(squares * debias1**2, slow),
        "cosine": along * inverse_root(square) * inverse_root(before.first),
        "ratio": adams * debias1 / jnp.sqrt(debias2[1]),
        "last_step": along_last * inverse_root(square) * inverse_root(square_last),
        "slope": trends.share(along_last * size, before.slope[:, None]),
        "second": _log_ratio(fast, slow),
        "gradient": _log_ratio(square, slow),
        "params": jnp.tanh((log_theta - log_alpha) / 8),
        "alpha": log_alpha / 8,
        "time": jnp.full_like(square, jnp.log(t) / 8),
        "start": jnp.full_like(square, 1 / jnp.sqrt(t)),
        "coordinates": jnp.log(size) / 10,
        "loss": jnp.full_like(square, falling),
        "change": jnp.broadcast_to(changed, (square.shape[0], 2)),
    }
    inputs = [read[name] for name in rule.features if name in read]
    x = jnp.clip(jnp.concatenate(inputs, axis=1), -LARGEST_FEATURE, LARGEST_FEATURE) if inputs else square[:, :0]
    hidden = _gru(meta_params["gru"], x, before.hidden)
    outputs = hidden @ meta_params["output"]["kernel"] + meta_params["output"]["bias"]

    brakes = trends.rises(trend, rule.brake) & (value is not None) if rule.brake is not None else None
    bias = meta_params["output"]["bias"] if rule.outputs == "alpha" else outputs
    weights = jax.nn.softmax(SHARPNESS * jnp.broadcast_to(bias, outputs.shape)[:, 1 : 1 + len(rule.bank)], axis=1)
    most, shorter, mean_length = jnp.full_like(log_alpha, LOG_ALPHA_RANGE[1]), 1.0, before.length
    if rule.bound is not None or rule.surge is not None:
        length = _length(rule, weights, read["ratio"], squares * inverse_root(squares) * debias1 * inverse_root(slow))
        length = jnp.maximum(length, SHORTEST)
        if rule.surge is not None:
            # Without a gradient, as where the layer behind begins as 0, a tensor has no length to go by.
            of_late = jnp.where(before.length > 0, before.length, length[:, 0])
            counted = jnp.minimum(length, rule.surge * of_late[:, None])
            followed = of_late + SHARE * (counted[:, 0] - of_late)
            mean_length = jnp.where(square[:, 0] > TINY, followed, before.length)
            shorter, length = counted / length, counted
        if rule.bound is not None:
            most = jnp.minimum(most, math.log(rule.bound) + jnp.maximum(log_theta, log_alpha_0) - jnp.log(length))
    log_alpha, used = _lengths(rule, outputs, log_alpha, log_alpha_0 + began, most, brakes, t)
    # Without a gradient no step: of a loss that has reached 0 memory alone would carry θ on, ever faster, to infinity.
    alpha = shorter * jnp.exp(used) * jnp.reshape(jnp.asarray(noise, dtype), (-1, 1)) * (square > TINY)
    step = _coefficients(rule, alpha * weights, debias1, inverse_root(slow), 1 / jnp.sqrt(debias2[1]))
    steps = -_along(to_rows(owners, step), first, second, inverse)
    if learned is not None:
        which = rule.bank.index(None)
        steps = steps - to_rows(owners, alpha * weights[:, which : which + 1]) * learned
    if rule.weight_decay:
        steps = steps - rule.weight_decay * to_rows(owners, alpha) * theta
    along_new = b1 * along + (1 - b1) * square  # with the momenta as they are now
    slope = -jnp.sum(size * step * jnp.concatenate([along_own, along_new], axis=1), axis=1)
    after = TensorState(seconds, squares, step, slope, log_alpha[:, 0] - log_alpha_0, hidden, mean_length)
    return steps, ControllerState(count, first, second, after, trend, began, state.network)


def _lengths(
    rule: Rule,
    outputs: jax.Array,
    kept: jax.Array,
    began: jax.Array,
    most: jax.Array,
    brakes: jax.Array | None,
    t: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """log α as it is kept and as it is used, [tensors, 1], from `kept` and the network's outputs.

    Args:
      began: log α as it was when the run began, down to which it is braked.
      most: what it may be at most.
    """
    log_alpha, gain = kept, rule.gain * jnp.tanh(outputs[:, -1:])
    if rule.outputs != "weights":
        change = rule.max_change * (1 + rule.early_change / jnp.sqrt(t))
        log_alpha = kept + change * jnp.tanh(outputs[:, :1])
        if brakes is not None:
            log_alpha = jnp.where(brakes, jnp.minimum(log_alpha, jnp.maximum(kept - change, began)), log_alpha)
            gain = jnp.where(brakes, jnp.minimum(gain, 0.0), gain)
    log_alpha = jnp.clip(log_alpha, LOG_ALPHA_RANGE[0], most)
    return log_alpha, jnp.clip(log_alpha + gain, LOG_ALPHA_RANGE[0], most) if rule.gain else log_alpha


def _length(rule: Rule, weights: jax.Array, own: jax.Array, whole: jax.Array) -> jax.Array:
    """[tensors, 1] Σ_j w_j times the length of d_j, of `own` (mean |m̂|/√v̂) and `whole` (RMS) [tensors, momenta]."""
    kinds = [(1.0 if kind is None else (own if kind[1] else whole)[:, kind[0]]) for kind in rule.bank]
    return sum(weights[:, index] * length for index, length in enumerate(kinds))[:, None]  # type: ignore[index]


def _log_ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return (jnp.log(jnp.maximum(a, TINY)) - jnp.log(jnp.maximum(b, TINY))) / 4


def _coefficients(rule: Rule, weights: jax.Array, debias1: jax.Array, inverse: jax.Array, root: jax.Array) -> jax.Array:
    """[tensors, 6] of m/√v and of m, for directions of `weights` [tensors, bank]."""
    kinds = [(which, own) for own in (True, False) for which in range(len(rule.betas))]
    columns = []
    for which, own in kinds:
        if (which, own) in rule.bank:
            weight = weights[:, rule.bank.index((which, own))]
            columns.append(weight * debias1[which] * (root if own else inverse[:, 0]))
        else:
            columns.append(jnp.zeros_like(weights[:, 0]))
    return jnp.stack(columns, axis=1)


def _along(
    step: jax.Array, first: tuple[jax.Array, ...], second: jax.Array, inverse: jax.Array | None = None
) -> jax.Array:
    """Σ_k step_k m_k/√v + Σ_k step_{3+k} m_k of coefficients [rows, 6]."""
    columns = jnp.split(step, step.shape[1], axis=1)
    inverse = inverse_root(second) if inverse is None else inverse
    own = sum(c * m for c, m in zip(columns[: len(first)], first, strict=True))
    whole = sum(c * m for c, m in zip(columns[len(first) :], first, strict=True))
    # A quotient, which XLA computes once, where it would compute a sum anew within every leaf.
    root = jnp.where(inverse > 0, jnp.sqrt(jnp.where(inverse > 0, second, 1.0)), 1.0)  # a gradient of 0 at 0
    return (own + whole * root) / root


def _gru(weights: MetaParams, x: jax.Array, hidden: jax.Array) -> jax.Array:
    """The next state [tensors, hidden] (Cho et al. 2014)."""
    size = hidden.shape[1]
    read, kept = x @ weights["input"] + weights["bias"], hidden @ weights["state"]
    if "others" in weights:
        others = jnp.sum(hidden, axis=0) - hidden
        read = read + (others / max(hidden.shape[0] - 1, 1)) @ weights["others"]
    keep, reset = jnp.split(jax.nn.sigmoid(read[:, : 2 * size] + kept[:, : 2 * size]), 2, axis=1)
    new = jnp.tanh(read[:, 2 * size :] + reset * kept[:, 2 * size :])
    return (1 - keep) * new + keep * hidden
