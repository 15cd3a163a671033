"""How fast the inner run's Jacobian grows: the spectral radius of products of it (Metz et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.types import Key, MetaParams, Optimizer, PyTree, TaskFamily, UnrollState


def growth_along(
    optimizer: Optimizer,
    meta_params: MetaParams,
    family: TaskFamily,
    keys: Key,
    *,
    num_starts: int,
    spacing: int,
    length: int,
    iterations: int = 8,
    explore: bool = False,
    second_order: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Growth a step of d state_{t+length} / d state_t at t = 0, spacing, 2·spacing, ...; "Gradients are not all you
    need", Metz et al. 2021, arXiv 2111.05803.

    The state is θ and all that the optimizer (and oracle) carries. Power iteration v ← P v/‖P v‖ on the product P of
    `length` one-step Jacobians, in forward mode; reported is ρ(P)^(1/length). Above 1, derivatives through a window
    of K steps grow like its K-th power. A spectral radius does not depend on the units of the state's parts.

    Args:
      keys: [tasks] typed keys; each task is measured by itself.
      second_order: False: the Jacobian that estimators back-propagate through when ∇_t counts as a constant; θ's own
        part of it is the identity, so that it never lies below 1.

    Returns:
      growth [tasks, num_starts], and whether a task was alive there and to the product's end.
    """

    def options(length: int) -> dict:
        return {"length": length, "second_order": second_order, "explore": explore}

    def one_task(key: Key) -> tuple[jax.Array, jax.Array]:
        tx = bind_tasks(optimizer, meta_params)
        task, state = reset(tx, family, key[None])

        def measure(state: UnrollState) -> tuple[jax.Array, jax.Array]:
            leaves, rebuild = _carried(state)

            def product(leaves: list[jax.Array]) -> list[jax.Array]:
                return _carried(unroll(tx, family, task, rebuild(leaves), **options(length))[0])[0]

            def iterate(v: list[jax.Array], _: None) -> tuple[list[jax.Array], jax.Array]:
                v = jax.jvp(product, (leaves,), (v,))[1]
                size = jnp.sqrt(sum(jnp.sum(jnp.square(part)) for part in v))
                scale = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1.0), 0.0)
                return [part * scale.astype(part.dtype) for part in v], jnp.log(size)

            v = [jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype) for i, x in enumerate(leaves)]
            _, logs = jax.lax.scan(iterate, v, length=iterations)
            # The first half finds the direction; a pair of complex eigenvalues makes the rest wander about its mean.
            alive = unroll(tx, family, task, state, **options(length))[0].alive[0]
            return jnp.exp(jnp.mean(logs[iterations // 2 :]) / length), alive

        def visit(state: UnrollState, _: None) -> tuple[UnrollState, tuple[jax.Array, jax.Array]]:
            found = measure(state)
            return unroll(tx, family, task, state, **options(spacing))[0], found

        return jax.lax.scan(visit, state, length=num_starts)[1]

    return jax.lax.map(one_task, keys)


def _carried(state: UnrollState) -> tuple[list[jax.Array], Callable[[list[jax.Array]], UnrollState]]:
    """The real numbers that a step hands to the next, and the function that puts others in their place."""
    # The gradient among them: it is how θ acts on the next step, through the second derivatives where they count.
    parts = (state.params, state.opt_state, state.oracle_state, state.estimate.gradient)
    leaves, treedef = jax.tree.flatten(parts)
    real = [index for index, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def rebuild(values: list[jax.Array]) -> UnrollState:
        new: list[PyTree] = list(leaves)
        for index, value in zip(real, values, strict=True):
            new[index] = value
        params, opt_state, oracle_state, gradient = jax.tree.unflatten(treedef, new)
        estimate = state.estimate._replace(gradient=gradient)
        return state._replace(params=params, opt_state=opt_state, oracle_state=oracle_state, estimate=estimate)

    return [leaves[index] for index in real], rebuild
