"""Where runs stand, by what is in their folders."""

from __future__ import annotations

import fcntl
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metaopt.cli import entry as cli
from metaopt.files import write_json
from metaopt.launch import tables
from metaopt.launch.states import Progress, Reader, Standing, read_progress
from metaopt.launch.sweep_folder import Sweep

HERE = platform.node()
ENDED = {"state": "ended", "ended": "2026-01-02T00:00:00+00:00"}


def metrics(run: Path, *rows: dict[str, Any]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(step: int, loss: Any, seconds: float = 0.5) -> dict[str, Any]:
    times = {"time/meta_step": seconds, "time/elapsed": 2.0 * step}  # of which most goes to validation
    return {"kind": "train", "meta_step": step, "meta_loss": loss, **times}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", {"num_meta_steps": 8, "log": {"every": 2}})
    return tmp_path


def test_the_end_of_the_metrics_is_summed_up(run: Path) -> None:
    validation = {"kind": "validation", "meta_step": 2, "validation/1x/median": 0.5, "validation/10x/median": "inf"}
    more = {"validation/1x/quadratic/median": 7.0, "validation/1x/failed": 0.0, "validation_ema/1x/median": 9.0}
    metrics(run, train(1, 8.0), train(2, 4.0), validation | more, train(3, 2.0), train(4, 1.0, 0.25))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "meta_step": 5, "meta_lo')  # being written
    progress = read_progress(run / "metrics.jsonl", 2)
    assert progress == (4, 1.5, 4.0, 2.0, {"1x": 0.5, "10x": float("inf")})
    standing = Reader().run(run)._replace(state="running")
    assert standing.seconds_left == 8.0


def test_the_latest_validation_is_found_however_far_back(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt.launch.states.TAIL_BYTES", 100)
    early = [{"kind": "validation", "meta_step": step, "validation/1x/median": step} for step in (1, 2)]
    metrics(run, *early, *(train(step, None if step == 99 else 1.0) for step in range(3, 101)))
    progress = read_progress(run / "metrics.jsonl", 2)
    assert (progress.meta_step, progress.validation) == (100, {"1x": 2.0})
    assert progress.meta_loss != progress.meta_loss  # a loss that is no number is not passed over


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
    standing = Reader().run(run, "name")
    assert standing.state == expected and standing.note.startswith(note)


def test_a_process_in_the_folder_is_running_whatever_the_files_say(run: Path) -> None:
    write_json(run / "state.json", {"state": "interrupted", "num_meta_steps": 8, "meta_step": 2})
    handle = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        reader = Reader()
        assert reader.run(run)[2:5] == ("running", 0, 8) and reader.run(run).note == "compiling"
        metrics(run, train(7, 1.0), train(8, 1.0))
        assert reader.run(run)[2:5] == ("running", 8, 8) and reader.run(run).note == "evaluating"
    finally:
        os.close(handle)
    assert reader.run(run)[2:4] == ("interrupted", 2)


def test_a_process_that_has_not_come_to_the_folder_is_starting(run: Path) -> None:
    code = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, "metaopt"], stdout=subprocess.DEVNULL) as process:
        write_json(run / "job.json", {"state": "running", "host": HERE, "pid": process.pid})
        while b"metaopt" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            pass  # between fork and exec
        assert Reader().run(run).note == "starting"
        process.kill()
        process.wait()
    assert Reader().run(run).state == "lost"


def test_status_prints_once_where_there_is_no_terminal(
    pretending: Callable[..., Sweep], run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = pretending(0, 1)
    metrics(sweep.run("1-seed-0"), train(1, 0.5), {"kind": "validation", "meta_step": 1, "validation/2x/median": 0.25})
    assert cli.main(["status", str(sweep.path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == [f"{sweep.path}:", "1", "waiting,", "1", "lost"]
    assert lines[1] == ["run", "state", "meta-step", "loss", "val", "2x"]
    assert lines[2] == ["1-seed-0", "lost", "1/4", "0.5", "0.25"]
    assert lines[3] == ["2-seed-1", "waiting", "0/4"]
    assert " ".join(lines[-1]) == f"nobody runs this sweep; go on with `metaopt resume {sweep.path}`" or not lines[-1]
    # One run by itself, and everything under runs/.
    assert cli.main(["status", str(sweep.run("2-seed-1")), "--once"]) == 0
    assert "waiting" in capsys.readouterr().out
    (run / "runs" / "x").mkdir(parents=True)
    sweep.path.rename(run / "runs" / "x" / "sweep-001")
    monkeypatch.chdir(run)
    assert cli.main(["status"]) == 0
    assert "runs/x/sweep-001: 1 waiting, 1 lost" in capsys.readouterr().out


def test_status_needs_neither_jax_nor_numpy(pretending: Callable[..., Sweep]) -> None:
    code = (
        "import sys; from metaopt.cli.entry import main; status = main(['status', sys.argv[1]]);"
        "slow = {'jax', 'numpy', 'wandb', 'optax', 'flax', 'tyro'} & set(sys.modules);"
        "print(sorted(slow), file=sys.stderr); sys.exit(status or bool(slow))"
    )
    command = ["timeout", "-k", "1", "20", sys.executable, "-c", code, str(pretending(0).path)]
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
    assert [tables.clock(seconds) for seconds in (None, 7.4, 61, 3723)] == ["", "0:07", "1:01", "1:02:03"]
    assert [tables.number(value) for value in (None, 0.00123456, float("inf"))] == ["", "0.00123", "inf"]


def test_a_narrow_terminal_loses_columns_and_breaks_no_line() -> None:
    progress = Progress(500, 0.123, 12.3, 0.08, {"1x": 0.0123, "10x": 0.00345})
    rows = [Standing(name, Path(), "running", 500, 2000, progress, "") for name in ("a" * 40, "b")]
    headings = {}
    for width in (80, 60, 40):
        console = Console(width=width, file=io.StringIO())
        console.print(tables.standings(rows))
        written = console.file.getvalue().splitlines()
        assert max(map(len, written)) <= width
        headings[width] = written[0].split("  ")[-1].strip(), "steps/s" in written[0], "val 10x" in written[0]
    assert headings == {80: ("left", True, True), 60: ("left", False, True), 40: ("val 10x", False, True)}
