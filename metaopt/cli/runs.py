"""`metaopt runs`: run folders listed, compared, renamed, deleted. Needs no jax, so that it answers at once."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metaopt import files
from metaopt.errors import UserError, printable
from metaopt.experiment.plain import to_json
from metaopt.runs import filters, folder, index, tables
from metaopt.runs.console import make_console, say
from metaopt.runs.experiments import experiment_files, load_experiment
from metaopt.runs.index import Fields, Run, differing, value_words

LONGEST_NAME = 255  # bytes of a folder's name, on nearly every file system
USAGE = """\
usage: metaopt runs [FOLDER ...] [--where FIELD=VALUE ...] [--experiment NAME] [--state STATE]
       metaopt runs compare RUN RUN
       metaopt runs rename RUN NAME
       metaopt runs delete RUN ... [--yes]

Lists the run folders below FOLDER, by default runs, with state, meta-steps and the best validation. FIELD is a field of
the configuration such as seed, optimizer or optimizer.hidden_size; besides = there are !=, <, >, <= and >= (in quotes).
STATE is as `metaopt status` has it: waiting, running, finished, interrupted, cancelled, diverged, failed, lost (its
process ended without a word), unknown (an older version's) or unreadable (its config.json is broken). The last column
names what is not as the experiment has it.
`compare` shows the fields in which two configurations differ. `delete` asks first, unless --yes is given; it takes run
folders only, never one that is being trained. A folder called compare, rename or delete is listed as ./compare.
"""


def runs(words: list[str]) -> None:
    """The command.

    Raises:
      UserError: a mistake in the words, or a folder that must be left alone: nothing is changed.
    """
    if any(word in ("-h", "--help") for word in words):
        print(USAGE, end="")
        return
    actions = {"compare": _compare, "rename": _rename, "delete": _delete}
    if words and words[0] in actions:
        actions[words[0]](words[1:])
    else:
        _list(words)


def _checked(words: list[str], count: int | None, usage: str) -> list[str]:
    flags = [word for word in words if word.startswith("--")]
    if flags:
        raise UserError(f"unrecognized option {flags[0]}; write `{usage}`.")
    if not words or (count is not None and len(words) != count):
        raise UserError(f"write `{usage}`.")
    return words


# ----- the list -------------------------------------------------------------------------------------------------------

HEADER = ("run", "experiment", "seed", "state", "meta-steps", "best validation", "begun (UTC)", "size", "changed")
LONGEST_CHANGES = 80  # characters
RIGHT = ("seed", "meta-steps", "best validation", "size")


def _list(words: list[str]) -> None:
    from metaopt.cli.arguments import RunsArguments
    from metaopt.experiment.flags import parse

    parsed = parse(RunsArguments, words, prog="metaopt runs")
    if "--where" in words and not parsed.where:
        raise UserError("--where has no value; write --where FIELD=VALUE, such as optimizer.hidden_size=20.")
    console, places = make_console(), [Path(place) for place in parsed.folders or ("runs",)]
    missing = not parsed.folders and not places[0].is_dir()
    found = list_runs(() if missing else places, where=parsed.where, experiment=parsed.experiment, state=parsed.state)
    if missing:
        say(console, "there is no folder runs here; `metaopt train` makes one, or name a folder of runs.")
    elif found:
        print_runs(found, console, [name for name, _, _ in filters.where(parsed.where)])
    else:
        filtered = " that fulfils the filters" if parsed.where or parsed.experiment or parsed.state else ""
        say(console, f"no run below {', '.join(map(str, places))}{filtered}.")


def list_runs(
    places: Sequence[Path], *, where: Sequence[str] = (), experiment: str | None = None, state: str | None = None
) -> list[Run]:
    """The runs below some folders that fulfil the filters, of which each is checked before the first folder is read.

    Raises:
      UserError: a folder that is not there, or a filter that cannot be read.
    """
    conditions = filters.where(where)
    filters.chosen((), conditions, experiment, state)
    found = list(index.each_run(places))
    fields = index.with_defaults([run.fields for run in found], [name for name, _, _ in conditions])
    found = [run._replace(fields=own) for run, own in zip(found, fields, strict=True)]
    return filters.chosen(found, conditions, experiment, state)


def print_runs(runs: Sequence[Run], console: Any, shown: Sequence[str] = ()) -> None:
    """One line a run.

    Args:
      shown: fields of the configuration that get a column each, such as those filtered by.
    """
    fields = [name for name in dict.fromkeys(shown) if name != "seed"]
    rows = [[*HEADER[:3], *fields, *HEADER[3:]]]
    apart = {}
    for name in {run.experiment for run in runs}:
        apart[name] = _own(name), differing([run.fields for run in runs if run.fields and run.experiment == name])
    for run in runs:
        rows.append([*_cells(run, ["seed", *fields]), changed(run.fields, *apart[run.experiment])])
    for line in tables.aligned(rows, RIGHT):
        say(console, line)


def _own(name: str) -> Fields:
    """Of the experiment that comes with the package under this name, else what every one has unless it says more."""
    return index.fields_of(to_json(load_experiment(name)[1])) if name in experiment_files() else index.bare()


def changed(fields: Fields, own: Fields, first: Sequence[str] = ()) -> str:
    """`horizon=20 optimizer=adam`: what a run has otherwise than its experiment, the seed aside.

    Args:
      first: the fields that come first, those in which the experiment's runs differ.
    """
    other = differing([own, fields])
    # What an experiment of one's own has in any case, its tasks for one, is no change.
    names = [name for name in first if name in other] + [n for n in other if n not in first and (n in own or "." in n)]
    told = [f"{n}={value_words(fields, n).replace(' ', ',')}" for n in names if n in fields and n != "seed"]
    text = " ".join(told)
    return text if len(text) <= LONGEST_CHANGES else f"{text[: LONGEST_CHANGES - 4]} ..."


def _cells(run: Run, fields: Sequence[str]) -> list[str]:
    best = "" if run.best is None else f"{run.best:.4g} at {run.best_at}"
    own = [value_words(run.fields, name) if run.fields else "" for name in fields]
    done = run.done.removesuffix("/?")
    return [run.name, run.experiment, *own, run.state, done, best, run.when, tables.size(index.size_of(run.path))]


# ----- against one another --------------------------------------------------------------------------------------------


def _compare(words: list[str]) -> None:
    first, second = _checked(words, 2, "metaopt runs compare RUN RUN")
    console, rows = make_console(), compare_runs(Path(first), Path(second))
    if not rows:
        say(console, "the two configurations are equal.")
        return
    for line in tables.aligned([("field", first, second), *rows]):
        say(console, line)


def compare_runs(first: Path, second: Path) -> list[tuple[str, str, str]]:
    """(field, its value in the first, in the second) where two runs' configurations differ.

    Raises:
      UserError: one of them is no run folder.
    """
    configs = index.with_defaults(
        [index.fields_of(files.read_json(_run(path) / folder.CONFIG)) for path in (first, second)]
    )
    return [(name, value_words(configs[0], name), value_words(configs[1], name)) for name in differing(configs)]


def _run(path: Path) -> Path:
    if not index.is_run(path):
        folder.open_run(path)  # raises what is wrong, with a hint, in nearly all cases
        raise UserError(f"{path} is not a run folder; give the folder that `metaopt train` printed.")
    return path


# ----- changing -------------------------------------------------------------------------------------------------------


def _rename(words: list[str]) -> None:
    run, name = _checked(words, 2, "metaopt runs rename RUN NAME")
    print(printable(str(rename_run(Path(run), name))))


def rename_run(path: Path, name: str) -> Path:
    """Gives a run folder another name in the folder it lies in. Returns its new place.

    Raises:
      UserError: no run folder, one that is trained at this moment or belongs to a sweep, or a name that cannot be.
    """
    _own_folder(path)
    if not name.strip() or name.startswith(".") or "/" in name or not name.isprintable():  # dots hide it from the list
        what = "one without a slash, control letters or a dot before it: the run stays where it is"
        raise UserError(f"{name[:40]!r} is no name for a run; give {what}.")
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(f"{name[:40]!r}... is too long for a name; give one of at most {LONGEST_NAME} bytes.")
    new = path.parent / name if path.name else path.resolve().parent / name
    if new.exists() or new.is_symlink():
        raise UserError(f"{new} exists; give another name.")
    sweep = next((parent for parent in path.resolve().parents[:3] if (parent / folder.SWEEP).is_file()), None)
    if sweep is not None:
        raise UserError(f"{path} belongs to the sweep {sweep}, which knows it by its name; I do not rename it.")
    with folder.locked(path):
        try:
            path.rename(new)
        except OSError as error:
            raise UserError(f"cannot rename {path}: {error.strerror}.") from None
    return new


def _delete(words: list[str]) -> None:
    names = _checked([word for word in words if word != "--yes"], None, "metaopt runs delete RUN ... [--yes]")
    gone = delete_runs([Path(name) for name in names], agreed=(lambda _: True) if "--yes" in words else ask)
    print("\n".join(f"deleted {printable(str(path))}" for path in gone) if gone else "nothing was deleted.")


def delete_runs(paths: Sequence[Path], *, agreed: Callable[[str], bool]) -> list[Path]:
    """Deletes run folders once all are known to be such and the question is answered with yes. Returns what went.

    Links within a folder are deleted as links; what they point at stays.

    Args:
      agreed: asked once, with what would go.

    Raises:
      UserError: one of them is no run folder, is a link, is trained at this moment or holds other runs: nothing goes.
    """
    unique = list({path.resolve(): path for path in paths}.values())
    for path in unique:
        if (path / folder.SWEEP).is_file():
            command = f"metaopt runs delete {shlex.quote(str(path))}/*/"
            raise UserError(f"{path} is a sweep, and I delete runs: `{command}` deletes those of the sweep.")
        _own_folder(path)
    with contextlib.ExitStack() as held:
        for path in unique:
            held.enter_context(folder.locked(path))  # until it is gone, so that nobody resumes what goes
        size = tables.size(sum(index.size_of(path) for path in unique))
        if not agreed(f"Delete {', '.join(printable(str(path)) for path in unique)} ({size}) for good?"):
            return []
        for path in unique:
            _remove(path)
    return unique


def _remove(path: Path) -> None:
    try:
        # The config goes last: a deletion that was cut short leaves a run folder, which can be deleted once more.
        for entry in path.iterdir():
            if entry.name != folder.CONFIG:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (path / folder.CONFIG).unlink()
        path.rmdir()
    except OSError as error:
        raise UserError(f"cannot delete {error.filename or path}: {error.strerror}; what is left stays.") from None


def _own_folder(path: Path) -> None:
    """A run folder itself: no link to one, no ancestor of this process's folder, without other runs below."""
    if Path(str(path).rstrip("/")).is_symlink():
        raise UserError(f"{path} is a link; name the folder that it points at.")
    _run(path)
    here = path.resolve()
    if here in (Path.cwd(), *Path.cwd().parents):
        raise UserError(f"{path} holds the folder that you are in; go elsewhere first.")
    below = (entry for entry in sorted(here.iterdir()) if entry.is_dir() and not entry.is_symlink())
    inner = next((run for entry in below for run in index.find_runs(entry)), None)
    if inner is not None:
        raise UserError(f"{path} holds other runs, such as {inner}; deal with these first.")


def ask(question: str) -> bool:
    """Asks on the terminal.

    Raises:
      UserError: there is none.
    """
    if not sys.stdin.isatty():
        raise UserError("there is no terminal to ask on; add --yes.")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
