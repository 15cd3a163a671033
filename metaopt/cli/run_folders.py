"""`metaopt runs`: the list of run folders, one's configuration against another's, renaming and deleting."""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metaopt import files
from metaopt.errors import UserError
from metaopt.runs import filters, folder, index
from metaopt.runs.console import say
from metaopt.runs.index import UNREADABLE, RunSummary, differing, value_words

# ----- the list -------------------------------------------------------------------------------------------------------

HEADER = ("run", "experiment", "seed", "state", "meta-steps", "best validation", "begun (UTC)", "size")


def list_runs(
    places: Sequence[Path], *, where: Sequence[str] = (), experiment: str | None = None, state: str | None = None
) -> list[RunSummary]:
    """The runs below some folders that fulfil the filters, of which each is checked before the first folder is read.

    Raises:
      UserError: a folder that is not there, or a filter that cannot be read.
    """
    conditions = filters.where(where)
    filters.chosen((), conditions, experiment, state)
    return filters.chosen(list(index.each_run(places)), conditions, experiment, state)


def print_runs(runs: Sequence[RunSummary], console: Any, shown: Sequence[str] = ()) -> None:
    """One line a run, in aligned columns of plain text, for grep as for a terminal of any width.

    Args:
      shown: fields of the configuration that get a column each, such as those filtered by.
    """
    fields = [name for name in dict.fromkeys(shown) if name != "seed"]
    header = (*HEADER[:3], *fields, *HEADER[3:])
    rows = [_cells(run, fields) for run in runs]
    print_plain([header, *rows], console, right=("seed", "meta-steps", "best validation", "size"))


def _cells(run: RunSummary, fields: Sequence[str]) -> tuple[str, ...]:
    done = f"{run.meta_steps}/{run.planned}" if run.planned else str(run.meta_steps)
    best = "" if run.best is None else f"{run.best:.4g} at {run.best_at}"
    seed, *own = ["" if run.state == UNREADABLE else value_words(run.fields, name) for name in ("seed", *fields)]
    return tuple(
        map(printable, (run.name, run.experiment, seed, *own, run.state, done, best, run.when, size_words(run.size)))
    )


def print_plain(rows: Sequence[Sequence[str]], console: Any, right: Sequence[str] = ()) -> None:
    """Aligned columns, the first row being the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    flush = [name in right for name in rows[0]]
    for row in rows:
        cells = [cell.rjust(w) if end else cell.ljust(w) for cell, w, end in zip(row, widths, flush, strict=True)]
        say(console, "  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Without what would move a terminal's cursor or break the line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def size_words(size: int) -> str:
    """`980 B`, `12 kB`, `3.4 MB`, in thousands."""
    if size < 1000:
        return f"{size} B"
    power = min(int(math.log10(size) // 3), 4)
    value = size / 1000**power
    return f"{value:.1f} {' kMGT'[power]}B" if value < 10 else f"{value:.0f} {' kMGT'[power]}B"


# ----- against one another --------------------------------------------------------------------------------------------


def compare_runs(first: Path, second: Path) -> list[tuple[str, str, str]]:
    """(field, its value in the first, in the second) where two runs' configurations differ.

    Raises:
      UserError: one of them is no run folder.
    """
    configs = [index.fields_of(files.read_json(_run(path) / folder.CONFIG)) for path in (first, second)]
    return [(name, value_words(configs[0], name), value_words(configs[1], name)) for name in differing(configs)]


def _run(path: Path) -> Path:
    if not index.is_run(path):
        folder.open_run(path)  # raises what is wrong, with a hint, in nearly all cases
        raise UserError(f"{path} is not a run folder; give the folder that `metaopt train` printed.")
    return path


# ----- changing -------------------------------------------------------------------------------------------------------


def rename_run(path: Path, name: str) -> Path:
    """Gives a run folder another name in the folder it lies in. Returns its new place.

    Raises:
      UserError: no run folder, one that is trained at this moment or belongs to a sweep, or a name that cannot be.
    """
    _own_folder(path)
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise UserError(f"{name!r} is no name for a folder; give one without a slash: the run stays where it is.")
    new = path.parent / name if path.name else path.resolve().parent / name
    if new.exists() or new.is_symlink():
        raise UserError(f"{new} exists; give another name.")
    _no_sweep(path, "rename")
    with folder.locked(path):
        try:
            path.rename(new)
        except OSError as error:
            raise UserError(f"cannot rename {path}: {error.strerror}.") from None
    return new


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
        size = sum(index.size_of(path) for path in unique)
        words = ", ".join(printable(str(path)) for path in unique)
        if not agreed(f"Delete {words} ({size_words(size)}) for good?"):
            return []
        for path in unique:
            _delete(path)
    return unique


def _delete(path: Path) -> None:
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
    inner = [inside for entry in sorted(here.iterdir()) if entry.is_dir() and not entry.is_symlink()
             for inside in index.find_runs(entry)]  # fmt: skip
    if inner:
        raise UserError(f"{path} holds other runs, such as {inner[0]}; deal with these first.")


def _no_sweep(path: Path, what: str) -> None:
    sweep = next((parent for parent in path.resolve().parents[:3] if (parent / folder.SWEEP).is_file()), None)
    if sweep is not None:
        raise UserError(f"{path} belongs to the sweep {sweep}, which knows it by its name; I do not {what} it.")


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
