"""Which experiment is meant, by name or path, and whether its fields fit together."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import metaopt
from metaopt.estimators.windows import check_windows
from metaopt.experiment import Curriculum, Experiment, UserError, suggest
from metaopt.runs.folder import CONFIG, experiment_name, read_json
from metaopt.runs.json_config import VERSION, from_json, to_json

# ----- checks across fields -------------------------------------------------------------------------------------------


def validate(experiment: Experiment, where: str = "the experiment") -> Experiment:
    """The experiment itself, when its fields have their types and fit together.

    Raises:
      UserError: one line that names the field and the remedy.
    """
    experiment = from_json(to_json(experiment), where)
    for name, least in _LEAST.items():
        value = _get(experiment, name)
        if value is not None and value < least:
            raise UserError(f"`{name}` ({value}) must be at least {least}.")
    for name in (f"meta_optimizer.{name}" for name in ("learning_rate", "clip_norm", "clip_value", "clip_adaptive")):
        value = _get(experiment, name)
        if value is not None and value <= 0:
            raise UserError(f"`{name}` ({value}) must be above 0.")
    if not 0 <= experiment.seed < 2**32:
        raise UserError(f"`seed` ({experiment.seed}) must lie between 0 and {2**32 - 1}.")
    _check_fraction(experiment)
    _check_curriculum_options(experiment.curriculum)
    if not experiment.tasks:
        raise UserError("`tasks` is empty; name at least one task family.")
    try:
        check_windows(experiment.horizon, experiment.unroll_length or experiment.horizon)
    except ValueError as error:
        raise UserError(str(error)) from error
    families = len(experiment.tasks)
    if experiment.num_tasks > 1 and experiment.num_tasks % families:
        near = " or ".join(str(n) for n in _multiples_near(experiment.num_tasks, families))
        raise UserError(
            f"`num_tasks` ({experiment.num_tasks}) must be 1 or a multiple of the number of families ({families}); "
            f"try {near}."
        )
    each, devices = max(1, experiment.num_tasks // families), experiment.num_devices
    if devices is not None and each % devices:
        fitting = " or ".join(str(n) for n in range(1, each + 1) if each % n == 0)
        raise UserError(
            f"`num_devices` ({devices}) must divide the {each} tasks of a family in a meta-step; try {fitting}."
        )
    multiples = experiment.validation.multiples
    if experiment.validation.every and (
        not multiples or min(multiples) < 1 or list(multiples) != sorted(set(multiples))
    ):
        raise UserError(f"`validation.multiples` ({_listed(multiples)}) must be rising counts of at least 1; try 1 10.")
    if any(horizon < 1 for horizon in experiment.evaluation.horizons):
        raise UserError(f"`evaluation.horizons` ({_listed(experiment.evaluation.horizons)}) must be at least 1 each.")
    return experiment


_LEAST = {
    "num_meta_steps": 1,
    "num_tasks": 1,
    "horizon": 1,
    "unroll_length": 1,
    "rescale": 0,
    "companion": 0,
    "min_batch_size": 1,
    "bfloat16": 0,
    "chunk_size": 1,
    "num_devices": 1,
    "checkpoint_every": 1,
    "meta_optimizer.warmup_steps": 0,
    "curriculum.every": 1,
    "curriculum.patience": 1,
    "validation.every": 0,
    "validation.num_tasks": 1,
    "evaluation.num_tasks": 1,
    "log.every": 1,
}


def _get(experiment: Experiment, name: str) -> Any:
    value: Any = experiment
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _listed(values: tuple[Any, ...]) -> str:
    return " ".join(str(value) for value in values)


def _check_fraction(experiment: Experiment) -> None:
    fraction = experiment.meta_optimizer.final_fraction
    if not 0 <= fraction <= 1:
        raise UserError(f"`meta_optimizer.final_fraction` ({fraction}) must lie between 0 and 1.")
    if experiment.meta_optimizer.schedule == "exponential" and fraction == 0:
        raise UserError("`meta_optimizer.final_fraction` is 0, which an exponential schedule never reaches; try 0.1.")


def _check_curriculum_options(curriculum: Curriculum) -> None:
    for name, kind in (("patience", "validation"), ("every", "fixed")):
        given = getattr(curriculum, name) != getattr(Curriculum(), name)
        if given and curriculum.kind != kind:
            raise UserError(
                f"`curriculum.{name}` is for `curriculum.kind` {kind}, and it is {curriculum.kind}; leave it out or "
                "set the kind."
            )


def _multiples_near(value: int, of: int) -> list[int]:
    below = value // of * of
    return [near for near in (below, below + of) if near > 0]


# ----- by name or path ------------------------------------------------------------------------------------------------


def experiments_folder() -> Path | None:
    """The folder of the experiments that come with the package: the checkout's, else the installed one."""
    package = Path(metaopt.__file__).resolve().parent
    for folder in (package.parent / "experiments", package / "_experiments"):
        if any(folder.glob("*.py")) and (folder.parent == package or (package.parent / "pyproject.toml").exists()):
            return folder
    return None


def experiment_files() -> dict[str, Path]:
    """Name -> file of every experiment that comes with the package."""
    folder = experiments_folder()
    paths = sorted(folder.glob("*.py")) if folder else []
    return {path.stem: path for path in paths if not path.stem.startswith("_")}


def first_line(path: Path) -> str:
    """The first line of a Python file's docstring, read without running the file."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def load_experiment(name_or_path: str) -> tuple[str, Experiment]:
    """(short name, experiment) from a name in experiments/, a .py or .json file, or a run folder's config.json.

    Raises:
      UserError: no such name or file, or it holds no experiment.
    """
    path = Path(name_or_path)
    if os.path.isfile(path / CONFIG):
        path = path / CONFIG
    if path.name == CONFIG:
        experiment = read_config(path)
        return experiment_name(path.parent) or path.resolve().parent.name, experiment
    if path.suffix == ".json":
        return path.stem, read_config(path)
    if path.suffix == ".py":
        return path.stem, _run_file(path)
    known = experiment_files()
    if name_or_path in known:
        return name_or_path, _run_file(known[name_or_path])
    if os.path.exists(path):
        raise UserError(f"{name_or_path} is no experiment; give a name, a .py or .json file, or a run folder.")
    raise UserError(
        f"experiment {suggest(name_or_path, known)} A .py or .json file or a run folder will do as well; there is "
        "none of this name."
    )


def read_config(path: Path) -> Experiment:
    """The experiment in a .json file, checked."""
    return from_json(read_json(path), str(path), unversioned=1 if path.name == CONFIG else VERSION)


def _run_file(path: Path) -> Experiment:
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}; `metaopt list` shows the experiments that can be named.")
    # Its folder is a package for the time being, so that `from .other import EXPERIMENT` works, in any folder.
    folder = path.resolve().parent
    package = types.ModuleType(f"_metaopt_experiments_{zlib.crc32(str(folder).encode()):08x}")
    package.__path__ = [str(folder)]
    spec = importlib.util.spec_from_file_location(f"{package.__name__}.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules |= {package.__name__: package, spec.name: module}
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever the user's file does
        raise UserError(f"{path} failed with {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package.__name__]:
            del sys.modules[name]
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} defines no EXPERIMENT of type metaopt.Experiment; add `EXPERIMENT = Experiment(...)`.")
    return experiment
