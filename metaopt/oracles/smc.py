"""Gradients under a law that moves with θ, by a sequential Monte Carlo sampler (Cuin et al. 2026, arXiv 2601.22003).

min f(θ), ∇f = E[H_θ(X)] under π_θ = exp(-U_θ)/Z_θ. N weighted particles follow π_θ from one θ to the next; what they
were is what they cost: one round of energy gradients a step, and no inner chain that has to settle.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.oracles import particles
from metaopt.oracles.particles import Look, Particles, Resampling
from metaopt.registry import ORACLES
from metaopt.types import Estimate, Key, Oracle, Params, Task, TaskFamily

Kernel = Literal["ula", "mala", "random_walk", "hmc"]
Adapt = Literal["ess", "acceptance", "none"]
# Of accepted proposals, where a kernel moves furthest (Roberts and Rosenthal 1998, Beskos et al. 2013).
ACCEPTANCE = {"mala": 0.574, "random_walk": 0.234, "hmc": 0.651}
LONGER_ABOVE = 0.95  # of N effective particles


class SMCState(NamedTuple):
    """What follows the law: everything is of the last θ, whose energies and slopes are kept for the next step."""

    particles: Particles
    log_weights: jax.Array  # [N] the largest is 0
    step_size: jax.Array  # [] h


@ORACLES.register
def sosmc(
    kernel: Kernel = "ula",
    num_particles: int = 1000,
    step_size: float = 0.1,
    min_step_size: float = 0.001,
    max_step_size: float = 0.99,
    adapt: Adapt = "ess",
    resampling: Resampling = "systematic",
    resample_below: float = 0.9,
    leaps: int = 5,
    exact_value: bool = False,
) -> Oracle:
    """Particles with weights that follow the law of an energy from step to step: SOSMC.

    `ula` moves all by x' = x - h∇U_k(x) + √(2h) ξ and weighs them by π_{k+1}(x') L(x', x) / π_k(x) K(x, x'), K the move
    and L the move back at θ_{k+1}: nothing is refused, and any h is right, if not efficient. The others weigh by
    exp(U_k(x) - U_{k+1}(x)) and then move by a kernel that leaves π_{k+1} as it is, so that under a θ that rests the
    weights stay equal. Resampled, after the estimate, where fewer than `resample_below` N are effective.
    One energy gradient a particle and step; two under `mala`, `leaps` + 1 under `hmc`, none under `random_walk`.
    Consistent: the error of an estimate is O(N^-½). Health in the trace: `ess` and `max_weight` as shares, `resampled`,
    `acceptance`, `step_size`, `energy_gradients` (of one particle each), `nonfinite` (share of particles whose energy
    is no number; they have no weight) and `collapsed`, 1 where fewer than two particles are effective.

    Args:
      kernel: `ula`, `mala`, `random_walk` or `hmc`.
      num_particles: N.
      step_size: h, the first; a displacement of variance 2h under every kernel, and leapfrog steps of √(2h).
      min_step_size: h adapts from here
      max_step_size: to here.
      adapt: by a hundredth a step. `ess`: longer where .95 N are effective, as in the paper; `acceptance`: longer where
        more are accepted than is best for the kernel; `none`.
      resampling: `systematic`, `stratified`, `multinomial` or `residual`.
      resample_below: share of N; 0: never.
      leaps: leapfrog steps of a move of `hmc`.
      exact_value: with the value of the family's own loss, for what reads values; else the estimate has none.

    Raises:
      ValueError: settings out of range, or that do not go together.
    """
    particles.check_settings(num_particles, step_size, min_step_size, max_step_size)
    if adapt == "acceptance" and kernel not in ACCEPTANCE:
        raise ValueError("`adapt` is 'acceptance', and kernel ula accepts every move; take adapt=ess or kernel=mala.")
    if not 0 <= resample_below <= 1:
        raise ValueError(f"`resample_below` ({resample_below}) is a share of the particles, from 0 to 1.")
    if leaps < 1:
        raise ValueError(f"`leaps` ({leaps}) must be at least 1.")
    slopes = kernel != "random_walk"
    who = f"sosmc with kernel={kernel}"
    kernels = {"mala": particles.mala, "random_walk": particles.random_walk, "hmc": partial(particles.hmc, leaps=leaps)}
    spent = {"ula": 1, "mala": 2, "random_walk": 0, "hmc": 1 + leaps}[kernel]

    def at(family: TaskFamily, task: Task, params: Params) -> Look:
        law = particles.law_of(family, values=True, slopes=slopes, who=who)
        return particles.look(law, params, task, slopes=slopes)

    def init(family: TaskFamily, task: Task, params: Params, key: Key) -> SMCState:
        law = particles.law_of(family, values=True, slopes=slopes, who=who)
        particles.check_energy(law, params, task)
        x = particles.first_particles(family, law, task, params, key, num_particles)
        found = at(family, task, params)(x)
        return SMCState(found, jnp.zeros_like(found.energy), jnp.asarray(step_size, x.dtype))

    def estimate(
        family: TaskFamily, task: Task, params: Params, state: SMCState, key: Key
    ) -> tuple[Estimate, SMCState]:
        params = particles.without_derivative(params)
        move_key, resample_key, batch_key = jax.random.split(key, 3)
        before, log_weights, h = state
        look = at(family, task, params)
        acceptance = jnp.ones_like(h)
        if kernel == "ula":
            after = look(particles.langevin_step(move_key, before, h))
            gain = particles.langevin_log_ratio(before, after, h)
        else:
            here = look(before.x)
            gain = before.energy - here.energy
            after, acceptance = kernels[kernel](move_key, here, look, h)
        # A particle whose energy is no number counts for nothing, and the heaviest stands in its place: zero times nan
        # would be nan in every sum.
        sound = jnp.isfinite(gain) & jnp.isfinite(after.energy)
        log_weights = jnp.where(sound, log_weights + gain, -jnp.inf)
        log_weights = log_weights - jnp.max(log_weights)
        heaviest = jnp.argmax(log_weights)
        after = jax.tree.map(lambda leaf: jnp.where(sound, leaf, leaf[..., heaviest, None]), after)
        weights = particles.normalised(log_weights)
        ess = particles.effective_sample_size(weights) / num_particles
        law = particles.law_of(family, values=True, slopes=slopes, who=who)
        poor = ~(ess >= resample_below) if resample_below > 0 else jnp.zeros((), bool)
        info = {
            "ess": ess,
            "max_weight": jnp.max(weights),
            "resampled": poor,
            "acceptance": acceptance,
            "step_size": h,
            "energy_gradients": jnp.asarray(spent * num_particles),
            "nonfinite": jnp.mean((~sound).astype(h.dtype)),
            "collapsed": ~(ess * num_particles >= 2),
        }
        batch = family.batch(batch_key, task, family.data)
        found = particles.estimated(family, law, task, params, after.x, weights, batch, exact_value, info)
        after, log_weights = jax.lax.cond(
            poor,
            lambda: (
                particles.gather(particles.resample(resample_key, weights, resampling), after),
                jnp.zeros_like(log_weights),
            ),
            lambda: (after, log_weights),
        )
        if adapt == "ess":
            h = particles.adapted(h, ess >= LONGER_ABOVE, min_step_size, max_step_size)
        elif adapt == "acceptance":
            h = particles.adapted(h, acceptance > ACCEPTANCE[kernel], min_step_size, max_step_size)
        return found, SMCState(after, log_weights, h)

    return Oracle(init, estimate)
