"""Pictures hold the numbers they are given, in colours that a page can change."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from metaopt.report import panels, pictures
from metaopt.report.series import binned, numbers, series, validation_series
from metaopt.report.svg import save_png, to_svg


def record(kind: str, mean: list, rate: float | None = None) -> dict:
    steps = list(range(0, 10 * len(mean), 10))
    parts = {part: mean for part in ("mean", "median", "q25", "q75")}
    return {"kind": kind, "tuned": rate and {"learning_rate": rate}, "curve": {"steps": steps, **parts}}


@pytest.fixture
def result() -> dict:
    return {
        "task": "classifier:hidden_layers=3",
        "horizon": 40,
        "train_horizon": 10,
        "num_tasks": 4,
        "best_baseline": "adam",
        "optimizers": {
            "mine": record("learned", [2.0, 1.0, 0.5, 0.25, 0.125]),
            "lost": record("learned", [2.0, 5.0, "inf", "inf", "inf"]),
            "sgd": record("baseline", [2.0, 1.9, 1.8, 1.7, 1.6], 0.316228),
            "adam": record("baseline", [2.0, 1.0, None, 0.0, 0.5], 0.01),
        },
    }


def line(axes: Axes, label: str) -> np.ndarray:
    return next(np.asarray(line.get_ydata()) for line in axes.get_lines() if line.get_label() == label)


def test_the_lines_are_the_curves(result: dict) -> None:
    figure = pictures.evaluation_figure(result)
    mean_axes, median_axes = figure.axes
    assert line(mean_axes, "mine").tolist() == [2.0, 1.0, 0.5, 0.25, 0.125]
    np.testing.assert_array_equal(line(mean_axes, "lost"), [2.0, 5.0, np.nan, np.nan, np.nan])
    crosses = [marks for marks in mean_axes.get_lines() if marks.get_marker() == "x"]
    assert [(marks.get_xdata()[0], marks.get_ydata()[0]) for marks in crosses] == [(10, 5.0)]  # where it was lost
    for axes in (mean_axes, median_axes):
        assert axes.get_yscale() == "log" and axes.get_xscale() == "linear" and axes.get_xlim() == (0, 40)
        dashed = [mark for mark in axes.get_lines() if list(mark.get_xdata()) == [10, 10]]
        assert len(dashed) == 1 and dashed[0].get_linestyle() == "--"
        assert [text.get_text() for text in axes.texts] == ["trained to 10"]
    assert len(median_axes.collections) == 3  # bands of the learned ones and of the best baseline


def test_baselines_are_grey_dashed_and_labelled_with_their_rate(result: dict) -> None:
    styles = pictures.styles(result)
    assert styles["sgd"] == panels.Style("sgd, rate 0.316", "baseline-0", "--", width=1.3)
    assert styles["mine"] == panels.Style("mine", "learned-0", "-", width=2.0)
    assert len({style.role for style in styles.values()}) == len({str(style) for style in styles.values()}) == 4
    for role, colour in panels.COLOURS.items():
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        if role.startswith("baseline"):
            assert max(red, green, blue) - min(red, green, blue) < 24
    assert len(set(panels.COLOURS.values())) == len(panels.COLOURS)  # replaced by colour in the SVG


def test_far_beyond_training_the_step_is_logarithmic(result: dict) -> None:
    result["train_horizon"] = 1
    mean_axes = pictures.evaluation_figure(result).axes[0]
    assert mean_axes.get_xscale() == "log" and mean_axes.get_xlim() == (10, 40)


def test_a_curve_that_explodes_does_not_squash_the_others(result: dict) -> None:
    result["optimizers"]["lost"] = record("learned", [2.0, 1e4, 1e9, 1e14, 1e20])
    low, high = pictures.evaluation_figure(result).axes[0].get_ylim()
    assert high < 1e3 and low < 0.125


def test_svg_takes_colours_from_the_page_and_nothing_from_elsewhere(result: dict) -> None:
    texts = [
        to_svg(pictures.evaluation_figure(result, narrow=narrow), prefix=prefix, description='a "<b>"')
        for narrow, prefix in ((False, "one"), (True, "two"))
    ]
    for text in texts:
        assert text.startswith("<svg viewBox=") and text.rstrip().endswith("</svg>")
        assert 'aria-label="a &quot;&lt;b&gt;&quot;"' in text
        assert "http" not in text and "DOCTYPE" not in text and "<metadata" not in text
        for role in ("ink", "learned-0", "learned-1", "baseline-0", "baseline-1"):
            assert f"var(--{role}, {panels.COLOURS[role]})" in text
        assert set(re.findall(r"#[0-9a-f]{6}\b", text)) <= {*panels.COLOURS.values()}
        assert "trained to 10" in text  # text stays text
        ids = re.findall(r'\bid="([^"]*)"', text)
        assert len(ids) == len(set(ids))
        for target in re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', text):
            assert "".join(target) in ids
    assert not set(re.findall(r'\bid="([^"]*)"', texts[0])) & set(re.findall(r'\bid="([^"]*)"', texts[1]))


def test_png_files(result: dict, tmp_path: Path) -> None:
    path = save_png(pictures.evaluation_figure(result), tmp_path / "a.png")
    rows = [{"meta_step": 1, "meta_loss": 0.5}, {"meta_step": 2, "meta_loss": 0.4, "validation/1x/median": 0.3}]
    other = save_png(pictures.meta_training_figure(rows), tmp_path / "b.png")
    for file in (path, other):
        assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 10_000


def test_meta_training_figure_with_and_without_validation() -> None:
    rows: list[dict] = [{"meta_step": step, "meta_loss": -1.0 / step} for step in range(1, 20)]
    (axes,) = pictures.meta_training_figure(rows).axes
    assert axes.get_yscale() == "linear"  # the logarithm of a loss may be negative
    rows.append(
        {"meta_step": 10, "validation/10x/median": 0.5, "validation/1x/mean": "inf", "validation/1x/median": 0.7}
    )
    left, right = pictures.meta_training_figure(rows).axes
    assert right.get_yscale() == "log"
    labels = [line.get_label() for line in right.get_lines() if not line.get_label().startswith("_")]
    assert labels == ["median at the training horizon", "mean at the training horizon", "median at 10 times it"]
    assert not pictures.meta_training_figure([]).axes  # nothing yet


def test_a_single_point_is_seen(result: dict) -> None:
    values = {f"validation/{m}x/{part}": 0.5 for m in (1, 10) for part in ("median", "mean")}
    rows = [{"meta_step": 4, "meta_loss": 0.5}, {"meta_step": 4, **values}]
    figure = pictures.meta_training_figure(rows)
    marked = [
        [line for line in axes.get_lines() if line.get_marker() not in (None, "None", "")] for axes in figure.axes
    ]
    assert len(marked[0]) == 1 and {line.get_label() for line in marked[1]} >= {
        "median at the training horizon", "mean at the training horizon", "median at 10 times it", "mean at 10 times it"
    }  # fmt: skip
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["3", "4", "5"]
    style = panels.Style("a", "learned-0", "-")
    line = panels.Line(style, np.arange(5.0), np.array([1.0, np.nan, 2.0, 3.0, np.nan]))
    (axes,) = panels.panels_figure([panels.Panel("", "", "", [line])]).axes
    assert [marks.get_xdata().tolist() for marks in axes.get_lines() if marks.get_marker() == "o"] == [[0.0]]
    result["optimizers"] = {"mine": record("learned", [2.0])}
    for axes in pictures.evaluation_figure(result).axes:
        assert any(marks.get_marker() == "o" for marks in axes.get_lines())


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.9, 1.1, ["0.75", "1", "1.25"]),
        (0.01, 0.1, ["0.01", "0.02", "0.05", "0.1"]),
        (0.02, 30, ["0.1", "1", "10"]),
        (1e-5, 1, ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]),
        (2e-5, 2e-4, ["2×10⁻⁵", "5×10⁻⁵", "10⁻⁴", "2×10⁻⁴"]),
    ],
)
def test_a_logarithmic_axis_has_one_notation(low: float, high: float, words: list[str]) -> None:
    line = panels.Line(panels.OTHERS, np.arange(2.0), np.array([low, high]))
    (axes,) = panels.panels_figure([panels.Panel("", "", "", [line])]).axes
    bottom, top = axes.get_ylim()
    assert [t.get_text() for t in axes.get_yticklabels() if bottom <= t.get_position()[1] <= top] == words


def test_series_leave_out_what_is_missing() -> None:
    rows = [
        {"meta_step": 1, "a": 1.0},
        {"a": 2.0},
        {"meta_step": 3},
        {"meta_step": 4, "a": None},
        {"meta_step": 5, "a": "inf"},
    ]
    steps, values = series(rows, "a")
    assert steps.tolist() == [1, 4, 5]
    np.testing.assert_array_equal(values, [1.0, np.nan, np.inf])
    np.testing.assert_array_equal(numbers([1, None, "-inf"]), [1.0, np.nan, -np.inf])
    found = validation_series([{"meta_step": 2, "validation/10x/quadratic/median": 1.0, "validation/10x/median": 2.0}])
    assert list(found) == [("10x", "median")]


def test_bins_are_medians_of_neighbours() -> None:
    values = np.arange(1000.0)
    values[5] = np.inf
    steps, low, middle, high = binned(np.arange(1, 1001), values, bins=10)
    assert len(steps) == len(low) == len(middle) == len(high) == 10
    assert middle[-1] == np.median(values[-99:]) and (low <= middle).all() and (middle <= high).all()
    assert len(binned(np.array([1.0]), np.array([np.nan]))[0]) == 0


def test_a_dollar_sign_begins_no_formula(result: dict) -> None:
    wrong = r"$\frac{"  # matplotlib would refuse to draw the formula
    result["optimizers"][f"a {wrong} b$"] = record("learned", [2.0, 1.0, 0.5, 0.25, 0.125])
    text = to_svg(pictures.evaluation_figure(result), prefix="p", description="")
    assert f"a {wrong} b$" in text
    panel = panels.Panel(f"{wrong}$", "", "", [panels.Line(panels.OTHERS, np.ones(1), np.ones(1))])
    assert f"{wrong}$" in to_svg(panels.panels_figure([panel]), prefix="p", description="")


@pytest.mark.parametrize(
    ("lengths", "narrow"),
    [([4] * 8, False), ([20] * 8, False), ([60] * 8, False), ([33, 30, 28, 21, 19], False), ([4] * 8, True),
     ([20] * 8, True)],
)  # fmt: skip
def test_a_legend_stays_within_its_figure(lengths: list[int], narrow: bool) -> None:
    labels = ["e" * length for length in lengths]
    lines = [panels.Line(panels.run_style(i, label), np.arange(3), np.ones(3)) for i, label in enumerate(labels)]
    figure = panels.panels_figure([panels.Panel("title", "x", "y", lines)] * 2, narrow=narrow, legend=True)
    figure.canvas.draw()
    (legend,) = figure.legends
    left, right = legend.get_window_extent().intervalx / figure.dpi
    assert 0 <= left and right <= figure.get_figwidth()
