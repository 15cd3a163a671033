"""The network of the coordinatewise optimizers: an LSTM with one or more scalar heads.

flax declares its parameters and gives the reference forward pass; the pass that runs is features-major, [features,
columns] with all tasks and coordinates as columns, and computes the four gates in one product.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metaopt.types import MetaParams


class Head(NamedTuple):
    """One output per coordinate. `constant`: zero weights, so that it starts at `bias` for every input."""

    name: str
    constant: bool = False
    bias: float = 0.0


class CellState(NamedTuple):
    """One layer's memory and output; [hidden, columns]."""

    c: jax.Array
    h: jax.Array


class Weights(NamedTuple):
    """The parameters as the features-major pass reads them, one entry a layer."""

    gates: tuple[jax.Array, ...]  # [4·hidden, inputs + hidden]
    gate_biases: tuple[jax.Array, ...]  # [4·hidden, 1]
    heads: jax.Array  # [outputs, hidden]
    head_biases: jax.Array  # [outputs, 1]


class LSTM(nn.Module):
    """`num_layers` LSTM layers and a dense layer a head, on rows: [columns, inputs] -> [columns, outputs]."""

    hidden_size: int
    num_layers: int
    heads: tuple[Head, ...]

    @nn.compact
    def __call__(self, x: jax.Array, carry: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, list]:
        states = []
        for layer in range(self.num_layers):
            state, x = nn.OptimizedLSTMCell(self.hidden_size, name=f"lstm_{layer}")(carry[layer], x)
            states.append(state)
        outputs = []
        for head in self.heads:
            kernel_init = nn.initializers.zeros if head.constant else nn.initializers.lecun_normal()
            bias_init = nn.initializers.constant(head.bias)
            outputs.append(nn.Dense(1, kernel_init=kernel_init, bias_init=bias_init, name=head.name)(x))
        return jnp.concatenate(outputs, axis=1), states


def init_params(network: LSTM, num_inputs: int, key: jax.Array) -> MetaParams:
    zeros = jnp.zeros((1, network.hidden_size), jnp.float32)
    carry = [(zeros, zeros)] * network.num_layers
    return network.init(key, jnp.zeros((1, num_inputs), jnp.float32), carry)["params"]


def fuse(network: LSTM, params: MetaParams) -> Weights:
    """Gathers flax's parameters into one matrix a layer. Done once an unroll, outside the scan."""
    gates, biases = [], []
    for layer in range(network.num_layers):
        cell = params[f"lstm_{layer}"]
        # σ(x) = (1 + tanh(x/2))/2: with the halving in the weights, one tanh serves all four gates.
        halves = [0.5, 0.5, 1.0, 0.5]
        rows = [
            half * jnp.concatenate([cell[f"i{gate}"]["kernel"], cell[f"h{gate}"]["kernel"]]).T
            for half, gate in zip(halves, "ifgo", strict=True)
        ]
        gates.append(jnp.concatenate(rows))
        biases.append(
            jnp.concatenate([half * cell[f"h{gate}"]["bias"] for half, gate in zip(halves, "ifgo", strict=True)])[
                :, None
            ]
        )
    heads = jnp.concatenate([params[head.name]["kernel"] for head in network.heads], axis=1).T
    head_biases = jnp.concatenate([params[head.name]["bias"] for head in network.heads])[:, None]
    return Weights(tuple(gates), tuple(biases), heads, head_biases)


def init_cells(network: LSTM, num_columns: int, dtype: jnp.dtype) -> tuple[CellState, ...]:
    zeros = jnp.zeros((network.hidden_size, num_columns), dtype)
    return tuple(CellState(zeros, zeros) for _ in range(network.num_layers))


def forward(weights: Weights, x: jax.Array, cells: tuple[CellState, ...]) -> tuple[jax.Array, tuple[CellState, ...]]:
    """One step of all columns: x [inputs, columns] -> [outputs, columns] and the next state."""
    states = []
    for gates, bias, cell in zip(weights.gates, weights.gate_biases, cells, strict=True):
        activations = jnp.tanh(gates @ jnp.concatenate([x, cell.h]) + bias)
        i, f, g, o = jnp.split(activations, 4)
        c = 0.5 * ((1 + f) * cell.c + (1 + i) * g)
        x = 0.5 * (1 + o) * jnp.tanh(c)
        states.append(CellState(c, x))
    return weights.heads @ x + weights.head_biases, tuple(states)
