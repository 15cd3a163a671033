"""Trained optimizers as files: φ in a .safetensors file, with the experiment and a card in its metadata."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

import metaopt
from metaopt import files
from metaopt.choices import Choice
from metaopt.errors import UserError, suggest, warn
from metaopt.experiment import Experiment, whole_optimizer
from metaopt.experiment.plain import from_json, to_json
from metaopt.optimizers.guard import guarded
from metaopt.registry import OPTIMIZERS, UnknownEntry
from metaopt.runs import own_entries
from metaopt.runs.folder import CONFIG, OPTIMIZER, resume_command
from metaopt.types import MetaParams, Optimizer, PyTree

VERSION = 1  # of the metadata
SHIPPED = Path(metaopt.__file__).resolve().parent / "shipped"
OLD_NAMES = {"log_learning_rate": "learning_rate"}  # what leaves of φ were called before


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
    with files.replacing(path) as part:
        # One entry, for safetensors writes several in no fixed order and equal files should be equal bytes.
        save_file(tensors, part, {"metaopt": json.dumps(about, sort_keys=True)})


def read_optimizer(path: Path) -> Trained:
    """What `save_optimizer` wrote.

    Raises:
      UserError: not such a file, or φ of another architecture than its metadata describes, or one that is not finite.
    """
    try:
        with safe_open(path, framework="flax") as file:
            about = json.loads((file.metadata() or {})["metaopt"])
            if "died" in about:
                raise UserError(f"{path} is a divergence capsule; `metaopt replay {path}` shows it.")
            tensors = {present_name(name): file.get_tensor(name) for name in file.keys()}
        if about["version"] != VERSION:
            raise UserError(
                f"{path} is of format version {about['version']!r}, and metaopt {metaopt.__version__} reads {VERSION}; "
                "use the version of metaopt that wrote it."
            )
        experiment, card = from_json(about["experiment"], str(path), unversioned=1), dict(about["card"])
        optimizer = whole_optimizer(experiment)
        own_entries.tell_changed(card.get(own_entries.PLUGINS), path)
    except UnknownEntry as error:
        raise own_entries.with_files_to_import(error, path, card.get(own_entries.PLUGINS)) from None
    except UserError:
        raise
    except Exception as error:  # a stranger's file may hold anything
        if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):  # of jax, not of the file
            raise
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
    refuse_nonfinite(meta_params, str(path))
    return Trained(optimizer, meta_params, experiment, card)


def pretrained() -> list[str]:
    """The names that `load` knows: the optimizers that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def without_guard(text: str) -> tuple[str, bool]:
    """What `NAME:guard=true` names, and whether it says so."""
    bare = text.removesuffix("guard=true")
    return (bare[:-1], True) if bare != text and bare[-1:] in tuple(":,") and bare[:-1] else (text, False)


def find_optimizer(name_or_path: str | Path) -> Trained:
    """A shipped optimizer by name, a run folder's best, or a .safetensors file; with `:guard=true` under `guard`.

    Raises:
      UserError: there is none.
    """
    bare, watched = without_guard(str(name_or_path))
    if watched:
        trained = find_optimizer(bare)
        return trained._replace(optimizer=guarded(trained.optimizer))
    path = files.place(name_or_path)
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


def start_of(optimizer: Optimizer, picked: Choice, start: str | Path) -> MetaParams:
    """Another's φ, for the optimizer that `picked` names to begin with; says where the other was of other settings.

    Raises:
      UserError: there is none, or its φ is that of another architecture.
    """
    trained = find_optimizer(start)
    held, due = (_named(jax.eval_shape(one.init, jax.random.key(0))) for one in (trained.optimizer, optimizer))
    for name in sorted({*held, *due}):
        there, here = (_shape(tree.get(name)) for tree in (held, due))
        if there != here:
            raise UserError(
                f"`start`: φ of {start} does not fit, {name} is {there} there and {here} here; take its optimizer, "
                f"{trained.experiment.optimizer}, or another start."
            )
    other = trained.experiment.optimizer
    if _settings(other) != _settings(picked):
        warn(f"`start`: φ of {start} was meta-trained as {other} and is the start of {picked}; see that you mean it.")
    return trained.meta_params


def _settings(picked: Choice) -> dict[str, Any]:
    """All that an optimizer is made by, defaults too."""
    defaults = inspect.signature(OPTIMIZERS[picked.name]).parameters
    return {"name": picked.name, **{name: one.default for name, one in defaults.items()}, **picked.options}


def refuse_nonfinite(meta_params: MetaParams, where: str, remedy: str = "take an older file, or train it anew") -> None:
    """Refuses a φ that no loss could be computed with.

    Raises:
      UserError: a number of it is nan or infinite; the line names the leaf.
    """
    for name, leaf in _named(meta_params).items():
        values = np.asarray(leaf)
        bad = int(np.sum(~np.isfinite(values)))
        if bad:
            raise UserError(
                f"{where}: {bad} of the {values.size} numbers of φ in {name} are nan or infinite; {remedy}."
            )


def refuse_nonfinite_file(path: Path) -> None:
    """`refuse_nonfinite` of a file that is only passed on, whatever optimizer it is of."""
    with contextlib.suppress(SafetensorError, OSError), safe_open(path, framework="flax") as file:
        refuse_nonfinite({name: file.get_tensor(name) for name in file.keys()}, str(path))


def _one_line(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def present_name(path: str) -> str:
    """The path of a leaf of φ, `a/b/c`, as it is called now."""
    return "/".join(OLD_NAMES.get(part, part) for part in path.split("/"))


def _shape(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
