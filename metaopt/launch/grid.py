"""From `--sweep FIELD=A,B,C` and files to the points of a grid, each a whole experiment."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from metaopt.choices import Choice, split_outside_quotes
from metaopt.errors import UserError, suggest
from metaopt.experiment import Experiment
from metaopt.experiment.plain import to_json
from metaopt.launch.options import MOST_POINTS

Grid = dict[str, list[str]]  # field with dots -> its values as the command line writes them

SEEDS = "seeds"  # in a file
FILES = (".yaml", ".yml", ".json")
LONGEST_NAME = 100  # characters of a point's folder
DEEPEST = 3  # of fields within fields, in a file


class Point(NamedTuple):
    """One run of a sweep."""

    run: str  # its folder in the sweep's
    overrides: dict[str, str]  # field -> value, as the command line writes it
    experiment: Experiment


# ----- reading --------------------------------------------------------------------------------------------------------


def read_grid(sweeps: tuple[str, ...], seeds: int | None) -> tuple[Grid, int | None]:
    """(fields with their values, number of seeds) of the `--sweep` arguments and `--seeds`.

    Raises:
      UserError: an unknown field, one given twice, or no value.
    """
    grid: Grid = {}
    for text in sweeps:
        name, equals, values = text.partition("=")
        if equals:
            _add(grid, name, split_values(values), text)
        elif Path(text).suffix in FILES:
            entries = _read_file(Path(text))
            held = entries.pop(SEEDS, None)
            if held is not None and (type(held) is not int or not 1 <= held <= MOST_POINTS):
                raise UserError(f"{text}: `seeds` is {_brief(held)}; give a number from 1 to {MOST_POINTS}.")
            seeds = held if seeds is None else seeds  # the command line's comes first
            for name, values in _flat(entries):
                if not isinstance(values, list):
                    shown = _brief(values)
                    raise UserError(f"{text}: `{name}` is {shown}, which is not a list of values; write [{shown}].")
                _add(grid, name, [_text(value, f"{text}: `{name}`") for value in values], text)
        else:
            raise UserError(f"--sweep {text!r} is neither FIELD=A,B,C nor a .yaml or .json file.")
    if seeds is not None and "seed" in grid:
        raise UserError("`seed` is swept, and a number of seeds is given as well; leave one of the two out.")
    return grid, seeds


def split_values(text: str) -> list[str]:
    """`A,B,C`, or `A;B;C` where there is a `;`; spaces around values go."""
    several = split_outside_quotes(text, ";")
    values = [value.strip() for value in (several if len(several) > 1 else split_outside_quotes(text, ","))]
    return values[:-1] if len(several) > 1 and not values[-1] else values


def _add(grid: Grid, name: str, values: list[str], where: str) -> None:
    name = name.strip().removeprefix("--").replace("-", "_")
    hints = _hints()
    choice, _, option = name.rpartition(".")
    twice = [value for value, count in Counter(values).items() if count > 1]
    whole = [value for value in values if "=" in value and ":" not in value]
    wrong = None
    if Choice in (hints.get(choice), *get_args(hints.get(choice))):
        form = f"{choice}=" + ";".join(f":{option}={value}" for value in values)
        wrong = f"options are swept as values of `{choice}`; write --sweep '{form}'."
    elif name not in hints:
        wrong = f"field {suggest(name, hints)}"
    elif name in grid:
        wrong = f"`{name}` is swept twice; give all its values at once."
    elif len(values) > MOST_POINTS:
        wrong = f"`{name}` has {len(values)} values; a sweep has at most {MOST_POINTS} points."
    elif not values or "" in values:
        wrong = f"a value of `{name}` is empty; write {name}=A,B,C."
    elif twice:
        wrong = f"`{name}` has the value {twice[0]} twice."
    elif whole:
        wrong = (
            f"{whole[0]!r} is no value of `{name}`; where a value holds commas, separate values by `;`, and end a lone "
            "one with it."
        )
    if wrong is not None:
        raise UserError(f"--sweep {where}: {wrong}")
    grid[name] = values


def refuse_given_twice(grid: Grid, words: Sequence[str]) -> None:
    """Raises UserError where a field is swept and given as a flag too, unless its values build on the flag's."""
    flags = [word.partition("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")]
    for name in flags:
        if name in grid and not any(word.startswith(":") for value in grid[name] for word in value.split()):
            flag = name.replace("_", "-")
            raise UserError(f"`{name}` is swept, and --{flag} is given as well; leave one of the two out.")


@functools.cache
def _hints() -> dict[str, Any]:
    """Every field with dots -> its type."""

    def under(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, hint in get_type_hints(kind).items():
            if dataclasses.is_dataclass(hint) and hint is not Choice:
                yield from under(hint, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", hint

    return dict(under(Experiment, ""))


def _read_file(path: Path) -> dict[str, Any]:
    import yaml

    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))  # of which JSON is a part
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(held, dict) or not held:
        raise UserError(f"{path} is no sweep; write FIELD: [A, B, C], a line for each field.")
    return held


