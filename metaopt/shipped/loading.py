"""Trained optimizers found by name or path; `load` makes optax transformations of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import optax

import metaopt
from metaopt import files
from metaopt.errors import UserError, suggest
from metaopt.experiment import explores
from metaopt.optimizers.noise import with_noise
from metaopt.runs.folder import CONFIG, OPTIMIZER, resume_command
from metaopt.runs.optimizer_file import Trained, read_optimizer
from metaopt.runs.optimizer_file import save_optimizer as save_optimizer
from metaopt.types import PyTree

SHIPPED = Path(metaopt.__file__).resolve().parent / "shipped"


def pretrained() -> list[str]:
    """The names that `load` knows: the optimizers that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def find_optimizer(name_or_path: str | Path) -> Trained:
    """A shipped optimizer by name, a run folder's best, or a .safetensors file.

    Raises:
      UserError: there is none.
    """
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


def load(name_or_path: str | Path, *, noise: bool = False) -> optax.GradientTransformationExtraArgs:
    """A trained optimizer as an optax transformation for any pytree.

    An optimizer that averages has its parameters judged elsewhere than where it takes gradients: see `eval_params`.

    Args:
      name_or_path: one of `pretrained()`, a run folder (its best by validation), or a .safetensors file.
      noise: draw the step noise of meta-training too; `update` then needs `key=`, a fresh one every step.

    Raises:
      UserError: it is not there, or of another architecture, or `noise` is asked of an optimizer without any.
    """
    trained = find_optimizer(name_or_path)
    if not noise:
        return trained.optimizer.bind(trained.meta_params)
    if not explores(trained.experiment, trained.optimizer):
        raise UserError(f"{trained.experiment.optimizer} was trained without step noise; leave `noise` out.")
    return with_noise(trained.optimizer).bind(trained.meta_params)


def eval_params(name_or_path: str | Path) -> Callable[[PyTree, PyTree], PyTree]:
    """(state, params) of `load`'s transformation -> the parameters to be judged.

    Raises:
      UserError: as `load`, or the optimizer's parameters are themselves what is to be judged.
    """
    trained = find_optimizer(name_or_path)
    if trained.optimizer.eval_params is None:
        raise UserError(f"{trained.experiment.optimizer} has no parameters for evaluation apart; judge its parameters.")
    return trained.optimizer.eval_params
