"""What the families that wrap another one share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from metaopt.types import Aux, Key, Oracle, OracleState, Params, Scalar, TaskFamily

Into = Callable[[Params, Any], Params]  # (parameters, task) of the wrapping family -> the wrapped family's parameters
Out = Callable[[Params, Scalar, Params, Any], tuple[Params, Scalar]]  # (gradient, value, parameters, task) -> the same


def wrapped_oracle(family: TaskFamily, into: Into, out: Out) -> Oracle | None:
    """The wrapped family's own oracle, if it has one, which sees that family's task and parameters.

    The wrapping family's task has the wrapped one's in its field `task`.
    """
    oracle = family.oracle
    if oracle is None:
        return None

    def inner(outer: TaskFamily) -> TaskFamily:
        return dataclasses.replace(family, data=outer.data)  # the traced data, not the closure's

    def init(outer: TaskFamily, task: Any, params: Params, key: Key) -> OracleState:
        return oracle.init(inner(outer), task.task, into(params, task), key)

    def estimate(
        outer: TaskFamily, task: Any, params: Params, state: OracleState, key: Key
    ) -> tuple[Params, Scalar, OracleState, Aux]:
        gradient, value, state, aux = oracle.estimate(inner(outer), task.task, into(params, task), state, key)
        return *out(gradient, value, params, task), state, aux

    return Oracle(init, estimate)
