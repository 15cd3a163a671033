"""Value and gradient of a family's own loss: on a fresh minibatch, or on all of the training split."""

from __future__ import annotations

import jax

from metaopt.registry import ORACLES
from metaopt.types import Batch, Estimate, Key, Oracle, OracleState, Params, Task, TaskFamily


def _at(family: TaskFamily, task: Task, params: Params, batch: Batch) -> Estimate:
    value, gradient = jax.value_and_grad(family.loss)(params, task, batch)
    return Estimate(gradient, value)


@ORACLES.register(default=True)
def minibatch() -> Oracle:
    """Draws a batch a step with `family.batch`; for a deterministic family the batch is () and the gradient exact."""

    def estimate(
        family: TaskFamily, task: Task, params: Params, state: OracleState, key: Key
    ) -> tuple[Estimate, OracleState]:
        return _at(family, task, params, family.batch(key, task, family.data)), state

    return Oracle(lambda family, task, params, key: (), estimate)


@ORACLES.register
def exact() -> Oracle:
    """Full-batch gradients: turns a stochastic family into a deterministic one."""

    def estimate(
        family: TaskFamily, task: Task, params: Params, state: OracleState, key: Key
    ) -> tuple[Estimate, OracleState]:
        return _at(family, task, params, family.eval_batch(task, family.data, "train")), state

    return Oracle(lambda family, task, params, key: (), estimate)
