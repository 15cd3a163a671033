"""What the world does to a run: strangers' files, broken files, clocks, names, folders that are taken or closed."""

from __future__ import annotations

import ast
import dataclasses
import io
import itertools
import json
import os
import pickle
import random
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

import metaopt
from metaopt import files
from metaopt.choices import choice
from metaopt.cli.entry import main
from metaopt.errors import UserError
from metaopt.experiment import Experiment, Validation
from metaopt.experiment.plain import to_json
from metaopt.microscope.capsules import read_capsule
from metaopt.report.run_page import write_report
from metaopt.runs import folder, processes
from metaopt.runs import train as train_module
from metaopt.runs.checkpoints import Checkpoints
from metaopt.runs.console import Progress, make_console, say
from metaopt.runs.experiments import load_experiment
from metaopt.runs.faults import NotWritten, disk_trouble, in_one_line
from metaopt.runs.index import fields_of
from metaopt.runs.interrupts import SignalGuard
from metaopt.runs.metrics import JsonLines, read_rows, train_rows
from metaopt.runs.train import resume, train
from metaopt.shipped.loading import read_optimizer, save_optimizer
from metaopt.training.trainer import Trainer

Rows = Callable[[Path], list[dict[str, Any]]]
PACKAGE = Path(metaopt.__file__).parent


def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def unevaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)


# ----- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_that_another_process_just_took_is_left_alone(tmp_path: Path, tiny: Experiment) -> None:
    path = tmp_path / "run"
    path.mkdir()
    with folder.locked(path):
        (path / "config.json.of.the.other").write_text("")
        (path / "config.json.of.the.other").unlink()
        with pytest.raises(UserError, match="another process is training in"):
            train(tiny, path)
    assert path.is_dir()
    (path / "config.json").write_text("{}")
    before = list(path.iterdir())
    with pytest.raises(UserError, match="exists and is not empty; go on with"):
        train(tiny, path)
    assert list(path.iterdir()) == before


def test_a_second_process_on_one_folder_is_refused_in_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(finished, tmp_path)
    with folder.locked(path):
        assert main(["train", "--resume", str(path)]) == 2
    error = capsys.readouterr().err
    assert error == f"metaopt: error: another process is training in {path}; wait for it or end it.\n"


def test_what_a_process_killed_at_the_very_beginning_leaves_is_taken_over(
    tmp_path: Path, tiny: Experiment, unevaluated: None
) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "environment.json").write_text("{}")
    (path / ".config.json.x1.part").write_text("{")
    train(dataclasses.replace(tiny, num_meta_steps=2), path, name="mine")
    assert folder.experiment_name(path) == "mine"


def test_a_read_only_folder_is_refused_before_any_work(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(finished, tmp_path)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)  # root may write wherever its modes forbid it
    assert main(["train", "--resume", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"metaopt: error: cannot write to the folder {path}: Read-only file system; make it")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        ValueError("RESOURCE_EXHAUSTED: Failed to write 348 bytes to file 17: No space left on device [os_error]"),
    ],
)
def test_a_full_disk_is_one_line_with_the_way_on(error: Exception, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "40").mkdir(parents=True)
    with pytest.raises(NotWritten) as caught, in_one_line(tmp_path):
        raise error
    words = "Disk quota exceeded" if isinstance(error, OSError) and error.errno == 122 else "No space left on device"
    assert str(caught.value) == (
        f"cannot write to {tmp_path}: {words}; the last checkpoint is of meta-step 40; mend that and go on with "
        f"`metaopt train --resume {tmp_path}`."
    )


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("RESOURCE_EXHAUSTED: out of memory"), OSError(2, "")])
def test_other_errors_pass(error: Exception, tmp_path: Path) -> None:
    assert disk_trouble(error) is None
    with pytest.raises(type(error)) as caught, in_one_line(tmp_path):
        raise error
    assert caught.value is error


