"""Experiments as plain data, and the one place where the registries are read."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import cattrs

if TYPE_CHECKING:  # what only looks at run folders reads this file too, and must not wait for jax
    from metaopt.types import Families, Optimizer, TaskFamily


class UserError(ValueError):
    """A user's mistake: the command line prints its one line and exits with status 2."""


def suggest(name: str, known: Any) -> str:
    """`"'lstn' is unknown; did you mean 'lstm'? Known: ..."`, for error messages."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{name!r} is unknown{hint} Known: {', '.join(known)}."


@dataclass(frozen=True)
class Choice:
    """One entry of a registry with its settings; as text `classifier:hidden_layers=3,batch_norm=true`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = ",".join(f"{key}={self.text(key)}" for key in self.options)
        return f"{self.name}:{options}" if options else self.name

    def text(self, key: str) -> str:
        """An option's value as the command line writes it."""
        return _to_text(self.options[key])


def choice(name: str, **options: Any) -> Choice:
    """`choice("quadratic", dim=20)`."""
    return Choice(name, options)


def _to_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _from_text(text: str) -> Any:
    words = {"true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for convert in (int, float):  # "none" stays a word: whether it means None the option's type decides
        try:
            return convert(text)
        except ValueError:
            pass
    return text


def parse_choice(text: str, *, base: Choice | None = None) -> Choice:
    """Reads `NAME`, `NAME:key=value,...` or, on top of `base`, `:key=value,...` (keeps its name and other options)."""
    name, _, tail = text.partition(":")
    options: dict[str, Any] = {}
    if not name:
        if base is None:
            raise UserError(f"{text!r} names no entry; write NAME:key=value,...")
        name, options = base.name, dict(base.options)
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise UserError(f"{part!r} in {text!r} is not key=value; write NAME:key=value,...")
        options[key.strip()] = _from_text(value.strip())
    return Choice(name, options)


@dataclass(frozen=True)
class MetaOptimizer:
    """The optimizer of φ: an optax optimizer, its schedule, and clipping of the meta-gradient before it."""

    name: Literal["adam", "adamw", "sgd", "rmsprop", "lion"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "exponential"] = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.1  # of the learning rate, at the last meta-step (cosine, exponential)
    clip_norm: float | None = 1.0
    clip_value: float | None = None
    clip_adaptive: float | None = None  # by norm, at this multiple of the running average of norms; above 1
    ema: float | None = None  # decay a meta-step of the average of φ that is validated, evaluated and saved; None: φ


@dataclass(frozen=True)
class Curriculum:
    """Shorter horizons first, or now and then; whole windows all, so `unroll_length` has to be set below `horizon`."""

    kind: Literal["none", "fixed", "log_uniform", "validation"] = "none"
    horizons: tuple[int, ...] = ()  # fixed, validation: inner steps, rising; `horizon` follows as the last
    every: int = 500  # fixed: meta-steps at each horizon
    patience: int = 2  # validation: goes on when so many validations at the next horizon in a row were no better
    shortest: int | None = None  # log_uniform: from here to `horizon`, for each chunk of tasks; None: one window


@dataclass(frozen=True)
class Validation:
    """Held-out tasks during meta-training, at the training horizon and at multiples of it."""

    every: int = 500  # meta-steps; 0: never
    num_tasks: int = 32
    multiples: tuple[int, ...] = (1, 10)  # of the horizon; the best checkpoint is chosen at the last


@dataclass(frozen=True)
class Evaluation:
    """What `metaopt train` evaluates when meta-training is done; no tasks: the families it was trained on."""

    tasks: tuple[Choice, ...] = ()
    horizons: tuple[int, ...] = ()  # inner steps; empty: the training horizon and 10 times it
    num_tasks: int = 100
    baselines: tuple[str, ...] = ("sgd", "momentum", "rmsprop", "adam")


@dataclass(frozen=True)
class Log:
    """Where metrics go beside the run folder's metrics.jsonl."""

    every: int = 50  # meta-steps per jitted chunk, each of which is one console line and one fetch from the device
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "metaopt"


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a meta-training run. Plain data: it goes to config.json and back unchanged."""

    tasks: tuple[Choice, ...]
    optimizer: Choice
    estimator: Choice
    oracle: Choice = field(default_factory=lambda: Choice("minibatch"))  # where the tasks' gradients come from
    objective: Literal["mean", "last", "log", "relative"] = "mean"
    seed: int = 0
    num_meta_steps: int = 2000
    num_tasks: int = 16  # per meta-step, in equal parts from every family
    horizon: int = 100  # inner steps of a whole run
    unroll_length: int | None = None  # inner steps of one truncation window; None: the horizon
    rescale: float = 0.0  # random rescaling of each task's parameters: log c ~ U[-rescale, rescale], natural; 0: off
    companion: int = 0  # coordinates of a convex problem added to each task, 20 in its paper; 0: none
    min_batch_size: int | None = None  # minibatches of random sizes from here to each family's own; None: its own
    bfloat16: float = 0.0  # share of the tasks whose parameters and gradients are rounded to bfloat16
    chunk_size: int | None = None  # tasks whose residuals are held at once on a device; None: fitted to the cache
    num_devices: int | None = None  # None: as many as divide num_tasks
    memory: float | None = (
        None  # GiB on a device for what an unroll's reverse pass reads; None: chosen from what it has
    )
    matmul_precision: Literal["highest", "high", "default"] = "highest"  # on accelerators; CPUs know one
    checkpoint_every: int = 500  # meta-steps
    meta_optimizer: MetaOptimizer = field(default_factory=MetaOptimizer)
    curriculum: Curriculum = field(default_factory=Curriculum)
    validation: Validation = field(default_factory=Validation)
    evaluation: Evaluation = field(default_factory=Evaluation)
    log: Log = field(default_factory=Log)


# What every task family takes beside its own options: names, types and what they do without.
FAMILY_OPTIONS: dict[str, tuple[Any, str]] = {
    "rescale": (float, "0.0"),
    "companion": (int, "0"),
    "min_batch_size": (int | None, "none"),
    "bfloat16": (float, "0.0"),
}


def build(
    picked: Choice, registry: Mapping[str, Any], kind: str, *args: Any, others: Sequence[str] = (), **fixed: Any
) -> Any:
    """Calls the registry's factory with the choice's options, checked against the factory's annotated signature.

    Args:
      others: names of options that were taken out of the choice before, to be suggested.

    Raises:
      UserError: unknown name or option (with a suggestion), an ill-typed value, or what the factory itself refuses.
    """
    if picked.name not in registry:
        raise UserError(f"{kind} {suggest(picked.name, registry)}")
    factory = registry[picked.name]
    hints = get_type_hints(factory)
    parameters = inspect.signature(factory).parameters
    known = [name for name in list(parameters)[len(args) :] if name not in fixed]
    fixed = {name: value for name, value in fixed.items() if name in parameters}
    options = {}
    for key, value in picked.options.items():
        if key not in known:
            raise UserError(f"option of {kind} {picked.name!r}: {suggest(key, [*known, *others])}")
        options[key] = _typed(value, hints.get(key, Any), f"{kind} {picked.name!r}: {key}")
    try:
        return factory(*args, **options, **fixed)
    except UserError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{kind} {picked.name!r}: {error}") from error


def _typed(value: Any, hint: Any, where: str) -> Any:
    # cattrs would turn "abc" or 1.5 into an int or fail; strings and booleans must not pass for numbers.
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}; give a finite number.")
    if value == "none" and type(None) in get_args(hint):
        return None
    if get_origin(hint) is Literal and value not in get_args(hint):
        close = difflib.get_close_matches(str(value), map(str, get_args(hint)), n=1)
        meant = f"; did you mean {close[0]!r}?" if close else "."
        raise UserError(f"{where} is {_to_text(value)!r}; give one of {', '.join(map(str, get_args(hint)))}{meant}")
    names = str(hint).replace("typing.", "").replace("<class '", "").replace("'>", "")
    wrong = UserError(f"{where} is {value!r}, which is not of type {names}; give a value of that type.")
    if isinstance(value, bool) and "bool" not in names and hint is not Any:
        raise wrong
    if isinstance(value, str) and "str" not in names and "Literal" not in names and hint is not Any:
        raise wrong
    if isinstance(value, float) and "float" not in names and hint is not Any:
        raise wrong
    try:
        return value if hint is Any else cattrs.structure(value, hint)
    except Exception as error:
        raise wrong from error


def build_family(
    picked: Choice,
    *,
    rescale: float = 0.0,
    companion: int = 0,
    min_batch_size: int | None = None,
    bfloat16: float = 0.0,
    oracle: Choice | None = None,
) -> TaskFamily:
    """The task family a choice names, with its augmentations.

    Every family has the options `rescale`, `companion`, `min_batch_size` and `bfloat16`, which go before the arguments;
    the argument `min_batch_size` leaves families without minibatches as they are, while the option refuses them.
    """
    from metaopt.oracles import ORACLES
    from metaopt.tasks import TASKS, in_bfloat16, rescaled, with_batch_sizes, with_companion
    from metaopt.tasks.minibatches import batch_size_of

    options = dict(picked.options)

    def option(name: str, default: Any) -> Any:
        return _typed(options.pop(name, default), FAMILY_OPTIONS[name][0], f"task family {picked.name!r}: {name}")

    asked = "min_batch_size" in options
    rescale = option("rescale", rescale)
    companion = option("companion", companion)
    least = option("min_batch_size", min_batch_size)
    bfloat16 = option("bfloat16", bfloat16)
    family = build(Choice(picked.name, options), TASKS, "task family", others=tuple(FAMILY_OPTIONS))
    if oracle is not None:
        built = build(oracle, ORACLES, "oracle")
        # A family that brings its own oracle keeps it under the default.
        family = family if oracle.name == "minibatch" else dataclasses.replace(family, oracle=built)
    try:
        if least is not None and (asked or batch_size_of(family) is not None):
            family = with_batch_sizes(family, least)
        family = rescaled(family, rescale) if rescale else family
        family = with_companion(family, companion) if companion else family
        return in_bfloat16(family, bfloat16) if bfloat16 else family
    except ValueError as error:
        raise UserError(f"task family {picked.name!r}: {error}") from error


def build_families(experiment: Experiment) -> Families:
    """The families an experiment is meta-trained on."""
    return tuple(
        build_family(
            picked,
            rescale=experiment.rescale,
            companion=experiment.companion,
            min_batch_size=experiment.min_batch_size,
            bfloat16=experiment.bfloat16,
            oracle=experiment.oracle,
        )
        for picked in experiment.tasks
    )


def build_optimizer(picked: Choice) -> Optimizer:
    """The learned or hand-designed optimizer a choice names."""
    key = (picked.name, repr(sorted(picked.options.items())))
    if key not in _BUILT_OPTIMIZERS:
        from metaopt.optimizers import OPTIMIZERS

        _BUILT_OPTIMIZERS[key] = build(picked, OPTIMIZERS, "optimizer")
    return _BUILT_OPTIMIZERS[key]


# The same settings give the same object, so that another φ of theirs runs through code that is already compiled.
_BUILT_OPTIMIZERS: dict[tuple[str, str], Optimizer] = {}


def explores(experiment: Experiment, optimizer: Optimizer) -> bool:
    """Whether meta-training draws the optimizer's step noise."""
    own = experiment.estimator
    return optimizer.explores and own.name != "truncated_backprop" and bool(own.options.get("explore", True))
