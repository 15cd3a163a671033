"""Hand-designed optimizers from optax with their settings as φ: a grid is a vmap, tuning is meta-training.

Settings that torch has too are called and meant as there. Each takes the schedules of `metaopt.optimizers.schedules`
and `tunes`, the names of the settings that φ holds.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from metaopt.optimizers.settings import hand_designed
from metaopt.types import PyTree

# Within the root of second moments, far below ε²: where there never was a gradient, the derivative in β is 0, not nan.
ROOT = 1e-30


@hand_designed(stable_below=2.0)
def sgd(*, learning_rate: float = 1.0) -> optax.GradientTransformation:
    """Gradient descent: g_t = -α_t ∇_t."""
    return optax.sgd(learning_rate)


@hand_designed
def momentum(
    *, learning_rate: float = 0.1, mu: float = 0.9, form: Literal["thesis", "torch"] = "thesis"
) -> optax.GradientTransformation:
    """Momentum: h_t = μ h_{t-1} - α_t ∇_t is the step; form=torch: -α_t h_t, h_t = μ h_{t-1} + ∇_t (Polyak 1964).

    Under a constant rate the two are one; when it falls, the thesis's buffer keeps steps of earlier rates.
    """
    if form == "torch":
        return optax.sgd(learning_rate, mu)
    return optax.chain(optax.scale_by_learning_rate(learning_rate), optax.trace(mu))


@hand_designed
def nesterov(*, learning_rate: float = 0.1, mu: float = 0.9) -> optax.GradientTransformation:
    """Nesterov's momentum: h_t = μ h_{t-1} + ∇_t, g_t = -α_t (∇_t + μ h_t) (Nesterov 1983; Sutskever et al. 2013)."""
    return optax.sgd(learning_rate, mu, nesterov=True)


@hand_designed
def adagrad(*, learning_rate: float = 0.01, eps: float = 1e-10) -> optax.GradientTransformation:
    """AdaGrad: g_t = -α_t ∇_t/(√s_t + ε), s_t = Σ_{i≤t} ∇_i² from 0 (Duchi et al. 2011)."""
    # optax's ε stands within the root, where it outweighs gradients that torch's leaves alone.
    return optax.chain(_over_root(lambda g, s: s + _square(g), eps), optax.scale_by_learning_rate(learning_rate))


@hand_designed
def rmsprop(*, learning_rate: float = 0.01, decay: float = 0.99, eps: float = 1e-8) -> optax.GradientTransformation:
    """RMSProp: g_t = -α_t ∇_t/(√v_t + ε), v_t = β v_{t-1} + (1-β)∇_t² (Tieleman and Hinton 2012)."""
    mean = _over_root(lambda g, v: decay * v + (1 - decay) * _square(g), eps)
    return optax.chain(mean, optax.scale_by_learning_rate(learning_rate))


def _square(gradient: jax.Array) -> jax.Array:
    return jnp.real(gradient * jnp.conj(gradient))


def _over_root(accumulated: Any, eps: Any) -> optax.GradientTransformation:
    """∇/(√v + ε) with v = accumulated(∇, v) from 0."""

    def init(params: PyTree) -> PyTree:
        return optax.ScaleByRmsState(nu=jax.tree.map(jnp.zeros_like, params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        nu = jax.tree.map(accumulated, updates, state.nu)
        steps = jax.tree.map(lambda g, v: g / (jnp.sqrt(v + ROOT) + eps), updates, nu)
        return steps, optax.ScaleByRmsState(nu=nu)

    return optax.GradientTransformation(init, update)


@hand_designed
def adam(
    *, learning_rate: float = 0.01, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam: g_t = -α_t m̂_t/(√v̂_t + ε) (Kingma and Ba 2015)."""
    return optax.adam(learning_rate, beta1, beta2, eps, ROOT)


@hand_designed
def adamw(
    *,
    learning_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> optax.GradientTransformation:
    """Adam with decoupled decay: Adam's step less α_t λ θ_t (Loshchilov and Hutter 2019)."""
    return optax.adamw(learning_rate, beta1, beta2, eps, ROOT, weight_decay=weight_decay)


@hand_designed
def nadamw(
    *,
    learning_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> optax.GradientTransformation:
    """AdamW with Nesterov's momentum: β1 m_t/(1-β1^{t+1}) + (1-β1)∇_t/(1-β1^t) for m̂_t (Dozat 2016)."""
    return optax.nadamw(learning_rate, beta1, beta2, eps, ROOT, weight_decay=weight_decay)


@hand_designed(flat=("beta1", "beta2"))
def lion(
    *, learning_rate: float = 0.001, beta1: float = 0.9, beta2: float = 0.99, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Lion: g_t = -α_t (sign(β1 m_{t-1} + (1-β1)∇_t) + λ θ_t), m_t = β2 m_{t-1} + (1-β2)∇_t (Chen et al. 2023).

    The sign has no derivative in β: a search or evolution strategies move it, back-propagation does not.
    """
    return optax.lion(learning_rate, beta1, beta2, weight_decay=weight_decay)


@hand_designed
def adan(
    *,
    learning_rate: float = 0.01,
    beta1: float = 0.98,
    beta2: float = 0.92,
    beta3: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adan: g_t = -α_t (m̂_t + β2 d̂_t)/(√n̂_t + ε), averages of ∇, of its change δ, of (∇ + β2 δ)² (Xie et al. 2022)."""
    return optax.chain(
        _scale_by_adan(beta1, beta2, beta3, eps),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _scale_by_adan(beta1: Any, beta2: Any, beta3: Any, eps: Any) -> optax.GradientTransformation:
    """As in the paper; optax 0.2.8 weighs changes of the gradient by 1-β2 for β2 (its pull request 1715)."""

    def init(params: PyTree) -> PyTree:
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(4)]
        return jnp.zeros((), jnp.int32), *zeros

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        count, m, d, n, last = state
        count = count + 1
        change = jax.tree.map(lambda g, before: jnp.where(count == 1, 0.0, g - before), updates, last)
        ahead = optax.tree.add_scale(updates, beta2, change)
        m = optax.tree.update_moment(updates, m, beta1, 1)
        d = optax.tree.update_moment(change, d, beta2, 1)
        n = optax.tree.update_moment_per_elem_norm(ahead, n, beta3, 2)
        moments = zip((m, d, n), (beta1, beta2, beta3), strict=True)
        m_hat, d_hat, n_hat = (optax.tree.bias_correction(moment, beta, count) for moment, beta in moments)
        steps = jax.tree.map(lambda m, d, n: (m + beta2 * d) / (jnp.sqrt(n + ROOT) + eps), m_hat, d_hat, n_hat)
        return steps, (count, m, d, n, updates)

    return optax.GradientTransformation(init, update)


@hand_designed
def muon(
    *, learning_rate: float = 0.02, beta: float = 0.95, eps: float = 1e-8, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Muon: Nesterov's momentum of each matrix made orthogonal; NAdam on all other leaves (Jordan et al. 2024)."""
    return optax.contrib.muon(
        learning_rate,
        beta=beta,
        eps=eps,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        adam_eps_root=ROOT,
    )
