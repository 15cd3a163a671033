"""Trained optimizers as files: φ with the optimizer's description in a .safetensors file; `load` makes optax of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from safetensors import safe_open
from safetensors.flax import save_file

import metaopt
from metaopt.errors import UserError, suggest
from metaopt.experiment import Experiment, build_optimizer, explores
from metaopt.experiment.plain import from_json, to_json
from metaopt.files import replacing
from metaopt.registry import UnknownEntry
from metaopt.runs import own_entries
from metaopt.runs.folder import CONFIG, OPTIMIZER, resume_command
from metaopt.types import MetaParams, Optimizer, PyTree

VERSION = 1  # of the metadata
SHIPPED = Path(metaopt.__file__).resolve().parent / "shipped"


class Trained(NamedTuple):
    """An optimizer with its φ and where it comes from."""

    optimizer: Optimizer
    meta_params: MetaParams
    experiment: Experiment  # what it was meta-trained by
    card: dict[str, Any]


def save_optimizer(path: Path, meta_params: MetaParams, experiment: Experiment, card: Mapping[str, Any]) -> None:
    """Writes φ, one tensor a leaf under its path, and in the metadata the experiment and a card."""
    tensors = {name: jnp.asarray(leaf) for name, leaf in _named(meta_params).items()}
    about = {"version": VERSION, "experiment": to_json(experiment), "card": dict(card)}
    with replacing(path) as part:
        # One entry, for safetensors writes several in no fixed order and equal files should be equal bytes.
        save_file(tensors, part, {"metaopt": json.dumps(about, sort_keys=True)})


def read_optimizer(path: Path) -> Trained:
    """What `save_optimizer` wrote.

    Raises:
      UserError: not such a file, or φ of another architecture than its metadata describes.
    """
    try:
        with safe_open(path, framework="flax") as file:
            about = json.loads((file.metadata() or {})["metaopt"])
            if "died" in about:
                raise UserError(f"{path} is a divergence capsule; `metaopt replay {path}` shows it.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if about["version"] != VERSION:
            raise UserError(
                f"{path} is of format version {about['version']!r}, and metaopt {metaopt.__version__} reads {VERSION}; "
                "use the version of metaopt that wrote it."
            )
        experiment, card = from_json(about["experiment"], str(path), unversioned=1), dict(about["card"])
        optimizer = build_optimizer(experiment.optimizer)
        own_entries.tell_changed(card.get(own_entries.PLUGINS), path)
    except UnknownEntry as error:
        raise own_entries.with_files_to_import(error, path, card.get(own_entries.PLUGINS)) from None
    except UserError:
        raise
    except Exception as error:  # a stranger's file may hold anything
        raise UserError(f"{path} is no trained optimizer of metaopt: {_one_line(error)}.") from None
    shapes = jax.eval_shape(optimizer.init, jax.random.key(0))
    wanted = _named(shapes)
    for name in sorted({*wanted, *tensors}):
        held, due = (_shape(tree.get(name)) for tree in (tensors, wanted))
        if held != due:
            raise UserError(
                f"{path} is of another architecture: {name} is {held} there and {due} in {experiment.optimizer}."
            )
    meta_params = jax.tree.unflatten(jax.tree.structure(shapes), [tensors[name] for name in wanted])
    return Trained(optimizer, meta_params, experiment, card)


def _one_line(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _shape(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def pretrained() -> list[str]:
    """The names that `load` knows: the optimizers that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def find_optimizer(name_or_path: str | Path) -> Trained:
    """A shipped optimizer by name, a run folder's best, or a .safetensors file.

    Raises:
      UserError: there is none.
    """
    path = Path(name_or_path)
    if str(name_or_path) in pretrained():
        return read_optimizer(SHIPPED / f"{name_or_path}.safetensors")
    if os.path.isdir(path):
        if (path / OPTIMIZER).is_file():
            return read_optimizer(path / OPTIMIZER)
        if (path / CONFIG).is_file():
            raise UserError(f"{path} has no {OPTIMIZER} yet; let `{resume_command(path)}` reach a checkpoint.")
        runs = sorted(path.glob(f"*/{OPTIMIZER}"))
        hint = f"; did you mean {runs[-1].parent}?" if runs else "."
        raise UserError(f"{path} is not a run folder, for it has no {CONFIG}{hint}")
    if os.path.isfile(path):
        return read_optimizer(path)
    raise UserError(
        f"there is no run folder or .safetensors file {name_or_path}; as a pretrained optimizer "
        f"{suggest(str(name_or_path), pretrained())}"
    )


def load(name_or_path: str | Path, *, noise: bool = False) -> optax.GradientTransformationExtraArgs:
    """A trained optimizer as an optax transformation for any pytree.

    Args:
      name_or_path: one of `pretrained()`, a run folder (its best by validation), or a .safetensors file.
      noise: draw the step noise of meta-training too; `update` then needs `key=`, a fresh one every step.

    Raises:
      UserError: it is not there, or of another architecture, or `noise` is asked of an optimizer without any.
    """
    trained = find_optimizer(name_or_path)
    tx = trained.optimizer.bind(trained.meta_params)
    if not noise:
        return tx
    if not explores(trained.experiment, trained.optimizer):
        raise UserError(f"{trained.experiment.optimizer} was trained without step noise; leave `noise` out.")

    def update(updates: Any, state: Any, params: Any = None, *, key: Any = None, **extra: Any) -> Any:
        if key is None:
            raise ValueError("an optimizer loaded with noise=True draws it from `key`; call update(..., key=step_key)")
        return tx.update(updates, state, params, key=key, explore=True, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)
