"""Fully connected autoencoders of images."""

from __future__ import annotations

import jax.numpy as jnp

from metaopt.data import load_dataset
from metaopt.tasks import networks
from metaopt.tasks.networks import Activation, Examples
from metaopt.tasks.settings import label
from metaopt.types import Data, Key, Params, Scalar, Split, Task, TaskFamily


def autoencoder(
    data: str = "digits",
    hidden_layers: int = 1,
    width: int = 20,
    batch_norm: bool = False,
    activation: Activation = "relu",
    batch_size: int = 64,
    data_dir: str | None = None,
) -> TaskFamily:
    """A fully connected autoencoder: mean squared error of the reconstructed pixels, on minibatches with replacement.

    Hidden layers are all `width` wide and the output is linear (`hidden_layers=0` is least squares). The rest is as
    in `classifier`.

    Raises:
      ValueError: an unknown data set, or settings out of range. FileNotFoundError: the data set is not on this machine.
    """
    dataset = load_dataset(data, data_dir)
    networks.check_settings(hidden_layers, width, activation, batch_size, dataset)
    num_pixels = dataset.num_pixels
    network = networks.Network(num_pixels, num_pixels, hidden_layers, width, batch_norm, activation)

    def sample(key: Key, data: Data) -> Task:
        return ()

    def init(key: Key, task: Task) -> Params:
        return network.init(key)

    def batch(key: Key, task: Task, data: Data) -> Examples:
        return networks.sample_examples(key, data, batch_size)

    def loss(params: Params, task: Task, batch: Examples) -> Scalar:
        return jnp.mean((network.apply(params, batch.images) - batch.images) ** 2)

    def eval_batch(task: Task, data: Data, split: Split) -> Examples:
        return networks.eval_examples(data, split)

    return TaskFamily(
        data=networks.on_device(dataset),
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        name=label(
            autoencoder,
            data=data,
            hidden_layers=hidden_layers,
            width=width,
            batch_norm=batch_norm,
            activation=activation,
            batch_size=batch_size,
        ),
        splits=networks.SPLITS,
        evaluated_on=networks.evaluated_on(dataset),
    )
