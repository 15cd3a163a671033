"""How good a meta-gradient is on a frozen φ: samples of it, and their cosine, norm and noise against a reference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from metaopt.batching import compiler_options
from metaopt.types import Families, Key, MetaGradient, MetaParams, Metrics

# A mean counts as resolved when its squared norm is this many standard errors above zero.
RESOLVED = 2.0
WINDOW_STREAM = 0x77696E  # windows after a life's first draw their keys from here


class Samples(NamedTuple):
    """Meta-gradients on one φ; a life is one set of tasks from reset to horizon, cut into windows."""

    gradient: np.ndarray  # [lives, windows, size of φ] float32, one a meta-step
    alive: np.ndarray  # [lives, windows] share of tasks


class Measured(NamedTuple):
    """A figure and its standard error."""

    value: float
    error: float


class Quality(NamedTuple):
    """Figures of one estimator; None where the samples do not resolve them."""

    cosine: Measured | None  # of its expectation with the reference's
    one_step_cosine: float | None  # of a single meta-step's gradient with the reference's expectation
    norm: float | None  # of its expectation
    norm_ratio: Measured | None  # to the reference's
    snr: Measured  # ‖mean‖² over the trace of the covariance, of one meta-step
    nonfinite: float  # share of meta-steps


# LLVM's dear passes take a quarter of the compilation of a program that runs for seconds, and gain nothing in it.
QUICKLY_COMPILED: dict[str, Any] = {"xla_llvm_disable_expensive_passes": True}


def quick_jit(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """Compiles for these arguments at once, in less time than `jax.jit` takes."""
    return jax.jit(function, compiler_options={**compiler_options(), **QUICKLY_COMPILED}).lower(*arguments).compile()


def sample_gradients(
    estimator: MetaGradient, meta_params: MetaParams, families: Families, key: Key, *, num_lives: int, windows: int
) -> Samples:
    """Meta-steps on a frozen φ, `num_lives` times `windows` of them.

    Life i = 1, 2, ... draws its tasks from `fold_in(key, i)`: estimators that are given the same key see the same
    tasks. Life 0 is not counted: it gives an estimator what it would remember of earlier meta-steps.
    """
    return prepare_samples(estimator, meta_params, families, key, num_lives=num_lives, windows=windows)()


def prepare_samples(
    estimator: MetaGradient, meta_params: MetaParams, families: Families, key: Key, *, num_lives: int, windows: int
) -> Callable[[], Samples]:
    """`sample_gradients` in two: what compiles now, what runs later."""
    run = quick_jit(functools.partial(_sample, estimator, num_lives, windows), meta_params, families, key)

    def sample() -> Samples:
        found = jax.device_get(run(meta_params, families, key))
        gradient, alive = (np.asarray(part)[windows:] for part in found)
        return Samples(gradient.reshape(num_lives, windows, -1), alive.reshape(num_lives, windows))

    return sample


def _sample(
    estimator: MetaGradient, num_lives: int, windows: int, meta_params: MetaParams, families: Families, key: Key
) -> tuple[jax.Array, jax.Array]:
    def life_key(life: Any) -> Key:
        return jax.random.fold_in(key, life)

    def meta_step(state: Any, index: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        first = life_key(index // windows)
        # A life's first window resets: its key decides the tasks, as `init`'s does for the very first.
        later = jax.random.fold_in(first, WINDOW_STREAM + index % windows)
        step_key = jax.lax.cond(index % windows == 0, lambda: first, lambda: later)
        metrics: Metrics
        gradient, state, metrics = estimator.estimate(step_key, meta_params, state, families)
        return state, (ravel_pytree(gradient)[0].astype(jnp.float32), metrics["alive"])

    state = estimator.init(life_key(0), meta_params, families)
    return jax.lax.scan(meta_step, state, jnp.arange((num_lives + 1) * windows))[1]


def assess(samples: Samples, reference: Samples) -> Quality:
    """Compares an estimator with a reference on the lives that both have, task by task the same.

    Squared norms and inner products of expectations are taken over pairs of *different* lives, so that neither an
    estimator's own noise nor tasks in common count as agreement. Standard errors by the jackknife over lives.
    """
    number = min(len(samples.gradient), len(reference.gradient))
    own = samples.gradient[:number].astype(np.float64)
    finite: np.ndarray = np.asarray(np.isfinite(samples.gradient).all(axis=2))
    good = np.asarray(finite[:number].all(axis=1)) & np.isfinite(reference.gradient[:number]).all(axis=(1, 2))
    nonfinite = float(1 - finite.mean())
    if good.sum() < 3:
        return Quality(None, None, None, None, Measured(float("nan"), float("nan")), nonfinite)
    steps = own[good]
    lives, theirs = steps.mean(axis=1), reference.gradient[:number][good].astype(np.float64).mean(axis=1)
    square, theirs_square, product = (_across(a, b) for a, b in ((lives, lives), (theirs, theirs), (lives, theirs)))
    power = np.square(steps).sum(axis=2).mean(axis=1)  # [lives] mean ‖g‖²
    powers = np.append(power.mean(), (power.sum() - power) / (len(power) - 1))
    snr = _jackknife(np.maximum(square, 0) / np.maximum(powers - np.maximum(square, 0), 1e-300))
    cosine = norm_ratio = one_step = None
    if _resolved(square) and _resolved(theirs_square):
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = _finite(_jackknife(product / np.sqrt(square * theirs_square)))
            norm_ratio = _finite(_jackknife(np.sqrt(square / theirs_square)))
    if _resolved(theirs_square):
        # A life is left out of the mean that it is compared with.
        others = (theirs.sum(axis=0) - theirs) / (len(theirs) - 1)
        inner = np.einsum("lwp,lp->lw", steps, others)
        sizes = np.sqrt(np.square(steps).sum(axis=2) * theirs_square[0])
        one_step = float(np.mean(inner / np.maximum(sizes, 1e-300)))
    norm = float(np.sqrt(square[0])) if _resolved(square) else None
    return Quality(cosine, one_step, norm, norm_ratio, snr, nonfinite)


def _across(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[1 + lives]: the mean of a_i·b_j over i ≠ j, for all lives and with each left out in turn; a, b [lives, n]."""
    gram = a @ b.T
    number, diagonal = len(gram), np.diagonal(gram)
    total = gram.sum() - diagonal.sum()
    without = total - (gram.sum(axis=0) + gram.sum(axis=1) - 2 * diagonal)
    return np.append(total / (number * (number - 1)), without / ((number - 1) * (number - 2)))


