"""What is optimised: families of tasks, and their augmentations."""

from __future__ import annotations

from metaopt.tasks.augment import augmented, in_bfloat16, rescaled, with_batch_sizes, with_companion
from metaopt.tasks.energy import latent_gaussian, tuned_mixture
from metaopt.tasks.energy_networks import energy_model, tuned_energy_model
from metaopt.tasks.evidence import elbo_linear
from metaopt.tasks.expectation_maximisation import em, em_oracle
from metaopt.tasks.experts import mixture_of_experts, table_experts
from metaopt.tasks.functions import quadratic, rosenbrock
from metaopt.tasks.images import autoencoder, classifier
from metaopt.tasks.multimodal import ackley, double_well, griewank, rastrigin, styblinski_tang, tilted_double_well
from metaopt.tasks.own import make_task
from metaopt.tasks.regression import linear_regression, logistic_regression
from metaopt.tasks.regularised import regularised_classifier, ridge_features
from metaopt.tasks.structure import elbo_structure
from metaopt.tasks.tables import regression_network

__all__ = [
    "ackley",
    "augmented",
    "autoencoder",
    "classifier",
    "double_well",
    "elbo_linear",
    "elbo_structure",
    "em",
    "em_oracle",
    "energy_model",
    "griewank",
    "in_bfloat16",
    "latent_gaussian",
    "linear_regression",
    "logistic_regression",
    "make_task",
    "mixture_of_experts",
    "quadratic",
    "rastrigin",
    "regression_network",
    "regularised_classifier",
    "rescaled",
    "ridge_features",
    "rosenbrock",
    "styblinski_tang",
    "table_experts",
    "tilted_double_well",
    "tuned_energy_model",
    "tuned_mixture",
    "with_batch_sizes",
    "with_companion",
]
