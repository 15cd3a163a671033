"""Truncated back-propagation through time: the thesis's BP model."""

from __future__ import annotations

from metaopt.estimators.reverse_mode import reverse_mode_gradient
from metaopt.estimators.windows import Schedule
from metaopt.types import MetaGradient, Objective, Optimizer
from metaopt.unroll import ObjectiveBatch, StateGradient


def truncated_backprop(
    optimizer: Optimizer,
    objective: Objective,
    *,
    num_tasks: int,
    horizon: int,
    unroll_length: int,
    chunk_size: int | None = None,
    num_devices: int | None = None,
    memory: float | None = None,
    state_gradient: StateGradient = "full",
    second_order: bool = False,
    objective_batch: ObjectiveBatch = "fresh",
    staggered: bool = False,
) -> MetaGradient:
    """dL/dφ by reverse mode over windows of `unroll_length` steps; `unroll_length == horizon` is the full gradient.

    ∇_t counts as a constant unless `second_order` (Andrychowicz et al. 2016). Exact for L under `second_order` and a
    full window; otherwise biased, by the dropped second derivatives and by what lies beyond the window. Cost: one
    unroll forward and about three back.

    Args:
      num_tasks: tasks a meta-step.
      horizon: inner steps until tasks are drawn anew, a multiple of `unroll_length`.
      chunk_size: tasks at once on a device; None: fitted to the cache.
      memory: GiB for the residuals of a chunk's unroll; beyond it the unroll is cut into segments, for one
        more forward pass each time. None: see `metaopt.batching.pick_segment_lengths`.
      state_gradient: `stopped` drops the path by which a step changes later states, as in `reparameterised`.
    """
    return reverse_mode_gradient(
        optimizer,
        objective,
        Schedule(num_tasks, horizon, unroll_length, chunk_size, num_devices, staggered, memory),
        explore=False,
        state_gradient=state_gradient,
        second_order=second_order,
        objective_batch=objective_batch,
    )
