"""Trained optimizers found by name or path; `load` makes optax transformations of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import jax
import optax

import metaopt
from metaopt import files
from metaopt.choices import parse_choice
from metaopt.errors import UserError, suggest
from metaopt.experiment import build_optimizer, explores
from metaopt.numbers import MOST_INT
from metaopt.optimizers.noise import with_noise
from metaopt.registry import OPTIMIZERS
from metaopt.runs.folder import CONFIG, OPTIMIZER, resume_command
from metaopt.runs.optimizer_file import Trained, read_optimizer
from metaopt.runs.optimizer_file import save_optimizer as save_optimizer
from metaopt.types import MetaParams, Optimizer, PyTree

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


def load(
    name_or_path: str | Path, *, noise: bool = False, horizon: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """An optimizer as an optax transformation for any pytree.

    An optimizer that averages has its parameters judged elsewhere than where it takes gradients: see `eval_params`.

    Args:
      name_or_path: one of `pretrained()`, a run folder (its best by validation), a .safetensors file, or a
        hand-designed optimizer with its options, `adam:learning_rate=0.001`.
      noise: draw the step noise of meta-training too; `update` then needs `key=`, a fresh one every step.
      horizon: how many steps will be made, for an optimizer that goes by it, such as one with `schedule=cosine`; others
        take no notice.

    Raises:
      UserError: it is not there, or of another architecture, or goes by the length of the run and is not told it, or
        `noise` is asked of an optimizer without any.
    """
    name, optimizer, meta_params, draws = _found(name_or_path)
    if horizon is not None and horizon < 1:
        raise UserError(f"`horizon` ({horizon}) must be at least 1.")
    if optimizer.at_horizon is not None:
        told = optimizer.at_horizon(horizon or MOST_INT)
        if horizon is None and told is not optimizer:
            raise UserError(
                f"{name} goes by the length of the run; say how many steps you will make: load(..., horizon=N)."
            )
        optimizer = told
    if noise and not draws:
        raise UserError(f"{name} was trained without step noise; leave `noise` out.")
    return (with_noise(optimizer) if noise else optimizer).bind(meta_params)


def eval_params(name_or_path: str | Path) -> Callable[[PyTree, PyTree], PyTree]:
    """(state, params) of `load`'s transformation -> the parameters to be judged.

    Raises:
      UserError: as `load`, or the optimizer's parameters are themselves what is to be judged.
    """
    name, optimizer, _, _ = _found(name_or_path)
    if optimizer.eval_params is None:
        raise UserError(f"{name} has no parameters for evaluation apart; judge its parameters.")
    return optimizer.eval_params


def _found(name_or_path: str | Path) -> tuple[str, Optimizer, MetaParams, bool]:
    """(what it is called, optimizer, φ, whether it was trained with step noise) of what `load` takes."""
    text = str(name_or_path)
    named = text.partition(":")[0] in OPTIMIZERS and text not in pretrained()
    if not named or os.path.exists(files.place(name_or_path)):
        trained = find_optimizer(name_or_path)
        draws = explores(trained.experiment, trained.optimizer)
        return str(trained.experiment.optimizer), trained.optimizer, trained.meta_params, draws
    optimizer = build_optimizer(parse_choice(text))
    if not optimizer.tunable:
        raise UserError(f"{text} is nothing before it is trained; give a run's folder, a file, or a pretrained one.")
    return text, optimizer, optimizer.init(jax.random.key(0)), False
