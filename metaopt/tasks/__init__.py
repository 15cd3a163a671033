"""What is optimised: one family a file, and the registry of their factories."""

from __future__ import annotations

from collections.abc import Callable

from metaopt.tasks.autoencoder import autoencoder
from metaopt.tasks.bfloat16 import in_bfloat16
from metaopt.tasks.classifier import classifier
from metaopt.tasks.companion import with_companion
from metaopt.tasks.linear_regression import linear_regression
from metaopt.tasks.logistic_regression import logistic_regression
from metaopt.tasks.minibatches import with_batch_sizes
from metaopt.tasks.quadratic import quadratic
from metaopt.tasks.rescaled import rescaled
from metaopt.tasks.rosenbrock import rosenbrock
from metaopt.types import TaskFamily

TASKS: dict[str, Callable[..., TaskFamily]] = {
    "quadratic": quadratic,
    "rosenbrock": rosenbrock,
    "linear_regression": linear_regression,
    "logistic_regression": logistic_regression,
    "classifier": classifier,
    "autoencoder": autoencoder,
}

__all__ = [
    "TASKS",
    "autoencoder",
    "classifier",
    "in_bfloat16",
    "linear_regression",
    "logistic_regression",
    "quadratic",
    "rescaled",
    "rosenbrock",
    "with_batch_sizes",
    "with_companion",
]