def _jackknife(values: np.ndarray) -> Measured:
    """A figure [1 + lives] as `_across` lays it out, with its standard error."""
    left_out, number = values[1:], len(values) - 1
    return Measured(float(values[0]), float(np.sqrt((number - 1) * np.mean((left_out - left_out.mean()) ** 2))))


def _resolved(square: np.ndarray) -> bool:
    measured = _jackknife(square)
    return bool(measured.value > RESOLVED * measured.error and measured.value > 0)


def resolved_norm(samples: Samples) -> bool:
    """Whether the samples are enough to tell their mean from zero."""
    lives = samples.gradient.astype(np.float64).mean(axis=1)
    lives = lives[np.isfinite(lives).all(axis=1)]
    return len(lives) >= 3 and _resolved(_across(lives, lives))


def _finite(measured: Measured) -> Measured | None:
    return measured if np.isfinite(measured.value) and np.isfinite(measured.error) else None


def clipped_share(samples: Samples, *, clip_norm: float | None, clip_value: float | None) -> float:
    """The share of finite meta-gradients that the run's clipping (by value, then by norm) would change."""
    gradient = samples.gradient.reshape(-1, samples.gradient.shape[2])
    gradient = gradient[np.isfinite(gradient).all(axis=1)].astype(np.float64)
    if not len(gradient):
        return 0.0
    clipped = np.zeros(len(gradient), bool)
    if clip_value is not None:
        clipped |= (np.abs(gradient) > clip_value).any(axis=1)
        gradient = np.clip(gradient, -clip_value, clip_value)
    if clip_norm is not None:
        clipped |= np.linalg.norm(gradient, axis=1) > clip_norm
    return float(clipped.mean())
