"""An experiment's fields as flags on top of its own values, read by tyro; and any other command's arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import tyro

from metaopt.choices import Choice, parse_choice
from metaopt.errors import UserError
from metaopt.experiment import Experiment
from metaopt.numbers import out_of_range

Arguments = TypeVar("Arguments")


@dataclass(frozen=True)
class TrainArguments(Experiment):
    """Meta-trains an optimizer into a run folder, evaluates it beside tuned baselines and writes the report."""

    out: str | None = None  # the run's folder; None: the next number in runs/EXPERIMENT


def parse(kind: type[Arguments], arguments: list[str], *, prog: str, default: Arguments | None = None) -> Arguments:
    """The arguments as a record; `--help` prints and raises SystemExit(0).

    Raises:
      UserError: unknown, missing or ill-typed arguments, in one line with a suggestion.
    """
    refuse_repeated(arguments)
    said = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(
                kind,
                args=arguments,
                prog=prog,
                registry=_registry(),
                config=(tyro.conf.ConsolidateSubcommandArgs, tyro.conf.CascadeSubcommandArgs),
                **options,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_one_line(said.getvalue())} See `{prog} --help`.") from None
    _check_numbers(parsed)
    return parsed


def _check_numbers(parsed: Any, prefix: str = "") -> None:
    for entry in dataclasses.fields(parsed):
        value, flag = getattr(parsed, entry.name), prefix + entry.name.replace("_", "-")
        if dataclasses.is_dataclass(value) and not isinstance(value, Choice):
            _check_numbers(value, f"{flag}.")
        for part in value if isinstance(value, tuple) else (value,):
            if wrong := out_of_range(part, most=2**32):  # a seed's range
                raise UserError(f"--{flag} {wrong}")


def refuse_repeated(words: Sequence[str], *, but: Collection[str] = ()) -> None:
    """Refuses a flag that is given twice, of which the last would count in silence.

    Args:
      but: flags that may be, as they are written.

    Raises:
      UserError: it names the flag.
    """
    flags = [word.partition("=")[0].replace("_", "-") for word in words if re.match(r"--\w", word)]
    for flag, times in Counter(flags).items():
        if times > 1 and flag not in but:
            raise UserError(f"{flag} is given {times} times; give it once, with all that it is to hold.")


def _registry() -> tyro.constructors.ConstructorRegistry:
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Choice] | None:
        if info.type is not Choice:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="NAME:KEY=VALUE,...",
            # An empty name stands for the default's, which `merged` fills in.
            instance_from_str=lambda words: parse_choice(words[0], base=Choice("")),
            is_instance=lambda value: isinstance(value, Choice),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _one_line(text: str) -> str:
    """tyro's framed message as one line: what is wrong, and the flags it suggests."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    parts: list[list[str]] = [[]]  # between the frame's rules
    for line in (line.strip(" │") for line in lines):
        if line and set(line) <= {"─", "-"}:
            parts.append([])
        elif line and line[0] not in "╭╰":
            parts[-1].append(line)
    if "╭" not in text:  # the title is a part of its own where the output is not UTF-8
        del parts[0]
    wrong = re.sub(r"^Error parsing (\S+):", r"\1:", " ".join(parts[0])).rstrip(".")
    hints = [part for part in parts[1:] if part[0].startswith(("Perhaps you meant", "Arguments similar to"))]
    close = [part[1].split()[0].rstrip(",") for part in hints if len(part) > 1]
    wrong = wrong[:1].lower() + wrong[1:]
    return f"{wrong}; did you mean {' or '.join(close)}?" if close else f"{wrong}."


def parse_experiment(arguments: list[str], *, prog: str, base: Experiment) -> tuple[Experiment, str | None]:
    """(the experiment with the flags' values in place of its own, --out).

    Raises:
      UserError: as `parse`.
    """
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    parsed = parse(TrainArguments, arguments, prog=prog, default=TrainArguments(**values))
    chosen = {name: getattr(parsed, name) for name in values}
    chosen |= {name: merged(chosen[name], value) for name, value in values.items() if isinstance(value, Choice)}
    chosen["tasks"] = merged_all(parsed.tasks, base.tasks)
    tasks = merged_all(parsed.evaluation.tasks, base.evaluation.tasks)
    chosen["evaluation"] = dataclasses.replace(parsed.evaluation, tasks=tasks)
    return Experiment(**chosen), parsed.out


def merged(picked: Choice, base: Choice) -> Choice:
    """A choice written `:key=value,...` on top of another; any other as it is."""
    return picked if picked.name else Choice(base.name, {**base.options, **picked.options})


def merged_all(picked: tuple[Choice, ...], base: tuple[Choice, ...]) -> tuple[Choice, ...]:
    """`merged` for lists: on top of the only one there was, or of the one in the same place.

    Raises:
      UserError: there is none in its place.
    """
    if any(not one.name and len(base) != 1 and index >= len(base) for index, one in enumerate(picked)):
        raise UserError("`:key=value` has no task family to build on in this place; write NAME:key=value,...")
    return tuple(
        one if one.name else merged(one, base[0] if len(base) == 1 else base[index]) for index, one in enumerate(picked)
    )
