"""Numbers predicted from tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metaopt.data import Examples, load_dataset
from metaopt.registry import TASKS
from metaopt.tasks import networks
from metaopt.tasks.networks import Activation
from metaopt.types import Scalar, TaskFamily


@TASKS.register(places=("data_dir",))
def regression_network(
    data: str = "diabetes",
    hidden_layers: int = 1,
    width: int = 20,
    batch_norm: bool = False,
    activation: Activation = "relu",
    batch_size: int = 64,
    data_dir: str | None = None,
    split_seed: int = 0,
) -> TaskFamily:
    """A fully connected network with a linear output: mean squared error of the predicted numbers, on minibatches.

    Targets are one number an example or several, standardised on the training split: predicting their mean costs 1
    there. `data` is `diabetes`, or an .npz or .csv file of your own; the rest is as in `classifier`.

    Raises:
      ValueError: an unknown data set, one without numbers to predict, or settings out of range.
      FileNotFoundError: the data set is not on this machine.
    """
    dataset = load_dataset(data, data_dir, targets="numbers", split_seed=split_seed)

    def loss(outputs: jax.Array, batch: Examples) -> Scalar:
        return jnp.mean((outputs - batch.targets) ** 2)

    return networks.on_dataset(
        dataset,
        dataset.train.targets.shape[1],
        loss,
        hidden_layers=hidden_layers,
        width=width,
        batch_norm=batch_norm,
        activation=activation,
        batch_size=batch_size,
    )
