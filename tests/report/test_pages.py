"""The pages in a real browser: no errors, charts drawn, both themes, a phone, tables that sort from the keyboard."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from metaopt.choices import choice
from metaopt.cli import entry as cli
from metaopt.experiment import Experiment, MetaOptimizer
from metaopt.experiment.plain import to_json
from metaopt.files import write_json
from metaopt.report.comparison_page import write_comparison
from metaopt.report.page import DARK, LIGHT
from metaopt.report.run_page import write_report
from tests.browser import Browser, browser_or_skip

RATES, SEEDS = (0.001, 0.01, 0.1), (0, 1)
HORIZONS = (100, 1000, 10000)
NAME = "<img src=x onerror=alert(1)>"


def evaluation(scale: float, horizon: int) -> dict[str, Any]:
    """An entry of evaluation.json in which losses fall as 1 / step; at the largest rate a task fails."""
    steps = np.unique(np.geomspace(1, horizon, 40).astype(int)).tolist()

    def record(kind: str, scale: float, failed: float) -> dict[str, Any]:
        values = [scale / step for step in steps]
        curve = {"steps": steps, **{part: values for part in ("mean", "median", "q25", "q75")}}
        final = {"mean": "inf" if failed else values[-1], "median": values[-1], "mean_interval": [values[-1]] * 2}
        ratio = {"of_means": scale, "interval": [scale / 2, 2 * scale]}
        tuned = {"learning_rate": 0.1} if kind == "baseline" else None
        return {"kind": kind, "tuned": tuned, "final": final, "failed": failed, "curve": curve,
                "ratio_to_best_baseline": ratio, "rises": 0.0, "keeps_improving": 1.0}  # fmt: skip

    learned = record("learned", scale, 0.25 if scale > 5 else 0.0)
    optimizers = {"demo": learned, "adam": record("baseline", 1.0, 0.0), "sgd": record("baseline", 3.0, 0.0)}
    return {"task": "quadratic", "horizon": horizon, "train_horizon": 100, "num_tasks": 4, "seed": 0,
            "best_baseline": "adam", "optimizers": optimizers}  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six made-up runs, three learning rates with two seeds each, of which one has not begun."""
    root = tmp_path_factory.mktemp("pages") / "a sweep with a rather long name, of three learning rates"
    for rate in RATES:
        for seed in SEEDS:
            run = root / f"learning_rate={rate},seed={seed}"
            run.mkdir(parents=True)
            experiment = Experiment(
                tasks=(choice("quadratic", dim=10),), optimizer=choice("lstm"), estimator=choice("truncated_backprop"),
                seed=seed, num_meta_steps=200, meta_optimizer=MetaOptimizer(learning_rate=rate),
            )  # fmt: skip
            write_json(run / "config.json", to_json(experiment))
            write_json(run / "environment.json", {"experiment": "demo", "versions": {"jax": f"0.{seed}"}})
            if (rate, seed) == (RATES[-1], SEEDS[-1]):
                continue
            scale = 100 * rate * (1 + seed / 4)
            lines: list[dict] = []
            for step in range(1, 201):
                lines.append(
                    {"kind": "train", "meta_step": step, "meta_loss": scale + 1 / step, "time/meta_step": 0.01}
                )
                if step % 50 == 0:
                    values = {f"validation/{m}x/median": scale / m / step for m in (1, 10)}
                    lines.append({"kind": "validation", "meta_step": step, **values})
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            results = [evaluation(scale, horizon) for horizon in HORIZONS]
            write_json(run / "evaluation.json", {"version": 1, "results": results})
    return root


@pytest.fixture(scope="module")
def pages(sweep: Path) -> dict[str, Path]:
    run = sweep / "learning_rate=0.01,seed=0"
    return {"run": write_report(run), "sweep": write_comparison([sweep])}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(browser_or_skip(), tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


def colour(text: str) -> np.ndarray:
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)])


def pixels(browser: Browser, **options: Any) -> np.ndarray:
    """A picture as numbers from 0 to 255: [height, width, 3]."""
    read = matplotlib.image.imread(io.BytesIO(browser.picture(**options)), format="png")
    return np.rint(read[..., :3] * 255).astype(int)


