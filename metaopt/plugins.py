"""People's own entries: files and modules that register them, run because a person names them and never otherwise.

`--plugin`, `METAOPT_PLUGINS` and the entry points `metaopt.plugins` name plugins; they are run when a registry is first
read, after the devices are chosen. What a run folder says of plugins is only ever shown and compared.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
import types
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt import files
from metaopt.errors import UserError
from metaopt.registry import REGISTRIES, Entry, Registry

FLAG, VARIABLE, GROUP = "--plugin", "METAOPT_PLUGINS", "metaopt.plugins"
PRIVATE = "_metaopt_own_"  # begins the module names of files that are run
SESSION = "an interactive session"  # that kept no file of its entries

_flags: list[str] = []  # of the command that runs
_loaded: dict[str, str] = {}  # plugin's name, a file's absolute path or a module's -> its module
_running: list[str] = []  # plugins and files in the middle of being run

# ----- which ones -----------------------------------------------------------------------------------------------------


def take(arguments: Sequence[str]) -> list[str]:
    """The arguments without every `--plugin FILE_OR_MODULE`, which are run when a registry is next read.

    Raises:
      UserError: a plugin is not named, or is no file or module.
    """
    rest, words = [], list(arguments)
    _flags.clear()
    while words:
        word = words.pop(0)
        flag, equals, name = word.partition("=")
        if flag != FLAG:
            rest.append(word)
            continue
        if not equals:
            name = words.pop(0) if words and not words[0].startswith("-") else ""
        if not name:
            raise UserError(f"{FLAG} names no plugin; write {FLAG} FILE.py or {FLAG} MODULE.")
        _flags.append(full_name(name))
    return rest


def full_name(name: str) -> str:
    """A plugin's name as it is kept: a file's absolute path, a module's name.

    Raises:
      UserError: there is no such file, or it is no Python file, or the name cannot be a module's.
    """
    path = os.path.abspath(files.place(name))
    is_module = all(part.isidentifier() for part in name.split(".")) and not name.endswith(".py")
    if is_module and (not os.path.exists(path) or os.path.isfile(os.path.join(path, "__init__.py"))):
        return name
    if os.path.isdir(path):
        raise UserError(f"plugin {name} is a folder; give one of its .py files, or a module's name.")
    if not os.path.isfile(path):
        raise UserError(f"there is no plugin {name}; give a .py file, or the name of a module that can be imported.")
    if not name.endswith(".py"):
        raise UserError(f"plugin {name} is no Python file; give one whose name ends in .py.")
    return path


def _named() -> Iterator[tuple[str, str]]:
    """(plugin, who names it, for messages) of all that are asked for."""
    yield from ((name, "") for name in _flags)
    for name in os.environ.get(VARIABLE, "").replace(os.pathsep, ",").split(","):
        if name.strip():
            yield full_name(name.strip()), f" (of {VARIABLE})"
    yield from _installed()


@functools.cache
def _installed() -> tuple[tuple[str, str], ...]:
    points = importlib.metadata.entry_points(group=GROUP)
    return tuple((point.module, f" (of the package {point.dist.name if point.dist else '?'})") for point in points)


def words() -> list[str]:
    """The flags that give another process of this command the plugins of this one, wherever it is started."""
    installed = {name for name, _ in _installed()}
    named = [name for name, _ in _named() if name not in installed]
    files = [owner(entry) for registry in REGISTRIES for entry in registry.own() if entry.module.startswith(PRIVATE)]
    return [word for name in dict.fromkeys((*named, *files)) for word in (FLAG, name)]


# ----- running them ---------------------------------------------------------------------------------------------------


def load() -> None:
    """Runs the plugins that are asked for and have not been; called as a registry is read.

    Raises:
      UserError: one that fails, ends Python, registers nothing, or registers a name that is taken: file, line, why.
    """
    if _running:  # a plugin that reads a registry, or runs a command, sees what is there so far
        return
    for name, whose in _named():
        if name not in _loaded:
            _loaded[name] = _run_plugin(name, whose)


def _run_plugin(name: str, whose: str) -> str:
    before = {id(entry) for registry in REGISTRIES for entry in registry.own()}
    what = f"plugin {name}{whose}"
    module = run_file(Path(name), what) if os.path.isabs(name) else run_module(name, what)
    for registry in REGISTRIES:
        if any(id(entry) not in before or _belongs(entry, module) for entry in registry.own()):
            return module.__name__
    raise UserError(
        f"{what} registers nothing; put `@metaopt.TASKS.register` or one of its sisters on a factory, or leave the "
        "plugin out."
    )


def run_module(name: str, what: str) -> types.ModuleType:
    """Imports a person's module, installed or of the current folder.

    Raises:
      UserError: there is none, or it fails.
    """
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` has it, but after what is installed
        sys.path.append(here)
    _running.append(name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no {what}: neither a file nor a module that can be imported from here; give a .py file, or "
                "install its package."
            ) from None
        raise failure(what, None, error) from error
    except (Exception, SystemExit) as error:
        raise failure(what, None, error) from error
    finally:
        _running.remove(name)


def run_file(path: Path, what: str, *, anew: bool = False) -> types.ModuleType:
    """Runs a person's Python file as a module in the package of its folder, so that `from .other import x` works.

    Args:
      what: it is, for messages.
      anew: the other files of its folder, too, are run again when it imports them.

    Raises:
      UserError: it fails, with its file and line, or runs itself.
    """
    file = path.resolve()
    package = types.ModuleType(f"{PRIVATE}{zlib.crc32(os.fsencode(file.parent)):08x}")
    name = f"{package.__name__}.{file.stem}"
    if name in _running:
        raise UserError(
            f"{path} runs itself while it is being read; put what it is to do under `if __name__ == '__main__':`."
        )
    if anew:
        for old in [old for old in sys.modules if old.partition(".")[0] == package.__name__]:
            del sys.modules[old]
    elif name in sys.modules:  # another plugin imported it
        return sys.modules[name]
    package.__path__ = [str(file.parent)]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(package.__name__, package)
    sys.modules[name] = module
    _running.append(name)
    sys.path.append(str(file.parent))  # for `import other`, as Python does for a script; last, so as to hide nothing
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (Exception, SystemExit)):
            raise failure(what, str(file), error) from error
        raise
    finally:
        sys.path.remove(str(file.parent))
        _running.remove(name)
    return module


def failure(what: str, file: str | None, error: BaseException) -> UserError:
    """What a person's file did wrong, in one line: where, and what Python says of it.

    Args:
      file: whose last line on the way to the error is named; None: the last line of all.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _inside(frame.filename)]
    frames = [frame for frame in frames if frame.filename == file] or frames[-1:]
    where = f", line {frames[-1].lineno}," if frames else ""
    if frames and file is None:
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})"
    if isinstance(error, SyntaxError) and error.lineno:
        inside = "" if error.filename in (file, None) else f" of {error.filename}"
        where = f", line {error.lineno}{inside},"
    if isinstance(error, SystemExit):
        return UserError(f"{what}{where} ends Python (SystemExit: {error.code}); take that out of the file.")
    if isinstance(error, UserError):
        return UserError(f"{what}{where.rstrip(',')}: {error}")
    said = str(error).partition("\n")[0]
    return UserError(f"{what}{where} failed with {type(error).__name__}{': ' if said else ''}{said}")


