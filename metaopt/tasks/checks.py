"""What every family has to be for an inner loop to run on it; told in one line, from shapes alone."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.tasks.hyper import free_starts, with_hyper
from metaopt.types import Key, TaskFamily


def check_family(family: TaskFamily) -> None:
    """Refuses a family that no inner loop can run on.

    Raises:
      ValueError: a function that raises, or that needs a number where there is only its shape; parameters that are no
        real floating arrays; hyperparameters without a validation loss, or this without its split; a loss that is no
        real scalar, on a batch or on a split that is evaluated on; tasks, parameters or batches that are of another
        shape when they are drawn again.
    """
    name = f"{family.name}: " if family.name else ""

    def called(which: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return explained(f"{name}`{which}`", function, *arguments)

    def draw(key: Key) -> dict[str, Any]:
        task = called("sample", family.sample, key, family.data)
        params = called("init", family.init, key, task)
        return {"sample": task, "init": params, "batch": called("batch", family.batch, key, task, family.data)}

    def losses(drawn: dict[str, Any]) -> dict[str, Any]:
        task, params = drawn["sample"], drawn["init"]
        found, seen = {"": called("loss", family.loss, params, task, drawn["batch"])}, [_kind(drawn["batch"])]
        held_out = [called("eval_batch", family.eval_batch, task, family.data, split) for split in family.splits]
        for split, batch in zip(family.splits, held_out, strict=True):
            if _kind(batch) not in seen:  # what the loss does with more examples is known
                found[f" on {split}'s `eval_batch`"] = called("loss", family.loss, params, task, batch)
                seen.append(_kind(batch))
        if family.hyper:
            bound = with_hyper(family, free_starts(family))
            found[" under `hyper`"] = called("loss", bound.loss, params, task, drawn["batch"])
        if family.validation_loss is not None:
            judged = family.eval_batch(task, family.data, "validation")
            found[" as `validation_loss`"] = called("validation_loss", family.validation_loss, params, task, judged)
        if family.metrics is not None and held_out:
            called("metrics", family.metrics, params, task, held_out[0])
        return found

    if family.hyper and family.validation_loss is None:
        raise ValueError(
            f"{name}it leaves {', '.join(family.hyper)} to choose, and by what? Its own loss would choose itself away; "
            "give `validation_loss`."
        )
    if family.validation_loss is not None and "validation" not in family.splits:
        raise ValueError(f"{name}`validation_loss` needs data of its own; add validation to `splits`.")
    # Functions of their own, so that the second is traced as well.
    drawn, again = (jax.eval_shape(lambda key: draw(key), jax.random.key(0)) for _ in range(2))
    _check_params(name, drawn["init"])
    for part, before in drawn.items():
        shapes = [[leaf.shape for leaf in jax.tree.leaves(each)] for each in (before, again[part])]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name}`{part}` gives shapes {shapes[0]} and then {shapes[1]}; let them be the same each time, "
                "padded where there is less."
            )
    for where, loss in jax.eval_shape(losses, drawn).items():
        _check_loss(name, where, loss)


def explained(which: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a user's function returns, or a `ValueError` in one line for all that it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        raise ValueError(f"{which}{_what_happened(error)}") from error


def check_arrays(which: str, tree: Any) -> None:
    """Refuses what jax cannot carry, such as a text.

    Raises:
      ValueError: names its type.
    """
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float | complex):
            raise ValueError(f"{which} gives a {type(leaf).__name__}; return a pytree of arrays.")


def _kind(batch: Any) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(jnp.ndim(leaf), jnp.shape(leaf)[1:], jnp.result_type(leaf)) for leaf in leaves]


def _check_params(name: str, params: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not sum(leaf.size for _, leaf in leaves):
        raise ValueError(f"{name}`init` gives no parameters; return a pytree of arrays with at least one number.")
    for path, leaf in leaves:
        which = f"parameter {jax.tree_util.keystr(path)}" if path else "the parameter"
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"{name}{which} is complex ({leaf.dtype}); give its real and imaginary part as two arrays."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{name}{which} is of type {leaf.dtype}, which has no gradient; make it float32.")


def _check_loss(name: str, where: str, loss: Any) -> None:
    shapes = jax.tree.leaves(loss)
    if not isinstance(loss, jax.ShapeDtypeStruct) or loss.shape != ():
        seen = f"shape {shapes[0].shape}" if len(shapes) == 1 else f"{len(shapes)} arrays"
        raise ValueError(f"{name}`loss` gives {seen}{where}, and has to be one number; take its mean or sum.")
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"{name}`loss` is of type {loss.dtype}{where}; return a real floating number.")


# Raised by what needs a number and is given its shape and type alone.
_NEEDS_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def _what_happened(error: Exception) -> str:
    """One line, with the place in the family's own code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, _NEEDS_NUMBERS) or "sequences of concrete values" in str(error):
        return (
            f"{place} needs an array's numbers where jax has its shape alone: no `if`, size, boolean mask or "
            "numpy function may depend on them; use jnp.where, fixed shapes and jax.numpy."
        )
    said = " ".join(str(error).split()) or "no reason given"
    return f"{place} raises {type(error).__name__}: {said}"


def _is_library(file: str) -> bool:
    return "site-packages" in file or file.startswith("<") or file == __file__
