"""`metaopt benchmark` from the command line, on a suite of two."""

from __future__ import annotations

import html
import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optax
import pytest

from metaopt.benchmark import functions, running
from metaopt.benchmark.suites import SUITES, Entry
from metaopt.cli import benchmark
from metaopt.cli.entry import main

TWO = [Entry("beale", "sum of squares", functions.beale), Entry("zakharov", "valley", functions.zakharov)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    suite = MappingProxyType({entry.name: entry for entry in TWO})
    for module in ("running", "suites"):
        monkeypatch.setattr(f"metaopt.benchmark.{module}.SUITES", {**SUITES, "development": suite})
    monkeypatch.setattr("metaopt.cli.benchmark.SUITES", {**SUITES, "development": suite})
    monkeypatch.setattr(running, "TUNING", {50: "3x1"})
    monkeypatch.setattr(running, "TASKS", 2)
    monkeypatch.setattr(running, "BASELINES", ("adam", "adamw:schedule=cosine"))
    monkeypatch.setattr(running, "UNTUNED", ("dowg",))
    monkeypatch.setattr(running, "HELD", tmp_path / "held")
    monkeypatch.chdir(tmp_path)


def test_scores_are_printed_kept_and_gone_on_with(
    few: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = "optax:adam:learning_rate=0.01"
    words = ["benchmark", ours, "--horizons", "50", "--out", "here"]
    assert main([*words, "--minutes", "0.0001"]) == 0
    out = capsys.readouterr().out
    assert "1/2 beale, 50 steps" in out and "1 of 2 are left for another time" in out
    assert "2 of 2 entries and horizons have no baselines" in " ".join(out.split())
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "development suite, 50 steps, 2 tasks" in out and "1/1 zakharov, 50 steps" in out
    record = json.loads(Path("here/benchmark.json").read_text())
    held = record["entries"]["beale"]["50"]["optimizers"]
    assert set(held) == {ours, "adam", "adamw:schedule=cosine", "dowg"}
    assert held["adamw:schedule=cosine"]["tuned"]["knows_horizon"] and "tuned" not in held["dowg"]

    page = Path("here/benchmark.html").read_text()
    assert all(f">{html.escape(name)}<" in page.replace("<wbr>", "") for name in held)
    assert "versions.jax" in page.replace("<wbr>", "") and 'id="steps-50"' in page

    def again(*_: Any) -> None:
        raise AssertionError("was done already")

    monkeypatch.setattr(running, "measure", again)
    record["entries"]["beale"]["500"] = record["entries"]["beale"]["50"]  # as another call has left it
    Path("here/benchmark.json").write_text(json.dumps(record))
    assert main(words) == 0
    out, page = capsys.readouterr().out, Path("here/benchmark.html").read_text()
    assert "50 steps" in out and "500 steps" not in out and 'id="steps-50"' in page and 'id="steps-500"' in page
    assert main(["benchmark", "adam:learning_rate=0.1", "--horizons", "50", "--out", "here"]) == 2
    assert "other optimizers or of another φ; give another --out" in capsys.readouterr().err


def test_names_and_settings_tell_optimizers_apart(few: None, capsys: pytest.CaptureFixture[str]) -> None:
    """One's own Adam does not stand in for the tuned one, and an edited file is another optimizer."""
    own = Path("mine.py")
    own.write_text("import optax\n\ndef make():\n    return optax.sgd(0.1)\n")
    words = ["benchmark", "adam", "mine.py:make", "--horizons", "50", "--out", "here"]
    assert main(words) == 0
    held = json.loads(Path("here/benchmark.json").read_text())["entries"]["beale"]["50"]["optimizers"]
    assert set(held) == {"adam as given", "mine.py:make", "adam", "adamw:schedule=cosine", "dowg"}
    assert "tuned" in held["adam"] and "tuned" not in held["adam as given"]
    own.write_text(own.read_text().replace("0.1", "0.3"))
    capsys.readouterr()
    assert main(words) == 2
    assert "other optimizers or of another φ; give another --out" in capsys.readouterr().err


def test_two_runs_of_one_experiment_are_two_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    adam = optax.adam(0.1)
    monkeypatch.setattr(benchmark, "find", lambda text: ("mine", adam, text))
    found, identities = benchmark._found(["runs/mine/001", "runs/mine/002", "runs/mine/001"])
    assert list(found) == ["mine", "runs/mine/002"] and len(set(identities.values())) == 2
    monkeypatch.setattr(benchmark, "find", lambda text: ("adam", adam, text))
    assert list(benchmark._found(["runs/adam/001", "adam"])[0]) == ["runs/adam/001", "adam as given"]
    assert list(benchmark._found(["adam", "runs/adam/001"])[0]) == ["adam as given", "runs/adam/001"]


def test_baselines_that_come_with_the_package_are_not_measured_again(
    few: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["benchmark", "--baselines", "--horizons", "50"]) == 0
    held = json.loads((running.HELD / "development.json").read_text())
    assert {"versions", "git", "cpu"} <= set(held["environment"])
    monkeypatch.setattr(running, "measure_baselines", None)
    assert main(["benchmark", "adam:learning_rate=0.1", "--horizons", "50", "--out", "here"]) == 0
    out = capsys.readouterr().out
    assert "development suite, 50 steps, 2 tasks" in out and "dowg" in out and "have no baselines" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name at least one optimizer"),
        (["adam", "--suite", "tests"], "did you mean 'test'"),
        (["adam", "--horizons", "60"], "baselines are tuned for 50, 500, 5000 steps"),
        (["adam", "--minutes", "0"], "must be above 0"),
        (["adam", "--baselines"], "name no optimizer with it"),
        (["nothing_such"], "is nothing to inspect"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, few: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1 and not Path("benchmark").exists()
