"""Functions of many minima, in 1 to 100 dimensions, shifted, scaled and rotated at random.

f(x) = F(R (x - s)/c) with F of known global minimum z*, a shift s, a scale c and a rotation R of the task. Parameters
are one array [dim]; the families are deterministic, and state the value of F at z* as their `lower_bound`. The metric
`global` is 1 where the run ended in the cell of the global minimum; evaluations report its share of the tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.registry import TASKS
from metaopt.tasks.settings import check_count, check_option
from metaopt.types import Batch, Data, Key, Params, Scalar, Split, TaskFamily

Start = Literal["uniform", "normal", "wrong_basin"]
MOST_DIMENSIONS = 100


class MultimodalTask(NamedTuple):
    shift: jax.Array  # [dim] where F's origin lies
    scale: jax.Array  # how wide F is stretched
    rotation: Any  # [dim, dim] orthogonal, or () for none


class Landscape(NamedTuple):
    """F of z [dim] with what is known of it."""

    value: Callable[[jax.Array], jax.Array]
    lowest: float  # F at its global minimum
    inside: Callable[[jax.Array], jax.Array] | None  # whether z lies in the cell of that minimum; None: all are global
    radius: float  # starts: z uniform in [-radius, radius]^dim, or of standard deviation radius/2
    wrong: float | None = None  # every coordinate of the worst minimum, where it is known


def _family(
    make: Callable[[int], Landscape], dim: int, start: Start, shift: float, stretch: float, rotate: bool
) -> TaskFamily:
    check_count("dim", dim, most=MOST_DIMENSIONS)
    check_option("start", start, get_args(Start))
    if not 0 <= shift < math.inf:
        raise ValueError(f"`shift` ({shift}) must be at least 0, in radii of the starts.")
    if not 1 <= stretch < math.inf:
        raise ValueError(f"`stretch` ({stretch}) must be at least 1; 1 leaves all tasks of one scale.")
    landscape = make(dim)
    radius, wrong = landscape.radius, landscape.wrong
    if start == "wrong_basin" and wrong is None:
        raise ValueError("`start` is 'wrong_basin', and this function has no second-best minimum that stands out; "
                         "give uniform or normal.")  # fmt: skip

    def sample(key: Key, data: Data) -> MultimodalTask:
        shift_key, scale_key, rotation_key = jax.random.split(key, 3)
        scale = jnp.exp(jax.random.uniform(scale_key, (), minval=-1.0) * math.log(stretch))
        offset = scale * radius * shift * jax.random.uniform(shift_key, (dim,), minval=-1.0)
        rotation = jax.random.orthogonal(rotation_key, dim) if rotate else ()
        return MultimodalTask(offset, scale, rotation)

    def inner(params: Params, task: MultimodalTask) -> jax.Array:
        z = (params - task.shift) / task.scale
        return jnp.matmul(task.rotation, z, precision="highest") if rotate else z

    def init(key: Key, task: MultimodalTask) -> Params:
        if start == "uniform":
            return task.scale * jax.random.uniform(key, (dim,), minval=-radius, maxval=radius)
        if start == "normal":
            return task.scale * radius / 2 * jax.random.normal(key, (dim,))
        assert wrong is not None
        z = jnp.full((dim,), wrong, jnp.float32)
        return task.shift + task.scale * (jnp.matmul(z, task.rotation, precision="highest") if rotate else z)

    def batch(key: Key, task: MultimodalTask, data: Data) -> Batch:
        return ()

    def loss(params: Params, task: MultimodalTask, batch: Batch) -> Scalar:
        return landscape.value(inner(params, task))

    def eval_batch(task: MultimodalTask, data: Data, split: Split) -> Batch:
        return ()

    def metrics(params: Params, task: MultimodalTask, batch: Batch) -> dict[str, Scalar]:
        assert landscape.inside is not None
        return {"global": landscape.inside(inner(params, task)).astype(jnp.float32)}

    known = landscape.inside is not None
    return TaskFamily(
        data=(),
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics if known else None,
        events=("global",) if known else (),
        lower_bound=landscape.lowest,
    )


def _stationary(*coefficients: float) -> np.ndarray:
    """The real roots of a polynomial, rising, after a step of Newton's."""
    roots = np.roots(coefficients)
    roots = np.sort(roots[np.abs(roots.imag) < 1e-9].real)
    return roots - np.polyval(coefficients, roots) / np.polyval(np.polyder(coefficients), roots)


def _below(barrier: float) -> Callable[[jax.Array], jax.Array]:
    """A sum over coordinates whose global minimum lies below the barrier: its basin is a box."""
    return lambda z: jnp.all(z < barrier)


# ----- the functions --------------------------------------------------------------------------------------------------


@TASKS.register
def double_well(
    dim: int = 1, start: Start = "uniform", shift: float = 0.0, stretch: float = 1.0, rotate: bool = False
) -> TaskFamily:
    """F(z) = Σ_i (z_i² - 1)²: 2^D minima, all of them global and 0, with barriers of 1. Starts in [-2, 2]^D.

    Args:
      dim: D, 1 to 100.
      start: `uniform`, `normal` (standard deviation 1), or `wrong_basin`, where there is one.
      shift: s is uniform in ± this many radii of the starts, times c.
      stretch: log c is uniform in ± the logarithm of this.
      rotate: by a random orthogonal matrix.

    Raises:
      ValueError: settings out of range.
    """

    def make(dim: int) -> Landscape:
        return Landscape(lambda z: jnp.sum((z**2 - 1) ** 2), 0.0, None, 2.0)

    return _family(make, dim, start, shift, stretch, rotate)


