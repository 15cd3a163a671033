"""Minibatches of several sizes: an augmentation in the gradients' noise, without another shape in the program."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.tasks.settings import check_count
from metaopt.tasks.wrapping import wrapped_oracle
from metaopt.types import Batch, Data, Key, Params, Scalar, Split, Task, TaskFamily


class ResizedTask(NamedTuple):
    task: Task
    size: jax.Array  # [] int32, examples that differ in a minibatch


def batch_size_of(family: TaskFamily) -> int | None:
    """The examples of a minibatch; None for a deterministic family."""

    def draw(key: Key) -> Batch:
        return family.batch(key, family.sample(key, family.data), family.data)

    leaves = jax.tree.leaves(jax.eval_shape(draw, jax.random.key(0)))
    return leaves[0].shape[0] if leaves else None


def with_batch_sizes(family: TaskFamily, least: int) -> TaskFamily:
    """Minibatches of n examples, n drawn for every task from the divisors of the family's batch size, `least` or more.

    The first n examples are repeated until the batch is full, so that losses and gradients are exactly those of a
    minibatch of n, batch statistics included; hence divisors. All are equally likely: for a power of two these are
    its halvings, and n is log-uniform. The batch of `eval_batch` stays.

    Raises:
      ValueError: a family without minibatches, or no size but its own.
    """
    check_count("min_batch_size", least)
    full = batch_size_of(family)
    if full is None:
        raise ValueError("`min_batch_size` is set, but the family has no minibatches; leave it out.")
    divisors = [n for n in range(1, full + 1) if full % n == 0]
    sizes = [n for n in divisors if n >= least]
    if len(sizes) < 2:
        near = divisors[-2] if len(divisors) > 1 else None
        remedy = f"try {near} or less" if near else "raise `batch_size`"
        raise ValueError(f"`min_batch_size` is {least}, which leaves no size but `batch_size` ({full}); {remedy}.")

    def sample(key: Key, data: Data) -> ResizedTask:
        task_key, size_key = jax.random.split(key)
        index = jax.random.randint(size_key, (), 0, len(sizes))
        return ResizedTask(family.sample(task_key, data), jnp.asarray(sizes, jnp.int32)[index])

    def init(key: Key, task: ResizedTask) -> Params:
        return family.init(key, task.task)

    def batch(key: Key, task: ResizedTask, data: Data) -> Batch:
        rows = jnp.arange(full, dtype=jnp.int32) % task.size
        return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), family.batch(key, task.task, data))

    def loss(params: Params, task: ResizedTask, batch: Batch) -> Scalar:
        return family.loss(params, task.task, batch)

    def eval_batch(task: ResizedTask, data: Data, split: Split) -> Batch:
        return family.eval_batch(task.task, data, split)

    def metrics(params: Params, task: ResizedTask, batch: Batch) -> dict[str, Scalar]:
        assert family.metrics is not None
        return family.metrics(params, task.task, batch)

    def out(gradient: Params, value: Scalar, params: Params, task: ResizedTask) -> tuple[Params, Scalar]:
        return gradient, value

    return dataclasses.replace(
        family,
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics if family.metrics else None,
        oracle=wrapped_oracle(family, lambda params, task: params, out),
        name=f"{family.name} in batches of {sizes[0]} to {full}",
    )
