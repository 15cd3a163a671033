"""Which part of φ an estimator moves, its option `of`: the optimizer, the task's hyperparameters, or both."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from metaopt.choices import Choice, build
from metaopt.errors import UserError
from metaopt.estimators.windows import Schedule
from metaopt.experiment import OF, part_moved
from metaopt.registry import ESTIMATORS
from metaopt.tasks.hyper import BOTH, OPTIMIZER, one_part
from metaopt.types import Families, InnerBatch, Key, MetaGradient, MetaParams, Metrics, Objective, Optimizer, PyTree

ELSEWHERE = "objective_batch"  # the option of estimators that says where the objective's losses are taken


def of_part(picked: Choice, optimizer: Optimizer, objective: Objective, schedule: Schedule) -> MetaGradient:
    """The estimator that a choice names, of the part of φ that its option `of` names, at zero slope in the other.

    Under `task` and `both` losses of the objective are `validation_loss` on the validation data: the loss that is
    descended would choose its own hyperparameters away.

    Args:
      optimizer: under `task` and `both` one of `metaopt.tasks.hyper.with_task`.

    Raises:
      UserError: options that do not fit together.
    """
    of = part_moved(picked)
    options = {key: value for key, value in picked.options.items() if key != OF}
    if of != OPTIMIZER and ELSEWHERE in inspect.signature(ESTIMATORS[picked.name]).parameters:
        if options.setdefault(ELSEWHERE, "validation") != "validation":
            raise UserError(
                f"estimator {picked.name!r}: {ELSEWHERE}={options[ELSEWHERE]} would let the hyperparameters lower the "
                "loss that they are part of; take validation."
            )
    bare = Choice(picked.name, options)

    def make(optimizer: Optimizer) -> MetaGradient:
        return build(bare, ESTIMATORS, optimizer, objective, schedule, others=(OF,))

    whole = make(optimizer)
    if of == BOTH or optimizer.hyper is None:
        return whole

    def seen(meta_params: MetaParams) -> MetaGradient:
        """The estimator of the part alone, the other held: evolution strategies must not shake it either."""
        return make(one_part(optimizer, meta_params, of))

    def init(key: Key, meta_params: MetaParams, families: Families) -> PyTree:
        return seen(meta_params).init(key, meta_params[of], families)

    def estimate(
        key: Key, meta_params: MetaParams, state: PyTree, families: Families
    ) -> tuple[MetaParams, PyTree, Metrics]:
        gradient, state, metrics = seen(meta_params).estimate(key, meta_params[of], state, families)
        return {**jax.tree.map(jnp.zeros_like, meta_params), of: gradient}, state, metrics

    def batches(key: Key, meta_params: MetaParams, state: PyTree, families: Families) -> Iterator[InnerBatch]:
        inner = seen(meta_params).batches
        assert inner is not None
        for batch in inner(key, meta_params[of], state, families):
            yield batch._replace(meta_params={**meta_params, of: batch.meta_params})

    return MetaGradient(init, estimate, None if whole.batches is None else batches)


def moving(optimizer: Optimizer, picked: Choice) -> np.ndarray | None:
    """[D] bool, which numbers of φ the estimator moves; None: all of them."""
    of = part_moved(picked)
    if optimizer.hyper is None or of == BOTH:
        return None
    phi = jax.eval_shape(optimizer.init, jax.random.key(0))
    flags = {part: jax.tree.map(lambda leaf, on=part == of: np.full(leaf.shape, on), phi[part]) for part in phi}
    return np.asarray(ravel_pytree(flags)[0])
