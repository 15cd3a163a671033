"""Fully connected networks: what the families that train them on a data set share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.data import Dataset, Examples
from metaopt.tasks.examples import SPLITS, eval_examples, evaluated_on, on_device, sample_examples, source_of
from metaopt.tasks.settings import check_batch_size, check_count, check_option
from metaopt.types import Key, Params, Scalar, Task, TaskFamily

Activation = Literal["relu", "tanh", "sigmoid"]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
BATCH_NORM_EPSILON = 1e-5


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


def on_dataset(
    dataset: Dataset,
    num_outputs: int,
    loss: Callable[[jax.Array, Examples], Scalar],
    metrics: Callable[[jax.Array, Examples], dict[str, Scalar]] | None = None,
    *,
    hidden_layers: int,
    width: int,
    batch_norm: bool,
    activation: Activation,
    batch_size: int,
) -> TaskFamily:
    """The family of networks trained on a data set, which differ in their initial weights and minibatches only.

    Args:
      loss, metrics: of the network's outputs [examples, num_outputs] on a batch.

    Raises:
      ValueError: settings out of range.
    """
    check_count("hidden_layers", hidden_layers, least=0, most=10)
    check_count("width", width)
    check_option("activation", activation, get_args(Activation))
    check_batch_size(batch_size, len(dataset.train.inputs), f" in {dataset.name}")
    network = Network(dataset.num_inputs, num_outputs, hidden_layers, width, batch_norm, activation)

    def of_outputs(function: Callable[[jax.Array, Examples], Any]) -> Callable[[Params, Task, Examples], Any]:
        return lambda params, task, batch: function(network.apply(params, batch.inputs), batch)

    data = on_device(dataset)
    return TaskFamily(
        data=data,
        sample=lambda key, data: (),
        init=lambda key, task: network.init(key),
        batch=lambda key, task, data: sample_examples(key, data["train"], batch_size),
        loss=of_outputs(loss),
        eval_batch=lambda task, data, split: eval_examples(data[split]),
        metrics=None if metrics is None else of_outputs(metrics),
        splits=SPLITS,
        evaluated_on=evaluated_on(data["train"]),
        sources=(source_of(dataset),),
    )
