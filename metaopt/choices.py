"""Choices: an entry of a registry with its options, as text and back, and what it builds."""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import cattrs

from metaopt.errors import UserError, suggest
from metaopt.numbers import out_of_range


@dataclass(frozen=True)
class Choice:
    """One entry of a registry with its settings; as text `classifier:hidden_layers=3,batch_norm=true`.

    In text a value with a comma, or one that is text though it looks like a number, stands in double quotes, with any
    quote within it doubled: `classifier:data=mnist,data_dir="/data/a,b"`.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = ",".join(f"{key}={self.text(key)}" for key in self.options)
        return f"{self.name}:{options}" if options else self.name

    def text(self, key: str) -> str:
        """An option's value as the command line writes it."""
        return _to_text(self.options[key])


def choice(name: str, **options: Any) -> Choice:
    """`choice("quadratic", dim=20)`."""
    return Choice(name, options)


def _to_text(value: Any) -> str:
    if isinstance(value, str):
        as_it_is = value == value.strip() and not set(',"') & set(value) and isinstance(_from_text(value), str)
        return value if as_it_is else '"{}"'.format(value.replace('"', '""'))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _from_text(text: str) -> Any:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1].replace('""', '"')
    words = {"true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return int(text) if str(int(text)) == text else text  # 007 is a name
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text  # so is "none": whether it means None the option's type decides


def split_outside_quotes(text: str, at: str) -> list[str]:
    """The parts of a text between the signs `at`, those within double quotes left alone."""
    parts, quoted = [""], False
    for sign in text:
        quoted ^= sign == '"'
        if sign in at and not quoted:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def parse_choice(text: str, *, base: Choice | None = None) -> Choice:
    """Reads `NAME`, `NAME:key=value,...` or, on top of `base`, `:key=value,...` (keeps its name and other options)."""
    name, _, tail = text.strip().partition(":")
    options: dict[str, Any] = {}
    given: set[str] = set()
    if not name:
        if base is None:
            raise UserError(f"{text!r} names no entry; write NAME:key=value,...")
        name, options = base.name, dict(base.options)
    for part in filter(None, split_outside_quotes(tail, ",")):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key:
            raise UserError(
                f"{part!r} in {text!r} is not key=value; write NAME:key=value,... and a value with a comma in double "
                "quotes, all of it in the shell's: 'NAME:key=\"a,b\"'."
            )
        if '"' in value and (value.count('"') % 2 or not value[0] == value[-1] == '"'):
            raise UserError(f'{part!r} in {text!r} has a stray quote; write key="...", a quote within it doubled.')
        if key in given:
            raise UserError(f"{text!r} gives the option {key} twice; give it once.")
        given.add(key)
        options[key] = _from_text(value)
    if not given and not text.strip(" :"):
        raise UserError(f"{text!r} names no entry and no option; write NAME, NAME:key=value,... or :key=value,...")
    return Choice(name, options)


def build(picked: Choice, registry: Any, *args: Any, others: Sequence[str] = (), **fixed: Any) -> Any:
    """Calls the registry's factory with the choice's options, checked against the factory's annotated signature.

    Args:
      registry: a `metaopt.registry.Registry`.
      others: names of options that were taken out of the choice before, to be suggested.

    Raises:
      UserError: unknown name or option (with a suggestion), an ill-typed value, or what the factory itself refuses.
    """
    factory, kind = registry.entry(picked.name).factory, registry.kind
    hints, parameters = hints_of(factory), inspect.signature(factory).parameters
    known = [name for name in list(parameters)[len(args) :] if name not in fixed]
    fixed = {name: value for name, value in fixed.items() if name in parameters}
    options = {}
    for key, value in picked.options.items():
        if key not in known:
            raise UserError(f"option of {kind} {picked.name!r}: {suggest(key, [*known, *others])}")
        options[key] = typed(value, hints.get(key, Any), f"{kind} {picked.name!r}: {key}")
    for key in known:
        plain = parameters[key].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if plain and parameters[key].default is inspect.Parameter.empty and key not in options:
            raise UserError(f"{kind} {picked.name!r} needs its option {key}; write {picked.name}:{key}=VALUE.")
    try:
        made = factory(*args, **options, **fixed)
    except UserError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{kind} {picked.name!r}: {error}") from error
    except Exception as error:
        if registry.entry(picked.name).built_in:
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{kind} {picked.name!r} raises {said} ({last.filename}, line {last.lineno}).") from error
    wanted = getattr(importlib.import_module("metaopt.types"), registry.makes)
    if not (isinstance(made, wanted) if isinstance(wanted, type) else callable(made)):
        raise UserError(
            f"{kind} {picked.name!r} is made by {getattr(factory, '__qualname__', factory)} as {type(made).__name__}; "
            f"return a metaopt.types.{registry.makes}."
        )
    return made


def hints_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """The types of a factory's options, as far as it tells."""
    try:
        return get_type_hints(factory)
    except (NameError, TypeError, AttributeError):  # of a person's file, which may name what is not there
        return {}


def typed(value: Any, hint: Any, where: str) -> Any:
    """An option's value, if it is of the annotated type.

    Raises:
      UserError: it is not; the line begins with `where`.
    """
    # cattrs would turn "abc" or 1.5 into an int or fail; strings and booleans must not pass for numbers.
    for part in value if isinstance(value, (list, tuple)) else (value,):
        if unusable := out_of_range(part):
            raise UserError(f"{where} {unusable}")
    accepted = {hint, *get_args(hint)}
    text_alone = str in accepted and not accepted & {int, float, bool}
    if text_alone and isinstance(value, int) and not isinstance(value, bool):  # a folder called 2024
        value = str(value)
    if value == "none" and type(None) in get_args(hint):
        return None
    if get_origin(hint) is Literal and value not in get_args(hint):
        close = difflib.get_close_matches(str(value), map(str, get_args(hint)), n=1)
        meant = f"; did you mean {close[0]!r}?" if close else "."
        raise UserError(f"{where} is {_to_text(value)!r}; give one of {', '.join(map(str, get_args(hint)))}{meant}")
    names = str(hint).replace("typing.", "").replace("<class '", "").replace("'>", "")
    remedy = "write a text that looks so in double quotes" if text_alone else "give a value of that type"
    wrong = UserError(f"{where} is {value!r}, which is not of type {names}; {remedy}.")
    if isinstance(value, bool) and "bool" not in names and hint is not Any:
        raise wrong
    if isinstance(value, str) and "str" not in names and "Literal" not in names and hint is not Any:
        raise wrong
    if isinstance(value, float) and "float" not in names and hint is not Any:
        raise wrong
    try:
        return value if hint is Any else cattrs.structure(value, hint)
    except Exception as error:
        raise wrong from error
