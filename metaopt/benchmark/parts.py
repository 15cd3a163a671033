"""What the suites' families are made of: a loss that is exact, one on examples, and one of fresh draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from metaopt.data import Examples
from metaopt.tasks.examples import eval_examples, num_examples, sample_examples, to_device
from metaopt.types import Batch, Data, DataSource, Key, Params, Scalar, Split, Task, TaskFamily

Bound = float | Callable[[Task], Any] | None
Splits = dict[str, Any]  # "train", and "test" where there is one


def exact(
    loss: Callable[[Params, Task], Scalar],
    init: Callable[[Key, Task], Params],
    sample: Callable[[Key], Task] = lambda key: (),
    lower_bound: Bound = 0.0,
) -> TaskFamily:
    """A deterministic loss(params, task), with tasks that are drawn."""
    return TaskFamily(
        data=(),
        sample=lambda key, data: sample(key),
        init=init,
        batch=lambda key, task, data: (),
        loss=lambda params, task, batch: loss(params, task),
        eval_batch=lambda task, data, split: (),
        lower_bound=lower_bound,
    )


def on_examples(
    loss: Callable[[Params, Any], Scalar],
    init: Callable[[Key], Params],
    examples: Splits | Callable[..., Splits],
    batch_size: int | None = None,
    noise: Callable[[Key, Any], Any] | None = None,
    lower_bound: Bound = 0.0,
    sources: tuple[DataSource, ...] = (),
    whole: bool = False,
    shared: tuple[Any, ...] = (),
) -> TaskFamily:
    """A loss(params, examples) that is a mean over examples.

    Args:
      examples: the splits, which all tasks share, or a function of a key, and of the arrays in `shared`, that draws a
        task's own.
      batch_size: of minibatches, drawn with replacement; None: the training split as a whole.
      noise: what a loss draws anew with every batch; it is given (examples, noise(key, examples)) then. Splits that are
        evaluated on have one fixed draw.
      whole: the "examples" are one thing, such as a picture or a graph.
    """
    draw = examples if callable(examples) else None
    shapes = examples if draw is None else jax.eval_shape(draw, jax.random.key(0), *shared)
    assert isinstance(shapes, dict)

    def splits(task: Task, data: Data) -> Any:
        return data if draw is None else task

    def with_noise(key: Key, seen: Any) -> Batch:
        return seen if noise is None else (seen, noise(key, seen))

    def batch(key: Key, task: Task, data: Data) -> Batch:
        train = splits(task, data)["train"]
        rows_key, noise_key = (key, key) if noise is None else jax.random.split(key)
        return with_noise(noise_key, train if batch_size is None else sample_examples(rows_key, train, batch_size))

    def eval_batch(task: Task, data: Data, split: Split) -> Batch:
        return with_noise(jax.random.key(0), eval_examples(splits(task, data)[split]))

    held = f"all {num_examples(shapes['train']):,} training examples{'' if draw is None else ' of each task'}"
    return TaskFamily(
        data=to_device(shapes if draw is None else shared),
        sample=lambda key, data: () if draw is None else draw(key, *data),
        init=lambda key, task: init(key),
        batch=batch,
        loss=lambda params, task, batch: loss(params, batch),
        eval_batch=eval_batch,
        splits=tuple(shapes),  # pyright: ignore[reportArgumentType]
        evaluated_on="the exact loss" if whole else held,
        lower_bound=lower_bound,
        sources=sources,
    )


def on_draws(
    loss: Callable[[Params, Task, Any], Scalar],
    init: Callable[[Key, Task], Params],
    draw: Callable[[Key, Task, int], Batch],
    batch_size: int,
    num_judged: int | None,
    sample: Callable[[Key], Task] = lambda key: (),
    lower_bound: Bound = 0.0,
) -> TaskFamily:
    """A loss(params, task, batch) on draws that are new at every step.

    Args:
      draw: (key, task, how many) -> a batch.
      num_judged: draws that are evaluated on, the same each time; None: the loss itself knows the expectation, and is
        given () for a batch.
    """

    def eval_batch(task: Task, data: Data, split: Split) -> Batch:
        return () if num_judged is None else draw(jax.random.key(0), task, num_judged)

    return TaskFamily(
        data=(),
        sample=lambda key, data: sample(key),
        init=init,
        batch=lambda key, task, data: draw(key, task, batch_size),
        loss=loss,
        eval_batch=eval_batch,
        evaluated_on="the exact expectation" if num_judged is None else f"{num_judged:,} draws, the same each time",
        lower_bound=lower_bound,
    )


def drawn(key: Key, one: Callable[[Key], Any], num_train: int, num_test: int) -> Splits:
    """Independent examples of two splits; `one` draws one."""
    every = jax.vmap(one)(jax.random.split(key, num_train + num_test))
    return {
        "train": jax.tree.map(lambda x: x[:num_train], every),
        "test": jax.tree.map(lambda x: x[num_train:], every),
    }


__all__ = ["Bound", "Examples", "Splits", "drawn", "exact", "on_draws", "on_examples"]
