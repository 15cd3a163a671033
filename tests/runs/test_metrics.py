from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from rich.console import Console

from metaopt.runs.console import Progress
from metaopt.runs.metrics import JsonLines, cut_back, read_rows, score_of, train_rows


def write(path: Path, steps: range) -> None:
    lines = JsonLines(path)
    lines.log([{"kind": "train", "meta_step": step, "meta_loss": 1.0 / step} for step in steps])
    lines.close()


def test_rows_are_valid_json_whatever_the_numbers(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.log([{"meta_step": 1, "a": np.float32("nan"), "b": np.inf, "c": np.int32(3), "d": 0.123456789}])
    lines.close()
    text = (tmp_path / "m.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda word: 1 / 0) == {
        "meta_step": 1, "a": None, "b": "inf", "c": 3, "d": 0.123457
    }  # fmt: skip


def test_cutting_back_keeps_every_row_up_to_the_checkpoint_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 8))
    before = path.read_text().splitlines(keepends=True)
    with open(path, "a") as file:
        file.write('{"kind": "train", "meta_step": 8, "meta_l')  # a crash in the middle of a line
    assert len(list(read_rows(path))) == 7
    assert cut_back(path, 5) == 3
    assert path.read_text().splitlines(keepends=True) == before[:5]
    write(path, range(6, 8))
    assert path.read_text() == "".join(before)
    assert cut_back(path, 7) == 0 and cut_back(tmp_path / "missing", 0) == 0


def test_a_validation_that_will_be_repeated_is_cut_off_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3))
    lines = JsonLines(path)
    lines.log([{"kind": "validation", "meta_step": 2, "validation/1x/median": 1.0}])
    lines.close()
    assert cut_back(path, 2) == 0
    assert cut_back(path, 2, validation_due=True) == 1
    assert [row["kind"] for row in read_rows(path)] == ["train", "train"]


def test_a_chunk_becomes_one_row_a_meta_step() -> None:
    metrics = {"meta_step": np.arange(3, 5), "meta_loss": np.array([0.5, 0.25], np.float32)}
    first, second = train_rows(metrics, began=10.0, ended=14.0)
    assert first == {"kind": "train", "meta_step": 3, "meta_loss": 0.5, "time/elapsed": 12.0, "time/meta_step": 2.0}
    assert (second["meta_step"], second["time/elapsed"]) == (4, 14.0)


def test_the_score_of_a_validation_is_at_its_longest_horizon_and_of_the_average() -> None:
    row = {"meta_step": 4, "validation/1x/median": 0.1, "validation/10x/median": 0.3, "validation/2x/median": 0.2}
    assert score_of(row) == 0.3
    assert score_of({**row, "validation_ema/1x/median": 0.4, "validation_ema/10x/median": 0.5}) == 0.5
    assert score_of({**row, "validation/10x/median": "inf"}) is None and score_of({"meta_step": 4}) is None


def chunk(step: int) -> dict[str, object]:
    return {"kind": "train", "meta_step": step, "meta_loss": 0.5, "diverged": 1, "skipped": 0, "time/meta_step": 0.5}


def test_plain_lines_where_it_is_no_terminal() -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, soft_wrap=True), total=10)
    progress.log([chunk(1), chunk(2)])
    progress.log(
        [
            {
                "kind": "validation",
                "meta_step": 2,
                "validation/1x/median": 0.5,
                "validation/1x/failed": 0.25,
                "best": True,
            }
        ]
    )
    several = {"validation/3x/a/median": 0.1, "validation/3x/a/failed": 0.0, "validation/3x/b:data=x/median": 4.0}
    several |= {"validation/3x/b:data=x/failed": 0.5, "validation/3x/median": 0.25, "validation_ema/3x/median": 0.125}
    several["validation/next/median"] = 0.7  # of a curriculum that goes by validation
    progress.log([{"kind": "validation", "meta_step": 3, **several}])
    progress.close()
    assert out.getvalue().splitlines() == [
        "meta-step 2/10  loss 0.5  2 steps/s  non-finite 2  0:04 left",
        "meta-step 2: validation, median loss at 1x 0.5 (25% failed) (best so far)",
        "meta-step 3: validation, median loss relative to f(θ_0), geometric mean over families, at 3x 0.25, 3x, "
        "averaged 0.125, next 0.7; b:data=x (50% failed)",
    ]


def test_a_bar_in_a_terminal() -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=True, width=120), total=10)
    progress.log([chunk(1), chunk(2)])
    progress.close()
    assert "2/10" in out.getvalue() and "loss 0.5" in out.getvalue()
