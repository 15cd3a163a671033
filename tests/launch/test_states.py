"""Where runs stand, by what is in their folders."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metaopt.cli import entry as cli
from metaopt.files import write_json
from metaopt.launch.sweep_folder import Sweep
from metaopt.runs import folder, tables
from metaopt.runs.index import Run, Seen, read_run
from metaopt.runs.metrics import Digest, Progress
from metaopt.runs.state import ALL_STATES
from metaopt.runs.train import resume

HERE = platform.node()
CONFIG = {"tasks": ["quadratic"], "optimizer": "lstm", "estimator": "x", "num_meta_steps": 8, "log": {"every": 2}}
ENDED = {"state": "ended", "ended": "2026-01-02T00:00:00+00:00"}


def metrics(run: Path, *rows: dict[str, Any]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(step: int, loss: Any, seconds: float = 0.5) -> dict[str, Any]:
    times = {"time/meta_step": seconds, "time/elapsed": 2.0 * step}  # of which most goes to validation
    return {"kind": "train", "meta_step": step, "meta_loss": loss, **times}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", CONFIG)
    return tmp_path


def test_the_end_of_the_metrics_is_summed_up(run: Path) -> None:
    validation = {"kind": "validation", "meta_step": 2, "validation/1x/median": 0.5, "validation/10x/median": "inf"}
    more = {"validation/1x/quadratic/median": 7.0, "validation/1x/failed": 0.0, "validation_ema/1x/median": 9.0}
    metrics(run, train(1, 8.0), train(2, 4.0), validation | more, train(3, 2.0), train(4, 1.0, 0.25))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "meta_step": 5, "meta_lo')  # being written
    read = read_run(run)
    assert read.progress == (4, 1.5, 4.0, 2.0, {"1x": 0.5, "10x": float("inf")}, 9.0, 2)
    assert read._replace(state="running").seconds_left == 8.0 and (read.best, read.best_at) == (9.0, 2)


def test_asked_again_it_reads_what_is_new(run: Path) -> None:
    early = [{"kind": "validation", "meta_step": step, "validation/1x/median": 3 - step} for step in (1, 2)]
    metrics(run, *early, *(train(step, None if step == 1499 else 1.0) for step in range(3, 1501)))
    digest = Digest(run / "metrics.jsonl")
    progress = digest.progress(2)
    assert (progress.meta_step, progress.validation, progress.best_at) == (1500, {"1x": 1.0}, 2)
    assert progress.meta_loss != progress.meta_loss  # a loss that is no number is not passed over
    assert digest.progress(2)[2:] == progress[2:]
    with open(run / "metrics.jsonl", "a") as file:
        file.write("".join(json.dumps(train(step, 0.25)) + "\n" for step in (1501, 1502)))
    progress = digest.progress(2)
    assert progress[:2] == (1502, 0.25) and progress.best == 1.0
    (run / "other").write_text(json.dumps(train(1, 5.0)) + "\n")
    os.replace(run / "other", run / "metrics.jsonl")  # cut back, as on resuming
    assert digest.progress(2) == (1, 5.0, 2.0, 0.5, {}, None, None)


@pytest.mark.parametrize(
    ("state", "job", "cancelled", "expected", "note"),
    [
        (None, None, False, "waiting", ""),
        (None, None, True, "cancelled", ""),
        ("finished", {**ENDED, "exit_status": 0}, True, "finished", ""),
        ("diverged", {**ENDED, "exit_status": 1}, False, "diverged", "why"),
        ("failed", {**ENDED, "exit_status": 1, "error": "no luck"}, False, "failed", "no luck"),
        # Before it could say anything itself.
        (None, {**ENDED, "exit_status": 2, "error": "no folder"}, False, "failed", "no folder"),
        (None, {**ENDED, "exit_status": -9}, False, "lost", "ended by SIGKILL; nothing is saved"),
        (None, {**ENDED, "exit_status": -15}, False, "interrupted", "before it began"),
        (None, {"state": "running", "host": HERE, "pid": 2**22 + 1}, False, "lost", "its process is gone; nothing"),
        # Its first job failed, and it was gone on with by hand.
        ("interrupted", {"state": "ended", "ended": "2026-01-01T00:00:00+00:00", "exit_status": 1}, False,
         "interrupted", "why"),
        ("interrupted", {**ENDED, "exit_status": 143}, True, "cancelled", ""),
        ("running", {**ENDED, "exit_status": -9}, False, "lost", "ended by SIGKILL; goes on from meta-step 6"),
        ("running", {"state": "running", "host": HERE, "pid": os.getpid()}, False, "lost", "its process is gone; goes"),
        ("interrupted", {"state": "requeued"}, False, "waiting", "queued again"),
    ],
)  # fmt: skip
def test_states(
    state: str | None, job: dict[str, Any] | None, cancelled: bool, expected: str, note: str, run: Path
) -> None:
    if state is not None:
        (run / "checkpoints" / "6").mkdir(parents=True)
        told = {"state": state, "pid": 1, "host": HERE, "meta_step": 6, "num_meta_steps": 8, "reason": "why"}
        write_json(run / "state.json", {**told, "time": "2026-01-01T12:00:00+00:00"})
    if job is not None:
        write_json(run / "job.json", job)
    if cancelled:
        write_json(run / "cancelled.json", {})
    read = read_run(run, "name")
    assert read.state == expected and read.note.startswith(note)


def told(run: Path, state: str) -> None:
    write_json(run / "state.json", {"state": state, "pid": 1, "host": HERE, "meta_step": 4, "num_meta_steps": 8})


def make(run: Path, state: str) -> None:
    """A run's folder, without the process, of which one says that it is in this state."""
    write_json(run / "config.json", CONFIG if state != "unreadable" else {"tasks": []})
    write_json(run / "environment.json", {"experiment": "demo"})
    if state in ("lost", "unreadable"):
        told(run, "running")
    elif state not in ("waiting", "unknown"):
        told(run, "interrupted" if state == "cancelled" else state)
    if state != "waiting":
        metrics(run, train(1, 1.0), train(2, 1.0))
    if state == "cancelled":
        write_json(run / "cancelled.json", {})