# ----- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("digits_rl", "digits_rl"),
        ("a=1,b=x+y@z%", "a=1,b=x+y@z%"),
        ("../../etc", "_.._etc"),
        ("/etc/passwd", "_etc_passwd"),
        ("..", "experiment"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("a\nb\0c\u2028d", "a_b_c_d"),
        ("$(rm -rf /);`x`|'q'[red]", "__rm_-rf_____x___q__red_"),
        ("<script>alert(1)</script>", "_script_alert_1___script_"),
        ("größe", "größe"),
    ],
)
def test_names_become_plain(name: str, plain: str) -> None:
    assert folder.safe_name(name) == plain
    assert folder.safe_name(plain) == plain


def test_long_names_fit_into_a_file_name() -> None:
    for name in ("x" * 1000, "ö" * 1000, "名" * 1000):
        assert 190 < len(folder.safe_name(name).encode()) <= 200


def test_a_strangers_name_does_not_leave_the_folder_of_runs(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unevaluated: None
) -> None:
    path = copied(finished, tmp_path)
    environment = json.loads((path / "environment.json").read_text())
    files.write_json(path / "environment.json", {**environment, "experiment": "../../../<b>evil"})
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b" / "c")
    name, experiment = load_experiment(str(path))
    assert name == "_.._..__b_evil"
    made = train(dataclasses.replace(experiment, num_meta_steps=2), name="../../../evil")
    assert made.resolve().is_relative_to(tmp_path / "a" / "b" / "c" / "runs")


def test_commands_in_messages_are_safe_to_paste(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "-x", "a b", "$(touch pwned)", "a;b", "it's", "new\nline"):
        with folder.create_run(Path(name), "tiny", tiny) as made:
            words = shlex.split(folder.resume_command(made.path))
        assert words[:3] == ["metaopt", "train", "--resume"] and len(words) == 4
        assert not words[3].startswith("-") and Path(words[3]).samefile(name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "LONG"],
        ["train", "--resume", "LONG"],
        *(["evaluate", "LONG"], ["inspect", "LONG"], ["inspect", "LONG.py:make"], ["benchmark", "LONG"]),
        *(["doctor", "LONG"], ["report", "LONG"], ["replay", "LONG"], ["runs", "LONG"], ["status", "LONG"]),
    ],
)
def test_names_longer_than_any_file_are_a_users_mistake(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("LONG", "x" * 5000) for word in arguments]) == 2
    assert capsys.readouterr().err.startswith("metaopt: error: ")


