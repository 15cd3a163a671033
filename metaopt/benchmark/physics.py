"""Equations and simulations: physics-informed networks, and control through a simulation."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metaopt.benchmark.layers import forward, mlp
from metaopt.benchmark.parts import exact, on_draws
from metaopt.types import Key, Params, Scalar, Task, TaskFamily

# ----- physics-informed networks (Raissi et al. 2019), on all points at once ------------------------------------------

WAVES = 4  # of the solution


def _second(u: Callable[[jax.Array], jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """u, u', u'' at a number, forwards."""

    def slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(u, (x,), (jnp.ones_like(x),))

    (value, first), (_, second) = jax.jvp(slope, (x,), (jnp.ones_like(x),))
    return value, first, second


def pinn_poisson() -> TaskFamily:
    """u'' = f on [0, 1], u = 0 at both ends, for f of four sines."""

    def loss(params: Params, task: jax.Array) -> Scalar:
        x = jnp.linspace(0.0, 1.0, 64)
        waves = jnp.pi * jnp.arange(1, WAVES + 1)
        force = -jnp.sin(x[:, None] * waves) @ (waves * task)

        def u(x: jax.Array) -> jax.Array:
            return x * (1 - x) * forward(params, 2 * x[None] - 1, jnp.tanh)[0]

        curved = jax.vmap(lambda x: _second(u, x)[2])(x)
        return jnp.mean((curved - force) ** 2) / jnp.mean(force**2)

    return exact(loss, lambda key, task: mlp(key, 1, 24, 24, 1), lambda key: jax.random.normal(key, (WAVES,)))


def pinn_heat() -> TaskFamily:
    """u_t = u_xx/10 on [0, 1]², u = 0 at the ends, from a sum of sines that is held to by a penalty."""

    def loss(params: Params, task: jax.Array) -> Scalar:
        def start(x: jax.Array) -> jax.Array:
            return jnp.sin(jnp.pi * x[:, None] * jnp.arange(1, WAVES + 1)) @ task / WAVES

        def u(x: jax.Array, t: jax.Array) -> jax.Array:
            return 4 * x * (1 - x) * forward(params, jnp.stack([2 * x - 1, 2 * t - 1]), jnp.tanh)[0]

        def residual(x: jax.Array, t: jax.Array) -> jax.Array:
            _, in_time = jax.jvp(lambda t: u(x, t), (t,), (jnp.ones_like(t),))
            return in_time - 0.1 * _second(lambda x: u(x, t), x)[2]

        x, t = (each.reshape(-1) for each in jnp.meshgrid(jnp.linspace(0.0, 1.0, 12), jnp.linspace(0.0, 1.0, 10)))
        line = jnp.linspace(0.0, 1.0, 24)
        at_start = jax.vmap(u, (0, None))(line, jnp.zeros(())) - start(line)
        return jnp.mean(jax.vmap(residual)(x, t) ** 2) + 10 * jnp.mean(at_start**2)

    return exact(loss, lambda key, task: mlp(key, 2, 24, 24, 1), lambda key: jax.random.normal(key, (WAVES,)))


def pinn_burgers() -> TaskFamily:
    """u_t + u u_x = ν u_xx on [-1, 1] x [0, 1] from -sin πx, which steepens; ν of the task is from 0.02 to 0.1."""

    def loss(params: Params, task: jax.Array) -> Scalar:
        def u(x: jax.Array, t: jax.Array) -> jax.Array:
            return -jnp.sin(jnp.pi * x) + t * (1 - x**2) * forward(params, jnp.stack([x, 2 * t - 1]), jnp.tanh)[0]

        def residual(x: jax.Array, t: jax.Array) -> jax.Array:
            _, in_time = jax.jvp(lambda t: u(x, t), (t,), (jnp.ones_like(t),))
            value, first, second = _second(lambda x: u(x, t), x)
            return in_time + value * first - task * second

        x, t = (each.reshape(-1) for each in jnp.meshgrid(jnp.linspace(-1.0, 1.0, 24), jnp.linspace(0.0, 1.0, 6)))
        return jnp.mean(jax.vmap(residual)(x, t) ** 2)

    def sample(key: Key) -> jax.Array:
        return 0.02 * 5 ** jax.random.uniform(key, ())

    return exact(loss, lambda key, task: mlp(key, 2, 20, 20, 20, 1), sample)


