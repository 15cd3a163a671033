"""wandb beside a run: what it holds, and that no trouble with it is trouble for training.

The servers are of the standard library and live in the test's process; nothing leaves the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metaopt.cli.train import resume_with_everything as resume
from metaopt.cli.train import train_with_everything as train
from metaopt.errors import UserError
from metaopt.experiment import Experiment, Log
from metaopt.experiment.checks import validate
from metaopt.runs import folder
from metaopt.sinks import wandb_logger
from metaopt.sinks.uploads import unreachable
from metaopt.sinks.wandb_logger import labels, logging_beside, run_id, shortened


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no settings and no server of this machine's user; proxies left out."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


class Lines:
    """A console that keeps what is printed, and does something at the line that contains a word."""

    is_terminal = is_jupyter = False

    def __init__(self, at: str = "", do: Callable[[], Any] = lambda: None) -> None:
        self.said: list[str] = []
        self._at, self._do = at, do

    def print(self, text: Any = "", **_: Any) -> None:
        self.said.append(str(text))
        if self._at and self._at in str(text):
            self._do()

    def of_wandb(self) -> list[str]:
        return [line for line in self.said if line.startswith("wandb: ")]


def with_log(tiny: Experiment, mode: Any, **fields: Any) -> Experiment:
    return dataclasses.replace(tiny, log=Log(every=2, wandb=mode, project="metaopt-test"), **fields)


def whole(path: Path, num_meta_steps: int = 8) -> bool:
    """Every meta-step once in metrics.jsonl, and the evaluation there."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    steps = [row["meta_step"] for row in rows if row["kind"] == "train"]
    return steps == list(range(1, num_meta_steps + 1)) and (path / "evaluation.json").is_file()


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found


