"""What can be named: registries of factories with their traits.

An entry registers itself where it is written, `@TASKS.register`, and says there what others need to know of it. The
folder of a registry's own entries is imported when it is first read; a user's file is another such place.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, TypeVar

from metaopt.choices import Choice
from metaopt.errors import UserError, suggest

# ----- traits: what is known of an entry before it is built -----------------------------------------------------------


@dataclass(frozen=True)
class TaskTraits:
    """Of a task family; the rest stands in the `TaskFamily` itself."""

    places: tuple[str, ...] = ()  # options that say where its data lie and not what it is, left out of its name


@dataclass(frozen=True)
class OracleTraits:
    """Of an oracle."""

    default: bool = False  # a family that brings an oracle of its own keeps it


def _none(options: Mapping[str, Any]) -> str | None:
    return None


@dataclass(frozen=True)
class OptimizerTraits:
    """Of an optimizer: from its options to the setting that mends something, None where none does or it is taken."""

    shorter_steps: Callable[[Mapping[str, Any]], str | None] = _none  # the option that a fresh φ's steps grow with
    scale_free: Callable[[Mapping[str, Any]], str | None] = _none  # its inputs do not change with the loss's scale
    shrinking_steps: Callable[[Mapping[str, Any]], str | None] = _none  # its step length can go on shrinking
    flat: tuple[str, ...] = ()  # settings in which its steps have no slope: a search moves them, no meta-gradient does
    untuned: bool = False  # taken as it comes: as a baseline, nothing of it is searched
    inputs_in_words: str = ""  # what its network reads, for a reader who meets the names first


@dataclass(frozen=True)
class EstimatorTraits:
    """Of an estimator of the meta-gradient."""

    differentiates: bool = False  # losses of the inner run with respect to φ
    sides: int = 1  # inner runs of each task side by side, at φ + σε and φ - σε
    noise: Literal["never", "drawn", "needed"] = "drawn"  # whether it draws the optimizer's step noise
    windows: bool = True  # whether it may run a part of the horizon a meta-step
    unbiased_windows: bool = False  # whether windows leave its expectation as it is
    cost: float = 1.0  # of a meta-step, in those of back-propagation through the same runs, about
    # The parts of φ that it can move, its option `of`, by default the first: the optimizer, the task's hyperparameters.
    moves: tuple[Literal["optimizer", "task", "both"], ...] = ("optimizer", "task", "both")
    short: str | None = None  # what it is called where there is little room


@dataclass(frozen=True)
class ObjectiveTraits:
    """Of a meta-objective."""

    scale_free: bool = False  # a task's scale has no part in its gradient, so families need no balancing
    positive: bool = False  # it divides by losses or takes their logarithm, and has to know their lower bound


OWN_ENTRIES = "One of your own comes with --plugin FILE, or in Python with the import of its file."

Traits = TypeVar("Traits")


class UnknownEntry(UserError, KeyError):
    """No entry of this name; a plugin that was not given may hold it."""

    where: str = ""  # the file that named it
    record: Sequence[Mapping[str, Any]] = ()  # the plugins that this file had

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name = kind, name
        super().__init__(f"{kind} {suggest(name, known)} {OWN_ENTRIES}")

    def __str__(self) -> str:  # and not in quotes, as that of a KeyError
        return self.args[0]


@dataclass(frozen=True)
class Entry(Generic[Traits]):
    """A factory with what was said of it."""

    name: str
    factory: Callable[..., Any]
    traits: Traits
    module: str  # that registered it
    file: str  # of that module, or what else its code came from

    @property
    def built_in(self) -> bool:
        """Whether it comes with the package."""
        return self.module.partition(".")[0] == __package__


class Registry(Mapping[str, Callable[..., Any]], Generic[Traits]):
    """Name -> factory, in order of registration."""

    def __init__(self, kind: str, traits: type[Traits], room: str, makes: str, *, named: bool = False) -> None:
        self.kind, self.makes = kind, makes
        self._traits, self._room, self._named = traits, room, named
        self._entries: dict[str, Entry[Traits]] = {}
        self._read = False

    def register(self, factory: Any = None, /, *, name: str | None = None, **traits: Any) -> Any:
        """A decorator, with or without traits: `@TASKS.register`, `@ESTIMATORS.register(differentiates=True)`.

        Args:
          name: what the entry is called; the factory's own name unless given.
          traits: fields of this registry's class of traits; all have defaults.

        Raises:
          UserError: the name is another entry's, or cannot be written on the command line, or an unknown trait.
        """
        if factory is None:
            return lambda factory: self.register(factory, name=name, **traits)
        known = [field.name for field in fields(self._traits)]  # type: ignore[arg-type]
        for trait in traits:
            if trait not in known:
                raise UserError(f"trait of {self.kind} {suggest(trait, known) if known else f'{trait!r} is unknown.'}")
        called = name or getattr(factory, "__name__", "")
        if not callable(factory) or not called.isidentifier():
            raise UserError(f"a {self.kind} is registered as a function with a plain name; got {factory!r}.")
        made = factory
        said = self._traits(**traits)
        if self._named:
            made = _names_what_it_makes(factory, called, getattr(said, "places", ()))
        entry = Entry(called, made, said, *_where(factory))
        if not entry.built_in:  # whose entries come first, so that theirs are the names
            self._read_room()
        held = self._entries.get(called)
        # A file that is read twice, as an experiment and as a plugin, brings the same entries again; so does a cell.
        if held is not None and _origin(held) != _origin(entry):
            raise UserError(
                f"{self.kind} {called!r} is registered already, by {held.file}; give it another name, "
                f"`register(name=...)`."
            )
        self._entries[called] = entry
        return made

    def own(self) -> list[Entry[Traits]]:
        """The entries that people's files have registered so far; runs nothing."""
        return [entry for entry in self._entries.values() if not entry.built_in]

    def traits(self, name: str) -> Traits:
        """What an entry's file says of it.

        Raises:
          UserError: there is no such entry.
        """
        return self.entry(name).traits

    def entry(self, name: str) -> Entry[Traits]:
        """The entry of this name.

        Raises:
          UserError: there is none; the line names the closest.
        """
        entries = self._all()
        if name not in entries:
            raise UnknownEntry(self.kind, name, entries)
        return entries[name]

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.entry(name).factory

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, Entry[Traits]]:
        self._read_room()
        importlib.import_module("metaopt.plugins").load()  # by name, as the room: it stands above this file
        return self._entries

    def _read_room(self) -> None:
        if not self._read:
            self._read = True
            room = importlib.import_module(self._room)
            for module in pkgutil.iter_modules(getattr(room, "__path__", ())):
                importlib.import_module(f"{self._room}.{module.name}")


