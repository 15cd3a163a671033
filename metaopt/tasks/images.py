"""Fully connected classifiers and autoencoders of images."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metaopt.data import load_dataset
from metaopt.registry import TASKS
from metaopt.tasks import networks
from metaopt.tasks.networks import Activation, Examples
from metaopt.types import Data, Key, Params, Scalar, Split, Task, TaskFamily


@TASKS.register(places=("data_dir",))
def classifier(
    data: str = "digits",
    hidden_layers: int = 1,
    width: int = 20,
    batch_norm: bool = False,
    activation: Activation = "relu",
    batch_size: int = 64,
    data_dir: str | None = None,
) -> TaskFamily:
    """A fully connected classifier: mean cross-entropy on minibatches, drawn with replacement.

    `data` names a data set of `metaopt.data.load_dataset`; tasks differ in their initial weights and minibatches only,
    so a task is (). Parameters are a list of layers (see `networks.Network.init`). Batch normalisation uses batch
    statistics always, in evaluation too.

    Raises:
      ValueError: an unknown data set, or settings out of range. FileNotFoundError: the data set is not on this machine.
    """
    dataset = load_dataset(data, data_dir)
    networks.check_settings(hidden_layers, width, activation, batch_size, dataset)
    num_classes = dataset.num_classes
    network = networks.Network(dataset.num_pixels, num_classes, hidden_layers, width, batch_norm, activation)

    def sample(key: Key, data: Data) -> Task:
        return ()

    def init(key: Key, task: Task) -> Params:
        return network.init(key)

    def batch(key: Key, task: Task, data: Data) -> Examples:
        return networks.sample_examples(key, data, batch_size)

    def loss(params: Params, task: Task, batch: Examples) -> Scalar:
        log_probs = jax.nn.log_softmax(network.apply(params, batch.images))
        # A product with the one-hot labels: the gradient of an indexed pick is a scatter, slow in a batch of tasks.
        return -jnp.mean(jnp.sum(log_probs * jax.nn.one_hot(batch.labels, num_classes), axis=-1))

    def eval_batch(task: Task, data: Data, split: Split) -> Examples:
        return networks.eval_examples(data, split)

    def metrics(params: Params, task: Task, batch: Examples) -> dict[str, Scalar]:
        return {"accuracy": jnp.mean(jnp.argmax(network.apply(params, batch.images), axis=-1) == batch.labels)}

    return TaskFamily(
        data=networks.on_device(dataset),
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics,
        splits=networks.SPLITS,
        evaluated_on=networks.evaluated_on(dataset),
    )


@TASKS.register(places=("data_dir",))
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
        splits=networks.SPLITS,
        evaluated_on=networks.evaluated_on(dataset),
    )
