"""How good a meta-gradient is on a frozen φ: samples of it, and their cosine, norm and noise against a reference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from metaopt.inner.devices import compiler_options
from metaopt.types import Families, Key, MetaGradient, MetaParams, Metrics

# A mean counts as resolved when its squared norm is this many standard errors above zero.
RESOLVED = 2.0
# For a reference, which is drawn until it is so: the cosines of all others lean on it.
CLEARLY = 3.0
# When a single life holds this share of the summed squared norms, the mean does not settle with more of them.
DOMINATED = 0.5
FLOATS = 5e7  # of the gradients that are held of one estimator
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
    return prepare_samples(estimator, meta_params, families, key, num_lives=num_lives, windows=windows)(0)


Sampler = Callable[[int], Samples]  # from the number of a batch; no two batches have a life in common


def prepare_samples(
    estimator: MetaGradient, meta_params: MetaParams, families: Families, key: Key, *, num_lives: int, windows: int
) -> Sampler:
    """`sample_gradients` in two: what compiles now, what runs later. Batch 0 are the first `num_lives` lives."""
    run = quick_jit(functools.partial(_sample, estimator, num_lives, windows), meta_params, families, key, np.int32(0))

    def sample(batch: int) -> Samples:
        found = jax.device_get(run(meta_params, families, key, np.int32(batch * num_lives)))
        gradient, alive = (np.asarray(part)[windows:] for part in found)
        return Samples(gradient.reshape(num_lives, windows, -1), alive.reshape(num_lives, windows))

    return sample


def draw(sample: Sampler, most: int) -> Samples:
    """1, 2, 4, ... batches, `most` of them at most, until their mean is clearly resolved or will not be.

    It will not be where derivatives explode: their squares then have no expectation that draws could settle.
    """
    batches = [sample(0)]
    most = min(most, max(1, int(FLOATS / batches[0].gradient.size)))
    while True:
        found = Samples(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))
        if len(batches) >= most or resolved_norm(found, CLEARLY) or dominated(found):
            return found
        batches += [sample(len(batches) + i) for i in range(min(len(batches), most - len(batches)))]


def _sample(
    estimator: MetaGradient,
    num_lives: int,
    windows: int,
    meta_params: MetaParams,
    families: Families,
    key: Key,
    before: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The life after `before` others and those that follow; the first of them is the one that is not counted."""

    def life_key(life: Any) -> Key:
        return jax.random.fold_in(key, before + life)

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
    """Compares an estimator with a reference, on the lives that both have task by task the same.

    Squared norms and inner products of expectations are taken over pairs of *different* lives, so that neither an
    estimator's own noise nor tasks in common count as agreement. Either may have more lives than the other. Standard
    errors by the jackknife over lives.
    """
    own, theirs = samples.gradient.astype(np.float64), reference.gradient.astype(np.float64).mean(axis=1)
    finite = np.asarray(np.isfinite(own).all(axis=2))
    good: np.ndarray = np.asarray(finite.all(axis=1))
    usable: np.ndarray = np.asarray(np.isfinite(theirs).all(axis=1))
    nonfinite = float(1 - finite.mean())
    if good.sum() < 3:
        return Quality(None, None, None, None, Measured(float("nan"), float("nan")), nonfinite)
    steps = own[good]
    lives = steps.mean(axis=1)
    square = _across(lives, lives)
    power = np.square(steps).sum(axis=2).mean(axis=1)  # [lives] mean ‖g‖²
    powers = np.append(power.mean(), (power.sum() - power) / (len(power) - 1))
    snr = _jackknife(np.maximum(square, 0) / np.maximum(powers - np.maximum(square, 0), 1e-300))
    norm = float(np.sqrt(square[0])) if _resolved(square) else None
    # Lives that only one of the two has finite are left out of both: they may be the hardest tasks.
    both = min(len(own), len(theirs))
    good[:both] &= usable[:both]
    usable[:both] &= good[:both]
    cosine = norm_ratio = one_step = None
    if good.sum() >= 3 and usable.sum() >= 3:
        steps, theirs = own[good], theirs[usable]
        shared = min(len(steps), len(theirs))
        lives = steps.mean(axis=1)
        square, theirs_square, product = _across(lives, lives), _across(theirs, theirs), _across(lives, theirs)
        # To leave out a life that a mean does not have changes nothing in it.
        square, theirs_square = (np.append(x, np.full(len(product) - len(x), x[0])) for x in (square, theirs_square))
        if _resolved(square) and _resolved(theirs_square):
            with np.errstate(invalid="ignore", divide="ignore"):
                cosine = _finite(_jackknife(product / np.sqrt(square * theirs_square)))
                norm_ratio = _finite(_jackknife(np.sqrt(square / theirs_square)))
        if _resolved(theirs_square):
            # A life is left out of the mean that it is compared with.
            others = np.repeat(theirs.mean(axis=0)[None], len(steps), axis=0)
            others[:shared] = (theirs.sum(axis=0) - theirs[:shared]) / (len(theirs) - 1)
            inner = np.einsum("lwp,lp->lw", steps, others)
            sizes = np.sqrt(np.square(steps).sum(axis=2) * theirs_square[0])
            one_step = float(np.mean(inner / np.maximum(sizes, 1e-300)))
    return Quality(cosine, one_step, norm, norm_ratio, snr, nonfinite)