def _inside(file: str) -> bool:
    return file.startswith(("<frozen", os.path.dirname(importlib.__file__ or "") + os.sep)) or file == __file__


# ----- what a run keeps of them ---------------------------------------------------------------------------------------


def owner(entry: Entry[Any]) -> str:
    """The plugin that brings an entry: a file's absolute path, or a module's name."""
    for name, module in _loaded.items():
        if entry.module == module or entry.module.startswith(f"{module}."):
            return name
    module = sys.modules.get(entry.module)
    file = entry.file
    if "." in entry.module and not entry.module.startswith(PRIVATE) and getattr(module, "__spec__", None):
        return entry.module
    return os.path.abspath(file) if os.path.isfile(file) else SESSION


def _belongs(entry: Entry[Any], module: types.ModuleType) -> bool:
    return entry.module == module.__name__ or entry.module.startswith(f"{module.__name__}.")


def sha256(name: str) -> str:
    """Of a plugin's file, or of all files of its package; empty where there is none."""
    file = name if os.path.isabs(name) else getattr(sys.modules.get(name), "__file__", None) or ""
    path = Path(file)
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    digest = hashlib.sha256()
    for each in files:
        if not each.is_file():
            return ""
        digest.update(each.read_bytes())
    return digest.hexdigest()


def describe(used: Iterable[tuple[Registry[Any], str]]) -> list[dict[str, Any]]:
    """The plugins that bring some entries, each with its name, its hash and these entries, for environment.json."""
    found: dict[str, dict[str, list[str]]] = {}  # plugin -> kind -> names
    for registry, name in used:
        for entry in registry.own():
            if entry.name == name:
                names = found.setdefault(owner(entry), {}).setdefault(registry.kind, [])
                names += [name] if name not in names else []
    return [{"name": name, "sha256": sha256(name), "entries": entries} for name, entries in found.items()]


def sound(record: Any) -> list[dict[str, Any]]:
    """What `describe` made, of a record that a stranger may have written."""
    found = []
    for each in record if isinstance(record, list) else []:
        name, entries = (each.get("name"), each.get("entries")) if isinstance(each, Mapping) else (None, None)
        if isinstance(name, str) and name.isprintable() and isinstance(entries, Mapping):
            lists = {kind: names for kind, names in entries.items() if isinstance(names, list)}
            found.append({"name": name, "sha256": str(each.get("sha256") or ""), "entries": lists})
    return found


def changed(record: Any) -> list[str]:
    """The plugins that bring the recorded entries now and are not the recorded ones, in words."""
    found = []
    for held in sound(record):
        for registry in REGISTRIES:
            for entry in registry.own():
                if not held["sha256"] or entry.name not in held["entries"].get(registry.kind, ()):
                    continue
                now = sha256(owner(entry))
                if now != held["sha256"]:
                    found.append(f"plugin {owner(entry)} {held['sha256'][:8]} -> {now[:8] or 'without a file'}")
    return list(dict.fromkeys(found))
