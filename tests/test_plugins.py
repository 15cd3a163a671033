"""People's own entries through every command: with their plugin they work, without it one line names it."""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import metaopt
from metaopt import plugins
from metaopt.choices import choice
from metaopt.cli.entry import main
from metaopt.errors import UserError
from metaopt.experiment import build_families
from metaopt.launch import jobs, slurm
from metaopt.microscope.capsules import Batch, Setting, make_capsule, write_capsule
from metaopt.registry import OPTIMIZERS, REGISTRIES, TASKS, UnknownEntry
from metaopt.runs.experiments import load_experiment

SOURCE = '''"""One entry of each kind."""
import jax
import jax.numpy as jnp
import optax
import metaopt
from metaopt import Estimate, Evaluation, Experiment, Log, Optimizer, Oracle, TaskFamily, Validation, choice


@metaopt.TASKS.register
def rings(dim=2, wall=float("inf")):
    """Distance from a ring; beyond `wall` there is no loss."""
    return TaskFamily(
        data=(),
        sample=lambda key, data: jax.random.uniform(key, minval=0.5),
        init=lambda key, task: 2.0 + jax.random.uniform(key, (dim,)),
        batch=lambda key, task, data: (),
        loss=lambda x, task, batch: jnp.where(jnp.sum(x**2) > wall, jnp.inf, (jnp.sum(x**2) - task) ** 2),
        eval_batch=lambda task, data, split: (),
    )


@metaopt.OPTIMIZERS.register
def shrinking(rate: float = 0.01) -> Optimizer:
    """Gradient descent."""
    init = lambda key: {"log_rate": jnp.log(jnp.asarray(rate, jnp.float32))}
    return Optimizer(init, lambda phi: optax.with_extra_args_support(optax.sgd(jnp.exp(phi["log_rate"]))))


@metaopt.ESTIMATORS.register(differentiates=True, noise="never")
def doubled(optimizer, objective, schedule):
    """Twice the gradient."""
    return metaopt.ESTIMATORS["truncated_backprop"](optimizer, lambda trace: 2 * objective(trace), schedule)


@metaopt.OBJECTIVES.register
def worst():
    """The largest loss."""
    return lambda trace: jnp.max(trace.loss, axis=0)


@metaopt.ORACLES.register
def halved():
    """Half the gradient."""

    def estimate(family, task, params, state, key):
        value, gradient = jax.value_and_grad(family.loss)(params, task, family.batch(key, task, family.data))
        return Estimate(jax.tree.map(lambda leaf: leaf / 2, gradient), value), state

    return Oracle(lambda family, task, params, key: (), estimate)
'''
EXPERIMENT = """
EXPERIMENT = Experiment(
    tasks=(choice("rings", dim=2),), optimizer=choice("shrinking"), estimator=choice("doubled"),
    oracle=choice("halved"), objective="worst", num_meta_steps=2, num_tasks=2, horizon=4, num_devices=1,
    validation=Validation(every=0), log=Log(every=2), checkpoint_every=2,
    evaluation=Evaluation(num_tasks=2, horizons=(4,), baselines=()),
)
"""
OWN = {
    "task family": ["rings"],
    "optimizer": ["shrinking"],
    "estimator": ["doubled"],
    "oracle": ["halved"],
    "objective": ["worst"],
}


