"""Experiments as plain data, and the one place where the registries are read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from metaopt import files
from metaopt.choices import Choice, build, parse_choice, typed
from metaopt.errors import UserError
from metaopt.registry import ESTIMATORS, OBJECTIVES, OPTIMIZERS, ORACLES, TASKS, Registry

if TYPE_CHECKING:  # what only looks at run folders reads this file too, and must not wait for jax
    from metaopt.types import Families, Optimizer, TaskFamily

# Hand-designed optimizers that learned ones are compared with, unless others are asked for. The last two are told the
# horizon.
BASELINES = ("sgd", "momentum", "adam", "adamw:schedule=cosine", "nadamw:schedule=warmup_cosine")
TUNING = "9x3"  # what is tried of each
MOMENTA = ("mu", "beta1", "beta", "decay")  # settings of optimizers; the first that one has is searched beside its rate


@dataclass(frozen=True)
class MetaOptimizer:
    """The optimizer of φ: an optax optimizer, its schedule, and clipping of the meta-gradient before it."""

    name: Literal["adam", "adamw", "sgd", "rmsprop", "lion"] = "adam"  # of optax
    learning_rate: float = 1e-3  # the highest of the schedule
    weight_decay: float | None = None  # of φ, times the rate, a meta-step (adamw, lion); None: optax's own
    schedule: Literal["constant", "cosine", "exponential"] = "constant"  # of the learning rate, over num_meta_steps
    warmup_steps: int = 0  # meta-steps in which the learning rate rises from 0
    final_fraction: float = 0.1  # of the learning rate, at the last meta-step (cosine, exponential)
    clip_norm: float | None = 1.0  # of the meta-gradient; None: not clipped by norm
    clip_value: float | None = None  # of each of its numbers; None: not clipped by value
    clip_adaptive: float | None = None  # by norm, at this multiple of the running average of norms; above 1
    ema: float | None = None  # decay a meta-step of the average of φ that is validated, evaluated and saved; None: φ


@dataclass(frozen=True)
class Curriculum:
    """Shorter horizons first, or now and then; whole windows all, so `unroll_length` has to be set below `horizon`."""

    kind: Literal["none", "fixed", "log_uniform", "validation"] = "none"  # what decides how long runs are
    horizons: tuple[int, ...] = ()  # fixed, validation: inner steps, rising; `horizon` follows as the last
    every: int = 500  # fixed: meta-steps at each horizon
    patience: int = 2  # validation: goes on when so many validations at the next horizon in a row were no better
    shortest: int | None = None  # log_uniform: from here to `horizon`, for each chunk of tasks; None: one window
    power: float = 1.0  # log_uniform: by which power of a horizon its density falls; 1: that of log-uniform ones


@dataclass(frozen=True)
class Validation:
    """Held-out tasks during meta-training, at the training horizon and at multiples of it."""

    every: int = 500  # meta-steps; 0: never
    num_tasks: int = 32  # from each family
    multiples: tuple[int, ...] = (1, 10)  # of the horizon; the best checkpoint is chosen at the last


@dataclass(frozen=True)
class Evaluation:
    """What `metaopt train` evaluates when meta-training is done; no tasks: the families it was trained on."""

    tasks: tuple[Choice, ...] = ()  # task families; empty: those of meta-training
    horizons: tuple[int, ...] = ()  # inner steps; empty: the training horizon and 10 times it
    num_tasks: int = 100  # from each family
    baselines: tuple[str, ...] = BASELINES  # hand-designed optimizers to tune
    tuning: str = TUNING  # what is tried of each: 9x1 (rates), 9x3 (rates by momenta), full (these by schedules)
    patience: int | None = None  # early stopping on the validation loss, after so many checks that were no better
    check_every: int | None = None  # inner steps between its checks; None: about a hundredth of the horizon


@dataclass(frozen=True)
class Log:
    """Where metrics go beside the run folder's metrics.jsonl."""

    every: int = 50  # meta-steps per jitted chunk, each of which is one console line and one fetch from the device
    wandb: Literal["disabled", "offline", "online"] = "disabled"  # Weights & Biases; offline: to be synchronised later
    project: str = "metaopt"  # of wandb, as are those below; WANDB_PROJECT and its like say what is not given here
    entity: str | None = None  # a user or a team; None: that of the key
    tags: tuple[str, ...] = ()  # of the run
    name: str | None = None  # of the run; None: its folder's
    notes: str | None = None  # on the run
    job_type: str | None = None  # None: train, or sweep


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a meta-training run. Plain data: it goes to config.json and back unchanged."""

    tasks: tuple[Choice, ...]  # task families: what is optimised
    optimizer: Choice  # who optimises, and is meta-trained
    estimator: Choice  # how the gradient in φ is found
    oracle: Choice = field(default_factory=lambda: Choice("minibatch"))  # where the tasks' gradients come from
    objective: str = "mean"  # an entry of OBJECTIVES, with its options if it has any
    start: str | None = None  # a run, .safetensors file or pretrained name, whose φ it begins with; None: a fresh one
    seed: int = 0  # decides φ at the start, tasks and noise
    num_meta_steps: int = 2000  # steps of φ
    num_tasks: int = 16  # per meta-step, in equal parts from every family
    horizon: int = 100  # inner steps of a whole run
    unroll_length: int | None = None  # inner steps of one truncation window; None: the horizon
    rescale: float = 0.0  # random rescaling of each task's parameters: log c ~ U[-rescale, rescale], natural; 0: off
    companion: int = 0  # coordinates of a convex problem added to each task, 20 in its paper; 0: none
    min_batch_size: int | None = None  # minibatches of random sizes from here to each family's own; None: its own
    bfloat16: float = 0.0  # share of the tasks whose parameters and gradients are rounded to bfloat16
    chunk_size: int | None = None  # tasks whose residuals are held at once on a device; None: fitted to the cache
    num_devices: int | None = None  # None: as many as divide num_tasks
    memory: float | None = None  # GiB on a device for what an unroll's reverse pass reads; None: by what it has
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

    Raises:
      UserError: an unknown choice or setting, or a family that no inner loop can run on.
    """
    from metaopt.tasks.augment import augmented
    from metaopt.tasks.checks import check_family

    options = dict(picked.options)

    def option(name: str, default: Any) -> Any:
        return typed(options.pop(name, default), FAMILY_OPTIONS[name][0], f"task family {picked.name!r}: {name}")

    asked = "min_batch_size" in options
    rescale = option("rescale", rescale)
    companion = option("companion", companion)
    least = option("min_batch_size", min_batch_size)
    bfloat16 = option("bfloat16", bfloat16)
    family = build(Choice(picked.name, options), TASKS, others=tuple(FAMILY_OPTIONS))
    checked = (TASKS.entry(picked.name).factory, repr(sorted(options.items())))
    try:
        if checked not in _CHECKED_FAMILIES:
            check_family(family)
    except ValueError as error:
        raise UserError(f"task family {error}") from error
    _CHECKED_FAMILIES.add(checked)
    if oracle is not None:
        built = build(oracle, ORACLES)
        # A family that brings its own oracle keeps it under the default.
        family = family if ORACLES.traits(oracle.name).default else dataclasses.replace(family, oracle=built)
    if least is not None and not asked and family.batch_size is None:
        least = None
    try:
        return augmented(family, rescale=rescale, companion=companion, min_batch_size=least, bfloat16=bfloat16)
    except ValueError as error:
        raise UserError(f"task family {picked.name!r}: {error}") from error


