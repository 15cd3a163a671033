"""Fully connected networks on images: what the classifier and the autoencoder share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.data.images import Dataset
from metaopt.tasks.settings import check_batch_size, check_count, check_option
from metaopt.types import Key, Params, Split

Activation = Literal["relu", "tanh", "sigmoid"]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
MAX_EVAL_EXAMPLES = 10_000
BATCH_NORM_EPSILON = 1e-5
SPLITS: tuple[Split, ...] = get_args(Split)


class Examples(NamedTuple):
    """A batch, or all of a split."""

    images: jax.Array  # [examples, pixels] float32 in [0, 1]
    labels: jax.Array  # [examples] int32


@dataclass(frozen=True)
class Network:
    """A fully connected network written for one task: `init` and `apply` on plain pytrees."""

    num_inputs: int
    num_outputs: int
    hidden_layers: int
    width: int
    batch_norm: bool
    activation: Activation

    def init(self, key: Key) -> Params:
        """Weights from He's normal law (relu) or LeCun's (tanh, sigmoid, the output layer); biases are zero.

        Returns one dict a layer, "w" [inputs, outputs] and "b" [outputs]. Under batch normalisation a hidden layer has
        a "scale" beside its "b", which is added after the normalisation (before it, it would have no effect).
        """
        sizes = [self.num_inputs, *[self.width] * self.hidden_layers, self.num_outputs]
        counts = [inputs * outputs for inputs, outputs in zip(sizes, sizes[1:], strict=False)]
        # One draw for all layers: a generator for every layer would take seconds to compile in a deep network.
        draws = jnp.split(jax.random.normal(key, (sum(counts),)), np.cumsum(counts)[:-1])
        layers = []
        for i, draw in enumerate(draws):
            hidden = i < self.hidden_layers
            variance = (2.0 if hidden and self.activation == "relu" else 1.0) / sizes[i]
            weights = variance**0.5 * draw.reshape(sizes[i], sizes[i + 1])
            layer = {"w": weights, "b": jnp.zeros_like(weights[0])}
            if hidden and self.batch_norm:
                layer["scale"] = jnp.ones_like(weights[0])
            layers.append(layer)
        return layers

    def apply(self, params: Params, inputs: jax.Array) -> jax.Array:
        """Outputs [examples, num_outputs] for inputs [examples, num_inputs]; batch statistics are this batch's."""
        hidden = inputs
        for layer in params[:-1]:
            hidden = hidden @ layer["w"]
            if self.batch_norm:
                hidden = layer["scale"] * _normalise(hidden)
            hidden = ACTIVATIONS[self.activation](hidden + layer["b"])
        return hidden @ params[-1]["w"] + params[-1]["b"]


def _normalise(x: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, axis=0)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=0) + BATCH_NORM_EPSILON)


def check_settings(hidden_layers: int, width: int, activation: str, batch_size: int, dataset: Dataset) -> None:
    """Refuses settings that make no network, with a `ValueError` that names the remedy."""
    check_count("hidden_layers", hidden_layers, least=0, most=10)
    check_count("width", width)
    check_option("activation", activation, get_args(Activation))
    check_batch_size(batch_size, len(dataset.train_labels))


_ON_DEVICE: dict[str, dict[Split, Examples]] = {}


def on_device(dataset: Dataset) -> dict[Split, Examples]:
    """The splits as device arrays, for `TaskFamily.data`; families on one data set share them."""
    if dataset.sha256 not in _ON_DEVICE:
        with jax.ensure_compile_time_eval():
            _ON_DEVICE[dataset.sha256] = {
                "train": Examples(jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)),
                "validation": Examples(jnp.asarray(dataset.validation_images), jnp.asarray(dataset.validation_labels)),
                "test": Examples(jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)),
            }
    return _ON_DEVICE[dataset.sha256]


def sample_examples(key: Key, data: dict[Split, Examples], batch_size: int) -> Examples:
    """A minibatch of the training split, drawn with replacement."""
    train = data["train"]
    rows = jax.random.randint(key, (batch_size,), 0, train.labels.shape[0])
    return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), train)


def eval_examples(data: dict[Split, Examples], split: Split) -> Examples:
    """All of a split, or its first 10,000 examples (the splits have no order)."""
    return jax.tree.map(lambda x: x[:MAX_EVAL_EXAMPLES], data[split])


def evaluated_on(dataset: Dataset) -> str:
    """What `eval_examples` holds of the training split, in words."""
    num_examples = len(dataset.train_labels)
    if num_examples <= MAX_EVAL_EXAMPLES:
        return f"the full training set ({num_examples:,} examples)"
    return f"a fixed {MAX_EVAL_EXAMPLES:,} of the {num_examples:,} training examples"
