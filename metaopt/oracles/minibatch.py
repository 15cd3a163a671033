"""Value and gradient of the loss on a fresh minibatch: every family's default."""

from __future__ import annotations

import jax

from metaopt.types import Aux, Key, Oracle, OracleState, Params, Scalar, Task, TaskFamily


def minibatch() -> Oracle:
    """Draws a batch a step with `family.batch`; for a deterministic family the batch is () and the gradient exact."""

    def estimate(
        family: TaskFamily, task: Task, params: Params, state: OracleState, key: Key
    ) -> tuple[Params, Scalar, OracleState, Aux]:
        batch = family.batch(key, task, family.data)
        value, gradient = jax.value_and_grad(family.loss)(params, task, batch)
        return gradient, value, state, ()

    return Oracle(lambda family, task, params, key: (), estimate)
