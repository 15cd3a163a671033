"""The floors of the house, read from the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import metaopt
from metaopt.registry import OBJECTIVES, REGISTRIES

PACKAGE = Path(metaopt.__file__).parent
FLOORS = {
    "types": -1,  # the words of all rooms, on the ground floor too
    "errors": -2,
    "numbers": -2,
    "progress": -1,
    "files": 0,
    "streams": 0,
    "trees": 0,
    "choices": -1,
    "registry": 0,
    "plugins": 1,
    "data": 1,
    "tasks": 2,
    "oracles": 2,
    "optimizers": 2,
    "experiment": 3,
    "inner": 4,
    "estimators": 5,
    "evaluation": 6,
    "training": 7,
    "testing": 7,
    "runs": 8,
    "shipped": 9,
    "benchmark": 9,
    "microscope": 9,
    "report": 10,
    "sinks": 11,  # a tracker is given the page's pictures
    "launch": 11,
    "results": 12,
    "plots": 13,
    "cli": 14,
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

    assert [str(path.relative_to(PACKAGE)) for path in FILES if named(path)] == ["sinks/wandb_logger.py"]


def test_public_names_are_there_and_none_is_a_module() -> None:
    for name in metaopt._WHERE:
        assert getattr(metaopt, name) is not None
        assert name in dir(metaopt)
        assert not (PACKAGE / name).exists() and not (PACKAGE / f"{name}.py").exists()
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        metaopt.evalute  # noqa: B018 # pyright: ignore


# ----- entries say themselves what others need to know of them --------------------------------------------------------

# Words of statistics too: of these only a dispatch over several counts.
AMBIGUOUS = set(OBJECTIVES)
NAMES = {name for registry in REGISTRIES for name in registry}


def strings(node: ast.AST) -> set[str]:
    """The string constants of an expression that is a constant, or a literal tuple, list or set."""
    parts = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def uses_of_names(source: str) -> Iterator[tuple[int, set[str]]]:
    """(line, entries' names) wherever one is compared with, looked for, or a key to dispatch on."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            found = set().union(*map(strings, [node.left, *node.comparators]))
        elif isinstance(node, ast.Dict):
            found = set().union(*map(strings, filter(None, node.keys)))
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) != "Literal":
            found = strings(node.slice)
        elif isinstance(node, ast.MatchValue):
            found = strings(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            looked_up = node.func.attr in ("get", "pop", "index", "startswith", "removeprefix", "traits", "entry")
            found = set().union(*map(strings, node.args)) if looked_up else set()
        else:
            continue
        found &= NAMES
        if found - AMBIGUOUS or (len(found) > 1 and isinstance(node, (ast.Dict, ast.Compare))):
            yield node.lineno, found


def test_the_search_for_names_finds_each_way_to_use_one() -> None:
    sources = [
        'picked.name == "lstm"',
        'name in ("sgd", "adam")',
        '{"mixture": 3.0}',
        'OPTIMIZERS["rnnprop"]',
        'costs.get("mixture", 1.0)',
        'x = {"mean": 1, "log": 2}',
        'match name:\n    case "lstm":\n        pass',
    ]
    for source in sources:
        assert list(uses_of_names(source)), source
    for source in ('{"mean": 1, "median": 2}', 'axes.set_xscale("log")', 'choice("lstm")', 'where == "mean"'):
        assert not list(uses_of_names(source)), source


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_entrys_name_is_dispatched_on_outside_its_own_file(path: Path) -> None:
    own = {name for registry in REGISTRIES for name in registry if registry.entry(name).file == str(path)}
    found = [(line, names - own) for line, names in uses_of_names(path.read_text(encoding="utf-8")) if names - own]
    assert not found, f"{path.relative_to(PACKAGE)}: {found}; let the entry say it, as a trait (metaopt/registry.py)"
