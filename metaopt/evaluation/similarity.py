"""Whether two laws of parameters say different things: the s-score.

    s(g1, g2) = ∫ g1(w) g2(w) dw / max_b ∫ g1(w - b) g2(w) dw

(Aduenko 2014): the density of the difference w2 - w1 at 0 over its largest, for independent w1 ~ g1 and w2 ~ g2. It is
1 for equal laws and also where one of them says little, which no distance between laws allows: a wide law contradicts
nothing. In float64 on the host, for variances may differ by 1e10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

SINGULAR = 1e-12  # the least eigenvalue of a correlation matrix that is inverted
FEWEST_POINTS, MOST_POINTS = 20, 200  # of each of two samples: a kernel estimate goes over all pairs
GROUPS = 10  # of the jackknife
STARTS, SHIFTS = 20, 50  # of the search for the mode


class Gaussian(NamedTuple):
    """N(mean, covariance); a covariance may be singular where the other law's is not."""

    mean: Any  # [dim], or a number
    covariance: Any  # [dim, dim], or a number


class Box(NamedTuple):
    """The uniform law; a width of 0 is a value that is known."""

    low: Any  # [dim], or a number
    high: Any  # [dim], or a number


class Samples(NamedTuple):
    """Draws from a law of which no more is known."""

    points: Any  # [points, dim]


class Score(NamedTuple):
    value: float
    error: float  # standard error of a kernel estimate, without the smoothing's bias; 0 of a closed form


Law = Gaussian | Box | Samples


def s_score(first: Law, second: Law) -> Score:
    """The s-score of two laws of one dimension; see `embedded` for models of different parameters.

    Closed forms: two Gaussians, exp(-½ Δᵀ(Σ1 + Σ2)⁻¹Δ); two boxes; a box and a Gaussian of uncorrelated coordinates.
    With samples: the density of the difference by normal kernels of Scott's width, on points drawn to their mean so
    that the covariance stays (West 1993), over its largest value, found by mean shift. Its error comes from a grouped
    jackknife.

    Raises:
      ValueError: different dimensions, covariances that are none or whose sum is singular, a box whose high is below
        its low, fewer than 20 points, a box beside correlated coordinates.
    """
    first, second = checked(first), checked(second)
    _check_dims(first, second)
    if isinstance(first, Samples) or isinstance(second, Samples):
        return _of_samples(first, second)
    if isinstance(first, Gaussian) and isinstance(second, Gaussian):
        return Score(float(np.exp(-0.5 * statistic(first, second))), 0.0)
    if isinstance(first, Box) and isinstance(second, Box):
        return Score(_of_boxes(first, second), 0.0)
    box, gaussian = (first, second) if isinstance(first, Box) else (second, first)
    assert isinstance(box, Box) and isinstance(gaussian, Gaussian)
    return Score(_of_box_and_gaussian(box, gaussian), 0.0)


def embedded(law: Law, coordinates: Sequence[int], dim: int) -> Law:
    """The law in a space of `dim` parameters, of which it has these; the others are 0, as a feature left out has it.

    Two models of different features are compared in the space of all of them.

    Raises:
      ValueError: coordinates that do not fit.
    """
    law, where = checked(law), np.asarray(coordinates, int)
    fits = len(where) == dim_of(law) and len(set(where.tolist())) == len(where)
    if not fits or not len(where) or where.min() < 0 or where.max() >= dim:
        raise ValueError(
            f"coordinates {where.tolist()} do not place {dim_of(law)} parameters among {dim}; give one for each, from "
            f"0 to {dim - 1} and none twice."
        )
    place = np.eye(dim)[where]  # [own, dim]
    if isinstance(law, Gaussian):
        return Gaussian(law.mean @ place, place.T @ law.covariance @ place)
    return type(law)(*(part @ place for part in law))


# ----- laws -----------------------------------------------------------------------------------------------------------