def ended(pid: int) -> None:
    """Waits for a process's end, a zombie counting as ended."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            select.select([handle], [], [])
        finally:
            os.close(handle)


# ----- what an offline run holds --------------------------------------------------------------------------------------


def records(folder: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format, in blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    content, position, parts = file.read_bytes(), 7, []
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(b"".join(parts))
            parts = []


def items(entries: Any) -> dict[str, Any]:
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def test_a_run_and_its_resumption_are_whole_under_one_id(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for online without a key: one line says so, and the run is logged offline."""
    monkeypatch.setenv("WANDB_RUN_GROUP", "sweep-7")
    monkeypatch.setenv("WANDB_JOB_TYPE", "sweep")
    path, console = tmp_path / "run", Lines()
    (tmp_path / "wandb").mkdir()  # in the way of `import wandb`
    monkeypatch.chdir(tmp_path)
    train(with_log(tiny, "online"), path, name="tiny", console=console)
    assert len(console.of_wandb()) == 2 and "no key; after `wandb login`" in console.of_wandb()[1]
    assert whole(path) and "wandb" not in sys.modules
    time.sleep(max(0.0, 1.1 - (time.time() % 1)))  # parts are named by the second
    resume(path, num_meta_steps=12, console=Lines())
    assert whole(path, 12)

    parts = sorted((path / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and all(part.name.endswith(run_id(path)) for part in parts)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for part, last in zip(parts, (8, 12), strict=True):
        found: dict[str, list[Any]] = {}
        for record in records(part):
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
        (run,) = found["run"]
        assert (run.run_id, run.project) == (run_id(path), "metaopt-test")
        assert (run.run_group, run.job_type) == ("sweep-7", "sweep")
        config = items(run.config.update)
        assert config["optimizer"] == {"name": "momentum", "options": {}} and config["environment"]["versions"]["jax"]
        assert {(m.name or m.glob_name, m.step_metric) for m in found["metric"]} >= {("*", "meta_step")}

        history = [items(entry.item) for entry in found["history"]]
        logged = {row["meta_step"]: row for row in history if "train/meta_loss" in row}
        wanted = {row["meta_step"]: row for row in lines if row["kind"] == "train" and row["meta_step"] <= last}
        assert list(logged) == list(wanted) == list(range(1, last + 1))
        for step, row in wanted.items():
            assert logged[step]["train/meta_loss"] == row["meta_loss"]
            assert logged[step]["health/diverged"] == row["diverged"]
        validations = {row["meta_step"]: row for row in history if "validation/2x/median" in row}
        assert list(validations) == list(range(4, last + 1, 4))

        end = history[-1]
        assert end["meta_step"] == last
        assert end["evaluation/curves/_type"] == end["evaluation/results/_type"] == "table-file"
        assert end["evaluation/quadratic:dim=2/4/_type"] == "image-file"
        summary = {key: value for entry in found["summary"] for key, value in items(entry.update).items()}
        result = json.loads((path / "evaluation.json").read_text())["results"][0]
        if last == 12:  # the first part holds the evaluation that the second took the place of
            mean = result["optimizers"]["tiny"]["final"]["mean"]
            assert summary["evaluation/quadratic:dim=2/4/tiny/mean"] == pytest.approx(mean)
        assert summary["health/diverged_total"] == 0
        (artifact,) = [artifact for artifact in found["artifact"] if artifact.type == "optimizer"]
        assert "optimizer.safetensors" in {entry.path for entry in artifact.manifest.contents}
        card = json.loads(artifact.metadata)
        assert card["meta_step"] in (4, 8, 12) and card["experiment"]["optimizer"]["name"] == "momentum"


def test_the_runs_of_a_sweep_are_a_group(tmp_path: Path) -> None:
    run = tmp_path / "rates" / "seed=1"

    def place() -> tuple[str, str]:
        found = labels(run, "digits_rl", {})
        return found["group"], found["job_type"]

    assert place() == ("digits_rl", "train")
    run.mkdir(parents=True)
    (tmp_path / "rates" / "sweep.json").touch()
    assert place() == ("rates", "sweep")


GIVEN = {"project": "p", "entity": "e", "name": "n", "notes": "o", "job_type": "j"}


def test_what_is_asked_for_comes_before_wandbs_variables_and_these_before_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "tiny" / "001"
    plain = labels(run, "tiny", dataclasses.asdict(Log()))
    assert plain == {
        "project": "metaopt", "entity": None, "name": "tiny/001", "notes": None, "job_type": "train", "group": "tiny",
        "tags": None,
    }  # fmt: skip
    for name in ("PROJECT", "ENTITY", "NAME", "NOTES", "JOB_TYPE", "RUN_GROUP", "TAGS"):
        monkeypatch.setenv(f"WANDB_{name}", "mine")
    assert set(labels(run, "tiny", dataclasses.asdict(Log())).values()) == {None}
    asked = labels(run, "tiny", {**GIVEN, "tags": ["a", "b"]})
    assert asked == {**GIVEN, "tags": ("a", "b"), "group": None}


def test_names_are_no_longer_than_wandb_takes_and_stay_apart(tmp_path: Path) -> None:
    run = tmp_path / ("x" * 200) / ("y" * 200)
    long = {"name": "n" * 200, "job_type": "j" * 200, "tags": ["t" * 64, "t" * 65, "t" * 66]}
    found = labels(run, "e" * 200, long)
    assert [len(found[name]) for name in ("name", "job_type", "group")] == [128, 64, 128]
    assert [len(tag) for tag in found["tags"]] == [64] * 3 and len(set(found["tags"])) == 3
    assert len(labels(run, "", {})["name"]) == 128
    assert shortened("a" * 128, 128) == "a" * 128 and shortened("a" * 129, 128) != shortened("a" * 130, 128)


def test_an_id_is_a_runs_own_and_stays_with_it(tmp_path: Path) -> None:
    run = tmp_path / "001"
    run.mkdir()
    first = run_id(run)
    assert run_id(run) == first
    run.rename(tmp_path / "moved")
    run.mkdir()  # another one at the same place
    assert run_id(tmp_path / "moved") == first != run_id(run)
    (run / "wandb" / "run_id").write_text("")  # cut short
    (run / "wandb" / "offline-run-20260101_000000-0123456789ab").mkdir()
    assert run_id(run) == "0123456789ab" == run_id(run)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"project": ""}, "`log.project` is empty, which wandb does not take; give a name, or leave it out."),
        ({"project": " "}, "`log.project` is empty"),
        ({"project": "a/b"}, "`log.project` ('a/b') is no project of wandb; give at most 128 characters without"),
        ({"project": "a" * 129}, "is no project of wandb"),
        ({"tags": ("a", "")}, "`log.tags` is empty"),
        ({"entity": ""}, "`log.entity` is empty"),
    ],
)
def test_what_wandb_would_refuse_is_refused_before_anything_is_trained(
    fields: dict[str, Any], message: str, tiny: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        train(dataclasses.replace(tiny, log=Log(wandb="offline", **fields)), tmp_path / "run")
    assert message in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "run").exists()
    validate(dataclasses.replace(tiny, log=Log(**fields)))  # without wandb it is nobody's trouble


