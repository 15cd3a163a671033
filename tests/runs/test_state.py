from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from metaopt.errors import UserError
from metaopt.runs import folder, state
from metaopt.runs.interrupts import Interrupted
from metaopt.runs.state import read_state, told, write_state
from metaopt.runs.train import ENDS
from metaopt.training.loop import Diverged
from tests.toys import begun_with


def test_a_finished_run_says_so(finished: Path) -> None:
    seen = read_state(finished)
    assert seen.state == "finished" and (seen.meta_step, seen.num_meta_steps) == (8, 8)
    assert seen.pid == os.getpid() and seen.reason is None
    assert folder.is_locked(finished) is False


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (Interrupted(15, "saved"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (Diverged("no task\nalive"), "diverged"),
        (MemoryError(), "failed"),
    ],
)
def test_every_end_is_told(error: BaseException, ends: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), told(tmp_path, num_meta_steps=9, ends=ENDS):
        assert json.loads((tmp_path / "state.json").read_text())["state"] == "running"
        assert read_state(tmp_path).state == "lost"  # for nobody holds the lock
        with folder.locked(tmp_path):
            assert read_state(tmp_path).state == "running"
        raise error
    seen = read_state(tmp_path)
    assert seen.state == ends and seen.num_meta_steps == 9
    assert seen.reason == (" ".join(str(error).split()) or type(error).__name__)


def test_what_is_missing_or_broken_is_unknown(tmp_path: Path) -> None:
    assert read_state(tmp_path) == (*["unknown", 0], *[None] * 5) == read_state(tmp_path / "nowhere")
    for text in ("{", "[]", '{"state": "asleep", "pid": "x", "meta_step": true}'):
        (tmp_path / "state.json").write_text(text)
        assert read_state(tmp_path) == (*["unknown", 0], *[None] * 5)


def test_without_locks_the_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "is_locked", lambda path: None)
    write_state(tmp_path, "running", num_meta_steps=9)
    assert read_state(tmp_path).state == "running"
    monkeypatch.setattr(state, "_alive", lambda pid: False)
    assert read_state(tmp_path).state == "lost"
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    assert read_state(tmp_path).state == "running"


def test_a_full_disk_takes_the_state_in_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(tmp_path, "failed", num_meta_steps=9, reason="x" * 300)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    write_state(tmp_path, "interrupted", num_meta_steps=9)
    assert read_state(tmp_path).state == "interrupted"


def test_a_look_does_not_keep_a_run_from_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    look = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda seconds: fcntl.flock(look, fcntl.LOCK_UN))
    with folder.locked(tmp_path):
        assert folder.is_locked(tmp_path)
    os.close(look)


def test_a_refused_resumption_leaves_the_state_as_it_was(finished: Path, tmp_path: Path) -> None:
    from metaopt.runs.train import resume

    path = Path(shutil.copytree(finished, tmp_path / "run"))
    config = json.loads((path / "config.json").read_text())
    begun_with(path, {**config, "optimizer": "lstm:hidden_size=3"})
    before = (path / "state.json").read_bytes()
    with pytest.raises(UserError, match="another architecture"):
        resume(path)
    assert (path / "state.json").read_bytes() == before
