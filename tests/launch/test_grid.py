"""What the command line and files say of a sweep, and the points that come of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metaopt.choices import choice
from metaopt.cli import entry as cli
from metaopt.errors import UserError
from metaopt.experiment import Experiment
from metaopt.launch.grid import check, expand, read_grid, refuse_given_twice, split_values
from metaopt.launch.options import SweepOptions, read_options, read_resume_options
from metaopt.launch.sweeps import start


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3,3e-3", ["1e-3", "3e-3"]),
        (":features=all,:features=scale_free", [":features=all", ":features=scale_free"]),
        ("lstm:hidden_size=4,num_layers=1; rnnprop", ["lstm:hidden_size=4,num_layers=1", "rnnprop"]),
        ("lstm:hidden_size=4,num_layers=1;", ["lstm:hidden_size=4,num_layers=1"]),
        ("1 10;1 5", ["1 10", "1 5"]),
    ],
)
def test_values_are_separated_by_commas_or_else_by_semicolons(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_a_grid_is_every_combination_with_seeds_fastest(tiny: Experiment) -> None:
    fields, seeds = read_grid(("meta-optimizer.learning-rate=1e-3,0.1", "validation.multiples=1 10;2"), 2)
    points = expand(tiny, fields, seeds)
    seen = [
        (p.experiment.meta_optimizer.learning_rate, p.experiment.validation.multiples, p.experiment.seed)
        for p in points
    ]
    assert seen == [(rate, each, seed) for rate in (1e-3, 0.1) for each in ((1, 10), (2,)) for seed in (0, 1)]
    assert points[3].run == "4-learning_rate-1e-3-multiples-2-seed-1"
    assert points[3].overrides == {
        "meta_optimizer.learning_rate": "1e-3",
        "validation.multiples": "2",
        "seed": "1",
    }
    assert [point.run[:2] for point in expand(tiny, {"seed": [str(i) for i in range(12)]}, None)[8:10]] == ["09", "10"]


def test_a_choice_builds_on_the_experiments_own(tiny: Experiment) -> None:
    fields, _ = read_grid(("optimizer=:learning_rate=0.1,adam",), None)
    points = expand(tiny, fields, None)
    assert [point.experiment.optimizer for point in points] == [choice("momentum", learning_rate=0.1), choice("adam")]
    assert [point.run for point in points] == ["1-optimizer-learning_rate-0.1", "2-optimizer-adam"]


def test_fields_that_end_alike_keep_their_whole_names(tiny: Experiment) -> None:
    (point,) = expand(tiny, {"log.every": ["3"], "validation.every": ["9"]}, None)
    assert point.run == "1-log.every-3-validation.every-9"


def test_names_of_folders_are_safe_and_short(tiny: Experiment) -> None:
    (point,) = expand(tiny, {"log.project": ["a b/../c;$(x)" + "y" * 200]}, None)
    assert point.run.startswith("1-project-a-b-..-c-x-yyy") and len(point.run) == 100


def test_files_say_the_same(tmp_path: Path, tiny: Experiment) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "meta_optimizer:\n  learning_rate: [1e-3, 0.1]\n  clip_norm: [null]\n"
        "validation.multiples: [[1, 10], 2]\nseeds: 2\n"
    )
    (tmp_path / "sweep.json").write_text(
        json.dumps({"meta_optimizer.learning_rate": [1e-3, 0.1], "meta_optimizer.clip_norm": [None]})
    )
    fields, seeds = read_grid((str(tmp_path / "sweep.yaml"),), None)
    assert fields == {
        "meta_optimizer.learning_rate": ["1e-3", "0.1"],
        "meta_optimizer.clip_norm": ["None"],
        "validation.multiples": ["1 10", "2"],
    }
    assert seeds == 2 and len(expand(tiny, fields, seeds)) == 8
    assert expand(tiny, fields, None)[0].experiment.meta_optimizer.clip_norm is None
    assert read_grid((str(tmp_path / "sweep.yaml"),), 5)[1] == 5
    assert read_grid((str(tmp_path / "sweep.json"), "seed=1,2"), None)[0] == {
        "meta_optimizer.learning_rate": ["0.001", "0.1"],
        "meta_optimizer.clip_norm": ["None"],
        "seed": ["1", "2"],
    }


@pytest.mark.parametrize(
    ("sweeps", "seeds", "message"),
    [
        (("learning_rat=1",), None, "field 'learning_rat' is unknown"),
        (("meta_optimizer.learning_rat=1",), None, "did you mean 'meta_optimizer.learning_rate'?"),
        (("optimizer.hidden_size=8,20",), None, "write --sweep 'optimizer=:hidden_size=8;:hidden_size=20'."),
        (("evaluation.tasks.dim=2",), None, "write --sweep 'evaluation.tasks=:dim=2'."),
        (("seed=1,2", "seed=3"), None, "`seed` is swept twice"),
        (("seed=1,,2",), None, "a value of `seed` is empty; write seed=A,B,C."),
        (("seed=",), None, "a value of `seed` is empty"),
        (("seed=1,2,1",), None, "`seed` has the value 1 twice"),
        (("seed=1,2",), 3, "`seed` is swept, and a number of seeds is given as well"),
        (("seed",), None, "neither FIELD=A,B,C nor a .yaml or .json file"),
        (("nowhere.yaml",), None, "cannot read nowhere.yaml: No such file or directory."),
        (("optimizer=lstm:hidden_size=4,num_layers=1",), None, "where a value holds commas, separate values by `;`"),
        (
            ("num_tasks=" + ",".join(map(str, range(1, 102))), "horizon=" + ",".join(map(str, range(1, 101)))),
            None,
            "the sweep has 10100 points, and 10000 are the most; sweep fewer values or seeds.",
        ),
        (("num_tasks=2,3",), 10_000, "the sweep has 20000 points, and 10000 are the most"),
        (("seed=" + ",".join(map(str, range(10_001))),), None, "`seed` has 10001 values; a sweep has at most 10000"),
        (("num_tasks=2,x",), None, "point 2 of 2 (num_tasks=x): --num-tasks: invalid literal"),
        (("num_tasks=2,02",), None, "points 1 and 2 are the same experiment (num_tasks=02)."),
        (("num_tasks=2,0",), None, "point 2 of 2 (num_tasks=0): `num_tasks` (0) must be at least 1."),
        (
            ("optimizer=momentum,lstn",),
            None,
            "point 2 of 2 (optimizer=lstn): optimizer 'lstn' is unknown; did you mean",
        ),
        (
            ("evaluation.baselines=adm;adam sgd",),
            2,
            "point 1 of 4 (evaluation.baselines=adm, seed=0): baseline optimizer 'adm'",
        ),
    ],
)
def test_a_mistake_is_one_line(sweeps: tuple[str, ...], seeds: int | None, message: str, tiny: Experiment) -> None:
    with pytest.raises(UserError) as error:
        check(expand(tiny, *read_grid(sweeps, seeds)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_swept_field_is_no_flag_as_well() -> None:
    fields, _ = read_grid(("meta_optimizer.learning_rate=1e-3,3e-3", "optimizer=:hidden_size=8;:hidden_size=20"), None)
    refuse_given_twice(fields, ["--seed", "1", "--optimizer", "lstm"])  # which the swept options build on
    for words in (["--meta-optimizer.learning-rate", "1"], ["--seed=1", "--meta_optimizer.learning_rate=1"]):
        with pytest.raises(UserError, match="is swept, and --meta-optimizer.learning-rate is given as well"):
            refuse_given_twice(fields, words)


@pytest.mark.parametrize("dry", [True, False])
def test_a_folder_that_is_taken_is_refused_before_all_else(
    dry: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for out, message in ((tmp_path, "exists and is not empty"), (tmp_path / "file", "it is a file")):
        with pytest.raises(UserError, match=f"{message}; give another --out"):
            start(SweepOptions("quadratic_rl", fields=("--out", str(out)), seeds=2, dry_run=dry))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1", "is not valid YAML"),
        ("[1]", "is no sweep; write FIELD: [A, B, C]"),
        ("seed: 1", "`seed` is 1, which is not a list of values; write [1]."),
        ("seeds: 0", "`seeds` is 0; give a number from 1 to 10000."),
        ("seeds: 1000000000", "`seeds` is 1000000000; give a number from 1 to 10000."),
        ("seed: &a [*a]", "`seed` has the value [["),
        ("curriculum: &a {curriculum: *a}", "which is not a list of values"),
        ("seed: [{a: 1}]", "`seed` has the value {'a': 1}; give a number"),
    ],
)
def test_a_broken_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_grid((str(tmp_path / "sweep.yaml"),), None)
    assert message in str(error.value) and "\n" not in str(error.value)


# ----- options --------------------------------------------------------------------------------------------------------


def test_options_are_taken_and_the_rest_goes_to_the_experiment() -> None:
    words = "x --sweep a=1,2 b=3 --num-tasks 4 --seeds=5 --sweep=c=6 --out y --workers 2 --dry_run --detach".split()
    options = read_options(words)
    assert (options.experiment, options.fields) == ("x", ("--num-tasks", "4", "--out", "y"))
    assert options.sweeps == ("a=1,2", "b=3", "c=6")
    assert (options.seeds, options.workers, options.where) == (5, 2, "local")
    assert options.dry_run and options.detach
    slurm = read_options("x --where slurm --time 2:00:00 --slurm qos=high --slurm signal-delay-s=300".split())
    assert slurm.slurm == {"time": "2:00:00", "qos": "high", "signal_delay_s": "300"}


NEW_WAY = "one run in several processes is started by `mpirun -n {0} {1}` or, in a Slurm job, `srun {1}`; a sweep needs"


@pytest.mark.parametrize(
    ("words", "number", "command"),
    [
        ("", 2, "metaopt train EXPERIMENT"),
        ("x", 2, "metaopt train x"),
        ("x --processes 3 --seed 1", 3, "metaopt train x --seed 1"),
        ("x --processes=3 --seeds 2", 3, "metaopt train x"),
        ("--resume x --processes", 2, "metaopt train --resume x"),
        ("x --workers 2", 2, "metaopt train x"),
    ],
)
def test_without_a_sweep_one_line_names_what_starts_several_processes(
    words: str, number: int, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["launch", *words.split()]) == 2
    out, error = capsys.readouterr()
    assert error.startswith(f"metaopt: error: {NEW_WAY.format(number, command)}")
    assert error.count("\n") == 1 and out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("x --seeds 2 --resume y", "a sweep begins new runs"),
        ("--seeds 2", "the experiment comes first"),
        ("x --seeds two", "argument --seeds: 'two' must be a number from 1 to 10000; see `metaopt launch --help`."),
        *(
            (f"x --{flag} {text}", f"argument --{flag}: '{text[:40]}' must be a number from 1 to 10000;")
            for flag in ("seeds", "workers")
            for text in ("0", "10001", "1000000000", "1..10", "0-999999999", "9" * 5000)
        ),
        ("x --sweep", "argument --sweep: expected at least one argument"),
        ("x --sweep --seeds 2", "argument --sweep: expected at least one argument"),
        ("x --where slrm", "'slrm' is unknown; did you mean 'slurm'?"),
        ("x --seeds 2 --partition p", "--partition is for --where slurm"),
        ("x --where slurm --detach", "--detach is for --where local"),
        ("x --where slurm --slurm qos", "--slurm 'qos' is not KEY=VALUE."),
    ],
)
def test_options_that_cannot_be(words: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_options(words.split())
    assert message in str(error.value)


def test_resuming_takes_workers_and_nothing_that_was_decided() -> None:
    options = read_resume_options(["runs/x", "--workers", "3"])
    assert (options.experiment, options.workers, options.detach) == ("runs/x", 3, False)
    for words in (["x", "--seeds", "2"], ["x", "--num-tasks", "2"]):
        with pytest.raises(UserError, match=f"unrecognized arguments: {words[1]} 2; see `metaopt resume --help`."):
            read_resume_options(words)


@pytest.mark.parametrize(
    "words", ["--seeds 2 --seeds 3", "--workers 1 --seeds 2 --workers=2", "--seeds 2 --horizon 3 --horizon 4"]
)
def test_a_flag_given_twice_is_refused(words: str) -> None:
    with pytest.raises(UserError, match="is given 2 times; give it once"):
        read_options(["quadratic_rl", *words.split()])


def test_values_in_quotes_are_whole() -> None:
    assert split_values('x:a="b,c",y') == ['x:a="b,c"', "y"]
    assert split_values('x:a="b;c",z=1;y') == ['x:a="b;c",z=1', "y"]
    assert split_values('x:a="b;c";') == ['x:a="b;c"']