def test_a_folder_with_too_long_a_name_is_a_users_mistake(tiny: Experiment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write to the folder .*: File name too long; give another --out"):
        train(tiny, tmp_path / ("x" * 300))


def test_html_in_names_stays_text(finished: Path, tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    path = Path(shutil.copytree(finished, tmp_path / bad))
    environment = json.loads((path / "environment.json").read_text())
    evaluation = (path / "evaluation.json").read_text()
    files.write_json(path / "environment.json", {**environment, "experiment": bad, "host": bad, "command": [bad]})
    (path / "evaluation.json").write_text(evaluation.replace("quadratic:dim=2", bad).replace('"tiny"', json.dumps(bad)))
    lines = (path / "metrics.jsonl").read_text().replace("meta_loss/", f"meta_loss/{bad}")
    (path / "metrics.jsonl").write_text(lines)
    page = write_report(path).read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page


# ----- φ that is not finite -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "words",
    [["evaluate", "FILE"], ["evaluate", "RUN"], ["doctor", "RUN"], ["export", "RUN", "--to", "wandb"]],
    ids=lambda words: " ".join(words),
)
def test_an_optimizer_that_is_not_finite_is_refused(
    words: list[str], value: float, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(finished, tmp_path)
    file = path / "optimizer.safetensors"
    trained = read_optimizer(file)
    leaves, structure = jax.tree.flatten(trained.meta_params)
    spoilt = structure.unflatten([*leaves[:-1], jnp.full_like(leaves[-1], value)])
    save_optimizer(file, spoilt, trained.experiment, trained.card)
    named = jax.tree_util.keystr(
        jax.tree_util.tree_flatten_with_path(trained.meta_params)[0][-1][0], simple=True, separator="/"
    )
    before = sorted(path.iterdir())
    assert main([word.replace("FILE", str(file)).replace("RUN", str(path)) for word in words]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"metaopt: error: {file}: 1 of the 1 numbers of φ in {named} are nan or infinite; take an older file, or train "
        "it anew.\n"
    )
    assert sorted(path.iterdir()) == before


def test_a_checkpoint_that_is_not_finite_is_refused_and_the_run_left_as_it_is(
    finished: Path, tmp_path: Path, tiny: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(finished, tmp_path)
    trainer = train_module.prepare(tiny)
    checkpoints = Checkpoints(path / "checkpoints")
    state, record = checkpoints.restore(8, trainer.init())
    spoilt = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state.meta_params)
    checkpoints.save(12, state._replace(meta_params=spoilt, meta_step=state.meta_step + 4), record)
    checkpoints.close()
    rows = (path / "metrics.jsonl").read_bytes()
    assert main(["train", "--resume", str(path), "--num-meta-steps", "16"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"metaopt: error: the checkpoint of meta-step 12 in {path}/checkpoints: 1 of the 1 numbers")
    assert error.endswith("are nan or infinite; delete its folder 12 to go on from one before, or begin a new run.\n")
    assert (path / "metrics.jsonl").read_bytes() == rows


# ----- files that are broken, old or new ------------------------------------------------------------------------------


def test_configs_have_a_version_and_older_ones_are_read(finished: Path, tmp_path: Path, tiny: Experiment) -> None:
    path = copied(finished, tmp_path)
    config = json.loads((path / "config.json").read_text())
    assert config["version"] == 2 and config == json.loads(json.dumps(to_json(tiny)))
    del config["version"]
    files.write_json(path / "config.json", config)
    assert folder.open_run(path)[1] == tiny


@pytest.mark.parametrize("version", [{"version": 1}, {}])
def test_an_optimizer_of_the_first_version_is_what_it_was(version: dict[str, int], tmp_path: Path) -> None:
    picked = {"name": "lstm", "options": {"noise": "per_step", "hidden_size": 3}}
    config = {"tasks": ["quadratic"], "optimizer": picked, "estimator": "reparameterised"}
    files.write_json(tmp_path / "config.json", {**version, **config})
    meant = choice("lstm", noise="per_step", hidden_size=3, features="all")
    for experiment in (
        folder.open_run(tmp_path)[1],
        *(load_experiment(str(tmp_path / name))[1] for name in ("", "config.json")),
    ):
        assert experiment.optimizer == meant
    fields = fields_of(files.read_json(tmp_path / "config.json"))
    assert fields["optimizer.features"] == "all" and "version" not in fields
    files.write_json(tmp_path / "config.json", {"version": 2, **config})
    assert "features" not in folder.open_run(tmp_path)[1].optimizer.options


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "is of format version 3, and metaopt .* reads 2; use the version of metaopt that wrote it"),
        ({"version": "new"}, "is of format version 'new'"),
        ({"meta_learning_rate": 0.1}, "'meta_learning_rate' is unknown.*written by metaopt 0.0.1; this is"),
        ({"horizon": None}, "`horizon` is None"),
    ],
)
def test_configs_of_other_versions_are_refused_with_the_reason(
    change: dict[str, Any],
    message: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = copied(finished, tmp_path)
    environment = json.loads((path / "environment.json").read_text())
    environment["versions"]["metaopt"] = "0.0.1"
    files.write_json(path / "environment.json", environment)
    config = json.loads((path / "config.json").read_text())
    files.write_json(path / "config.json", {**config, **change})
    assert main(["train", "--resume", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(UserError, match=message):
        folder.open_run(path)


def test_broken_lines_of_metrics_are_left_out_and_told(
    finished: Path, tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str], unevaluated: None
) -> None:
    path = copied(finished, tmp_path)
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:30] + b"\n"
    junk = b'\xff\xfe\0\n"text"\n' + b"[" * 100_000 + b"\n" + b'{"kind": "train", "meta_'
    (path / "metrics.jsonl").write_bytes(b"".join(lines) + junk)
    assert [row["meta_step"] for row in read_rows(path / "metrics.jsonl") if row["kind"] == "train"] == [
        1, 2, *range(4, 9)
    ]  # fmt: skip
    assert "</html>" in write_report(path).read_text()
    capsys.readouterr()
    resume(path)
    assert "metrics.jsonl lacks 1 of the 8 meta-steps done" in " ".join(capsys.readouterr().out.split())
    assert (path / "metrics.jsonl").read_bytes() == b"".join(lines[:2] + lines[3:])


def test_line_separators_within_names_are_no_ends_of_lines(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.log([{"kind": "train", "meta_step": 1, "meta_loss/a\u2028b\x85c\x0b": 1.0}])
    lines.close()
    assert [row["meta_step"] for row in read_rows(tmp_path / "m.jsonl")] == [1]


def test_a_run_goes_on_from_the_one_before_with_the_best_of_its_time(
    tiny: Experiment, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unevaluated: None
) -> None:
    scores: Any = iter([0.2, 0.3, 0.4, 0.5, 0.1, 0.6])

    def validate(self: Any, meta_params: Any) -> tuple[dict[int, float], dict[str, float]]:
        score = next(scores)
        return {1: score, 10: score}, {"validation/1x/median": score}

    monkeypatch.setattr("metaopt.training.validation.Validator.__call__", validate)
    experiment = dataclasses.replace(
        tiny, num_meta_steps=12, checkpoint_every=2, validation=Validation(every=2, num_tasks=2)
    )
    path = train(experiment, tmp_path / "run", name="tiny")
    undisturbed = rows(path)
    phi = [(path / name).read_bytes() for name in (folder.OPTIMIZER, folder.LATEST_OPTIMIZER)]
    assert sorted(int(entry.name) for entry in (path / "checkpoints").iterdir()) == [2, 8, 10, 12]
    for step in ("12", "10"):  # the best is now that of meta-step 2 again, though 10 was better since
        shutil.rmtree(path / "checkpoints" / step)
    scores = iter([0.1, 0.6])
    resume(path)
    assert rows(path) == undisturbed
    assert [(path / name).read_bytes() for name in (folder.OPTIMIZER, folder.LATEST_OPTIMIZER)] == phi

    # The best one's checkpoint is broken: its φ is in the optimizer's file too.
    for file in [entry for entry in (path / "checkpoints" / "10").rglob("*") if entry.is_file()]:
        file.write_bytes(b"")
    resume(path)
    assert [(path / name).read_bytes() for name in (folder.OPTIMIZER, folder.LATEST_OPTIMIZER)] == phi


def test_no_damage_to_a_checkpoint_goes_unseen(tmp_path: Path) -> None:
    """Every file of it removed, cut, or with one bit changed: the state is the very one, or the one before."""
    like = {"large": jnp.arange(20_000, dtype=jnp.float32), "small": jnp.ones(2), "key": jax.random.key(0)}
    checkpoints = Checkpoints(tmp_path / "whole")
    for step in (1, 2):
        checkpoints.save(step, jax.tree.map(lambda x, step=step: x + step if x.ndim else x, like), {"step": step})
    checkpoints.close()
    last = tmp_path / "whole" / "2"
    seen = []
    for number, file in enumerate(sorted(entry for entry in last.rglob("*") if entry.is_file())):
        for how in ("removed", "cut", "changed"):
            place = Path(shutil.copytree(tmp_path / "whole", tmp_path / f"{number}_{how}"))
            victim = place / file.relative_to(tmp_path / "whole")
            content = bytearray(victim.read_bytes())
            if how == "removed":
                victim.unlink()
            elif how == "cut":
                victim.write_bytes(content[: len(content) // 2])
            else:
                content[len(content) // 2] ^= 1
                victim.write_bytes(content)
            checkpoints = Checkpoints(place)
            restored = checkpoints.restore_latest(like)
            assert restored is not None
            state, record, remarks = restored
            step = record["step"]
            np.testing.assert_array_equal(state["large"], np.arange(20_000, dtype=np.float32) + step)
            np.testing.assert_array_equal(state["small"], 1.0 + step)
            assert (step == 1) == any("checkpoint of meta-step 2 cannot be read" in line for line in remarks)
            seen.append(step)
            checkpoints.close()
            shutil.rmtree(place)
    assert seen.count(1) > 10 and 2 in seen  # some files are not needed


# ----- strangers' files -----------------------------------------------------------------------------------------------


class Evil:
    """Leaves a file behind wherever it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def payloads(mark: Path) -> list[bytes]:
    array = io.BytesIO()
    np.save(array, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, x_train=np.array([Evil(mark)], dtype=object))
    return [pickle.dumps(Evil(mark)), array.getvalue(), archive.getvalue()]


def test_the_payload_works_where_pickles_are_read(tmp_path: Path) -> None:
    pickle.loads(payloads(tmp_path / "mark")[0])
    assert (tmp_path / "mark").exists()


def test_no_file_of_a_stranger_runs_code(finished: Path, tmp_path: Path, unevaluated: None) -> None:
    mark = tmp_path / "mark"
    for number, payload in enumerate(payloads(mark)):
        for name in ("optimizer.safetensors", "capsule.safetensors"):
            (tmp_path / name).write_bytes(payload)
        with pytest.raises(UserError, match="is no trained optimizer"):
            metaopt.load(tmp_path / "optimizer.safetensors")
        with pytest.raises(UserError):
            read_capsule(tmp_path / "capsule.safetensors")
        path = Path(shutil.copytree(finished, tmp_path / f"run_{number}"))
        for file in [entry for entry in (path / "checkpoints").rglob("*") if entry.is_file()]:
            file.write_bytes(payload)
        with pytest.raises(UserError, match="no checkpoint in .* can be read"):
            resume(path)
        for name in ("config.json", "environment.json"):
            (path / name).write_bytes(payload)
        with pytest.raises(UserError, match="config.json is not valid"):
            folder.open_run(path)
        data = tmp_path / f"data_{number}"
        data.mkdir()
        (data / "mnist.npz").write_bytes(payload)
        with pytest.raises(ValueError, match="mnist.npz is not Keras's"):
            metaopt.data.load_dataset("mnist", str(data))
        assert not mark.exists()


def test_nothing_in_the_package_could_run_a_file() -> None:
    """No pickle, and no `eval` or `exec`, but for the experiments and plugins that a user names."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.partition(".")[0] for name in names}
            dangerous = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}
            assert not tops & (dangerous - ({"torch"} if path.name == "in_torch.py" else set())), (
                path
            )  # which loads nothing
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert called not in ("eval", "exec", "unsafe_load"), path
            if called == "exec_module":
                assert path.name == "plugins.py"
            if called == "load" and isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "np":
                allowed = [keyword.value for keyword in node.keywords if keyword.arg == "allow_pickle"]
                assert [getattr(value, "value", None) for value in allowed] == [False], path


def test_no_change_of_an_optimizers_file_is_more_than_a_users_mistake(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "optimizer.safetensors").read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 1, 5))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path = tmp_path / "a.safetensors"
        path.write_bytes(content[: draw.choice((len(content), draw.randrange(len(content))))])
        try:
            read_optimizer(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 30


@pytest.mark.parametrize(
    "about",
    [
        "[]", "7", "{}", "[" * 100_000, '{"version": 1, "experiment": [], "card": {}}',
        '{"version": 9, "experiment": {}, "card": {}}',
    ],
)  # fmt: skip
def test_metadata_of_a_stranger(about: str, tmp_path: Path) -> None:
    save_file({"a": np.zeros(1)}, tmp_path / "a.safetensors", {"metaopt": about})
    with pytest.raises(UserError, match="a.safetensors"):
        read_optimizer(tmp_path / "a.safetensors")


def test_a_card_or_an_optimizer_of_a_stranger(finished: Path, tmp_path: Path, tiny: Experiment) -> None:
    for change, card in (
        ({}, [1]),
        ({"optimizer": choice("lstm", hidden_size=-3)}, {}),
        ({"optimizer": choice("nothing")}, {}),
        ({"optimizer": choice("lstm", features="import os")}, {}),
    ):
        about = {"version": 1, "experiment": to_json(dataclasses.replace(tiny, **change)), "card": card}
        save_file({"a": np.zeros(1)}, tmp_path / "a.safetensors", {"metaopt": json.dumps(about)})
        with pytest.raises(UserError):
            read_optimizer(tmp_path / "a.safetensors")


def test_data_that_changed_since_the_run_began_is_refused(
    tmp_path: Path, tiny: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = dataclasses.replace(tiny, tasks=(choice("classifier", batch_size=2),))
    held = {"data": [{"name": "digits", "source": "elsewhere", "sha256": "0" * 64}]}
    with folder.create_run(tmp_path / "run", "tiny", experiment, held) as made:
        path = made.path
    before = {entry: entry.read_bytes() for entry in path.iterdir()}
    with pytest.raises(UserError, match=r"data set digits in scikit-learn .* is not the one .*\(sha256 000000000000\)"):
        resume(path)
    assert {entry: entry.read_bytes() for entry in path.iterdir()} == before


# ----- clocks, terminals, signals -------------------------------------------------------------------------------------


def test_clocks_that_go_backwards(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unevaluated: None
) -> None:
    count = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 1e9 - 3600 * next(count))
        patch.setattr("metaopt.runs.recorder.time.monotonic", lambda: 1e6 - 10 * next(count))
        path = train(tiny, tmp_path / "run")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    times = [line["time/elapsed"] for line in lines]
    assert len(lines) == 10 and times == sorted(times) and times[0] >= 0
    assert all(line.get("time/meta_step", 0) >= 0 and line.get("time/validation", 0) >= 0 for line in lines)


def test_no_rate_of_a_clock_that_stands_still() -> None:
    out = io.StringIO()
    metrics = {"meta_step": np.arange(1, 3), "meta_loss": np.ones(2)}
    Progress(Console(file=out, soft_wrap=True), total=10).log(train_rows(metrics, began=5.0, ended=4.0))
    assert out.getvalue() == "meta-step 2/10  loss 1  0:00 left\n"


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    tried: list[str] = []

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            tried.append(text)
            raise OSError(5, "Input/output error")

    say(Console(file=Gone()), "hello")
    assert tried == ["hello\n"]
    progress = Progress(Console(file=Gone(), force_terminal=False), total=2)
    progress.log(train_rows({"meta_step": np.arange(1, 3), "meta_loss": np.ones(2)}, began=0.0, ended=1.0))
    progress.close()
    assert len(tried) == 2 and tried[1].startswith("meta-step 2/2")


def test_hang_ups_save_unless_nohup_was_asked_for() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        with SignalGuard() as guard:
            os.kill(os.getpid(), signal.SIGHUP)
        assert guard.received == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with SignalGuard() as guard:
            os.kill(os.getpid(), signal.SIGHUP)
        assert guard.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_during_validation_stops_at_that_chunk(
    tiny: Experiment, rows: Rows, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unevaluated: None
) -> None:
    from metaopt.runs.interrupts import Interrupted
    from metaopt.runs.recorder import Recorder

    validate = Recorder._run_validation

    def interrupted(self: Recorder, state: Any) -> bool:
        if int(state.meta_step) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(self, state)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Recorder, "_run_validation", interrupted)
        train(tiny, tmp_path / "run", name="tiny")
    assert folder.last_checkpoint(tmp_path / "run") == 4
    resume(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(finished)


def test_a_resumed_run_is_judged_by_the_steps_before_too(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaopt.training.loop import Diverged, meta_train

    class Fake(Trainer):
        def run_chunk(self, state: Any) -> Any:
            step = int(state.meta_step)
            metrics = {"meta_step": [step + 1], "meta_loss": [np.nan], "alive": [0.0], "skipped": [1]}
            metrics = {name: np.array(values) for name, values in metrics.items()}
            return state._replace(meta_step=jnp.asarray(step + 1, jnp.int32)), metrics

    trainer = Fake(dataclasses.replace(tiny, num_meta_steps=2))
    with pytest.raises(Diverged):
        meta_train(trainer)
    meta_train(trainer, history=[(False, False)] * 18)


def test_a_lost_process_is_told_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "joined", lambda: True)
    with pytest.raises(processes.LostProcess, match="another process of this job was lost"), in_one_line(tmp_path):
        raise RuntimeError("gloo: connection reset by peer")


def test_a_run_whose_checkpoints_were_deleted_is_not_begun_anew_over_its_optimizer(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints")
    before = (run / "optimizer.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="--from"):
        resume(run)
    assert ((run / "optimizer.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()) == before


def test_a_reader_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with open(write, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        console = make_console()
        os.close(read)
        for _ in range(3):
            say(console, "nobody reads this")  # rich alone would raise SystemExit(1)
        assert console.quiet
