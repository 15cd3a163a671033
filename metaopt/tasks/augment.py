"""Augmentations: a task family seen through another one, which draws something more with every task.

Random rescaling and a convex companion (Lv et al. 2017, arXiv 1703.03633), minibatches of several sizes, and rounding
to bfloat16. Each is a few functions around the family's own; `_wrapped` puts them in their places.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.numbers import divisors
from metaopt.tasks.settings import check_count
from metaopt.types import Batch, Data, Estimate, Key, Law, Oracle, OracleState, Params, Scalar, Split, Task, TaskFamily


class AugmentedTask(NamedTuple):
    task: Task  # the family's own
    drawn: Any  # what the augmentation drew with it


class Training(NamedTuple):
    """A batch to train on. Batches of `eval_batch` come without it."""

    batch: Batch


class Augmentation(NamedTuple):
    """What one augmentation does; every function is written for one task."""

    draw: Callable[[Key, Task], Any]  # -> `AugmentedTask.drawn`
    inside: Callable[[Params, Any], Params] = lambda params, drawn: params  # -> the family's own parameters
    start: Callable[[Params, Any], Params] = lambda params, drawn: params  # θ_0 of the family -> that of the whole
    batch: Callable[[Batch, Any], Batch] = lambda batch, drawn: batch
    # The gradient at the family's own parameters -> that of the whole, without the companion's part.
    outside: Callable[[Params, Any], Params] = lambda gradient, drawn: gradient
    beside: Callable[[Params, Any], Scalar] | None = None  # added to f where it is trained on, not where it is judged


def _wrapped(family: TaskFamily, augmentation: Augmentation, name: str) -> TaskFamily:
    """The family under an augmentation. Data, splits and `eval_batch` pass through; so does an oracle of its own, which
    sees the family's own task and parameters."""
    draw, inside, start, resize, outside, beside = augmentation

    def sample(key: Key, data: Data) -> AugmentedTask:
        task_key, own_key = jax.random.split(key)
        task = family.sample(task_key, data)
        return AugmentedTask(task, draw(own_key, task))

    def init(key: Key, task: AugmentedTask) -> Params:
        return start(family.init(key, task.task), task.drawn)

    def batch(key: Key, task: AugmentedTask, data: Data) -> Batch:
        drawn = resize(family.batch(key, task.task, data), task.drawn)
        return drawn if beside is None else Training(drawn)

    def loss(params: Params, task: AugmentedTask, batch: Batch, **hyper: Any) -> Scalar:
        own = inside(params, task.drawn)
        if beside is None or not isinstance(batch, Training):
            return family.loss(own, task.task, batch, **hyper)
        value = family.loss(own, task.task, batch.batch, **hyper)
        return value + beside(params, task.drawn).astype(value.dtype)

    def eval_batch(task: AugmentedTask, data: Data, split: Split) -> Batch:
        return family.eval_batch(task.task, data, split)

    def metrics(params: Params, task: AugmentedTask, batch: Batch) -> dict[str, Scalar]:
        assert family.metrics is not None
        plain = batch.batch if beside is not None and isinstance(batch, Training) else batch
        return family.metrics(inside(params, task.drawn), task.task, plain)

    def validation_loss(params: Params, task: AugmentedTask, batch: Batch) -> Scalar:
        plain = batch.batch if beside is not None and isinstance(batch, Training) else batch
        return family.judged_loss(inside(params, task.drawn), task.task, plain)

    if family.hyper and family.oracle is not None:
        raise ValueError(
            "an augmentation hides the hyperparameters of the loss from an oracle; leave the one or the other out."
        )
    bound: Any = family.lower_bound
    return dataclasses.replace(
        family,
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics if family.metrics else None,
        validation_loss=validation_loss if family.validation_loss else None,
        oracle=None if family.oracle is None else _wrapped_oracle(family, family.oracle, augmentation),
        name=f"{family.name} {name}",
        lower_bound=(lambda task: bound(task.task)) if callable(bound) else bound,
        law=None if family.law is None else _wrapped_law(family.law, augmentation),
    )


