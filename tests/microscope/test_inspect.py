"""The microscope: what hand-designed optimizers are known to do is what it measures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from metaopt.choices import choice
from metaopt.cli.entry import main
from metaopt.cli.inspecting import find
from metaopt.evaluation.curves import as_optimizer
from metaopt.experiment import build_optimizer
from metaopt.microscope import inspection
from metaopt.microscope.inspect_gradients import (
    RESPONSE_GRID,
    SCALES,
    Stream,
    drawn_stream,
    implied,
    lengths,
    over_time,
    responses,
    windows,
)
from metaopt.report import inspect_pictures
from tests.toys import bowl

KEY = jax.random.key(0)


def measured(entry: object) -> tuple[dict, Stream]:
    """What explains the last steps on gradients of scale 1, and the whole stream."""
    optimizer, phi = as_optimizer(entry, bowl())  # pyright: ignore
    stream = Stream(*map(np.asarray, drawn_stream(optimizer, phi, KEY)))
    at_one = Stream(*(part[:, SCALES.index(1.0)] for part in stream))
    return over_time(at_one)[-1], stream


def registered(name: str, **options: float) -> object:
    optimizer = build_optimizer(choice(name, **options))
    return optimizer, optimizer.init(KEY)


@pytest.mark.parametrize(
    ("entry", "rate", "total", "beta", "decay", "slope"),
    [
        (registered("sgd", learning_rate=0.2), 0.2, 0.2, 0.0, 0.0, 1.0),
        (registered("momentum", learning_rate=0.01, mu=0.8), 0.01, 0.05, 0.8, 0.0, 1.0),
        (registered("adam", learning_rate=0.01), 0.001, 0.01, 0.9, 0.0, 0.0),
        (optax.adam(0.02, b1=0.7), 0.006, 0.02, 0.7, 0.0, 0.0),
        (optax.sgd(0.03, momentum=0.9), 0.03, 0.3, 0.9, 0.0, 1.0),
        (optax.adamw(0.01, weight_decay=0.1), 0.001, 0.01, 0.9, 0.001, 0.0),
    ],
    ids=["sgd", "momentum", "adam", "optax-adam", "optax-momentum", "adamw"],
)
def test_rate_momentum_and_decay_come_out_to_a_hundredth(entry, rate, total, beta, decay, slope) -> None:
    found, stream = measured(entry)
    assert found["rate"] == pytest.approx(rate, rel=0.01)
    assert found["total_rate"] == pytest.approx(total, rel=0.01)
    assert found["beta"] == pytest.approx(beta, rel=0.01, abs=1e-3)
    assert found["decay"] == pytest.approx(decay, rel=0.01, abs=1e-3 * rate)
    assert found["r2"] > 0.995 and found["exponential_r2"] > 0.999
    assert lengths(stream)["slope"] == pytest.approx(slope, abs=1e-3)


def test_what_is_not_explained_is_told() -> None:
    """A step that looks at the gradient's sign alone: R² of a sign on a normal number is 2/π."""
    found, _ = measured(optax.chain(optax.scale_by_sign(), optax.scale(-0.1)))
    assert found["r2"] == pytest.approx(2 / np.pi, abs=0.01)
    none = Stream(np.ones((40, 2)), np.zeros((40, 2)), np.ones((40, 2)))
    assert set(implied(none, 0, 32).values()) == {None}
    assert implied(none._replace(update=np.full((40, 2), np.nan)), 0, 32)["r2"] is None
    assert windows(520) == [(0, 32), (32, 64), (64, 128), (128, 256), (256, 512)]


def test_adam_is_told_from_sgd_by_coordinates_of_several_sizes() -> None:
    sizes = np.geomspace(0.01, 100, 40)
    gradient = np.random.default_rng(0).normal(size=(512, 40)) * sizes
    flat = np.zeros_like(gradient)
    like_sgd, like_adam = (over_time(Stream(gradient, -0.1 * of, flat))[-1] for of in (gradient, gradient / sizes))
    assert like_sgd["r2"] > 0.999 > 0.5 > like_sgd["normalised"]["r2"]
    assert like_adam["normalised"]["r2"] > 0.99 > 0.5 > like_adam["r2"]
    assert like_adam["normalised"]["rate"] == pytest.approx(0.1, rel=0.01)


