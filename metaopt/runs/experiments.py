"""Which experiment is meant, by name or path."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import metaopt
from metaopt import plugins
from metaopt.errors import UserError, suggest
from metaopt.experiment import Experiment
from metaopt.experiment.plain import VERSION, from_json
from metaopt.files import read_json
from metaopt.runs.folder import CONFIG, experiment_name


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
    experiment = getattr(plugins.run_file(path, str(path), anew=True), "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} defines no EXPERIMENT of type metaopt.Experiment; add `EXPERIMENT = Experiment(...)`.")
    return experiment
