"""Random rescaling: the task augmentation of Lv et al. 2017 (arXiv 1703.03633)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.tasks.wrapping import wrapped_oracle
from metaopt.types import Batch, Data, Key, Params, Scalar, Split, Task, TaskFamily


class RescaledTask(NamedTuple):
    task: Task
    scales: Params  # c, as the parameters


def rescaled(family: TaskFamily, log_range: float) -> TaskFamily:
    """Optimises f(c ⊙ z) over z, with natural log c_i ~ U[-log_range, log_range] for every coordinate of every task.

    z_0 = x_0 / c, so every run starts at the family's own point and only the geometry changes. Data, batches and
    splits pass through; so does an oracle, which sees the family's own task and parameters, its gradient times c.

    Raises:
      ValueError: `log_range` is not a positive finite number.
    """
    if isinstance(log_range, bool) or not 0 < log_range < math.inf:
        raise ValueError(f"`log_range` is {log_range!r}; give a positive number (1 to 3), or do not rescale.")

    def sample(key: Key, data: Data) -> RescaledTask:
        task_key, scale_key = jax.random.split(key)
        task = family.sample(task_key, data)
        leaves, structure = jax.tree.flatten(jax.eval_shape(family.init, scale_key, task))
        sizes = [leaf.size for leaf in leaves]
        scales = jnp.exp(jax.random.uniform(scale_key, (sum(sizes),), minval=-log_range, maxval=log_range))
        parts = zip(jnp.split(scales, np.cumsum(sizes)[:-1]), leaves, strict=True)
        return RescaledTask(task, structure.unflatten([c.reshape(leaf.shape).astype(leaf.dtype) for c, leaf in parts]))

    def init(key: Key, task: RescaledTask) -> Params:
        return jax.tree.map(jnp.divide, family.init(key, task.task), task.scales)

    def batch(key: Key, task: RescaledTask, data: Data) -> Batch:
        return family.batch(key, task.task, data)

    def loss(params: Params, task: RescaledTask, batch: Batch) -> Scalar:
        return family.loss(_times(task.scales, params), task.task, batch)

    def eval_batch(task: RescaledTask, data: Data, split: Split) -> Batch:
        return family.eval_batch(task.task, data, split)

    def metrics(params: Params, task: RescaledTask, batch: Batch) -> dict[str, Scalar]:
        assert family.metrics is not None
        return family.metrics(_times(task.scales, params), task.task, batch)

    def out(gradient: Params, value: Scalar, params: Params, task: RescaledTask) -> tuple[Params, Scalar]:
        return _times(task.scales, gradient), value

    return dataclasses.replace(
        family,
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics if family.metrics else None,
        oracle=wrapped_oracle(family, lambda params, task: _times(task.scales, params), out),
        name=f"{family.name} rescaled by exp(±{log_range:g})",
    )


def _times(scales: Params, params: Params) -> Any:
    return jax.tree.map(jnp.multiply, scales, params)