def checked(law: Law) -> Law:
    """The law in float64 arrays of full shape.

    Raises:
      ValueError: it is none, with the remedy.
    """
    if not isinstance(law, Gaussian | Box | Samples):
        raise ValueError(f"a {type(law).__name__} is no law; give a Gaussian, a Box or Samples.")
    parts = [np.asarray(part, np.float64) for part in law]
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError(f"a {type(law).__name__} holds numbers that are not finite; leave such runs out.")
    if isinstance(law, Samples):
        points = parts[0][:, None] if parts[0].ndim == 1 else parts[0]
        if points.ndim != 2 or len(points) < FEWEST_POINTS:
            raise ValueError(f"samples are of shape {list(points.shape)}; give [points, dim], {FEWEST_POINTS} or more.")
        return Samples(points)
    first = np.atleast_1d(parts[0])
    if isinstance(law, Box):
        second = np.broadcast_to(parts[1], first.shape)
        if first.ndim != 1 or np.any(second < first):
            raise ValueError(f"the box is from {first.tolist()} to {second.tolist()}; give low ≤ high, both [dim].")
        return Box(first, second)
    covariance = np.atleast_2d(parts[1])
    if first.ndim != 1 or covariance.shape != (len(first), len(first)):
        raise ValueError(
            f"mean {list(first.shape)} and covariance {list(covariance.shape)} do not fit; give [d], [d, d]."
        )
    size = np.sqrt(np.abs(np.diag(covariance)))
    scale = np.outer(size, size)
    whole = np.allclose(covariance, covariance.T, rtol=0, atol=1e-6 * (scale.max() or 1.0))
    relative = covariance / np.where(scale > 0, scale, 1.0)
    if not whole or np.linalg.eigvalsh((relative + relative.T) / 2).min() < -1e-6:
        raise ValueError(
            "a covariance is not symmetric with eigenvalues of 0 or more; take the inverse of the Hessian at a "
            "minimum, with a prior's precision or damping added where that is not positive."
        )
    return Gaussian(first, (covariance + covariance.T) / 2)


def dim_of(law: Law) -> int:
    """The number of parameters of a law that is `checked`."""
    return law.points.shape[1] if isinstance(law, Samples) else len(law[0])


def _check_dims(first: Law, second: Law) -> None:
    if dim_of(first) != dim_of(second):
        raise ValueError(
            f"the laws are of {dim_of(first)} and {dim_of(second)} parameters; put them into one space with `embedded`."
        )


def statistic(first: Gaussian, second: Gaussian) -> float:
    """-2 log s = Δᵀ(Σ1 + Σ2)⁻¹Δ, of laws that are `checked`.

    Raises:
      ValueError: different dimensions, a singular sum.
    """
    _check_dims(first, second)
    total = first.covariance + second.covariance
    size = np.sqrt(np.diag(total))
    if np.any(size == 0) or np.linalg.eigvalsh(total / np.outer(size, size)).min() < SINGULAR:
        raise ValueError(
            "the sum of two covariances is singular, and in some direction both laws are certain; leave out the "
            "parameters that both know, or add a prior's variance."
        )
    whitened = np.linalg.solve(np.linalg.cholesky(total / np.outer(size, size)), (first.mean - second.mean) / size)
    return float(whitened @ whitened)


def _of_boxes(first: Box, second: Box) -> float:
    """The difference's density is a product of trapezia: the overlap over the smaller width."""
    widths = np.minimum(first.high - first.low, second.high - second.low)
    overlap = np.minimum(first.high, second.high) - np.maximum(first.low, second.low)
    shares = np.where(widths > 0, overlap / np.where(widths > 0, widths, 1.0), overlap >= 0)
    return float(np.prod(np.clip(shares, 0.0, 1.0)))


