"""The bar: in terminals and notebooks, and nowhere else."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from rich.console import Console

from metaopt import build_optimizer, choice, evaluate, meta_train
from metaopt.evaluation import curves
from metaopt.experiment import Experiment, build_family
from metaopt.progress import Bar
from metaopt.runs.console import Progress
from metaopt.training import loop
from metaopt.training.trainer import Trainer
from metaopt.training.validation import Validator


class Recorder(Bar):
    """Keeps what it is told."""

    all: list[Recorder] = []

    def __init__(self, what: str, total: int, done: int = 0, **options: Any) -> None:
        super().__init__(what, total, done, **options)
        self.seen: list[tuple[int, str]] = [(done, what)]
        self.quiet = options.get("quiet", False)
        Recorder.all.append(self)

    def update(self, done: int, text: str) -> None:
        super().update(done, text)
        self.seen.append((done, text))


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    monkeypatch.setattr(Recorder, "all", [])
    monkeypatch.setattr(loop, "Bar", Recorder)
    monkeypatch.setattr(curves, "Bar", Recorder)
    return Recorder.all


def test_nothing_is_shown_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("work", 10) as bar:
        bar.update(5, "half")
    assert not bar.is_shown and capsys.readouterr() == ("", "")


def test_a_terminal_shows_what_is_done_and_no_escapes() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, force_jupyter=False, width=100)
    with Bar("work", 10, console=console, text="[bold]") as bar:
        assert bar.is_shown
        bar.update(7, "loss 0.5 \x1b[2J")
    assert "work" in out.getvalue() and "7/10" in out.getvalue() and r"\x1b[2J" in out.getvalue()
    bar.close()  # a second time


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pictures that a notebook is given, one after another."""
    shown: list[str] = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/html"]))

    def display(data: dict[str, str], raw: bool, display_id: bool) -> SimpleNamespace:
        shown.append(data["text/html"])
        return handle

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return shown


def test_a_notebook_shows_one_bar_that_changes(shown: list[str]) -> None:
    with Bar("a < b", 10, console=Console(force_jupyter=True)) as bar:
        for done in range(1, 11):
            bar.update(done, "loss <1")
    assert "a &lt; b <progress value=0 max=10>" in shown[0] and "loss &lt;1" in shown[-1]
    assert "value=10 max=10" in shown[-1] and len(shown) < 10  # not a picture a step


def test_a_notebook_shows_where_work_ended_early(shown: list[str]) -> None:
    with pytest.raises(RuntimeError), Bar("work", 10, console=Console(force_jupyter=True)) as bar:
        for done in range(1, 7):
            bar.update(done, "")
        raise RuntimeError
    assert "value=6 max=10" in shown[-1]


def test_a_run_in_a_notebook_moves_the_bar_and_writes_no_lines(shown: list[str]) -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, force_jupyter=True), 10)
    progress.log([{"kind": "train", "meta_step": 4, "meta_loss": 0.5, "time/meta_step": 0.1}])
    progress.close()
    assert "value=4 max=10" in shown[-1] and not out.getvalue()


def test_meta_training_and_evaluation_tell_how_far_they_are(bars: list[Recorder], tiny: Experiment) -> None:
    state = meta_train(tiny)
    (bar,) = bars
    assert not bar.quiet and bar.seen[-1][0] == tiny.num_meta_steps == int(state.meta_step)
    assert bar.seen[-1][1].startswith("loss ")
    Validator(Trainer(tiny))(state.meta_params)
    assert len(bars) > 1 and all(one.quiet for one in bars[1:])  # no bar within the bar
    meta_train(tiny, state=state, progress=False)
    assert bars.pop().quiet
    adam = build_optimizer(choice("adam"))
    entries = {name: (adam, adam.init(jax.random.key(0))) for name in ("one", "two")}
    how: dict[str, Any] = {"horizon": 3, "num_tasks": 2}
    evaluate(entries, build_family(choice("quadratic", dim=2)), jax.random.key(0), **how)
    assert bars[-1].seen[1:] == [(0, "one"), (1, "two"), (2, "")]
    said: list[str] = []
    evaluate(entries, build_family(choice("quadratic", dim=2)), jax.random.key(0), **how, progress=said.append)
    assert said == ["one", "two"] and bars[-1].quiet