def _where(factory: Callable[..., Any]) -> tuple[str, str]:
    """The module and the file that a factory was written in."""
    inner = inspect.unwrap(getattr(factory, "func", factory))  # of a `functools.partial`, its function
    module = getattr(inner, "__module__", None) or type(inner).__module__
    code = getattr(inner, "__code__", None)
    file = code.co_filename if code else getattr(sys.modules.get(module), "__file__", None)
    return module, file or module


def _origin(entry: Entry[Any]) -> tuple[str, str]:
    """What tells an entry that is registered again from another of its name; each cell of a notebook is a file."""
    where = entry.module if entry.module == "__main__" else entry.file
    return where, getattr(entry.factory, "__qualname__", entry.name)


def _names_what_it_makes(factory: Callable[..., Any], name: str, places: Sequence[str]) -> Callable[..., Any]:
    """The factory, whose results without a name bear that of the choice that makes them."""
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def make(*args: Any, **options: Any) -> Any:
        made = factory(*args, **options)
        if not dataclasses.is_dataclass(made) or getattr(made, "name", None) != "":
            return made
        given = signature.bind(*args, **options).arguments
        changed = {
            key: value
            for key, value in given.items()
            if key not in places and value != signature.parameters[key].default
        }
        return dataclasses.replace(made, name=str(Choice(name, changed)))  # type: ignore[type-var]

    return make


TASKS = Registry("task family", TaskTraits, "metaopt.tasks", "TaskFamily", named=True)
ORACLES = Registry("oracle", OracleTraits, "metaopt.oracles", "Oracle")
OPTIMIZERS = Registry("optimizer", OptimizerTraits, "metaopt.optimizers", "Optimizer")
ESTIMATORS = Registry("estimator", EstimatorTraits, "metaopt.estimators", "MetaGradient")
OBJECTIVES = Registry("objective", ObjectiveTraits, "metaopt.inner.objectives", "Objective")
REGISTRIES = (TASKS, ORACLES, OPTIMIZERS, ESTIMATORS, OBJECTIVES)
