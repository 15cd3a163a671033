"""Two suites of tasks, by name: recipes are chosen on `DEVELOPMENT`, and `TEST` is scored at the end.

No kind and no data set of one is in the other. None is registered, so that no experiment trains on them, and none is of
a meta-training family or its data; a few are relatives of one (Poisson and logistic regression, autoencoders). Programs
compile once an entry: its family is made when first asked for, and kept.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from metaopt.benchmark import (
    factorisation,
    functions,
    generative,
    graphs,
    likelihoods,
    networks,
    physics,
    pictures,
    policies,
    sequences,
)
from metaopt.types import TaskFamily


@dataclasses.dataclass(frozen=True)
class Entry:
    """One family of a suite."""

    name: str
    kind: str
    make: Callable[[], TaskFamily]

    @property
    def family(self) -> TaskFamily:
        """The same object each time, for the sake of compiled code."""
        return _made(self)

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return (self.make.__doc__ or "").strip().splitlines()[0]


@functools.cache
def _made(entry: Entry) -> TaskFamily:
    return dataclasses.replace(entry.make(), name=entry.name)


def _suite(kinds: Mapping[str, tuple[Callable[[], TaskFamily], ...]]) -> Mapping[str, Entry]:
    entries = [Entry(make.__name__, kind, make) for kind, makes in kinds.items() for make in makes]
    return MappingProxyType({entry.name: entry for entry in entries})


DEVELOPMENT = _suite(
    {
        "layer normalisation": (networks.layer_norm_wine, networks.layer_norm_waves, networks.layer_norm_deep),
        "plateaus": (networks.parity, networks.deep_sigmoid),
        "deep linear network": (networks.deep_linear, networks.deep_linear_identity),
        "recurrence": (sequences.gru_licence, sequences.rnn_adding, sequences.lstm_recall),
        "word vectors": (sequences.skip_gram, sequences.cooccurrence),
        "variational autoencoder": (generative.vae_china, generative.vae_bars),
        "mixture likelihood": (generative.mixture_iris, generative.mixture_ring),
        "matrix completion": (factorisation.completion, factorisation.completion_minibatch),
        "Poisson regression": (likelihoods.poisson_linnerud, likelihoods.poisson_counts),
        "robust regression": (likelihoods.huber_outliers, likelihoods.least_absolute, likelihoods.quantiles),
        "sum of squares": (functions.powell, functions.wood, functions.beale, functions.exponentials),
        "physics-informed network": (physics.pinn_poisson, physics.pinn_heat, physics.pinn_burgers),
        "network of sines": (pictures.siren_china, pictures.siren_sound),
        "score-function policy": (policies.bandit, policies.maze),
    }
)

TEST = _suite(
    {
        "residual network": (networks.residual_breast_cancer, networks.residual_teacher),
        "convolution": (networks.conv_glyphs, networks.conv_batch_norm, networks.conv_layer_tanh),
        "implicit layer": (networks.equilibrium, networks.hypernetwork),
        "graph network": (graphs.graph_club, graphs.graph_communities),
        "attention": (sequences.attention_names, sequences.attention_names_deep, sequences.attention_recall),
        "denoising autoencoder": (generative.denoising_flower, generative.sparse_flower),
        "normalising flow": (generative.flow_moons, generative.flow_banana),
        "positive and tensor factors": (
            factorisation.tensor_factors,
            factorisation.positive_factors,
            factorisation.phase_retrieval,
        ),
        "points for rows": (factorisation.neighbours_breast_cancer, factorisation.scaling),
        "linear classifier on a table": (likelihoods.logistic_breast_cancer, likelihoods.hinge_breast_cancer),
        "ranks": (likelihoods.ordinal, likelihoods.pairwise_ranks, likelihoods.preferences),
        "Gaussian process": (likelihoods.process_evidence,),
        "valley": (functions.dixon_price, functions.zakharov, functions.different_powers),
        "particles": (functions.lennard_jones_13, functions.lennard_jones_38, functions.thomson),
        "control through a simulation": (physics.balance, physics.swing_up, physics.landing),
        "picture restoration": (pictures.denoised_flower, pictures.deblurred_flower),
    }
)
SUITES: Mapping[str, Mapping[str, Entry]] = MappingProxyType({"development": DEVELOPMENT, "test": TEST})
