"""RNNprop of Lv et al. 2017, "Learning gradient descent: better generalization and longer horizons"."""

from __future__ import annotations

from metaopt.optimizers.coordinatewise import coordinatewise
from metaopt.optimizers.features import rnnprop_inputs
from metaopt.optimizers.step_rules import check_scale, plain_step
from metaopt.types import Optimizer


def rnnprop(*, beta: float = 0.95, output_scale: float = 0.1, hidden_size: int = 20, num_layers: int = 2) -> Optimizer:
    """Two-layer LSTM on (m̂/√v̂, ∇/√v̂); the step is `output_scale`·tanh of its output."""
    if not 0 <= beta < 1:
        raise ValueError(f"`beta` ({beta}) must be in [0, 1).")
    check_scale(output_scale)
    rule = plain_step(output_scale, squash=True)
    return coordinatewise(rnnprop_inputs(beta), rule, hidden_size=hidden_size, num_layers=num_layers)
