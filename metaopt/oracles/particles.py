"""What particle methods share: energies at particles, Markov kernels, resampling, and the size of a step.

Particles lie side by side, x [dim, N], so that arithmetic runs along rows however few coordinates there are. All
kernels take the step h in Langevin's convention, a displacement of variance 2h.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.types import Batch, Data, Estimate, Key, Law, Params, Scalar, Task, TaskFamily

Resampling = Literal["systematic", "stratified", "multinomial", "residual"]


class Particles(NamedTuple):
    """Positions, and what is known of one energy there."""

    x: jax.Array  # [dim, N]
    energy: jax.Array  # [N] U_θ(x); zeros where U has no value
    slope: Any  # [dim, N] ∇U_θ(x); () for kernels that do without


FEW = 8  # coordinates, by each of which the energy of more particles than that is differentiated on its own
Look = Callable[[jax.Array], Particles]  # [dim, N] -> the energy and its slope there


def law_of(family: TaskFamily, *, values: bool, slopes: bool, who: str) -> Law:
    """The family's law, if it has what an oracle needs of it.

    Raises:
      ValueError: there is none, or it lacks values or slopes.
    """
    law = family.law
    if law is None:
        raise ValueError(
            f"{who} follows the law of an energy, and {family.name or 'this family'} states none; take a family with "
            "one, such as tuned_mixture, or the oracle minibatch."
        )
    if values and law.energy is None:
        raise ValueError(f"{who} needs the energy's values, and {family.name} gives its slope alone; take impdiff.")
    if slopes and not law.smooth:
        raise ValueError(
            f"{who} needs the energy's gradient in x, and that of {family.name} has none; take sosmc with "
            "kernel=random_walk."
        )
    if slopes and law.energy is None and law.slope is None:
        raise ValueError(f"{family.name} gives neither energy nor slope; state one of them in its `law`.")
    return law


def _apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a program of its own, on CPUs, whose fusions take anew what they read: a proposal with all of its
    random numbers half a dozen times. Optimisation barriers are gone before XLA fuses there."""
    try:
        from jax.experimental.xla_metadata import set_xla_metadata
    except ImportError:  # it is experimental, and without it the same is only slower
        return function
    if jax.default_backend() != "cpu":
        return function
    called = jax.jit(function)

    def call(*args: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return called(*args)

    return call


def _joined(energy: Callable[..., Scalar], params: Params, task: Task, *coordinates: jax.Array) -> Scalar:
    return energy(params, task, jnp.stack(coordinates))


def look(law: Law, params: Params, task: Task, *, slopes: bool) -> Look:
    """Energies, and slopes where a kernel needs them, at all particles; once each."""

    energy, slope = law.energy, law.slope

    def one(x: jax.Array) -> tuple[Any, Any]:
        if energy is None:
            assert slope is not None
            return jnp.zeros((), x.dtype), slope(params, task, x)
        if not slopes:
            return energy(params, task, x), ()
        if slope is not None:
            return energy(params, task, x), slope(params, task, x)
        return jax.value_and_grad(energy, argnums=2)(params, task, x)

    # By each coordinate, so that every number is a row of N: a gradient of [dim, N] would take U anew in each.
    def along(*coordinates: jax.Array) -> tuple[Any, Any]:
        assert energy is not None
        at = partial(_joined, energy, params, task)
        return jax.value_and_grad(at, tuple(range(law.dim)))(*coordinates)

    by_rows = energy is not None and slope is None and slopes and law.dim <= FEW

    def everywhere(x: jax.Array) -> Particles:
        if not by_rows or x.shape[1] <= FEW:
            return Particles(x, *jax.vmap(one, in_axes=1, out_axes=(0, 1))(x))
        found, rows = jax.vmap(along)(*x)
        return Particles(x, found, jnp.stack(rows))

    return everywhere


def check_energy(law: Law, params: Params, task: Task) -> None:
    """Refuses an energy that is no number; from shapes alone.

    Raises:
      ValueError: with the shape that it has.
    """
    if law.energy is None:
        return
    found = jax.eval_shape(law.energy, params, task, jax.ShapeDtypeStruct((law.dim,), jnp.float32))
    shape = getattr(found, "shape", None)
    if shape != ():
        said = f"of shape {shape}" if shape is not None else "without a value"
        raise ValueError(f"the energy is {said}, and has to be one number at one x [{law.dim}]; sum it up.")


@jax.custom_jvp
def without_derivative(params: Params) -> Params:
    """θ as a constant of an estimate; whoever asks for the estimate's own derivative is told that there is none."""
    return params


@without_derivative.defjvp
def _without_derivative_jvp(primals: tuple[Params], tangents: tuple[Params]) -> tuple[Params, Params]:
    raise ValueError(
        "an estimate from particles has no derivative in θ, since they are drawn and resampled; set the estimator's "
        "`second_order` to false."
    )


def estimated(
    family: TaskFamily,
    law: Law,
    task: Task,
    params: Params,
    x: jax.Array,
    weights: jax.Array,
    batch: Batch,
    exact_value: bool,
    info: dict[str, Scalar],
) -> Estimate:
    """∇f by weighted particles. Its value is the family's own, never the particles', which their error would please."""
    gradient = jax.grad(law.surrogate)(params, task, x.T, weights, batch)
    value = family.loss(params, task, batch) if exact_value else None
    return Estimate(gradient, value, {name: jnp.asarray(number, weights.dtype) for name, number in info.items()})


# ----- kernels --------------------------------------------------------------------------------------------------------


def langevin_step(key: Key, at: Particles, step_size: jax.Array) -> jax.Array:
    """[dim, N] x - h ∇U(x) + √(2h) ξ."""
    noise = jax.random.normal(key, at.x.shape, at.x.dtype)
    return at.x - step_size * at.slope + jnp.sqrt(2 * step_size) * noise


def langevin_log_ratio(before: Particles, after: Particles, step_size: jax.Array) -> jax.Array:
    """[N] log of exp(-U'(x')) N(x; x' - h∇U'(x'), 2h) over exp(-U(x)) N(x'; x - h∇U(x), 2h).

    Metropolis's ratio of a Langevin proposal where both energies are one, and a sampler's weight where U' is the next.
    Expanded, so that no |ξ|² has to cancel: a(x, x') - a'(x', x), a = U(x) + ½⟨x' - x, ∇U(x)⟩ + (h/4)|∇U(x)|².
    """
    moved = after.x - before.x
    ahead = before.energy + jnp.sum((0.5 * moved + 0.25 * step_size * before.slope) * before.slope, axis=0)
    back = after.energy + jnp.sum((-0.5 * moved + 0.25 * step_size * after.slope) * after.slope, axis=0)
    return ahead - back


def _accepted(key: Key, log_ratio: jax.Array, at: Particles, proposed: Particles) -> tuple[Particles, jax.Array]:
    """Those that pass Metropolis's test, and their share; a proposal whose energy is not finite never does."""
    log_uniform = jnp.log1p(-jax.random.uniform(key, log_ratio.shape, log_ratio.dtype))
    taken = (log_uniform < log_ratio) & jnp.isfinite(proposed.energy)
    chosen = _apart(lambda taken, new, old: jax.tree.map(lambda new, old: jnp.where(taken, new, old), new, old))
    return chosen(taken, proposed, at), jnp.mean(taken.astype(log_ratio.dtype))


def mala(key: Key, at: Particles, look: Look, step_size: jax.Array) -> tuple[Particles, jax.Array]:
    """A Langevin proposal, accepted or refused (Roberts and Tweedie 1996); the particles moved, and the share taken."""
    propose_key, accept_key = jax.random.split(key)
    proposed = look(langevin_step(propose_key, at, step_size))
    return _accepted(accept_key, langevin_log_ratio(at, proposed, step_size), at, proposed)


def random_walk(key: Key, at: Particles, look: Look, step_size: jax.Array) -> tuple[Particles, jax.Array]:
    """Metropolis's random walk with proposals x + √(2h) ξ."""
    propose_key, accept_key = jax.random.split(key)
    noise = jax.random.normal(propose_key, at.x.shape, at.x.dtype)
    proposed = look(at.x + jnp.sqrt(2 * step_size) * noise)
    return _accepted(accept_key, at.energy - proposed.energy, at, proposed)


def hmc(key: Key, at: Particles, look: Look, step_size: jax.Array, leaps: int) -> tuple[Particles, jax.Array]:
    """Hamiltonian Monte Carlo with unit masses; leapfrog steps of √(2h), so that a single one is MALA's proposal."""
    momentum_key, accept_key = jax.random.split(key)
    first = jax.random.normal(momentum_key, at.x.shape, at.x.dtype)
    dt = jnp.sqrt(2 * step_size)

    def leap(_: jax.Array, carry: tuple[Particles, jax.Array]) -> tuple[Particles, jax.Array]:
        at, momentum = carry
        half = momentum - 0.5 * dt * at.slope
        moved = look(at.x + dt * half)
        return moved, half - 0.5 * dt * moved.slope

    end, last = jax.lax.fori_loop(0, leaps, leap, (at, first))
    kinetic = 0.5 * jnp.sum((first - last) * (first + last), axis=0)
    return _accepted(accept_key, at.energy - end.energy + kinetic, at, end)


# ----- weights --------------------------------------------------------------------------------------------------------


def normalised(log_weights: jax.Array) -> jax.Array:
    """[N] weights of sum 1; nan where none is above 0."""
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    return weights / jnp.sum(weights)


def effective_sample_size(weights: jax.Array) -> jax.Array:
    """(Σ w)² / Σ w²: N where all are equal, 1 where one has all (Kong, Liu and Wong 1994)."""
    return jnp.sum(weights) ** 2 / jnp.sum(weights**2)


def resample(key: Key, weights: jax.Array, scheme: Resampling) -> jax.Array:
    """[N] int32 which particle each of N new ones is a copy of, in rising order; i is expected N w_i times.

    Systematic: one uniform for all points of a comb; stratified: one for each tooth; multinomial: N uniforms; residual:
    ⌊N w_i⌋ copies for certain and multinomial ones by what is left (Douc, Cappé and Moulines 2005). The first two are
    linear in N: particles are counted into their places, not searched for.
    """
    number, dtype = weights.shape[0], weights.dtype
    total = jnp.cumsum(weights)
    comb = number * (total / total[-1])
    certain = jnp.zeros(number, jnp.int32)
    if scheme == "systematic":
        ends = jnp.ceil(comb - jax.random.uniform(key, (), dtype)).astype(jnp.int32)
    elif scheme == "stratified":
        tooth = jnp.floor(comb).astype(jnp.int32)
        within = jax.random.uniform(key, (number,), dtype).at[tooth].get(mode="clip")
        ends = tooth + (within < comb - tooth)
    else:
        points, left = jax.random.uniform(key, (number,), dtype), weights
        if scheme == "residual":
            certain = jnp.floor(number * weights).astype(jnp.int32)
            left = jnp.maximum(number * weights - certain, 0.0)
            drawn = jnp.arange(number) < number - jnp.sum(certain)
            points = jnp.where(drawn, points, 2.0)  # beyond all of them
        upto = jnp.cumsum(left)
        ends = jnp.searchsorted(jnp.sort(points), upto / jnp.where(upto[-1] > 0, upto[-1], 1.0)).astype(jnp.int32)
    ends = jnp.clip(ends + jnp.cumsum(certain), 0, number)
    # Parent of j: how many particles have all of their copies before j.
    return jnp.cumsum(jnp.zeros(number, jnp.int32).at[ends].add(1, mode="drop"))


def gather(parents: jax.Array, at: Particles) -> Particles:
    """Copies of the particles."""
    return jax.tree.map(lambda leaf: leaf.at[..., parents].get(mode="clip"), at)


def adapted(step_size: jax.Array, longer: jax.Array, least: float, most: float) -> jax.Array:
    """The step a hundredth longer or shorter, within its bounds."""
    return jnp.where(longer, jnp.minimum(1.01 * step_size, most), jnp.maximum(step_size / 1.01, least))


def first_particles(family: TaskFamily, law: Law, task: Task, params: Params, key: Key, number: int) -> jax.Array:
    """[dim, N] drawn from where the law begins."""
    keys = jax.random.split(key, number)
    return jax.vmap(lambda key: law.start(key, params, task, family.data), out_axes=1)(keys)


def check_settings(
    number: int,
    step_size: float,
    least: float | None = None,
    most: float | None = None,
    *,
    name: str = "num_particles",
) -> None:
    """Refuses what no particles can move by.

    Raises:
      ValueError: names the setting, its value and the legal range.
    """
    if number < 2:
        raise ValueError(f"`{name}` ({number}) must be at least 2; try 1000.")
    least, most = step_size if least is None else least, step_size if most is None else most
    for setting, value in (("step_size", step_size), ("min_step_size", least), ("max_step_size", most)):
        if not 0 < value < math.inf:
            raise ValueError(f"`{setting}` ({value}) must be above 0; try 0.1.")
    if not least <= step_size <= most:
        raise ValueError(
            f"`step_size` ({step_size}) must lie between `min_step_size` ({least}) and `max_step_size` ({most})."
        )


def family_of(law: Law, *, batch: Callable[[Key, Task, Data], Batch] | None = None, data: Data = ()) -> TaskFamily:
    """A family of one task, (), around a law of one's own, for an oracle by itself: its values are nan, not known.

    Args:
      batch: (key, task, data) -> what the law's surrogate is given beside its particles; none unless given.
      data: arrays for `batch`.
    """
    draw = batch or (lambda key, task, data: ())
    return TaskFamily(
        data=data,
        sample=lambda key, data: (),
        init=lambda key, task: (),
        batch=draw,
        loss=lambda params, task, batch: jnp.full((), jnp.nan),
        eval_batch=lambda task, data, split: draw(jax.random.key(0), task, data),
        name="this law",
        lower_bound=None,
        law=law,
    )
