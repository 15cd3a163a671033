"""Fully connected classifiers and autoencoders, of images first of all."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metaopt.data import Examples, load_dataset
from metaopt.registry import TASKS
from metaopt.tasks import networks
from metaopt.tasks.networks import Activation
from metaopt.types import Scalar, TaskFamily


@TASKS.register(places=("data_dir",))
def classifier(
    data: str = "digits",
    hidden_layers: int = 1,
    width: int = 20,
    batch_norm: bool = False,
    activation: Activation = "relu",
    batch_size: int = 64,
    data_dir: str | None = None,
    split_seed: int = 0,
) -> TaskFamily:
    """A fully connected classifier: mean cross-entropy on minibatches, drawn with replacement.

    `data` names a data set of `metaopt.data.load_dataset`, or an .npz or .csv file of your own (`data=flowers.csv`, in
    `data_dir` or the current folder), which `split_seed` divides into training, validation and test unless it brings
    them. Tasks differ in their initial weights and minibatches only, so a task is (). Parameters are a list of layers
    (see `networks.Network.init`). Batch normalisation uses batch statistics always, in evaluation too.

    Raises:
      ValueError: an unknown data set, one without classes, or settings out of range.
      FileNotFoundError: the data set is not on this machine.
    """
    dataset = load_dataset(data, data_dir, targets="classes", split_seed=split_seed)
    num_classes = dataset.num_classes

    def loss(outputs: jax.Array, batch: Examples) -> Scalar:
        # A product with the one-hot labels: the gradient of an indexed pick is a scatter, slow in a batch of tasks.
        hits = jax.nn.log_softmax(outputs) * jax.nn.one_hot(batch.targets, num_classes)
        return -jnp.mean(jnp.sum(hits, axis=-1))

    def metrics(outputs: jax.Array, batch: Examples) -> dict[str, Scalar]:
        return {"accuracy": jnp.mean(jnp.argmax(outputs, axis=-1) == batch.targets)}

    return networks.on_dataset(
        dataset,
        num_classes,
        loss,
        metrics,
        hidden_layers=hidden_layers,
        width=width,
        batch_norm=batch_norm,
        activation=activation,
        batch_size=batch_size,
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
    split_seed: int = 0,
) -> TaskFamily:
    """A fully connected autoencoder: mean squared error of the reconstructed pixels, on minibatches with replacement.

    Hidden layers are all `width` wide and the output is linear (`hidden_layers=0` is least squares). The rest is as
    in `classifier`; files need no labels.

    Raises:
      ValueError: an unknown data set, or settings out of range. FileNotFoundError: the data set is not on this machine.
    """
    dataset = load_dataset(data, data_dir, targets="none", split_seed=split_seed)

    def loss(outputs: jax.Array, batch: Examples) -> Scalar:
        return jnp.mean((outputs - batch.inputs) ** 2)

    return networks.on_dataset(
        dataset,
        dataset.num_inputs,
        loss,
        hidden_layers=hidden_layers,
        width=width,
        batch_norm=batch_norm,
        activation=activation,
        batch_size=batch_size,
    )
