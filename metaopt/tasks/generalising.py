"""One problem of two levels whose metaparameters λ turn it into others (Bakhteev and Strijov 2018).

    h* = argmax_h Q,  Q = λ_likelihood E_q* log p(y|X, w, Γ) - λ_prior^Q KL(q*‖p(w, Γ|h)) - Σ λ_struct KL(p(Γ|h)‖p') + log p(h)
    q* = argmax_q L,  L = E_q log p(y|X, w, Γ) - λ_prior^L KL(q‖p(w, Γ|h))

of the models of `metaopt.tasks.structure`: θ are the parameters of q = q_w q_Γ, and h = {"precision", "logits"}, each
[edges, candidates], those of the prior: the precisions of the weights, whose inverses have an inverse gamma law, and the
logits of the Gumbel-Softmax law of the structure. λ_prior^Q = λ_prior^L = 1 without λ_struct is the evidence bound,
λ_prior^L = 0 the likelihood; laws p' near an even one add structure, laws near corners remove it, and those of every
corner in turn visit every structure.
"""  # noqa: E501

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.tasks.settings import check_positive
from metaopt.tasks.structure import (
    StructureTask,
    check_temperature,
    expected_fit,
    prior_divergence,
    simplex_divergence,
)
from metaopt.types import Params, Scalar

NEAR_A_CORNER = 30.0  # the largest logit of a law p' less the others: on a corner itself no divergence is finite
BOUNDS = {"precision": 8.0, "logits": 20.0}  # h lies in a compact set: |log precision|, |logit|


class Metaparameters(NamedTuple):
    """λ: which problem it is. Numbers, or arrays of a sweep that is vmapped."""

    likelihood: Any = 1.0  # λ_likelihood of Q
    prior_q: Any = 1.0  # λ_prior of Q
    prior_l: Any = 1.0  # λ_prior of L
    laws: Any = None  # [laws, edges, candidates] logits of the laws p'
    struct: Any = None  # [laws] their λ_struct
    shape: Any = 0.0  # λ1 of the inverse gamma law of 1/precision; 0: there is none, and log p(h) is 0
    rate: Any = 0.0  # λ2
    temperature: Any = 0.5  # of the Gumbel-Softmax laws


def check_metaparameters(metaparameters: Metaparameters) -> None:
    """Refuses what is no problem.

    Raises:
      ValueError: a metaparameter is negative or not finite, the temperature is 0, one of λ1 and λ2 is 0 and one is not,
        or there are laws without weights or weights without laws.
    """
    for name in ("likelihood", "prior_q", "prior_l", "shape", "rate"):
        check_positive(name, getattr(metaparameters, name), zero=True)
    check_temperature("temperature", metaparameters.temperature)
    if (metaparameters.shape > 0) != (metaparameters.rate > 0):
        raise ValueError(f"`shape` is {metaparameters.shape} and `rate` {metaparameters.rate}; give both above 0, for "
                         "an inverse gamma law of 1/precision, or leave both out.")  # fmt: skip
    laws, struct = (0 if part is None else len(part) for part in (metaparameters.laws, metaparameters.struct))
    if laws != struct:
        raise ValueError(f"there are {laws} `laws` and {struct} weights of them in `struct`; give each law one.")
    for weight in () if metaparameters.struct is None else metaparameters.struct:
        check_positive("struct", float(weight), zero=True)


def even(edges: int, candidates: int) -> np.ndarray:
    """The logits of the law p' that prefers no candidate."""
    return np.zeros((edges, candidates), np.float32)


def corner(structure: np.ndarray, candidates: int) -> np.ndarray:
    """The logits of a law p' close to one structure, [edges] -> [edges, candidates]."""
    return NEAR_A_CORNER * (np.eye(candidates, dtype=np.float32)[np.asarray(structure)] - np.float32(1 / candidates))


# ----- hyperparameters ------------------------------------------------------------------------------------------------


def bounded(free: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """h of numbers that may be moved freely, within `BOUNDS`; zeros are precisions of 1 and even logits."""
    inside = {name: BOUNDS[name] * jnp.tanh(value / BOUNDS[name]) for name, value in free.items()}
    return {"precision": jnp.exp(inside["precision"]), "logits": inside["logits"]}


def log_inverse_gamma(precision: jax.Array, shape: Any, rate: Any) -> jax.Array:
    """log density of v = 1/precision, v ~ InvGamma(shape, rate); 0 for a shape of 0."""
    given = jnp.asarray(shape) > 0
    shape, rate = jnp.where(given, shape, 1.0), jnp.where(given, rate, 1.0)
    front = shape * jnp.log(rate) - jax.scipy.special.gammaln(shape)
    return jnp.where(given, front + (shape + 1) * jnp.log(precision) - rate * precision, 0.0)


# ----- the two levels -------------------------------------------------------------------------------------------------


def parts(
    params: Params, task: StructureTask, gumbel: jax.Array, hyper: dict[str, jax.Array], noise: float, temperature: Any
) -> tuple[Scalar, Scalar]:
    """E_q log p(y|X, w, Γ) over draws `gumbel` [samples, edges, candidates], and KL(q‖p(w, Γ|h))."""
    fit = expected_fit(params, task, gumbel, temperature, noise**-2)
    return fit, prior_divergence(params, hyper["precision"], hyper["logits"])


def inner_objective(
    params: Params,
    task: StructureTask,
    gumbel: jax.Array,
    hyper: dict[str, jax.Array],
    noise: float,
    metaparameters: Metaparameters,
) -> Scalar:
    """L(θ|h), to be maximised."""
    fit, divergence = parts(params, task, gumbel, hyper, noise, metaparameters.temperature)
    return fit - metaparameters.prior_l * divergence


def outer_objective(
    params: Params,
    task: StructureTask,
    gumbel: jax.Array,
    hyper: dict[str, jax.Array],
    noise: float,
    metaparameters: Metaparameters,
) -> Scalar:
    """Q(h|θ), to be maximised in h at θ = θ*(h)."""
    fit, divergence = parts(params, task, gumbel, hyper, noise, metaparameters.temperature)
    value = metaparameters.likelihood * fit - metaparameters.prior_q * divergence
    if metaparameters.laws is not None:
        apart = jnp.sum(simplex_divergence(hyper["logits"], jnp.asarray(metaparameters.laws)), axis=-1)
        value -= jnp.sum(jnp.asarray(metaparameters.struct) * apart)
    law = log_inverse_gamma(hyper["precision"], metaparameters.shape, metaparameters.rate)
    return value + jnp.sum(law)
