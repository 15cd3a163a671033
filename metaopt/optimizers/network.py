"""The network of the coordinatewise optimizers: an LSTM with one or more scalar heads.

flax declares its parameters and gives the reference forward pass; the pass that runs is features-major, [features,
columns] with all tasks and coordinates as columns, and computes the four gates in one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from metaopt.types import MetaParams

INPUT_LAYER = "input"  # in φ


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

    gates: tuple[jax.Array, ...]  # [4·hidden, 1 + inputs + hidden], the bias first
    heads: jax.Array  # [outputs, hidden]
    head_biases: jax.Array  # [outputs, 1]
    input_layer: tuple[jax.Array, ...] = ()  # [units, inputs] and its bias [units, 1], where there is one


class LSTM(nn.Module):
    """`num_layers` LSTM layers and a dense layer a head, on rows: [columns, inputs] -> [columns, outputs].

    `input_units`: of a dense layer with ELU before them; 0: there is none.
    """

    hidden_size: int
    num_layers: int
    heads: tuple[Head, ...]
    input_units: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, carry: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, list]:
        states = []
        if self.input_units:
            x = nn.elu(nn.Dense(self.input_units, name=INPUT_LAYER)(x))
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
    gates = []
    for layer in range(network.num_layers):
        cell = params[f"lstm_{layer}"]
        # σ(x) = (1 + tanh(x/2))/2: with the halving in the weights, one tanh serves all four gates.
        halves = [0.5, 0.5, 1.0, 0.5]
        rows = [
            half
            * jnp.concatenate([cell[f"h{gate}"]["bias"][None], cell[f"i{gate}"]["kernel"], cell[f"h{gate}"]["kernel"]])
            for half, gate in zip(halves, "ifgo", strict=True)
        ]
        gates.append(jnp.concatenate(rows, axis=1).T)
    heads = jnp.concatenate([params[head.name]["kernel"] for head in network.heads], axis=1).T
    head_biases = jnp.concatenate([params[head.name]["bias"] for head in network.heads])[:, None]
    first = (params[INPUT_LAYER]["kernel"].T, params[INPUT_LAYER]["bias"][:, None]) if network.input_units else ()
    return Weights(tuple(gates), heads, head_biases, first)


def init_cells(network: LSTM, num_columns: int, dtype: jnp.dtype) -> tuple[CellState, ...]:
    def zeros() -> jax.Array:  # each a buffer of its own, or the state could not be donated
        return jnp.zeros((network.hidden_size, num_columns), dtype)

    return tuple(CellState(zeros(), zeros()) for _ in range(network.num_layers))


TILE = 32  # columns

# tanh(x) = x P(x²)/Q(x²) on |x| <= 8.3, a minimax fit of the relative error.
P = (1.0, 0.13425854, 0.0035491497, 2.1508182e-05, 1.46478345e-08)
Q = (1.0, 0.4675918, 0.02607988, 0.0003373919, 8.294933e-07)


def _rational(x: jax.Array) -> jax.Array:
    x = jnp.clip(x, -8.3, 8.3)
    u = x * x
    return x * _horner(P, u) / _horner(Q, u)


def _horner(coefficients: Sequence[float], u: jax.Array) -> jax.Array:
    *lower, total = (jnp.asarray(c, u.dtype) for c in coefficients)
    for coefficient in reversed(lower):
        total = total * u + coefficient
    return total


@jax.custom_jvp
def tanh(x: jax.Array) -> jax.Array:
    """tanh, within 4e-7 (relative) in float32 on a CPU, at two thirds of the cost of XLA's; elsewhere XLA's own."""
    if x.dtype != jnp.float32:
        return jnp.tanh(x)
    return jax.lax.platform_dependent(x, cpu=_rational, default=jnp.tanh)


@tanh.defjvp
def _tanh_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = tanh(*primals)
    return y, (1 - y * y) * tangents[0]


@jax.custom_jvp
def product(matrix: jax.Array, x: jax.Array, h: jax.Array) -> jax.Array:
    """matrix @ [1; x; h], in one product. Its reverse pass leaves out x where nothing depends on it."""
    columns = h.shape[1]
    # XLA's products on CPUs are a third slower where the columns do not fill its tiles.
    spare = -columns % TILE if columns > TILE else 0
    return (matrix @ jnp.pad(_stack(x, h), ((0, 0), (0, spare))))[:, :columns]


def _stack(x: jax.Array, h: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.ones_like(h[:1]), x, h])


def _product_jvp(primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    matrix, x, h = primals
    dmatrix, dx, dh = tangents
    first = 1 + x.shape[0]
    y = product(matrix, x, h)
    tangent = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):
        dh = jnp.zeros_like(h) if isinstance(dh, SymbolicZero) else dh
        tangent = matrix[:, 1:] @ jnp.concatenate([dx, dh])
    elif not isinstance(dh, SymbolicZero):
        tangent = matrix[:, first:] @ dh
    if not isinstance(dmatrix, SymbolicZero):
        tangent = tangent + dmatrix @ _stack(x, h)
    return y, tangent


product.defjvp(_product_jvp, symbolic_zeros=True)


def forward(weights: Weights, x: jax.Array, cells: tuple[CellState, ...]) -> tuple[jax.Array, tuple[CellState, ...]]:
    """One step of all columns: x [inputs, columns] -> [outputs, columns] and the next state."""
    states = []
    if weights.input_layer:
        kernel, bias = weights.input_layer
        x = nn.elu(kernel @ x + bias)
    for gates, cell in zip(weights.gates, cells, strict=True):
        activations = tanh(product(gates, x, cell.h))
        i, f, g, o = jnp.split(activations, 4)
        c = 0.5 * ((1 + f) * cell.c + (1 + i) * g)
        x = 0.5 * (1 + o) * tanh(c)
        states.append(CellState(c, x))
    return weights.heads @ x + weights.head_biases, tuple(states)


GATES = ("i", "f", "g", "o")
Cells = list[tuple[jax.Array, jax.Array]]  # (c, h) of every layer, [..., hidden]


def gate_values(meta_params: MetaParams, x: jax.Array, cells: Cells) -> tuple[list[dict[str, jax.Array]], Cells]:
    """One step of the LSTM from flax's parameters: each layer's gates by name, [..., hidden], and the next cells.

    i, f, o lie in (0, 1), g in (-1, 1); x is [..., inputs].
    """
    layers, after = [], []
    if INPUT_LAYER in meta_params:
        x = nn.elu(x @ meta_params[INPUT_LAYER]["kernel"] + meta_params[INPUT_LAYER]["bias"])
    for layer, (c, h) in enumerate(cells):
        cell = meta_params[f"lstm_{layer}"]
        gates = {}
        for name in GATES:
            hidden = cell[f"h{name}"]
            value = x @ cell[f"i{name}"]["kernel"] + h @ hidden["kernel"] + hidden["bias"]
            gates[name] = jnp.tanh(value) if name == "g" else jax.nn.sigmoid(value)
        c = gates["f"] * c + gates["i"] * gates["g"]
        x = gates["o"] * jnp.tanh(c)
        layers.append(gates)
        after.append((c, x))
    return layers, after
