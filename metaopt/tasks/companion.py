"""A convex companion: the second task augmentation of Lv et al. 2017 (arXiv 1703.03633), beside random rescaling."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.tasks.settings import check_count
from metaopt.tasks.wrapping import wrapped_oracle
from metaopt.types import Batch, Data, Key, Params, Scalar, Split, Task, TaskFamily


class CompanionTask(NamedTuple):
    task: Task
    target: jax.Array  # [dim] v


class Accompanied(NamedTuple):
    """A batch to train on. Batches of `eval_batch` come without it, and the loss on them without the companion."""

    batch: Batch


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

    def sample(key: Key, data: Data) -> CompanionTask:
        task_key, target_key = jax.random.split(key)
        target = jax.random.uniform(target_key, (dim,), jnp.float32, minval=-1.0, maxval=1.0)
        return CompanionTask(family.sample(task_key, data), target)

    def init(key: Key, task: CompanionTask) -> Params:
        return {"task": family.init(key, task.task), "companion": jnp.zeros_like(task.target)}

    def batch(key: Key, task: CompanionTask, data: Data) -> Accompanied:
        return Accompanied(family.batch(key, task.task, data))

    def loss(params: Params, task: CompanionTask, batch: Batch) -> Scalar:
        if not isinstance(batch, Accompanied):
            return family.loss(params["task"], task.task, batch)
        value = family.loss(params["task"], task.task, batch.batch)
        return value + _distance(params, task).astype(value.dtype)

    def eval_batch(task: CompanionTask, data: Data, split: Split) -> Batch:
        return family.eval_batch(task.task, data, split)

    def metrics(params: Params, task: CompanionTask, batch: Batch) -> dict[str, Scalar]:
        assert family.metrics is not None
        plain = batch.batch if isinstance(batch, Accompanied) else batch
        return family.metrics(params["task"], task.task, plain)

    def out(gradient: Params, value: Scalar, params: Params, task: CompanionTask) -> tuple[Params, Scalar]:
        distance, slope = jax.value_and_grad(_distance)(params, task)
        return {**slope, "task": gradient}, value + distance.astype(value.dtype)

    return dataclasses.replace(
        family,
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics if family.metrics else None,
        oracle=wrapped_oracle(family, lambda params, task: params["task"], out),
        name=f"{family.name} with a companion of {dim}",
    )


def _distance(params: Params, task: CompanionTask) -> Scalar:
    return jnp.mean((params["companion"] - task.target) ** 2)
