"""The floors of the house, read from the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import metaopt

PACKAGE = Path(metaopt.__file__).parent
FLOORS = {
    "types": -1,  # the words of all rooms, on the ground floor too
    "trees": 0,
    "data": 0,
    "tasks": 1,
    "oracles": 1,
    "optimizers": 1,
    "objectives": 1,
    "unroll": 2,
    "batching": 2,
    "estimators": 3,
    "experiment": 4,
    "meta_optimizer": 5,
    "training": 6,
    "evaluation": 6,
    "analysis": 7,
    "runs": 8,  # a run's report holds pictures, which analysis draws
    "launch": 9,
    "commands": 10,
    "cli": 11,
}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or not path.name.startswith("__")]


def room(module: str) -> str:
    """`metaopt.tasks.quadratic` -> `tasks`."""
    return (module.split(".") + [""])[1]


def imports(path: Path) -> Iterator[str]:
    """Every module of this package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("metaopt"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "metaopt":
            names = [f"metaopt.{alias.name}" for alias in node.names] if node.module == "metaopt" else [node.module]
            yield from (name for name in names if name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the package's root"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_lower_floors_or_its_own_room(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in FLOORS, f"{path.name} has no floor; give it one here and in the design"
    for module in imports(path):
        other = room(module)
        if other in ("", "__version__") or other == own:  # `import metaopt` itself imports nothing
            continue
        assert FLOORS[other] < FLOORS[own], f"{path.relative_to(PACKAGE)} imports {module}"


def test_wandb_appears_in_one_file() -> None:
    def named(path: Path) -> bool:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        plain = (alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names)
        partial = (node.module or "" for node in nodes if isinstance(node, ast.ImportFrom))
        return any(name.split(".")[0] == "wandb" for name in [*plain, *partial])

    assert [str(path.relative_to(PACKAGE)) for path in FILES if named(path)] == ["runs/wandb_logger.py"]


def test_public_names_are_there_and_none_is_a_module() -> None:
    for name in metaopt._WHERE:
        assert getattr(metaopt, name) is not None
        assert name in dir(metaopt)
        assert not (PACKAGE / name).exists() and not (PACKAGE / f"{name}.py").exists()
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        metaopt.evalute  # noqa: B018 # pyright: ignore
