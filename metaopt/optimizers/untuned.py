"""The untuned field: what one takes who does not tune, each at its authors' settings and evaluated as it is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from metaopt.optimizers.hand_designed import ROOT
from metaopt.optimizers.settings import hand_designed
from metaopt.types import PyTree


@hand_designed(untuned=True, eval_params=contrib.schedule_free_eval_params)
def schedule_free_adamw(
    *,
    learning_rate: float = 0.0025,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
) -> optax.GradientTransformation:
    """Schedule-free AdamW: gradients at β1 x + (1-β1) z, AdamW moves z, the average x is judged (Defazio 2024)."""
    return contrib.schedule_free_adamw(
        learning_rate, warmup_steps or None, beta1, beta2, eps=eps, weight_decay=weight_decay
    )


@hand_designed(untuned=True)
def prodigy(
    *,
    learning_rate: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Prodigy: Adam whose rate is a growing estimate of the distance to the solution (Mishchenko and Defazio 2023)."""
    return _from_first_gradient(contrib.prodigy(learning_rate, (beta1, beta2), eps=eps, weight_decay=weight_decay))


@hand_designed(untuned=True)
def dadapt_adamw(
    *,
    learning_rate: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """D-Adapted AdamW: the rate is a lower bound of the distance to the solution (Defazio and Mishchenko 2023)."""
    return _from_first_gradient(contrib.dadapt_adamw(learning_rate, (beta1, beta2), eps=eps, weight_decay=weight_decay))


def _from_first_gradient(tx: Any) -> optax.GradientTransformation:
    """Stands still until there was a gradient, for the first estimate of a distance divides by its length."""

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, PyTree]:
        steps, after = tx.update(updates, state, params, **extra)
        seen = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(after.grad_sum)) > 0
        steps = jax.tree.map(lambda leaf: jnp.where(seen, leaf, 0.0), steps)
        return steps, jax.tree.map(lambda new, old: jnp.where(seen, new, old), after, state)

    return optax.GradientTransformationExtraArgs(tx.init, update)


@hand_designed(untuned=True, needs_value=True)
def momo_adam(
    *,
    learning_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    lower_bound: float = 0.0,
    adapt_lower_bound: bool = False,
) -> optax.GradientTransformation:
    """MoMo-Adam: Adam's step, no longer than to where a model of the loss meets its bound (Schaipp et al. 2024)."""
    return contrib.momo_adam(
        learning_rate,
        beta1,
        beta2,
        eps=eps,
        weight_decay=weight_decay,
        lower_bound=lower_bound,
        adapt_lower_bound=adapt_lower_bound,
    )


@hand_designed(untuned=True)
def dowg(*, learning_rate: float = 1.0, eps: float = 1e-4) -> optax.GradientTransformation:
    """DoWG: r_t² ∇_t/√(Σ r_i² ‖∇_i‖²), r_t the largest distance from the start so far (Khaled et al. 2023)."""
    return contrib.dowg(learning_rate, eps=eps)


@hand_designed(untuned=True, free="alpha")
def cocob(*, alpha: float = 100.0, eps: float = 1e-8) -> optax.GradientTransformation:
    """COCOB: each coordinate bets on the sign of its next gradient; there is no rate (Orabona and Tommasi 2017)."""
    return contrib.cocob(1.0, alpha, eps)


@hand_designed(untuned=True)
def mechanize_adam(
    *,
    learning_rate: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> optax.GradientTransformation:
    """Mechanic on Adam: learns the factor on the way that Adam went from the start (Cutkosky et al. 2023)."""
    return contrib.mechanize(optax.adam(learning_rate, beta1, beta2, eps, ROOT), weight_decay=weight_decay)


@hand_designed(untuned=True, scheduled={"schedule": "warmup_cosine", "warmup": 0.1})
def nadamw_calibrated(
    *,
    learning_rate: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> optax.GradientTransformation:
    """NadamW with warm-up and cosine at one setting for everything: the best over 15 small families, 50 and 500 steps.

    Found by `experiments/untuned`. Networks far wider than those may want a smaller rate.
    """
    return optax.nadamw(learning_rate, beta1, beta2, eps, ROOT, weight_decay=weight_decay)
