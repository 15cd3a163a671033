"""The launcher on this machine: how it starts, watches, stops and goes on with runs, here such as pretend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metaopt.cli import entry as cli
from metaopt.launch import local, slurm
from metaopt.launch.sweep_folder import Sweep
from metaopt.runs.folder import is_locked

Make = Callable[..., Sweep]


def states(sweep: Sweep) -> list[str]:
    return [row.state for row in sweep.read_runs()]


def when(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Acts from another thread when something has come to be."""

    def wait() -> None:
        while not condition():
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_one_that_fails_leaves_the_others_alone_and_resuming_finishes_what_can_be(
    pretending: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = pretending(1, 0, 3, 4)
    assert cli.main(["resume", str(sweep.path), "--workers", "2"]) == 1
    assert states(sweep) == ["failed", "finished", "lost", "diverged"]
    out, error = capsys.readouterr()
    assert error == (
        "metaopt: error: 3 of 4 runs failed; the first, 1-seed-1, failed: out of luck; "
        f"see {sweep.path}/1-seed-1/log.txt; go on with `metaopt resume {sweep.path}`.\n"
    )
    assert "1-seed-1: failed, meta-step 3/8 (out of luck.)" in out and f"sweep folder: {sweep.path}\n" in out
    job = json.loads((sweep.path / "3-seed-3" / "job.json").read_text())
    assert (job["state"], job["exit_status"], job["error"]) == ("ended", -9, "ended by SIGKILL")

    begun = (sweep.path / "2-seed-0" / "job.json").stat().st_mtime_ns
    assert cli.main(["resume", str(sweep.path)]) == 1  # one has diverged
    assert states(sweep) == ["finished", "finished", "finished", "diverged"]
    assert (sweep.path / "2-seed-0" / "job.json").stat().st_mtime_ns == begun
    out, error = capsys.readouterr()
    assert "1 finished already: left alone" in out and "1 diverged, and would again: left alone" in out
    assert error.startswith("metaopt: error: 1 of 4 runs failed; the first, 4-seed-4, diverged")
    assert cli.main(["resume", str(sweep.path)]) == 1
    assert capsys.readouterr().out.startswith("nothing is left to do: 3 finished, 1 diverged")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_has_what_runs_save_and_stop(
    signum: signal.Signals, status: int, pretending: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = pretending(2, 0)
    first = sweep.path / "1-seed-2"
    thread = when(lambda: bool(is_locked(first)), lambda: os.kill(os.getpid(), signum))
    assert cli.main(["resume", str(sweep.path), "--workers", "1"]) == status
    thread.join()
    assert states(sweep) == ["interrupted", "waiting"]
    out, error = capfd.readouterr()
    told = "1 running, saving and stopping (1-seed-2), 1 waiting will not begin; Ctrl-C again stops at once"
    assert f"{signum.name}: {told}\n" in out
    assert error.endswith(
        "metaopt: stopped: 1 waiting, 1 interrupted; nothing goes on by itself; "
        f"go on with `metaopt resume {sweep.path}`, 2 to do (1-seed-2, 2-seed-0)\n"
    )
    assert signal.getsignal(signum) not in (None, signal.SIG_IGN) and not is_locked(sweep.path)


def test_cancelling_ends_what_runs_and_keeps_the_rest_from_beginning(
    pretending: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = pretending(0, 2, 3)
    statuses: list[int] = []
    second = sweep.path / "2-seed-2"

    def act() -> None:
        statuses.append(cli.main(["resume", str(sweep.path)]))  # it is being run
        statuses.append(cli.main(["cancel", str(sweep.path)]))

    thread = when(lambda: bool(is_locked(second)), act)
    assert cli.main(["resume", str(sweep.path), "--workers", "1"]) == 1
    thread.join()
    assert statuses == [2, 0] and states(sweep) == ["finished", "cancelled", "cancelled"]
    out, error = capsys.readouterr()
    assert f"{sweep.path} is being run already; watch it with `metaopt status {sweep.path}`." in error
    assert f"{sweep.path}: 1 waiting cancelled, 1 running asked to save and stop; 1 finished left alone" in out
    assert f"metaopt: error: 2 of 3 runs did not finish; go on with `metaopt resume {sweep.path}`." in error
    assert not (sweep.path / "3-seed-3" / "job.json").exists()
    # One of the runs can be cancelled as well, and resuming takes the marks away.
    assert cli.main(["resume", str(sweep.path)]) == 1
    assert states(sweep) == ["finished", "finished", "lost"]
    assert cli.main(["cancel", str(sweep.path / "3-seed-3")]) == 0 and states(sweep)[2] == "lost"


def test_cancelling_reaches_runs_whose_launcher_is_gone(pretending: Make, capsys: pytest.CaptureFixture[str]) -> None:
    from metaopt.launch import jobs

    sweep = pretending(2)
    run = sweep.path / "1-seed-2"
    job = jobs.Job(run, jobs.command_of(run))
    while states(sweep) != ["running"] or not is_locked(run):
        time.sleep(0.02)
    assert cli.main(["cancel", str(run)]) == 0
    while job.poll() is None:
        time.sleep(0.02)
    assert states(sweep) == ["cancelled"] and job.poll() == 143
    assert capsys.readouterr().out.endswith("1-seed-2: cancelled, meta-step 3/8\n")


@pytest.mark.parametrize("where", ["local", "detached", "slurm"])
def test_ctrl_c_before_the_launcher_has_begun_says_what_goes_on(
    where: str, pretending: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for module, name in ((local, "run"), (local, "detach"), (slurm, "begin")):
        monkeypatch.setattr(module, name, interrupted)
    sweep = pretending(0, where="slurm" if where == "slurm" else "local")
    assert cli.main(["resume", str(sweep.path), *(["--detach"] if where == "detached" else [])]) == 130
    error = capsys.readouterr().err
    said = {
        "local": "metaopt: stopped before any of its runs began; ",
        "detached": "metaopt: the launcher in the background goes on: watch it with `metaopt status ",
        "slurm": "metaopt: stopped while jobs were being submitted; those that Slurm took go on: watch it with",
    }
    assert error.startswith(said[where]) and error.count("\n") == 1
    assert error.endswith(f"`metaopt resume {sweep.path}` goes on with the rest\n")


def test_a_sweep_is_lengthened_as_a_run_is(pretending: Make, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = pretending(0, 1, 4)
    resume = ["resume", str(sweep.path)]
    assert cli.main(resume) == 1 and states(sweep) == ["finished", "failed", "diverged"]
    assert cli.main([*resume, "--num-meta-steps", "12"]) == 1  # one has diverged
    assert [(row.state, row.num_meta_steps) for row in sweep.read_runs()][:2] == [("finished", 12)] * 2
    capsys.readouterr()
    for words, message in (
        ("--num-meta-steps 5", "`num_meta_steps` (5) is less than the 12 of"),
        ("--num-meta-steps=0", "`num_meta_steps` (0) is less than the 12 of"),
        ("--num_meta_steps many", "argument --num-meta-steps/--num_meta_steps: invalid int value: 'many'"),
    ):
        assert cli.main([*resume, *words.split()]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    config = json.loads((sweep.path / "3-seed-4" / "config.json").read_text())
    config["meta_optimizer"]["schedule"] = "cosine"
    (sweep.path / "3-seed-4" / "config.json").write_text(json.dumps(config))
    assert cli.main([*resume, "--num-meta-steps", "20"]) == 2
    assert "cannot be lengthened: `meta_optimizer.schedule` (cosine) ends at meta-step 12" in capsys.readouterr().err
    assert states(sweep) == ["finished", "finished", "diverged"]  # nothing of it was begun


LAUNCHER = """
import sys
from metaopt.cli.entry import main
from metaopt.launch import jobs
jobs.command_of = lambda run: [sys.executable, sys.argv[1], str(run)]
sys.exit(main(["resume", sys.argv[2]]))
"""


def test_nothing_outlives_a_launcher_that_is_killed(pretending: Make, tmp_path: Path) -> None:
    sweep = pretending(2)
    run = sweep.path / "1-seed-2"
    pretender = str(tmp_path / "pretending_to_be_metaopt.py")
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, pretender, str(sweep.path)]) as launcher:
        while not is_locked(run) and launcher.poll() is None:
            time.sleep(0.01)
        assert states(sweep) == ["running"]
        launcher.kill()
    while states(sweep) == ["running"]:
        time.sleep(0.01)
    assert states(sweep) == ["lost"]
    assert cli.main(["resume", str(sweep.path)]) == 0 and states(sweep) == ["finished"]


def test_as_many_at_once_as_there_are_cores_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from metaopt.errors import UserError

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert [local.choose_workers(*args) for args in ((None, 1), (None, 3), (None, 16), (5, 1))] == [8, 2, 1, 5]
    assert local.choose_workers(64) == 64
    with pytest.raises(UserError, match="--workers 65 is too many for the cores of this machine; at most 64 are"):
        local.choose_workers(65)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert local.choose_workers(None) == 1
    with pytest.raises(UserError, match="accelerators \\(cuda\\) in each of 2 workers; use --workers 1"):
        local.choose_workers(2)


def test_workers_have_cores_of_their_own(pretending: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pinned.append(list(cores)))
    monkeypatch.setattr(local, "shares", lambda count: [[cores[0]], [cores[-1]], cores][:count])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    local.run(pretending(0, 10, 11), 3)
    assert pinned == [[cores[0]], [cores[-1]], cores]


def test_a_folder_that_is_taken_or_broken(pretending: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = pretending(0)
    (sweep.path / "sweep.json").write_text('{"points": [{}]}')
    assert cli.main(["status", str(sweep.path)]) == 2
    assert "sweep.json is broken (KeyError: 'run'); launch the sweep anew." in capsys.readouterr().err
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["launch", "quadratic_rl", "--seeds", "2", "--out", str(sweep.path)]) == 2
    assert "exists and is not empty; give another --out." in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
