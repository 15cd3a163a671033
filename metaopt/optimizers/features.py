"""What a coordinatewise network sees of each coordinate: the thesis's features, log-and-sign, RNNprop's.

Arrays are [tasks, D]; only the norm of the gradient couples a task's coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

FeatureSet = Literal["gradient", "all", "scale_free"]
SForm = Literal["adam", "printed"]

THESIS = ("∇", "∇²", "m", "v", "s", "n", "n²", "mⁿ", "vⁿ", "sⁿ")
INPUTS_IN_WORDS = (
    "What an lstm reads of each coordinate: ∇ the gradient and ∇² its square; m, v running averages of the two; "
    "s the gradient over its running size, m/√v; n the gradient over its norm and n² its square; mⁿ, vⁿ, sⁿ as m, v, "
    "s, of n instead of ∇."
)

# Norms below this count as zero; its square is a normal float32 number.
TINY = 1e-15


class Features(NamedTuple):
    """`init(shape, dtype) -> state`, `apply(gradient, count, state, unit=None) -> (list of [tasks, D], state)`.

    `count` starts from 1. With `unit`, the gradient over its task's norm, `apply` is elementwise, so that it can run on
    some columns at a time; without it the gradient must be whole.
    """

    names: tuple[str, ...]
    init: Callable[[tuple[int, ...], Any], Any]
    apply: Callable[..., tuple[list[jax.Array], Any]]

    @property
    def size(self) -> int:
        """How many."""
        return len(self.names)


class Moments(NamedTuple):
    """Exponential averages of x and x²; [tasks, D]."""

    first: jax.Array
    second: jax.Array


def normalise(x: jax.Array, axis: int = -1) -> jax.Array:
    """x/‖x‖ along `axis`; zero, with zero gradient, where ‖x‖ is below 1e-15."""
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    nonzero = square > TINY**2
    return jnp.where(nonzero, x * jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def safe_sqrt(x: jax.Array) -> jax.Array:
    """√x with gradient zero at zero."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def update_moments(moments: Moments, x: jax.Array, beta1: float, beta2: float) -> Moments:
    return Moments(
        beta1 * moments.first + (1 - beta1) * x,
        beta2 * moments.second + (1 - beta2) * jnp.square(x),
    )


def debiased(moments: Moments, count: jax.Array, beta1: float, beta2: float) -> Moments:
    """m/(1-β1^t) and v/(1-β2^t)."""
    t = count.astype(moments.first.dtype)
    return Moments(moments.first / (1 - beta1**t), moments.second / (1 - beta2**t))


def zero_moments(shape: tuple[int, ...], dtype: Any) -> Moments:
    return Moments(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def gradient_statistics(
    features: FeatureSet, s_form: SForm, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> Features:
    """The thesis's features [∇, ∇², m, v, s, n, n², mⁿ, vⁿ, sⁿ] with n = ∇/‖∇‖, or a part of them.

    Args:
      features: `gradient` is ∇ alone (the thesis's choice for deterministic tasks), `all` the ten, `scale_free` the six
        that do not change when the loss is multiplied by a constant: s, n, n², mⁿ, vⁿ, sⁿ. They do where gradients are
        small: s falls short by ε/(√v̂ + ε), 1% at √v̂ = 1e-6 and half at 1e-8, and n is 0 below a norm of 1e-15.
      s_form: `adam` is m̂/(√v̂+ε); `printed` is m̂/(v̂+ε), as the thesis prints it.
    """
    if features == "gradient":
        return Features(
            THESIS[:1], lambda shape, dtype: (), lambda gradient, count, state, unit=None: ([gradient], state)
        )

    def ratio(moments: Moments, count: jax.Array, form: str) -> jax.Array:
        first, second = debiased(moments, count, beta1, beta2)
        return first / ((second if form == "printed" else safe_sqrt(second)) + eps)

    def init(shape: tuple[int, ...], dtype: Any) -> tuple[Moments, Moments]:
        return zero_moments(shape, dtype), zero_moments(shape, dtype)

    def apply(
        gradient: jax.Array, count: jax.Array, state: tuple[Moments, Moments], unit: jax.Array | None = None
    ) -> tuple[list[jax.Array], Any]:
        n = normalise(gradient) if unit is None else unit
        raw = update_moments(state[0], gradient, beta1, beta2)
        scaled = update_moments(state[1], n, beta1, beta2)
        scale_free = [n, jnp.square(n), scaled.first, scaled.second, ratio(scaled, count, s_form)]
        if features == "all":
            columns = [gradient, jnp.square(gradient), raw.first, raw.second, ratio(raw, count, s_form), *scale_free]
        else:  # the printed form of s is not free of scale
            columns = [ratio(raw, count, "adam"), *scale_free]
        return columns, (raw, scaled)

    return Features(THESIS if features == "all" else THESIS[4:], init, apply)


def log_and_sign(p: float = 10.0) -> Features:
    """(log|∇|/p, sign ∇) where |∇| ≥ e^-p, else (-1, e^p ∇) (Andrychowicz et al. 2016, appendix A)."""

    def apply(
        gradient: jax.Array, count: jax.Array, state: tuple[()], unit: jax.Array | None = None
    ) -> tuple[list[jax.Array], tuple[()]]:
        size = jnp.abs(gradient)
        large = size >= jnp.exp(-p)
        log = jnp.where(large, jnp.log(jnp.where(large, size, 1.0)) / p, -1.0)
        sign = jnp.where(large, jnp.sign(gradient), jnp.exp(p) * gradient)
        return [log, sign], state

    return Features(("log|∇|/p", "sign ∇"), lambda shape, dtype: (), apply)


def rnnprop_inputs(beta: float = 0.95, eps: float = 1e-8) -> Features:
    """(m̂/√v̂, ∇/√v̂) with one β for both averages (Lv et al. 2017)."""

    def apply(
        gradient: jax.Array, count: jax.Array, state: Moments, unit: jax.Array | None = None
    ) -> tuple[list[jax.Array], Moments]:
        state = update_moments(state, gradient, beta, beta)
        first, second = debiased(state, count, beta, beta)
        root = safe_sqrt(second) + eps
        return [first / root, gradient / root], state

    return Features(("m̂/√v̂", "∇/√v̂"), zero_moments, apply)