def _flat(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`meta_optimizer: {learning_rate: [...]}` is `meta_optimizer.learning_rate: [...]`."""
    for name, value in entries.items():
        if isinstance(value, Mapping) and prefix.count(".") < DEEPEST:  # aliases of YAML can hold themselves
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any, where: str) -> str:
    """A value of a file as the command line writes it; a list is several words."""
    words = value if isinstance(value, list) else [value]
    for word in words:  # lists of lists mean nothing, and aliases of YAML could make them endless
        if word is not None and not isinstance(word, (bool, int, float, str)):
            raise UserError(f"{where} has the value {_brief(word)}; give a number, a text, null or a list of these.")
    return " ".join(str(word).lower() if isinstance(word, bool) else str(word) for word in words)


def _brief(value: Any) -> str:
    return reprlib.repr(value)


# ----- points ---------------------------------------------------------------------------------------------------------


def expand(base: Experiment, grid: Grid, seeds: int | None) -> list[Point]:
    """Every combination of values, the last field changing fastest, and seeds faster still.

    Raises:
      UserError: too many points; a value that its field does not take; two points that are the same experiment.
    """
    count = math.prod(map(len, grid.values())) * (seeds or 1)  # before any of them is made
    if count > MOST_POINTS:
        raise UserError(f"the sweep has {count} points, and {MOST_POINTS} are the most; sweep fewer values or seeds.")
    if seeds is not None:
        grid = {**grid, "seed": [str(base.seed + i) for i in range(seeds)]}
    combinations = list(itertools.product(*grid.values()))
    digits = len(str(len(combinations)))
    points = []
    for number, values in enumerate(combinations, 1):
        overrides = dict(zip(grid, values, strict=True))
        where = f"point {number} of {len(combinations)} ({describe(overrides)})"
        points.append(Point(_folder_name(number, digits, overrides), overrides, _apply(base, overrides, where)))
    first: dict[str, int] = {}
    for number, point in enumerate(points, 1):
        same = first.setdefault(json.dumps(to_json(point.experiment), sort_keys=True), number)
        if same != number:
            raise UserError(f"points {same} and {number} are the same experiment ({describe(point.overrides)}).")
    return points


def describe(overrides: Mapping[str, str]) -> str:
    """`meta_optimizer.learning_rate=1e-3, seed=2`."""
    return ", ".join(f"{name}={value}" for name, value in overrides.items()) or "as it is"


def _apply(base: Experiment, overrides: Mapping[str, str], where: str) -> Experiment:
    if not overrides:
        return base
    from metaopt.experiment.flags import parse_experiment

    words: list[str] = []
    for name, value in overrides.items():
        several = get_origin(_hints()[name]) is tuple
        words += [
            f"--{name.replace('_', '-')}",
            *(filter(None, split_outside_quotes(value, " ")) if several else [value]),
        ]
    try:
        return parse_experiment(words, prog="metaopt launch", base=base)[0]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _folder_name(number: int, digits: int, overrides: Mapping[str, str]) -> str:
    """`03-learning_rate-1e-3-seed-2`: for people, and safe in any shell and file system."""
    last = [name.rpartition(".")[2] for name in overrides]
    parts = [f"{number:0{digits}}"]
    for name, value in overrides.items():
        short = name.rpartition(".")[2]
        name = short if last.count(short) == 1 else name
        parts.append(f"{name}-{re.sub(r'[^A-Za-z0-9._+]+', '-', value).strip('-.') or 'x'}")
    return "-".join(parts)[:LONGEST_NAME].rstrip("-.")


def check(points: list[Point]) -> None:
    """Every point as `metaopt train` would check it before it begins.

    Raises:
      UserError: the first point that is wrong.
    """
    import jax

    from metaopt.experiment.checks import validate
    from metaopt.inner.devices import use_cpu_devices
    from metaopt.runs.train import prepare

    try:
        # On the CPU, so that accelerators stay free for the jobs, and on as many devices as any point asks for.
        jax.config.update("jax_platforms", "cpu")
        use_cpu_devices(max(point.experiment.num_devices or 1 for point in points))
    except RuntimeError:
        pass  # devices are in use already
    built: set[str] = set()
    for number, point in enumerate(points, 1):
        try:
            validate(point.experiment)
            shape = json.dumps(to_json(dataclasses.replace(point.experiment, seed=0)), sort_keys=True)
            if shape not in built:
                prepare(point.experiment)
            built.add(shape)
        except UserError as error:
            where = f"point {number} of {len(points)} ({describe(point.overrides)})"
            raise UserError(f"{where}: {error}" if len(points) > 1 else str(error)) from None
