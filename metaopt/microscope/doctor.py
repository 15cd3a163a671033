"""The doctor: what ails a meta-training run, measured on a frozen φ. `diagnose` gives plain JSON."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from metaopt.choices import Choice
from metaopt.errors import UserError
from metaopt.evaluation.statistics import jsonable
from metaopt.experiment import Experiment, build_families, build_family, explores, optimizer_of
from metaopt.inner.checks import first_estimate
from metaopt.microscope.advice import advise
from metaopt.microscope.doctor_plan import (
    FAR,
    LIVES,
    REFERENCE,
    SAMPLING,
    UNBIASED,
    Reference,
    Variant,
    most_batches,
    option_of,
    plan,
    settle,
)
from metaopt.microscope.doctor_records import (
    as_pair,
    describe_gates,
    describe_inputs,
    describe_reference,
    describe_steps,
)
from metaopt.microscope.gradient_quality import (
    Sampler,
    Samples,
    assess,
    clip_samples,
    draw,
    prepare_samples,
    quick_jit,
    resolved_norm,
)
from metaopt.microscope.inner_runs import InnerRuns, watch
from metaopt.microscope.jacobian_growth import growth_along
from metaopt.microscope.pipeline import Part, Progress, work_off
from metaopt.registry import ESTIMATORS, OPTIMIZERS
from metaopt.training.estimator import build_estimator
from metaopt.training.meta_optimizer import follows_length, make_clips
from metaopt.training.size import check_size
from metaopt.types import Families, Key, MetaParams, TaskFamily

WATCHING = 2e6  # a family's, forward only
JACOBIANS = 1e6  # a family's, each a product of derivatives in forward mode
SECOND_ORDER_COST = 2.5  # of a meta-step, in back-propagations through the same runs
COORDINATES = 64  # of a task, whose inputs are kept
POSITIONS, PRODUCT = 5, 10  # where along a run, and over how many steps, the Jacobian's products are taken


def diagnose(
    experiment: Experiment,
    meta_params: MetaParams,
    *,
    meta_step: int | None = None,
    num_tasks: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures estimators, Jacobians, gates, inputs and step lengths on a frozen φ, and what to do about them.

    Args:
      meta_step: of φ; None: it is fresh, and advice on meta-training is left out.
      num_tasks: of a meta-step; default: the experiment's. The signal-to-noise ratio is that of so many.
      seed: decides tasks, starts, minibatches and noise; the same tasks serve every estimator.

    Raises:
      UserError: choices that do not fit together.
    """
    examination = _Examination(experiment, meta_params, num_tasks or experiment.num_tasks, seed)
    watched = _watched_families(experiment)
    variants, references = plan(experiment, examination.optimizer, examination.cost)
    unbiased: list[tuple[Variant, Samples]] = []
    drawn: list[tuple[Variant, Samples | ValueError]] = []
    jacobian, runs = [], []
    parts: list[Part] = []
    for reference in references:
        prepare = functools.partial(examination.reference, reference)
        keep = functools.partial(lambda variant, found: unbiased.append((variant, found)), reference)
        parts.append(Part(f"reference over {reference.horizon} steps", prepare, keep))
    for variant in variants:
        what = f"{variant.picked}, window {variant.window} of {variant.horizon}"
        keep = functools.partial(lambda variant, found: drawn.append((variant, found)), variant)
        parts.append(Part(what, functools.partial(examination.try_sample, variant), keep))
    for picked, family in zip(experiment.tasks, examination.families, strict=True):
        for second_order in (True, False):
            parts.append(
                Part(
                    f"Jacobian on {picked}, {'second' if second_order else 'first'} order",
                    functools.partial(examination.jacobian, family, second_order),
                    lambda found, picked=picked: jacobian.append({"task": str(picked), **found}),
                )
            )
    for picked, family, training, horizon in watched:
        parts.append(
            Part(
                f"inner runs on {picked}",
                functools.partial(examination.watch, family, horizon, explore=training),
                lambda found, name=str(picked), training=training: runs.append((name, training, found)),
            )
        )
    work_off(parts, experiment.matmul_precision, progress)
    settled = {variant.horizon: settle(variant, found, drawn) for variant, found in unbiased}
    described = []
    for variant, found in unbiased:
        reference = settled[variant.horizon]
        entry = {**_named(reference.variant), "kind": reference.kind, **describe_reference(reference.samples)}
        # What was wanted, and how far it is from being known.
        entry["unbiased"] = None if reference.kind == "unbiased" else {**_named(variant), **describe_reference(found)}
        described.append(entry)
    estimators = [
        {**_named(variant), "own": variant.own, **examination.judge(variant, found, settled[variant.horizon])}
        for variant, found in drawn
    ]
    observe = examination.optimizer.observe
    result: dict[str, Any] = {
        "version": 1,
        "meta_step": meta_step,
        "seed": seed,
        "num_tasks": examination.num_tasks,
        "horizon": experiment.horizon,
        "unroll_length": experiment.unroll_length or experiment.horizon,
        "optimizer": str(experiment.optimizer),
        "estimator": str(experiment.estimator),
        "explores": examination.explores,
        "second_order": bool(option_of(experiment.estimator, "second_order")),
        "state_gradient": option_of(experiment.estimator, "state_gradient"),
        "meta_optimizer": experiment.meta_optimizer.name,
        "follows_length": follows_length(experiment.meta_optimizer),
        **{name: getattr(experiment.meta_optimizer, name) for name in ("clip_norm", "clip_value", "clip_adaptive")},
        "references": described,
        "estimators": estimators,
        "jacobian": jacobian,
        "gates": None if observe is None else describe_gates(runs, observe.gates, experiment.horizon),
        "inputs": None if observe is None else describe_inputs(runs, observe.inputs, experiment.horizon),
        "steps": [describe_steps(name, training, run, experiment.horizon) for name, training, run in runs],
    }
    words = OPTIMIZERS.traits(experiment.optimizer.name).inputs_in_words
    result["inputs_in_words"] = words if observe is not None else ""
    if observe is None:
        result["without_network"] = f"{experiment.optimizer} has no network whose inputs and gates are known here"
    result = jsonable(result)
    return {**result, "advice": advise(result)}


