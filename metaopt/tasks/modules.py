"""What `make_task` trains: a plain pytree of parameters, or the parameters of a flax module, nnx or linen.

flax is looked up among what is imported: without it there are no such modules.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.tasks.checks import explained
from metaopt.types import Key, Params, PyTree


class Model(NamedTuple):
    """How parameters are drawn, and how the user's functions see them."""

    init: Callable[..., Params]  # (key, *arguments) -> θ_0
    call: Callable[..., Any]  # (function, θ, *arguments) -> function(θ or module, *arguments)


def model_of(init: Any, loss: Callable[..., Any], init_shapes: tuple[Any, ...], loss_shapes: tuple[Any, ...]) -> Model:
    """The model that `make_task`'s `init` gives.

    Args:
      init: a function of a key (and a task) that returns parameters or an nnx module, or a linen module.
      loss: its first call makes the parameters of a linen module.
      init_shapes: of what follows `init`'s key.
      loss_shapes: of what follows the parameters in a call of `loss`.

    Raises:
      ValueError: a class or an nnx module in place of a function, or a module with state that cannot be carried.
    """
    if is_linen(init):
        return _of_linen(init, loss, loss_shapes)
    if isinstance(init, type) or _is_nnx(init):
        kind, name = ("class", init.__name__) if isinstance(init, type) else ("module", type(init).__name__)
        raise ValueError(
            f"`init` is the {kind} {name}; with flax nnx give a function of a key, such as "
            f"`lambda key: {name}(..., rngs=nnx.Rngs(key))`, with linen the module `{name}(...)`."
        )
    found: list[bool] = []

    def look(key: Key, *arguments: PyTree) -> None:
        found.append(_is_nnx(explained("`init`", init, key, *arguments)))

    jax.eval_shape(look, jax.random.key(0), *init_shapes)
    if found[0]:
        return _of_nnx(init, init_shapes)
    return Model(init, lambda function, params, *arguments: function(params, *arguments))


def is_linen(value: Any) -> bool:
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(value, linen.Module)


def _is_nnx(value: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Module)


def _of_nnx(init: Callable[..., Any], init_shapes: tuple[Any, ...]) -> Model:
    """Parameters are the module's `nnx.Param`, as nested dicts. The running averages of a normalisation stay as they
    are made, and what a call writes into them is dropped: it uses the statistics of the batch at hand. So does the key
    that `nnx.RNN` draws its first carry with, which is zero unless one says otherwise."""
    from flax import nnx

    graphs: list[Any] = []

    def parts(key: Key, *arguments: PyTree) -> tuple[Any, Any, Any]:
        # An `RNN` tags its stream so; Dropout's mask would be the same in every step, and is refused.
        kept = nnx.Any(nnx.BatchStat, nnx.All(nnx.RngState, nnx.WithTag("carry")))
        graph, params, held, rest = nnx.split(init(key, *arguments), nnx.Param, kept, ...)
        graphs.append(graph)
        return params, held, rest

    shapes, _, rest = jax.eval_shape(parts, jax.random.key(0), *init_shapes)
    _refuse_state(f"{type(held).__name__} at {'.'.join(map(str, path))}" for path, held in nnx.to_flat_state(rest))
    kept = _at_first(lambda *arguments: parts(*arguments)[1], init_shapes)
    graph = graphs[0]

    def call(function: Callable[..., Any], params: Params, *arguments: PyTree) -> Any:
        # Copies: a module writes into what it is merged from, and only within the trace that this was made in.
        state, written = jax.tree.map(lambda x: x, (shapes, kept))
        nnx.replace_by_pure_dict(state, params)
        return function(nnx.merge(graph, state, written), *arguments)

    return Model(lambda *arguments: nnx.to_pure_dict(parts(*arguments)[0]), call)


def _of_linen(module: Any, loss: Callable[..., Any], loss_shapes: tuple[Any, ...]) -> Model:
    """Parameters are the collection "params" that the loss's first call makes; "batch_stats" are kept as in nnx."""
    from flax import linen

    def variables(key: Key) -> Any:
        def first(module: Any) -> Any:
            return loss(module, *map(_blank, loss_shapes))

        return explained("`loss`, called to make the module's parameters,", linen.init(first, module), key)

    def averages(key: Key) -> Any:
        return {name: held for name, held in variables(key).items() if name != "params"}

    others = set(jax.eval_shape(variables, jax.random.key(0))) - {"params", "batch_stats"}
    _refuse_state(f"the collection {name}" for name in sorted(others))
    kept = _at_first(averages, ())

    def call(function: Callable[..., Any], params: Params, *arguments: PyTree) -> Any:
        apply = linen.apply(lambda module: function(module, *arguments), module, mutable=list(kept))
        return apply({"params": params, **kept})[0]  # and what was written, dropped

    return Model(lambda key, *arguments: variables(key).get("params", {}), call)


def _refuse_state(names: Any) -> None:
    found = ", ".join(names)
    if found:
        raise ValueError(
            f"`init` gives a module with state that a loss cannot carry ({found}); leave out what holds it, Dropout "
            "for one. Running averages of normalisations are the exception."
        )


def _at_first(function: Callable[..., PyTree], shapes: tuple[Any, ...]) -> PyTree:
    """State as a module is made with it, as arrays."""
    with jax.ensure_compile_time_eval():
        return jax.jit(function)(jax.random.key(0), *map(_blank, shapes))


def _blank(shapes: PyTree) -> PyTree:
    def blank(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), shape.shape)
        return jnp.zeros(shape.shape, shape.dtype)

    return jax.tree.map(blank, shapes)