@pytest.mark.parametrize("state", ALL_STATES)
def test_runs_and_status_say_the_same(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "demo" / "001"
    run.mkdir(parents=True)
    make(run, state)
    with folder.locked(run) if state == "running" else contextlib.nullcontext():
        assert read_run(run).state == state
        assert cli.main(["runs"]) == 0
        listed = capsys.readouterr().out.splitlines()[1].split()
        assert cli.main(["status"]) == 0
        shown = capsys.readouterr().out.splitlines()[1].split()
    assert listed[:2] == ["runs/demo/001", "demo"] and state in listed[2:4]
    assert shown[:2] == ["runs/demo/001", state]
    assert shown[2].removesuffix("/?") == listed[listed.index(state) + 1]  # the meta-step


def test_a_process_in_the_folder_is_running_whatever_the_files_say(run: Path) -> None:
    write_json(run / "state.json", {"state": "interrupted", "num_meta_steps": 8, "meta_step": 2})
    handle = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        seen: Seen = {}
        assert read_run(run, seen=seen)[4:8] == ("running", "compiling", 0, 8)
        metrics(run, train(7, 1.0), train(8, 1.0))
        assert read_run(run, seen=seen)[4:8] == ("running", "evaluating", 8, 8)
    finally:
        os.close(handle)
    assert read_run(run, seen=seen)[4:8:2] == ("interrupted", 2)


def test_a_process_that_has_not_come_to_the_folder_is_starting(run: Path) -> None:
    code = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, "metaopt"], stdout=subprocess.DEVNULL) as process:
        write_json(run / "job.json", {"state": "running", "host": HERE, "pid": process.pid})
        while b"metaopt" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            pass  # between fork and exec
        assert read_run(run).note == "starting"
        process.kill()
        process.wait()
    assert read_run(run).state == "lost"


