"""Experiments to plain JSON and back, strictly: what cannot be read exactly is refused in one line."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args, get_origin

import cattrs
from cattrs.errors import BaseValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

import metaopt
from metaopt.choices import Choice, parse_choice
from metaopt.errors import UserError, suggest
from metaopt.experiment import Experiment
from metaopt.numbers import out_of_range

VERSION = 2  # of the format; what metaopt itself wrote without one is of the first
# What optimizers did where version 1 named no option: defaults that have changed since.
MEANT_BY_1 = (Choice("lstm", {"features": "all", "noise": "none"}),)


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain JSON values, with the version of their format; `from_json` gives it back."""
    return {"version": VERSION, **_plain(experiment)}


def from_json(values: Any, where: str = "the configuration", *, unversioned: int = VERSION) -> Experiment:
    """The experiment that plain JSON values describe. Those of an older version mean what they meant then.

    Args:
      unversioned: the version of values that name none: the current one where a user wrote them, 1 in metaopt's files.

    Raises:
      UserError: a newer version, an unknown, missing, ill-typed or non-finite field; one line that begins with `where`.
    """
    version = values.get("version", unversioned) if isinstance(values, Mapping) else unversioned
    if version not in (1, VERSION) or not isinstance(version, int) or isinstance(version, bool):
        raise UserError(
            f"{where} is of format version {version!r}, and metaopt {metaopt.__version__} reads {VERSION}; "
            "use the version of metaopt that wrote it."
        )
    try:
        return _converter().structure(upgraded(values, version), Experiment)
    except (BaseValidationError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: {_first_line(error)}") from None


def upgraded(values: Any, unversioned: int = 1) -> Any:
    """Plain values as the current version writes them, without the version; what is no experiment stays as it is."""
    if not isinstance(values, Mapping):
        return values
    version = values.get("version", unversioned)
    values = {name: value for name, value in values.items() if name != "version"}
    picked = values.get("optimizer")
    meant = {choice.name: choice.options for choice in MEANT_BY_1}
    if version != 1 or not isinstance(picked, Mapping) or picked.get("name") not in meant:
        return values
    options = picked.get("options", {})
    if not isinstance(options, Mapping):
        return values
    old = {name: value for name, value in meant[picked["name"]].items() if name not in options}
    return {**values, "optimizer": {**picked, "options": {**options, **old}}}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if getattr(value, "shape", None) == ():
        return cast(Any, value).item()  # a number of numpy, which is not loaded here
    return value


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind, accepted in ((bool, bool), (int, int), (str, str), (float, (int, float))):
        converter.register_structure_hook(kind, _scalar(kind, accepted))
    converter.register_structure_hook(Choice, _choice)
    converter.register_structure_hook_factory(_is_record, lambda kind: _record(kind, converter))
    converter.register_structure_hook_func(lambda kind: get_origin(kind) is Literal, _literal)
    converter.register_structure_hook_factory(
        lambda kind: get_origin(kind) is tuple, lambda kind: _sequence(get_args(kind)[0], converter)
    )
    return converter


def _scalar(kind: type, accepted: Any) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise _IllTyped(f"is {value!r}, which is not of type {kind.__name__}; give a value of that type.")
        if wrong := out_of_range(value, most=2**32):  # a seed's range
            raise _IllTyped(wrong)
        return kind(value)

    return structure


class _IllTyped(ValueError):
    """What is wrong with one field's value, without the field's name."""


def _literal(value: Any, kind: Any) -> Any:
    known = get_args(kind)
    if not isinstance(value, str) or value not in known:
        close = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? It" if close else "it"
        raise _IllTyped(f"is {value!r}; {hint} must be one of {', '.join(known)}.")
    return value


def _sequence(kind: Any, converter: cattrs.Converter) -> Any:
    listed = list[kind]

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise _IllTyped(f"is {value!r}, which is not a list; give a list.")
        return tuple(converter.structure(list(value), listed))

    return structure


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind is not Choice


def _record(kind: type, converter: cattrs.Converter) -> Any:
    structure_fields = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _IllTyped(f"is {value!r}, which is not an object of fields.")
        return structure_fields(value, kind)  # type: ignore[call-arg]

    return structure


def _choice(value: Any, _: Any) -> Choice:
    if isinstance(value, Choice):
        value = {"name": value.name, "options": dict(value.options)}
    if isinstance(value, str):
        value = _plain(parse_choice(value))
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str) or set(value) - {"name", "options"}:
        raise _IllTyped(f'is {value!r}; write {{"name": NAME, "options": {{...}}}} or "NAME:key=value,...".')
    options = value.get("options", {})
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise _IllTyped(f"has the options {options!r}, which are not an object of named values.")
    return Choice(value["name"], {key: _option(key, entry) for key, entry in options.items()})


def _option(key: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_option(key, entry) for entry in value)
    if wrong := out_of_range(value):
        raise _IllTyped(f"has the option {key}, which {wrong}")
    if not isinstance(value, (bool, int, float, str, type(None))):
        raise _IllTyped(f"has the option {key}={value!r}; give a number, a text, true, false, null or a list of these.")
    return value


def _first_line(error: BaseException) -> str:
    """The first mistake in one line that names its field: "`log.every` is 'abc', which ..."."""
    # An unknown field explains a missing one: it comes first.
    for path, leaf in sorted(_leaves(error), key=lambda found: not isinstance(found[1], ForbiddenExtraKeysError)):
        field = ".".join(path)
        if isinstance(leaf, ForbiddenExtraKeysError):
            extra = sorted(leaf.extra_fields)[0]
            known = [f.name for f in dataclasses.fields(leaf.cl)]  # type: ignore[arg-type]
            return f"field {suggest('.'.join([*path, extra]), ['.'.join([*path, name]) for name in known])}"
        if isinstance(leaf, KeyError):
            return f"the field `{field or leaf.args[0]}` is missing; add it."
        if isinstance(leaf, _IllTyped):
            return f"`{field}` {leaf}" if field else f"it {leaf}"
        return f"`{field}`: {leaf}" if field else str(leaf)
    return str(error)


def _leaves(error: BaseException, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], BaseException]]:
    if not isinstance(error, BaseValidationError):
        yield path, error
        return
    for inner in error.exceptions:
        notes = [note for note in getattr(inner, "__notes__", ()) if type(note) is not str]
        names = tuple(str(getattr(note, "name", None) or getattr(note, "index", "")) for note in notes)
        yield from _leaves(inner, (*path, *names))
