"""The LSTM optimizer of Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent"."""

from __future__ import annotations

from metaopt.optimizers.coordinatewise import coordinatewise
from metaopt.optimizers.features import log_and_sign
from metaopt.optimizers.step_rules import check_scale, plain_step
from metaopt.types import Optimizer


def lstm_log_sign(
    *, p: float = 10.0, output_scale: float = 0.1, hidden_size: int = 20, num_layers: int = 2
) -> Optimizer:
    """Two-layer LSTM on (log|∇|/p, sign ∇); the step is its output times `output_scale`."""
    if not 0 < p <= 30:
        raise ValueError(f"`p` ({p}) must be above 0 and at most 30.")
    check_scale(output_scale)
    return coordinatewise(log_and_sign(p), plain_step(output_scale), hidden_size=hidden_size, num_layers=num_layers)
