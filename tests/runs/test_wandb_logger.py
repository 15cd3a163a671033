from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from metaopt.experiment import Experiment, Log
from metaopt.runs.wandb_logger import WandbLogger


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def test_rows_land_in_an_offline_run(tiny: Experiment, tmp_path: Path) -> None:
    said: list[str] = []
    experiment = dataclasses.replace(tiny, log=Log(wandb="offline", project="metaopt-test"))
    logger = WandbLogger(tmp_path, experiment, say=said.append)
    if any("off from here on" in line for line in said):
        pytest.skip(f"wandb cannot start here: {said[0]}")
    logger.log([{"kind": "train", "meta_step": 3, "meta_loss": 0.5}])
    logger.close()
    assert [line for line in said if "off from here on" in line] == []
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    patience = time.monotonic() + 20  # `finish` may answer a moment before its process has written the last block
    while b"meta_loss" not in file.read_bytes() and time.monotonic() < patience:
        time.sleep(0.1)
    assert b"meta_loss" in file.read_bytes()


def test_trouble_is_said_once_and_never_raised(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead:
        dir = str(tmp_path / "offline-run" / "files")

        def define_metric(self, *args: Any, **kwargs: Any) -> None: ...

        def log(self, values: Any) -> None:
            raise ConnectionResetError("wandb-core is gone\nand more")

        def finish(self) -> None:
            raise ConnectionResetError

    monkeypatch.setattr("wandb.init", lambda **kwargs: Dead())
    said: list[str] = []
    logger = WandbLogger(tmp_path, tiny, say=said.append)
    for step in (1, 2):
        logger.log([{"meta_step": step, "meta_loss": 0.5}])
    logger.close()
    assert said[1:] == [
        "wandb: off from here on (ConnectionResetError: wandb-core is gone); metrics.jsonl goes on",
    ]


def test_a_wandb_that_cannot_start_leaves_training_alone(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**kwargs: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr("wandb.init", fail)
    said: list[str] = []
    logger = WandbLogger(tmp_path, tiny, say=said.append)
    logger.log([{"meta_step": 1}])
    logger.close()
    assert len(said) == 1 and "no space" in said[0]
