"""Persistent evolution strategies: windows without the bias of truncation."""

from __future__ import annotations

from metaopt.estimators.pairs import PairSettings, pair_gradient, start_pairs
from metaopt.estimators.windows import Method, Schedule, windowed
from metaopt.types import MetaGradient, Objective, Optimizer
from metaopt.unroll import ObjectiveBatch


def persistent_evolution_strategies(
    optimizer: Optimizer,
    objective: Objective,
    *,
    num_tasks: int,
    horizon: int,
    unroll_length: int,
    chunk_size: int | None = None,
    num_devices: int | None = None,
    sigma: float = 0.01,
    tasks_per_perturbation: int | None = None,
    explore: bool = True,
    objective_batch: ObjectiveBatch = "fresh",
    staggered: bool = False,
    persistent: bool = True,
) -> MetaGradient:
    """Persistent ES: E [L_w⁺ - L_w⁻]/(2σ²) ξ_w with ξ_w = σ Σ_{v ≤ w} ε_v, the perturbations since the reset.

    Vicol et al. 2021. Both sides of a pair keep their inner runs from window to window, and ε_v is new in every window.
    Its mean over the windows of a horizon is unbiased for the gradient of the smoothed loss (one ε a window), whatever
    the window's length. Cost: two unrolls of a window forward, nothing back. Variance: that of ES, growing with the
    number of windows as ξ_w does. With one window a horizon it is antithetic ES.

    Args:
      sigma, tasks_per_perturbation, explore: see `evolution_strategies`.
      staggered: groups begin at different ages, so that they reset at different meta-steps; at most half of a
        family's tasks share one ε then.
      persistent: False leaves the earlier windows' perturbations out: truncated ES, cheaper in variance and biased.

    Raises:
      ValueError: a horizon that is shorter than a window or no multiple of it, or settings out of range.
    """
    if horizon < unroll_length:
        raise ValueError(f"`horizon` ({horizon}) is shorter than its window, `unroll_length` ({unroll_length}).")
    settings = PairSettings(sigma, tasks_per_perturbation, explore, objective_batch, halved=staggered)
    settings.check(num_tasks)
    schedule = Schedule(num_tasks, horizon, unroll_length, chunk_size, num_devices, staggered)
    gradient = pair_gradient(optimizer, objective, settings, length=unroll_length, persistent=persistent)
    return windowed(Method(start_pairs(optimizer), gradient, settings.group_size, sides=2), objective, schedule)
