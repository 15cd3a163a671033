"""What a coordinatewise network meets along inner runs: its inputs, its gates, the lengths of its steps."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.experiment import Choice
from metaopt.optimizers import OPTIMIZERS
from metaopt.optimizers.features import Features, gradient_statistics, log_and_sign, normalise, rnnprop_inputs
from metaopt.trees import ravel_tasks
from metaopt.types import Key, MetaParams, Optimizer, PyTree, TaskFamily, UnrollState
from metaopt.unroll import bind_tasks, reset, unroll

GATES = ("i", "f", "g", "o")
SATURATED = 0.05  # a gate in (0, 1) this close to an end, or tanh's output beyond 1 minus this, hardly moves
THESIS = ("∇", "∇²", "m", "v", "s", "n", "n²", "mⁿ", "vⁿ", "sⁿ")
INPUTS_IN_WORDS = (
    "What an lstm reads of each coordinate: ∇ the gradient and ∇² its square; m, v running averages of the two; "
    "s the gradient over its running size, m/√v; n the gradient over its norm and n² its square; mⁿ, vⁿ, sⁿ as m, v, "
    "s, of n instead of ∇."
)
NAMES = {"gradient": THESIS[:1], "all": THESIS, "scale_free": THESIS[4:]}


class Inputs(NamedTuple):
    """What a network reads of each coordinate."""

    features: Features
    names: tuple[str, ...]


class InnerRuns(NamedTuple):
    """Inner runs step by step; `inputs` and `saturated` are None for an optimizer without a known network."""

    loss: jax.Array  # [steps, tasks] that came with the step's gradient
    initial_loss: jax.Array  # [tasks]
    update_norm: jax.Array  # [steps, tasks] ‖g_t‖, 0 once a task is dead
    alive: jax.Array  # [steps, tasks]
    inputs: jax.Array | None  # [steps, tasks, coordinates, inputs], on a sample of the coordinates
    saturated: jax.Array | None  # [steps, tasks, layers, gates i f g o] share of activations


class Watched(NamedTuple):
    """An optimizer's state beside the gradient it was last given."""

    state: PyTree
    gradient: PyTree


def network_inputs(picked: Choice) -> Inputs | None:
    """The inputs of a registered network, from its options; None for any other optimizer."""
    if picked.name not in ("lstm", "rnnprop", "lstm_log_sign"):
        return None
    parameters = inspect.signature(OPTIMIZERS[picked.name]).parameters
    get = {name: picked.options.get(name, parameter.default) for name, parameter in parameters.items()}.__getitem__
    if picked.name == "rnnprop":
        return Inputs(rnnprop_inputs(get("beta")), ("m̂/√v̂", "∇/√v̂"))
    if picked.name == "lstm_log_sign":
        return Inputs(log_and_sign(get("p")), ("log|∇|/p", "sign ∇"))
    features = gradient_statistics(*(get(name) for name in ("features", "s_form", "beta1", "beta2", "eps")))
    return Inputs(features, NAMES[get("features")])


def watch(
    optimizer: Optimizer,
    meta_params: MetaParams,
    family: TaskFamily,
    keys: Key,
    *,
    horizon: int,
    explore: bool,
    inputs: Inputs | None,
    num_coordinates: int,
) -> InnerRuns:
    """Runs tasks, keys [tasks], for `horizon` steps and keeps what the network saw of a sample of the coordinates."""
    tx = _watched(bind_tasks(optimizer, meta_params))
    task, state = reset(tx, family, keys)
    tasks, dim = ravel_tasks(state.params, jnp.float32)[0].shape
    # The same for every task; drawn, for a stride would pick out rows of a weight matrix.
    sample = jax.random.permutation(jax.random.key(0), dim)[:num_coordinates]
    # A coordinate's network is followed by itself, from the gradients alone: nothing hangs on how the optimizer lays
    # out its state.
    shape = (tasks, len(sample))
    followed: Any = (
        () if inputs is None else (inputs.features.init(shape, jnp.float32), first_cells(meta_params, shape))
    )

    def step(carry: tuple[UnrollState, Any], count: jax.Array) -> tuple[tuple[UnrollState, Any], tuple[Any, ...]]:
        state, followed = carry
        state, trace = unroll(
            tx, family, task, state, length=1, explore=explore, objective_batch="none", differentiable=False
        )
        seen = gates = None
        if inputs is not None:
            gradient, _ = ravel_tasks(state.opt_state.gradient, jnp.float32)
            features, cells = followed
            unit = normalise(gradient)[:, sample]
            columns, features = inputs.features.apply(gradient[:, sample], count, features, unit)
            seen = jnp.stack(columns, axis=-1)
            values, cells = gate_values(meta_params, seen, cells)
            gates, followed = saturation(values), (features, cells)
        return (state, followed), (trace.loss[0], trace.update_norm[0], trace.alive[0], seen, gates)

    counts = jnp.arange(1, horizon + 1, dtype=jnp.int32)
    _, (loss, norm, alive, seen, gates) = jax.lax.scan(step, (state, followed), counts)
    return InnerRuns(loss, state.initial_loss, norm, alive, seen, gates)


def _watched(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Watched]:
        steps, inner = tx.update(updates, state.state, params, **extra)
        return steps, Watched(inner, updates)

    return optax.GradientTransformationExtraArgs(
        lambda params: Watched(tx.init(params), jax.tree.map(jnp.zeros_like, params)), update
    )


Cells = list[tuple[jax.Array, jax.Array]]  # (c, h) of every layer, [..., hidden]


def first_cells(meta_params: MetaParams, shape: tuple[int, ...]) -> Cells:
    layers = sum(name.startswith("lstm_") for name in meta_params)
    sizes = [meta_params[f"lstm_{layer}"]["hi"]["kernel"].shape[0] for layer in range(layers)]
    return [(jnp.zeros((*shape, size)), jnp.zeros((*shape, size))) for size in sizes]


def gate_values(meta_params: MetaParams, x: jax.Array, cells: Cells) -> tuple[list[dict[str, jax.Array]], Cells]:
    """One step of the LSTM from flax's parameters: each layer's gates by name, [..., hidden], and the next cells.

    i, f, o lie in (0, 1), g in (-1, 1); x is [..., inputs].
    """
    layers, after = [], []
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


def saturation(layers: list[dict[str, jax.Array]]) -> jax.Array:
    """[tasks, layers, gates] share of activations [tasks, coordinates, hidden] that are near an end of their range."""

    def share(name: str, values: jax.Array) -> jax.Array:
        near = jnp.abs(values) if name == "g" else jnp.maximum(values, 1 - values)
        return jnp.mean(near > 1 - SATURATED, axis=(1, 2))

    return jnp.stack([jnp.stack([share(name, layer[name]) for name in GATES], -1) for layer in layers], 1)
