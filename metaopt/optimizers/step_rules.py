"""From the network's outputs to the step g_t.

`recursive` is the thesis's BP model, g_t = α_t d_t/‖d_t‖ with α_t = α_{t-1} γ_t; `direct` its RL model,
g_t = α_t ξ_t d_t/‖d_t‖ with noise ξ_t. Noise and rule are independent choices: the noise multiplies the step and stays
outside the recursion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.optimizers.features import normalise
from metaopt.optimizers.network import Head
from metaopt.optimizers.noise import Noise, NoiseInUse, gamma_log_prob, gamma_noise
from metaopt.optimizers.placement import vary_with
from metaopt.trees import save_residuals
from metaopt.types import Explore, Scored

Alpha = Literal["shared", "per_coordinate"]
Normalisation = Literal["norm", "rms", "tensor_rms"]
InitialAlpha = Literal["drawn", "median"]

LOG_ALPHA_RANGE = (-30.0, 15.0)  # clipped before exp
LOG_ALPHA_0 = (-6.0, -2.0)  # the thesis draws log α_0 ~ U[-6, -2]


class Step(NamedTuple):
    """What a rule is given beside the outputs."""

    count: jax.Array  # [] int32, from 1
    keys: jax.Array | None  # [tasks]
    explore: Explore
    leaf_sizes: tuple[int, ...]


class StepRule(NamedTuple):
    """`init(shape, dtype) -> state`, `apply(outputs [heads, tasks, D], state, step) -> (g [tasks, D], state)`."""

    heads: tuple[Head, ...]
    init: Callable[[tuple[int, int], Any], Any]
    apply: Callable[[jax.Array, Any, Step], tuple[jax.Array, Any]]


def normalise_direction(d: jax.Array, normalisation: Normalisation, leaf_sizes: tuple[int, ...]) -> jax.Array:
    """d/‖d‖, d/rms(d), or each leaf by its own RMS (Celo2, arXiv 2602.19142); d is [tasks, D].

    With one coordinate (D = 1, or a scalar leaf under `tensor_rms`) this is a sign, whose gradient is zero.
    """
    if normalisation == "norm":
        return normalise(d)
    if normalisation == "rms":
        return normalise(d) * d.shape[1] ** 0.5
    parts = jnp.split(d, _offsets(leaf_sizes), axis=1)
    return jnp.concatenate([normalise(part) * part.shape[1] ** 0.5 for part in parts], axis=1)


def _offsets(sizes: tuple[int, ...]) -> list[int]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return ends[:-1]


def normalised_step(
    *,
    rule: Literal["recursive", "direct"],
    alpha: Alpha,
    normalisation: Normalisation,
    noise: Noise,
    noise_in_use: NoiseInUse,
    initial_alpha: InitialAlpha,
    alpha_bias: float,
) -> StepRule:
    """Both step rules of the thesis with every option.

    `initial_alpha="drawn"` draws log α_0 ~ U[-6, -2] from the first step's key; without a key, or with `median`, it
    is -4. `explore="scored"` stops the gradient at the step and leaves its log-probability in a `Scored`: with noise
    per coordinate |g_i| has the law Gamma(2, scale α|d_i|/‖d‖); with one draw a step g lies on a ray, has no density,
    and nothing is left.
    """
    head = "log_gamma" if rule == "recursive" else "log_alpha"

    def init(shape: tuple[int, int], dtype: Any) -> Any:
        if rule == "direct":
            return ()
        return jnp.full((shape[0], shape[1] if alpha == "per_coordinate" else 1), sum(LOG_ALPHA_0) / 2, dtype)

    def draw(keys: jax.Array, state: jax.Array) -> jax.Array:
        lowest, highest = LOG_ALPHA_0
        # A stream of its own: the key itself draws the noise.
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        one = jax.vmap(lambda key: jax.random.uniform(key, (1,), state.dtype, lowest, highest))(keys)
        return jnp.broadcast_to(one, state.shape)

    def apply(outputs: jax.Array, state: Any, step: Step) -> tuple[jax.Array, Any]:
        d, log_scale = outputs[0], outputs[1]
        if alpha == "shared":
            log_scale = jnp.mean(log_scale, axis=1, keepdims=True)
        if rule == "recursive":
            start = state
            if initial_alpha == "drawn" and step.keys is not None:
                keys = step.keys
                nothing = vary_with(jnp.zeros_like(state), state, jax.random.key_data(keys))
                drawn = jax.lax.cond(step.count == 1, lambda: draw(keys, state) - state, lambda: nothing)
                start = state + save_residuals(jax.lax.stop_gradient(drawn))
            log_alpha = state = jnp.clip(start + log_scale, *LOG_ALPHA_RANGE)
        else:
            log_alpha = jnp.clip(log_scale, *LOG_ALPHA_RANGE)
        size = jnp.exp(log_alpha)
        direction = normalise_direction(d, normalisation, step.leaf_sizes)
        noisy = noise != "none" and (step.explore or noise_in_use == "on")
        if noisy and step.keys is not None:
            xi = gamma_noise(step.keys, d.shape[1] if noise == "per_coordinate" else 1, d.dtype)
            if step.explore == "scored" and noise == "per_coordinate":
                g = jax.lax.stop_gradient(size * save_residuals(xi) * direction)
                return g, Scored(state, gamma_log_prob(jnp.abs(g), size * jnp.abs(direction)))
            size = size * save_residuals(xi)
        elif noise != "none" and noise_in_use == "two":
            size = 2.0 * size
        return size * direction, state

    heads = (Head("direction"), Head(head, constant=True, bias=alpha_bias))
    return StepRule(heads, init, apply)


def check_scale(output_scale: float) -> None:
    if output_scale <= 0:
        raise ValueError(f"`output_scale` ({output_scale}) must be above 0.")


def plain_step(scale: float, *, squash: bool = False) -> StepRule:
    """The step is the output itself, scaled: `scale·o`, or `scale·tanh(o)`."""

    def apply(outputs: jax.Array, state: tuple[()], step: Step) -> tuple[jax.Array, tuple[()]]:
        out = outputs[0]
        return scale * (jnp.tanh(out) if squash else out), state

    return StepRule((Head("step"),), lambda shape, dtype: (), apply)