def _wrapped_law(law: Law, augmentation: Augmentation) -> Law:
    """The same law, of the whole's parameters."""
    _, inside, _, _, _, beside = augmentation

    def own(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if function is None:
            return None
        return lambda params, task, x: function(inside(params, task.drawn), task.task, x)

    def start(key: Key, params: Params, task: AugmentedTask, data: Data) -> jax.Array:
        return law.start(key, inside(params, task.drawn), task.task, data)

    def surrogate(params: Params, task: AugmentedTask, x: jax.Array, weights: jax.Array, batch: Batch) -> Scalar:
        plain = batch.batch if isinstance(batch, Training) else batch
        value = law.surrogate(inside(params, task.drawn), task.task, x, weights, plain)
        return value if beside is None else value + beside(params, task.drawn).astype(value.dtype)

    return law._replace(energy=own(law.energy), slope=own(law.slope), start=start, surrogate=surrogate)


def _wrapped_oracle(family: TaskFamily, oracle: Oracle, augmentation: Augmentation) -> Oracle:
    _, inside, _, _, outside, beside = augmentation

    def own(outer: TaskFamily) -> TaskFamily:
        return dataclasses.replace(family, data=outer.data)  # the traced data, not the closure's

    def init(outer: TaskFamily, task: AugmentedTask, params: Params, key: Key) -> OracleState:
        return oracle.init(own(outer), task.task, inside(params, task.drawn), key)

    def estimate(
        outer: TaskFamily, task: AugmentedTask, params: Params, state: OracleState, key: Key
    ) -> tuple[Estimate, OracleState]:
        found, state = oracle.estimate(own(outer), task.task, inside(params, task.drawn), state, key)
        gradient, value = outside(found.gradient, task.drawn), found.value
        if beside is not None:
            more, slope = jax.value_and_grad(beside)(params, task.drawn)
            gradient = {**slope, "task": gradient}
            value = None if value is None else value + more.astype(value.dtype)
        return Estimate(gradient, value, found.info), state

    return Oracle(init, estimate)


def augmented(
    family: TaskFamily,
    *,
    rescale: float = 0.0,
    companion: int = 0,
    min_batch_size: int | None = None,
    bfloat16: float = 0.0,
) -> TaskFamily:
    """The family under every augmentation that is asked for, in this order: sizes, scales, companion, rounding.

    Raises:
      ValueError: a setting is out of range.
    """
    family = with_batch_sizes(family, min_batch_size) if min_batch_size is not None else family
    family = rescaled(family, rescale) if rescale else family
    family = with_companion(family, companion) if companion else family
    return in_bfloat16(family, bfloat16) if bfloat16 else family


def rescaled(family: TaskFamily, log_range: float) -> TaskFamily:
    """Optimises f(c ⊙ z) over z, with natural log c_i ~ U[-log_range, log_range] for every coordinate of every task.

    z_0 = x_0 / c, so every run starts at the family's own point and only the geometry changes.

    Raises:
      ValueError: `log_range` is not a positive finite number.
    """
    if isinstance(log_range, bool) or not 0 < log_range < math.inf:
        raise ValueError(f"`log_range` is {log_range!r}; give a positive number (1 to 3), or do not rescale.")

    def draw(key: Key, task: Task) -> Params:
        leaves, structure = jax.tree.flatten(jax.eval_shape(family.init, key, task))
        sizes = [leaf.size for leaf in leaves]
        scales = jnp.exp(jax.random.uniform(key, (sum(sizes),), minval=-log_range, maxval=log_range))
        parts = zip(jnp.split(scales, np.cumsum(sizes)[:-1]), leaves, strict=True)
        return structure.unflatten([c.reshape(leaf.shape).astype(leaf.dtype) for c, leaf in parts])

    def times(tree: Params, scales: Params) -> Params:
        return jax.tree.map(jnp.multiply, scales, tree)

    def divided(params: Params, scales: Params) -> Params:
        return jax.tree.map(jnp.divide, params, scales)

    name = f"rescaled by exp(±{log_range:g})"
    return _wrapped(family, Augmentation(draw, inside=times, start=divided, outside=times), name)


def with_companion(family: TaskFamily, dim: int) -> TaskFamily:
    """Optimises f(θ) + g(x) over both, g(x) = (1/n) Σ_i (x_i - v_i)², with v_i ~ U[-1, 1] for every task and x_0 = 0.

    However hard f is, part of the coordinates meet a problem on which plain descent is right. n = 20 and the laws of v
    and x_0 are those of the authors' program. Parameters are {"task": θ, "companion": x}. Losses on `eval_batch`, and
    metrics, are those of f alone, so what is reported can be compared; the value that comes with a step's gradient, and
    meta-losses but those on the full data, are the sum.

    Raises:
      ValueError: `dim` is not a positive whole number.
    """
    check_count("companion", dim)

    def draw(key: Key, task: Task) -> jax.Array:
        return jax.random.uniform(key, (dim,), jnp.float32, minval=-1.0, maxval=1.0)

    def inside(params: Params, target: jax.Array) -> Params:
        return params["task"]

    def start(params: Params, target: jax.Array) -> Params:
        return {"task": params, "companion": jnp.zeros_like(target)}

    def beside(params: Params, target: jax.Array) -> Scalar:
        return jnp.mean((params["companion"] - target) ** 2)

    augmentation = Augmentation(draw, inside=inside, start=start, beside=beside)
    return _wrapped(family, augmentation, f"with a companion of {dim}")


def with_batch_sizes(family: TaskFamily, least: int) -> TaskFamily:
    """Minibatches of n examples, n drawn for every task from the divisors of the family's batch size, `least` or more.

    The first n examples are repeated until the batch is full, so that losses and gradients are exactly those of a
    minibatch of n, batch statistics included; hence divisors. All are equally likely: for a power of two these are
    its halvings, and n is log-uniform.

    Raises:
      ValueError: a family without minibatches, or no size but its own.
    """
    check_count("min_batch_size", least)
    full = family.batch_size
    if full is None:
        raise ValueError("`min_batch_size` is set, but the family has no minibatches; leave it out.")
    every = divisors(full)
    sizes = [n for n in every if n >= least]
    if len(sizes) < 2:
        near = every[-2] if len(every) > 1 else None
        remedy = f"try {near} or less" if near else "raise `batch_size`"
        raise ValueError(f"`min_batch_size` is {least}, which leaves no size but `batch_size` ({full}); {remedy}.")

    def draw(key: Key, task: Task) -> jax.Array:
        return jnp.asarray(sizes, jnp.int32)[jax.random.randint(key, (), 0, len(sizes))]

    def resize(batch: Batch, size: jax.Array) -> Batch:
        rows = jnp.arange(full, dtype=jnp.int32) % size
        return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), batch)

    return _wrapped(family, Augmentation(draw, batch=resize), f"in batches of {sizes[0]} to {full}")


