"""Sweeps of runs that pretend: quick processes which lock their folders and end as their seed says."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

import metaopt
from metaopt.experiment import Experiment
from metaopt.launch import grid, jobs, slurm, sweep_folder
from metaopt.launch.options import SweepOptions
from metaopt.launch.sweep_folder import Sweep
from tests.toys import TINY

# Seed 0 finishes, 1 fails, 2 goes on until SIGTERM, 3 is killed, 4 diverges; begun again, all finish but 4.
PRETENDER = """
import json, os, platform, signal, sys, time
from pathlib import Path
from metaopt import files
from metaopt.runs import folder

run = Path(sys.argv[1])
config = json.loads((run / "config.json").read_text())
seed = config["seed"]
again = (run / "begun").exists()
(run / "begun").touch()

def tell(state):
    steps = max(8, config["num_meta_steps"])
    held = {"state": state, "pid": os.getpid(), "host": platform.node(), "meta_step": 3, "num_meta_steps": steps}
    files.write_json(run / "state.json", held)

def stop(signum, frame):
    tell("interrupted")
    print("metaopt: saved", flush=True)
    os._exit(128 + signum)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
with folder.locked(run):
    tell("running")
    if seed == 4:
        tell("diverged")
        sys.exit("metaopt: error: no task was alive.")
    if seed == 1 and not again:
        tell("failed")
        sys.exit("metaopt: error: out of luck.")
    if seed == 3 and not again:
        os.kill(os.getpid(), signal.SIGKILL)
    while seed == 2 and not again:
        time.sleep(0.01)
    tell("finished")
"""


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    validation = dataclasses.replace(TINY.validation, every=2)
    return dataclasses.replace(TINY, num_meta_steps=4, checkpoint_every=2, validation=validation)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For processes that train: what the first of them has compiled, the others have."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(metaopt.__file__).parent.parent),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(jax.config.values["jax_disable_most_optimizations"])),
    }


@pytest.fixture
def pretending(tmp_path: Path, tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sweep]:
    """Makes a sweep over seeds of runs that pretend."""
    (tmp_path / "pretending_to_be_metaopt.py").write_text(PRETENDER)
    pretender = str(tmp_path / "pretending_to_be_metaopt.py")
    for module in (jobs, slurm):
        monkeypatch.setattr(module, "command_of", lambda run: [sys.executable, pretender, str(run)])

    def make(*seeds: int, where: str = "local", **slurm: str) -> Sweep:
        fields = {"seed": [str(seed) for seed in seeds]}
        points = grid.expand(tiny, fields, None)
        options = SweepOptions("tiny", where=where, slurm=slurm)
        return sweep_folder.create(tmp_path / "sweep", "tiny", points, fields, options)

    return make