def test_long_names_lose_neither_the_artifact_nor_the_end(finished: Path, tmp_path: Path) -> None:
    """With all that can be asked for, and a task's name that is longer than a file's may be."""
    path, said = tmp_path / ("x" * 200) / ("y" * 200), []
    shutil.copytree(finished, path)
    config, evaluation = (json.loads((path / name).read_text()) for name in ("config.json", "evaluation.json"))
    evaluation["results"][0]["task"] = "t" * 300
    (path / "evaluation.json").write_text(json.dumps(evaluation))
    log = {**GIVEN, "wandb": "offline", "tags": ["a", "t" * 100]}
    (path / "config.json").write_text(json.dumps({**config, "log": log}))
    environment = json.loads((path / "environment.json").read_text())
    (path / "environment.json").write_text(json.dumps({**environment, "experiment": "e" * 200}))
    with logging_beside(path, "offline", said.append, stats=False):
        pass
    assert len(said) == 1, said
    (part,) = (path / "wandb").glob("offline-run-*")
    found = {record.WhichOneof("record_type"): record for record in records(part)}
    run, artifact = found["run"].run, found["artifact"].artifact
    assert (run.project, run.entity, run.display_name, run.notes, run.job_type) == tuple(GIVEN.values())
    assert len(run.run_group) == 128 and list(run.tags) == ["a", shortened("t" * 100, 64)]
    assert len(artifact.name) == 128 and artifact.name.startswith("eeee") and "exit" in found


