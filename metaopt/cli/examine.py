"""`metaopt doctor` and `metaopt replay`: a run's φ examined, a capsule shown again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from metaopt import files
from metaopt.cli.arguments import DoctorArguments, ReplayArguments
from metaopt.errors import UserError
from metaopt.experiment import Experiment
from metaopt.experiment.checks import validate
from metaopt.microscope.advice import reference_in_words
from metaopt.microscope.capsules import TASKS_KEPT, read_capsule
from metaopt.microscope.capsules import replay as run_again
from metaopt.microscope.doctor import diagnose
from metaopt.microscope.last_steps import first_cause, look_closely
from metaopt.report.doctor_pictures import doctor_figures
from metaopt.report.run_page import write_report
from metaopt.report.svg import save_png
from metaopt.runs import folder, tables
from metaopt.runs.console import make_console, say
from metaopt.runs.evaluations import place_for_results
from metaopt.runs.experiments import load_experiment
from metaopt.runs.interrupts import Interrupted, handling
from metaopt.shipped.loading import find_optimizer, pretrained
from metaopt.training.trainer import Trainer
from metaopt.trees import FAILURE_FACTOR, LARGEST
from metaopt.types import MetaParams

SHOWN_STEPS = 8  # of a capsule, before and at the death


def doctor(arguments: DoctorArguments, console: Any = None) -> Path:
    """Examines φ, prints the figures and the advice, writes doctor.json and pictures. Returns the folder.

    A run's go into its own folder and report; those of an experiment's fresh φ, or of a .safetensors file, into `out`.

    Raises:
      UserError: no such run or experiment, counts below 1, a folder that cannot be written.
    """
    console = console or make_console()
    name, experiment, meta_params, meta_step = _load(arguments.run)
    for flag, value, least in (("num-tasks", arguments.num_tasks, 1), ("seed", arguments.seed, 0)):
        if value is not None and not least <= value < 2**32:
            raise UserError(f"--{flag} ({value}) must be at least {least} and below 2**32.")
    place = place_for_results(Path(arguments.run), arguments.out, Path("doctor") / name, folder.DOCTOR)
    with place as (path, own):
        phi = "a fresh φ" if meta_step is None else f"φ of meta-step {meta_step}"
        say(console, f"examining {phi} of {name}")
        counts = {"num_tasks": arguments.num_tasks, "seed": arguments.seed}
        with handling(_stop, [signal.SIGINT, signal.SIGTERM]):
            result = diagnose(experiment, meta_params, meta_step=meta_step, progress=telling(console), **counts)
        result = {"name": name, **result}
        files.write_json(path / folder.DOCTOR, result)
    for line in text_lines(result):
        say(console, line)
    if own:
        say(console, f"\nreport: {write_report(path)}")
    else:
        for stem, figure in doctor_figures(result).items():
            with files.replacing(path / f"{stem}.png") as part:
                save_png(figure, part)
        say(console, f"\nresults: {path / folder.DOCTOR}")
    return path


def _load(run: str) -> tuple[str, Experiment, MetaParams, int | None]:
    """(name, experiment, φ, its meta-step) of a run folder, a trained optimizer, or an experiment's fresh φ."""
    path = Path(run)
    if path.is_dir() or path.suffix == ".safetensors" or run in pretrained():
        trained = find_optimizer(run)
        name = (folder.experiment_name(path) if path.is_dir() else None) or path.resolve().stem
        return name, validate(trained.experiment), trained.meta_params, trained.card.get("meta_step")
    name, experiment = load_experiment(run)
    experiment = validate(experiment)
    return name, experiment, Trainer(experiment).init().meta_params, None


def telling(console: Any) -> Callable[[int, int, str], None]:
    """Says which part of how many is begun, and how long the rest will take."""
    begun = time.monotonic()

    def show(done: int, parts: int, what: str) -> None:
        left = (time.monotonic() - begun) / done * (parts - done) if done else 0.0
        rest = f"{round(left / 60)} min" if left >= 90 else f"{round(left, -1):.0f} s"
        say(console, f"  {done + 1}/{parts}  {what}" + (f"  (about {rest} left)" if left >= 10 else ""))

    return show


def _stop(signum: int) -> None:
    raise Interrupted(signum, "the examination was stopped; nothing was written.")


# ----- text -----------------------------------------------------------------------------------------------------------


