"""Runs and their results in Python: `load_run`, `load_results`, `metaopt.plots`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import metaopt
from metaopt import UserError, load_results, load_run, plots
from metaopt.experiment import Experiment
from metaopt.runs import folder
from tests.benchmark.test_scores import LOST, WON


def test_a_run_has_all_that_its_folder_holds(finished: Path, tiny: Experiment) -> None:
    run = load_run(finished)
    assert run.experiment == folder.open_run(finished)[1] and run.state == "finished"
    assert list(run.metrics.index) == list(range(1, tiny.num_meta_steps + 1))
    assert np.isfinite(run.metrics["meta_loss"]).all() and "kind" not in run.metrics
    assert not run.validations.empty and run.validations.index.name == "meta_step"
    record = run.evaluations[0]["optimizers"]
    first = run.results[run.results["task"] == run.evaluations[0]["task"]].set_index("optimizer")
    for name, held in record.items():
        assert first["mean"][name] == held["final"]["mean"]
    assert set(run.curves["optimizer"]) >= set(record)
    assert len(run.picks) >= 2 and run.environment["versions"]["metaopt"] == metaopt.__version__
    for pick, path in run.picks.items():
        assert run.trained(pick).experiment == run.experiment and path.is_file()
    assert jax.tree.leaves(metaopt.load(run).init(jnp.ones(2)))  # a run is as good as its path
    with pytest.raises(UserError, match="did you mean 'last'"):
        run.trained("lats")


def test_what_is_not_there_yet_is_empty(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(finished / "config.json", tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.metrics.empty and run.results.empty and run.curves.empty and not run.picks and run.meta_step == 0
    with pytest.raises(UserError, match="has no φ yet; let `metaopt train --resume"):
        run.trained()
    with pytest.raises(UserError, match="was not evaluated yet"):
        plots.curves(run)
    with pytest.raises(UserError, match="no finite loss to draw"):
        plots.meta_training(run)
    with pytest.raises(UserError, match="at least one run"):
        plots.compare()
    with pytest.raises(UserError, match="is not a run folder"):
        load_run(tmp_path)


def test_values_that_json_has_as_words_are_numbers(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(finished / "config.json", tmp_path / "run")
    rows = [{"kind": "train", "meta_step": 1, "meta_loss": "inf"}, {"kind": "train", "meta_step": 2, "meta_loss": None}]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = load_run(tmp_path / "run").metrics["meta_loss"]
    assert losses.dtype == float and losses[1] == np.inf and np.isnan(losses[2])


def test_infinite_losses_alone_are_no_picture(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / "evaluation.json"
    held = json.loads(file.read_text())
    for record in held["results"][0]["optimizers"].values():
        for part in ("mean", "median", "q25", "q75"):
            record["curve"][part][1:] = ["inf"] * (len(record["curve"][part]) - 1)
    file.write_text(json.dumps(held))
    assert plots.curves(tmp_path / "run").axes and np.isinf(load_run(tmp_path / "run").curves["mean"]).any()
    for record in held["results"][0]["optimizers"].values():
        for part in ("mean", "median", "q25", "q75"):
            record["curve"][part] = ["inf"] * len(record["curve"][part])
    file.write_text(json.dumps(held))
    with pytest.raises(UserError, match="quadratic:dim=2 at 4 steps: there is no finite loss to draw"):
        plots.curves(tmp_path / "run")


@pytest.fixture
def two(finished: Path, tmp_path: Path) -> Path:
    """Two runs that differ in the seed, as a sweep's folder has them."""
    for seed in (0, 1):
        shutil.copytree(finished, tmp_path / "sweep" / f"seed-{seed}")
        config = tmp_path / "sweep" / f"seed-{seed}" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "seed": seed}))
    return tmp_path / "sweep"


def test_several_runs_are_one_table_with_what_they_differ_in(two: Path) -> None:
    table = load_results(two)
    assert list(table.columns[:2]) == ["run", "seed"] and set(table["seed"]) == {0, 1}
    single = load_run(two / "seed-1").results
    pd.testing.assert_frame_equal(
        table[table["seed"] == 1].drop(columns=["run", "seed"]).reset_index(drop=True), single, check_dtype=False
    )
    assert len(load_results([two / "seed-0", load_run(two / "seed-1")])) == 2 * len(single) == len(table)
    assert len(load_results(str(two / "seed-0"))) == len(load_results(load_run(two / "seed-0"))) == len(single)
    with pytest.raises(UserError, match="there is no run in"):
        load_results(two / "seed-0" / "checkpoints")


def test_what_runs_were_trained_for_stands_beside_what_they_were_evaluated_at(two: Path) -> None:
    config = two / "seed-1" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "horizon": 9}))
    table = load_results(two)
    evaluated = load_run(two / "seed-1").results["horizon"]
    assert set(table["trained.horizon"][table["seed"] == 1]) == {9}
    assert list(table["horizon"][table["seed"] == 1]) == list(evaluated) and 9 not in set(evaluated)


