"""What the doctor compares: which estimators, at which horizons and windows, against which references."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from metaopt.choices import Choice
from metaopt.experiment import OF, Experiment, explores, part_moved
from metaopt.microscope.gradient_quality import CLEARLY, Samples, resolved_norm
from metaopt.numbers import largest_divisor
from metaopt.registry import ESTIMATORS
from metaopt.types import Optimizer

# Work is counted in coordinate-steps (tasks times coordinates times inner steps, forward and back), of which a core
# does nearly a million a second: sample sizes follow from these budgets, and not from a clock, so that they repeat.
SAMPLING = 3e6  # an estimator's
REFERENCE = 3.0  # times as many for a reference
LIVES = (10, 256)  # at least and at most, in a batch
FAR = 10  # multiples of the training horizon that the runs are followed to
# Batches of that many draws at most, at the training horizon, while the mean is not resolved ...
UNBIASED, OWN = 8, 4  # ... of the unbiased reference; of the run's own estimator and of backward passes
SMOOTHED = 8  # ... of evolution strategies, where they have to stand in for a reference that is not resolved


class Variant(NamedTuple):
    """One estimator at one horizon and window."""

    picked: Choice
    horizon: int
    window: int
    own: bool = False


def plan(
    experiment: Experiment, optimizer: Optimizer, cost: Callable[[Variant], float]
) -> tuple[list[Variant], list[Variant]]:
    """(estimators, references): the run's own, the same over shorter windows, every other; some at ten times T."""
    own, horizon = experiment.estimator, experiment.horizon
    window = experiment.unroll_length or horizon
    noisy = explores(experiment, optimizer)
    reverse = next(name for name in ESTIMATORS if differentiates(name) and needs_noise(name) == noisy)
    moved = part_moved(own)

    def same(name: str, **options: Any) -> Choice:
        """Another estimator of the part of φ that the run's own moves, whatever that is by default."""
        kept = {key: value for key, value in own.options.items() if key == "objective_batch"}
        part = {} if ESTIMATORS.traits(name).moves[0] == moved else {OF: moved}
        return Choice(name, {**kept, **part, **options})

    backward = same(reverse)
    if differentiates(own.name):
        backward = Choice(own.name, {key: value for key, value in own.options.items() if key != "staggered"})
    reference = same(reverse, second_order=True)
    found = [Variant(own, horizon, window, own=True), Variant(backward, horizon, horizon)]
    short = [largest_divisor(horizon, horizon // 5), largest_divisor(horizon, horizon // 20)]
    found += [Variant(backward, horizon, length) for length in short]
    for name in ESTIMATORS:
        if name not in (own.name, backward.name) and moved in ESTIMATORS.traits(name).moves:
            length = short[0] if name in persistent() else horizon
            found.append(Variant(same(name), horizon, length))
    references = [Variant(reference, horizon, horizon)]
    far = FAR * horizon
    if LIVES[0] * cost(Variant(reference, far, far)) <= REFERENCE * SAMPLING:
        references.append(Variant(reference, far, far))
        found += [Variant(backward, far, far), Variant(backward, far, horizon)]
        found += [Variant(same(name), far, horizon) for name in persistent()]
    seen: dict[Any, Variant] = {}
    for variant in found:  # the run's own comes first
        seen.setdefault((str(variant.picked), variant.horizon, variant.window), variant)
    return list(seen.values()), references


def differentiates(name: str) -> bool:
    """Whether an estimator differentiates the inner run, and does nothing else."""
    traits = ESTIMATORS.traits(name)
    return traits.differentiates and traits.sides == 1


def needs_noise(name: str) -> bool:
    return ESTIMATORS.traits(name).noise == "needed"


def from_values(name: str) -> bool:
    """Whether an estimator differentiates nothing, and goes by the values of perturbed runs."""
    traits = ESTIMATORS.traits(name)
    return traits.sides == 2 and not traits.differentiates


def persistent() -> list[str]:
    """Estimators from values that shorter windows leave unbiased."""
    return [name for name in ESTIMATORS if from_values(name) and _works_in_windows(name)]


def smoothed() -> list[str]:
    """Estimators from values over the whole horizon."""
    return [name for name in ESTIMATORS if from_values(name) and not ESTIMATORS.traits(name).windows]


def _works_in_windows(name: str) -> bool:
    return ESTIMATORS.traits(name).windows and ESTIMATORS.traits(name).unbiased_windows


class Reference(NamedTuple):
    """What the others are compared with at one horizon."""

    variant: Variant
    kind: str  # unbiased, smoothed or whole_window
    samples: Samples


def most_batches(variant: Variant, experiment: Experiment, *, known: bool) -> int:
    """How often an estimator's draws may be repeated; `known`: whether the unbiased reference is resolved."""
    if variant.horizon != experiment.horizon:
        return 1
    if variant.picked.name in smoothed() and not known:
        return SMOOTHED
    return OWN if variant.own or differentiates(variant.picked.name) else 1


def settle(unbiased: Variant, samples: Samples, drawn: Sequence[tuple[Variant, Samples | ValueError]]) -> Reference:
    """The unbiased reference, or where it is not resolved another one of the same horizon that is.

    First evolution strategies over the whole horizon, whose bias is their smoothing alone; then the backward pass over
    one window, which is what the run itself follows at best. With neither, the unbiased one stays, unresolved.
    """
    if resolved_norm(samples):
        return Reference(unbiased, "unbiased", samples)
    reverse = [name for name in ESTIMATORS if differentiates(name)]
    for kind, names in (("smoothed", smoothed()), ("whole_window", reverse)):
        for variant, found in drawn:
            fits = variant.picked.name in names and variant.window == variant.horizon == unbiased.horizon
            # The first of the backward passes is of the run's own kind.
            if fits and not isinstance(found, ValueError):
                if resolved_norm(found, CLEARLY):
                    return Reference(variant, kind, found)
                break
    return Reference(unbiased, "unbiased", samples)


def option_of(picked: Choice, name: str) -> Any:
    """An estimator's option as given or by default; None where it has no such option."""
    parameter = inspect.signature(ESTIMATORS[picked.name]).parameters.get(name)
    return picked.options.get(name, None if parameter is None else parameter.default)