def test_nothing_of_it_is_loaded_when_disabled(finished: Path) -> None:
    assert not (finished / "wandb").exists()
    code = "import sys, metaopt.sinks.wandb_logger as w; assert not {'wandb', 'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ----- servers --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(health: str, rest: str) -> Iterator[str]:
    """The address of a server which answers as told, to /healthz and otherwise: "ok", "500" or "hang"."""
    stop = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            word = health if self.path == "/healthz" else rest
            if word == "hang":
                stop.wait(60)
            with contextlib.suppress(OSError):
                self.send_response(500 if word == "500" else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_POST = do_PUT = do_GET

        def log_message(self, *_: Any) -> None: ...

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{served.server_port}"
    finally:
        stop.set()
        served.shutdown()
        served.server_close()


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def test_a_server_is_asked_before_anything_is_uploaded() -> None:
    assert "refused" in str(unreachable(f"http://127.0.0.1:{closed_port()}"))
    with server("500", "500") as address:
        assert unreachable(address) == "status 500"
    with server("hang", "hang") as address:
        assert "timed out" in str(unreachable(address, timeout=0.2))
    with server("ok", "500") as address:
        assert unreachable(address) is None


@pytest.mark.parametrize("kind", ["refuses", "500", "hang"])
def test_a_server_in_trouble_is_one_line_and_no_trouble(
    kind: str, tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    console, path = Lines(), tmp_path / "run"
    with contextlib.ExitStack() as stack:
        refusing = f"http://127.0.0.1:{closed_port()}"
        address = refusing if kind == "refuses" else stack.enter_context(server(kind, kind))
        monkeypatch.setenv("WANDB_BASE_URL", address)
        train(with_log(tiny, "online"), path, name="tiny", console=console)
    assert whole(path)
    said = console.of_wandb()
    assert len(said) == 2 and said[0].startswith("wandb: offline in ")
    assert f"{address} does not answer" in said[1] and "`wandb sync " in said[1]
    (part,) = (path / "wandb").glob("offline-run-*")
    history = [record for record in records(part) if record.WhichOneof("record_type") == "history"]
    assert len(history) == 8 + 2 + 1  # meta-steps, validations, the end


def test_a_server_that_goes_bad_keeps_the_upload_only(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    path, said = tmp_path / "run", []
    shutil.copytree(finished, path)
    with server("ok", "hang") as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        with logging_beside(path, "online", said.append, upload_patience=0.5) as pid:
            assert pid is not None
        ended(pid)
    assert [line for line in said if "off from here on" in line] == []
    assert "uploading beside the run" in said[1] and "the upload goes on" in said[2] and len(said) == 3


# ----- its own processes ----------------------------------------------------------------------------------------------


def test_a_killed_wandb_core_is_one_line(tiny: Experiment, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        for child in children(os.getpid()):
            for grandchild in children(child):
                with contextlib.suppress(OSError):
                    if "wandb-core" in Path(f"/proc/{grandchild}/cmdline").read_text():
                        os.kill(grandchild, signal.SIGKILL)
                        killed.append(grandchild)

    console = Lines(at="wandb: offline in", do=kill)
    path = tmp_path / "run"
    train(with_log(tiny, "offline"), path, name="tiny", console=console)
    assert len(killed) == 1 and whole(path)
    said = console.of_wandb()
    assert len(said) == 2 and said[1].startswith("wandb: off from here on (") and "metrics.jsonl goes on" in said[1]


FAKE = """
import os

def fail(where):
    if os.environ["FAILS"].startswith(where):
        raise (SystemExit if os.environ["FAILS"].endswith("exit") else RuntimeError)("no\\nluck")

fail("import")

class Run:
    dir, group, summary = "/x/files", "g", {}

    def log(self, values): fail("log")
    def finish(self): fail("finish")
    def define_metric(self, *args, **options): pass
    def log_artifact(self, artifact): fail("artifact")

class Artifact:
    def __init__(self, *args, **options): pass
    def add_file(self, file): pass

Table = Image = Settings = lambda *args, **options: None

def init(**options):
    fail("init")
    return Run()
"""


@pytest.mark.parametrize("fails", ["import", "init", "log", "finish", "artifact", "log exit"])
def test_a_wandb_that_raises_is_one_line_and_no_trouble(
    fails: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("FAILS", fails)
    path, said = Path(shutil.copytree(finished, tmp_path / "run")), []
    with logging_beside(path, "offline", said.append, stats=False):
        pass
    (line,) = [line for line in said if "offline in" not in line]
    assert line.startswith("wandb: off from here on (") and line.endswith("; metrics.jsonl goes on")
    assert ("status 1" if "exit" in fails else "RuntimeError: no)") in line


def test_a_wandb_that_hangs_is_left_at_the_end(tmp_path: Path) -> None:
    said: list[str] = []
    with logging_beside(tmp_path, "offline", said.append, patience=0.2) as pid:
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    assert said == ["wandb: not done within 0.2 s; it goes on by itself, or ends itself"]
    os.kill(pid, signal.SIGKILL)
    ended(pid)


def test_ctrl_c_at_the_end_does_not_wait(tmp_path: Path) -> None:
    said: list[str] = []
    here = threading.get_ident()

    def press() -> None:
        """Ctrl-C, as soon as the end is being waited for."""
        while not {"_end", "wait"} <= {frame.name for frame in traceback.extract_stack(sys._current_frames()[here])}:
            time.sleep(0.01)
        signal.pthread_kill(here, signal.SIGINT)

    presser = threading.Thread(target=press, daemon=True)
    with logging_beside(tmp_path, "offline", said.append, patience=60) as pid:
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        presser.start()
    assert said == []  # who had waited would say for how long
    os.kill(pid, signal.SIGKILL)
    ended(pid)


def test_a_process_that_dies_or_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with logging_beside(tmp_path, "offline", said.append) as pid:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    assert said == ["wandb: off from here on (its process ended with status -9); metrics.jsonl goes on"]
    said.clear()
    monkeypatch.setattr(wandb_logger.sys, "executable", str(tmp_path / "no-python"))
    with logging_beside(tmp_path, "offline", said.append) as pid:
        assert pid is None
    assert len(said) == 1 and "No such file" in said[0]


def test_an_agent_of_wandbs_sweeps_drives_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: the flags that wandb's own code makes of a sweep's parameters, and the environment its agent sets."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    from metaopt.cli.entry import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("from tests.toys import TINY as EXPERIMENT\n")
    asked = {
        "meta_optimizer.learning_rate": 0.02, "num_meta_steps": 4, "seed": 3, "meta_optimizer.clip_norm": None,
        "tasks": "quadratic:dim=3", "log.wandb": "offline", "log.every": 2, "evaluation.tuning": "3x1",
    }  # fmt: skip
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    monkeypatch.setenv("WANDB_RUN_ID", "agent1")
    for form in ("args", "args_no_equals", "args_no_boolean_flags"):  # what a sweep's `command` may ask for
        made = create_sweep_command_args({"args": {name: {"value": value} for name, value in asked.items()}})
        assert main(["train", "mine.py", *made[form], "--out", form]) == 0
        experiment = folder.open_run(tmp_path / form)[1]
        assert experiment.meta_optimizer.learning_rate == 0.02 and experiment.meta_optimizer.clip_norm is None
        assert (experiment.num_meta_steps, experiment.seed, str(experiment.tasks[0])) == (4, 3, "quadratic:dim=3")
        asked["log.wandb"] = "disabled"  # once is enough
    (part,) = (tmp_path / "args" / "wandb").glob("offline-run-*")
    logged = list(records(part))
    (run,) = (record.run for record in logged if record.WhichOneof("record_type") == "run")
    assert (run.run_id, run.sweep_id) == ("agent1", "sweep7")
    assert {"history", "summary"} <= {record.WhichOneof("record_type") for record in logged}