@TASKS.register
def tilted_double_well(
    dim: int = 1,
    tilt: float = 0.3,
    start: Start = "uniform",
    shift: float = 0.0,
    stretch: float = 1.0,
    rotate: bool = False,
) -> TaskFamily:
    """F(z) = Σ_i (z_i² - 1)² + tilt z_i: the global minimum near -1, the wrong wells near 1.

    At tilt 0.3 the wrong well is 0.717 deep. Further options as those of `double_well`.

    Raises:
      ValueError: settings out of range; a tilt that leaves no second well, 8/√27 = 1.54 and above.
    """
    if not 0 < tilt < 8 / math.sqrt(27):
        raise ValueError(f"`tilt` ({tilt}) must be above 0 and below 1.5396, where the second well ends.")
    lowest, barrier, wrong = _stationary(4.0, 0.0, -4.0, tilt)

    def make(dim: int) -> Landscape:
        def value(z: jax.Array) -> jax.Array:
            return jnp.sum((z**2 - 1) ** 2 + tilt * z)

        depth = dim * float((lowest**2 - 1) ** 2 + tilt * lowest)
        return Landscape(value, depth, _below(float(barrier)), 2.0, float(wrong))

    return _family(make, dim, start, shift, stretch, rotate)


@TASKS.register
def rastrigin(
    dim: int = 2, start: Start = "uniform", shift: float = 0.0, stretch: float = 1.0, rotate: bool = False
) -> TaskFamily:
    """F(z) = 10 D + Σ_i z_i² - 10 cos 2πz_i: a minimum near every point of whole numbers, the global one 0 at 0.

    Starts in [-5.12, 5.12]^D; the global basin is |z_i| < 0.503. Further options as those of `double_well`.
    """

    def make(dim: int) -> Landscape:
        def value(z: jax.Array) -> jax.Array:
            return jnp.sum(z**2 + 20 * jnp.sin(jnp.pi * z) ** 2)  # 10 - 10 cos, without its cancellation near 0

        return Landscape(value, 0.0, lambda z: jnp.all(jnp.abs(z) < RASTRIGIN_BARRIER), 5.12)

    return _family(make, dim, start, shift, stretch, rotate)


RASTRIGIN_BARRIER = 0.5025460  # z + 10π sin 2πz = 0


@TASKS.register
def ackley(
    dim: int = 2, start: Start = "uniform", shift: float = 0.0, stretch: float = 1.0, rotate: bool = False
) -> TaskFamily:
    """F(z) = 20 - 20 exp(-0.2 √(mean z²)) + e - exp(mean cos 2πz): 0 at 0, local minima near whole numbers.

    Starts in [-5, 5]^D; `global`: 0 is the nearest point of whole numbers. Further options as those of `double_well`.
    """

    def make(dim: int) -> Landscape:
        def value(z: jax.Array) -> jax.Array:
            square = jnp.mean(z**2)
            # No slope at 0, where the root's is infinite.
            root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
            return -20 * jnp.expm1(-0.2 * root) - math.e * jnp.expm1(-2 * jnp.mean(jnp.sin(jnp.pi * z) ** 2))

        return Landscape(value, 0.0, lambda z: jnp.all(jnp.abs(z) < 0.5), 5.0)

    return _family(make, dim, start, shift, stretch, rotate)


@TASKS.register
def styblinski_tang(
    dim: int = 2, start: Start = "uniform", shift: float = 0.0, stretch: float = 1.0, rotate: bool = False
) -> TaskFamily:
    """F(z) = ½ Σ_i z_i⁴ - 16 z_i² + 5 z_i: 2^D minima, the global one -39.16617 D at z_i = -2.9035.

    Starts in [-5, 5]^D; the global basin is z_i < 0.1567. Further options as those of `double_well`.
    """
    lowest, barrier, wrong = _stationary(2.0, 0.0, -16.0, 2.5)

    def make(dim: int) -> Landscape:
        def value(z: jax.Array) -> jax.Array:
            return jnp.sum(0.5 * z**4 - 8 * z**2 + 2.5 * z)

        depth = dim * float(0.5 * lowest**4 - 8 * lowest**2 + 2.5 * lowest)
        return Landscape(value, depth, _below(float(barrier)), 5.0, float(wrong))

    return _family(make, dim, start, shift, stretch, rotate)


@TASKS.register
def griewank(
    dim: int = 2, start: Start = "uniform", shift: float = 0.0, stretch: float = 1.0, rotate: bool = False
) -> TaskFamily:
    """F(z) = 1 + Σ_i z_i²/4000 - Π_i cos(z_i/√i): 0 at 0, local minima about π√i apart.

    Starts in [-600, 600]^D; `global`: every cosine is within its first quarter wave. Further options as those of
    `double_well`.
    """

    def make(dim: int) -> Landscape:
        def value(z: jax.Array) -> jax.Array:
            return 1 + jnp.sum(z**2) / 4000 - jnp.prod(jnp.cos(z / roots()))

        def roots() -> jax.Array:
            return jnp.sqrt(jnp.arange(1, dim + 1, dtype=jnp.float32))

        return Landscape(value, 0.0, lambda z: jnp.all(jnp.abs(z) < jnp.pi / 2 * roots()), 600.0)

    return _family(make, dim, start, shift, stretch, rotate)
