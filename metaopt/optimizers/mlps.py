"""A coordinatewise MLP on Adam's and Adafactor's statistics: without a recurrent state, the LSTMs' cheap relative."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.optimizers.coordinatewise import from_rows, rows_of
from metaopt.optimizers.placement import explicit_mesh, laid_out_by_xla, last_axis_over, shardings, spread, vary_with
from metaopt.optimizers.step_rules import LOG_ALPHA_RANGE, check_scale
from metaopt.optimizers.tensors import TINY, Layout, inverse_root, layout_of, over_tensors, sums, to_rows
from metaopt.registry import OPTIMIZERS
from metaopt.trees import usual_rules
from metaopt.types import MetaParams, Optimizer, PyTree

MOMENTA = (0.9, 0.99, 0.999)
FACTORED = (0.9, 0.99, 0.999)
SECOND = 0.999
TIMES = tuple(float(10 ** (power / 2)) for power in range(11))  # steps
# Of each coordinate, all over their root mean square in its tensor: ∇, θ, m (three), √v, m/√v (three), 1/√v, ∇F and mF
# (three each) with F Adafactor's estimate of 1/√v, and the roots of row and column means of ∇² and their inverses.
NUM_FEATURES = 28
ADAM = 6  # m/√v of the fastest momentum, the direction it begins with
Output = Literal["tensor_rms", "scaled"]


class MLPState(NamedTuple):
    count: jax.Array  # [] int32, updates done
    first: tuple[jax.Array, ...]  # [rows, width] each
    second: jax.Array  # [rows, width]
    factors: tuple[tuple[jax.Array, jax.Array], ...]  # of each tensor [3, ...], means over its columns and its rows


@OPTIMIZERS.register(shorter_steps=lambda options: "log_alpha" if options.get("output") != "scaled" else "output_scale")
def mlp(
    *,
    hidden_size: int = 8,
    num_layers: int = 2,
    output: Output = "tensor_rms",
    log_alpha: float = -4.6,
    output_scale: float = 0.001,
) -> Optimizer:
    """A coordinatewise MLP on 28 statistics of Adam and Adafactor and 11 of time (Metz et al. 2022; Celo2's rule).

    Beside the network the direction d has a linear part, which begins as Adam's, the network's last layer as zero.

    Args:
      hidden_size, num_layers: of the network.
      output: `tensor_rms`, -α d/RMS(d) in each tensor (Celo2, arXiv 2602.19142), or `scaled`, -c d e^{c a} with a
        second output a (small_fc_lopt).
      log_alpha: where log α, a part of φ, starts; for `tensor_rms`.
      output_scale: c, for `scaled`.
    """
    least, most = LOG_ALPHA_RANGE
    if hidden_size < 1 or num_layers < 1:
        raise ValueError(f"`hidden_size` ({hidden_size}) and `num_layers` ({num_layers}) must be at least 1.")
    if not least <= log_alpha <= most:
        raise ValueError(f"`log_alpha` ({log_alpha:g}) must lie between {least:g} and {most:g}, where it is kept.")
    check_scale(output_scale)

    def init(key: jax.Array) -> MetaParams:
        if output == "scaled":
            return init_params(key, hidden_size, num_layers, heads=2)
        return init_params(key, hidden_size, num_layers) | {"log_alpha": jnp.asarray(log_alpha, jnp.float32)}

    return Optimizer(init, functools.partial(_bind, output, output_scale))


def init_params(key: jax.Array, hidden_size: int, num_layers: int, heads: int = 1) -> MetaParams:
    """Of the network and of the linear part beside it."""
    sizes = [NUM_FEATURES + len(TIMES), *[hidden_size] * num_layers]
    keys = jax.random.split(key, num_layers)
    layers = {
        f"dense_{i}": {
            "kernel": jax.random.normal(keys[i], (m, n), jnp.float32) * (2 / m) ** 0.5,
            "bias": jnp.zeros(n, jnp.float32),
        }
        for i, (m, n) in enumerate(zip(sizes, sizes[1:], strict=False))
    }
    layers["output"] = {
        "kernel": jnp.zeros((hidden_size, heads), jnp.float32),
        "bias": jnp.zeros(heads, jnp.float32),
    }
    return {"network": layers, "linear": jnp.zeros(NUM_FEATURES, jnp.float32).at[ADAM].set(1.0)}


def _bind(output: Output, scale: float, meta_params: MetaParams) -> optax.GradientTransformationExtraArgs:
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(meta_params))

    @usual_rules()
    def init(params: PyTree) -> MLPState:
        make = functools.partial(new_state, rows_of(params), dtype)
        mesh = explicit_mesh(params)
        if mesh is None:
            state = make()
            return vary_with(state, meta_params, params)._replace(count=state.count)
        axes, _ = spread(mesh, params)
        out = jax.tree.map(lambda leaf: last_axis_over(mesh, axes, leaf), jax.eval_shape(make))
        return jax.jit(lambda params: laid_out_by_xla(lambda params: make(), out, params), keep_unused=True)(params)

    @usual_rules()
    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any) -> tuple[PyTree, Any]:
        if not sum(leaf.size for leaf in rows_of(updates)):
            return updates, state
        if params is None:
            raise ValueError("mlp reads the parameters; call update(gradients, state, params).")

        def one(meta_params: Any, updates: PyTree, state: Any, params: PyTree) -> Any:
            gradients = rows_of(updates)
            steps, state = _update(output, scale, meta_params, gradients, rows_of(params), state, dtype)
            return from_rows(steps, updates), state

        mesh = explicit_mesh(updates)
        args = (meta_params, updates, state, params)
        return one(*args) if mesh is None else laid_out_by_xla(one, shardings(mesh, (updates, state)), *args)

    return optax.GradientTransformationExtraArgs(init, update)


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The two largest axes, over which a tensor is factored; none of a vector's."""
    return tuple(sorted(range(len(shape)), key=lambda axis: (shape[axis], axis))[-2:]) if len(shape) > 1 else ()


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def new_state(rows: list[jax.Array], dtype: Any) -> MLPState:
    """Of parameters as `rows_of` gives them."""
    shapes = tuple(leaf.shape[1:] for leaf in rows if leaf.size)
    layout = layout_of([math.prod(shape) for shape in shapes])

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, dtype)

    def factors(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        if not (axes := _axes(shape)):
            return zeros(len(FACTORED), *shape), zeros(len(FACTORED), *(1 for _ in shape))
        short, long = (zeros(len(FACTORED), *_without(shape, axis)) for axis in axes)
        return long, short

    first = tuple(zeros(*layout.shape) for _ in MOMENTA)
    return MLPState(jnp.zeros((), jnp.int32), first, zeros(*layout.shape), tuple(map(factors, shapes)))


def _factor(
    square: jax.Array, factors: tuple[jax.Array, jax.Array], count: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """The next averages, and Adafactor's 1/√v, row and column means, debiased, [3, *shape] (Shazeer and Stern 2018)."""
    axes, dtype = _axes(square.shape), square.dtype
    decay = jnp.asarray(FACTORED, dtype).reshape(-1, *(1,) * square.ndim)
    debias = -1 / jnp.expm1(count * jnp.log(decay))
    means = (square, jnp.zeros((1,) * square.ndim, dtype))
    if axes:
        short, long = axes
        means = (jnp.mean(square, axis=long, keepdims=True), jnp.mean(square, axis=short, keepdims=True))
    after = tuple(decay * old + (1 - decay) * mean for old, mean in zip(factors, means, strict=True))
    row, column = (debias * mean for mean in after)
    estimate = inverse_root(row)
    if axes:
        whole = jnp.mean(row, axis=axes[0] + 1, keepdims=True)
        estimate = estimate * inverse_root(column) / jnp.maximum(inverse_root(whole), TINY)
    wide = (jnp.broadcast_to(x, (len(FACTORED), *square.shape)) for x in (estimate, row, column))
    return after, tuple(wide)  # type: ignore[return-value]


def _update(
    output: Output,
    scale: float,
    meta_params: MetaParams,
    gradients: list[jax.Array],
    params: list[jax.Array],
    state: MLPState,
    dtype: Any,
) -> tuple[list[jax.Array], MLPState]:
    layout = layout_of([leaf.size for leaf in gradients])
    direction, outputs, state = directions(layout, meta_params, gradients, params, state, dtype)
    if output == "tensor_rms":
        direction = of_length_one(layout, direction, layout.owners(dtype, state.count > 0))
        steps = -jnp.exp(jnp.clip(meta_params["log_alpha"], *LOG_ALPHA_RANGE)) * direction
    else:
        steps = -scale * direction * jnp.exp(scale * outputs[1].reshape(layout.shape))
    return layout.leaves(steps, gradients, state.count > 0), state


def directions(
    layout: Layout,
    meta_params: MetaParams,
    gradients: list[jax.Array],
    params: list[jax.Array],
    state: MLPState,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, MLPState]:
    """d [rows, width], of any length, the network's outputs [heads, coordinates], and the next state."""
    count = state.count + 1
    t, owners = count.astype(dtype), layout.owners(dtype, count > 0)
    size = jnp.asarray(layout.sizes, dtype)[:, None]
    gradient, theta = (layout.matrix(leaves, dtype) for leaves in (gradients, params))
    first = tuple(b * m + (1 - b) * gradient for b, m in zip(MOMENTA, state.first, strict=True))
    second = SECOND * state.second + (1 - SECOND) * jnp.square(gradient)
    inverse = inverse_root(second)
    squares = [jnp.square(leaf[0].astype(dtype)) for leaf in gradients if leaf.size]
    pairs = [_factor(square, factors, t) for square, factors in zip(squares, state.factors, strict=True)]
    estimates, rows, columns = (
        [layout.matrix([wide[kind][i] for _, wide in pairs], dtype) for i in range(len(FACTORED))] for kind in range(3)
    )
    features = [gradient, theta, *first, second * inverse, *(m * inverse for m in first), inverse]
    features += [*(gradient * f for f in estimates), *(m * f for m, f in zip(first, estimates, strict=True))]
    inverses = [*map(inverse_root, (*rows, *columns))]
    features += [*(x * root for x, root in zip((*rows, *columns), inverses, strict=True)), *inverses]
    square = over_tensors(owners, jnp.stack(sums(*map(jnp.square, features)), axis=-1)) / size
    unit = to_rows(owners, inverse_root(square))  # [rows, features]
    x = jnp.stack([feature * unit[:, i : i + 1] for i, feature in enumerate(features)]).reshape(NUM_FEATURES, -1)
    outputs = _forward(meta_params["network"], x, jnp.tanh(t / jnp.asarray(TIMES, dtype) - 1))
    direction = (meta_params["linear"] @ x + outputs[0]).reshape(layout.shape)
    return direction, outputs, MLPState(count, first, second, tuple(factors for factors, _ in pairs))


def of_length_one(layout: Layout, direction: jax.Array, owners: jax.Array | None) -> jax.Array:
    """Over its root mean square in each tensor, with zeros where rows are padded."""
    direction = _inside(layout, direction)
    (square,) = sums(jnp.square(direction))
    size = jnp.asarray(layout.sizes, direction.dtype)[:, None]
    return to_rows(owners, inverse_root(over_tensors(owners, square[:, None]) / size)) * direction


def _inside(layout: Layout, x: jax.Array) -> jax.Array:
    """`x` with zeros where rows are padded."""
    ones = [jnp.ones(size, x.dtype) for size in layout.sizes]
    return x * layout.matrix(ones, x.dtype)


def _forward(layers: MetaParams, x: jax.Array, time: jax.Array) -> jax.Array:
    """[outputs, columns] of features [features, columns]; those of time are the same for all columns."""
    for i in range(len(layers) - 1):
        kernel, bias = layers[f"dense_{i}"]["kernel"], layers[f"dense_{i}"]["bias"]
        if i == 0:
            bias = bias + time @ kernel[NUM_FEATURES:]
        x = jax.nn.relu(kernel[: x.shape[0]].T @ x + bias[:, None])
    return layers["output"]["kernel"].T @ x + layers["output"]["bias"][:, None]