# Tracing a deep network takes a while, and a command builds its families several times.
_CHECKED_FAMILIES: set[tuple[Any, str]] = set()


def placed(experiment: Experiment) -> Experiment:
    """The experiment with whole paths in the options that say where data lie, which hold in any folder."""

    def whole(picked: Choice) -> Choice:
        named = TASKS.traits(picked.name).places
        given = {key: value for key, value in picked.options.items() if key in named and value not in (None, "none")}
        places = {key: str(files.place(str(value)).absolute()) for key, value in given.items()}
        return Choice(picked.name, {**picked.options, **places})

    held = dataclasses.replace(experiment.evaluation, tasks=tuple(map(whole, experiment.evaluation.tasks)))
    return dataclasses.replace(experiment, tasks=tuple(map(whole, experiment.tasks)), evaluation=held)


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


def entries_of(experiment: Experiment) -> list[tuple[Registry[Any], str]]:
    """Every entry that an experiment names, with its registry."""
    tasks = (*experiment.tasks, *experiment.evaluation.tasks)
    return [
        *((TASKS, picked.name) for picked in tasks),
        (OPTIMIZERS, experiment.optimizer.name),
        *((OPTIMIZERS, parse_choice(text).name) for text in experiment.evaluation.baselines),
        (ESTIMATORS, experiment.estimator.name),
        (ORACLES, experiment.oracle.name),
        (OBJECTIVES, parse_choice(experiment.objective).name),
    ]


