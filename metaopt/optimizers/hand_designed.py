"""Hand-designed optimizers from optax with their settings as φ: a grid is a vmap, tuning is meta-training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metaopt.registry import OPTIMIZERS
from metaopt.trees import usual_rules
from metaopt.types import Bijection, Optimizer

LOG = Bijection(forward=jnp.exp, inverse=jnp.log)  # of settings above 0


def _shorter_steps(options: Any) -> str:
    return "learning_rate"


def _from_optax(make: Callable[[Any], optax.GradientTransformation], learning_rate: float) -> Optimizer:
    if learning_rate <= 0:
        raise ValueError(f"`learning_rate` ({learning_rate}) must be above 0.")

    def bind(meta_params: Any) -> optax.GradientTransformationExtraArgs:
        tx = optax.with_extra_args_support(make(LOG.forward(meta_params["learning_rate"])))

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            with usual_rules():
                return tx.update(updates, state, params, **extra)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    def init(key: Any) -> Any:
        return {"learning_rate": LOG.inverse(jnp.asarray(learning_rate, jnp.float32))}

    return Optimizer(init, bind, tunable={"learning_rate": LOG})


def _check(least: float = 0.0, below: float = math.inf, **settings: float) -> None:
    for name, value in settings.items():
        if not least <= value < below:
            range_ = f"in [{least:g}, {below:g})" if math.isfinite(below) else f"at least {least:g}"
            raise ValueError(f"`{name}` ({value}) must be {range_}.")


def _decayed(learning_rate: Any, power: float) -> Any:
    """α_0/(t+1)^γ, the thesis's schedule."""
    return (lambda count: learning_rate * (count + 1.0) ** -power) if power else learning_rate


@OPTIMIZERS.register(shorter_steps=_shorter_steps)
def sgd(*, learning_rate: float = 1.0, power: float = 0.0) -> Optimizer:
    """g_t = -α_0/(t+1)^power ∇_t."""
    _check(power=power)
    return _from_optax(lambda rate: optax.sgd(_decayed(rate, power)), learning_rate)


@OPTIMIZERS.register(shorter_steps=_shorter_steps)
def momentum(*, learning_rate: float = 0.1, mu: float = 0.9, power: float = 0.0) -> Optimizer:
    """The thesis's momentum: the step is the buffer, h_t = μ h_{t-1} - α_0/(t+1)^power ∇_t."""

    _check(power=power)
    _check(mu=mu, below=1.0)

    def make(rate: Any) -> optax.GradientTransformation:
        scale, buffer = optax.scale_by_learning_rate(_decayed(rate, power)), optax.trace(mu)

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            scaled, count = scale.update(updates, state[0], params)
            # A rate in float32 must not widen the buffer of parameters in bfloat16.
            scaled = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), scaled, updates)
            steps, trace = buffer.update(scaled, state[1], params)
            return steps, (count, trace)

        return optax.GradientTransformation(lambda params: (scale.init(params), buffer.init(params)), update)

    return _from_optax(make, learning_rate)


@OPTIMIZERS.register(shorter_steps=_shorter_steps)
def adam(*, learning_rate: float = 0.01, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam (Kingma and Ba 2015)."""
    _check(beta1=beta1, beta2=beta2, below=1.0)
    _check(eps=eps)
    return _from_optax(lambda rate: optax.adam(rate, beta1, beta2, eps), learning_rate)


@OPTIMIZERS.register(shorter_steps=_shorter_steps)
def rmsprop(*, learning_rate: float = 0.01, decay: float = 0.99, eps: float = 1e-8) -> Optimizer:
    """RMSProp with ε outside the root, as in torch."""
    _check(decay=decay, below=1.0)
    _check(eps=eps)
    return _from_optax(lambda rate: optax.rmsprop(rate, decay, eps, eps_in_sqrt=False), learning_rate)
