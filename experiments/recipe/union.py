"""One controller of several: `python -m experiments.recipe.union OUT.safetensors FILE.safetensors ...`.

Each keeps its own state and weights, and what they put out, before tanh and softmax, is averaged: a block-diagonal GRU,
so nothing but an ordinary φ. All have to have the same settings but for the size of their states.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.scipy.linalg import block_diag

from metaopt.choices import Choice
from metaopt.runs.optimizer_file import read_optimizer, save_optimizer
from metaopt.types import MetaParams


def union(phis: Sequence[MetaParams]) -> MetaParams:
    """φ of them all, with the sum of their sizes."""

    def gates(name: str, join) -> jax.Array:
        """Of each gate by itself, for the columns of a GRU's matrix are those of its three gates."""
        parts = [jnp.split(phi["gru"][name], 3, axis=-1) for phi in phis]
        return jnp.concatenate([join(*gate) for gate in zip(*parts, strict=True)], axis=-1)

    def beside(*gate: jax.Array) -> jax.Array:
        return jnp.concatenate(gate, axis=-1)

    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(phis), *[{**phi, "gru": {}, "output": {}} for phi in phis])
    return {
        **mean,
        "gru": {name: gates(name, beside if name in ("input", "bias") else block_diag) for name in phis[0]["gru"]},
        "output": {
            "kernel": jnp.concatenate([phi["output"]["kernel"] / len(phis) for phi in phis]),
            "bias": sum(phi["output"]["bias"] for phi in phis) / len(phis),
        },
    }


def main() -> None:
    out, *files = map(Path, sys.argv[1:])
    trained = [read_optimizer(file) for file in files]
    phi = union([one.meta_params for one in trained])
    experiment, size = trained[0].experiment, phi["gru"]["state"].shape[0]
    picked = Choice(experiment.optimizer.name, {**experiment.optimizer.options, "hidden_size": size})
    save_optimizer(out, phi, dataclasses.replace(experiment, optimizer=picked), {})


if __name__ == "__main__":
    main()
