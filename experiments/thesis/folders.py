"""Where the reproduction's parts leave what they have done, and under which names."""

from __future__ import annotations

import time
from pathlib import Path

from experiments.thesis.arms import Test
from metaopt.choices import Choice

BASELINES = ("sgd", "momentum", "rmsprop", "adam")  # tuned for every horizon
PHI, DIVERGED = "phi.safetensors", "diverged.json"
STOPPED = 75  # exit status of a part that was told to stop before its end


def work_folder(work: Path, study: str, arm: str) -> Path:
    """Where an arm's parts lie; `/` in its name makes no folder."""
    return work / study / arm.replace("/", "__")


def trained(folder: Path) -> Path | None:
    """What meta-training left in a seed's folder: φ, or the note that it diverged; None before its end."""
    return next((folder / name for name in (PHI, DIVERGED) if (folder / name).exists()), None)


def test_file(folder: Path, seed: int | None, use: str, test: Test) -> Path:
    """One evaluation: of an arm's φ in one use on one test."""
    parts = [str(test.task).replace(":", "_").replace(",", "_"), *([use] if use else [])]
    return folder / ("" if seed is None else f"seed-{seed}") / ("--".join(parts) + ".npz")


def fixed_name(picked: Choice) -> str:
    """As the thesis's legends have it: `sgd_lr=1.0000`."""
    return f"{picked.name}_lr={picked.options['learning_rate']:.4f}"


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