def build_optimizer(picked: Choice) -> Optimizer:
    """The learned or hand-designed optimizer a choice names.

    Raises:
      UserError: it is no choice, or none that is known.
    """
    if not isinstance(picked, Choice):
        raise UserError(f"{picked!r} is no choice; give `choice(name, option=value)`.")
    # By the factory too: a plugin that is read again brings a new one.
    key = (OPTIMIZERS.entry(picked.name).factory, repr(sorted(picked.options.items())))
    if key not in _BUILT_OPTIMIZERS:
        _BUILT_OPTIMIZERS[key] = build(picked, OPTIMIZERS)
    return _BUILT_OPTIMIZERS[key]


OF = "of"  # the option of every estimator that names the part of φ it moves


def part_moved(picked: Choice) -> str:
    """The part of φ that an estimator moves, by its option `of`: `optimizer`, `task` or `both`.

    Raises:
      UserError: one that it cannot move.
    """
    known = ESTIMATORS.traits(picked.name).moves
    of = picked.options.get(OF, known[0])
    if of not in known:
        raise UserError(f"estimator {picked.name!r}: {OF} is {of!r}; give one of {', '.join(known)}.")
    return str(of)


def whole_optimizer(experiment: Experiment) -> Optimizer:
    """The optimizer whose φ an experiment's run holds: with the task's hyperparameters, where these are moved.

    Raises:
      UserError: there are none, or several families.
    """
    from metaopt.tasks.hyper import OPTIMIZER, with_task

    optimizer, of = build_optimizer(experiment.optimizer), part_moved(experiment.estimator)
    if of == OPTIMIZER:
        return optimizer
    asked = f"estimator {experiment.estimator.name} moves the task's hyperparameters ({OF}={of})"
    if len(experiment.tasks) != 1:
        raise UserError(f"{asked}, which are those of one family; give one of the {len(experiment.tasks)} `tasks`.")
    (family,) = build_families(experiment)
    if not family.hyper:
        raise UserError(f"{asked}, and {family.name} leaves none to choose; take a family that states `hyper`.")
    return with_task(optimizer, family)


def optimizer_of(experiment: Experiment) -> Optimizer:
    """The optimizer that an experiment meta-trains, told its horizon if it goes by that."""
    optimizer = whole_optimizer(experiment)
    return optimizer if optimizer.at_horizon is None else optimizer.at_horizon(experiment.horizon)


# The same settings give the same object, so that another φ of theirs runs through code that is already compiled.
_BUILT_OPTIMIZERS: dict[tuple[Any, str], Optimizer] = {}


def explores(experiment: Experiment, optimizer: Optimizer) -> bool:
    """Whether meta-training draws the optimizer's step noise."""
    drawn = ESTIMATORS.traits(experiment.estimator.name).noise != "never"
    return optimizer.explores and drawn and bool(experiment.estimator.options.get("explore", True))
