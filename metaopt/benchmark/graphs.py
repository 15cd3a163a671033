"""Graph networks with two layers (Kipf and Welling 2017): a part of the members is known, the others are the test."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.benchmark import sources
from metaopt.benchmark.layers import cross_entropy, normals
from metaopt.benchmark.parts import Examples, Splits, on_examples
from metaopt.types import Key, Params, Scalar, TaskFamily


def graph_club() -> TaskFamily:
    """Sides in the karate club from those of eight members, the others being the test."""
    friends, sides, source = sources.club()
    known = np.zeros(34, np.float32)
    known[[0, 1, 5, 16, 33, 32, 24, 27]] = 1.0
    near = np.asarray(_neighbourhoods(friends))
    splits = {"train": Examples(near, (sides, known)), "test": Examples(near, (sides, 1 - known))}
    return on_examples(_graph_loss, _graph_init(34, 16, 2), splits, sources=(source,), whole=True)


def graph_communities() -> TaskFamily:
    """Four communities of 80 from a quarter of their members, each task its own graph."""

    def examples(key: Key) -> Splits:
        label_key, edge_key, known_key = jax.random.split(key, 3)
        labels = jax.random.randint(label_key, (80,), 0, 4)
        odds = jnp.where(labels[:, None] == labels, 0.3, 0.04)
        edges = jnp.triu(jax.random.bernoulli(edge_key, odds).astype(jnp.float32), 1)
        known = jax.random.bernoulli(known_key, 0.25, (80,)).astype(jnp.float32)
        near = _neighbourhoods(edges + edges.T)
        return {"train": Examples(near, (labels, known)), "test": Examples(near, (labels, 1 - known))}

    return on_examples(_graph_loss, _graph_init(80, 32, 4), examples, whole=True)


def _neighbourhoods(edges: jax.Array | np.ndarray) -> jax.Array:
    with_self = edges + jnp.eye(edges.shape[0])
    root = jnp.sum(with_self, axis=1) ** -0.5
    return root[:, None] * with_self * root


def _graph_init(nodes: int, width: int, classes: int):
    def init(key: Key) -> Params:
        first, second = normals(key, (nodes, width), (width, classes))
        return {"w": (2 / width) ** 0.5 * first, "b": jnp.zeros(width), "v": width**-0.5 * second}

    return init


def _graph_loss(params: Params, batch: Examples) -> Scalar:
    near, (labels, weights) = batch
    hidden = jax.nn.relu(near @ params["w"] + params["b"])
    decay = 1e-3 * (jnp.sum(params["w"] ** 2) + jnp.sum(params["v"] ** 2))
    return cross_entropy(near @ hidden @ params["v"], labels, weights) + decay
