"""What entries of one's own have to be for an inner loop to run on them; told in one line, from shapes alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from metaopt.errors import UserError
from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.tasks.checks import explained
from metaopt.types import (
    Estimate,
    Families,
    Key,
    MetaGradient,
    Objective,
    Optimizer,
    Oracle,
    Params,
    PyTree,
    TaskFamily,
)

TASKS = 11  # a number that nothing else has


def check_oracle(oracle: Oracle, family: TaskFamily) -> None:
    """Refuses an oracle whose estimates do not fit a family's parameters.

    Raises:
      ValueError: it raises, its gradient is of another shape, its value or `info` are no single numbers, or its state
        changes its shape.
    """

    def run(key: Key) -> tuple[PyTree, ...]:
        task = family.sample(key, family.data)
        params = family.init(key, task)
        state = explained("`init`", oracle.init, family, task, params, key)
        found, after = explained("`estimate`", oracle.estimate, family, task, params, state, key)
        return params, found, state, after

    params, found, state, after = jax.eval_shape(run, jax.random.key(0))
    _alike(found.gradient, params, "`estimate` gives a gradient", "the parameters")
    _alike(after, state, "`estimate` gives a state", "that of `init`")
    for what, value in {"value": found.value, **found.info}.items():
        if value is not None and jnp.shape(value):
            raise ValueError(f"`estimate` gives {what} of shape {jnp.shape(value)}, and it has to be one number.")


def first_estimate(family: TaskFamily, *, differentiated: bool = False) -> Estimate | None:
    """The shapes of what a family's oracle gives at the start of a run; None for a family without an oracle.

    Args:
      differentiated: as its derivative in the parameters is taken, too.

    Raises:
      UserError: the oracle cannot serve the family.
    """
    oracle = family.oracle
    if oracle is None:
        return None

    def first(key: Key) -> Estimate:
        task = family.sample(key, family.data)
        params = family.init(key, task)
        state = oracle.init(family, task, params, key)

        def at(params: Params) -> Estimate:
            return oracle.estimate(family, task, params, state, key)[0]

        return jax.jvp(at, (params,), (params,))[0] if differentiated else at(params)

    try:
        return jax.eval_shape(first, jax.random.key(0))
    except ValueError as error:
        raise UserError(f"{family.name or 'the family'}: {error}") from error


def check_value(name: str, optimizer: Optimizer, family: TaskFamily) -> None:
    """Refuses an optimizer that goes by losses where the gradients come without.

    Raises:
      UserError: with what to take instead.
    """
    if not optimizer.needs_value:
        return
    found = first_estimate(family)
    if found is not None and found.value is None:
        raise UserError(
            f"{name} goes by the loss of each step, and {family.name or 'the family'} has none, for its oracle gives "
            "gradients alone; take another optimizer, or another schedule."
        )


def check_optimizer(optimizer: Optimizer, family: TaskFamily) -> None:
    """Refuses an optimizer whose updates do not fit a family's parameters.

    Raises:
      ValueError: it raises, or its updates or its state are of another shape than they have to be.
    """

    def run(key: Key) -> tuple[PyTree, ...]:
        meta_params = explained("`init`", optimizer.init, key)
        params = family.init(key, family.sample(key, family.data))
        tx = explained("`bind`", optimizer.bind, meta_params)
        state = explained("its transformation's `init`", tx.init, params)
        update = partial(tx.update, key=key, value=jnp.zeros(()), explore=False)
        updates, after = explained("its transformation's `update`", update, params, state, params)
        return params, updates, state, after

    params, updates, state, after = jax.eval_shape(run, jax.random.key(0))
    _alike(updates, params, "`update` gives updates", "the parameters")
    _alike(after, state, "`update` gives a state", "that of `init`")


def check_objective(objective: Objective, optimizer: Optimizer, family: TaskFamily) -> None:
    """Refuses an objective that does not give one number a task.

    Raises:
      ValueError: it raises, or gives something else.
    """

    def run(keys: Key) -> PyTree:
        tx = bind_tasks(optimizer, optimizer.init(keys[0]))
        task, state = reset(tx, family, keys)
        return explained("it", objective, unroll(tx, family, task, state, length=2)[1])

    found = jax.eval_shape(run, jax.random.split(jax.random.key(0), TASKS))
    if not isinstance(found, jax.ShapeDtypeStruct) or found.shape != (TASKS,) or not _is_real(found):
        shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(found)) or "nothing"
        raise ValueError(
            f"of a trace of 2 steps of {TASKS} tasks it makes {shapes}, and not ({TASKS},); return one real number a "
            "task."
        )


def check_estimator(estimator: MetaGradient, optimizer: Optimizer, families: Families) -> None:
    """Refuses an estimator whose gradient is not one in φ, or whose metrics lack what a run is followed by.

    Raises:
      ValueError: it raises, or gives something else.
    """

    def run(key: Key) -> tuple[PyTree, ...]:
        meta_params = optimizer.init(key)
        state = explained("`init`", estimator.init, key, meta_params, families)
        gradient, after, metrics = explained("`estimate`", estimator.estimate, key, meta_params, state, families)
        return meta_params, gradient, state, after, metrics

    meta_params, gradient, state, after, metrics = jax.eval_shape(run, jax.random.key(0))
    _alike(gradient, meta_params, "`estimate` gives a gradient", "φ")
    _alike(after, state, "`estimate` gives a state", "that of `init`")
    missing = [name for name in ("meta_loss", "alive") if name not in metrics]
    if missing:
        raise ValueError(f"the metrics of `estimate` lack {' and '.join(missing)}, by which a run is followed; add it.")
    for name, value in metrics.items():
        if jnp.shape(value):
            raise ValueError(f"the metric {name} is of shape {jnp.shape(value)}, and has to be one number.")


def _is_real(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _leaves(tree: PyTree) -> str:
    """`['a'], ['b'] and 7 more`, for a line."""
    paths = [jax.tree_util.keystr(path) or "one array" for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    shown = ", ".join(paths[:3]) or "no leaf"
    return f"{shown} and {len(paths) - 3} more" if len(paths) > 3 else shown


def _alike(found: PyTree, wanted: PyTree, what: str, than: str) -> None:
    """The same structure, shapes and types."""
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        leaves = [_leaves(tree) for tree in (found, wanted)]
        raise ValueError(f"{what} of another structure than {than}: it has {leaves[0]}, and not {leaves[1]}.")
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        if (leaf.shape, leaf.dtype) != (other.shape, other.dtype):
            at = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise ValueError(
                f"{what}{at} of {leaf.dtype}{list(leaf.shape)}, and it has to be {other.dtype}{list(other.shape)} as "
                f"{than}."
            )