def _named(variant: Variant) -> dict[str, Any]:
    short = ESTIMATORS.traits(variant.picked.name).short
    return {"estimator": str(variant.picked), "short": short, "horizon": variant.horizon, "window": variant.window}


def _watched_families(experiment: Experiment) -> list[tuple[Choice, TaskFamily, bool, int]]:
    """(choice, family, whether it is a training family, horizon); evaluation families run to `FAR` T at most."""
    far = FAR * experiment.horizon
    families = build_families(experiment)
    found = [(picked, family, True, far) for picked, family in zip(experiment.tasks, families, strict=True)]
    horizon = min(far, max(experiment.evaluation.horizons, default=far))
    added = experiment.rescale or experiment.companion or experiment.min_batch_size or experiment.bfloat16
    known = set() if added else {str(picked) for picked in experiment.tasks}
    others = {str(picked): picked for picked in experiment.evaluation.tasks if str(picked) not in known}
    return found + [
        (picked, build_family(picked, oracle=experiment.oracle), False, horizon) for picked in others.values()
    ]


def _check_derivatives(experiment: Experiment, family: TaskFamily) -> None:
    """The doctor measures by derivatives of the inner gradient, which an estimate from particles has not."""
    try:
        first_estimate(family, differentiated=True)
    except UserError:
        raise UserError(
            f"oracle {experiment.oracle.name}: its estimates have no derivative in θ, by which the doctor measures; "
            "examine the same experiment under the oracle minibatch, whose gradients are exact there."
        ) from None


