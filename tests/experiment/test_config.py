from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaopt.choices import Choice, choice
from metaopt.errors import UserError
from metaopt.experiment import Curriculum, Evaluation, Experiment, Log, MetaOptimizer, Validation
from metaopt.experiment.checks import validate
from metaopt.experiment.flags import parse_experiment
from metaopt.experiment.plain import from_json, to_json
from metaopt.numbers import MOST_FLOAT
from metaopt.runs.experiments import load_experiment

counts = st.integers(1, 10**6)
floats = st.floats(-MOST_FLOAT, MOST_FLOAT)
scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | floats | st.text(max_size=8)
values = scalars | st.lists(scalars, max_size=3).map(tuple)
options = st.dictionaries(st.text(min_size=1, max_size=8), values, max_size=3)
choices = st.builds(Choice, st.text(max_size=8), options)
experiments = st.builds(
    Experiment,
    tasks=st.lists(choices, max_size=3).map(tuple),
    optimizer=choices,
    estimator=choices,
    oracle=choices,
    objective=st.sampled_from(["mean", "last", "log", "relative"]),
    seed=counts,
    unroll_length=st.none() | counts,
    rescale=floats,
    min_batch_size=st.none() | counts,
    meta_optimizer=st.builds(
        MetaOptimizer, learning_rate=floats, clip_norm=st.none() | floats, ema=st.none() | floats, warmup_steps=counts
    ),
    curriculum=st.builds(
        Curriculum,
        kind=st.sampled_from(["none", "fixed", "log_uniform"]),
        horizons=st.lists(counts, max_size=3).map(tuple),
    ),
    validation=st.builds(Validation, every=counts, multiples=st.lists(counts, max_size=3).map(tuple)),
    evaluation=st.builds(Evaluation, tasks=st.lists(choices, max_size=2).map(tuple)),
    log=st.builds(Log, wandb=st.sampled_from(["disabled", "offline", "online"]), project=st.text(max_size=8)),
)


@given(experiments)
def test_experiments_survive_json(experiment: Experiment) -> None:
    assert from_json(json.loads(json.dumps(to_json(experiment), allow_nan=False))) == experiment


def test_numbers_of_numpy_are_numbers() -> None:
    picked = {"tasks": (choice("quadratic"),), "estimator": choice("x")}
    given = Experiment(optimizer=choice("lstm", hidden_size=np.int64(5)), horizon=np.int64(50), **picked)  # pyright: ignore
    plain = json.loads(json.dumps(to_json(given)))
    assert from_json(plain) == Experiment(optimizer=choice("lstm", hidden_size=5), horizon=50, **picked)


def simple() -> dict[str, Any]:
    return to_json(Experiment(tasks=(choice("quadratic"),), optimizer=choice("lstm"), estimator=choice("x")))


def test_whole_numbers_become_floats_and_text_becomes_choices() -> None:
    experiment = from_json({**simple(), "rescale": 1, "optimizer": "lstm:features=all,hidden_size=8"})
    assert type(experiment.rescale) is float
    assert experiment.optimizer == choice("lstm", features="all", hidden_size=8)


def test_a_config_from_before_there_was_an_oracle_has_the_default_one() -> None:
    values = simple()
    del values["oracle"]
    assert from_json(values) == from_json(simple()) and from_json(values).oracle == choice("minibatch")


def test_a_config_from_before_there_were_curricula_has_none() -> None:
    values = simple()
    for name in ("curriculum", "companion", "min_batch_size", "bfloat16"):
        del values[name]
    for name in ("clip_adaptive", "ema"):
        del values["meta_optimizer"][name]
    assert from_json(values) == from_json(simple()) and from_json(values).curriculum.kind == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 3}, "field 'sed' is unknown; did you mean 'seed'?"),
        ({"log": {"evry": 3}}, "field 'log.evry' is unknown; did you mean 'log.every'?"),
        ({"log": {"every": "abc"}}, "`log.every` is 'abc', which is not of type int"),
        ({"log": 3}, "`log` is 3, which is not an object of fields."),
        ({"horizon": 1.5}, "`horizon` is 1.5, which is not of type int"),
        ({"horizon": True}, "`horizon` is True, which is not of type int"),
        ({"rescale": float("nan")}, "`rescale` is nan; give a finite number."),
        ({"meta_optimizer": {"learning_rate": float("inf")}}, "`meta_optimizer.learning_rate` is inf"),
        ({"meta_optimizer": {"name": "adm"}}, "`meta_optimizer.name` is 'adm'; did you mean 'adam'?"),
        ({"unroll_length": "x"}, "`unroll_length` is 'x', which is not of type int"),
        ({"tasks": "quadratic"}, "`tasks` is 'quadratic', which is not a list"),
        ({"tasks": [{"nme": "quadratic"}]}, "`tasks.0` is {'nme': 'quadratic'}"),
        (
            {"optimizer": {"name": "lstm", "options": {"alpha": float("inf")}}},
            "`optimizer` has the option alpha, which is inf",
        ),
        ({"validation": {"multiples": [1, "a"]}}, "`validation.multiples.1` is 'a'"),
    ],
)
def test_what_cannot_be_read_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_json({**simple(), **change}, "config.json")
    text = str(caught.value)
    assert text.startswith("config.json: " + message) and "\n" not in text


