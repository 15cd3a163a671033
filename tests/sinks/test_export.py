"""What an export holds, read back, is what metrics.jsonl and evaluation.json hold."""

from __future__ import annotations

import csv
import json
import math
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metaopt.cli.entry import main
from metaopt.errors import UserError
from metaopt.runs.metrics import Follower, Thinner, grouped
from metaopt.sinks.contents import doctor_rows, result_rows
from metaopt.sinks.export import ExportArguments, export_runs

ODD = [
    {"kind": "train", "meta_step": 9, "meta_loss": "inf", "grad_norm": None, "skipped": 1, "time/elapsed": 12.5},
    {"kind": "validation", "meta_step": 9, "validation/1x/median": 1.5e-07, "best": False, "time/elapsed": 12.5},
]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run whose last rows hold infinity, nan and a metric of their own, and a line that is still being written."""
    path = tmp_path / "runs" / "tiny" / "001"
    shutil.copytree(finished, path)
    with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in ODD)
        file.write('{"kind": "train", "meta_st')
    return path


@pytest.fixture
def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]


def curves(run: Path) -> list[tuple[str, int, float]]:
    """(optimizer, step, mean) of the only result."""
    (result,) = json.loads((run / "evaluation.json").read_text())["results"]
    found = []
    for name, record in result["optimizers"].items():
        curve = record["curve"]
        found += [(name, step, mean) for step, mean in zip(curve["steps"], curve["mean"], strict=True)]
    return found


def same(read: dict[str, Any], row: dict[str, Any]) -> bool:
    values = {key: math.nan if value is None else value for key, value in row.items()}
    values = {key: float(value) if value in ("inf", "-inf") else value for key, value in values.items()}
    equal = (read[key] == value or (value != value and read[key] != read[key]) for key, value in values.items())
    return read.keys() == values.keys() and all(equal)


def test_csv(run: Path, lines: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(run / f"{n}.csv") for n in ("metrics", "evaluation", "curves")]

    def read(text: str) -> Any:
        words = {"true": True, "false": False, "train": text, "validation": text}
        return words[text] if text in words else float(text)

    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [{key: read(text) for key, text in row.items() if text} for row in csv.DictReader(file)]
    assert len(rows) == len(lines) == 12 and all(map(same, rows, lines))
    with open(run / "curves.csv", newline="", encoding="utf-8") as file:
        read_back = [(row["optimizer"], int(row["step"]), float(row["mean"])) for row in csv.DictReader(file)]
    assert read_back == curves(run)


def test_parquet(run: Path, lines: list[dict[str, Any]], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    other = run.parent / "002"
    shutil.copytree(run, other)
    # Two runs of a folder into another one.
    written = list(export_runs(ExportArguments((str(tmp_path / "runs"),), "parquet", str(tmp_path / "out"))))
    assert len(written) == 6
    for path in ("tiny/001", "tiny/002"):
        table = parquet.read_table(tmp_path / "out" / path / "metrics.parquet")
        rows = [{key: value for key, value in row.items() if value is not None} for row in table.to_pylist()]
        assert len(rows) == len(lines) and all(map(same, rows, lines))
        types = {field.name: str(field.type) for field in table.schema}
        assert (types["meta_step"], types["meta_loss"], types["best"], types["kind"]) == (
            "int64",
            "double",
            "bool",
            "string",
        )
        rows = parquet.read_table(tmp_path / "out" / path / "curves.parquet").to_pylist()
        assert [(row["optimizer"], row["step"], row["mean"]) for row in rows] == curves(run)


def events(folder: Path) -> Iterator[Any]:
    """Of an event file: a length, its checksum, a record, its checksum, and so on."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    content, position = file.read_bytes(), 0
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        yield Event.FromString(content[position + 12 : position + 12 + length])
        position += 12 + length + 4


def test_tensorboard(run: Path, lines: list[dict[str, Any]]) -> None:
    pytest.importorskip("tensorboardX")
    for _ in range(2):  # the second export takes the place of the first
        (folder,) = export_runs(ExportArguments((str(run),), "tensorboard"))
    found: dict[tuple[str, int], tuple[float, float]] = {}
    for event in events(Path(folder)):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag, event.step] = (value.simple_value, event.wall_time)
    began = min(when for _, when in found.values())
    wanted = {(tag, row["meta_step"]): (number, row) for row in lines for tag, number in grouped(row).items()}
    for key, (number, row) in wanted.items():
        value, when = found.pop(key)
        # Its values are single precision, which holds the six digits of metrics.jsonl.
        assert float(f"{value:.6g}") == pytest.approx(number, rel=5e-6, nan_ok=True)
        assert when == pytest.approx(began + row["time/elapsed"], abs=0.01)
    assert ("train/meta_loss", 9) in wanted and ("health/skipped", 9) in wanted and ("validation/best", 4) in wanted
    for name, step, mean in curves(run):
        tag = f"evaluation/quadratic_dim_2/4/{name}/mean"  # letters, digits, - . / and _ are all there may be
        assert found.pop((tag, step))[0] == pytest.approx(mean, rel=1e-6)
    assert all(tag.startswith("evaluation/") and tag.endswith("/median") for tag, _ in found)


@pytest.mark.parametrize(("to", "library"), [("parquet", "pyarrow"), ("tensorboard", "tensorboardX")])
def test_a_missing_library_is_named_with_the_remedy(
    to: Any, library: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["export", str(run), "--to", to]) == 2
    said = capsys.readouterr().err
    assert library in said and "pip install 'metaopt-jax[export]'" in said and said.count("\n") == 1


