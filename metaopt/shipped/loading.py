"""Trained optimizers found by name or path; `load` makes optax transformations of them."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable
from typing import Any

import jax
import optax

from metaopt import files
from metaopt.choices import parse_choice
from metaopt.errors import UserError
from metaopt.experiment import build_optimizer, explores
from metaopt.numbers import MOST_INT
from metaopt.optimizers.guard import guarded
from metaopt.optimizers.noise import with_noise
from metaopt.registry import OPTIMIZERS
from metaopt.runs.optimizer_file import SHIPPED as SHIPPED
from metaopt.runs.optimizer_file import Trained as Trained
from metaopt.runs.optimizer_file import find_optimizer, pretrained, without_guard
from metaopt.runs.optimizer_file import read_optimizer as read_optimizer
from metaopt.runs.optimizer_file import save_optimizer as save_optimizer
from metaopt.types import MetaParams, Optimizer, PyTree


def load(
    name_or_path: str | os.PathLike[str],
    *,
    noise: bool = False,
    horizon: int | None = None,
    guard: bool = False,
    learning_rate_multiplier: optax.ScalarOrSchedule = 1.0,
    weight_decay: float = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer as an optax transformation for any pytree.

    A step is θ ← (1 - m·λ) θ + m·g, with g the optimizer's own, m `learning_rate_multiplier` and λ `weight_decay`.
    A learned optimizer has no learning rate that could scale its decay as AdamW's does: λ is the share of a parameter
    that one step takes off, AdamW's learning rate times its weight decay, and m scales both as a schedule there would.

    To train some parameters alone, `optax.masked(load(...), mask)` leaves the others' gradients as they are, and
    `optax.multi_transform({"train": load(...), "freeze": optax.set_to_zero()}, labels)` leaves the others be:
    `examples/fine_tuning.py`. An optimizer that averages has its parameters judged elsewhere than where it takes
    gradients: see `eval_params`.

    Parameters may be sharded under `jax.jit`, by XLA or by explicit meshes. Within `jax.shard_map` each device's part
    is a problem of its own to an optimizer, which cannot see norms over all devices: shard no parameters there.

    Args:
      name_or_path: one of `pretrained()`, a run folder or what `load_run` gives (its best by validation), a
        .safetensors file, or a hand-designed optimizer with its options, `adam:learning_rate=0.001`.
      noise: draw the step noise of meta-training too; `update` then needs `key=`, a fresh one every step.
      horizon: how many steps will be made, for an optimizer that goes by it, such as one with `schedule=cosine`; others
        take no notice.
      guard: let calibrated NadamW make some steps where the optimizer's own gradient, step or loss is not finite or
        explodes; the loss only where `update(..., value=loss)` tells it. `optax.tree.get(state, "steps_guarded")` and
        `"times_tripped"` count. It takes three numbers more a parameter. See `metaopt.optimizers.guard.guard`. As on a
        command line, `:guard=true` after the name says the same.
      learning_rate_multiplier: on the whole step; a number of at least 0, or an optax schedule, step -> factor.
      weight_decay: λ, at least 0 and below 1.
      mask: which parameters decay, as `optax.adamw` takes it: a pytree of bools, or params -> one. None: all.

    Raises:
      UserError: it is not there, or of another architecture, or goes by the length of the run and is not told it, or
        `noise` is asked of an optimizer without any, or a number is out of its range.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise UserError(f"`name_or_path` is a {type(name_or_path).__name__}; give one name or path.")
    bare, named = without_guard(os.fspath(name_or_path))
    with jax.ensure_compile_time_eval():  # also where `optax.inject_hyperparams` calls it within a jit
        name, optimizer, meta_params, draws = _found(bare)
    if horizon is not None:
        try:
            horizon = operator.index(horizon)
        except TypeError:
            raise UserError(f"`horizon` is {horizon!r}; give a whole number.") from None
        if horizon < 1:
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
    _check("learning_rate_multiplier", learning_rate_multiplier, math.inf)
    _check("weight_decay", weight_decay, 1.0)
    decays, scales = (not _is(value, plain) for value, plain in ((weight_decay, 0), (learning_rate_multiplier, 1)))
    if mask is not None and not decays:
        raise UserError("`mask` says which parameters decay; give a `weight_decay` above 0 with it, or leave it out.")
    optimizer = with_noise(optimizer) if noise else optimizer
    parts: list[optax.GradientTransformation] = [
        (guarded(optimizer) if guard or named else optimizer).bind(meta_params)
    ]
    if decays:
        parts.append(optax.add_decayed_weights(-weight_decay, mask))
    if scales:
        parts.append(optax.scale_by_learning_rate(learning_rate_multiplier, flip_sign=False))
    return optax.with_extra_args_support(parts[0] if len(parts) == 1 else optax.chain(*parts))


def _is(value: Any, number: int) -> bool:
    """Whether it is this number itself; an array under `optax.inject_hyperparams` may be another the next time."""
    return isinstance(value, int | float) and value == number


def _check(knob: str, value: Any, below: float) -> None:
    scales = below == math.inf
    if scales and callable(value):
        return
    try:
        number = float(value + 0.0)
    except jax.errors.ConcretizationTypeError:  # known at run time
        return
    except (TypeError, ValueError):
        also = " or a schedule, step -> factor" if scales else ""
        raise UserError(f"`{knob}` is a {type(value).__name__}; give a number{also}.") from None
    if not 0 <= number < below:
        raise UserError(f"`{knob}` ({value}) must be at least 0 and {'finite' if scales else 'below 1'}.")


def eval_params(name_or_path: str | os.PathLike[str]) -> Callable[[PyTree, PyTree], PyTree]:
    """(state, params) of `load`'s transformation -> the parameters to be judged.

    The state is the optimizer's own: `state.inner` under `guard`, the first of a chain under the other knobs.

    Raises:
      UserError: as `load`, or the optimizer's parameters are themselves what is to be judged.
    """
    bare, named = without_guard(os.fspath(name_or_path))
    name, optimizer, _, _ = _found(bare)
    judged = (guarded(optimizer) if named else optimizer).eval_params
    if judged is None:
        raise UserError(f"{name} has no parameters for evaluation apart; judge its parameters.")
    return judged


def _found(text: str) -> tuple[str, Optimizer, MetaParams, bool]:
    """(what it is called, optimizer, φ, whether it was trained with step noise) of what `load` takes."""
    named = text.partition(":")[0] in OPTIMIZERS and text not in pretrained()
    if not named or os.path.exists(files.place(text)):
        trained = find_optimizer(text)
        draws = explores(trained.experiment, trained.optimizer)
        return str(trained.experiment.optimizer), trained.optimizer, trained.meta_params, draws
    optimizer = build_optimizer(parse_choice(text))
    if not optimizer.tunable:
        raise UserError(f"{text} is nothing before it is trained; give a run's folder, a file, or a pretrained one.")
    return text, optimizer, optimizer.init(jax.random.key(0)), False
