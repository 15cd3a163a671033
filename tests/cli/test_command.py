"""The command line: what it accepts, and that every mistake is one line and status 2 with nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import pytest

from metaopt.choices import Choice, choice
from metaopt.cli import entry as cli
from metaopt.errors import UserError
from metaopt.experiment import Experiment, Validation
from metaopt.experiment.checks import validate
from metaopt.experiment.flags import parse_experiment
from metaopt.experiment.plain import to_json
from metaopt.files import write_json
from metaopt.runs.experiments import experiment_files, load_experiment

SOURCE = """'''A tiny one.'''
from metaopt.experiment import Evaluation, Experiment, Log, Validation
from metaopt.choices import choice
EXPERIMENT = Experiment(
    tasks=(choice("quadratic", dim=2),), optimizer=choice("lstm", hidden_size=3),
    estimator=choice("truncated_backprop"), num_meta_steps=2, num_tasks=2, horizon=4, num_devices=1,
    validation=Validation(every=0), log=Log(every=2),
    evaluation=Evaluation(num_tasks=2, horizons=(4,), baselines=("sgd",)),
)
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """An empty folder to work in, with the tiny experiment beside it."""
    jax.devices()  # the command line sets their number only where jax has not yet begun; other tests want their own
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("METAOPT_DATA_DIR", raising=False)
    (tmp_path / "tiny.py").write_text(SOURCE)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