def test_mistakes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").unlink()
    wrong = [
        ([str(run), "--to", "csv"], "no metrics.jsonl with rows"),
        ([str(tmp_path / "nowhere"), "--to", "csv"], "no folder"),
        ([str(run / "checkpoints"), "--to", "csv"], "no run below"),
        ([str(run), "--to", "excel"], "invalid choice"),
        ([str(run), "--to", "wandb", "--out", "x"], "leave --out out"),
    ]
    for arguments, words in wrong:
        assert main(["export", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_a_follower_gives_every_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.new_rows() == []
    with open(path, "a") as file:
        for text, steps in [
            ('{"meta_step": 1}\n{"meta_st', [1]),
            ('ep": 2}\n', [2]),
            ('', []),
            ('not json\n[]\n{"meta_step": "3"}\n{"meta_step": 4}\n', [4]),
        ]:  # fmt: skip
            file.write(text)
            file.flush()
            assert [row["meta_step"] for row in follower.new_rows()] == steps
            assert not follower.restarted
    path.write_text('{"meta_step": 1}\n')  # cut back
    assert [row["meta_step"] for row in follower.new_rows()] == [1] and follower.restarted
    assert follower.new_rows() == [] and not follower.restarted
    part = tmp_path / "part"
    part.write_text('{"meta_step": 1}\n{"meta_step": 2}\n')  # longer, but another file
    part.replace(path)
    assert [row["meta_step"] for row in follower.new_rows()] == [1, 2] and follower.restarted


def test_a_thinner_gives_means_over_whole_groups() -> None:
    rows = [{"kind": "train", "meta_step": step, "meta_loss": step, "skipped": step == 5} for step in range(1, 8)]
    rows.insert(5, {"kind": "validation", "meta_step": 5, "best": True})
    one = Thinner(1)
    assert [pair for row in rows for pair in one.add(row)] == [(row["meta_step"], grouped(row)) for row in rows]
    three = Thinner(3)
    assert [pair for row in rows for pair in three.add(row)] + three.rest() == [
        (3, {"train/meta_loss": 2.0, "health/skipped": 0.0}),
        (5, {"train/meta_loss": 4.5, "health/skipped": 0.5}),
        (5, {"validation/best": 1.0}),
        (6, {"train/meta_loss": 6.0, "health/skipped": 0.0}),
        (7, {"train/meta_loss": 7.0, "health/skipped": 0.0}),
    ]
    assert three.rest() == []


def test_rows_of_results_tell_bounds_from_none() -> None:
    def result(task: str, **compared: Any) -> dict[str, Any]:
        record = {"kind": "learned", "final": {"mean": -2.5, "median": -2.75}, **compared}
        return {"task": task, "horizon": 8, "num_tasks": 4, "optimizers": {"mine": record}}

    bounded = result("one", gap={"mean": 0.5}, ratio_to_best_baseline={"of_means": 2.0})
    free = result("two", difference_to_best_baseline={"mean": "inf"}, gap=None, ratio_to_best_baseline=None)
    names = ("task", "mean", "median", "mean_above_bound", "to_best_baseline", "difference_to_best_baseline")
    assert [tuple(row[name] for name in names) for row in result_rows([bounded, free])] == [
        ("one", -2.5, -2.75, 0.5, 2.0, None),
        ("two", -2.5, -2.75, None, None, math.inf),
    ]


def test_shares_of_events_have_columns_with_their_interval() -> None:
    events = {"global": {"share": 0.25, "interval": [0.1, 0.5]}}
    records = {"mine": {"kind": "learned", "final": {}, "events": events}, "other": {"kind": "learned", "final": {}}}
    result = {"task": "wells", "horizon": 8, "num_tasks": 4, "optimizers": records}
    mine, other = result_rows([result])
    assert [mine[f"P(global){end}"] for end in ("", "_low", "_high")] == [0.25, 0.1, 0.5]
    assert "P(global)" not in other


def test_rows_of_an_examination() -> None:
    measured = {
        "estimator": "reparameterised",
        "own": True,
        "horizon": 100,
        "window": 20,
        "num_lives": 8,
        "cosine": {"value": 0.5, "error": 0.1},
        "norm_ratio": None,
        "snr": {"value": 3.0, "error": "inf"},
        "one_step_cosine": 0.25,
        "tasks_for_snr_1": None,
        "nonfinite": 0.0,
        "clipped": 1.0,
        "diverged": 0.0,
    }
    impossible = {"estimator": "score_function", "horizon": 100, "window": 100, "reason": "no noise"}
    first, second = doctor_rows({"estimators": [measured, impossible]})
    assert (first["cosine"], first["cosine_error"], first["norm_ratio"], first["snr_error"]) == (
        0.5,
        0.1,
        None,
        math.inf,
    )
    assert (first["own"], first["clipped"], first["reason"]) == (True, 1.0, None)
    assert (second["own"], second["cosine"], second["reason"]) == (False, None, "no noise")
    assert first.keys() == second.keys() and doctor_rows({}) == []


def test_what_is_no_run_is_told_with_its_cause(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for runs, message in (
        ((), "name at least one run's folder"),
        ((str(run), str(tmp_path / "empty")), "there is no run below .*empty"),
    ):
        with pytest.raises(UserError, match=message):
            list(export_runs(ExportArguments(runs, "csv")))
    (run / "config.json").write_text('{"tasks": [')
    for place in (run, run.parent):
        with pytest.raises(UserError, match="config.json is not valid JSON"):
            list(export_runs(ExportArguments((str(place),), "csv")))
