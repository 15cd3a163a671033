"""Runs that are killed again and again, at random moments, and come out as if nothing had happened."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metaopt.experiment import Curriculum, MetaOptimizer
from metaopt.experiment.plain import to_json
from metaopt.files import write_json
from metaopt.runs.state import read_state
from tests.runs.forked import AT_FILE_EVENT, Child, Forks
from tests.toys import TINY

Rows = Callable[[Path], list[dict[str, Any]]]

KILLS = 32  # in all; a run that comes to its end in between is compared, and a new one begun
SAVING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
PHI = ("optimizer.safetensors", "optimizer_latest.safetensors", "evaluation.json")
FILE_EVENTS = 600  # of a whole run, about

# Inner runs go on between meta-steps, the horizon by validation, φ is averaged: all that a state can hold.
EXPERIMENT = dataclasses.replace(
    TINY,
    num_meta_steps=24,
    unroll_length=2,
    meta_optimizer=MetaOptimizer(ema=0.5, clip_adaptive=2.0),
    curriculum=Curriculum(kind="validation", horizons=(2,), patience=2),
    validation=dataclasses.replace(TINY.validation, every=6),
)


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    write_json(place / "tiny.json", to_json(EXPERIMENT))
    return place


@pytest.fixture(scope="module")
def undisturbed(forks: Forks, place: Path) -> Path:
    status, said = forks.run("train", "tiny.json", "--out", "undisturbed", cwd=place)
    assert status == 0, said
    return place / "undisturbed"


def begun(path: Path) -> tuple[str, ...]:
    return ("--resume", path.name) if (path / "config.json").exists() else ("tiny.json", "--out", path.name)


def half_written(path: Path) -> list[Path]:
    return [entry for entry in path.rglob("*") if entry.name.endswith(".part") or "orbax-checkpoint-tmp" in entry.name]


def wait_until(true: Callable[[], bool], child: Child) -> None:
    while not true() and not child.ended():
        time.sleep(0.005)


def end_at_random(forks: Forks, path: Path, draw: random.Random, how: float) -> Child:
    """A process that goes on with the run and is killed, mostly with -9, if it does not come to the end before."""
    signum = int(draw.choice((signal.SIGKILL,) * 12 + SAVING))
    arguments = ("train", *begun(path))
    if how < 0.5:  # just before a file operation, more often an early one: half of a run's are in saves
        at = round(math.exp(draw.uniform(0, math.log(FILE_EVENTS))))
        names = {"folder": path.name, "at": at, "signum": signum}
        return forks.start(*arguments, cwd=path.parent, before=AT_FILE_EVENT, **names)
    child = forks.start(*arguments, cwd=path.parent)
    if how < 0.9:  # some time after meta-training began
        wait_until(lambda: read_state(path).pid == child.pid, child)
        time.sleep(draw.uniform(0, 0.25))
    else:
        wait_until(lambda: "evaluating φ" in child.said, child)
        time.sleep(draw.uniform(0, 0.1))
    child.send(signum)
    return child


def check_whole(path: Path, undisturbed: Path, rows: Rows) -> None:
    assert rows(path) == rows(undisturbed)
    for name in PHI:
        assert (path / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert not half_written(path) and read_state(path).state == "finished"


def test_killed_runs_come_out_bitwise_as_undisturbed_ones(
    forks: Forks, place: Path, undisturbed: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("METAOPT_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    draw = random.Random(seed)
    by_nine = by_others = in_saves = in_evaluations = runs = longest = chain = 0
    evaluated = False
    path = place / "run_0"
    print(f"METAOPT_KILL_SEED={seed} draws these moments again")
    while by_nine + by_others < KILLS or chain:
        count = by_nine + by_others
        if count >= KILLS or evaluated:
            child = forks.start("train", *begun(path), cwd=place)
        else:  # the last one in the evaluation, whatever is drawn
            child = end_at_random(forks, path, draw, draw.random() if count < KILLS - 1 else 1.0)
        status, said = child.wait(), child.said
        assert "Traceback" not in said, said
        if status == 0:
            check_whole(path, undisturbed, rows)
            runs, longest, chain, evaluated = runs + 1, max(longest, chain), 0, False
            path = place / f"run_{runs}"
            continue
        # A signal before training began finds nothing to save: it ends the process as any other.
        assert -status in (signal.SIGKILL, *SAVING) or status - 128 in SAVING, said
        assert status < 0 or "metaopt train --resume" in said or "interrupted" in said, said
        chain += 1
        nine = status == -signal.SIGKILL
        by_nine, by_others = by_nine + nine, by_others + (not nine)
        in_saves += bool(half_written(path))
        evaluated = "evaluating φ" in said
        in_evaluations += evaluated
    with capsys.disabled():
        print(
            f"\nseed {seed}: {by_nine} kills -9 and {by_others} other signals over {runs} runs, up to {longest} in a "
            f"row; {in_saves} left a checkpoint or file half written, {in_evaluations} were in the evaluation",
            end=" ",
        )
    assert by_nine + by_others >= 30 and in_saves >= 1 and in_evaluations >= 1


# ----- a full disk ----------------------------------------------------------------------------------------------------

# Fills the disk when the run comes to its n-th call of a method: `filler`, `at`, `module`, `kind`, `method` are set.
FILL_AT = """
import importlib, os
owner = getattr(importlib.import_module(module), kind)
usual, left = getattr(owner, method), [at]
def full(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0:
        for size in (65536, 4096, 1):
            with open(filler, "ab", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass
    return usual(*args, **kwargs)
setattr(owner, method, full)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("what", "at", "reached"),
    [
        (("metaopt.runs.metrics", "JsonLines", "log"), 8, True),
        (("metaopt.runs.checkpoints", "Checkpoints", "save"), 3, True),
        (("metaopt.runs.checkpoints", "Checkpoints", "save"), 1, False),
        (("metaopt.microscope.capture", "CapsuleKeeper", "__init__"), 1, False),
    ],
    ids=["log", "checkpoint", "first checkpoint", "first row"],
)
def test_a_full_disk_ends_a_run_in_one_line_and_with_room_it_goes_on(
    what: tuple[str, str, str], at: int, reached: bool, forks: Forks, undisturbed: Path, small_disk: Path, rows: Rows
) -> None:
    write_json(small_disk / "tiny.json", to_json(EXPERIMENT))
    path, filler = small_disk / "run", small_disk / "filler"
    names = {"filler": str(filler), "at": at, **dict(zip(("module", "kind", "method"), what, strict=True))}
    status, said = forks.run("train", *begun(path), cwd=small_disk, before=FILL_AT, **names)
    assert status == 1 and "Traceback" not in said and said.count("No space left on device") == 1
    (error,) = [line for line in said.splitlines() if line.startswith("metaopt: error: ")]
    assert error.startswith("metaopt: error: cannot write to run: No space left on device; ")
    assert error.endswith("; mend that and go on with `metaopt train --resume run`.")
    assert ("the last checkpoint is of meta-step" in error) == reached
    seen = read_state(path)
    assert seen.state == "failed" and seen.reason and seen.reason in error and (seen.meta_step > 0) == reached
    status, said = forks.run("train", *begun(path), cwd=small_disk)
    assert status in (1, 2) and "No space left on device" in said and "Traceback" not in said  # no room as yet
    filler.unlink()
    status, said = forks.run("train", *begun(path), cwd=small_disk)
    assert status == 0, said
    check_whole(path, undisturbed, rows)


def test_a_closed_disk_and_a_taken_folder_are_refused_in_one_line(forks: Forks, small_disk: Path) -> None:
    write_json(small_disk / "tiny.json", to_json(EXPERIMENT))
    path = small_disk / "run"
    first = forks.start("train", *begun(path), cwd=small_disk)
    wait_until(lambda: "meta-step" in first.said, first)
    first.send(signal.SIGSTOP)
    status, said = forks.run("train", "--resume", "run", cwd=small_disk)
    assert (status, said) == (
        2,
        "metaopt: error: another process is training in run; wait for it or end it.\n",
    )
    status, said = forks.run("train", "tiny.json", "--out", "run", cwd=small_disk)
    assert status == 2 and said.count("\n") == 1 and "exists and is not empty; go on with" in said
    assert read_state(path).state == "running"
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL and read_state(path).state == "lost"
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    status, said = forks.run("train", "--resume", "run", cwd=small_disk)
    assert status == 2 and said.startswith("metaopt: error: cannot write to the folder run: Read-only file system; ")
    assert said.count("\n") == 1
