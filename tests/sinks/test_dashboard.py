"""The local dashboard: one page in a process of its own, asked over HTTP as its own page asks it."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from metaopt.cli.entry import main
from metaopt.errors import UserError
from metaopt.sinks.dashboard import Board, DashboardArguments, run_name, show

PROJECT = "metaopt"


class Page(NamedTuple):
    process: subprocess.Popen[str]
    address: str
    runs: Path
    temporary: Path
    proxy: socket.socket

    def ask(self, name: str, **arguments: Any) -> Any:
        """One call of the page's own interface."""
        body = json.dumps(arguments).encode()
        request = urllib.request.Request(
            f"{self.address}api/{name}", body, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["data"]

    def logs(self, run: str) -> list[dict[str, Any]]:
        return self.ask("get_logs", project=PROJECT, run=run)

    def until(self, holds: Callable[[], bool]) -> bool:
        """Whether it comes to hold while the page is there."""
        while self.process.poll() is None:
            if holds():
                return True
            time.sleep(0.2)
        return False


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    pytest.importorskip("trackio")
    home = tmp_path_factory.mktemp("dashboard")
    runs, temporary = home / "runs", home / "temporary"
    temporary.mkdir()
    shutil.copytree(finished, runs / "tiny" / "001")
    environment = {**os.environ, "TMPDIR": str(temporary), "HF_HOME": str(home / "hf"), "GRADIO_SHARE": "true"}
    # The way to every address but this machine's.
    proxy = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        environment |= {name: address, name.lower(): address}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "metaopt", "dashboard"], stdout=subprocess.PIPE, text=True, cwd=home, env=environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("dashboard: http://127.0.0.1:") and "(1 runs below runs); Ctrl-C ends it" in line
    yield Page(process, line.split()[1].partition("?")[0], runs, temporary, proxy)
    process.kill()
    process.wait()
    proxy.close()