TINY = "../tiny.py"
MISTAKES = [
    (["trian"], "command 'trian' is unknown; did you mean 'train'?"),
    (["train"], "the experiment's name is missing"),
    (["train", "--seed", "3"], "the experiment comes first"),
    (["train", "quadratic_bq"], "experiment 'quadratic_bq' is unknown"),
    (["train", "missing.py"], "there is no file missing.py"),
    (["train", "missing.json"], "cannot read missing.json: No such file or directory."),
    (["train", TINY, "--sed", "3"], "unrecognized options: --sed, 3; did you mean --seed?"),
    (["train", TINY, "--seed", "abc"], "--seed: invalid literal for int()"),
    (["train", TINY, "--seed"], "missing value for argument '--seed'"),
    (["train", TINY, "stray"], "unrecognized options: stray."),
    (["train", TINY, "--objective", "men"], "objective 'men' is unknown; did you mean 'mean'?"),
    (["train", TINY, "--optimizer", "lstn"], "optimizer 'lstn' is unknown; did you mean 'lstm'?"),
    (["train", TINY, "--optimizer", ":hiden_size=3"], "'hiden_size' is unknown; did you mean 'hidden_size'?"),
    (["train", TINY, "--optimizer", "lstm:hidden_size"], "'hidden_size' in 'lstm:hidden_size' is not key=value"),
    (["train", TINY, "--optimizer", "lstm:hidden_size=big"], "hidden_size is 'big', which is not of type int"),
    (["train", TINY, "--optimizer", "lstm:beta1=nan"], "the option beta1, which is nan; give a finite number."),
    (["train", TINY, "--tasks", "quadratc"], "task family 'quadratc' is unknown; did you mean 'quadratic'?"),
    (["train", TINY, "--tasks"], "`tasks` is empty"),
    (["train", TINY, "--estimator", "reparametrised"], "did you mean 'reparameterised'?"),
    (
        ["train", TINY, "--horizon", "50", "--unroll-length", "20"],
        "must be a multiple of `unroll_length` (20); try 40 or 60, or `unroll_length` 10.",
    ),
    (["train", TINY, "--horizon", "0"], "`horizon` (0) must be at least 1."),
    (["train", TINY, "--meta-optimizer.learning-rate", "nan"], "--meta-optimizer.learning-rate is nan; give a finite"),
    (["train", TINY, "--meta-optimizer.learning-rate", "inf"], "--meta-optimizer.learning-rate is inf; give a finite"),
    (["train", TINY, "--num-tasks", "3", "--tasks", "quadratic", "rosenbrock"], "try 2 or 4."),
    (["train", TINY, "--num-tasks", "4", "--num-devices", "3"], "`num_devices` (3) "),
    (
        ["train", TINY, "--estimator", "score_function", "--optimizer", "lstm:noise=per_coordinate"]
        + ["--num-devices", "2"],
        "estimator score_function: the 2 tasks of a family make 1 group of 2, which `num_devices` (2) does not divide; "
        "set it to 1, or raise `num_tasks`.",
    ),
    (
        ["train", TINY, "--estimator", "mixture", "--tasks", "quadratic", "rosenbrock"],
        "estimator mixture: needs at least 2 tasks of each family, for two perturbations; raise `num_tasks`.",
    ),
    (
        ["train", TINY, "--estimator", "persistent_evolution_strategies:staggered=True", "--unroll-length", "2"]
        + ["--tasks", "quadratic", "rosenbrock"],
        "estimator persistent_evolution_strategies: needs at least 2 tasks of each family",
    ),
    (
        ["train", TINY, "--memory", "1e-9"],
        "that a chunk needs however its unroll is cut; raise it, or lower `chunk_size`.",
    ),
    (["train", TINY, "--oracle", "exat"], "oracle 'exat' is unknown; did you mean 'exact'?"),
    (["train", TINY, "--evaluation.baselines", "adm"], "baseline optimizer 'adm' is unknown; did you mean 'adam'?"),
    (["train", TINY, "--evaluation.tasks", "quadratic:dm=3"], "'dm' is unknown"),
    (["train", TINY, "--tasks", "classifier:data=mnist,data_dir=nowhere"], "nowhere"),
    (["train", TINY, "--evaluation.tasks", "classifier:data=digit"], "did you mean 'digits'?"),
    (["train", TINY, "--out", "/proc/metaopt"], "cannot write to the folder /proc/metaopt"),
    (["train", TINY, "--out", ".."], "exists and is not empty; give another --out."),
    (["train", "--resume", "nowhere"], "there is no run folder nowhere."),
    (["train", "--resume", ".."], "is not a run folder, for it has no config.json"),
    (["train", "--resume"], "missing value for argument '--resume'"),
    (["train", "--resume", "run", "--seed", "3"], "--seed cannot change on resuming"),
    (["train", TINY, "--resume", "run"], "leave '../tiny.py' out"),
    (["evaluate"], "name at least one run folder"),
    (
        ["evaluate", "nowhere"],
        "there is no run folder or .safetensors file nowhere; as a pretrained optimizer 'nowhere' is unknown.",
    ),
    (["evaluate", ".."], "is not a run folder"),
    (["evaluate", "x", "--num-tasks", "0"], "--num-tasks (0) must be at least 1."),
    (["evaluate", "x", "--horzon", "3"], "did you mean --horizon?"),
    (["train", TINY, "--evaluation.baselines", "sgd:powr=1"], "'powr' is unknown; did you mean 'power'?"),
    (
        ["train", TINY, "--evaluation.patience", "2"],
        "early stopping needs validation data, and quadratic:dim=2 has none",
    ),
    (["train", TINY, "--evaluation.patience", "0"], "`evaluation.patience` (0) must be at least 1."),
    (["train", TINY, "--evaluation.check-every", "2"], "`check_every` says how often early stopping looks; give"),
    (
        ["evaluate", "networks_bp", "--tasks", "quadratic", "--patience", "2"],
        "leave `patience` out, or take a family with",
    ),
    (
        ["train", TINY, "--optimizer", "langevin:temperature=-1"],
        "`temperature` (-1.0) must be at least 0; 0 is gradient",
    ),
    (["train", TINY, "--optimizer", "simulated_annealing:end=-1"], "`end` (-1.0) must be at least 0"),
    (["train", TINY, "--evaluation.baselines", "langevin:temperature=-1"], "`temperature` (-1.0) must be at least 0"),
    (["inspect", "simulated_annealing:steps=0"], "`steps` is 0; give a whole number of 1 or more."),
    (
        ["train", TINY, "--optimizer", "lion:tunes=beta2"],
        "estimator truncated_backprop never moves beta2 of lion:tunes=beta2, whose steps have no derivative",
    ),
    (["report"], "name at least one run folder"),
    (["report", ".."], "is not a run folder"),
    (["list", "lstn"], "did you mean 'lstm'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("metaopt: error: ") and error.count("\n") == 1, error
    assert message in error
    assert list(place.iterdir()) == []


def test_warnings_are_one_line_each(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the package, and any other of Python's that comes up in a command."""
    words = ["--optimizer", "sgd:learning_rate=20,schedule=cosine,steps=9", "--estimator", "evolution_strategies"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(["train", TINY, *words, "--evaluation.baselines"]) == 0
        lines = capsys.readouterr().err.splitlines()
        with cli._warnings_in_one_line():
            warnings.warn("two\nlines", RuntimeWarning, stacklevel=1)
    assert [line.partition(":learning")[0].partition(": schedule")[0] for line in lines[:2]] == [
        "metaopt: warning: sgd"
    ] * 2, lines
    assert "schedule=cosine lasts 9 steps and the run 4, so that it never comes to its end" in lines[0]
    assert "steps grow along the steepest direction. Take a rate below" in lines[1]
    assert all(line.startswith("metaopt: warning: ") for line in lines)
    assert capsys.readouterr().err.startswith("metaopt: warning: RuntimeWarning: two lines (")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"tasks": [', "is not valid JSON"),
        ("[]", "is [], which is not an object of fields."),
        ('{"sed": 3}', "field 'sed' is unknown; did you mean 'seed'?"),
        (
            '{"tasks": ["quadratic"], "optimizer": "lstm", "estimator": "x", "log": {"every": "5"}}',
            "`log.every` is '5'",
        ),
        ('{"tasks": ["quadratic"], "optimizer": "lstm", "estimator": "x", "rescale": NaN}', "`rescale` is nan"),
        ('{"tasks": ["quadratic"], "optimizer": "lstm"}', "the field `estimator` is missing"),
    ],
)
def test_a_broken_config_file(text: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine.json").write_text(text)
    assert cli.main(["train", "mine.json"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [entry.name for entry in place.iterdir()] == ["mine.json"]


def test_train_evaluate_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", TINY, "--num-meta-steps", "4", "--seed", "1", "--optimizer", "momentum"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "run folder: runs/tiny/001"
    assert out.splitlines()[-1] == "report: runs/tiny/001/report.html"
    assert "quadratic:dim=2, 4 steps, 2 tasks" in out
    run = Path("runs/tiny/001")
    assert json.loads((run / "config.json").read_text())["num_meta_steps"] == 4

    asked = ["--tasks", ":dim=3", "--horizon", "2", "4", "--num-tasks", "3", "--baselines", "sgd"]
    assert cli.main(["evaluate", str(run), *asked]) == 0
    results = json.loads((run / "evaluation.json").read_text())["results"]
    assert [(r["task"], r["horizon"], r["num_tasks"]) for r in results] == [
        ("quadratic:dim=2", 4, 2),
        ("quadratic:dim=3", 2, 3),
        ("quadratic:dim=3", 4, 3),
    ]
    assert cli.main(["evaluate", str(run), *asked]) == 0
    again = json.loads((run / "evaluation.json").read_text())["results"]
    assert again == results
    # With other baselines, here none: one more entry, nothing replaced.
    asked = ["--tasks", "quadratic:dim=3", "--horizon", "2", "--num-tasks", "3", "--baselines"]
    assert cli.main(["evaluate", str(run), *asked]) == 0
    again = json.loads((run / "evaluation.json").read_text())["results"]
    assert again[:3] == results and list(again[3]["optimizers"]) == ["tiny"]
    assert sorted(path.name for path in run.glob("*.png")) == [
        f"quadratic-dim-3-{rest}.png" for rest in ("2-steps-2", "2-steps", "4-steps")
    ]

    (run / "report.html").unlink()
    assert cli.main(["report", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 1000

    copy = place / "copy.safetensors"
    copy.write_bytes((run / "optimizer.safetensors").read_bytes())
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), str(copy), "--num-tasks", "2", "--baselines", "sgd", "--out", "both"]) == 0
    (result,) = json.loads((place / "both" / "evaluation.json").read_text())["results"]
    assert set(result["optimizers"]) == {"tiny/001", "copy", "sgd"}
    assert cli.main(["evaluate", str(copy), "--noise", "--out", "noisy"]) == 2  # momentum has none
    assert "copy: trained without step noise; leave --noise out." in capsys.readouterr().err
    assert not Path("noisy").exists()
    per_task = [result["optimizers"][name]["per_task"]["final"] for name in ("tiny/001", "copy")]
    assert per_task[0] == per_task[1]
    assert len(list((place / "both").glob("*.png"))) == 1

    assert cli.main(["train", "--resume", str(run), "--num-meta-steps", "6"]) == 0
    assert sum(1 for _ in open(run / "metrics.jsonl")) == 6


def test_a_run_that_diverges_says_so_and_what_to_try(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", TINY, "--optimizer", "sgd:learning_rate=1e30", "--horizon", "8"]) == 1
    error = capsys.readouterr().err
    warning, error = error.splitlines()
    assert warning.startswith("metaopt: warning: sgd:learning_rate=1e+30: a learning rate of 1e+30 times the curvature")
    assert error.startswith("metaopt: error: no task was alive in 100% of the last 2 meta-steps") and "Try " in error
    rows = [json.loads(line) for line in open("runs/tiny/001/metrics.jsonl")]
    assert [row["diverged"] for row in rows] == [2, 2] and [row["skipped"] for row in rows] == [1, 1]


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of it.\nmore"), MemoryError()])
def test_too_little_memory_is_one_line(
    error: Exception, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("metaopt.runs.train.meta_train", fail)
    assert cli.main(["train", TINY, "--optimizer", "momentum"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("metaopt: error: out of memory") and "--num-tasks" in said and "--chunk-size" in said
    assert said.count("\n") == 1 and not (place / "runs").exists()


@pytest.mark.parametrize(("flags", "count"), [([], 5), (["--num-devices", "3"], 3)])
def test_resuming_takes_the_number_of_devices_that_the_run_began_on(
    flags: list[str], count: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(place / "config.json", to_json(base()))
    write_json(place / "environment.json", {"experiment": "x", "device": {"count": 5}})
    asked: list[Any] = []
    monkeypatch.setattr("metaopt.cli.devices.configure_jax", asked.append)
    monkeypatch.setattr("metaopt.inner.devices.available_cores", lambda: 8)
    monkeypatch.setattr("metaopt.runs.train.resume", lambda path, **options: asked.append(options["num_devices"]))
    assert cli.main(["train", "--resume", ".", *flags]) == 0
    assert asked == [count, 3 if flags else None]


def test_list(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    for word in ("experiments", "quadratic", "lstm", "adam", "truncated_backprop", "pretrained"):
        assert word in out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["train", TINY, "--help"], ["evaluate", "-h"], ["report", "--help"]]
)
def test_help(arguments: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert "usage: metaopt" in capsys.readouterr().out


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from metaopt.cli.entry import main; status = main(['--help']);"
        "slow = {'jax', 'wandb', 'optax', 'flax', 'numpy', 'tyro'} & set(sys.modules);"
        "print(sorted(slow), file=sys.stderr); sys.exit(status or bool(slow))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def base() -> Experiment:
    return Experiment(
        tasks=(choice("quadratic", dim=2),), optimizer=choice("lstm", hidden_size=3), estimator=choice("x", a=1)
    )


def flags(*words: str, on: Experiment | None = None) -> Experiment:
    return parse_experiment(list(words), prog="metaopt train x", base=on or base())[0]


def test_flags_change_their_fields_and_no_others() -> None:
    assert flags() == base()
    changed = flags(
        "--seed", "3", "--num_meta_steps", "10", "--unroll-length", "5", "--meta-optimizer.clip-norm", "None",
        "--validation.multiples", "1", "5", "--log.wandb", "offline",
        "--evaluation.tasks", "rosenbrock", "quadratic:dim=9",
    )  # fmt: skip
    assert (changed.seed, changed.num_meta_steps, changed.unroll_length) == (3, 10, 5)
    assert changed.meta_optimizer.clip_norm is None and changed.validation == Validation(multiples=(1, 5))
    assert changed.log.wandb == "offline"
    assert changed.evaluation.tasks == (Choice("rosenbrock"), choice("quadratic", dim=9))
    assert (changed.tasks, changed.optimizer) == (base().tasks, base().optimizer)


def test_choices_are_replaced_or_built_upon() -> None:
    assert flags("--oracle", "exact").oracle == Choice("exact")
    assert flags("--oracle", ":a=1").oracle == choice("minibatch", a=1)
    assert flags("--optimizer", "lstm:alpha=shared").optimizer == choice("lstm", alpha="shared")
    assert flags("--optimizer", ":alpha=shared").optimizer == choice("lstm", hidden_size=3, alpha="shared")
    assert flags("--tasks", ":dim=4", "rosenbrock").tasks == (choice("quadratic", dim=4), Choice("rosenbrock"))
    with pytest.raises(UserError, match="has no task family to build on"):
        flags("--evaluation.tasks", ":dim=4")


@pytest.mark.parametrize("name", sorted(experiment_files()))
def test_every_experiment_that_comes_along_is_sound(name: str) -> None:
    experiment = validate(load_experiment(name)[1])
    assert flags(on=experiment) == experiment