# ----- control through a simulation -----------------------------------------------------------------------------------


def balance() -> TaskFamily:
    """A small network that balances a pole on a cart (Barto et al. 1983) from new starts at each step."""

    def draw(key: Key, task: Task, num: int) -> jax.Array:
        return jnp.array([0.5, 0.5, 0.4, 0.5]) * jax.random.uniform(key, (num, 4), minval=-1.0)

    def loss(params: Params, task: Task, starts: jax.Array) -> Scalar:
        def step(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            x, speed, angle, turn = state.T
            force = 10 * jnp.tanh(forward(params, state, jnp.tanh)[:, 0])
            sine, cosine = jnp.sin(angle), jnp.cos(angle)
            pushed = (force + 0.05 * turn**2 * sine) / 1.1
            turning = (9.8 * sine - cosine * pushed) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
            moving = pushed - 0.05 * turning * cosine / 1.1
            state = state + 0.04 * jnp.stack([speed, moving, turn, turning], axis=1)
            return state, (1 - jnp.cos(state[:, 2])) + 0.1 * state[:, 0] ** 2 / (1 + state[:, 0] ** 2)

        return jnp.mean(jax.lax.scan(step, starts, None, length=40)[1])

    return on_draws(loss, lambda key, task: mlp(key, 4, 16, 1), draw, 32, 512)


def swing_up() -> TaskFamily:
    """Torques of 60 moments that bring a pendulum to stand, at the price of their squares; open loop."""

    def sample(key: Key) -> jax.Array:
        return 0.3 * jax.random.normal(key, (2,))

    def loss(params: Params, task: jax.Array) -> Scalar:
        def step(state: tuple[jax.Array, jax.Array], torque: jax.Array):
            angle, turn = state
            turn = turn + 0.08 * (torque - 3 * jnp.sin(angle) - 0.05 * turn)
            angle = angle + 0.08 * turn
            return (angle, turn), 1 + jnp.cos(angle)

        (angle, turn), heights = jax.lax.scan(step, (task[0], task[1]), params)
        at_end = 1 + jnp.cos(angle) + 0.1 * turn**2
        return at_end + 0.2 * jnp.mean(heights) + 0.02 * jnp.mean(params**2)

    return exact(loss, lambda key, task: 0.1 * jax.random.normal(key, (60,)), sample)


def landing() -> TaskFamily:
    """A network that lands a craft of two thrusts softly from new places in the wind of the task."""

    def draw(key: Key, task: Task, num: int) -> jax.Array:
        low, high = jnp.array([-2.0, 2.0, -1.0, -1.0]), jnp.array([2.0, 4.0, 1.0, 0.5])
        return low + (high - low) * jax.random.uniform(key, (num, 4))

    def loss(params: Params, task: jax.Array, starts: jax.Array) -> Scalar:
        def step(state: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
            place, speed = state[:, :2], state[:, 2:]
            told = jnp.concatenate([state, jnp.full_like(state[:, :1], 1.0) * time], axis=1)
            thrust = 3 * jnp.tanh(forward(params, told, jax.nn.relu))
            speed = speed + 0.1 * (thrust + task - jnp.array([0.0, 1.0]) - 0.2 * speed * jnp.abs(speed))
            return jnp.concatenate([place + 0.1 * speed, speed], axis=1), jnp.mean(thrust**2)

        last, spent = jax.lax.scan(step, starts, jnp.linspace(1.0, 0.0, 30))
        return jnp.mean(jnp.sum(last**2, axis=1)) + 0.02 * jnp.mean(spent)

    return on_draws(
        loss,
        lambda key, task: mlp(key, 5, 24, 24, 2),
        draw,
        32,
        512,
        sample=lambda key: 0.3 * jax.random.normal(key, (2,)),
    )
