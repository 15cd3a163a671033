"""An optimizer of metaopt's, or any optax transformation, as an optimizer of PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.errors import UserError
from metaopt.shipped.loading import load

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]

STATE = "metaopt"  # in the optimizer's state_dict


def to_torch(
    optimizer: str | os.PathLike[str] | optax.GradientTransformation, params: Iterable[Any]
) -> torch.optim.Optimizer:
    """A `torch.optim.Optimizer` whose steps are those of a learned optimizer, or of any optax transformation.

    Gradients are read from `.grad` after `loss.backward()`, and `step()` changes the parameters in place. Given a
    closure, as `torch.optim.LBFGS` takes it, the loss reaches optimizers that read it (`value=`). Numbers pass between
    the two libraries without a copy where jax has the device, and through the host otherwise; arithmetic is jax's, in
    single precision unless `jax_enable_x64` is set. A parameter without a gradient stays where it is; to the optimizer
    its gradient is zero. `state_dict` and `load_state_dict` work as for others. A group's `lr`, 1 unless it is given,
    multiplies its steps, so that torch's schedulers can be put on top.

    Args:
      optimizer: what `metaopt.load` takes, or what it gives.
      params: tensors, or dictionaries with `params`, as torch has groups; of a group's options `lr` alone counts.

    Raises:
      UserError: PyTorch is not installed, or there is no such optimizer; later, a closure that returns no loss,
        parameters that are added, or a state_dict of another optimizer.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("to_torch needs PyTorch, which is not installed; pip install torch") from None
    tx = load(optimizer) if isinstance(optimizer, str | os.PathLike) else optimizer
    if not isinstance(tx, optax.GradientTransformation):
        raise UserError(f"{optimizer!r} is no optimizer of optax's; give a name, a path, or what `metaopt.load` gives.")
    extended = optax.with_extra_args_support(tx)

    def steps(gradients: list[jax.Array], state: Any, values: list[jax.Array], value: Any) -> Any:
        return extended.update(gradients, state, values, **({} if value is None else {"value": value}))

    update = jax.jit(steps)

    class MetaoptOptimizer(torch.optim.Optimizer):
        """Its state is the optax state's leaves, one tensor each, kept under the first parameter."""

        tree: Any = None  # of the state; a deep copy has what torch knows of, and its class
        kinds: tuple[Any, ...] = ()  # of random keys among its leaves, which torch has as numbers; None for the others

        def __init__(self, params: Iterable[Any]) -> None:
            super().__init__(params, {"lr": 1.0})
            # Copies: a state may hold the parameters themselves, whose memory torch goes on to change.
            state = jax.tree.map(jnp.copy, extended.init([_to_jax(one) for one in self._every()]))
            leaves, type(self).tree = jax.tree.flatten(state)
            type(self).kinds = tuple(jax.random.key_impl(leaf) if _is_key(leaf) else None for leaf in leaves)
            self._keep(leaves)

        def add_param_group(self, param_group: dict[str, Any]) -> None:
            if self.tree is not None:
                raise UserError("the state is of the parameters given at first; make another optimizer with to_torch.")
            super().add_param_group(param_group)

        def _every(self) -> list[torch.Tensor]:
            return [one for group in self.param_groups for one in group["params"]]

        def _keep(self, leaves: list[jax.Array]) -> None:
            numbers = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]
            self.state[self._every()[0]][STATE] = numbers

        def _held(self) -> Any:
            numbers = self.state[self._every()[0]][STATE]
            pairs = zip(numbers, self.kinds, strict=True)
            leaves = [one if kind is None else jax.random.wrap_key_data(one, impl=kind) for one, kind in pairs]
            return jax.tree.unflatten(self.tree, leaves)

        @torch.no_grad()
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            value, loss = None, None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
                if loss is None:
                    raise UserError("the closure returned None; let it return the loss.")
                value = jnp.asarray(float(loss.detach() if isinstance(loss, torch.Tensor) else loss))
            every = self._every()
            gradients = [_to_jax(torch.zeros_like(one) if one.grad is None else one.grad) for one in every]
            changes, state = update(gradients, self._held(), [_to_jax(one) for one in every], value)
            self._keep(jax.tree.leaves(state))
            factors = [group["lr"] for group in self.param_groups for _ in group["params"]]
            for one, change, factor in zip(every, changes, factors, strict=True):
                if one.grad is not None:
                    one.add_(_to_torch(change, one), alpha=float(factor))
            return loss

        def state_dict(self) -> dict[str, Any]:
            held = super().state_dict()
            ((first, own),) = held["state"].items()
            tensors = [_copied(leaf) for leaf in own[STATE]]
            return {**held, "state": {first: {STATE: tensors}}}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            found = [own.get(STATE) for own in state_dict["state"].values()]
            due = self.state[self._every()[0]][STATE]
            if len(found) != 1 or [one.shape for one in found[0] or ()] != [leaf.shape for leaf in due]:
                raise UserError("this state_dict is of other parameters or of another optimizer.")
            super().load_state_dict({**state_dict, "state": {}})
            self._keep([jnp.array(_numpy(one), like.dtype) for one, like in zip(found[0] or (), due, strict=True)])

    return MetaoptOptimizer(params)


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_jax(tensor: Any) -> jax.Array:
    tensor = tensor.detach().to_dense().resolve_conj().contiguous()  # gradients of an embedding may be sparse
    on_host = tensor.device.type == "cpu"
    if on_host == (jax.default_backend() == "cpu"):
        return jnp.from_dlpack(tensor)
    return jnp.asarray(tensor.float().cpu().numpy())


def _numpy(tensor: Any) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]

    tensor = tensor.detach().cpu()  # where torch.load was told to put it
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16


def _copied(array: jax.Array) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(np.array(array, np.float32)).bfloat16()
    return torch.from_numpy(np.array(array))


def _to_torch(array: jax.Array, like: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    on_host = like.device.type == "cpu"
    if on_host == (jax.default_backend() == "cpu"):
        return torch.from_dlpack(array)
    return torch.from_numpy(np.asarray(array, np.float32)).to(like.device)
