"""Langevin dynamics as entries of the registry: φ holds the logarithm of the step h."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metaopt.optimizers.langevin import (
    Falling,
    Schedule,
    Temperature,
    falling_temperature,
    inertial_langevin,
    langevin,
    preconditioned_sgld,
    sgld,
)
from metaopt.optimizers.schedules import Told, lasting, refuse_untold
from metaopt.optimizers.settings import LOG
from metaopt.registry import OPTIMIZERS
from metaopt.types import Key, Optimizer

ENDING = ("geometric", "linear", "polynomial")  # the schedules that read `steps`


def _entry(
    make: Callable[[Any], optax.GradientTransformationExtraArgs],
    learning_rate: float,
    stable_below: float | None = None,
    at_horizon: Told | None = None,
) -> Optimizer:
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"`learning_rate` ({learning_rate}) must be above 0.")
    make(learning_rate)  # refuses its settings now, and not within a program

    def init(key: Key) -> dict[str, jax.Array]:
        return {"learning_rate": LOG.inverse(jnp.asarray(learning_rate, jnp.float32))}

    def bind(meta_params: Any) -> optax.GradientTransformationExtraArgs:
        return make(LOG.forward(meta_params["learning_rate"]))

    tunable = {"learning_rate": LOG}
    return Optimizer(init, bind, noise="always", tunable=tunable, stable_below=stable_below, at_horizon=at_horizon)


def _cooling(
    name: str,
    make: Callable[[Any, Schedule], optax.GradientTransformationExtraArgs],
    learning_rate: float,
    stable_below: float | None = None,
    *,
    schedule: Falling,
    steps: int | None,
    **fall: float,
) -> Optimizer:
    """An entry whose temperature falls: within `steps`, or where those are None within the run, once told."""

    def within(steps: int | None, told: Told | None) -> Optimizer:
        falling = falling_temperature(schedule, steps=1 if steps is None else steps, **fall)

        def bound(rate: Any) -> optax.GradientTransformationExtraArgs:
            tx = make(rate, falling)
            if told is None or steps is not None:
                return tx
            return tx._replace(update=lambda *_, **__: refuse_untold(name, schedule))

        return _entry(bound, learning_rate, stable_below, told)

    if schedule not in ENDING:
        return within(steps, None)
    return lasting(name, schedule, steps, within)


def _shorter_steps(options: Any) -> str:
    return "learning_rate"


def _decayed(learning_rate: Any, power: float) -> Temperature:
    return (lambda count: learning_rate * (count + 1.0) ** -power) if power else learning_rate


@OPTIMIZERS.register(name="langevin", shorter_steps=_shorter_steps)
def langevin_dynamics(
    *,
    learning_rate: float = 0.1,
    temperature: float = 0.01,
    schedule: Falling = "constant",
    end: float = 0.0,
    steps: int | None = None,  # within which it falls; None: the run
    power: float = 2.0,
) -> Optimizer:
    """Langevin dynamics, g_t = -h ∇_t + √(2 h T_t) ξ; see `falling_temperature` for schedule, end, steps and power."""
    fall = {"temperature": temperature, "end": end, "power": power}
    return _cooling("langevin", langevin, learning_rate, 2.0, schedule=schedule, steps=steps, **fall)


@OPTIMIZERS.register(shorter_steps=_shorter_steps)
def simulated_annealing(
    *,
    learning_rate: float = 0.1,
    temperature: float = 1.0,
    schedule: Falling = "geometric",
    end: float = 0.001,
    steps: int | None = None,  # within which it falls; None: the run
    power: float = 2.0,
) -> Optimizer:
    """Langevin dynamics whose temperature falls, here geometrically to `end` within `steps`, or within the run."""
    fall = {"temperature": temperature, "end": end, "power": power}
    return _cooling("simulated_annealing", langevin, learning_rate, 2.0, schedule=schedule, steps=steps, **fall)


@OPTIMIZERS.register(name="sgld", shorter_steps=_shorter_steps)
def sgld_on_means(
    *, learning_rate: float = 0.1, temperature: float = 1.0, num_examples: int = 1000, power: float = 0.0
) -> Optimizer:
    """SGLD for a loss that is a mean over `num_examples`, with h/(t+1)^power."""
    return _entry(lambda rate: sgld(_decayed(rate, power), temperature, num_examples=num_examples), learning_rate, 2.0)


@OPTIMIZERS.register(name="preconditioned_sgld", shorter_steps=_shorter_steps)
def preconditioned_sgld_on_means(
    *,
    learning_rate: float = 0.01,
    temperature: float = 1.0,
    num_examples: int = 1000,
    decay: float = 0.99,
    eps: float = 1e-5,
    power: float = 0.0,
) -> Optimizer:
    """SGLD with RMSProp's preconditioner, for a loss that is a mean over `num_examples`, with h/(t+1)^power."""

    def make(rate: Any) -> optax.GradientTransformationExtraArgs:
        schedule = _decayed(rate, power)
        return preconditioned_sgld(schedule, temperature, num_examples=num_examples, decay=decay, eps=eps)

    return _entry(make, learning_rate)


@OPTIMIZERS.register(name="inertial_langevin", shorter_steps=_shorter_steps)
def inertial_langevin_dynamics(
    *,
    learning_rate: float = 0.1,
    temperature: float = 0.01,
    mass: float = 0.1,
    friction: float = 1.0,
    schedule: Falling = "constant",
    end: float = 0.0,
    steps: int | None = None,  # within which it falls; None: the run
    power: float = 2.0,
) -> Optimizer:
    """Langevin's equation with a mass, at steps of time h = `learning_rate`."""

    def make(rate: Any, falling: Schedule) -> optax.GradientTransformationExtraArgs:
        return inertial_langevin(rate, falling, mass=mass, friction=friction)

    fall = {"temperature": temperature, "end": end, "power": power}
    return _cooling("inertial_langevin", make, learning_rate, schedule=schedule, steps=steps, **fall)
