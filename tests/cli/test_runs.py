"""`metaopt runs`: found, filtered, compared, renamed, deleted; what must not be touched is not."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from metaopt import files
from metaopt.choices import choice
from metaopt.cli import entry as cli
from metaopt.cli import evaluate as evaluate_command
from metaopt.cli import runs as runs_command
from metaopt.cli.arguments import EvaluateArguments
from metaopt.errors import UserError, printable
from metaopt.experiment import Experiment
from metaopt.experiment.plain import to_json
from metaopt.runs import folder, index, tables
from metaopt.runs.experiments import load_experiment
from metaopt.runs.repeating import what_differs

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes run folders, with some rows of metrics, without training."""

    def run(name: str, *, best: float | None = None, steps: int = 3, experiment: str = "demo", **fields: Any) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        values: dict[str, Any] = {"optimizer": choice("lstm", hidden_size=20), "num_meta_steps": 10, **fields}
        made = Experiment(tasks=(choice("quadratic", dim=2),), estimator=choice("truncated_backprop"), **values)
        files.write_json(path / "config.json", to_json(made))
        files.write_json(path / "environment.json", {"experiment": experiment, "started": "2026-01-02T03:04:05+00:00"})
        rows: list[dict] = [{"kind": "train", "meta_step": step, "meta_loss": 1.0} for step in range(1, steps + 1)]
        if best is not None:
            for step, score in ((1, 2 * best), (2, best), (3, "inf")):
                row = {
                    "kind": "validation",
                    "meta_step": step,
                    "validation/1x/median": 9,
                    "validation/10x/median": score,
                }
                rows.insert(-1, row)
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tr')
        return path

    return run


def names(found: list[index.Run]) -> list[str]:
    return [run.path.name for run in found]


# ----- the list -------------------------------------------------------------------------------------------------------


def test_the_list_holds_every_run_and_nothing_else(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a/10", "a/9", "sweep/lr=0.01", "sweep/lr=0.001"):
        make(name)
    first = make("b", best=0.25, seed=7)
    make("b/inner")  # what lies in a run belongs to it
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": []}')  # another program's
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "environment.json").write_text("{}")
    (tmp_path / "link").symlink_to(first)
    found = index.find_runs(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a/9", "a/10", "b", "sweep/lr=0.001", "sweep/lr=0.01",
    ]  # fmt: skip

    runs_command.runs([str(tmp_path), str(first)])  # named twice, listed once
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["run", "experiment", "seed"] and len(lines) == 6
    (line,) = [line for line in lines if line.startswith(f"{first} ")]
    size = sum(file.stat().st_size for file in first.rglob("*") if file.is_file())
    words = f"demo 7 unknown 3/10 0.25 at 2 2026-01-02 03:04 {tables.size(size)}"
    assert " ".join(line.split()[1:]) == f"{words} num_meta_steps=10 tasks.dim=2 optimizer.hidden_size=20"


