"""Rivals of the sampler with weights: plain Langevin chains, taken for draws from the law of the θ of the moment.

Their gradients are biased, by the chains' distance from the law and by the step, which nothing refuses or corrects.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.oracles import particles
from metaopt.oracles.particles import Look
from metaopt.registry import ORACLES
from metaopt.types import Estimate, Key, Law, Oracle, Params, Scalar, Task, TaskFamily


def _at(family: TaskFamily, task: Task, params: Params, who: str) -> tuple[Law, Look]:
    law = particles.law_of(family, values=False, slopes=True, who=who)
    particles.check_energy(law, params, task)
    return law, particles.look(law, params, task, slopes=True)


def _equal(x: jax.Array) -> jax.Array:
    return jnp.full(x.shape[1], 1 / x.shape[1], x.dtype)


def _health(x: jax.Array, step_size: float, gradients: int) -> dict[str, Scalar]:
    """As that of `sosmc`; chains have equal weights, so that nothing but numbers that are none tells a collapse."""
    sound = jnp.all(jnp.isfinite(x), axis=0)
    return {
        "ess": jnp.ones((), x.dtype),
        "max_weight": jnp.asarray(1 / x.shape[1]),
        "resampled": jnp.zeros((), x.dtype),
        "acceptance": jnp.ones((), x.dtype),
        "step_size": jnp.asarray(step_size),
        "energy_gradients": jnp.asarray(gradients),
        "nonfinite": jnp.mean((~sound).astype(x.dtype)),
        "collapsed": ~jnp.all(sound),
    }


def _walk(key: Key, look: Look, x: jax.Array, step_size: float, steps: int) -> jax.Array:
    """[dim, N] after so many Langevin steps."""

    def body(index: jax.Array, x: jax.Array) -> jax.Array:
        return particles.langevin_step(jax.random.fold_in(key, index), look(x), jnp.asarray(step_size, x.dtype))

    return jax.lax.fori_loop(0, steps, body, x)


@ORACLES.register
def impdiff(num_particles: int = 1000, step_size: float = 0.1, steps: int = 1, exact_value: bool = False) -> Oracle:
    """Particles of equal weight, moved by one Langevin step a θ (implicit diffusion: Marion et al. 2025).

    Where the law moves faster than the particles, their mean is of a law that was: limit cycles, unseen by the
    particles. `steps` energy gradients a particle and step. Health as that of `sosmc`.

    Args:
      num_particles: N.
      step_size: h of x - h∇U(x) + √(2h) ξ.
      steps: Langevin steps a θ.
      exact_value: with the value of the family's own loss; else the estimate has none.

    Raises:
      ValueError: settings out of range.
    """
    particles.check_settings(num_particles, step_size)
    _check_steps(steps=steps)

    def init(family: TaskFamily, task: Task, params: Params, key: Key) -> jax.Array:
        law, _ = _at(family, task, params, "impdiff")
        return particles.first_particles(family, law, task, params, key, num_particles)

    def estimate(family: TaskFamily, task: Task, params: Params, x: jax.Array, key: Key) -> tuple[Estimate, jax.Array]:
        params = particles.without_derivative(params)
        move_key, batch_key = jax.random.split(key)
        law, look = _at(family, task, params, "impdiff")
        x = _walk(move_key, look, x, step_size, steps)
        batch = family.batch(batch_key, task, family.data)
        info = _health(x, step_size, steps * num_particles)
        return particles.estimated(family, law, task, params, x, _equal(x), batch, exact_value, info), x

    return Oracle(init, estimate)


@ORACLES.register
def soul(
    num_samples: int = 5000,
    burn_in: int = 5000,
    num_chains: int = 1,
    step_size: float = 0.1,
    fresh: bool = True,
    exact_value: bool = False,
) -> Oracle:
    """A long Langevin chain at every θ, whose states after the burn-in count alike (De Bortoli et al. 2021).

    One chain sees one mode where modes are far apart: its gradient is then of that mode alone, and steady all the same.
    (burn_in + num_samples/num_chains) · num_chains energy gradients a step, one after another within a chain.

    Args:
      num_samples: states that count, of all chains together.
      burn_in: steps of each chain before them.
      num_chains: side by side; 1 in the paper.
      step_size: h of x - h∇U(x) + √(2h) ξ.
      fresh: chains begin anew at every θ; false: where those before ended, as in SOUL's own paper.
      exact_value: with the value of the family's own loss; else the estimate has none.

    Raises:
      ValueError: settings out of range.
    """
    particles.check_settings(num_samples, step_size, name="num_samples")
    _check_steps(num_chains=num_chains)
    if burn_in < 0:
        raise ValueError(f"`burn_in` ({burn_in}) must be at least 0.")
    if num_samples % num_chains:
        raise ValueError(f"`num_samples` ({num_samples}) must be a multiple of `num_chains` ({num_chains}).")
    length = num_samples // num_chains

    def init(family: TaskFamily, task: Task, params: Params, key: Key) -> jax.Array:
        law, _ = _at(family, task, params, "soul")
        return particles.first_particles(family, law, task, params, key, num_chains)

    def estimate(family: TaskFamily, task: Task, params: Params, x: jax.Array, key: Key) -> tuple[Estimate, jax.Array]:
        params = particles.without_derivative(params)
        start_key, burn_key, chain_key, batch_key = jax.random.split(key, 4)
        law, look = _at(family, task, params, "soul")
        if fresh:
            x = particles.first_particles(family, law, task, params, start_key, num_chains)
        h = jnp.asarray(step_size, x.dtype)

        def walk(key: Key, x: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
            # All of the noise at once: a chain of two coordinates is over before a key is hashed.
            noise = jnp.sqrt(2 * h) * jax.random.normal(key, (steps, *x.shape), x.dtype)

            def body(x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
                x = x - h * look(x).slope + noise
                return x, x

            return jax.lax.scan(body, x, noise)

        x, _ = walk(burn_key, x, burn_in)
        x, kept = walk(chain_key, x, length)
        kept = jnp.moveaxis(kept, 0, -1).reshape(law.dim, num_samples)
        batch = family.batch(batch_key, task, family.data)
        info = _health(kept, step_size, (burn_in + length) * num_chains)
        return particles.estimated(family, law, task, params, kept, _equal(kept), batch, exact_value, info), x

    return Oracle(init, estimate)


class Replay(NamedTuple):
    """Chains that are kept, and which of them is next."""

    x: jax.Array  # [dim, replay]
    next: jax.Array  # [] int32


@ORACLES.register
def pcd(
    num_particles: int = 250,
    steps: int = 80,
    step_size: float = 0.01,
    replay: int = 20_000,
    fresh: float = 0.05,
    exact_value: bool = False,
) -> Oracle:
    """Persistent contrastive divergence: chains from a replay buffer, a few of them anew, for some steps at every θ.

    Tieleman 2008, with the buffer of Du and Mordatch 2019. The buffer is gone through in turn, so that every
    chain is as old as the others. `steps` energy gradients a particle and step. Health as that of `sosmc`.

    Args:
      num_particles: chains a step.
      steps: Langevin steps of each.
      step_size: h of x - h∇U(x) + √(2h) ξ.
      replay: chains kept, a multiple of num_particles; the same number is plain persistent contrastive divergence.
      fresh: share of a step's chains that begin anew.
      exact_value: with the value of the family's own loss; else the estimate has none.

    Raises:
      ValueError: settings out of range.
    """
    particles.check_settings(num_particles, step_size)
    _check_steps(steps=steps)
    if replay < num_particles or replay % num_particles:
        near = max(1, round(replay / num_particles)) * num_particles
        raise ValueError(f"`replay` ({replay}) must be a multiple of `num_particles` ({num_particles}); try {near}.")
    if not 0 <= fresh <= 1:
        raise ValueError(f"`fresh` ({fresh}) is a share of the chains, from 0 to 1.")

    def init(family: TaskFamily, task: Task, params: Params, key: Key) -> Replay:
        law, _ = _at(family, task, params, "pcd")
        x = particles.first_particles(family, law, task, params, key, replay)
        return Replay(x, jnp.zeros((), jnp.int32))

    def estimate(family: TaskFamily, task: Task, params: Params, state: Replay, key: Key) -> tuple[Estimate, Replay]:
        params = particles.without_derivative(params)
        anew_key, start_key, move_key, batch_key = jax.random.split(key, 4)
        law, look = _at(family, task, params, "pcd")
        x = jax.lax.dynamic_slice_in_dim(state.x, state.next, num_particles, axis=1)
        begun = particles.first_particles(family, law, task, params, start_key, num_particles)
        anew = jax.random.bernoulli(anew_key, float(fresh), (num_particles,))
        x = _walk(move_key, look, jnp.where(anew, begun, x), step_size, steps)
        kept = jax.lax.dynamic_update_slice_in_dim(state.x, x, state.next, axis=1)
        batch = family.batch(batch_key, task, family.data)
        info = _health(x, step_size, steps * num_particles)
        found = particles.estimated(family, law, task, params, x, _equal(x), batch, exact_value, info)
        return found, Replay(kept, (state.next + num_particles) % replay)

    return Oracle(init, estimate)


def _check_steps(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"`{name}` ({value}) must be at least 1.")