def text_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The examination in about 100 columns."""
    rows: list[Sequence[str]]
    yield f"\nMeta-gradients, {result['num_tasks']} tasks a meta-step, against"
    for entry in result["references"]:
        yield from _wrapped(f"  over {entry['horizon']:,} steps: {reference_in_words(entry)}")
    header = ("estimator", "steps", "window", "cosine", "norm ratio", "one step", "SNR", "bad", "clipped")
    rows = [header, *(_estimator_row(entry) for entry in result["estimators"])]
    yield from _aligned(rows)
    yield "cosine, norm ratio: of the expectation; one step: cosine of a single meta-step's gradient;"
    yield "SNR: ‖mean‖²/variance; bad: not finite; a dash: not resolved by the draws; *: the run's own"
    for entry in result["estimators"]:
        if "reason" in entry:
            yield from _wrapped(f"cannot: {entry['estimator']}: {entry['reason']}")
    for entry in result["references"]:
        for one in filter(None, (entry, entry["unbiased"])):
            state = "" if one["resolved"] else ", not resolved"
            word = "reference" if one is entry else "the unbiased one"
            yield from _wrapped(
                f"{word} over {one['horizon']:,} steps: {one['estimator']}, {one['num_lives']:,} draws, norm "
                f"{_n(one['norm'])}, SNR {_n((one['snr'] or {}).get('value'))} a draw{state}"
            )
    yield "\nGrowth a step of the unroll's Jacobian (spectral radius of products), median/largest over tasks"
    starts = result["jacobian"][0]["start"] if result["jacobian"] else []
    rows = [("task", "order", *(f"step {start}" for start in starts))]
    for entry in result["jacobian"]:
        pairs = zip(entry["median"], entry["largest"], strict=True)
        rows.append((entry["task"], entry["order"], *(f"{_growth(a)}/{_growth(b)}" for a, b in pairs)))
    yield from _aligned(rows)
    if result["gates"]:
        yield "\nSaturated gates: share of activations in the outer 5% of their range, on training tasks"
        rows = [("task", "steps", "layer", "input", "forget", "cell", "output")]
        for entry in result["gates"]:
            for layer, gates in enumerate(entry["layers"] if entry["training"] else (), 1):
                cells = (_percent(gates[gate]) for gate in ("i", "f", "g", "o"))
                rows.append((entry["task"], entry["steps"], str(layer), *cells))
        yield from _aligned(rows)
    if result["inputs"]:
        names = result["inputs"]["names"]
        yield "\nInputs outside of what training (*) shows within its horizon (0.1% to 99.9%), share of all"
        rows = [("task", "steps", *names)]
        for entry in result["inputs"]["tasks"]:
            rows.append((_label(entry), entry["steps"], *map(_percent, entry["outside"])))
        yield from _aligned(rows)
    elif result.get("without_network"):
        yield f"\nNo gates and inputs: {result['without_network']}."
    yield "\nStep lengths, median over tasks, and runs that failed (not finite, or above 10 f(θ_0))"
    rows = [("task", "first step", "at the horizon", "last step", "failed")]
    for entry in result["steps"]:
        median, at = entry["median"], [i for i, step in enumerate(entry["step"]) if step <= result["horizon"]]
        last = f"{_n(median[-1])} (step {entry['step'][-1]:,})"
        rows.append((_label(entry), _n(median[0]), _n(median[at[-1]]), last, _percent(entry["failed"])))
    yield from _aligned(rows)
    yield "\nAdvice"
    for number, entry in enumerate(result["advice"], 1):
        yield from _wrapped(f"{number}. {entry['text']}")
    if not result["advice"]:
        yield "nothing to complain about"


def _label(entry: Mapping[str, Any]) -> str:
    return ("* " if entry["training"] else "") + entry["task"]


def _estimator_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    name = ("* " if entry.get("own") else "") + entry["estimator"]
    where = (name, f"{entry['horizon']:,}", f"{entry['window']:,}")
    if "reason" in entry:
        return (*where, "cannot", "", "", "", "", "")
    cosine, ratio, one_step = (entry[key] for key in ("cosine", "norm_ratio", "one_step_cosine"))
    towards = "reference" if entry["is_reference"] else "{value:.2f} ±{error:.2f}"
    return (
        *where,
        "–" if cosine is None else towards.format(value=min(cosine["value"], 1.0), error=cosine["error"]),
        "–" if ratio is None else f"{_n(ratio['value'])} ±{ratio['error']:.1g}",
        "–" if one_step is None else f"{one_step:.2f}",
        _n((entry["snr"] or {}).get("value")),
        _percent(entry["nonfinite"]),
        _percent(entry["clipped"]),
    )


def _n(value: Any) -> str:
    return tables.number(value, missing="–")


def _growth(value: Any) -> str:
    return "–" if value is None else f"{float(value):.2f}"


def _percent(share: Any) -> str:
    return tables.percent(share, missing="–")


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, at most 44 wide, the others to the right."""
    short = [[row[0] if len(row[0]) <= 44 else row[0][:43] + "…", *row[1:]] for row in rows]
    width = sum(max(map(len, column)) + 2 for column in zip(*short, strict=True))
    gap = "  " if width < 99 else " "
    yield from (gap + line for line in tables.aligned(short, short[0][1:], gap))