def test_the_list_names_what_is_not_as_the_experiment_has_it(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    own = to_json(load_experiment("quadratic_rl")[1])
    log = {name: value for name, value in own["log"].items() if name in ("every", "wandb", "project")}  # of an old run
    for name, fields in (("a", {}), ("b", {"seed": 3}), ("c", {"horizon": 7, "tasks": [{"name": "x", "options": {}}]})):
        run = make(name, experiment="quadratic_rl")
        files.write_json(run / "config.json", {**own, "log": log, **fields})
    assert cli.main(["runs", str(tmp_path)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.endswith("changed") and [line.partition("kB")[2].split() for line in lines] == [
        [], [], ["tasks=x", "horizon=7"],
    ]  # fmt: skip
    for name, hidden in (("p", 8), ("q", 9)):  # of one's own experiment: what it is swept over comes first
        make(f"own/{name}", experiment="mine", optimizer=choice("lstm", hidden_size=hidden))
    assert cli.main(["runs", str(tmp_path / "own")]) == 0
    told = [line.partition("kB")[2].split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert told == [[f"optimizer.hidden_size={n}", "num_meta_steps=10", "tasks.dim=2"] for n in (8, 9)]
    many = {name: 1 + index for index, name in enumerate(index.bare())}
    assert len(runs_command.changed(many, index.bare())) == runs_command.LONGEST_CHANGES


def test_a_broken_configuration_is_told(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole = make("whole", seed=3)
    for name, text in (("cut", '{"tasks": ['), ("list", "[]"), ("other", '{"seed": 3}'), ("empty", "{}")):
        (make(name) / "config.json").write_text(text)
    broken = ["cut", "empty", "list", "other"]
    found = runs_command.list_runs([tmp_path])
    assert [(run.path.name, run.state) for run in found] == [(n, "unreadable") for n in broken] + [("whole", "unknown")]
    assert names(runs_command.list_runs([tmp_path], state="unreadable")) == broken
    assert names(runs_command.list_runs([tmp_path], where=["seed!=7"])) == ["whole"]
    assert index.find_runs(tmp_path) == [whole]
    assert cli.main(["runs", str(tmp_path)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[:4] == [str(tmp_path / "cut"), "demo", "unreadable", "3"]
    assert cli.main(["report", str(tmp_path / "list")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "config.json does not hold an experiment" in said


def test_a_broken_configuration_stops_an_evaluation_before_its_work(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    monkeypatch.setattr(evaluate_command, "evaluate_all", lambda *_, **__: pytest.fail("it was begun"))
    for text, message in (('{"tasks"', "is not valid JSON"), ("[]", "does not hold an experiment")):
        (run / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            evaluate_command.evaluate(EvaluateArguments((str(run),)))


def test_a_run_that_was_cancelled(make: Make, tmp_path: Path) -> None:
    for name, state in (("a", "interrupted"), ("b", "finished"), ("c", None)):
        run = make(name)
        (run / folder.CANCELLED).write_text("{}")
        if state is not None:
            (run / "state.json").write_text(json.dumps({"state": state}))
    assert [run.state for run in runs_command.list_runs([tmp_path])] == ["cancelled", "finished", "cancelled"]
    assert names(runs_command.list_runs([tmp_path], state="cancelled")) == ["a", "c"]


def test_filters_are_checked_where_there_is_nothing_to_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["--where", "seed"], "is no comparison"),
        (["--where", "seed~3"], "is no comparison"),
        (["--where"], "--where has no value"),
        (["--where", "num_meta_steps<fast"], "'fast' is not a number"),
        (["--state", "canceled"], "did you mean 'cancelled'"),
    ):
        assert cli.main(["runs", *words]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    assert cli.main(["runs", "--where", "seed=3", "--state", "cancelled"]) == 0
    assert "there is no folder runs here" in capsys.readouterr().out


def test_filters(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make("small", seed=1, optimizer=choice("lstm", hidden_size=4))
    make("large", seed=2, optimizer=choice("lstm", hidden_size=100), experiment="other")
    make("plain", seed=3, optimizer=choice("adam"))
    lstm = ["large", "small"]
    cases: dict[str, list[str]] = {
        "seed=2": ["large"],
        "seed!=2": ["plain", "small"],
        "seed>1": ["large", "plain"],
        "seed<=2.0": lstm,
        "optimizer=lstm": lstm,
        "optimizer.hidden_size>50": ["large"],
        "optimizer.hidden-size=4": ["small"],
        "optimizer.hidden_size!=4": ["large", "plain"],
        "tasks.dim=2": ["large", "plain", "small"],
        "unroll_length=none": ["large", "plain", "small"],
        "oracle>3": [],
    }
    for condition, expected in cases.items():
        assert names(runs_command.list_runs([tmp_path], where=[condition])) == expected, condition
    make("silent", seed=0, optimizer=choice("lstm"))  # of 20, which it does not say
    assert names(runs_command.list_runs([tmp_path], where=["optimizer.hidden_size=20"])) == ["silent"]
    assert names(runs_command.list_runs([tmp_path], where=["optimizer.num_layers=2"])) == ["large", "silent", "small"]
    assert names(runs_command.list_runs([tmp_path], where=["tasks.rescale=0.0"])) == [
        "large",
        "plain",
        "silent",
        "small",
    ]
    shutil.rmtree(tmp_path / "silent")
    assert names(runs_command.list_runs([tmp_path], where=["seed>1", "optimizer=lstm"])) == ["large"]
    assert names(runs_command.list_runs([tmp_path], experiment="other")) == ["large"]
    assert names(runs_command.list_runs([tmp_path], state="running")) == []
    for options, message in (
        ({"where": ["seed"]}, "is no comparison"),
        ({"where": ["sead=1"]}, "did you mean 'seed'"),
        ({"state": "finisht"}, "did you mean 'finished'"),
    ):
        with pytest.raises(UserError, match=message):
            runs_command.list_runs([tmp_path], **options)  # pyright: ignore
    assert cli.main(["runs", str(tmp_path), "--where", "seed>1", "optimizer.hidden_size=100"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert "optimizer.hidden_size" in header and "  100  " in line
    assert cli.main(["runs", str(tmp_path), "--state", "lost"]) == 0
    assert "no run below" in capsys.readouterr().out
    assert cli.main(["runs", str(tmp_path / "nowhere")]) == 2


def test_a_run_that_is_trained_is_running(make: Make) -> None:
    run = make("run")
    with folder.locked(run):
        assert index.read_run(run).state == "running"
    assert index.read_run(run).state != "running"


def test_a_name_cannot_break_the_table(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make("odd\n\x1b[31m[bold]red")
    runs_command.runs([str(tmp_path)])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2 and "\x1b" not in out and r"odd\n\x1b[31m[bold]red" in out


ODD = ("\x1b]0;title\x07\x1b[31mred", "two\nlines", "\u202egnp", os.fsdecode(b"\xff\xfe"), "[bold]x[/bold]")


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    "words",
    [
        *("runs .", "status RUN", "status .", "runs compare RUN RUN", "runs delete RUN --yes", "runs rename RUN NAME"),
        *("cancel RUN", "train --resume RUN/x", "export RUN --to csv", "report RUN"),
    ],
)
def test_no_command_prints_a_name_raw(
    words: str, name: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    make(f"{name}/run", experiment=name)
    cli.main([word.replace("RUN", f"{name}/run").replace("NAME", "other") for word in words.split()])
    said = capsys.readouterr()
    text = said.out + said.err
    assert text.replace("\n", "").isprintable() and "two\nlines" not in text
    if "compare" not in words:  # which names nothing of what is equal
        assert printable(name) in text or (said.err and " ".join(name.split()) in said.err)


def test_the_list_needs_no_jax(make: Make, tmp_path: Path) -> None:
    make("run")
    code = (
        "import sys; from metaopt.cli.entry import main; status = main(['runs', sys.argv[1]]);"
        "slow = {'jax', 'wandb', 'optax', 'numpy', 'matplotlib'} & set(sys.modules); sys.exit(status or bool(slow))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1/" not in done.stderr, done.stderr


# ----- configurations -------------------------------------------------------------------------------------------------


def test_fields_of_a_configuration() -> None:
    made = Experiment(
        tasks=(choice("quadratic", dim=2),), optimizer=choice("lstm", features="all"), estimator=choice("x")
    )
    fields = index.fields_of(to_json(made))
    assert (fields["tasks"], fields["tasks.dim"], fields["optimizer.features"]) == ("quadratic", 2, "all")
    assert fields["meta_optimizer.learning_rate"] == 1e-3 and fields["validation.multiples"] == (1, 10)
    several = {**to_json(made), "tasks": [{"name": "a", "options": {"k": True}}, {"name": "b", "options": {}}]}
    assert index.fields_of(several)["tasks"] == ("a:k=true", "b")
    assert index.differing([fields, fields]) == []
    assert index.differing([{"a": 1, "b": True}, {"a": 1.0, "b": 1, "c": None}]) == ["b", "c"]


def test_compare(make: Make, capsys: pytest.CaptureFixture) -> None:
    first = make("first", seed=1, optimizer=choice("lstm", hidden_size=4))
    second = make("second", seed=2, optimizer=choice("lstm"), rescale=3.0)
    assert runs_command.compare_runs(first, second) == [
        ("optimizer.hidden_size", "4", "20"),
        ("seed", "1", "2"),
        ("rescale", "0.0", "3.0"),
    ]
    assert cli.main(["runs", "compare", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["optimizer.hidden_size", "4", "20"], ["seed", "1", "2"], ["rescale", "0.0", "3.0"],
    ]  # fmt: skip
    third = make("third", seed=2, optimizer=choice("lstm", hidden_size=20), rescale=3.0)  # which it is anyway
    assert runs_command.compare_runs(second, third) == []
    other = make("other", seed=2, optimizer=choice("adam"), rescale=3.0)  # of which nobody hides anything
    told = {name: (a, b) for name, a, b in runs_command.compare_runs(third, other)}
    assert told == {"optimizer": ("lstm", "adam"), "optimizer.hidden_size": ("20", "-")}
    assert cli.main(["runs", "compare", str(first), str(first)]) == 0
    assert capsys.readouterr().out == "the two configurations are equal.\n"
    assert cli.main(["runs", "compare", str(first)]) == 2
    assert cli.main(["runs", "compare", str(first), "nowhere"]) == 2


# ----- renaming and deleting ------------------------------------------------------------------------------------------


def test_rename(make: Make, tmp_path: Path) -> None:
    run, other = make("run"), make("other")
    assert runs_command.rename_run(run, "new name") == tmp_path / "new name"
    assert names(runs_command.list_runs([tmp_path])) == ["new name", "other"]
    for name in (
        *("a/b", "..", "", " ", ".hidden", "other", "a\nb", "a\0", "\x1b[2J", "\u202e", "\x7f", os.fsdecode(b"\xff")),
        *("x" * 256, "é" * 128),
    ):
        with pytest.raises(UserError) as error:
            runs_command.rename_run(tmp_path / "new name", name)
        assert str(error.value).isprintable() and len(str(error.value)) < 300
    assert runs_command.rename_run(tmp_path / "new name", "é" * 127) == tmp_path / ("é" * 127)
    (tmp_path / ("é" * 127)).rename(tmp_path / "new name")
    with folder.locked(other), pytest.raises(UserError, match="another process is training"):
        runs_command.rename_run(other, "elsewhere")
    point = make("sweep/point")
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match="belongs to the sweep"):
        runs_command.rename_run(point, "elsewhere")
    with pytest.raises(UserError, match=r"is a sweep, .* `metaopt runs delete .*sweep/\*/` deletes"):
        runs_command.delete_runs([tmp_path / "sweep"], agreed=lambda _: True)
    with pytest.raises(UserError, match="is a sweep: `metaopt resume .*sweep` goes on"):
        folder.open_run(tmp_path / "sweep")
    assert point.is_dir() and other.is_dir()


def test_delete_takes_the_runs_and_leaves_what_links_point_at(make: Make, tmp_path: Path) -> None:
    run, kept = make("run"), make("kept")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (run / "folder").symlink_to(outside)
    (run / "file").symlink_to(outside / "precious")
    (run / "checkpoints" / "5").mkdir(parents=True)
    (run / "checkpoints" / "5" / "deep").symlink_to(outside)
    asked: list[str] = []
    assert runs_command.delete_runs([run], agreed=lambda question: bool(asked.append(question))) == []
    assert run.is_dir() and len(asked) == 1 and str(run) in asked[0]
    assert runs_command.delete_runs([run, run], agreed=lambda _: True) == [run]
    assert not run.exists() and (outside / "precious").read_text() == "x" and kept.is_dir()


def test_delete_refuses_all_when_one_must_stay(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, linked, holder, here = make("run"), make("linked"), make("holder"), make("here")
    (tmp_path / "link").symlink_to(linked)
    make("holder/inner")
    (tmp_path / "plain").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "config.json").symlink_to(run / "config.json")
    monkeypatch.chdir(here)
    refused = {
        "link": "is a link",
        "link/": "is a link",
        "holder": "holds other runs",
        "here": "the folder that you are in",
        "plain": "is not a run folder",
        "model": "is missing",
        "fake": "is not a run folder",
        "no": "no run folder",
    }
    for name, message in refused.items():
        path = tmp_path / name
        with pytest.raises(UserError, match=message):
            runs_command.delete_runs([run, Path(f"{path}/") if name.endswith("/") else path], agreed=lambda _: True)
    with folder.locked(linked), pytest.raises(UserError, match="another process is training"):
        runs_command.delete_runs([run, linked], agreed=lambda _: True)
    assert all(path.is_dir() for path in (run, linked, holder, here))


def test_a_deletion_that_was_cut_short_can_be_done_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make("run")
    (run / "checkpoints").mkdir()
    with monkeypatch.context() as patch:

        def fail(path: Any, **_: Any) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        patch.setattr(shutil, "rmtree", fail)
        with pytest.raises(UserError, match="cannot delete .*checkpoints: Permission denied"):
            runs_command.delete_runs([run], agreed=lambda _: True)
    assert index.is_run(run)
    assert runs_command.delete_runs([run], agreed=lambda _: True) == [run] and not run.exists()


def test_delete_asks(make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    run = make("run")
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    assert cli.main(["runs", "delete", str(run)]) == 2
    assert "add --yes" in capsys.readouterr().err
    monkeypatch.setattr(runs_command, "ask", lambda question: False)
    assert cli.main(["runs", "delete", str(run)]) == 0
    assert capsys.readouterr().out == "nothing was deleted.\n" and run.is_dir()
    assert cli.main(["runs", "delete", str(run), "--force"]) == 2 and run.is_dir()
    assert cli.main(["runs", "delete", str(run), "--yes"]) == 0 and not run.exists()


# ----- once more ------------------------------------------------------------------------------------------------------


def test_from_a_run_comes_the_same_optimizer(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("metaopt.cli.devices.configure_for_training", lambda *_: None)
    out = tmp_path / "again"
    assert cli.main(["train", "--from", str(finished), "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"repeating {finished}") and "seed" not in said[0]
    assert (out / "config.json").read_bytes() == (finished / "config.json").read_bytes()
    assert folder.experiment_name(out) == "tiny"
    first, second = (load_file(path / "optimizer.safetensors") for path in (finished, out))
    assert set(first) == set(second) and all(np.array_equal(first[name], second[name]) for name in first)

    for arguments, message in (
        (["--from"], "--from takes a run"),
        (["--from", "--seed", "3"], "--from takes a run"),
        (["--from=nowhere"], "there is no run folder nowhere"),
        (["quadratic_rl", "--from", str(finished)], "leave 'quadratic_rl' out"),
        (["--from", str(finished), "--resume", str(finished)], "--from cannot change on resuming"),
    ):
        assert cli.main(["train", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_what_has_changed_since_is_said_in_one_line(finished: Path, tiny: Experiment, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    environment = files.read_json(copy / "environment.json")
    environment["git"] = None
    files.write_json(copy / "environment.json", environment)
    changed = {**environment, "versions": {**environment["versions"], "jax": "0.0.1"}, "git": {"commit": "f" * 40}}
    changed["device"] = {**environment["device"], "count": 64}
    changed["data"] = [{"name": "digits", "source": "x", "sha256": "abcdefghij"}]
    files.write_json(copy / "environment.json", changed)
    line = what_differs(copy, dataclasses.replace(tiny, seed=3))
    assert "\n" not in line and "seed 0 -> 3" in line
    for words in ("jax 0.0.1 -> ", "commit ffffffff -> ", "devices 64 -> ", "data digits abcdefgh -> not read"):
        assert words in line, words
    assert "num_meta_steps" not in line
    (copy / "environment.json").unlink()
    assert "its versions are not known" in what_differs(copy, tiny)
