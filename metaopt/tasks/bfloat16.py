"""Tasks computed in bfloat16: an augmentation in the number format, without another format in the program."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.tasks.wrapping import wrapped_oracle
from metaopt.types import Batch, Data, Key, Params, Scalar, Split, Task, TaskFamily


class RoundedTask(NamedTuple):
    task: Task
    rounded: jax.Array  # [] bool


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

    def sample(key: Key, data: Data) -> RoundedTask:
        task_key, coin_key = jax.random.split(key)
        return RoundedTask(family.sample(task_key, data), jax.random.bernoulli(coin_key, share))

    def init(key: Key, task: RoundedTask) -> Params:
        return family.init(key, task.task)

    def batch(key: Key, task: RoundedTask, data: Data) -> Batch:
        return family.batch(key, task.task, data)

    def loss(params: Params, task: RoundedTask, batch: Batch) -> Scalar:
        return family.loss(_rounded(params, task), task.task, batch)

    def eval_batch(task: RoundedTask, data: Data, split: Split) -> Batch:
        return family.eval_batch(task.task, data, split)

    def metrics(params: Params, task: RoundedTask, batch: Batch) -> dict[str, Scalar]:
        assert family.metrics is not None
        return family.metrics(_rounded(params, task), task.task, batch)

    def out(gradient: Params, value: Scalar, params: Params, task: RoundedTask) -> tuple[Params, Scalar]:
        return _rounded(gradient, task), value

    return dataclasses.replace(
        family,
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics if family.metrics else None,
        oracle=wrapped_oracle(family, _rounded, out),
        name=f"{family.name} in bfloat16 ({share:g} of the tasks)",
    )


def _rounded(tree: Params, task: RoundedTask) -> Params:
    """To the nearest bfloat16; linear for differentiation, with itself as transpose, which rounds the gradient."""
    # Not a cast there and back, which XLA may leave out as harmless extra precision.
    return jax.tree.map(
        lambda x: jnp.where(task.rounded, jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7), x), tree
    )