def test_the_response_of_momentum_is_a_plane() -> None:
    rate, mu = 0.01, 0.5
    steps, rms = responses(*registered("momentum", learning_rate=rate, mu=mu), KEY)  # pyright: ignore
    now, past = RESPONSE_GRID[None, :], RESPONSE_GRID[:, None]
    alternating = sum(mu ** (6 + k) * (-1.0) ** (k + 1) for k in range(64))  # the last of which was -1
    truth = -rate * (now + past * sum(mu**k for k in range(1, 6)) + alternating)
    for index, scale in enumerate((1e-2, 1.0, 1e2)):
        np.testing.assert_allclose(steps[index], scale * truth, rtol=1e-3, atol=1e-5 * scale)
    assert rms[2] / rms[0] == pytest.approx(1e4, rel=1e-3)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps and no tuning; all are the run's own optimizer, whose programs are compiled once."""

    def untuned(family, key, horizon, num_tasks):
        return {f"{name}, rate 0.1": registered("momentum") for name in inspection.RIVALS}

    monkeypatch.setattr(inspection, "_tuned", untuned)
    for name, value in {
        "NETWORK_STEPS": 64,
        "NOISY_STEPS": 20,
        "LANDSCAPE_STEPS": 20,
        "NOISY_TASKS": 2,
        "CELLS": 5,
    }.items():
        monkeypatch.setattr(inspection, name, value)


def test_a_run_is_inspected_into_its_page(finished: Path, quick: None, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert main(["inspect", str(run)]) == 0
    result = json.loads((run / "inspect.json").read_text())
    said, page = capsys.readouterr().out, (run / "report.html").read_text()
    assert "Implied rate and momentum" in said and "adam, rate 0.1" in said
    assert "What it learned" in page and page.count("<svg") > 10
    names = {"response", "implied", "scale", "noise", "trajectories"}
    assert set(inspect_pictures.inspect_figures(result)) == names == set(inspect_pictures.tables(result))
    assert [view["name"] for view in result["landscapes"]] == ["Rosenbrock", "ravine", "saddle"]
    saddle = result["landscapes"][2]["paths"][0]["path"]
    assert saddle[0] == pytest.approx([-1.6, 0.02]) and len(saddle) == 21
    # One whose numbers are not finite leaves gaps, and everything else is drawn.
    result["drawn"][0] = [
        dict.fromkeys(w, None) | {n: w[n] for n in ("begin", "end", "normalised")} for w in result["drawn"][0]
    ]
    result["length"][0] |= {"slope": None, "length": [None] * len(SCALES)}
    for view in (*result["landscapes"], result["network"]):
        view["paths"][0]["path"][3:] = [["inf", None]] * len(view["paths"][0]["path"][3:])
    assert set(inspect_pictures.inspect_figures(result, narrow=True)) == names
    assert inspect_pictures.section(result)


FILE = """
import jax, optax
def make(rate=0.1): return optax.sgd(rate)
def needs(rate): return optax.sgd(rate)
def nothing(): return 3
def breaks(): raise RuntimeError("no such luck")
tx = optax.adam(0.1)
def search(): return optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(3))
def with_key():
    def update(updates, state, params=None, *, key, value, **extra):
        noise = jax.random.normal(key, updates.shape) if hasattr(updates, "shape") else 0.0
        return jax.tree.map(lambda g: -0.1 * value * g, updates), state
    return optax.GradientTransformationExtraArgs(lambda params: (), update)
"""


def test_what_may_be_inspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_inspected.py").write_text(FILE)
    assert find("networks_rl")[0] == "networks_rl"
    assert find("adam:learning_rate=0.1")[0] == "adam:learning_rate=0.1"
    for text in (
        "optax:adam:learning_rate=0.1",
        "mine_inspected:make",
        "mine_inspected.py:make:rate=1",
        "mine_inspected.py:tx",
    ):
        assert isinstance(find(text)[1], optax.GradientTransformation), text
    found, _ = measured(find("mine_inspected.py:with_key")[1])  # both are handed in; the loss of a drawn stream is 1
    assert found["rate"] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "give a run folder, a .safetensors file, a pretrained optimizer"),
        (["adam:rate=1"], "learning_rate"),
        (["optax:adamm"], "there is no adamm in it"),
        (["optax:adam"], "learning_rate"),
        (["no_such_module:make"], "there is no module no_such_module"),
        (["none.py:make"], "there is no file none.py"),
        (["mine.py:nothing"], "it makes int; return an optax.GradientTransformation"),
        (["mine.py:breaks"], "RuntimeError: no such luck"),
        (["mine.py:tx:b1=1"], "takes no options"),
        (["mine.py:search"], "asks for more than gradients"),
        (["mine.py"], "is nothing to inspect"),
        (["gone/optimizer.safetensors"], "there is no run folder or .safetensors file"),
        (["adam", "--seed", "-1"], "--seed (-1)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line(words, message, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    assert main(["inspect", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.py", "__pycache__", "inspect"}
    assert not list(tmp_path.glob("inspect/*/*/*"))
