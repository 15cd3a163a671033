"""Truncated back-propagation through time: the thesis's BP model."""

from __future__ import annotations

from metaopt.estimators.windows import windowed_gradient
from metaopt.types import MetaGradient, Objective, Optimizer
from metaopt.unroll import ObjectiveBatch


def truncated_backprop(
    optimizer: Optimizer,
    objective: Objective,
    *,
    num_tasks: int,
    horizon: int,
    unroll_length: int,
    chunk_size: int | None = None,
    num_devices: int | None = None,
    second_order: bool = False,
    objective_batch: ObjectiveBatch = "fresh",
) -> MetaGradient:
    """dL/dφ by reverse mode over windows of `unroll_length` steps; `unroll_length == horizon` is the full gradient.

    ∇_t counts as a constant unless `second_order` (Andrychowicz et al. 2016). Exact for L under `second_order` and a
    full window; otherwise biased, by the dropped second derivatives and by what lies beyond the window. Cost: one
    unroll forward and about three back.

    Args:
      num_tasks: tasks a meta-step.
      horizon: inner steps until tasks are drawn anew, a multiple of `unroll_length`.
      chunk_size: tasks at once on a device; None: fitted to the cache.
    """
    return windowed_gradient(
        optimizer,
        objective,
        num_tasks=num_tasks,
        horizon=horizon,
        unroll_length=unroll_length,
        explore=False,
        state_gradient="full",
        second_order=second_order,
        objective_batch=objective_batch,
        chunk_size=chunk_size,
        num_devices=num_devices,
    )
