"""Value and gradient of the loss on the whole training split (or the family's large fixed batch)."""

from __future__ import annotations

import jax

from metaopt.types import Aux, Key, Oracle, OracleState, Params, Scalar, Task, TaskFamily


def exact() -> Oracle:
    """Full-batch gradients: turns a stochastic family into a deterministic one."""

    def estimate(
        family: TaskFamily, task: Task, params: Params, state: OracleState, key: Key
    ) -> tuple[Params, Scalar, OracleState, Aux]:
        batch = family.eval_batch(task, family.data, "train")
        value, gradient = jax.value_and_grad(family.loss)(params, task, batch)
        return gradient, value, state, ()

    return Oracle(lambda family, task, params, key: (), estimate)