class _Examination:
    """What all measurements share."""

    def __init__(self, experiment: Experiment, meta_params: MetaParams, num_tasks: int, seed: int) -> None:
        if num_tasks < 1:
            raise UserError(f"`num_tasks` ({num_tasks}) must be at least 1.")
        self.experiment = experiment
        self.meta_params = jax.tree.map(jax.numpy.asarray, meta_params)
        self.num_tasks = num_tasks
        self.optimizer = optimizer_of(experiment)
        self.families: Families = build_families(experiment)
        for family in self.families:
            _check_derivatives(experiment, family)
        check_size(dataclasses.replace(experiment, num_tasks=num_tasks), self.optimizer, self.families)
        self.explores = explores(experiment, self.optimizer)
        self._key = jax.random.fold_in(jax.random.key(seed), 0x646F63)  # apart from training and evaluation
        self._dims = [_dim(family) for family in self.families]
        self._known = False  # whether the unbiased gradient over the training horizon is

    def cost(self, variant: Variant) -> float:
        """Coordinate-steps of one life."""
        traits = ESTIMATORS.traits(variant.picked.name)
        dear = SECOND_ORDER_COST if variant.picked.options.get("second_order") else traits.cost
        return dear * self.num_tasks * float(np.mean(self._dims)) * variant.horizon

    def sample(self, variant: Variant, share: float = 1.0) -> Sampler:
        experiment = self.experiment
        # A life begins and ends with its tasks; staggered ones would live on in the next, and seem to agree with it.
        options = {key: value for key, value in variant.picked.options.items() if key != "staggered"}
        estimator = build_estimator(
            dataclasses.replace(experiment, memory=None),
            Choice(variant.picked.name, options),
            self.optimizer,
            self.families,
            num_tasks=self.num_tasks,
            horizon=variant.horizon,
            unroll_length=variant.window,
        )
        lives = int(np.clip(share * SAMPLING / self.cost(variant), *LIVES))
        windows = variant.horizon // variant.window
        return prepare_samples(estimator, self.meta_params, self.families, self._key, num_lives=lives, windows=windows)

    def reference(self, variant: Variant) -> Callable[[], Samples]:
        sample, own = self.sample(variant, REFERENCE), variant.horizon == self.experiment.horizon

        def run() -> Samples:
            found = draw(sample, UNBIASED if own else 1)
            self._known = self._known or (own and resolved_norm(found))
            return found

        return run

    def try_sample(self, variant: Variant) -> Callable[[], Samples | ValueError]:
        try:
            sample = self.sample(variant)
        except ValueError as error:
            refusal = error
            return lambda: refusal
        # As it runs: by then the reference is there.
        return lambda: draw(sample, most_batches(variant, self.experiment, known=self._known))

    def judge(self, variant: Variant, samples: Samples | ValueError, reference: Reference) -> dict[str, Any]:
        """The figures of one estimator, or the reason why it cannot serve."""
        if isinstance(samples, ValueError):
            return {"reason": str(samples).removeprefix(f"estimator '{variant.picked.name}': ")}
        quality = assess(samples, reference.samples)
        clipped, share = clip_samples(samples, make_clips(self.experiment.meta_optimizer))
        turned = assess(clipped, samples).cosine if share else None
        snr = quality.snr.value
        norms = np.linalg.norm(samples.gradient.astype(np.float64), axis=2)
        norms = norms[np.isfinite(norms)]
        return {
            "num_lives": len(samples.gradient),
            "is_reference": samples is reference.samples,
            "cosine": as_pair(quality.cosine),
            "one_step_cosine": quality.one_step_cosine,
            "norm": quality.norm,
            "norm_ratio": as_pair(quality.norm_ratio),
            "typical_norm": float(np.median(norms)) if norms.size else None,
            "large_norm": float(np.quantile(norms, 0.9)) if norms.size else None,
            "snr": as_pair(quality.snr),
            "tasks_for_snr_1": self.num_tasks / snr if snr > 0 else None,
            "nonfinite": quality.nonfinite,
            "clipped": share,
            "clipped_cosine": as_pair(turned),  # of the expectation of the clipped with that of the unclipped
            "diverged": float(1 - samples.alive.mean()),
        }

    def jacobian(self, family: TaskFamily, second_order: bool) -> Callable[[], dict[str, Any]]:
        horizon, dim = self.experiment.horizon, _dim(family)
        starts = min(POSITIONS, horizon)
        spacing = horizon // starts
        length = min(PRODUCT, spacing)
        iterations = 8
        tasks = int(np.clip(JACOBIANS / (dim * starts * length * iterations), 2, 8))
        run = functools.partial(
            growth_along,
            self.optimizer,
            num_starts=starts,
            spacing=spacing,
            length=length,
            iterations=iterations,
            explore=self.explores,
            second_order=second_order,
        )
        keys = jax.random.split(jax.random.fold_in(self._key, 1), tasks)
        compiled = quick_jit(run, self.meta_params, family, keys)

        def measure() -> dict[str, Any]:
            growth, alive = jax.device_get(compiled(self.meta_params, family, keys))
            growth = np.where(alive & np.isfinite(growth), growth, np.nan)
            known = ~np.isnan(growth).all(axis=0)
            shown = np.where(known, growth, 1.0)
            return {
                "order": "second" if second_order else "first",
                "num_tasks": tasks,
                "length": length,
                "start": [spacing * i for i in range(starts)],
                "median": np.where(known, np.nanmedian(shown, axis=0), np.nan),
                "largest": np.where(known, np.nanmax(shown, axis=0), np.nan),
            }

        return measure

    def watch(self, family: TaskFamily, horizon: int, *, explore: bool) -> Callable[[], InnerRuns]:
        tasks = int(np.clip(WATCHING / (_dim(family) * horizon), 2, 32))
        run = functools.partial(
            watch,
            self.optimizer,
            horizon=horizon,
            explore=explore and self.explores,
            num_coordinates=COORDINATES,
        )
        keys = jax.random.split(jax.random.fold_in(self._key, 2), tasks)
        compiled = quick_jit(run, self.meta_params, family, keys)
        return lambda: jax.tree.map(np.asarray, jax.device_get(compiled(self.meta_params, family, keys)))


def _dim(family: TaskFamily) -> int:
    def start(key: Key) -> Any:
        return family.init(key, family.sample(key, family.data))

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(start, jax.random.key(0))))
