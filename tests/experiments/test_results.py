"""The tables of results: from the committed records, and a row of them once more from the committed φ."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metaopt
from metaopt.choices import parse_choice
from metaopt.evaluation.record import evaluation_keys
from metaopt.experiment import build_family
from metaopt.runs.optimizer_file import read_optimizer
from tests.toys import script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results() -> Any:
    return script("scripts/results")


@pytest.mark.parametrize(("place", "table"), [("README.md", "short_table"), ("docs/results.md", "results_table")])
def test_a_pages_table_is_that_of_the_records(results: Any, place: str, table: str) -> None:
    page = (ROOT / place).read_text(encoding="utf-8")
    found = re.search(r"<!-- results -->\n(.*?)\n<!-- end of results -->", page, re.DOTALL)
    assert found and found[1].splitlines() == getattr(results, table)()


def test_a_row_comes_out_again_for_every_way_to_pick(results: Any) -> None:
    record = json.loads((results.RESULTS / "quadratic_bp.json").read_text(encoding="utf-8"))
    row = min(record["results"], key=lambda result: result["horizon"])
    files = [read_optimizer(path) for path in (results.RESULTS / "quadratic_bp").glob("*.safetensors")]
    by_step = {trained.card["meta_step"]: trained for trained in files}
    key, _ = evaluation_keys(row["seed"])
    how = {"horizon": row["horizon"], "train_horizon": row["train_horizon"], "num_tasks": row["num_tasks"]}
    entries = {name: by_step[step] for name, step in row["meta_steps"].items()}
    found = metaopt.evaluate(
        {name: (one.optimizer, one.meta_params) for name, one in entries.items()},
        build_family(parse_choice(row["task"])),
        key,
        **how,
    )
    for name, one in entries.items():
        held = np.array(row["optimizers"][name]["per_task"]["final"])
        # Another CPU rounds differently, and a run amplifies it.
        difference = np.log(found.loss[name][:, -1] + 1e-7) - np.log(held + 1e-7)
        assert abs(np.median(difference)) < 0.01 and abs(difference.mean()) < 0.1
        assert {"versions", "git", "cpu"} <= set(one.card["environment"])
