"""Evolution strategies: the meta-gradient from values alone, over the full horizon."""

from __future__ import annotations

from metaopt.estimators.pairs import PairSettings, pair_gradient, start_pairs
from metaopt.estimators.windows import Method, Schedule, windowed
from metaopt.types import MetaGradient, Objective, Optimizer
from metaopt.unroll import ObjectiveBatch


def evolution_strategies(
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
) -> MetaGradient:
    """Antithetic evolution strategies over the full horizon: E_ε [L(φ + σε) - L(φ - σε)]/(2σ²) σε, ε ~ N(0, I).

    Rechenberg 1973, Salimans et al. 2017; for learned optimizers Metz et al. 2018. Unbiased for the gradient of the
    smoothed loss E_ε L(φ + σε), second derivatives included. The two sides of a pair see the same task, minibatches and
    noise. Cost: two unrolls forward, nothing back. Variance: about (number of φ)/(number of perturbations) times
    ‖∇L‖², plus the tasks' own. The reported losses are those of the perturbed optimizers.

    Args:
      sigma: σ, the standard deviation of the perturbation of every number in φ.
      tasks_per_perturbation: tasks that share one ε, rounded up to a divisor of a family's tasks; None: as few as
        have 64 columns (tasks times coordinates), below which reading φ costs more than using it, and at most half.
        A device holds whole groups.
      explore: draw the optimizer's step noise, where it has any.

    Raises:
      ValueError: a window shorter than the horizon, or settings out of range.
    """
    if unroll_length != horizon:
        raise ValueError(
            f"runs the whole horizon ({horizon}) at once, so `unroll_length` ({unroll_length}) must be left out; "
            "persistent_evolution_strategies works in windows."
        )
    settings = PairSettings(sigma, tasks_per_perturbation, explore, objective_batch)
    settings.check(num_tasks)
    gradient = pair_gradient(optimizer, objective, settings, length=horizon, persistent=False)
    method = Method(start_pairs(optimizer), gradient, settings.group_size, sides=2)
    return windowed(method, objective, Schedule(num_tasks, horizon, horizon, chunk_size, num_devices))