CHARTS = """Array.from(document.querySelectorAll("figure svg[role=img]")).map(svg => {
  const box = svg.getBoundingClientRect();
  return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height};
}).filter(box => box.width > 0)"""
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"width": 1280},
    "dark": {"width": 1280, "dark": True},
    "phone": {"width": 390, "height": 844, "phone": True},
    "dark phone": {"width": 390, "height": 844, "phone": True, "dark": True},
}


@pytest.mark.parametrize(
    ("name", "view"), [("run", "light"), ("run", "dark phone"), ("sweep", "dark"), ("sweep", "phone")]
)
def test_charts_are_drawn_and_nothing_goes_wrong(
    name: str, view: str, pages: dict[str, Path], browser: Browser
) -> None:
    browser.open(pages[name], **VIEWS[view])
    theme, width = (DARK if "dark" in view else LIGHT), VIEWS[view]["width"]
    whole = pixels(browser)
    assert (whole[2, 2] == colour(theme["paper"])).all()
    # The page itself does not scroll sideways, whatever its tables do.
    assert browser.run("document.documentElement.scrollWidth") == width == whole.shape[1]
    charts = browser.run(CHARTS)
    assert len(charts) == {"run": 5, "sweep": 3}[name]  # each once: the wide form or the narrow one
    for box in charts:
        top, left = round(box["y"]), round(box["x"])
        chart = whole[top : top + round(box["height"]), left : left + round(box["width"])]
        assert chart.shape[0] > 150 and chart.shape[1] > 300
        far = np.abs(chart - colour(theme["paper"])).sum(axis=-1) > 60
        assert 0.01 < far.mean() < 0.6  # neither blank nor a block
        # In each quarter of the chart something is drawn, and the first line's colour and the ink are on it.
        rows, columns = np.array_split(far, 2), (slice(0, far.shape[1] // 2), slice(far.shape[1] // 2, None))
        assert all(half[:, side].any() for half in rows for side in columns)
        for role in ("learned-0", "ink"):
            assert (np.abs(chart - colour(theme[role])).max(axis=-1) < 40).sum() > 20, role
    assert browser.errors == []


# Names in tables that go on in another line within a word.
BROKEN = """Array.from(document.querySelectorAll("th, .settings th, h1, h2")).flatMap(cell => {
  const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    if (!/[\\s-]/.test(walker.currentNode.data.trim()) && range.getClientRects().length > 1)
      found.push(walker.currentNode.data);
  }
  return found;
})"""
# Of each table of results: whether its first column stays where the others move, and where the second one ends.
FIRST_COLUMNS = """Array.from(document.querySelectorAll(".results")).map(table => {
  const box = table.parentElement, [first, second] = table.tBodies[0].rows[0].cells;
  const before = first.getBoundingClientRect().left, right = second.getBoundingClientRect().right;
  box.scrollLeft = 60;
  const after = first.getBoundingClientRect().left;
  box.scrollLeft = 0;
  return [before === after, right];
})"""


def test_what_is_wide_scrolls_in_its_box(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["sweep"], width=390, height=844, phone=True)
    boxes = browser.run(
        "Array.from(document.querySelectorAll('.scroll')).filter(box => box.clientWidth)"
        ".map(box => [box.scrollWidth, box.clientWidth, box.tabIndex])"
    )
    assert any(inner > outer for inner, outer, _ in boxes) and all(outer <= 390 for _, outer, _ in boxes)
    assert all(index == 0 for _, _, index in boxes)  # the keyboard reaches them
    for name in ("sweep", "run"):
        browser.open(pages[name], width=390, height=844, phone=True)
        assert browser.run(BROKEN) == []
        browser.run("document.querySelectorAll('#runs tbody th').forEach(head => head.append('y'.repeat(90)))")
        columns = browser.run(FIRST_COLUMNS)
        assert len(columns) > 1 and all(stays for stays, _ in columns)
        assert all(right <= 390 for _, right in columns)  # what is compared is seen before anything is moved
    browser.run("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    assert browser.run(BROKEN) == [] and browser.run("document.documentElement.scrollWidth") == 390
    assert browser.run("parseFloat(getComputedStyle(document.body).fontSize)") >= 16


COLUMN = """(() => {
  const heads = Array.from(document.querySelectorAll("#runs thead th"));
  const column = heads.findIndex(head => head.textContent.startsWith("%s"));
  const cells = Array.from(document.querySelectorAll("#runs tbody tr")).map(row => row.cells[column]);
  return [heads.map(head => head.getAttribute("aria-sort")), cells.map(cell => cell.firstChild.textContent)];
})()"""


def test_tables_sort_from_the_keyboard(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["sweep"], width=1280)
    focus = "document.querySelectorAll('#runs thead button')[%d].focus()"
    browser.run(focus % 0)
    browser.press("Tab")  # from the runs' names to the best validation
    assert browser.run("document.activeElement.textContent") == "Best validation"
    for direction, expected in (
        ("ascending", ["5.00e−5", "6.25e−5", "5.00e−4", "6.25e−4", "0.005", "–"]),
        ("descending", ["0.005", "6.25e−4", "5.00e−4", "6.25e−5", "5.00e−5", "–"]),  # what is missing stays last
    ):
        browser.press("Enter")
        states, values = browser.run(COLUMN % "Best")
        assert values == expected
        assert states[1] == direction and set(states) == {direction, "none"} and states.count(direction) == 1
    # Another column: the mark moves, numbers go by value and names by their words.
    browser.press("Tab")
    browser.press("Enter")
    states, values = browser.run(COLUMN % "meta_optimizer.learning_rate")
    assert values == ["0.001", "0.001", "0.01", "0.01", "0.1", "0.1"] and states[:3] == ["none", "none", "ascending"]
    assert browser.errors == []


def test_the_button_chooses_the_theme(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["run"], width=1280)
    paper = "getComputedStyle(document.documentElement).getPropertyValue('--paper')"
    assert browser.run(paper) == LIGHT["paper"]
    browser.run("document.getElementById('theme').focus()")
    browser.press("Enter")
    assert (
        browser.run(paper) == DARK["paper"]
        and browser.run("document.getElementById('theme').innerText") == "Light theme"
    )
    dark = pixels(browser, clip={"x": 0, "y": 0, "width": 200, "height": 100})
    assert (dark[2, 2] == colour(DARK["paper"])).all()
    browser.press("Enter")
    assert browser.run(paper) == LIGHT["paper"]
    browser.theme(True)  # what was chosen stands against the system's wish
    assert browser.run(paper) == LIGHT["paper"]
    browser.run("localStorage.clear()")
    assert browser.errors == []


def luminance(text: str) -> float:
    part = colour(text) / 255
    return float(np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(theme: dict[str, str]) -> None:
    """Words at 4.5 to 1, lines at 3 to 1 or, for the palest hues of Okabe and Ito, with a marker, above 2.7 to 1."""
    paper = luminance(theme["paper"])

    def contrast(role: str) -> float:
        other = luminance(theme[role])
        return (max(paper, other) + 0.05) / (min(paper, other) + 0.05)

    assert all(contrast(role) >= 4.5 for role in ("ink", "quiet", "bad"))
    assert all(contrast(role) >= 2.7 for role in theme if role.startswith("learned"))
    assert set(LIGHT) == set(DARK)


# ----- what the comparison says; no browser ---------------------------------------------------------------------------


def test_the_comparison_says_what_differs_and_which_is_best(pages: dict[str, Path], sweep: Path) -> None:
    text = pages["sweep"].read_text(encoding="utf-8")
    text = text.replace("<wbr>", "")
    shown = re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]*>", " ", text, flags=re.DOTALL)
    shown = " ".join(html.unescape(shown).split())
    for words in (
        "6 runs of demo",
        "meta_optimizer.learning_rate : 0.001, 0.01, 0.1",
        "seed : 0, 1",
        "Best: learning_rate=0.001,seed=0 (learning_rate 0.001, seed 0), with a validation loss of 5.00e−5 at",
        "learning_rate 0.001 5.62e−5 5.00e−5 6.25e−5 2 0.001",  # over seeds: median, lowest, highest
        "best validation: median final loss",
        "horizon, in multiples of the training horizon",
        "versions.jax 0.0 (3 runs); 0.1 (3 runs)",
        "num_meta_steps 200 default: 2000",
    ):
        assert words in shown, words
    assert "meta_optimizer.learning_rate 0" not in shown  # in what they have in common
    assert re.findall(r'href="([^#"][^"]*)"', text) == [
        "./learning_rate%3D0.01%2Cseed%3D0/report.html"
    ]  # the one run that has a page of its own
    assert len(text) < 400_000 and pages["run"].stat().st_size < 400_000


def test_report_on_several_runs(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = [str(path) for path in sorted(sweep.glob("learning*"))]
    out = tmp_path / "two.html"
    assert cli.main(["report", *runs[:2], "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n" and "2 runs of demo" in out.read_text(encoding="utf-8")
    assert cli.main(["report", runs[0], "--out", str(out)]) == 0 and "2 runs" not in out.read_text(encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "empty"), runs[0]], "there is no run in"),
        ([*runs, "--out", str(tmp_path / "page.txt")], "is no page"),
        ([*runs[:2], "--out", str(tmp_path / "no" / "page.html")], "there is no folder"),
        ([str(tmp_path / "empty")], "is not a run folder"),
    ):
        assert cli.main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_twenty_runs_stay_small_and_hostile_names_stay_words_and_a_broken_file_hides_no_other(
    sweep: Path, tmp_path: Path
) -> None:
    one = sweep / "learning_rate=0.01,seed=0"
    for index in range(20):
        copy = Path(shutil.copytree(one, tmp_path / f"{index:02} {NAME}"))
        config = json.loads((copy / "config.json").read_text())
        config["optimizer"] = {"name": "lstm", "options": {"hidden_size": 4 + index}}
        (copy / "config.json").write_text(json.dumps(config))
    (tmp_path / f"03 {NAME}" / "evaluation.json").write_text("{")
    text = write_comparison([tmp_path]).read_text(encoding="utf-8").replace("<wbr>", "")
    assert "evaluation.json is not valid JSON" in text and "Horizon generalisation" in text
    assert len(text.encode()) < 2_000_000
    assert "<img" not in text and text.count("&lt;img src=x") > 20
    assert "the other 10" in text  # beyond ten, lines cannot be told apart


POINTS = "Array.from(document.querySelectorAll('.moving .path')).map(p => p.getAttribute('points').split(' ').length)"


def test_paths_on_a_landscape_move_when_they_are_asked_to(sweep: Path, tmp_path: Path, browser: Browser) -> None:
    run = shutil.copytree(sweep / "learning_rate=0.01,seed=0", tmp_path / "run")
    grid = np.linspace(-2, 2, 20)
    loss = (grid[:, None] ** 2 + grid[None] ** 2).tolist()
    path = [[2 - 0.1 * t, 1.0] for t in range(21)]
    paths = {"demo": path, "adam": [*path[:5], *[[None, None]] * 16], "sgd": [[1e9, 1e9]] * 21}
    seen = {"steps": list(range(0, 2001, 100)), "paths": paths, "x": grid.tolist(), "y": grid.tolist(), "loss": loss}
    plain, result = evaluation(1.0, 100), evaluation(1.0, 1000)
    write_json(run / "evaluation.json", {"version": 1, "results": [plain, {**result, "landscape": seen}]})
    page = write_report(run)
    assert page.stat().st_size < 500_000
    browser.open(page, **VIEWS["light"])
    assert browser.run("document.querySelectorAll('.moving').length") == 1
    # Whole at first, the lost path as far as it is finite; those in colour are drawn last.
    assert browser.run(POINTS) == [21, 5, 21]
    said = "document.querySelector('.moving output').textContent"
    assert browser.run(said) == "step 2,000"
    slider = "const s = document.querySelector('.moving input'); s.value = {}; s.dispatchEvent(new Event('input'))"
    browser.run(f"(() => {{ {slider.format(3)} }})()")
    assert browser.run(POINTS) == [4, 4, 4] and browser.run(said) == "step 300"
    button = "document.querySelector('.moving button')"
    browser.run(f"{button}.click()")
    assert browser.run(f"{button}.textContent") == "Pause"
    waited = "new Promise(done => setTimeout(() => done(document.querySelector('.moving input').valueAsNumber), 1500))"
    assert browser.run(waited) > 3
    browser.run(f"{button}.click()")
    assert browser.run(f"{button}.textContent") == "Play"
    browser.prefer(reduced=True)
    assert browser.run(f"getComputedStyle({button}).display") == "none"
    browser.prefer(reduced=False)
    assert browser.errors == []