def _of_box_and_gaussian(box: Box, gaussian: Gaussian) -> float:
    """Masses of the box where it is and where the Gaussian is centred on it, which is the most (Anderson 1955)."""
    variances = np.diag(gaussian.covariance)
    if np.any(gaussian.covariance != np.diag(variances)):
        raise ValueError("a box beside correlated coordinates has no closed form; give Samples of one of the two.")
    if np.any((variances == 0) & (box.high == box.low)):
        raise ValueError("both laws are certain of a parameter; leave it out.")
    deviation = np.sqrt(np.where(variances > 0, variances, 1.0))
    low, high = (box.low - gaussian.mean) / deviation, (box.high - gaussian.mean) / deviation
    half, centre = (high - low) / 2, np.abs(low + high) / 2
    mass = ndtr(half - centre) - ndtr(-half - centre)  # in the tail that has digits
    most = ndtr(half) - ndtr(-half)
    shares = np.where(half > 0, mass / np.where(most > 0, most, 1.0), np.exp(-(centre**2) / 2))
    inside = (box.low <= gaussian.mean) & (gaussian.mean <= box.high)
    return float(np.prod(np.clip(np.where(variances > 0, shares, inside), 0.0, 1.0)))


def _of_samples(first: Law, second: Law) -> Score:
    draws = [_points(law, seed) for seed, law in enumerate((first, second))]
    kernel = sum(each.kernel for each in draws)
    size = np.sqrt(np.diag(kernel))
    if np.any(size == 0) or np.linalg.eigvalsh(kernel / np.outer(size, size)).min() < SINGULAR:
        raise ValueError(
            "samples do not vary in some direction in either law; leave out the parameters that both know."
        )
    whiten = np.linalg.inv(np.linalg.cholesky(kernel))
    one, two = (each.points @ whiten.T for each in draws)
    apart = two[None] - one[:, None]  # [points, points, dim]

    def ratio(rows: np.ndarray, columns: np.ndarray, at: np.ndarray | None, shifts: int) -> tuple[float, np.ndarray]:
        points = apart[np.ix_(rows, columns)].reshape(-1, apart.shape[-1])

        def weights(at: np.ndarray) -> np.ndarray:
            return np.exp(-0.5 * np.sum((points - at) ** 2, axis=1))

        starts = [points.mean(0), np.median(points, axis=0), *points[:: max(1, len(points) // STARTS)]]
        found = starts[int(np.argmax([weights(start).mean() for start in starts]))] if at is None else at
        for _ in range(shifts):
            here = weights(found)
            found = here @ points / max(here.sum(), 1e-300)
        zero = weights(np.zeros_like(found)).mean()
        return float(zero / max(zero, weights(found).mean(), 1e-300)), found

    every = [np.arange(len(one)), np.arange(len(two))]
    value, mode = ratio(every[0], every[1], None, SHIFTS)
    # Each law's groups are left out in turn; a law that is known has one point, and no error.
    variance = 0.0
    for side in (0, 1):
        if len(every[side]) == 1:
            continue
        left = []
        for group in range(GROUPS):
            kept = list(every)
            kept[side] = every[side][every[side] % GROUPS != group]
            left.append(ratio(kept[0], kept[1], mode, 5)[0])
        variance += (GROUPS - 1) * float(np.var(left))
    return Score(value, float(np.sqrt(variance)))


class _Points(NamedTuple):
    points: np.ndarray  # [points, dim]
    kernel: np.ndarray  # [dim, dim] covariance around each


def _points(law: Law, seed: int) -> _Points:
    """A sample's points with the kernels around them; a Gaussian is one kernel, and needs no draws."""
    if isinstance(law, Gaussian):
        return _Points(law.mean[None], law.covariance)
    if isinstance(law, Box):
        points = np.random.default_rng(seed).uniform(law.low, law.high, size=(MOST_POINTS, len(law.low)))
    else:
        points = law.points[np.linspace(0, len(law.points) - 1, min(MOST_POINTS, len(law.points))).astype(int)]
    width = len(points) ** (-1 / (points.shape[1] + 4))
    covariance = np.atleast_2d(np.cov(points.T))
    mean = points.mean(0)
    return _Points(mean + np.sqrt(1 - width**2) * (points - mean), width**2 * covariance)