def test_status_prints_once_where_there_is_no_terminal(
    pretending: Callable[..., Sweep], run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = pretending(0, 1)
    metrics(sweep.run("1-seed-0"), train(1, 0.5), {"kind": "validation", "meta_step": 1, "validation/2x/median": 0.25})
    assert cli.main(["status", str(sweep.path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == [f"{sweep.path}:", "1", "waiting,", "1", "unknown"]
    assert lines[1] == ["run", "state", "meta-step", "loss", "val", "2x"]
    assert lines[2] == ["1-seed-0", "unknown", "1/4", "0.5", "0.25"]
    assert lines[3] == ["2-seed-1", "waiting", "0/4"]
    assert " ".join(lines[-1]) == f"nobody runs this sweep; go on with `metaopt resume {sweep.path}`" or not lines[-1]
    # One run by itself, and everything under runs/.
    assert cli.main(["status", str(sweep.run("2-seed-1")), "--once"]) == 0
    assert "waiting" in capsys.readouterr().out
    (run / "runs" / "x").mkdir(parents=True)
    sweep.path.rename(run / "runs" / "x" / "sweep-001")
    monkeypatch.chdir(run)
    assert cli.main(["status"]) == 0
    assert "runs/x/sweep-001: 1 waiting, 1 unknown" in capsys.readouterr().out


def test_status_finds_runs_however_deep_they_lie(
    pretending: Callable[..., Sweep],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = pretending(0, 1)
    deep = tmp_path / "runs" / "a" / "b" / "c"
    deep.mkdir(parents=True)
    sweep.path.rename(deep / "sweep")
    (deep / "001").mkdir()
    make(deep / "001", "finished")
    (deep / "loop").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "outside").symlink_to(tmp_path)
    too_deep = tmp_path.joinpath("runs", *map(str, range(20)))
    too_deep.mkdir(parents=True)
    make(too_deep, "finished")
    monkeypatch.chdir(tmp_path)
    for words in ([], ["runs"], ["runs/a"], ["."]):
        assert cli.main(["status", *words]) == 0
        out = capsys.readouterr().out
        assert out.count("/a/b/c/sweep: 2 waiting") == 1 and out.count("a/b/c/001") == 1, words
        assert "loop" not in out and "outside" not in out and "0/1/2" not in out


def test_a_finished_run_whose_configuration_asks_for_more_goes_on(finished: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_meta_steps": 10}))
    before = read_run(path)
    steps = config["num_meta_steps"]
    assert before[4:8] == ("waiting", f"to be lengthened from {steps} meta-steps", steps, 10)
    resume(path)
    after = read_run(path)
    assert (after.state, after.done) == ("finished", "10/10")


def test_status_needs_neither_jax_nor_numpy(pretending: Callable[..., Sweep]) -> None:
    code = (
        "import sys; from metaopt.cli.entry import main; status = main(['status', sys.argv[1]]);"
        "slow = {'jax', 'numpy', 'wandb', 'optax', 'flax', 'tyro'} & set(sys.modules);"
        "print(sorted(slow), file=sys.stderr); sys.exit(status or bool(slow))"
    )
    command = [sys.executable, "-c", code, str(pretending(0).path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "nowhere"], "there is no folder nowhere."),
        (["status", "."], "is neither a run folder nor a sweep's"),
        (["status", "--live"], "has no option --live, only --once."),
        (["status"], "there are no runs under runs/ here"),
        (["cancel"], "name a run folder or a sweep's"),
        (["cancel", "nowhere"], "nowhere is neither a run folder nor a sweep's."),
        (["cancel", "--all"], "has no option --all"),
        (["resume"], "the folder comes first"),
        (["resume", "nowhere"], "there is no run folder nowhere."),
    ],
)
def test_mistakes(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_times_and_numbers_are_short() -> None:
    assert [tables.clock(seconds) for seconds in (None, math.inf, 7.4, 3723)] == ["", "", "0:07", "1:02:03"]
    assert [tables.number(value) for value in (None, 0.00123456, "inf", "-inf")] == ["", "0.00123", "inf", "-inf"]
    assert [tables.size(value) for value in (0, 980, 12_345, 3_400_000)] == ["0 B", "980 B", "12 kB", "3.4 MB"]
    assert [tables.percent(share) for share in (None, 0.0, 0.004, 0.25)] == ["", "0", "<1%", "25%"]


def test_a_narrow_terminal_loses_columns_and_breaks_no_line() -> None:
    progress = Progress(500, 0.123, 12.3, 0.08, {"1x": 0.0123, "10x": 0.00345})
    rest = {"experiment": "", "fields": {}, "best": None, "best_at": None, "when": "", "note": ""}
    rows = [
        Run(Path(), name, state="running", meta_step=500, num_meta_steps=2000, progress=progress, **rest)
        for name in ("a" * 40, "b")
    ]
    headings = {}
    for width in (80, 60, 40):
        console = Console(width=width, file=io.StringIO())
        console.print(tables.standings(rows))
        written = console.file.getvalue().splitlines()
        assert max(map(len, written)) <= width
        headings[width] = written[0].split("  ")[-1].strip(), "steps/s" in written[0], "val 10x" in written[0]
    assert headings == {80: ("left", True, True), 60: ("left", False, True), 40: ("val 10x", False, True)}
