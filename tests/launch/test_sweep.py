"""A whole sweep on this machine: real launchers and real runs, killed, cancelled and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from metaopt.cli import entry as cli
from metaopt.experiment import Experiment
from metaopt.experiment.plain import to_json
from metaopt.files import write_json
from metaopt.launch.sweep_folder import Sweep, read
from metaopt.runs.folder import last_checkpoint
from metaopt.runs.index import Run, read_run
from metaopt.runs.state import read_state

NAMES = [
    f"{i}-num_meta_steps-{steps}-seed-{seed}" for i, steps, seed in ((1, 4, 5), (2, 4, 6), (3, 10**6, 5), (4, 10**6, 6))
]


def rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def wait_for(condition: Any, launcher: subprocess.Popen[str]) -> None:
    while not condition() and launcher.poll() is None:
        time.sleep(0.05)
    assert condition(), launcher.communicate()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Experiment) -> Path:
    place = tmp_path_factory.mktemp("sweep")
    write_json(place / "tiny.json", to_json(tiny))
    return place


class Half:
    """A sweep of two short and two endless runs, two at once; one endless run killed, then all cancelled."""

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        command = ["timeout", "-k", "20", "2000", sys.executable, "-m", "metaopt", "launch", "tiny.json"]
        command += "--seed 5 --sweep num_meta_steps=4,1000000 --seeds 2 --workers 2 --where local".split()
        with subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as launcher:
            path = place / "runs" / "tiny" / "sweep-001"
            endless = [path / name for name in NAMES[2:]]
            wait_for(lambda: all((last_checkpoint(run) or 0) >= 6 for run in endless), launcher)
            self.sweep: Sweep = read(path)
            self.running = self.sweep.read_runs()
            self.affinity = [os.sched_getaffinity(read_state(run).pid or 0) for run in endless]
            os.kill(read_state(endless[0]).pid or 0, signal.SIGKILL)
            wait_for(lambda: read_run(endless[0]).state == "lost", launcher)
            self.cancelled = cli.main(["cancel", str(path)])
            self.out, self.error = launcher.communicate()
        self.status = launcher.returncode


@pytest.fixture(scope="module")
def half(place: Path, environment: dict[str, str]) -> Half:
    return Half(place, environment)


def states(standings: list[Run]) -> list[str]:
    return [row.state for row in standings]


def test_a_sweep_runs_side_by_side_and_tells_how_it_stands(half: Half) -> None:
    assert list(half.sweep.runs) == NAMES
    assert states(half.running) == ["finished", "finished", "running", "running"]
    for row in half.running[:2]:
        assert (row.meta_step, row.num_meta_steps) == (4, 4)
        losses = [line["meta_loss"] for line in rows(row.path)[-2:]]
        assert row.progress.meta_loss == pytest.approx(sum(losses) / 2, rel=1e-6)
        assert set(row.progress.validation) == {"1x", "2x"} and row.seconds_left is None
        assert (row.path / "report.html").is_file() and (row.path / "evaluation.json").is_file()
        environment = json.loads((row.path / "environment.json").read_text())
        assert environment["experiment"] == "tiny" and environment["device"]["count"] == 1
        assert "meta-step 4/4" in (row.path / "log.txt").read_text()
    for row in half.running[2:]:
        assert row.meta_step >= 6 and row.progress.rate is not None and (row.seconds_left or 0) > 0
    # Seeds count from the experiment's.
    assert [json.loads((half.sweep.run(name) / "config.json").read_text())["seed"] for name in NAMES] == [5, 6, 5, 6]
    cores = os.sched_getaffinity(0)
    if len(cores) > 1:
        assert all(len(own) == len(cores) // 2 for own in half.affinity) and half.affinity[0] != half.affinity[1]


def test_what_was_killed_is_lost_and_what_was_cancelled_is_saved(half: Half) -> None:
    assert half.cancelled == 0 and half.status == 1
    assert half.error.startswith(f"metaopt: error: 1 of 4 runs failed; the first, {NAMES[2]}, lost: ended by SIGKILL")
    assert f"{NAMES[0]}: finished, meta-step 4/4" in half.out and "sweep folder: runs/tiny/sweep-001" in half.out
    assert f"{NAMES[3]}: cancelled" in half.out
    cancelled = half.sweep.run(NAMES[3])
    assert rows(cancelled)[-1]["meta_step"] == last_checkpoint(cancelled)


def test_resuming_begins_only_what_did_not_finish(
    half: Half, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    runs = [half.sweep.run(name) for name in NAMES]
    ends = []
    for run in runs[2:]:
        config = json.loads((run / "config.json").read_text())
        ends.append((last_checkpoint(run) or 0) + 2)
        (run / "config.json").write_text(json.dumps(config | {"num_meta_steps": ends[-1]}))
    before = [(run / "metrics.jsonl").stat().st_mtime_ns for run in runs[:2]]
    assert cli.main(["resume", str(half.sweep.path), "--workers", "2"]) == 0
    assert states(half.sweep.read_runs()) == ["finished"] * 4
    assert [(run / "metrics.jsonl").stat().st_mtime_ns for run in runs[:2]] == before
    for run, end in zip(runs[2:], ends, strict=True):
        assert [line["meta_step"] for line in rows(run)] == list(range(1, end + 1))
    assert "2 finished already: left alone" in capsys.readouterr().out
    assert cli.main(["resume", str(half.sweep.path)]) == 0
    assert capsys.readouterr().out == "nothing is left to do: 4 finished\n"


def test_a_dry_run_and_a_wrong_point_leave_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    jax.devices()  # other tests want the devices that there are
    tiny = str(place / "tiny.json")
    assert cli.main(["launch", tiny, "--sweep", "meta_optimizer.learning_rate=1e-3,0.1", "--dry-run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [
        ["run", "meta_optimizer.learning_rate"],
        ["1-learning_rate-1e-3", "1e-3"],
        ["2-learning_rate-0.1", "0.1"],
    ]
    assert cli.main(["launch", tiny, "--sweep", "num_tasks=2,-2", "--seeds", "2"]) == 2
    error = capsys.readouterr().err
    assert error == "metaopt: error: point 3 of 4 (num_tasks=-2, seed=0): `num_tasks` (-2) must be at least 1.\n"
    assert list(tmp_path.iterdir()) == []
