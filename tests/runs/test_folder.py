from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metaopt import files
from metaopt.errors import UserError
from metaopt.experiment import Experiment
from metaopt.runs import folder
from metaopt.runs.environment import check_config
from metaopt.runs.folder import open_run
from metaopt.runs.train import resume


def created(out: Path | None, experiment: Experiment) -> Path:
    with folder.create_run(out, "tiny", experiment) as made:
        return made.path


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), files.replacing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_numbered_folders_count_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Experiment) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [created(None, tiny) for _ in range(2)]
    assert paths == [Path("runs/tiny/001"), Path("runs/tiny/002")]
    assert folder.open_run(paths[0]) == (paths[0], tiny)


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, tiny: Experiment) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty; give another --out."):
        created(tmp_path, tiny)
    run = created(tmp_path / "run", tiny)
    with pytest.raises(UserError, match=f"go on with `metaopt train --resume {run}`"):
        created(run, tiny)
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("out", ["/proc/metaopt/run", "file/run", "file"])
def test_an_unwritable_folder_is_refused_and_nothing_is_left(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Experiment
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(UserError, match="cannot write to the folder .*; give another --out."):
        created(Path(out), tiny)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_discard_takes_away_only_what_was_made(tmp_path: Path, tiny: Experiment) -> None:
    (tmp_path / "there").mkdir()
    with folder.create_run(tmp_path / "there" / "new" / "run", "tiny", tiny) as made:
        made.discard()
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    with folder.create_run(tmp_path / "there", "tiny", tiny) as made:  # it was empty
        made.discard()
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_folder_that_is_no_run_is_named_with_the_run_inside(tmp_path: Path, tiny: Experiment) -> None:
    with pytest.raises(UserError, match="is not a run folder, for it has no config.json; give the folder"):
        folder.open_run(tmp_path)
    run = created(tmp_path / "001", tiny)
    with pytest.raises(UserError, match=f"did you mean {run}"):
        folder.open_run(tmp_path)
    (run / "config.json").write_text('{"tasks": [')
    with pytest.raises(UserError, match="config.json is not valid JSON"):
        folder.open_run(run)


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    lock = f"fcntl.flock(os.open({str(tmp_path)!r}, os.O_RDONLY), fcntl.LOCK_EX)"
    code = f"import fcntl, os; {lock}; print(1, flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="another process is training"), folder.locked(tmp_path):
            pass
        other.stdin.close()
    with folder.locked(tmp_path):
        # Nor can two that both do as this one does.
        with pytest.raises(UserError, match="another process is training"), folder.locked(tmp_path):
            pass


def test_a_config_that_was_edited_since_its_run_began_is_refused(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = json.loads((run / "config.json").read_text())
    files.write_json(run / "config.json", {**config, "horizon": 8})
    with pytest.raises(UserError, match="`horizon` in .*config.json is 8, and the run was begun with 4; put that back"):
        resume(run)
    changed = {**config, "tasks": [{"name": "quadratic", "options": {"dim": 3}}]}
    files.write_json(run / "config.json", changed)
    with pytest.raises(UserError, match=r"`tasks.dim` in .* is 3, and the run was begun with 2"):
        resume(run)
    files.write_json(run / "config.json", {**config, "evaluation": {**config["evaluation"], "num_tasks": 3}})
    check_config(run, open_run(run)[1])  # φ does not hang on it
    environment = json.loads((run / "environment.json").read_text())
    files.write_json(run / "config.json", {**config, "horizon": 8})
    files.write_json(run / "environment.json", {k: v for k, v in environment.items() if k != "config"})
    check_config(run, open_run(run)[1])  # an older version's does not tell


def test_an_environment_names_the_processor(finished: Path) -> None:
    held = json.loads((finished / "environment.json").read_text())
    assert held["cpu"].strip() and held["cpu_count"] >= 1
    listed = Path("/proc/cpuinfo")
    if listed.exists() and "model name" in listed.read_text():
        assert held["cpu"] in listed.read_text()