def in_bfloat16(family: TaskFamily, share: float) -> TaskFamily:
    """In this share of the tasks, f and ∇f see parameters rounded to bfloat16, and the gradient is rounded likewise.

    That is training in bfloat16 with float32 master weights, but for what happens inside of f: the parameters that the
    optimizer moves keep their digits, so that steps below 2⁻⁸ of a parameter add up. Which tasks is drawn with the
    task. Shapes and types stay.

    Raises:
      ValueError: `share` is not in (0, 1].
    """
    if isinstance(share, bool) or not 0 < share <= 1:
        raise ValueError(f"`bfloat16` is {share!r}; give the share of tasks, above 0 and at most 1, or leave it out.")

    def draw(key: Key, task: Task) -> jax.Array:
        return jax.random.bernoulli(key, share)

    def rounded(tree: Params, on: jax.Array) -> Params:
        # To the nearest; linear for differentiation, with itself as transpose, which rounds the gradient. Not a cast
        # there and back, which XLA may leave out as harmless extra precision.
        return jax.tree.map(
            lambda x: jnp.where(on, jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7), x), tree
        )

    augmentation = Augmentation(draw, inside=rounded, outside=rounded)
    return _wrapped(family, augmentation, f"in bfloat16 ({share:g} of the tasks)")