def test_a_missing_field_is_named() -> None:
    values = simple()
    del values["tasks"]
    with pytest.raises(UserError, match="the field `tasks` is missing; add it."):
        from_json(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"horizon": 50, "unroll_length": 20},
            r"`horizon` \(50\) must be .* of `unroll_length` \(20\); try 40 or 60, or `unroll_length` 10.",
        ),
        ({"horizon": 5, "unroll_length": 20}, "try 20, or `unroll_length` 5."),
        ({"tasks": ["a", "b", "c"], "num_tasks": 16}, "try 15 or 18."),
        ({"tasks": []}, "`tasks` is empty"),
        ({"num_meta_steps": 0}, r"`num_meta_steps` \(0\) must be at least 1."),
        ({"log": {"every": -1}}, r"`log.every` \(-1\) must be at least 1."),
        ({"seed": -1}, "`seed`"),
        ({"meta_optimizer": {"weight_decay": -0.1}}, r"`meta_optimizer.weight_decay` \(-0.1\) must be at least 0."),
        ({"meta_optimizer": {"learning_rate": 0.0}}, r"`meta_optimizer.learning_rate` \(0.0\) must be above 0."),
        ({"meta_optimizer": {"schedule": "exponential", "final_fraction": 0.0}}, "exponential"),
        ({"validation": {"multiples": [10, 1]}}, "`validation.multiples`"),
        ({"evaluation": {"horizons": [0]}}, "`evaluation.horizons`"),
        ({"curriculum": {"patience": 3}}, "`curriculum.patience` is for `curriculum.kind` validation, and it is none"),
        ({"curriculum": {"kind": "validation", "every": 3}}, "`curriculum.every` is for `curriculum.kind` fixed"),
    ],
)
def test_fields_that_do_not_fit_together(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(from_json({**simple(), **change}))


def test_one_task_a_meta_step_goes_with_any_number_of_families() -> None:
    assert validate(from_json({**simple(), "tasks": ["a", "b", "c"], "num_tasks": 1})).num_tasks == 1


def test_types_of_an_experiment_made_in_python_are_checked_too() -> None:
    wrong = Experiment(tasks=(choice("a"),), optimizer=choice("b"), estimator=choice("c"), seed="3")  # type: ignore
    with pytest.raises(UserError, match="`seed` is '3'"):
        validate(wrong)


SOURCE = """'''First line.'''
from metaopt.experiment import Experiment
from metaopt.choices import choice
EXPERIMENT = Experiment(tasks=(choice("quadratic", dim=3),), optimizer=choice("lstm"), estimator=choice("x"))
"""


def test_load_from_python_json_and_run_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    name, experiment = load_experiment(str(tmp_path / "mine.py"))
    assert name == "mine" and experiment.tasks[0].options == {"dim": 3}
    (tmp_path / "other.json").write_text(json.dumps(to_json(experiment)))
    assert load_experiment(str(tmp_path / "other.json")) == ("other", experiment)
    (tmp_path / "config.json").write_text(json.dumps(to_json(experiment)))
    assert load_experiment(str(tmp_path)) == (tmp_path.name, experiment)


def test_a_run_gives_its_experiments_name_not_its_number(finished: Path) -> None:
    assert load_experiment(str(finished))[0] == load_experiment(str(finished / "config.json"))[0] == "tiny"


def test_an_experiment_may_build_on_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    derived = "import dataclasses\nfrom .mine import EXPERIMENT\nEXPERIMENT = dataclasses.replace(EXPERIMENT, seed=7)\n"
    (tmp_path / "derived.py").write_text(derived)
    before = set(sys.modules)
    assert load_experiment(str(tmp_path / "derived.py"))[1].seed == 7
    assert not {name for name in set(sys.modules) - before if "experiment" in name}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("EXPERIMENT = 3", "defines no EXPERIMENT"),
        ("x = ", "failed with SyntaxError"),
        ("1 / 0", "failed with ZeroDivisionError: division by zero"),
    ],
)
def test_broken_experiment_files(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(UserError, match=message):
        load_experiment(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    "words", [["--horizon", "3", "--horizon", "4"], ["--log.every=2", "--log.every", "3"], ["--num-tasks", "2"] * 2]
)
def test_a_flag_given_twice_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match=f"{words[0].partition('=')[0]} is given 2 times"):
        parse_experiment(words, prog="train", base=from_json(simple()))
