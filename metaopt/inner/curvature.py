"""The curvature where a family's tasks begin, and the steps that are too long for it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from metaopt.errors import warn
from metaopt.inner.devices import compiler_options
from metaopt.trees import inner_product, task_norm, usual_rules
from metaopt.types import Key, MetaParams, Optimizer, Params, PyTree, Scalar, TaskFamily

NUM_TASKS, ITERATIONS = 8, 30
RATE = "learning_rate"


@usual_rules()
def largest_curvature(family: TaskFamily, key: Key) -> float:
    """The largest slope of the gradient that power iteration finds at the starts of a few tasks; exact on quadratics.

    It is vᵀHv of a unit vector, so that no loss has less: a lower bound of L, the largest curvature anywhere.
    """

    @functools.partial(jax.jit, compiler_options=compiler_options(runs_once=True))
    def curvatures(family: TaskFamily, key: Key) -> jax.Array:  # [tasks]
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(jax.random.split(key, NUM_TASKS))
        task = jax.vmap(family.sample, in_axes=(0, None))(keys[:, 0], family.data)
        params = jax.vmap(family.init)(keys[:, 1], task)

        def slope(params: Params) -> Params:
            def loss(params: Params, task: Any) -> Scalar:
                return family.loss(params, task, family.eval_batch(task, family.data, "train"))

            return jax.vmap(jax.grad(loss))(params, task)

        def unit(tree: PyTree) -> PyTree:
            norm = jnp.maximum(task_norm(tree), 1e-30)
            return jax.tree.map(lambda leaf: leaf / norm.reshape(-1, *(1,) * (leaf.ndim - 1)).astype(leaf.dtype), tree)

        leaves, treedef = jax.tree.flatten(params)
        drawn = [
            jax.vmap(lambda key, like: jax.random.normal(key, like.shape, like.dtype))(keys[:, 2], x) for x in leaves
        ]
        turned = jax.linearize(slope, params)[1]
        v = jax.lax.fori_loop(0, ITERATIONS, lambda _, v: unit(turned(v)), unit(treedef.unflatten(drawn)))
        return inner_product(v, turned(v))

    found = curvatures(family, key)
    return float(jnp.max(jnp.where(jnp.isfinite(found), found, 0.0)))


def warn_of_long_steps(name: str, optimizer: Optimizer, meta_params: MetaParams, family: TaskFamily, key: Key) -> None:
    """Warns where the rate times the curvature lies above what the optimizer's steps are stable at."""
    limit = optimizer.stable_below
    if limit is None or RATE not in optimizer.tunable or family.oracle is not None:
        return
    rate, curvature = float(optimizer.tunable[RATE].forward(meta_params[RATE])), largest_curvature(family, key)
    if rate * curvature > limit:
        warn(
            f"{name}: a learning rate of {rate:.3g} times the curvature of {family.name or 'the family'}, "
            f"{curvature:.3g} at the starts of {NUM_TASKS} tasks, is {rate * curvature:.3g}; above {limit:.3g} steps "
            f"grow along the steepest direction. Take a rate below {limit / curvature:.3g}."
        )
