"""`metaopt doctor` on a run: figures and advice in the terminal, in doctor.json and in the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from metaopt.cli.entry import main
from metaopt.microscope import doctor


def test_a_run_is_examined(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "LIVES", (4, 4))
    monkeypatch.setattr(doctor, "FAR", 2)
    whole = doctor.plan
    monkeypatch.setattr(doctor, "plan", lambda *arguments: tuple(part[:3] for part in whole(*arguments)))
    run = tmp_path / "run"
    capsys.readouterr()
    shutil.copytree(finished, run)
    assert main(["doctor", str(run), "--num-tasks", "4"]) == 0
    shown = capsys.readouterr().out
    result = json.loads((run / "doctor.json").read_text())
    assert result["name"] == "tiny" and result["meta_step"] > 0 and result["num_tasks"] == 4
    assert result["gates"] is None and "momentum has no network" in result["without_network"]
    assert all(entry["text"].split()[0] in shown for entry in result["advice"])
    assert "* truncated_backprop" in shown and "No gates and inputs: momentum" in shown
    assert [line for line in shown.splitlines() if len(line) > 100 and not line.startswith("report:")] == []
    page = (run / "report.html").read_text()
    assert "<h2>Examination</h2>" in page and "Meta-gradients as numbers" in page and "Step lengths" in page


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "quadratc_rl"]) == 2
    assert "quadratic_rl" in capsys.readouterr().err
    assert main(["doctor", "quadratic_rl", "--num-tasks", "0", "--out", str(tmp_path / "out")]) == 2
    assert "at least" in capsys.readouterr().err or not (tmp_path / "out").exists()
