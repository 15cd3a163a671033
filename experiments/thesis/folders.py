"""Where the reproduction's parts leave what they have done, and under which names."""

from __future__ import annotations

import time
from pathlib import Path

from experiments.thesis.arms import Study, Test
from metaopt.choices import Choice

PHI, DIVERGED, ENVIRONMENT = "phi.safetensors", "diverged.json", "environment.json"
STOPPED = 75  # exit status of a part that was told to stop before its end


def work_folder(work: Path, study: str, arm: str) -> Path:
    """Where an arm's parts lie; `/` in its name makes no folder."""
    return work / study / arm.replace("/", "__")


def trained(folder: Path) -> Path | None:
    """What meta-training left in a seed's folder: φ, or the note that it diverged; None before its end."""
    return next((folder / name for name in (PHI, DIVERGED) if (folder / name).exists()), None)


def test_file(folder: Path, seed: int | None, use: str, test: Test) -> Path:
    """One evaluation: of an arm's φ in one use, or of a baseline of that name, on one test."""
    parts = [str(test.task), *([use] if use else [])]
    name = "--".join(parts).replace(":", "_").replace(",", "_")
    return folder / ("" if seed is None else f"seed-{seed}") / f"{name}.npz"


def phi_file(folder: Path, pick: str) -> Path:
    """A seed's φ: the last, or the one that validation picked at a multiple of the horizon."""
    return folder / (PHI if pick == "last" else f"phi_{pick}.safetensors")


def baseline_names(study: Study, test: Test) -> list[str]:
    """Those at the thesis's rates, and `NAME@MULTIPLE` for those tuned for a multiple of the horizon."""
    tuned = [f"{name}@{multiple}" for multiple in test.multiples for name in study.tuned]
    return [fixed_name(fixed) for fixed in study.fixed] + tuned


def fixed_name(picked: Choice) -> str:
    """As the thesis's legends have it: `sgd_lr=1.0000`."""
    return f"{picked.name}_lr={picked.options['learning_rate']:.4f}"


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