def _wrapped(text: str) -> list[str]:
    return wrap(text, 96, subsequent_indent="   ", break_on_hyphens=False, break_long_words=False)


# ----- replay ---------------------------------------------------------------------------------------------------------


def replay(arguments: ReplayArguments, console: Any = None) -> None:
    """Runs a capsule again and prints the steps around each death.

    Raises:
      UserError: the file is no capsule.
      SystemExit: with 1, the bits are not those it holds.
    """
    console = console or make_console()
    capsule = read_capsule(Path(arguments.capsule))
    setting = capsule.setting
    at = "" if setting.meta_step is None else f", φ of meta-step {setting.meta_step}"
    noise = "with step noise" if setting.explore else "without step noise"
    say(console, f"{setting.kind} on {setting.task}{at}, {len(capsule.batch.keys)} tasks a batch, {noise}")
    for name, value in setting.about.items():
        say(console, f"  {name.replace('_', ' ')}: {value}")
    found, closely = run_again(capsule), look_closely(setting, capsule.batch)
    tasks = [task for task, _ in capsule.died]
    most = f", the first {TASKS_KEPT} of those that blew up" if len(tasks) == TASKS_KEPT else ""
    say(console, f"shown: task {', '.join(map(str, tasks))} of {len(capsule.batch.keys)} in the batch{most}")
    last = max(step for _, step in capsule.died)
    # Rows of the kept trace, and of the whole: a window may begin in the middle of a run.
    begun = np.zeros(len(capsule.batch.keys), int) if capsule.batch.start is None else capsule.batch.start[1].step
    for column, (task, step) in enumerate(capsule.died):
        say(console, f"\ntask {task} blew up at step {step}; f(θ_0) = {capsule.initial_loss[column]:.6g}")
        rows: list[Sequence[str]] = [("step", "loss", "gradient norm", "step length")]
        row = len(found.loss) - 1 - (last - step)
        for index in range(max(0, row + 1 - SHOWN_STEPS), row + 1):
            value, norm = found.loss[index, column], found.update_norm[index, column]
            at = step - (row - index)
            whole = at - int(begun[task]) - 1
            if not np.isfinite(value):  # as it was before it counted as infinite
                value, norm = closely.loss[whole, task], closely.update_norm[whole, task]
            rows.append((f"{at:,}", _loss(value), f"{closely.gradient_norm[whole, task]:.4g}", _loss(norm)))
        for line in _aligned(rows):
            say(console, line)
        say(console, _cause(first_cause(closely, task), int(begun[task]), setting.kind))
    if found.same:
        say(console, "\nthe same bits as when it was kept")
    else:
        say(console, "\nthe bits DIFFER from those kept: another machine, jax or version of metaopt rounds otherwise")
        raise SystemExit(1)


def _cause(cause: tuple[str, int] | None, begun: int, kind: str) -> str:
    if cause is None:
        limit = f"; the loss rose above {FAILURE_FACTOR:g} f(θ_0)" if kind == "evaluation" else ""
        return f"loss, gradient and parameters stayed finite and below {LARGEST:.0e}{limit}"
    return f"first to be non-finite or above {LARGEST:.0e}: the {cause[0]}, at step {begun + cause[1] + 1}"


def _loss(value: Any) -> str:
    return f"{np.float64(value):.9g}"
