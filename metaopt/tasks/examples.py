"""Examples in splits on the device: minibatches of them, and what is evaluated on."""

from __future__ import annotations

import functools
from typing import get_args

import jax
import jax.numpy as jnp

from metaopt.data import Dataset, Examples
from metaopt.types import Batch, Data, DataSource, Key, Split

MAX_EVAL_EXAMPLES = 10_000
SPLITS: tuple[Split, ...] = get_args(Split)


@functools.lru_cache(maxsize=8)
def on_device(dataset: Dataset) -> dict[Split, Examples]:
    """The splits as device arrays, for `TaskFamily.data`; families on one data set share them."""
    return to_device({"train": dataset.train, "validation": dataset.validation, "test": dataset.test})


def to_device(data: Data) -> Data:
    """The arrays on the device, also where a family is built while something else is traced."""
    with jax.ensure_compile_time_eval():
        return jax.tree.map(jnp.asarray, data)


def sample_examples(key: Key, examples: Data, batch_size: int) -> Batch:
    """A minibatch of a split, drawn with replacement along the leading axis of its arrays."""
    rows = jax.random.randint(key, (batch_size,), 0, num_examples(examples))
    return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), examples)


def eval_examples(examples: Data) -> Batch:
    """All of a split, or its first 10,000 examples (the splits have no order)."""
    return jax.tree.map(lambda x: x[:MAX_EVAL_EXAMPLES], examples)


def num_examples(examples: Data) -> int:
    return jax.tree.leaves(examples)[0].shape[0]


def evaluated_on(train: Data) -> str:
    """What `eval_examples` holds of the training split, in words."""
    held = num_examples(train)
    if held <= MAX_EVAL_EXAMPLES:
        return f"the full training set ({held:,} examples)"
    return f"a fixed {MAX_EVAL_EXAMPLES:,} of the {held:,} training examples"


def source_of(dataset: Dataset) -> DataSource:
    """What a run records of a data set."""
    return DataSource(dataset.name, dataset.source, dataset.sha256, dataset.classes)
