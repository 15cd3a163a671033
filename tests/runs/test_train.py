from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import metaopt
from metaopt.choices import choice
from metaopt.errors import UserError
from metaopt.experiment import Curriculum, Experiment, Log, MetaOptimizer, Validation
from metaopt.runs import train as train_module
from metaopt.runs.checkpoints import Checkpoints, _named_as_before
from metaopt.runs.interrupts import Interrupted
from metaopt.runs.metrics import Digest
from metaopt.runs.recorder import Recorder
from metaopt.runs.train import resume, train
from metaopt.shipped.loading import read_optimizer
from metaopt.training.loop import meta_train
from metaopt.training.trainer import Trainer
from metaopt.training.validation import Validator
from tests.toys import OLDER_EMITTERS, begun_with

Rows = Callable[[Path], list[dict[str, Any]]]


def equal_phi(one: Path, other: Path) -> bool:
    """Best and latest φ, bit by bit."""
    for name in ("optimizer.safetensors", "optimizer_latest.safetensors"):
        a, b = load_file(one / name), load_file(other / name)
        if a.keys() != b.keys() or any(a[key].tobytes() != b[key].tobytes() for key in a):
            return False
    return True


def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def signal_at(step: int, signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends this process a signal while the chunk that ends at `step` is under way."""
    recorded = Recorder.__call__

    def interrupted(self: Recorder, trainer: Any, state: Any, metrics: Any) -> bool:
        if int(metrics["meta_step"][-1]) == step:
            os.kill(os.getpid(), signum)
        return recorded(self, trainer, state, metrics)

    monkeypatch.setattr(Recorder, "__call__", interrupted)


def test_a_run_folder_holds_what_it_should(finished: Path, tiny: Experiment, rows: Rows) -> None:
    names = {entry.name for entry in finished.iterdir()}
    assert {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "evaluation.json",
        "report.html",
    } <= names
    assert not [name for name in names if name.startswith(".")]
    written = rows(finished)
    assert [row["meta_step"] for row in written if row["kind"] == "train"] == list(range(1, 9))
    validations = [row for row in written if row["kind"] == "validation"]
    assert [row["meta_step"] for row in validations] == [4, 8]
    assert {"validation/1x/median", "validation/2x/median", "validation/2x/failed"} <= set(validations[0])
    environment = json.loads((finished / "environment.json").read_text())
    assert (
        environment["experiment"] == "tiny" and environment["versions"]["jax"] and environment["device"]["count"] >= 1
    )
    (result,) = json.loads((finished / "evaluation.json").read_text())["results"]
    assert result["task"] == "quadratic:dim=2" and set(result["optimizers"]) == {"tiny"}


@pytest.mark.parametrize(
    ("signum", "step", "status"), [(signal.SIGTERM, 4, 143), (signal.SIGINT, 6, 130), (signal.SIGTERM, 8, 143)]
)
def test_resuming_after_a_signal_is_bitwise_exact(
    signum: int,
    step: int,
    status: int,
    finished: Path,
    tiny: Experiment,
    rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(step, signum, patch)
        with pytest.raises(Interrupted, match=f"metaopt train --resume {path}") as caught:
            train(tiny, path, name="tiny")
    assert caught.value.exit_status == status
    assert "saving at the end of this chunk" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert rows(path)[-1]["meta_step"] == step and not (path / "evaluation.json").exists()
    with open(path / "metrics.jsonl", "a") as file:  # rows that no checkpoint knows of, the last one cut off
        file.write(f'{{"kind": "train", "meta_step": {step + 1}}}\n{{"kind": "tr')
    resume(path)
    assert rows(path) == rows(finished)
    assert equal_phi(path, finished)
    assert (path / "evaluation.json").read_text() == (finished / "evaluation.json").read_text()


def test_an_lstm_with_step_noise_resumes_bitwise_too(
    tiny: Experiment, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)
    experiment = dataclasses.replace(
        tiny,
        optimizer=choice("lstm", hidden_size=3, num_layers=1, noise="per_step"),
        estimator=choice("reparameterised"),
        unroll_length=2,
        validation=Validation(every=0),
    )
    undisturbed = train(experiment, tmp_path / "undisturbed")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signal_at(6, signal.SIGTERM, patch)
        train(experiment, tmp_path / "run")
    resume(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(undisturbed)
    assert equal_phi(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("step", [4, 6])
def test_a_curriculum_by_validation_and_an_averaged_phi_resume_bitwise(
    step: int, tiny: Experiment, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first validation at a level is better than none, the second one no better: the next level.
    monkeypatch.setattr("metaopt.training.validation.Validator.score_at", lambda self, horizon, meta_params: 1.0)
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)
    experiment = dataclasses.replace(
        tiny,
        unroll_length=1,
        companion=2,
        bfloat16=0.5,
        meta_optimizer=MetaOptimizer(ema=0.5, clip_adaptive=2.0),
        curriculum=Curriculum(kind="validation", horizons=(1, 2), patience=1),
        validation=Validation(every=2, num_tasks=2, multiples=(1,)),
    )
    undisturbed = train(experiment, tmp_path / "undisturbed")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signal_at(step, signal.SIGTERM, patch)
        train(experiment, tmp_path / "run")
    resume(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(undisturbed)
    assert equal_phi(tmp_path / "run", undisturbed)

    written = rows(undisturbed)
    assert [row["horizon"] for row in written if row["kind"] == "train"] == [1, 1, 1, 1, 2, 2, 2, 2]
    held_out = [row for row in written if row["kind"] == "validation"]
    assert [row["validation/level"] for row in held_out] == [0, 0, 1, 1]
    assert [row["validation/next/horizon"] for row in held_out] == [2, 2, 4, 4]
    best = min(held_out, key=lambda row: row["validation_ema/1x/median"])
    assert best["best"] and best["validation_ema/1x/median"] != best["validation/1x/median"]
    trained = read_optimizer(undisturbed / "optimizer.safetensors")
    assert trained.card["validation"] == pytest.approx(best["validation_ema/1x/median"], rel=1e-5)
    assert trained.card["averaged"] == "over meta-steps, with a decay of 0.5"
    validator = Validator(Trainer(experiment))
    assert validator(trained.meta_params)[0][1] == pytest.approx(best["validation_ema/1x/median"], rel=1e-5)


def test_best_is_the_lowest_median_and_its_phi_is_what_the_run_leaves(
    tiny: Experiment, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = scored_by_hand(tiny, monkeypatch)
    path = train(experiment, tmp_path / "run", name="tiny")
    assert [row["best"] for row in rows(path) if row["kind"] == "validation"] == [True, True, False, False]
    assert sorted(entry.name for entry in (path / "checkpoints").iterdir()) == ["4", "6", "8"]
    stopped = train(
        dataclasses.replace(experiment, num_meta_steps=4, validation=Validation(every=0)), tmp_path / "four"
    )
    best, latest = load_file(path / "optimizer.safetensors"), load_file(path / "optimizer_latest.safetensors")
    fourth = load_file(stopped / "optimizer.safetensors")
    assert all(np.array_equal(best[key], fourth[key]) for key in best)
    assert not all(np.array_equal(best[key], latest[key]) for key in best)
    (result,) = json.loads((path / "evaluation.json").read_text())["results"]
    assert result["meta_steps"] == {"tiny": 4, "tiny, best at 1x": 6, "tiny, last": 8}
    losses = {result["optimizers"][name]["final"]["mean"] for name in result["meta_steps"]}
    assert len(losses) == 3  # each is evaluated with a φ of its own


def test_each_way_to_pick_survives_a_stop(tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = scored_by_hand(tiny, monkeypatch)
    undisturbed = train(experiment, tmp_path / "undisturbed", name="tiny")
    experiment = scored_by_hand(tiny, monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("metaopt.runs.recorder.provenance", lambda: {"cpu": "of the first"})
        signal_at(6, signal.SIGTERM, patch)
        train(experiment, tmp_path / "run", name="tiny")
    resume(tmp_path / "run")
    files = {name: tmp_path / "run" / f"optimizer{name}.safetensors" for name in ("", "_best_1x", "_latest")}
    made_in = {name: read_optimizer(file).card["environment"] for name, file in files.items()}
    # The third validation was done on resuming, of a state that the first process had made.
    assert made_in[""] == made_in["_best_1x"] == {"cpu": "of the first"}
    assert {"versions", "git", "cpu"} <= set(made_in["_latest"])
    for name in ("optimizer", "optimizer_best_1x", "optimizer_latest"):
        one, other = (load_file(path / f"{name}.safetensors") for path in (tmp_path / "run", undisturbed))
        assert all(np.array_equal(one[key], other[key]) for key in one)
    evaluated = [json.loads((path / "evaluation.json").read_text()) for path in (tmp_path / "run", undisturbed)]
    assert evaluated[0] == evaluated[1]


def test_where_nothing_was_validated_the_last_is_the_runs_own(tiny: Experiment, tmp_path: Path) -> None:
    experiment = dataclasses.replace(tiny, num_meta_steps=2, validation=Validation(every=0))
    path = train(experiment, tmp_path / "run", name="tiny")
    (result,) = json.loads((path / "evaluation.json").read_text())["results"]
    assert result["meta_steps"] == {"tiny": 2} and not (path / "optimizer_best_1x.safetensors").exists()


def scored_by_hand(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The best at 10× is that of the second validation, the best at 1× that of the third."""
    scores = iter([(0.4, 0.5), (0.3, 0.2), (0.1, float("inf")), (0.2, 0.4)])

    def validate(self: Any, meta_params: Any) -> tuple[dict[int, float], dict[str, float]]:
        near, far = next(scores)
        return {1: near, 10: far}, {"validation/1x/median": near, "validation/10x/median": far}

    monkeypatch.setattr("metaopt.training.validation.Validator.__call__", validate)
    validation = Validation(every=2, num_tasks=2, multiples=(1, 10))
    return dataclasses.replace(tiny, validation=validation, checkpoint_every=100)


def test_what_a_run_leaves_is_the_best_at_the_last_multiple(
    tiny: Experiment, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = {1: iter([0.4, 0.5, 0.3, 0.2]), 10: iter([7.0, 5.0, 6.0, 8.0])}  # meta-steps 2, 4, 6, 8: best 8, and best 4

    def run(self: Any, *args: Any) -> dict[int, dict[str, float]]:
        held = {"mean": 1.0, "failed": 0.0, "initial": 1.0, "bound": 0.0}
        return {multiple: {"median": next(scores), **held} for multiple, scores in at.items()}

    monkeypatch.setattr(Validator, "_run", run)
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)
    held_out = Validation(every=2, num_tasks=2, multiples=(1, 10))
    path = train(dataclasses.replace(tiny, validation=held_out), tmp_path / "run")
    written = [row for row in rows(path) if row["kind"] == "validation"]
    assert [row["validation/1x/median"] for row in written] == [0.4, 0.5, 0.3, 0.2]
    assert [row["best"] for row in written] == [True, True, False, False]
    card = read_optimizer(path / "optimizer.safetensors").card
    assert card["meta_step"] == 4 and card["validation"] == 5.0
    progress = Digest(path / "metrics.jsonl").progress(2)
    assert (progress.best, progress.best_at) == (5.0, 4) and progress.validation == {"1x": 0.2, "10x": 8.0}


def test_a_run_ends_with_a_validation_wherever_it_ends(
    tiny: Experiment, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)
    short = dataclasses.replace(tiny, num_meta_steps=5, log=Log(every=1), validation=Validation(every=2, num_tasks=2))
    path = train(short, tmp_path / "run")
    assert [row["meta_step"] for row in rows(path) if row["kind"] == "validation"] == [2, 4, 5]


def test_a_broken_latest_checkpoint_costs_only_its_steps(
    finished: Path, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(finished, tmp_path)
    for file in [entry for entry in (path / "checkpoints" / "8").rglob("*") if entry.is_file()]:
        file.write_bytes(file.read_bytes()[:5])
    capsys.readouterr()
    resume(path)
    out = " ".join(capsys.readouterr().out.split())
    assert "the checkpoint of meta-step 8 cannot be read" in out and "going on from meta-step 4 of 8" in out
    assert rows(path) == rows(finished) and equal_phi(path, finished)


def test_a_run_without_a_checkpoint_begins_anew(finished: Path, rows: Rows, tmp_path: Path) -> None:
    path = copied(finished, tmp_path)
    for folder in (path / "checkpoints").iterdir():
        for file in sorted(folder.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        folder.rmdir()
    for name in ("optimizer.safetensors", "optimizer_latest.safetensors"):  # written after the first checkpoint
        (path / name).unlink()
    resume(path)
    assert rows(path) == rows(finished) and equal_phi(path, finished)


def test_a_run_begins_with_the_phi_of_another_and_so_it_does_without_a_checkpoint(
    tiny: Experiment, finished: Path, tmp_path: Path
) -> None:
    still = dataclasses.replace(tiny, start=str(finished), seed=5, meta_optimizer=MetaOptimizer(learning_rate=1e-12))
    first = train(still, tmp_path / "first")
    assert equal_phi(first, finished) and not equal_phi(
        finished, train(dataclasses.replace(still, start=None), tmp_path / "fresh")
    )
    shutil.rmtree(first / "checkpoints")
    for file in first.glob("*.safetensors"):
        file.unlink()
    assert equal_phi(resume(first), finished)
    elsewhere = copied(first, tmp_path)
    begun_with(elsewhere, {**json.loads((elsewhere / "config.json").read_text()), "start": "gone"})
    assert equal_phi(resume(elsewhere), finished)  # from its checkpoint, which needs no start


@pytest.mark.parametrize(("option", "said"), [({}, False), ({"form": "thesis"}, False), ({"form": "torch"}, True)])
def test_a_start_of_other_settings_is_said(
    option: dict[str, bool],
    said: bool,
    tiny: Experiment,
    finished: Path,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    optimizer = dataclasses.replace(tiny.optimizer, options={**tiny.optimizer.options, **option})
    train(dataclasses.replace(tiny, start=str(finished), optimizer=optimizer, num_meta_steps=1), tmp_path / "run")
    assert said == any("was meta-trained as" in str(one.message) for one in recwarn)


def test_in_python_a_start_is_refused_unless_its_phi_is_given(tiny: Experiment, finished: Path) -> None:
    experiment = dataclasses.replace(tiny, start=str(finished), num_meta_steps=1)
    with pytest.raises(UserError, match=r"`start` is a file for `metaopt train`; here give its φ"):
        meta_train(experiment)
    trainer, phi = Trainer(experiment), read_optimizer(finished / "optimizer.safetensors").meta_params
    state = trainer.init(phi)
    assert jax.tree.all(jax.tree.map(np.array_equal, state.meta_params, phi))
    assert int(meta_train(trainer, state=state).meta_step) == 1


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("nowhere", "there is no run folder or .safetensors file nowhere"),
        ("networks_rl", "φ of networks_rl does not fit.*take its optimizer, lstm:.*, or another start"),
    ],
)
def test_a_start_that_does_not_fit_leaves_no_folder(start: str, message: str, tiny: Experiment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(tiny, start=start), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_lengthened_but_not_shortened(
    finished: Path, tiny: Experiment, rows: Rows, tmp_path: Path
) -> None:
    path = train(dataclasses.replace(tiny, num_meta_steps=4), tmp_path / "run", name="tiny")
    with pytest.raises(UserError, match="can only be lengthened"):
        resume(path, num_meta_steps=3)
    resume(path, num_meta_steps=8)
    assert rows(path) == rows(finished) and equal_phi(path, finished)
    assert json.loads((path / "config.json").read_text()) == json.loads((finished / "config.json").read_text())
    assert json.loads((path / "environment.json").read_text())["resumed"][0]["meta_step"] == 4


@pytest.mark.parametrize("schedule", ["cosine", "exponential"])
def test_a_schedule_that_ends_cannot_be_lengthened(schedule: str, finished: Path, tmp_path: Path) -> None:
    path = copied(finished, tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["meta_optimizer"]["schedule"] = schedule
    begun_with(path, config)
    with pytest.raises(UserError, match=rf"\({schedule}\) ends at meta-step 8, .* new run with --num-meta-steps 16"):
        resume(path, num_meta_steps=16)
    assert json.loads((path / "config.json").read_text()) == config


@pytest.mark.parametrize("others", [1, 2])
def test_a_truncated_run_goes_on_with_another_number_of_devices(
    others: int, tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inner runs under way are shared out anew; only the order of summation changes."""
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)
    experiment = dataclasses.replace(
        tiny,
        optimizer=choice("lstm", hidden_size=3, num_layers=1, noise="per_step"),
        estimator=choice("reparameterised"),
        num_meta_steps=2,
        num_tasks=4,
        unroll_length=1,
        num_devices=3 - others,
        log=Log(every=1),
        validation=Validation(every=0),
    )
    path, same = train(experiment, tmp_path / "run"), tmp_path / "same"
    shutil.copytree(path, same)
    resume(path, num_meta_steps=5, num_devices=others)
    resume(same, num_meta_steps=5)
    one, other = load_file(path / "optimizer.safetensors"), load_file(same / "optimizer.safetensors")
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-7)


def test_a_whole_run_goes_on_with_another_number_of_devices_and_says_so(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)
    path = copied(finished, tmp_path)
    resume(path, num_devices=2)
    assert "saved on 1 devices, going on with 2" in capsys.readouterr().out
    assert json.loads((path / "config.json").read_text())["num_devices"] == 2


def test_a_checkpoint_of_another_architecture_is_refused(finished: Path, tmp_path: Path) -> None:
    path = copied(finished, tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["optimizer"] = "lstm:hidden_size=3"
    begun_with(path, config)
    before = {entry: entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}
    with pytest.raises(UserError, match="of another architecture"):
        resume(path)
    assert {entry: entry.read_bytes() for entry in path.rglob("*") if entry.is_file()} == before


def as_of_the_first_format(path: Path) -> None:
    """Takes out of a run's checkpoints what the first format had not."""
    for record in (path / "checkpoints").glob("*/record/metadata"):
        held = json.loads(record.read_text())
        assert held.pop("format") == 2
        del held["sha256"]
        record.write_text(json.dumps(held))


def test_a_checkpoint_of_the_first_format_goes_on_where_no_minibatch_or_window_was_cut(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)
    path = copied(finished, tmp_path)
    shutil.rmtree(path / "checkpoints" / "8")
    as_of_the_first_format(path)
    resume(path)
    assert equal_phi(finished, path)


@pytest.mark.parametrize(
    "changed", [{"unroll_length": 2}, {"tasks": (choice("linear_regression", batch_size=2),)}], ids=str
)
def test_a_checkpoint_of_the_first_format_is_refused_otherwise(
    changed: dict[str, Any], tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)
    short = dataclasses.replace(tiny, num_meta_steps=2, validation=Validation(every=0))
    path = train(dataclasses.replace(short, **changed), tmp_path / "run")
    assert not (path / "report.html").exists()  # which the command line adds
    resume(path)
    as_of_the_first_format(path)
    with pytest.raises(UserError, match=r"another run; begin anew: `metaopt train --from .*run`") as raised:
        resume(path)
    assert "\n" not in str(raised.value)


def test_the_learning_rate_is_found_under_its_old_name(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """φ of hand-designed optimizers was called "log_learning_rate"."""
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)
    path, old = copied(finished, tmp_path), {"log_learning_rate": "learning_rate"}
    shutil.rmtree(path / "checkpoints" / "8")
    target = Trainer(train_module.folder.open_run(path)[1]).init()
    with contextlib.closing(Checkpoints(path / "checkpoints")) as checkpoints:
        state, record = checkpoints.restore(4, target)
    shutil.rmtree(path / "checkpoints")
    with contextlib.closing(Checkpoints(path / "checkpoints")) as checkpoints:
        checkpoints.save(4, _named_as_before(state), record)
    assert "log_learning_rate" in next((path / "checkpoints").glob("4/record/metadata")).read_text()
    resume(path)
    assert equal_phi(finished, path)

    file = path / "optimizer.safetensors"
    with safe_open(file, "np") as held:
        tensors = {next(key for key, name in old.items() if name == now): held.get_tensor(now) for now in held.keys()}
        metadata = held.metadata()
    save_file(tensors, file, metadata)
    read = read_optimizer(file).meta_params
    assert read.keys() == {"learning_rate"} and read["learning_rate"] == tensors["log_learning_rate"]


def test_an_average_that_the_checkpoint_has_not_is_refused(finished: Path, tmp_path: Path) -> None:
    path = copied(finished, tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["meta_optimizer"]["ema"] = 0.5
    begun_with(path, config)
    with pytest.raises(
        UserError, match="of another architecture: ema/.* is missing there and float32.* by config.json"
    ):
        resume(path, num_meta_steps=10)


def test_several_families_are_validated_relative_to_their_start(tiny: Experiment, rows: Rows, tmp_path: Path) -> None:
    experiment = dataclasses.replace(
        tiny, tasks=(choice("quadratic", dim=2), choice("rosenbrock")), num_meta_steps=2, log=Log(every=2)
    )
    path = train(experiment, tmp_path / "run")
    row = rows(path)[-1]
    assert {"validation/1x/median", "validation/1x/quadratic:dim=2/median", "validation/1x/rosenbrock/median"} <= set(
        row
    )


def test_a_finished_run_is_not_evaluated_twice(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied(finished, tmp_path)
    monkeypatch.setattr("metaopt.runs.evaluations.evaluate_run_on", lambda *args, **kwargs: 1 / 0)
    assert resume(path) == path


@pytest.mark.parametrize("kind", [UserError, jax.errors.JaxRuntimeError, MemoryError])
def test_what_fails_before_the_first_row_leaves_no_folder(
    kind: type[Exception], tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise kind("no")

    monkeypatch.setattr(train_module, "meta_train", refuse)
    with pytest.raises(kind):
        train(tiny, tmp_path / "a" / "run")
    assert not list(tmp_path.iterdir())


RUN = """
import sys
from pathlib import Path
from metaopt.cli.entry import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_real_process_stopped_in_the_middle(
    how: signal.Signals, tiny: Experiment, tmp_path: Path, rows: Rows
) -> None:
    from metaopt.experiment.plain import to_json
    from metaopt.files import write_json

    long = dataclasses.replace(
        tiny, num_meta_steps=10**6, checkpoint_every=2, validation=Validation(every=0), log=Log(every=2)
    )
    write_json(tmp_path / "long.json", to_json(long))
    path = tmp_path / "run"
    root = str(Path(metaopt.__file__).parent.parent)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": root}
    # Compiled as in this process, for the two are compared bit by bit.
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(jax.config.values["jax_disable_most_optimizations"]))
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {OLDER_EMITTERS}".strip()
    command = [sys.executable, "-c", RUN, "train", "long.json", "--out", "run"]
    process = subprocess.Popen(
        ["timeout", "-k", "5", "1200", *command], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    with process:
        while process.poll() is None and not (path / "checkpoints" / "6").exists():
            time.sleep(0.05)
            if (path / "checkpoints").exists() and any(
                entry.name.isdecimal() and int(entry.name) > 6 for entry in (path / "checkpoints").iterdir()
            ):
                break
        if process.poll() is not None:
            pytest.fail(process.stderr.read() if process.stderr else "")
        os.killpg(process.pid, how) if how == signal.SIGKILL else process.send_signal(how)
        assert process.stderr is not None
        error = process.stderr.read()
        status = process.wait()
    if how == signal.SIGTERM:
        assert status == 143, error
        assert f"saved; go on with `metaopt train --resume {path.name}`" in error and "Traceback" not in error
    # Whatever the moment, a checkpoint is there to go on from, and the rows are those of an undisturbed run.
    recorded = rows_up_to_last_checkpoint(path, rows)
    undisturbed = train(dataclasses.replace(long, num_meta_steps=recorded[-1]["meta_step"]), tmp_path / "other")
    assert [row for row in rows(undisturbed)] == recorded


def rows_up_to_last_checkpoint(path: Path, rows: Rows) -> list[dict[str, Any]]:
    from metaopt.runs.folder import open_run
    from metaopt.runs.interrupts import SignalGuard
    from metaopt.training.trainer import Trainer

    trainer = Trainer(open_run(path)[1])
    recorder = Recorder(path, trainer, SignalGuard())
    state, _ = recorder.resume(trainer)
    recorder.close()
    assert state is not None
    step = int(jax.device_get(state.meta_step))
    recorded = rows(path)
    assert recorded[-1]["meta_step"] == step >= 6
    return recorded
