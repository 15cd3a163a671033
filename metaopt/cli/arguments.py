"""The arguments of the commands, which `metaopt.experiment.flags` reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from metaopt.choices import Choice
from metaopt.experiment import BASELINES, TUNING


@dataclass(frozen=True)
class ResumeArguments:
    """Goes on with a run from its latest checkpoint."""

    resume: str  # the run's folder
    num_meta_steps: int | None = None  # in all; more than the run was begun with to lengthen it
    num_devices: int | None = None  # None: as before; φ is bitwise that of an undisturbed run on as many only


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluates learned optimizers beside tuned baselines, all on the same tasks."""

    # Run folders, .safetensors files or pretrained names; with :guard=true at its end, under the guard
    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    tasks: tuple[Choice, ...] = ()  # task families; none: those of the first run's own evaluation
    horizon: tuple[int, ...] = ()  # inner steps, one or several; none: those of the first run's own evaluation
    num_tasks: int = 100  # tasks from each family
    seed: int = 0  # decides the tasks
    baselines: tuple[str, ...] = BASELINES  # hand-designed optimizers to tune
    tuning: str = TUNING  # what is tried of each: 9x1 (rates), 9x3 (rates by momenta), full (these by schedules)
    oracle: str | None = None  # where gradients come from; None: as the runs were meta-trained
    patience: int | None = None  # early stopping on the validation loss, after so many checks that were no better
    check_every: int | None = None  # inner steps between its checks; None: about a hundredth of the horizon
    noise: bool = False  # beside each optimizer that was trained with step noise, the same with the noise on
    out: str | None = None  # a folder for the results; None: the run's own, or the next number in evaluations/
    num_devices: int | None = None  # None: one for each core


@dataclass(frozen=True)
class BenchmarkArguments:
    """Scores optimizers on a suite of tasks that none was meta-trained on, beside tuned and untuned baselines.

    Choose recipes on the suite `development`; `test` is for the end.
    """

    # Run folders, .safetensors files, pretrained names, registered optimizers (adam:learning_rate=0.01), or functions
    # that make an optax transformation (optax:adam:learning_rate=0.01, mine:make, FILE.py:FUNCTION); with :guard=true
    # at its end, under the guard
    optimizers: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    suite: str = "development"  # or test
    horizons: tuple[int, ...] = (50, 500)  # inner steps, of 50, 500 and 5000
    minutes: float | None = None  # no new task begins after so many; the same command goes on
    out: str | None = None  # a folder for the results; None: benchmark/NAME-SUITE
    baselines: bool = False  # measures the baselines that come with the package instead, anew where they are removed
    num_devices: int | None = None  # None: one for each core


@dataclass(frozen=True)
class DoctorArguments:
    """Examines meta-gradients, Jacobians, gates, inputs and step lengths on a frozen φ, and says what to change.

    Takes one to five minutes on two cores for small tasks; a trained φ takes longer than a fresh one.
    """

    run: Annotated[str, tyro.conf.Positional]  # a run folder, .safetensors file, or experiment (its φ is fresh)
    num_tasks: int | None = None  # of a meta-step; None: as in training
    seed: int = 0  # decides tasks and noise
    out: str | None = None  # a folder for the results; None: the run's own, or the next number in doctor/NAME/
    num_devices: int | None = None  # None: one for each core


@dataclass(frozen=True)
class InspectArguments:
    """Shows what an optimizer does to gradients, beside Adam and momentum: in about a minute for a small network."""

    # A run folder, .safetensors file, pretrained name, registered optimizer (adam:learning_rate=0.01), or a function
    # that makes an optax transformation (optax:adam:learning_rate=0.01, mine:make, FILE.py:FUNCTION)
    optimizer: Annotated[str, tyro.conf.Positional]
    seed: int = 0  # decides gradients and tasks
    out: str | None = None  # a folder for the results; None: the run's own, or the next number in inspect/NAME/


@dataclass(frozen=True)
class ReplayArguments:
    """Shows a run that blew up again, from a divergence capsule; exit status 1 if the bits differ."""

    capsule: Annotated[str, tyro.conf.Positional]  # a file in a run's folder `capsules`


@dataclass(frozen=True)
class ReportArguments:
    """Writes one page that opens offline: of a run, or of several runs or a sweep beside one another."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]  # run folders, or folders of runs such as a sweep's
    out: str | None = None  # the page; None: report.html in the run's or the sweep's folder, of several comparison.html


@dataclass(frozen=True)
class RunsArguments:
    """Lists run folders."""

    folders: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # where to look; none: runs
    where: tuple[str, ...] = ()  # field=value, all of which have to hold
    experiment: str | None = None  # by name
    state: str | None = None  # running, finished, interrupted, diverged, failed, cancelled, lost, unreadable or unknown
