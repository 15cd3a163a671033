"""Classic test functions, deterministic: sums of squares, valleys, and arrangements of particles."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.benchmark.layers import normals
from metaopt.benchmark.parts import exact
from metaopt.types import Key, Params, Scalar, Task, TaskFamily

# ----- sums of squares (Moré, Garbow and Hillstrom 1981); starts around the standard ones -----------------------------


def powell() -> TaskFamily:
    """Powell's singular function in 20 variables, whose Hessian at the minimum has no inverse."""

    def loss(params: Params, task: Task) -> Scalar:
        a, b, c, d = params
        return jnp.mean((a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4)

    return exact(loss, _around([3.0, -1.0, 0.0, 1.0], 5))


def wood() -> TaskFamily:
    """Wood's function in 20 variables, with a flat place that looks like the minimum."""

    def loss(params: Params, task: Task) -> Scalar:
        a, b, c, d = params
        valleys = 100 * (b - a**2) ** 2 + (1 - a) ** 2 + 90 * (d - c**2) ** 2 + (1 - c) ** 2
        # 10.1 ((b - 1)² + (d - 1)²) + 19.8 (b - 1)(d - 1), as squares
        return jnp.mean(valleys + 9.9 * (b + d - 2) ** 2 + 0.2 * ((b - 1) ** 2 + (d - 1) ** 2))

    return exact(loss, _around([-3.0, -1.0, -3.0, -1.0], 5))


def beale() -> TaskFamily:
    """Beale's function in 20 variables: steep walls around a plain."""

    def loss(params: Params, task: Task) -> Scalar:
        x, y = params
        return jnp.mean(sum((c - x * (1 - y**k)) ** 2 for k, c in ((1, 1.5), (2, 2.25), (3, 2.625))))

    return exact(loss, _around([1.0, 1.0], 10))


def exponentials() -> TaskFamily:
    """Heights and rates of five decays from 40 values of their sum, as in Osborne's functions: ill-conditioned."""

    def sample(key: Key) -> jax.Array:
        heights, rates = jax.random.uniform(key, (2, 5), minval=0.5, maxval=1.5)
        return _decays(heights, 2.0 ** jnp.arange(-2.0, 3.0) * rates, _times())

    def init(key: Key, task: jax.Array) -> Params:
        return {"heights": jnp.ones(5), "log_rates": 0.7 * jax.random.normal(key, (5,))}

    def loss(params: Params, task: jax.Array) -> Scalar:
        return jnp.mean((_decays(params["heights"], jnp.exp(params["log_rates"]), _times()) - task) ** 2)

    return exact(loss, init, sample)


def _times() -> jax.Array:
    return jnp.linspace(0.0, 4.0, 40)


def _decays(heights: jax.Array, rates: jax.Array, times: jax.Array) -> jax.Array:
    return jnp.exp(-times[:, None] * rates) @ heights


def _around(start: list[float], copies: int):
    """A start [variables, copies], each within a tenth of the standard one's size or 0.1."""

    def init(key: Key, task: Task) -> Params:
        centre = jnp.asarray(start, jnp.float32)[:, None]
        return centre + 0.1 * jnp.maximum(jnp.abs(centre), 1.0) * jax.random.normal(key, (len(start), copies))

    return init


# ----- valleys --------------------------------------------------------------------------------------------------------


def dixon_price() -> TaskFamily:
    """(x_1 - 1)² + Σ_i i (2x_i² - x_{i-1})² in 20 variables, started in [-2, 2]."""

    def loss(params: Params, task: Task) -> Scalar:
        steps = jnp.arange(2, 21) * (2 * params[1:] ** 2 - params[:-1]) ** 2
        return (params[0] - 1) ** 2 + jnp.sum(steps)

    return exact(loss, lambda key, task: jax.random.uniform(key, (20,), minval=-2.0, maxval=2.0))


def zakharov() -> TaskFamily:
    """Σ x_i² + s² + s⁴, s = Σ i x_i/2, in 10 variables, shifted by the task: a condition number of 1e6 at the start."""

    def loss(params: Params, task: jax.Array) -> Scalar:
        x = params - task
        s = 0.5 * jnp.sum(jnp.arange(1, 11) * x)
        return jnp.sum(x**2) + s**2 + s**4

    def init(key: Key, task: jax.Array) -> Params:
        return jax.random.uniform(key, (10,), minval=-1.0, maxval=2.0)

    return exact(loss, init, lambda key: 0.3 * jax.random.normal(key, (10,)))


class _Turned(NamedTuple):
    rotation: jax.Array  # [dim, dim]
    shift: jax.Array  # [dim]


def different_powers() -> TaskFamily:
    """Σ |z_i|^p_i, p from 2 to 6, z = R(x - s), in 20 variables: convex, and ever worse conditioned (BBOB's f14)."""

    def sample(key: Key) -> _Turned:
        turn_key, shift_key = jax.random.split(key)
        return _Turned(jax.random.orthogonal(turn_key, 20), jax.random.normal(shift_key, (20,)))

    def loss(params: Params, task: _Turned) -> Scalar:
        z = task.rotation @ (params - task.shift)
        return jnp.sum((z**2 + 1e-12) ** jnp.linspace(1.0, 3.0, 20))

    return exact(loss, lambda key, task: jax.random.normal(key, (20,)), sample)


# ----- particles ------------------------------------------------------------------------------------------------------


def lennard_jones_13() -> TaskFamily:
    """Energy an atom of 13 atoms that attract each other; best known: an icosahedron, -44.3268 in all."""
    return _cluster(13, -44.326801)


def lennard_jones_38() -> TaskFamily:
    """38 atoms, with two funnels; best known: -173.9284 (Wales and Doye 1997)."""
    return _cluster(38, -173.928427)


def _cluster(atoms: int, lowest: float) -> TaskFamily:
    def init(key: Key, task: Task) -> Params:
        """Some places of a cubic lattice, each a little off."""
        place_key, off_key = jax.random.split(key)
        side = 3 if atoms < 27 else 4
        lattice = jnp.stack(jnp.meshgrid(*[1.15 * jnp.arange(float(side))] * 3), axis=-1).reshape(-1, 3)
        # The nearest to the middle, so that the atoms hold together, but for a draw.
        middle = 1.15 * (side - 1) / 2
        far = jnp.sum((lattice - middle) ** 2, axis=1) + jax.random.uniform(place_key, (side**3,))
        chosen = lattice[jnp.argsort(far)[:atoms]] - middle
        return chosen + 0.03 * jax.random.normal(off_key, (atoms, 3))

    def loss(params: Params, task: Task) -> Scalar:
        squares = jnp.sum((params[:, None] - params) ** 2, axis=-1) + jnp.eye(atoms)
        sixth = 1 / squares**3
        return jnp.sum(jnp.triu(4 * (sixth**2 - sixth), 1)) / atoms

    return exact(loss, init, lower_bound=(lowest - 1e-4) / atoms)


def thomson() -> TaskFamily:
    """Energy an electron of 20 on a sphere, each a direction of any length (Thomson 1904); best known: 150.8816."""

    def loss(params: Params, task: Task) -> Scalar:
        places = params * jax.lax.rsqrt(jnp.sum(params**2, axis=1, keepdims=True))
        squares = jnp.sum((places[:, None] - places) ** 2, axis=-1) + jnp.eye(20)
        return jnp.sum(jnp.triu(jax.lax.rsqrt(squares), 1)) / 20

    return exact(loss, lambda key, task: normals(key, (20, 3))[0], lower_bound=(150.881568 - 1e-3) / 20)