def _across(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[1 + lives]: the mean of a_i·b_j over i ≠ j, for all lives and with each left out in turn.

    a [n, size] and b [m, size]: life i of both is the same; the longer of the two goes on with lives of its own.
    """
    n, m = len(a), len(b)
    shared = min(n, m)
    a_sum, b_sum = a.sum(axis=0), b.sum(axis=0)
    same = np.einsum("lp,lp->l", a[:shared], b[:shared])
    total, count = a_sum @ b_sum - same.sum(), n * m - shared
    # With a life go its own pairs, of which the one with itself was never counted.
    from_a, from_b = a @ b_sum, b @ a_sum
    from_a[:shared] -= same
    from_b[:shared] -= same
    gone, pairs = np.zeros(max(n, m)), np.zeros(max(n, m))
    gone[:n] += from_a
    gone[:m] += from_b
    pairs[:n] += m
    pairs[:m] += n
    pairs[:shared] -= 2
    return np.append(total / count, (total - gone) / (count - pairs))


def _jackknife(values: np.ndarray) -> Measured:
    """A figure [1 + lives] as `_across` lays it out, with its standard error."""
    left_out, number = values[1:], len(values) - 1
    return Measured(float(values[0]), float(np.sqrt((number - 1) * np.mean((left_out - left_out.mean()) ** 2))))


def _resolved(square: np.ndarray, margin: float = RESOLVED) -> bool:
    measured = _jackknife(square)
    return bool(measured.value > margin * measured.error and measured.value > 0)


def resolved_norm(samples: Samples, margin: float = RESOLVED) -> bool:
    """Whether the samples are enough to tell their mean from zero."""
    lives = _finite_lives(samples)
    return len(lives) >= 3 and _resolved(_across(lives, lives), margin)


def dominated(samples: Samples) -> bool:
    """Whether one life outweighs all others."""
    power = np.square(_finite_lives(samples)).sum(axis=1)
    return not len(power) or bool(power.max() > DOMINATED * power.sum())


def _finite_lives(samples: Samples) -> np.ndarray:
    lives = samples.gradient.astype(np.float64).mean(axis=1)
    return lives[np.isfinite(lives).all(axis=1)]


def _finite(measured: Measured) -> Measured | None:
    return measured if np.isfinite(measured.value) and np.isfinite(measured.error) else None


def clip_samples(samples: Samples, clips: Sequence[optax.GradientTransformation]) -> tuple[Samples, float]:
    """The samples after the run's clips, meta-step by meta-step, and the share of the finite ones that they change."""
    gradient = samples.gradient.reshape(-1, samples.gradient.shape[2])
    finite: np.ndarray = np.asarray(np.isfinite(gradient).all(axis=1))

    def meta_step(states: tuple[Any, ...], one: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, ...], Any]:
        value, usable = one
        after = []
        for clip, state in zip(clips, states, strict=True):
            value, state = clip.update(value, state, value)
            after.append(state)
        # As in training: what is not finite leaves the clips' averages as they were.
        kept = jax.tree.map(lambda new, old: jnp.where(usable, new, old), tuple(after), states)
        return kept, value

    start = tuple(clip.init(jnp.asarray(gradient[0])) for clip in clips)
    after = jax.lax.scan(meta_step, start, (jnp.asarray(gradient), jnp.asarray(finite)))[1]
    clipped = np.where(finite[:, None], np.asarray(after), gradient)
    share = float((clipped != gradient)[finite].any(axis=1).mean()) if finite.any() else 0.0
    return samples._replace(gradient=clipped.reshape(samples.gradient.shape)), share
