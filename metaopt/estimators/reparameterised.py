"""The reparameterised policy gradient: the thesis's RL model."""

from __future__ import annotations

from metaopt.estimators.reverse_mode import reverse_mode_gradient
from metaopt.estimators.windows import Schedule
from metaopt.types import MetaGradient, Objective, Optimizer
from metaopt.unroll import ObjectiveBatch, StateGradient


def reparameterised(
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
    """∇_φ L = E_ξ Σ_t ∇_φ f(θ_t(φ, ξ)): noise first, then the gradient through step length and direction.

    The inner run is an MDP with state (θ, ∇), action g and reward -f(θ + g). `state_gradient="stopped"` is the thesis's
    formula as printed, Σ_t ∇_φ a_t · ∇f(s_t + a_t), which drops the path by which an action changes later states;
    `full` is the total derivative. Unbiased for E_ξ L under `full`, `second_order` and a full window. Cost: one unroll
    forward and about three back.

    Raises:
      ValueError: the optimizer has no step noise.
    """
    if not optimizer.explores:
        raise ValueError(
            "needs an optimizer with step noise; set its option noise=per_step, or use truncated_backprop."
        )
    return reverse_mode_gradient(
        optimizer,
        objective,
        Schedule(num_tasks, horizon, unroll_length, chunk_size, num_devices, staggered, memory),
        explore=True,
        state_gradient=state_gradient,
        second_order=second_order,
        objective_batch=objective_batch,
    )
