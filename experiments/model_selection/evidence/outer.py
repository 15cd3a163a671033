"""A plain outer loop for the generalising problem on small models: both levels in full, no minibatches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from metaopt.tasks.generalising import (
    BOUNDS,
    Metaparameters,
    bounded,
    check_metaparameters,
    inner_objective,
    outer_objective,
    parts,
)
from metaopt.tasks.structure import StructureTask
from metaopt.types import Params

DAMPING = 1e-3  # added to the inner Hessian's curvatures, as a share of their mean size


class Solution(NamedTuple):
    """Where both levels came to rest; with a leading axis for each λ of a sweep."""

    params: Params  # θ*
    hyper: dict[str, Any]  # h*
    value: Any  # Q
    fit: Any  # E_q log p(y|X, w, Γ)
    divergence: Any  # KL(q‖p(w, Γ|h))
    path: Any  # [outer steps, edges, candidates] softmax of the prior's logits


def solve(
    task: StructureTask,
    noise: float,
    sweep: Sequence[Metaparameters],
    *,
    moved: tuple[str, ...] = ("precision", "logits"),
    outer_steps: int = 200,
    inner_steps: int = 40,
    samples: int = 64,
    seed: int = 0,
    begin: np.ndarray | None = None,
) -> Solution:
    """h* and θ*(h*) for every λ: Adam on θ, and after every `inner_steps` of them a step along the hypergradient.

    The hypergradient is ∇_hQ - (∂_h ∂_θ L)ᵀ (∂²_θ L)⁻¹ ∇_θQ with the dense Hessian, whose curvatures are taken as
    negative, as they are at a maximum. Gumbel draws are the same throughout.

    Args:
      sweep: alike in which of their parts are there.
      moved: the hyperparameters that the outer level moves; the others stay at precisions of 1 and as they begin.
      begin: [sweep, edges, candidates] logits that h and q begin with; default: even ones. L has maxima of which the
        one that q begins near is found: a run towards a corner begins there.

    Raises:
      ValueError: metaparameters that are no problem's.
    """
    for metaparameters in sweep:
        check_metaparameters(metaparameters)
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf, jnp.float32) for leaf in leaves]), *sweep)
    static = {"moved": moved, "outer_steps": outer_steps, "inner_steps": inner_steps, "samples": samples}
    first = np.zeros((len(sweep), *task.features.shape[1:])) if begin is None else begin
    return jax.device_get(_solve(task, noise, stacked, jnp.asarray(first, jnp.float32), jax.random.key(seed), **static))


@functools.partial(jax.jit, static_argnames=("noise", "moved", "outer_steps", "inner_steps", "samples"))
def _solve(
    task: StructureTask, noise: float, sweep: Metaparameters, begin: jax.Array, key: jax.Array, **static: Any
) -> Solution:
    return jax.vmap(lambda metaparameters, begin: _one(task, noise, metaparameters, begin, key, **static))(sweep, begin)


def _one(
    task: StructureTask,
    noise: float,
    metaparameters: Metaparameters,
    begin: jax.Array,
    key: jax.Array,
    *,
    moved: tuple[str, ...],
    outer_steps: int,
    inner_steps: int,
    samples: int,
) -> Solution:
    shape = task.features.shape[1:]
    gumbel = jax.random.gumbel(key, (samples, *shape))
    start = {
        "mean": 0.1 * jax.random.normal(jax.random.fold_in(key, 1), shape),
        "log_scale": jnp.full(shape, -2.0),
        "logits": begin,
    }
    flat, unflatten = ravel_pytree(start)
    free = {"precision": jnp.zeros(shape), "logits": BOUNDS["logits"] * jnp.arctanh(begin / BOUNDS["logits"])}

    def lower(flat: jax.Array, free: dict[str, jax.Array]) -> jax.Array:
        return inner_objective(unflatten(flat), task, gumbel, bounded(free), noise, metaparameters)

    def upper(flat: jax.Array, free: dict[str, jax.Array]) -> jax.Array:
        return outer_objective(unflatten(flat), task, gumbel, bounded(free), noise, metaparameters)

    inner = optax.adam(optax.cosine_decay_schedule(0.05, outer_steps * inner_steps, 0.02))
    outer = optax.adam(optax.cosine_decay_schedule(0.3, outer_steps, 0.03))

    def lower_step(free: dict[str, jax.Array], carry: Any, _: Any) -> Any:
        flat, state = carry
        updates, state = inner.update(-jax.grad(lower)(flat, free), state)
        return (flat + updates, state), None

    def upper_step(carry: Any, _: Any) -> Any:
        below, free, state = carry
        below, _ = jax.lax.scan(functools.partial(lower_step, free), below, length=inner_steps)
        flat = below[0]
        of_theta, direct = jax.grad(upper, argnums=(0, 1))(flat, free)
        sizes, axes = jnp.linalg.eigh(jax.hessian(lower)(flat, free))
        sizes = jnp.abs(sizes) + DAMPING * jnp.mean(jnp.abs(sizes))
        adjoint = axes @ ((axes.T @ of_theta) / sizes)
        through = jax.grad(lambda free: jnp.vdot(adjoint, jax.grad(lower)(flat, free)))(free)
        gradient = {name: -float(name in moved) * (direct[name] + through[name]) for name in free}
        updates, state = outer.update(gradient, state)
        free: Any = optax.apply_updates(free, updates)
        return (below, free, state), jax.nn.softmax(bounded(free)["logits"])

    carry = (flat, inner.init(flat)), free, outer.init(free)
    found: Any
    found, path = jax.lax.scan(upper_step, carry, length=outer_steps)
    (flat, _), free, _ = found
    hyper, params = bounded(free), unflatten(flat)
    fit, divergence = parts(params, task, gumbel, hyper, noise, metaparameters.temperature)
    return Solution(params, hyper, upper(flat, free), fit, divergence, path)