def forget() -> None:
    """As a new process would be, of whose entries all come with the package."""
    for registry in REGISTRIES:
        for entry in registry.own():
            del registry._entries[entry.name]
    plugins._flags.clear()
    plugins._loaded.clear()
    plugins._installed.cache_clear()
    for name in [name for name in sys.modules if name.startswith((plugins.PRIVATE, "a_module"))]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    jax.devices()  # the command line sets their number only where jax has not yet begun
    held = [dict(registry._entries) for registry in REGISTRIES if len(registry)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    forget()
    yield tmp_path
    forget()
    importlib.invalidate_caches()
    for registry, entries in zip(REGISTRIES, held, strict=True):
        registry._entries.update(entries)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command as a new process would; (exit status, what it said on stderr)."""

    def run(*words: str) -> tuple[int, str]:
        forget()
        capsys.readouterr()
        status = main(list(words))
        return status, capsys.readouterr().err.strip()

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mine.py, the run `run` that it made, and a capsule of a task that fell off."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "mine.py").write_text(SOURCE + EXPERIMENT)
    jax.devices()
    forget()
    assert main(["train", str(folder / "mine.py"), "--out", str(folder / "run")]) == 0
    experiment = load_experiment(str(folder / "mine.py"))[1]
    setting = Setting("evaluation", experiment, choice("rings", wall=50.0), False, 4, False, "fresh", None, {})
    phi = {"log_rate": OPTIMIZERS["shrinking"]().init(jax.random.key(0))["log_rate"] + 6.0}  # far beyond the wall
    capsule = make_capsule(setting, Batch(phi, jax.random.split(jax.random.key(0), 2), None))
    assert capsule is not None
    write_capsule(folder / "run", capsule)
    forget()
    return folder


def test_a_run_keeps_the_name_and_the_hash_of_its_plugins(trained: Path) -> None:
    held = json.loads((trained / "run" / "environment.json").read_text())["plugins"]
    mine = trained / "mine.py"
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert held == [{"name": str(mine), "sha256": digest, "entries": OWN}]


COMMANDS = [
    ["train", "--resume", "RUN", "--num-meta-steps", "4"],
    ["train", "--from=RUN", "--out", "again"],
    ["evaluate", "RUN", "--num-tasks", "2", "--horizon", "5", "--baselines", "sgd"],
    ["doctor", "RUN"],
    ["replay", "RUN/capsules/CAPSULE"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0] + words[1].partition("=")[0])
def test_a_command_works_with_the_plugin_and_names_it_without(
    words: list[str], trained: Path, place: Path, said: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "run", place / "run")
    capsule = next((place / "run" / "capsules").iterdir()).name
    words = [word.replace("RUN", "run").replace("CAPSULE", capsule) for word in words]
    examined: list[str] = []

    def diagnose(experiment, meta_params, **settings):  # which takes minutes
        examined.append(build_families(experiment)[0].name)
        raise UserError("examined")

    monkeypatch.setattr("metaopt.cli.examine.diagnose", diagnose)
    status, error = said(*words)
    mine = str(trained / "mine.py")
    assert status == 2 and "\n" not in error
    assert error.endswith(f"has it from {mine}: `metaopt {' '.join(words)} --plugin {mine}`")
    if words[0] == "doctor":
        assert said(*words, "--plugin", mine) == (2, "metaopt: error: examined") and examined == ["rings"]
    else:
        assert said(words[0], f"--plugin={mine}", *words[1:])[0] == 0
    monkeypatch.setenv(plugins.VARIABLE, f"{mine},{mine}")
    assert "unknown" not in said(*words, *(["--seed", "1"] if words[0] == "doctor" else []))[1]


def test_an_interrupted_run_goes_on_to_the_same_bits(
    trained: Path, place: Path, said: Callable[..., tuple[int, str]]
) -> None:
    mine = str(trained / "mine.py")
    assert said("train", mine, "--num-meta-steps", "4", "--out", "whole")[0] == 0
    assert said("train", mine, "--out", "parts")[0] == 0
    assert said("train", "--resume", "parts", "--num-meta-steps", "4", "--plugin", mine)[0] == 0
    whole, parts = (load_file(place / name / "optimizer_latest.safetensors") for name in ("whole", "parts"))
    assert {name: leaf.tobytes() for name, leaf in whole.items()} == {k: leaf.tobytes() for k, leaf in parts.items()}


def test_commands_that_look_at_folders_need_no_plugin(trained: Path, said: Callable[..., tuple[int, str]]) -> None:
    run = str(trained / "run")
    for words in (["runs", run], ["status", run], ["report", run, "--out", "page.html"], ["list"]):
        assert said(*words) == (0, "")
    assert f"--plugin {trained / 'mine.py'}" in metaopt.runs.folder.resume_command(trained / "run")


def test_listed_and_loaded(trained: Path, said: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture) -> None:
    mine = trained / "mine.py"
    forget()
    assert main(["list", "--plugin", str(mine)]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("rings ", "shrinking ", "doubled ", "halved "))
    forget()
    assert main(["list", "rings", "--plugin", str(mine)]) == 0
    assert "dim=2" in capsys.readouterr().out
    forget()
    with pytest.raises(UnknownEntry, match=f"has it from {mine}: import that first"):
        metaopt.load(trained / "run")
    plugins.run_file(mine, "mine")
    tx = metaopt.load(trained / "run")
    update, _ = tx.update(np.ones(2, np.float32), tx.init(np.ones(2, np.float32)))
    assert np.all(np.asarray(update) < 0)


def test_an_installed_package_and_a_module_and_an_experiment_in_json(
    place: Path, said: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = place / "site"
    (site / "a_module-1.dist-info").mkdir(parents=True)
    (site / "a_module.py").write_text(SOURCE)
    (place / "fields.json").write_text(
        '{"tasks": ["rings"], "optimizer": "shrinking", "estimator": "doubled", "num_meta_steps": 1, "num_tasks": 2, '
        '"horizon": 2, "validation": {"every": 0}, "evaluation": {"num_tasks": 2, "horizons": [2], "baselines": []}}'
    )
    monkeypatch.syspath_prepend(site)
    assert said("train", "fields.json", "--out", "run", "--plugin", "a_module")[0] == 0
    held = json.loads((place / "run" / "environment.json").read_text())["plugins"]
    assert [each["name"] for each in held] == ["a_module"] and len(held[0]["sha256"]) == 64
    assert said("evaluate", "run")[1].endswith("--plugin a_module`")
    (site / "a_module-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: a-module\nVersion: 1\n")
    (site / "a_module-1.dist-info" / "entry_points.txt").write_text("[metaopt.plugins]\nmine = a_module\n")
    importlib.invalidate_caches()
    assert said("evaluate", "run")[0] == 0
    assert plugins.words() == []  # a worker finds it by itself
    (site / "a_module.py").write_text("1 / 0")
    status, error = said("evaluate", "run")
    assert status == 2 and "plugin a_module (of the package a-module)" in error and "a_module.py, line 1)" in error


# ----- other processes ------------------------------------------------------------------------------------------------


def test_workers_are_given_the_plugins(trained: Path, place: Path) -> None:
    mine = str(trained / "mine.py")
    forget()
    load_experiment(mine)
    assert plugins.words() == ["--plugin", mine]
    command = jobs.command_of(Path("run"))
    assert "run" in command and command[-2:] == ["--plugin", mine]
    training = pickle.loads(pickle.dumps(slurm.Training("run", command)))
    forget()  # in the job's own process, which queues it again
    assert training.checkpoint().function.command == command
    words = ["launch", mine, "--seeds", "1", "--out", "sweep"]
    launched = subprocess.run([sys.executable, "-m", "metaopt", *words], capture_output=True, text=True)
    assert launched.returncode == 0, launched.stderr
    run = place / "sweep" / "1-seed-0"
    assert json.loads((run / "state.json").read_text())["state"] == "finished"
    held = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps({**held, "state": "interrupted"}))
    again = subprocess.run([sys.executable, "-m", "metaopt", "resume", "sweep"], capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.strip().endswith(f"`metaopt resume sweep --plugin {mine}`")


# ----- nothing runs because a folder says so --------------------------------------------------------------------------


def test_nothing_is_run_because_a_run_folder_says_so(
    trained: Path, place: Path, said: Callable[..., tuple[int, str]]
) -> None:
    run = place / "sweep" / "1-a"
    shutil.copytree(trained / "run", run)
    trap = place / "trap.py"
    trap.write_text(f"open({str(place / 'marker')!r}, 'w')\n{SOURCE}")
    environment = json.loads((run / "environment.json").read_text())
    environment["plugins"] = [{"name": str(trap), "sha256": "", "entries": OWN}, {"name": 3}, "trap"]
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "job.json").write_text("{}")
    sweep = {
        "experiment": "mine",
        "where": "local",
        "workers": 1,
        "slurm": {},
        "points": [{"run": "1-a", "overrides": {}}],
    }
    (place / "sweep" / "sweep.json").write_text(json.dumps(sweep))
    capsule = str(next((run / "capsules").iterdir()))
    at = str(run)
    for words in (
        ["train", "--resume", at], ["train", "--from", at], ["evaluate", at], ["doctor", at], ["replay", capsule],
        ["report", at], ["report", "sweep"], ["runs", "sweep"], ["runs", "compare", at, at], ["status", at],
        ["resume", "sweep"], ["export", at, "--to", "csv"], ["list"], ["train", at], ["launch", at, "--seeds", "2"],
    ):  # fmt: skip
        said(*words)
        assert not (place / "marker").exists(), words
    forget()
    with pytest.raises(UserError):
        metaopt.load(at)
    assert not (place / "marker").exists()
    assert said("list", "--plugin", str(trap)) == (0, "")
    assert (place / "marker").exists()  # the trap would have sprung


def test_another_version_of_a_plugin(trained: Path, place: Path, said: Callable[..., tuple[int, str]]) -> None:
    shutil.copytree(trained / "run", place / "run")
    (place / "mine.py").write_text((trained / "mine.py").read_text() + "# mended\n")
    status, error = said("train", "--resume", "run", "--num-meta-steps", "4", "--plugin", "mine.py")
    assert status == 2 and "run was begun with other code (plugin" in error and "metaopt train --from run" in error
    status, error = said("evaluate", "run", "--plugin", "mine.py")
    assert status == 0 and error.startswith("metaopt: warning: run was made with other code")
    assert len(error.splitlines()) == 1
    (place / "mine.py").write_text((trained / "mine.py").read_text())  # the same in another place
    assert said("train", "--resume", "run", "--num-meta-steps", "4", "--plugin", "mine.py") == (0, "")


# ----- bad input ------------------------------------------------------------------------------------------------------

ENTRY = "import metaopt\n@metaopt.TASKS.register\ndef {}(): ...\n"
BAD = {
    "x = 1\n1 / 0\n": "mine.py, line 2, failed with ZeroDivisionError: division by zero",
    "x = 1\ndef f(:\n": "mine.py, line 2, failed with SyntaxError: invalid syntax",
    "\0": "mine.py failed with SyntaxError: source code string cannot contain null bytes",
    "import no_such_module": "mine.py, line 1, failed with ModuleNotFoundError: No module named 'no_such_module'",
    "import sys\nsys.exit(3)": "mine.py, line 2, ends Python (SystemExit: 3); take that out of the file.",
    "x = 1": "mine.py registers nothing; put `@metaopt.TASKS.register`",
    ENTRY.format("quadratic"): "mine.py, line 2: task family 'quadratic' is registered already, by",
    "import metaopt\n@metaopt.TASKS.register(unbiased=1)\ndef a(): ...": "line 2: trait of task family 'unbiased' is",
    "from other import late\n": "mine.py, line 1, failed with ImportError: cannot import name 'late' from partially",
}


@pytest.mark.parametrize(("source", "message"), BAD.items(), ids=lambda text: text[:20])
def test_bad_plugins(source: str, message: str, place: Path, said: Callable[..., tuple[int, str]]) -> None:
    (place / "mine.py").write_text(source)
    (place / "other.py").write_text("import mine\nlate = 1\n" if "late" in source else "")
    status, error = said("list", "--plugin", "mine.py")
    assert status == 2 and message in error and "\n" not in error


def test_bad_names_of_plugins(place: Path, said: Callable[..., tuple[int, str]]) -> None:
    (place / "text.txt").write_text("x")
    (place / "folder").mkdir()
    for name, message in (
        ("text.txt", "plugin text.txt is no Python file"),
        ("folder", "plugin folder is a folder; give one of its .py files"),
        ("none.py", "there is no plugin none.py"),
        ("no_module", "there is no plugin no_module: neither a file nor a module"),
        ("no.module", "there is no plugin no.module: neither"),
        ("--seed", "--plugin names no plugin; write --plugin FILE.py"),
    ):
        status, error = said("list", "--plugin", name)
        assert status == 2 and message in error, error
    assert said("list", "--plugin")[0] == 2


def test_plugins_that_know_one_another(place: Path, said: Callable[..., tuple[int, str]]) -> None:
    """Twice the same, two that import one another, and one that runs the command that loads it."""
    (place / "a.py").write_text("from . import b\n" + ENTRY.format("in_a"))
    (place / "b.py").write_text("from . import a\n" + ENTRY.format("in_b"))
    given = ["--plugin", "a.py", "--plugin", "b.py", "--plugin", str(place / "a.py")]
    assert said("list", "in_a", "in_b", *given) == (0, "")
    assert [entry.name for entry in TASKS.own()] == ["in_b", "in_a"]
    itself = "import metaopt.cli.entry\n" + ENTRY.format("here") + "metaopt.cli.entry.main(['list', 'here'])\n"
    (place / "itself.py").write_text(itself + "metaopt.cli.entry.main(['train', 'itself.py'])\n")
    status, error = said("list", "here", "--plugin", "itself.py")
    assert status == 0
    assert error == (
        "metaopt: error: itself.py runs itself while it is being read; put what it is to do under "
        "`if __name__ == '__main__':`."
    )


def test_a_factory_that_makes_something_else_or_needs_an_option(
    place: Path, said: Callable[..., tuple[int, str]]
) -> None:
    (place / "mine.py").write_text(ENTRY.format("empty") + ENTRY.format("needy").replace("()", "(size: 'Size')"))
    words = ["train", "quadratic_bp", "--plugin", "mine.py", "--out", "run", "--tasks"]
    assert "'empty' is made by empty as NoneType; return a metaopt.types.TaskFamily" in said(*words, "empty")[1]
    assert "'needy' needs its option size; write needy:size=VALUE." in said(*words, "needy")[1]
    assert said("list", "needy", "--plugin", "mine.py")[0] == 0
    assert not (place / "run").exists()


FAMILY = """
import jax, jax.numpy as jnp, metaopt
count = []
@metaopt.TASKS.register
def odd():
    return metaopt.TaskFamily(
        data=(), sample=lambda key, data: (), init=lambda key, task: {init},
        batch=lambda key, task, data: {batch}, loss=lambda x, task, batch: {loss}, eval_batch=lambda t, d, s: (),
    )
"""
ODD = [
    ("jnp.ones(3)", "()", "x**2", "is to be one number|has to be one number"),
    ("{}", "()", "jnp.zeros(())", "no parameters"),
    ("jnp.ones(3, jnp.int32)", "()", "jnp.sum(x * 1.0)", "int32"),
    ("jnp.ones(3, jnp.complex64)", "()", "jnp.sum(abs(x) ** 2)", "complex"),
]


@pytest.mark.parametrize(("init", "batch", "loss", "message"), ODD)
def test_families_that_no_inner_loop_can_run_on(
    init: str, batch: str, loss: str, message: str, place: Path, said: Callable[..., tuple[int, str]]
) -> None:
    (place / "mine.py").write_text(FAMILY.format(init=init, batch=batch, loss=loss))
    status, error = said("train", "quadratic_bp", "--tasks", "odd", "--plugin", "mine.py", "--out", "run")
    assert status == 2 and "\n" not in error
    assert any(part in error for part in message.split("|")), error
    assert not (place / "run").exists()


# ----- one new file ---------------------------------------------------------------------------------------------------


def test_a_new_file_in_a_room_is_all_that_a_new_entry_takes(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    room = place / "room"
    room.mkdir()
    (room / "spirals.py").write_text('import metaopt\n@metaopt.TASKS.register\ndef spirals():\n    """Turning."""\n')
    import metaopt.tasks

    monkeypatch.setattr(metaopt.tasks, "__path__", [*metaopt.tasks.__path__, str(room)])
    monkeypatch.setattr(TASKS, "_read", False)
    try:
        assert main(["list"]) == 0
        assert "spirals" in capsys.readouterr().out
        assert list(TASKS)[-1] == "spirals" and TASKS.entry("spirals").built_in
    finally:
        TASKS._entries.pop("spirals", None)
        sys.modules.pop("metaopt.tasks.spirals", None)
