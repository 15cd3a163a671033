"""Sweeps on Slurm, without Slurm: submitit's own executors, and commands on PATH that note what is asked of them."""

from __future__ import annotations

import builtins
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaopt.cli import entry as cli
from metaopt.errors import UserError
from metaopt.experiment import Experiment
from metaopt.files import read_object
from metaopt.launch import grid, slurm, sweep_folder
from metaopt.launch.options import SweepOptions
from metaopt.launch.sweep_folder import Sweep
from metaopt.runs.folder import is_locked, last_checkpoint

pytest.importorskip("submitit")
Make = Callable[..., Sweep]


def states(sweep: Sweep) -> list[str]:
    return [row.state for row in sweep.read_runs()]


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def training(run: Path) -> slurm.Training:
    return slurm.Training(str(run), slurm.command_of(run))


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands, which note their arguments in a file, and the batch scripts that were submitted."""
    place = tmp_path / "bin"
    place.mkdir()
    answers = {"sbatch": f'cp "$1" {place}/script; echo Submitted batch job 17', "srun": "", "scancel": "",
               "squeue": f"cat {place}/queue 2>/dev/null"}  # fmt: skip
    for name, answer in answers.items():
        (place / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {place}/asked\n{answer}\n')
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return place


def asked(commands: Path) -> list[str]:
    return [line for line in (commands / "asked").read_text().splitlines() if line]


def test_a_sweep_is_submitted_as_an_array_and_cancelled(
    commands: Path, pretending: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = pretending(0, 1, 2, where="slurm", time="2:00:00", partition="gpu", qos="high", nice="5", mem="4GB")
    assert slurm.begin(sweep, 2) == "3 submitted as Slurm's job 17"
    script = (commands / "script").read_text()
    flags = set(line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH"))
    assert {"array=0-2%2", "time=120", "partition=gpu", "qos=high", "nice=5", "mem=4GB", "signal=USR2@90"} <= flags
    assert {"cpus-per-task=1", "job-name=metaopt", "open-mode=append"} <= flags
    assert f"{sys.executable} -u -m submitit.core._submit {sweep.path}/slurm" in script
    rows = sweep.read_runs()
    assert [(row.state, row.note) for row in rows] == [("waiting", f"Slurm's job 17_{i}") for i in range(3)]

    # What is queued is not submitted again; what Slurm does not know any more is.
    (commands / "queue").write_text("17_0\n17_2\n")
    assert cli.main(["resume", str(sweep.path)]) == 0
    assert "1 submitted as Slurm's job 17, 2 queued already; watch it with" in capsys.readouterr().out
    assert "array" not in (commands / "script").read_text()
    assert read_object(sweep.path / "slurm.json") == {
        "1-seed-0": "17_0",
        "2-seed-1": "17",
        "3-seed-2": "17_2",
    }

    assert cli.main(["cancel", str(sweep.path / "2-seed-1"), str(sweep.path)]) == 0
    assert [line for line in asked(commands) if "scancel" in line] == ["scancel 17", "scancel 17_0 17_2"]
    assert states(sweep) == ["cancelled"] * 3
    assert training(sweep.path / "1-seed-0")() == "cancelled"
    assert not (sweep.path / "1-seed-0" / "job.json").exists()


def test_what_sbatch_refuses_can_be_mended(commands: Path, pretending: Make) -> None:
    (commands / "sbatch").write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
    sweep = pretending(0, where="slurm", partition="gpq")
    with pytest.raises(UserError, match="Slurm did not take the jobs: .*invalid partition.* `metaopt resume"):
        slurm.begin(sweep, None)
    assert states(sweep) == ["waiting"]


def test_jobs_of_the_debug_executor(pretending: Make) -> None:
    sweep = pretending(0, 10, where="slurm")
    jobs = slurm.submit(sweep, list(sweep.runs), None, cluster="debug")
    assert [job.result() for job in jobs] == ["finished", "finished"]
    assert states(sweep) == ["finished", "finished"]


def test_a_job_that_fails_says_where_to_look(pretending: Make) -> None:
    sweep = pretending(1, where="slurm")
    with pytest.raises(RuntimeError, match="ended with exit status 1; see .*1-seed-1/log.txt"):
        training(sweep.path / "1-seed-1")()
    assert states(sweep) == ["failed"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_job_that_is_told_to_end_saves_and_waits_for_what_comes_next_unless_cancelled(
    cancelled: bool, pretending: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = pretending(2, where="slurm")
    run = sweep.path / "1-seed-2"
    monkeypatch.setattr(slurm, "OWN_SIGNAL_SECONDS", 0.0)

    def end() -> None:
        wait_for(lambda: bool(is_locked(run)))
        if cancelled:
            (run / "cancelled.json").touch()
        os.kill(os.getpid(), signal.SIGTERM)

    given: list[float] = []
    monkeypatch.setattr(slurm, "_wait", lambda seconds, job=None: given.append(seconds))
    thread = threading.Thread(target=end)
    thread.start()
    try:
        if cancelled:
            assert training(run)() == "cancelled"
        else:
            with pytest.raises(RuntimeError, match="exit status 143"):
                training(run)()
    finally:
        thread.join()
    assert states(sweep) == ["cancelled" if cancelled else "interrupted"]
    assert given == ([] if cancelled else [slurm.GIVE_WAY_SECONDS])


def child(pid: int) -> int:
    (found,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found)


def test_a_job_that_has_to_give_way_saves_and_goes_on_when_its_turn_comes(
    tmp_path: Path, tiny: Experiment, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fields = {"num_meta_steps": ["1000000"]}
    points = grid.expand(tiny, fields, None)
    sweep = sweep_folder.create(tmp_path / "sweep", "tiny", points, fields, SweepOptions("tiny", where="slurm"))
    (name,) = sweep.runs
    run = sweep.run(name)
    (job,) = slurm.submit(sweep, [name], None, cluster="local")
    try:
        wait_for(lambda: (last_checkpoint(run) or 0) >= 4)
        os.kill(child(int(job.job_id)), signal.SIGUSR2)  # the controller's child is what Slurm would signal
        wait_for(lambda: "metaopt: saved" in (run / "log.txt").read_text())
        # Read by the resumed run, which has to import jax first.
        config, end = json.loads((run / "config.json").read_text()), (last_checkpoint(run) or 0) + 2
        (run / "config.json").write_text(json.dumps(config | {"num_meta_steps": end}))
        assert job.result() == "finished"
    finally:
        job.cancel()
    assert states(sweep) == ["finished"]
    assert "SIGUSR2: saving" in (run / "log.txt").read_text()
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["meta_step"] for row in steps if row["kind"] == "train"] == list(range(1, end + 1))


def test_without_submitit_or_slurm_one_line_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["launch", "quadratic_rl", "--where", "slurm"]) == 2
    assert "needs Slurm's commands, and sbatch is not on PATH" in capsys.readouterr().err
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "submitit":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert cli.main(["launch", "quadratic_rl", "--where", "slurm"]) == 2
    assert "pip install 'metaopt-jax[slurm]'" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("1:30:00", 90), ("0:00:01", 1), ("2-0", 2880), ("1-12:30", 2190), ("1-0:0:1", 1441)],
)
def test_times_are_read_as_sbatch_does(text: str, minutes: int) -> None:
    assert slurm.minutes(text) == minutes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time": "3x"}, "--time ('3x') must be minutes, or"),
        ({"time": "0"}, "--time ('0') must be minutes, or [DAYS-]HOURS:MINUTES:SECONDS, from one minute on."),
        ({"cpus": "0"}, "--cpus ('0') must be a number from 1 on."),
        ({"mem": "much"}, "--mem ('much') must be a number of gigabytes"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        slurm.parameters(settings)
    assert message in str(error.value)
