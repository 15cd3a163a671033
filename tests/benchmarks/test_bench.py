"""The bench's own arithmetic: rows, files, comparison, the docs' tables, cost model; and that its parts are named."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cost, tables
from benchmarks.cost import FITTED, LEFT_OUT, Setting
from benchmarks.measure import ROOT, Row, measured, number

MACHINE: dict[str, Any] = {"cpu": "a CPU", "jax": "0.0", "date": "2000-01-02T03:04:05+00:00"}


def speed(*values: float, bound: float = 2.0) -> Row:
    settings = {"model": "BP", "tasks": 64}
    return measured("meta_step", "against the recompute bound", settings, "Mcs/s", values, bounds=[bound] * len(values))


def stored(path: Path, *rows: Row) -> dict[str, Any]:
    tables.store(path, rows[0].part, MACHINE, rows, None)
    return tables.load(path)


def test_a_row_is_the_median_of_its_repeats_with_ratios_repeat_by_repeat() -> None:
    row = measured("p", "f", {}, "Mcs/s", [1.0, 3.0, 2.0], bounds=[2.0, 4.0, 8.0])
    assert (row.value, row.range, row.bound) == (2.0, (1.0, 3.0), 4.0)
    assert (row.ratio, row.ratio_range) == (0.5, (0.25, 0.75))
    once = measured("p", "f", {}, "s", [1.5])
    assert (once.value, once.range, once.ratio) == (1.5, None, None)


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.01234, "0.0123"), (12345.6, "12,346"), (1e-5, "1.0e-05")])
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_a_file_keeps_the_parts_that_did_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    other = Row("start", "first logged meta-steps", {"cores": 2}, "s", None, note="busy")
    stored(path, other)
    stored(path, speed(1.0, 1.2))
    record = stored(path, speed(1.1, 1.3))
    assert tables.rows_of(record) == [speed(1.1, 1.3), other]  # in the order of the parts
    (tmp_path / "old.json").write_text('{"rows": []}')
    with pytest.raises(SystemExit, match="was not written by this bench"):
        tables.load(tmp_path / "old.json")


def test_comparison_marks_ranges_that_have_nothing_in_common(tmp_path: Path) -> None:
    before = stored(tmp_path / "a.json", speed(1.0, 1.1, 1.2))
    apart = tables.compare(before, stored(tmp_path / "b.json", speed(1.5, 1.6, 1.7)))[-1]
    assert "| 0.55 | 0.8 of the bound | 1.45 | * |" in apart
    near = tables.compare(before, stored(tmp_path / "c.json", speed(1.15, 1.3, 1.4)))[-1]
    assert near.endswith("| 1.18 |  |")
    # A machine of twice the speed: the ratio to its own bound is what counts.
    same = tables.compare(before, stored(tmp_path / "d.json", speed(2.0, 2.2, 2.4, bound=4.0)))[-1]
    assert same.endswith("| 1.00 |  |")


def test_readme_table_is_written_between_its_marks_only(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- speed -->\nold\n<!-- end of speed -->\nafter\n")
    record = stored(tmp_path / "a.json", speed(1.0, 1.1, 1.2))
    tables.rewrite(readme, tables.table(record, ["meta_step"]))
    lines = readme.read_text().splitlines()
    assert (lines[:2], lines[-2:]) == (["before", "<!-- speed -->"], ["<!-- end of speed -->", "after"])
    assert lines[2] == "Measured on a CPU, jax 0.0, 2000-01-02."
    expected = "| against the recompute bound: model BP, tasks 64 | 1.1 (1 to 1.2) Mcs/s | 2 | 0.55 (0.5 to 0.6) |"
    assert lines[-3] == expected
    with pytest.raises(SystemExit, match="needs one"):
        tables.rewrite(readme, [], "results")


@pytest.mark.parametrize("name", ["docs/speed.md", "docs/scaling.md"])
def test_this_checkouts_pages_have_a_place_for_the_table(name: str) -> None:
    text = (ROOT / name).read_text()
    assert text.count("<!-- speed -->\n") == text.count("<!-- end of speed -->") == 1


@pytest.mark.parametrize("kind", ["seconds", "bytes"])
def test_the_cost_model_finds_the_coefficients_of_exact_data(kind: str) -> None:
    true = dict(zip(cost.KINDS[kind], [3e-3, 2e-5, 4e-7, 1e-8, 6e-10, 2e-11], strict=False))
    values = [float(np.dot(list(true.values()), cost.terms(kind, point))) for point in FITTED]
    model = {kind: cost.fit(kind, list(FITTED), values) for kind in (kind,)}
    for name, value in true.items():
        np.testing.assert_allclose(model[kind][name], value, rtol=1e-4)


def test_points_left_out_are_not_among_those_fitted() -> None:
    assert not set(FITTED) & set(LEFT_OUT)
    assert Setting(256, 10, 50, 20).chunk == 64 and Setting(1, 4000, 20, 20).chunk == 1


@pytest.mark.parametrize("executable", ["benchmarks/bench", "scripts/bench"])
def test_an_unknown_part_is_refused_before_anything_runs(executable: str) -> None:
    done = subprocess.run([ROOT / executable, "meta_stop"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown part meta_stop; known: meta_step" in done.stderr