def test_a_home_folder_is_found_and_a_run_says_what_it_was_loaded_as(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(two))
    assert len(load_results("~/seed-0")) and plots.compare("~/seed-0", load_run("~/seed-1")).axes
    run = load_run(two / "seed-0")
    said = repr(run)
    assert "best validation" in said
    shutil.rmtree(two / "seed-0")
    assert repr(run) == said


def test_a_notebook_shows_runs_and_pictures(two: Path, tmp_path: Path) -> None:
    (two / "seed-0").rename(two / "a<b>")
    run = load_run(two / "a<b>")
    assert "finished" in repr(run) and "a&lt;b&gt;" in run._repr_html_() and "<b>" not in run._repr_html_()
    assert plots.curves(run)._repr_png_().startswith(b"\x89PNG")  # pyright: ignore


def test_pictures_hold_what_pages_hold(two: Path, finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    figure = plots.curves(run, task=run.evaluations[0]["task"], horizon=run.evaluations[0]["horizon"])
    drawn = {line.get_label() for line in figure.axes[0].lines}
    assert all(any(str(label).startswith(name) for label in drawn) for name in run.evaluations[0]["optimizers"])
    with pytest.raises(UserError, match="`task`"):
        plots.curves(run, task="nothing")
    steps = plots.meta_training(finished).axes[0].lines[0].get_xdata()
    assert np.max(np.asarray(steps)) <= run.experiment.num_meta_steps
    assert [axes.get_title(loc="left") or axes.get_title() for axes in plots.compare(two).axes][0] == "Meta-loss"
    metaopt.plots.compare(two / "seed-0", two / "seed-1").savefig(tmp_path / "compared.png")
    with pytest.raises(UserError, match="two horizons"):
        plots.horizons(run, two / "seed-1")
    file = two / "seed-1" / "evaluation.json"
    held = json.loads(file.read_text())
    held["results"] += [{**result, "horizon": 2 * result["horizon"]} for result in held["results"]]
    file.write_text(json.dumps(held))
    (axes,) = plots.horizons(run, two / "seed-1").axes
    assert {f"{finished.parent.name}/run", "sweep/seed-1"} <= {line.get_label() for line in axes.lines}
    assert max(len(np.asarray(line.get_xdata())) for line in axes.lines) == 2
    held["results"] = [{**result, "task": f"t{i}"} for result in held["results"] for i in range(7)]
    file.write_text(json.dumps(held))
    assert len(plots.horizons(two / "seed-1").axes) == 7
    for draw in (plots.compare, plots.horizons, plots.curves, plots.meta_training):
        with pytest.raises(UserError, match="a list is no run: .*each as an argument of its own"):
            draw([run])  # pyright: ignore[reportArgumentType]


def test_curves_of_an_evaluation_are_drawn_as_those_of_a_run() -> None:
    entries = {"own": optax.sgd(0.1), "rival": optax.adam(0.1)}
    curves = metaopt.evaluate(entries, metaopt.TASKS["quadratic"](dim=2), jax.random.key(0), horizon=6, num_tasks=4)
    figure = plots.curves(curves, baselines=["rival"])
    mean, median = ({str(line.get_label()): line for line in axes.lines} for axes in figure.axes)
    np.testing.assert_allclose(np.asarray(mean["own"].get_ydata()), curves.loss["own"].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(median["rival"].get_ydata()), np.median(curves.loss["rival"], axis=0), rtol=1e-5
    )
    assert mean["own"].get_linewidth() > mean["rival"].get_linewidth()
    with pytest.raises(UserError, match="`baselines`: .*rival"):
        plots.curves(curves, baselines=["rivall"])


def test_profiles_are_the_shares_within_a_factor_of_the_best(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the folder that `metaopt benchmark` printed"):
        plots.profile(tmp_path)
    for held, said in (([], "is not as"), ({"suite": "a", "optimizers": {}, "entries": {}}, "no task measured yet")):
        (tmp_path / "benchmark.json").write_text(json.dumps(held))
        with pytest.raises(UserError, match=said):
            plots.profile(tmp_path)
    entries = {"won": {"50": WON}, "lost": {"50": LOST}}
    about = {"suite": "none", "optimizers": {"learned": "a"}, "entries": entries}
    (tmp_path / "benchmark.json").write_text(json.dumps(about))
    (axes,) = plots.profile(tmp_path).axes
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.lines}
    # `won`: told is the best (0.1), learned at 2 times, adam at 4; `lost`: adam is the best, told at 5, learned at 22.
    factors = np.asarray(axes.lines[0].get_xdata())
    for name, first, second in (("learned", 2.0, 500**0.5), ("adam", 4.0, 1.0), ("told", 1.0, 5.0)):
        expected = ((factors >= first * 0.999).astype(float) + (factors >= second * 0.999)) / 2
        assert np.mean(lines[name] == expected) > 0.97, name
    with pytest.raises(UserError, match="has 50"):
        plots.profile(tmp_path, horizon=500)
