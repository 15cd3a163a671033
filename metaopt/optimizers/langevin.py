"""Langevin dynamics: gradient descent with noise of a temperature, whose law settles at exp(-f/T).

One convention throughout. With step h (the learning rate), temperature T_n of step n = 0, 1, ... and ξ ~ N(0, I):

    θ_{n+1} = θ_n - h ∇f(θ_n) + √(2 h T_n) ξ_n

has the stationary law exp(-f/T) as h → 0 at constant T. Welling and Teh's ε is 2h. Where f is a mean over N examples,
as the losses of this package are, the posterior is exp(-N f): `num_examples` = N divides the temperature by N. That is
the same as temperature T for the sum, whose unbiased gradient is N/n times the sum over a minibatch of n, at step h/N.

Every update draws from `key=`, one key a task: under vmap one shared key would give all tasks the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.trees import usual_rules
from metaopt.types import Key, Params, PyTree

Schedule = Callable[[jax.Array], Any]  # the number of steps done -> the temperature, or the step
Temperature = float | jax.Array | Schedule
Falling = Literal["constant", "log", "geometric", "linear", "polynomial"]
SMALL = 2**14  # numbers of a leaf that shares a draw with others
SERIES_BELOW = 0.3  # of γh/m, where the closed form loses its digits in float32


# ----- temperatures ---------------------------------------------------------------------------------------------------


def falling_temperature(
    schedule: Falling = "constant", temperature: float = 1.0, *, end: float = 0.0, steps: int = 1000, power: float = 2.0
) -> Schedule:
    """T_n of step n = 0, 1, ..., from T = `temperature`; the last three stay at `end` from step `steps` on.

    constant: T; log: T / log(n + 2), T being the constant C of Geman and Geman 1984; geometric: T (end/T)^(n/steps);
    linear: T + (end - T) n/steps; polynomial: end + (T - end) (1 - n/steps)^power.

    Raises:
      ValueError: an unknown schedule, a temperature below 0, or a geometric one that ends at 0.
    """
    if schedule not in get_args(Falling):
        raise ValueError(f"`schedule` is {schedule!r}; give one of {', '.join(get_args(Falling))}.")
    for name, value in (("temperature", temperature), ("end", end)):
        if not 0 <= value < math.inf:
            raise ValueError(f"`{name}` ({value}) must be at least 0; 0 is gradient descent without noise.")
    if schedule == "constant":
        return lambda count: jnp.float32(temperature)
    if schedule == "log":
        return lambda count: temperature / jnp.log(count + 2.0)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` is {steps!r}; give a whole number of 1 or more.")
    if schedule == "geometric":
        if not (end > 0 and temperature > 0):
            raise ValueError(
                f"a geometric schedule from {temperature} to {end} has no ratio; give `temperature` and `end` above 0."
            )
        return lambda count: temperature * (end / temperature) ** (jnp.minimum(count, steps) / steps)
    if power <= 0:
        raise ValueError(f"`power` ({power}) must be above 0.")
    exponent = 1.0 if schedule == "linear" else power
    return lambda count: end + (temperature - end) * (1.0 - jnp.minimum(count, steps) / steps) ** exponent


def _at(value: Temperature, count: jax.Array) -> jax.Array:
    return jnp.asarray(value(count) if callable(value) else value, jnp.float32)


def _check_temperature(temperature: Temperature) -> None:
    if isinstance(temperature, (int, float)) and not 0 <= temperature < math.inf:
        raise ValueError(f"`temperature` ({temperature}) must be at least 0; 0 is gradient descent without noise.")


# ----- noise ----------------------------------------------------------------------------------------------------------


def _need_key(key: Key | None, name: str) -> Key:
    if key is None:
        raise ValueError(f"{name} draws noise at every step; call `update(..., key=)` with a new key each time.")
    return key


def _normal(key: Key, like: PyTree) -> PyTree:
    """N(0, I) of the tree's shapes, in float32 at least; in the tree's order.

    Small leaves share one draw, for which a key each would cost as much as the numbers; a large one has its own.
    """
    leaves, treedef = jax.tree.flatten(like)
    wide = [jnp.promote_types(leaf.dtype, jnp.float32) for leaf in leaves]
    groups: dict[Any, list[int]] = {}
    for index, (leaf, kind) in enumerate(zip(leaves, wide, strict=True)):
        groups.setdefault(kind if leaf.size <= SMALL else index, []).append(index)
    # A single group takes the key as it is.
    keys = [key] if len(groups) == 1 else jax.random.split(key, max(len(groups), 1))
    drawn: dict[int, jax.Array] = {}
    for own, group in zip(keys, groups.values(), strict=False):
        ends = np.cumsum([leaves[index].size for index in group])
        numbers = jax.random.normal(own, (int(ends[-1]),), wide[group[0]])
        for index, part in zip(group, jnp.split(numbers, ends[:-1]), strict=True):
            drawn[index] = part.reshape(leaves[index].shape)
    return treedef.unflatten([drawn[index] for index in range(len(leaves))])


def _cast(steps: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda step, leaf: step.astype(leaf.dtype), steps, like)


# ----- transformations: alone, in optax.chain, or as the registry's entries -------------------------------------------


class LangevinState(NamedTuple):
    count: jax.Array  # int32, steps done


def langevin(
    learning_rate: Temperature, temperature: Temperature = 1.0, *, num_examples: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Overdamped Langevin dynamics by Euler and Maruyama (ULA); SGLD where gradients are minibatches'.

    On f = x²/2 the stationary variance is T/(1 - h/2), not T: the step's own bias.

    Args:
      learning_rate: h, or a schedule of it.
      temperature: T, or a schedule of it.
      num_examples: N of the mean over examples that f is; the law is exp(-N f/T).

    Raises:
      ValueError: a temperature below 0, or `num_examples` below 1; in `update`, no `key`.
    """
    _check_temperature(temperature)
    _check_examples(num_examples)

    def init(params: Params) -> LangevinState:
        return LangevinState(jnp.zeros((), jnp.int32))

    @usual_rules()
    def update(
        updates: Params, state: LangevinState, params: Params | None = None, *, key: Key | None = None, **extra: Any
    ) -> tuple[Params, LangevinState]:
        noise = _normal(_need_key(key, "langevin"), updates)
        h, kelvin = _at(learning_rate, state.count), _at(temperature, state.count) / num_examples
        # Two roots: that of a product has an infinite slope in h at T = 0.
        size = jnp.sqrt(2 * h) * jnp.sqrt(kelvin)
        steps = jax.tree.map(lambda g, xi: -h * g + size * xi, updates, noise)
        return _cast(steps, updates), LangevinState(state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def sgld(
    learning_rate: Temperature, temperature: Temperature = 1.0, *, num_examples: int
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient Langevin dynamics (Welling and Teh 2011), for f a mean over N = `num_examples`."""
    return langevin(learning_rate, temperature, num_examples=num_examples)


class PreconditionedState(NamedTuple):
    count: jax.Array  # int32
    second: PyTree  # the running mean of squared gradients, float32 at least


def preconditioned_sgld(
    learning_rate: Temperature,
    temperature: Temperature = 1.0,
    *,
    num_examples: int = 1,
    decay: float = 0.99,
    eps: float = 1e-5,
) -> optax.GradientTransformationExtraArgs:
    """SGLD with RMSProp's preconditioner (Li et al. 2016), their ε being 2h and their Γ left out, as they do.

    Without Γ the law is that of exp(-N f/T) only where V moves more slowly than θ: with memories alike, the variance on
    a parabola came out 28% too large.

    V ← decay V + (1 - decay) ∇², from V = 0; G = 1/(eps + √V); θ ← θ - h G ∇ + √(2 h G T/N) ξ.

    Raises:
      ValueError: a temperature below 0, `decay` outside [0, 1), `eps` not above 0; in `update`, no `key`.
    """
    _check_temperature(temperature)
    _check_examples(num_examples)
    if not 0 <= decay < 1:
        raise ValueError(f"`decay` ({decay}) must be in [0, 1).")
    if eps <= 0:
        raise ValueError(f"`eps` ({eps}) must be above 0.")

    def init(params: Params) -> PreconditionedState:
        second = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params)
        return PreconditionedState(jnp.zeros((), jnp.int32), second)

    @usual_rules()
    def update(
        updates: Params,
        state: PreconditionedState,
        params: Params | None = None,
        *,
        key: Key | None = None,
        **extra: Any,
    ) -> tuple[Params, PreconditionedState]:
        noise = _normal(_need_key(key, "preconditioned_sgld"), updates)
        h, kelvin = _at(learning_rate, state.count), _at(temperature, state.count) / num_examples
        second = jax.tree.map(lambda v, g: decay * v + (1 - decay) * g.astype(v.dtype) ** 2, state.second, updates)
        # √V's slope at 0 is infinite; a gradient of 0 gives the smallest V.
        scale = jax.tree.map(lambda v: 1 / (eps + jnp.sqrt(jnp.where(v > 0, v, 0.0) + 1e-30)), second)
        size = jnp.sqrt(2 * h) * jnp.sqrt(kelvin)
        steps = jax.tree.map(lambda g, c, xi: -h * c * g + size * jnp.sqrt(c) * xi, updates, scale, noise)
        return _cast(steps, updates), PreconditionedState(state.count + 1, second)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


class InertialState(NamedTuple):
    count: jax.Array  # int32
    velocity: PyTree  # float32 at least


def inertial_langevin(
    learning_rate: Temperature, temperature: Temperature = 1.0, *, mass: float = 1.0, friction: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Langevin's own equation, m x'' = -γ x' - ∇f(x) + R(t) with <R(t) R(s)> = 2 γ T δ(t - s), at steps of time h.

    Under the force of a step's beginning, position and velocity are drawn from their exact joint Gaussian (Ermak and
    Buckholz 1980), so that any mass is stable where none is: as m → 0 a step becomes that of `langevin` with h/γ, and
    with the same key the same numbers. The stationary law of (x, x') as h → 0 is exp(-f/T) times N(0, T/m).

    Args:
      mass: m > 0. Steps differ from those without by the order of √(m T).
      friction: γ > 0.

    Raises:
      ValueError: mass or friction not above 0, a temperature below 0; in `update`, no `key`.
    """
    _check_temperature(temperature)
    for name, value in (("mass", mass), ("friction", friction)):
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` ({value}) must be above 0; without mass it is `langevin`.")

    def init(params: Params) -> InertialState:
        velocity = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params)
        return InertialState(jnp.zeros((), jnp.int32), velocity)

    @usual_rules()
    def update(
        updates: Params, state: InertialState, params: Params | None = None, *, key: Key | None = None, **extra: Any
    ) -> tuple[Params, InertialState]:
        key = _need_key(key, "inertial_langevin")
        # The first draw moves the position, as that of `langevin` does.
        place, speed = _normal(key, updates), _normal(jax.random.fold_in(key, 1), updates)
        h, kelvin = _at(learning_rate, state.count), _at(temperature, state.count)
        u = h * (friction / mass)
        kept, lost = jnp.exp(-u), -jnp.expm1(-u)
        spread = jnp.sqrt(_squared_spread(u))  # of the position, in units of √(T m)/γ
        shared = lost**2 / spread  # of the velocity, in units of √(T/m)
        rest = jnp.sqrt(jnp.maximum(lost * (1 + kept) - shared**2, 0.0))
        root = jnp.sqrt(kelvin)
        length, rate = math.sqrt(mass) / friction * root, root / math.sqrt(mass)

        def move(g: jax.Array, v: jax.Array, xi: jax.Array) -> jax.Array:
            return (mass / friction) * (lost * v - (u - lost) / friction * g) + length * spread * xi

        def speed_up(g: jax.Array, v: jax.Array, xi: jax.Array, zeta: jax.Array) -> jax.Array:
            return kept * v - lost / friction * g + rate * (shared * xi + rest * zeta)

        steps = jax.tree.map(move, updates, state.velocity, place)
        velocity = jax.tree.map(speed_up, updates, state.velocity, place, speed)
        return _cast(steps, updates), InertialState(state.count + 1, _cast(velocity, state.velocity))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _squared_spread(u: jax.Array) -> jax.Array:
    """2u - 3 + 4 e^-u - e^-2u, which is 2u³/3 near 0."""
    small = jnp.minimum(u, SERIES_BELOW)
    series = small**3 * (2 / 3 - small * (1 / 2 - small * (7 / 30 - small * (1 / 12 - small * 31 / 1260))))
    large = jnp.maximum(u, SERIES_BELOW)
    closed = 2 * large - 3 + 4 * jnp.exp(-large) - jnp.exp(-2 * large)
    return jnp.where(u < SERIES_BELOW, series, closed)


def _check_examples(num_examples: int) -> None:
    if isinstance(num_examples, bool) or not isinstance(num_examples, int) or num_examples < 1:
        raise ValueError(f"`num_examples` is {num_examples!r}; give a whole number of 1 or more.")


def run_chains(
    tx: optax.GradientTransformation,
    gradient: Callable[[Params, Key], Params],
    params: Params,
    key: Key,
    *,
    length: int,
    record: Callable[[Params], PyTree] | None = None,
) -> tuple[Params, PyTree]:
    """`length` steps from `params` under one scan; independent chains are further entries of the arrays.

    Args:
      gradient: of the parameters, chain by chain, and of a key for what is drawn.
      record: of the parameters after each step.

    Returns:
      The last parameters, and the records [length, ...].
    """
    tx = optax.with_extra_args_support(tx)

    def body(carry: tuple[Params, PyTree], step: jax.Array) -> tuple[tuple[Params, PyTree], PyTree]:
        params, state = carry
        noise_key, batch_key = jax.random.split(jax.random.fold_in(key, step))
        updates, state = tx.update(gradient(params, batch_key), state, params, key=noise_key)
        params = optax.apply_updates(params, updates)
        return (params, state), None if record is None else record(params)

    (params, _), records = jax.lax.scan(body, (params, tx.init(params)), jnp.arange(length))
    return params, records
