"""What every family has to be for an inner loop to run on it; told in one line, from shapes alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from metaopt.types import Key, TaskFamily


def check_family(family: TaskFamily) -> None:
    """Refuses a family that no inner loop can run on.

    Raises:
      ValueError: parameters that are no real floating arrays, a loss that is no real scalar, or batches of two shapes.
    """
    name = family.name or "the family"

    def parts(key: Key) -> Any:
        task = family.sample(key, family.data)
        params = family.init(key, task)
        batch = family.batch(key, task, family.data)
        return params, batch, family.loss(params, task, batch)

    params, batch, loss = jax.eval_shape(parts, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not sum(leaf.size for _, leaf in leaves):
        raise ValueError(f"{name}: `init` gives no parameters; return a pytree of arrays with at least one number.")
    for path, leaf in leaves:
        where = jax.tree_util.keystr(path) or "the array"
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"{name}: parameter {where} is complex ({leaf.dtype}); give its real and imaginary part as two arrays."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{name}: parameter {where} is of type {leaf.dtype}, which has no gradient; make it float32."
            )
    shapes = jax.tree.leaves(loss)
    if not isinstance(loss, jax.ShapeDtypeStruct) or loss.shape != ():
        seen = f"shape {shapes[0].shape}" if len(shapes) == 1 else f"{len(shapes)} arrays"
        raise ValueError(f"{name}: `loss` gives {seen}, and has to be one number; take its mean or sum.")
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"{name}: `loss` is of type {loss.dtype}; return a real floating number.")
