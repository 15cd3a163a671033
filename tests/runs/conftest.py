"""One tiny experiment and one finished run of it, shared by the tests of this folder.

Its optimizer is a hand-designed one, whose parameters are meta-trained as an LSTM's are and which compiles in no time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from metaopt.experiment import Evaluation, Experiment, Log, Validation, choice
from metaopt.runs.train import train


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every run compiles the same few programs: they are kept for the time of the tests."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    return Experiment(
        tasks=(choice("quadratic", dim=2),),
        optimizer=choice("momentum"),
        estimator=choice("truncated_backprop"),
        num_meta_steps=8,
        num_tasks=2,
        horizon=4,
        checkpoint_every=4,
        num_devices=1,
        validation=Validation(every=4, num_tasks=2, multiples=(1, 2)),
        evaluation=Evaluation(num_tasks=2, horizons=(4,), baselines=()),
        log=Log(every=2),
    )


@pytest.fixture(scope="session")
def finished(tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `tiny` that nothing disturbed; tests only read it."""
    return train(tiny, tmp_path_factory.mktemp("finished") / "run", name="tiny")


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads the rows of a run folder without their times."""

    def read(path: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]

    return read
