"""What a data set is once it is read, however it was kept: three splits of inputs and targets, and a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np

Targets = Literal["classes", "numbers", "none"]  # what is asked of a data set beside its inputs


class Examples(NamedTuple):
    """A split, or a batch of it; numpy's arrays as read, jax's on the device."""

    inputs: Any  # [examples, features] float32: images flattened and in [0, 1], tables standardised
    targets: Any  # [examples] int32 classes, [examples, outputs] float32 numbers, or () where there are none


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and targets in three splits. Its arrays are read-only: one copy serves the whole process."""

    name: str  # as it was asked for
    source: str  # where it was found
    sha256: str  # of the raw pixels and labels, the same whatever file they came in; of a file of one's own, its bytes
    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...] = ()  # what each class was called, in order; none where the targets are no classes

    def __post_init__(self) -> None:
        for split in (self.train, self.validation, self.test):
            for array in split:
                if isinstance(array, np.ndarray):
                    array.flags.writeable = False

    @property
    def num_inputs(self) -> int:
        return self.train.inputs.shape[1]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __getattr__(self, name: str) -> Any:
        """`train_images` and `train_labels`, the words of earlier versions, for `train.inputs` and `train.targets`."""
        split, _, part = name.partition("_")
        known = {"images": "inputs", "labels": "targets"}
        if part not in known or split not in (field.name for field in fields(self)):
            raise AttributeError(f"a Dataset has no `{name}`.")
        return getattr(getattr(self, split), known[part])


def split_rows(
    num_rows: int, fractions: Sequence[float], seed: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of training, validation and test: their parts of a permutation, or in the given order without a seed.

    Validation and test get their fraction rounded, but one row at least unless the fraction is 0; training the rest.

    Raises:
      ValueError: nothing is left for training, or a seed that is none.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise ValueError(f"the seed of a split is {seed!r}; give a whole number of 0 or more")
    order = np.arange(num_rows) if seed is None else np.random.default_rng(seed).permutation(num_rows)
    held = [max(1, round(fraction * num_rows)) if fraction else 0 for fraction in fractions[1:]]
    num_train = num_rows - sum(held)
    if num_train < 1:
        raise ValueError(f"{num_rows} examples are too few for the splits; give {sum(held) + 1} or more")
    train, validation, test = np.split(order, [num_train, num_train + held[0]])
    return train, validation, test


def standardised(splits: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Columns with mean 0 and variance 1 on the first split, float32; what is constant there is 0."""
    mean, deviation = np.mean(splits[0], 0, np.float64), np.std(splits[0], 0, np.float64)
    # Numbers that are equal have a standard deviation of a few roundings.
    deviation = np.where(deviation > 1e-12 * np.abs(mean), deviation, np.inf)
    return [((array - mean) / deviation).astype(np.float32) for array in splits]


def hash_of(arrays: Iterable[np.ndarray]) -> str:
    """sha256 of the arrays' shapes and bytes."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(str(array.shape).encode())
        sha256.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()
