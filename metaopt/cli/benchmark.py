"""`metaopt benchmark`: optimizers scored on a suite of tasks beside tuned and untuned baselines."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metaopt import files
from metaopt.benchmark import running, scores
from metaopt.benchmark.suites import SUITES, Entry
from metaopt.cli.arguments import BenchmarkArguments
from metaopt.cli.inspecting import find
from metaopt.errors import UserError, suggest
from metaopt.evaluation.curves import as_optimizer
from metaopt.report.benchmark_page import write_benchmark
from metaopt.runs import folder, tables
from metaopt.runs.console import make_console, say
from metaopt.runs.environment import provenance

Found = Mapping[str, Any]  # name -> (optimizer, φ) or an optax transformation


def benchmark(arguments: BenchmarkArguments, console: Any = None) -> Path:
    """Runs what was not run yet, prints the scores. Returns the folder of the records.

    Raises:
      UserError: no such suite, optimizer or horizon, or a folder that holds the benchmark of other optimizers.
    """
    console = console or make_console()
    _check(arguments)
    if arguments.baselines:
        return _baselines(arguments, console)
    found, identities = _found(arguments.optimizers)
    held = running.held_baselines(arguments.suite)
    about = {"suite": arguments.suite, "optimizers": identities, "environment": provenance()}
    path = _place(arguments, found, about)
    say(console, f"results: {path}")
    asked = [(name, str(horizon)) for name in SUITES[arguments.suite] for horizon in arguments.horizons]
    lacking = sum(horizon not in held.get(name, {}) for name, horizon in asked)
    if lacking:
        say(
            console,
            f"{lacking} of {len(asked)} entries and horizons have no baselines in the package: they are tuned too, "
            "which takes far longer than the optimizers asked for (hours in all at 5,000 steps); `--minutes 60` stops "
            "after an hour, and the same command goes on.",
        )

    def work(entry: Entry, horizon: int) -> running.Record:
        record = running.measure(entry, horizon, found)
        known = held.get(entry.name, {}).get(str(horizon))
        if known is not None and not scores.same_starts(record, known):
            say(
                console,
                f"  warning: {entry.name} begins at other losses here than the package's baselines did, so its ratios "
                f"are of different tasks; metaopt/benchmark/baselines/{arguments.suite}.json names their versions.",
            )
        if known is None:  # then they are measured here, which takes longer
            baselines = running.measure_baselines(entry, horizon)["optimizers"]
            record["optimizers"] = {**baselines, **record["optimizers"]}
        return record

    how = {"about": about, "minutes": arguments.minutes, "progress": lambda line: say(console, f"  {line}")}
    for _ in running.run(arguments.suite, arguments.horizons, path / running.RECORDS, work, **how):
        pass
    if not (path / running.RECORDS).exists():  # there was no time for any
        return path
    own = files.read_json(path / running.RECORDS)["entries"]
    recorded = sorted({int(horizon) for entry in own.values() for horizon in entry})
    joined = {horizon: scores.joined(held, own, horizon) for horizon in recorded}
    for horizon in arguments.horizons:
        if horizon in joined:
            _print(console, arguments.suite, horizon, joined[horizon], list(found))
    if joined:  # with those of an earlier call
        page = write_benchmark(path, arguments.suite, joined, list(found), about["environment"])
        say(console, f"\npage: {page}")
    return path


def _check(arguments: BenchmarkArguments) -> None:
    if arguments.suite not in SUITES:
        raise UserError(f"--suite: {suggest(arguments.suite, SUITES)}")
    for horizon in arguments.horizons:
        if horizon not in running.HORIZONS:
            known = ", ".join(map(str, running.HORIZONS))
            raise UserError(f"--horizons ({horizon}): baselines are tuned for {known} steps; choose from these.")
    if arguments.minutes is not None and arguments.minutes <= 0:
        raise UserError(f"--minutes ({arguments.minutes:g}) must be above 0.")
    if not arguments.baselines and not arguments.optimizers:
        raise UserError("name at least one optimizer: a run folder, a name, or module:function.")
    if arguments.baselines and arguments.optimizers:
        raise UserError("--baselines measures the baselines alone; name no optimizer with it.")


def _baselines(arguments: BenchmarkArguments, console: Any) -> Path:
    running.HELD.mkdir(exist_ok=True)
    path = running.HELD / f"{arguments.suite}.json"
    how = {"about": {"suite": arguments.suite, "environment": provenance()}, "minutes": arguments.minutes}
    how["progress"] = lambda line: say(console, f"  {line}")
    for _ in running.run(arguments.suite, arguments.horizons, path, running.measure_baselines, **how):
        pass
    return path


def _found(texts: Sequence[str]) -> tuple[Found, dict[str, str]]:
    """The optimizers by names of their own, none that of a baseline, and their identities."""
    found, identities = {}, {}
    for text in dict.fromkeys(texts):
        name, entry, settings = find(text)
        taken = {*running.BASELINES, *running.UNTUNED, *found}  # as by another run of the same experiment
        name = next(one for one in (name, text, f"{text} as given") if one not in taken)
        found[name], identities[name] = entry, _identity(name, entry, settings)
    return found, identities


def _identity(name: str, entry: Any, settings: str) -> str:
    """Of the numbers in φ, of what it is called, and of its settings."""
    _, meta_params = as_optimizer(entry, next(iter(SUITES["development"].values())).family, name)
    digest = hashlib.sha256(f"{name}\n{settings}".encode())
    for leaf in jax.tree.leaves(meta_params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _place(arguments: BenchmarkArguments, found: Found, about: Mapping[str, Any]) -> Path:
    """The folder, made where it is not there; the same optimizers go on in the same."""
    named = "-".join(map(folder.safe_name, found))[:100]
    path = Path(arguments.out or Path("benchmark") / f"{named}-{arguments.suite}")
    if (path / running.RECORDS).exists():
        before = files.read_json(path / running.RECORDS)
        if any(before.get(key) != about[key] for key in ("suite", "optimizers")):
            raise UserError(f"{path} holds the benchmark of other optimizers or of another φ; give another --out.")
        return path
    return folder.new_folder(path, path.parent).path


def _print(console: Any, suite: str, horizon: int, records: scores.Records, own: list[str]) -> None:
    others = [name for name in next(iter(records.values()))["optimizers"] if name not in own]
    rows = [
        ["optimizer", "≤ best tuned", "≤ best not told", "to adam", "95%", "middle half", "test", "to target", "failed"]
    ]
    for name in [*own, *others]:
        found = scores.score(records, name)
        low, high = found.to_adam.interval()
        rows.append(
            [
                name,
                tables.percent(found.at_best.value),
                tables.percent(found.at_best_untold.value),
                tables.number(float(np.exp(found.to_adam.mean))),
                tables.interval([float(np.exp(low)), float(np.exp(high))]),
                tables.number(float(np.exp(found.middle))),
                tables.number(float(np.exp(found.test.mean))),
                tables.number(found.to_target),
                tables.percent(found.failed),
            ]
        )
    say(console, "")
    title = f"{suite} suite, {horizon:,} steps, {len(records)} tasks"
    tables.print_table(console, title, rows, bold=range(1, len(own) + 1))