def test_it_holds_the_runs_under_grouped_names(page: Page, finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    logs = page.logs("tiny/001")
    train = {row["step"]: row for row in logs if "train/meta_loss" in row}
    assert list(train) == list(range(1, 9))
    for row in lines:
        if row["kind"] == "train":
            shown = train[row["meta_step"]]
            assert (shown["train/meta_loss"], shown["health/diverged"]) == (row["meta_loss"], row["diverged"])
            assert shown["meta_step"] == row["meta_step"]
            assert shown["losses/log10 of train meta_loss"] == pytest.approx(math.log10(row["meta_loss"]))
        else:
            (shown,) = [log for log in logs if log["step"] == row["meta_step"] and "validation/best" in log]
            assert shown["validation/2x/median"] == row["validation/2x/median"]
    (media,) = [row for row in logs if "evaluation/results" in row]
    assert media["evaluation/quadratic:dim=2/4"]["_type"] == "trackio.image"
    with urllib.request.urlopen(page.address) as answer:
        assert b"<html" in answer.read().lower()


def test_it_follows_what_is_added_and_what_is_cut_back(page: Page, finished: Path) -> None:
    shutil.copytree(finished, page.runs / "sweep" / "a", ignore=shutil.ignore_patterns("evaluation.json"))
    assert page.until(lambda: {run["name"] for run in _runs(page)} == {"tiny/001", "sweep/a"})
    metrics = page.runs / "sweep" / "a" / "metrics.jsonl"
    with open(metrics, "a") as file:
        file.write(json.dumps({"kind": "train", "meta_step": 9, "meta_loss": 0.125}) + "\n")
    assert page.until(lambda: 0.125 in [row.get("train/meta_loss") for row in page.logs("sweep/a")])
    kept = [line for line in metrics.read_text().splitlines(keepends=True) if json.loads(line)["meta_step"] <= 4]
    part = metrics.with_suffix(".part")
    part.write_text("".join(kept))
    part.replace(metrics)
    assert page.until(lambda: sorted(row["step"] for row in page.logs("sweep/a")) == [1, 2, 3, 4, 4])


def test_the_newest_runs_are_drawn_at_first_and_losses_on_a_logarithmic_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    logged: dict[str, Any] = {}
    monkeypatch.setattr(storage, "bulk_log", lambda **values: logged.update({values["run"]: values}))
    for index in range(10):
        run = tmp_path / "runs" / f"{index}" / os.fsdecode(b"a,b\x1b\xff")
        run.mkdir(parents=True)
        config = {name: {"name": "x", "options": {}} for name in ("tasks", "optimizer", "estimator")}
        (run / "config.json").write_text(json.dumps(config))
        (run / "environment.json").write_text(json.dumps({"started": f"2026-01-{30 - index}T00:00:00+00:00"}))
        losses = {"validation/1x/median": 0.01, "validation/1x/failed": 0.5, "validation/2x/mean": -1.0}
        rows = [{"kind": "train", "meta_step": 1, "meta_loss": 0.1}, {"kind": "validation", "meta_step": 1, **losses}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    board = Board(PROJECT, tmp_path)
    assert board.update([tmp_path / "runs"]) == 10
    newest = {name for name, values in logged.items() if values["run_id"] in board.newest(8)}
    assert newest == {rf"{index}/a,b\x1b\udcff" for index in range(8)} and "," not in "".join(board.newest(8))
    train, validation = logged[r"0/a,b\x1b\udcff"]["metrics_list"]
    assert train["losses/log10 of train meta_loss"] == -1 and train["train/meta_loss"] == 0.1
    assert {name for name in validation if name.startswith("losses/")} == {"losses/log10 of validation 1x median"}


def _runs(page: Page) -> list[dict[str, Any]]:
    return page.ask("get_runs_for_project", project=PROJECT)


def test_it_answers_to_its_own_address_only(page: Page) -> None:
    address = page.address.removeprefix("http://").rstrip("/")
    port = address.rpartition(":")[2]

    def status(*hosts: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(address)
        with contextlib.closing(connection):
            connection.putrequest("GET", "/", skip_host=True)
            for host in hosts:
                connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read()

    for host in (address, "127.0.0.1", "localhost", f"LOCALHOST:{port}", f"[::1]:{port}"):
        assert status(host)[0] == 200, host
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "127.0.0.1:1",
        f"0.0.0.0:{port}",
        "",
    ):
        assert status(host) == (403, f"this dashboard answers at http://127.0.0.1:{port} only\n".encode()), host
    assert status("localhost", "evil.example")[0] in (400, 403) and status()[0] in (400, 403)
    asked = urllib.request.Request(f"{page.address}api/get_runs_for_project", b"{}", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(asked)


def test_it_speaks_with_this_machine_only_and_ctrl_c_ends_it(page: Page) -> None:
    port = int(page.address.rstrip("/").rpartition(":")[2])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    assert f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening
    held = [path.name.partition("-")[0] for path in page.temporary.iterdir()]
    assert held.count("metaopt") == 1
    page.proxy.setblocking(False)
    with pytest.raises(BlockingIOError):  # nobody has come by
        page.proxy.accept()
    page.process.send_signal(signal.SIGINT)
    assert page.process.wait() == 0
    assert page.process.stdout is not None and page.process.stdout.read() == ""
    assert not list(page.temporary.glob("metaopt-dashboard-*"))


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no folder runs here"):
        show(DashboardArguments())
    with pytest.raises(UserError, match="there is no folder"):
        show(DashboardArguments(("nowhere",)))
    (tmp_path / "runs").mkdir()
    for name in ("TRACKIO_DIR", "TRACKIO_PLOT_ORDER", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # to be put back
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "trackio", None)
        assert main(["dashboard"]) == 2
    said = capsys.readouterr().err
    assert "pip install 'metaopt-jax[dashboard]'" in said and said.count("\n") == 1
    for port in ("99999999", "-1", "0", "80x"):
        assert main(["dashboard", "--port", port]) == 2
        said = capsys.readouterr().err
        assert f"'{port}' is no port; give a number from 1 to 65535." in said and said.count("\n") == 1
    pytest.importorskip("trackio")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        assert main(["dashboard", "--port", str(held.getsockname()[1])]) == 2
    assert "is taken; give another --port." in capsys.readouterr().err


def test_names() -> None:
    assert run_name(Path("runs/tiny/001"), Path("runs")) == "tiny/001"
    assert run_name(Path("runs/tiny/001"), Path("runs/tiny/001")) == "tiny/001"
    assert run_name(Path("runs/sweep/a/b"), Path("runs/sweep")) == "sweep/a/b"
