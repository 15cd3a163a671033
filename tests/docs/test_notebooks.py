"""The tutorials: run in small, written from their sources, and clean."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.colors import to_hex

from metaopt.registry import REGISTRIES
from metaopt.report.panels import FAINT, INK, LEARNED
from tests.toys import script

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
SMALL = re.compile(r"^(?P<names>[A-Za-z_]\w*(?:, \w+)*) = .*?  # tests: (?P<small>.*)$", re.MULTILINE)


def cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No entry, figure or setting of a notebook stays."""
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    held = [dict(registry._entries) for registry in REGISTRIES if len(registry)]
    with matplotlib.rc_context({"backend": "agg"}):
        yield
    plt.close("all")
    for registry, entries in zip(REGISTRIES, held, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path) -> None:
    """Every cell in order, sizes as the comments `# tests:` have them."""
    sizes, names = 0, {"__name__": "__main__"}
    for index, cell in enumerate(cells(notebook)):
        if cell["cell_type"] == "code":
            code, found = SMALL.subn(r"\g<names> = \g<small>", "".join(cell["source"]))
            sizes += found
            exec(compile(code, f"{notebook.name}, cell {index}", "exec"), names)
    assert sizes >= 2


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_that_of_its_source(notebook: Path) -> None:
    pytest.importorskip("jupytext")
    made = script("scripts/notebooks").source_of(notebook.with_suffix(".py"))
    written = [(cell["cell_type"], "".join(cell["source"])) for cell in cells(notebook)]
    assert written == [(cell.cell_type, cell.source) for cell in made.cells], f"scripts/notebooks {notebook.stem}"


def test_every_source_has_its_notebook_and_they_are_clean_and_small() -> None:
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.py")}
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 2e6
    for notebook in NOTEBOOKS:
        held = json.loads(notebook.read_text(encoding="utf-8"))
        assert set(held["metadata"]) == {"kernelspec", "language_info"}
        assert len(held["cells"]) <= 24
        for cell in held["cells"]:
            assert cell["metadata"] == {} and not re.search(r"(?:/tmp|/home|/root|/Users)/", json.dumps(cell))
            for output in cell.get("outputs", ()):
                assert output["output_type"] != "error" and output.get("name") != "stderr", (notebook.name, output)


def test_the_style_has_the_houses_colours() -> None:
    style = matplotlib.rc_params_from_file(ROOT / "metaopt" / "report" / "house.mplstyle", use_default_template=False)
    colours = style["axes.prop_cycle"].by_key()["color"]
    assert tuple(to_hex(colour) for colour in colours[: len(LEARNED)]) == LEARNED
    assert (to_hex(style["axes.edgecolor"]), to_hex(style["grid.color"])) == (INK, FAINT)
