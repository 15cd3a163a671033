"""Coordinatewise LSTM optimizers: the thesis's, with every open choice as an option, and two of the literature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from metaopt.optimizers.coordinatewise import coordinatewise
from metaopt.optimizers.features import (
    INPUTS_IN_WORDS,
    FeatureSet,
    SForm,
    gradient_statistics,
    log_and_sign,
    rnnprop_inputs,
)
from metaopt.optimizers.noise import Noise, NoiseInUse
from metaopt.optimizers.step_rules import (
    LOG_ALPHA_RANGE,
    Alpha,
    InitialAlpha,
    Normalisation,
    check_scale,
    normalised_step,
    plain_step,
)
from metaopt.registry import OPTIMIZERS
from metaopt.types import Optimizer


def _shorter_steps(options: Mapping[str, Any]) -> str | None:
    return "alpha_bias" if options.get("step_rule", "direct") == "direct" else None


def _scale_free(options: Mapping[str, Any]) -> str | None:
    return None if options.get("features", "scale_free") == "scale_free" else "features=scale_free"


def _shrinking_steps(options: Mapping[str, Any]) -> str | None:
    return "step_rule=recursive" if options.get("step_rule", "direct") == "direct" else None


@OPTIMIZERS.register(
    shorter_steps=_shorter_steps,
    scale_free=_scale_free,
    shrinking_steps=_shrinking_steps,
    inputs_in_words=INPUTS_IN_WORDS,
)
def lstm(
    *,
    step_rule: Literal["direct", "recursive"] = "direct",
    features: FeatureSet = "scale_free",
    s_form: SForm = "adam",
    alpha: Alpha = "shared",
    normalisation: Normalisation = "norm",
    noise: Noise = "per_step",
    noise_in_use: NoiseInUse = "one",
    initial_alpha: InitialAlpha = "drawn",
    alpha_bias: float | None = None,
    hidden_size: int = 20,
    num_layers: int = 2,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> Optimizer:
    """A coordinatewise LSTM whose step is α_t ξ_t d_t/‖d_t‖.

    Features and noise are by default what did better at ten times the training horizon in the ablation of
    experiments/thesis/README.md; the other options kept the thesis's values.

    Args:
      step_rule: `recursive`, α_t = α_{t-1} γ_t (the BP model), or `direct`, α_t an output (the RL model).
      features: `gradient` (∇ alone), `all` (ten) or `scale_free` (six).
      s_form: whether Adam's ratio s has the square root (`adam`) or not (`printed` in the thesis).
      alpha: one step length a task (`shared`: the log averaged over coordinates) or `per_coordinate`.
      normalisation: what d is divided by: its `norm`, its `rms`, or each leaf's own RMS (`tensor_rms`).
      noise: ξ_t ~ Gamma(2, 1) `per_step`, `per_coordinate` or `none`; drawn in meta-training when the estimator
        explores, as all but `truncated_backprop` do.
      noise_in_use: what stands for ξ_t in use: `one` (its mode), `two` (its mean), or it stays `on`.
      initial_alpha: log α_0 ~ U[-6, -2] (`drawn`) or -4 (`median`); only for `recursive`.
      alpha_bias: where the log α (default -3) or log γ (default 0) head starts.
    """
    if alpha_bias is None:
        alpha_bias = -3.0 if step_rule == "direct" else 0.0
    least, most = LOG_ALPHA_RANGE
    if not least <= alpha_bias <= most:
        raise ValueError(f"`alpha_bias` ({alpha_bias:g}) must lie between {least:g} and {most:g}, where log α is kept.")
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and eps > 0):
        raise ValueError(f"`beta1` ({beta1}) and `beta2` ({beta2}) must be in [0, 1) and `eps` ({eps}) above 0.")
    rule = normalised_step(
        rule=step_rule,
        alpha=alpha,
        normalisation=normalisation,
        noise=noise,
        noise_in_use=noise_in_use,
        initial_alpha=initial_alpha,
        alpha_bias=alpha_bias,
    )
    return coordinatewise(
        gradient_statistics(features, s_form, beta1, beta2, eps),
        rule,
        hidden_size=hidden_size,
        num_layers=num_layers,
        noise="exploring" if noise != "none" else "none",
    )


@OPTIMIZERS.register(shorter_steps=lambda options: "output_scale")
def lstm_log_sign(
    *, p: float = 10.0, output_scale: float = 0.1, hidden_size: int = 20, num_layers: int = 2
) -> Optimizer:
    """Two-layer LSTM on (log|∇|/p, sign ∇); the step is its output times `output_scale` (Andrychowicz et al. 2016)."""
    if not 0 < p <= 30:
        raise ValueError(f"`p` ({p}) must be above 0 and at most 30.")
    check_scale(output_scale)
    return coordinatewise(log_and_sign(p), plain_step(output_scale), hidden_size=hidden_size, num_layers=num_layers)


@OPTIMIZERS.register(shorter_steps=lambda options: "output_scale")
def rnnprop(
    *,
    beta: float = 0.95,
    output_scale: float = 0.1,
    hidden_size: int = 20,
    num_layers: int = 2,
    input_units: int = 0,
) -> Optimizer:
    """Two-layer LSTM on (m̂/√v̂, ∇/√v̂); the step is `output_scale`·tanh of its output (RNNprop, Lv et al. 2017).

    Args:
      input_units: of a dense layer with ELU before the LSTM, 20 in the paper; 0: the LSTM reads the two itself.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"`beta` ({beta}) must be in [0, 1).")
    check_scale(output_scale)
    rule = plain_step(output_scale, squash=True)
    return coordinatewise(
        rnnprop_inputs(beta), rule, hidden_size=hidden_size, num_layers=num_layers, input_units=input_units
    )
