"""Every command that README, docs and notebooks show works as written: as a dry run, or on a run of a second."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metaopt.cli import commands
from metaopt.cli import train as train_command
from metaopt.cli.entry import main
from metaopt.cli.examine import _load
from metaopt.cli.inspecting import find
from metaopt.experiment import Experiment
from metaopt.launch import grid, sweep_folder
from metaopt.launch.options import SweepOptions
from metaopt.runs.train import prepare

pytest.importorskip("submitit")  # whose logger keeps the streams that it finds, so not those of a single test
ROOT = Path(__file__).parents[2]
PLACES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs").rglob("*.ipynb"))]
STARTERS = (["mpirun", "-n", "2"], ["srun"])  # tests/launch/test_processes.py starts two processes so


def pages() -> Iterator[tuple[str, str]]:
    """(name, text); of a notebook what stands between its code."""
    for path in PLACES:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
            text = "\n\n".join("".join(cell["source"]) for cell in cells)
        yield path.name, text


def shown() -> Iterator[tuple[str, str]]:
    """(page, command) of every line of a block of shell."""
    for name, page in pages():
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    for starter in STARTERS:
                        words = words[len(starter) :] if words[: len(starter)] == starter else words
                    if words[:1] == ["metaopt"]:
                        yield name, shlex.join(words[1:])


def named_in_text() -> Iterator[tuple[str, str]]:
    """(page, command) of every `metaopt ...` within the text."""
    for name, page in pages():
        text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
        for command in re.findall(r"`[^`\n]*?\bmetaopt ([a-z][^`]*)`", text):
            yield name, " ".join(command.split())


@pytest.fixture(scope="module")
def place(finished: Path, tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all that the commands name is there."""
    place = tmp_path_factory.mktemp("documented")
    for run in ("runs/quadratic_rl/001", "runs/digits_rl/001"):
        shutil.copytree(finished, place / run)
    fields = {"meta_optimizer.learning_rate": ["1e-3", "3e-3"]}
    points = grid.expand(tiny, fields, None)
    sweep = place / "runs/quadratic_rl/sweep-001"
    sweep_folder.create(sweep, "quadratic_rl", points, fields, SweepOptions("quadratic_rl"))
    for point in points:
        shutil.copytree(finished, sweep / point.run, dirs_exist_ok=True)
    for command in ("sbatch", "srun"):  # looked for by a dry run, and no more
        (place / command).touch(0o755)
    for _, text in pages():  # files that a page has its reader write
        for name, block in re.findall(r"<!-- file (\S+) -->\n```python\n(.*?)```", text, re.DOTALL):
            (place / name).write_text(block)
    (place / "grid.yaml").write_text("meta_optimizer.learning_rate: [1.0e-3, 3.0e-3]\nseeds: 2\n")
    return place


TAKEN_OUT = ("--dry-run", "--detach")


@pytest.mark.parametrize(("page", "command"), sorted(set(shown())))
def test_a_command_that_is_shown_works(
    page: str,
    command: str,
    place: Path,
    register: Any,  # so that what a file registers is gone after it
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(train_command, "train_with_everything", lambda experiment, *_, **__: prepare(experiment))
    monkeypatch.setattr("metaopt.sinks.dashboard.show", lambda *args, **kwargs: None)
    monkeypatch.setattr("metaopt.cli.examine.doctor", lambda arguments: _load(arguments.run))
    monkeypatch.setattr("metaopt.cli.inspecting.inspect", lambda arguments: find(arguments.optimizer))
    monkeypatch.setattr("metaopt.cli.evaluate.evaluate_all", lambda *args, **kwargs: [])
    monkeypatch.setattr("metaopt.benchmark.running.run", lambda *args, **kwargs: iter(()))
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)
    words = [word for word in shlex.split(command) if word not in TAKEN_OUT]
    words += ["--dry-run"] * (words[0] == "launch")
    assert main(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize(("page", "command"), sorted(set(named_in_text())))
def test_commands_and_flags_named_in_the_text_are_there(page: str, command: str) -> None:
    name, *words = command.split()
    assert name in commands.COMMANDS
    experiment = ["quadratic_rl"] if name == "train" else []
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main([name, *experiment, "--help"])
        main([name, "--help"])
    for flag in (word for word in words if word.startswith("--") and word != "--plugin"):
        assert re.search(rf"{flag}\b", said.getvalue()), flag


def test_the_commands_are_found() -> None:
    commands_shown = [command.split()[0] for _, command in shown()]
    assert len(commands_shown) > 20 and {"train", "launch", "doctor", "export"} <= set(commands_shown)
    assert len(list(named_in_text())) > 5


def test_extras_that_are_named_are_there() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [found for _, text in pages() for found in re.findall(r"(?:metaopt-jax|'\.)\[([a-z,]+)\]", text)]
    assert named and {extra for one in named for extra in one.split(",")} <= set(known)
