"""Weights & Biases, the only file that imports it. It runs offline beside the run and never stops training."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.experiment import Experiment
from metaopt.runs.json_config import to_json

Row = dict[str, Any]


class WandbLogger:
    """Logs rows offline into the run folder; `online` lets a process of its own upload them as they come.

    Whatever goes wrong is said once and ends the logging, not the run.
    """

    def __init__(self, path: Path, experiment: Experiment, *, say: Callable[[str], None]) -> None:
        self._say = say
        self._run: Any = None
        self._upload: subprocess.Popen[bytes] | None = None
        self._guarded(lambda: self._start(path.resolve(), experiment))

    def _start(self, path: Path, experiment: Experiment) -> None:
        import wandb

        # One id for all processes of a run, for offline runs cannot be resumed: parts with one id are joined on upload.
        identity = hashlib.sha256(str(path).encode()).hexdigest()[:12]
        self._run = wandb.init(
            mode="offline",
            project=experiment.log.project,
            id=identity,
            name=f"{path.parent.name}/{path.name}",
            dir=str(path),
            config=to_json(experiment),
            settings=wandb.Settings(
                console="off",
                silent=True,
                finish_timeout=30,
                x_transaction_log_flush_interval=1.0,
                x_disable_stats=True,
            ),
        )
        # Its own step counter would go on across resumptions; the meta-step is the axis.
        self._run.define_metric("meta_step")
        self._run.define_metric("*", step_metric="meta_step")
        folder = Path(self._run.dir).parent
        self._say(f"wandb: offline in {folder}")
        if experiment.log.wandb == "online":
            self._follow(folder)

    def _follow(self, folder: Path) -> None:
        command = [sys.executable, "-m", "wandb", "beta", "sync", "--live", "--yes", str(folder)]
        with open(folder / "upload.log", "ab") as log:
            # In a group of its own: Ctrl-C is for training, and the upload goes on to the end of what was logged.
            self._upload = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=dict(os.environ)
            )
        self._say(f"wandb: uploading beside the run, see {folder / 'upload.log'}")

    def log(self, rows: list[Row]) -> None:
        if self._run is not None:
            self._guarded(lambda: self._log_rows(rows))

    def _log_rows(self, rows: list[Row]) -> None:
        for row in rows:
            numbers = {name: float(value) for name, value in row.items() if isinstance(value, (int, float, np.number))}
            self._run.log({**numbers, "meta_step": int(row["meta_step"])})

    def close(self) -> None:
        if self._run is not None:
            self._guarded(lambda: self._run.finish())
        self._run = None
        if self._upload is not None and self._upload.poll() not in (None, 0):
            self._say("wandb: the upload failed; the run's own files are whole, see upload.log beside the wandb run")

    def _guarded(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # a dead wandb-core raises ConnectionResetError into its caller, among others
            self._run = None
            first = str(error).strip().partition("\n")[0]
            self._say(f"wandb: off from here on ({type(error).__name__}: {first}); metrics.jsonl goes on")
