"""`metaopt runs`: run folders listed, compared, renamed, deleted. Needs no jax, so that it answers at once."""

from __future__ import annotations

from pathlib import Path

USAGE = """\
usage: metaopt runs [FOLDER ...] [--where FIELD=VALUE ...] [--experiment NAME] [--state STATE]
       metaopt runs compare RUN RUN
       metaopt runs rename RUN NAME
       metaopt runs delete RUN ... [--yes]

Lists the run folders below FOLDER, by default runs, with state, meta-steps and the best validation. FIELD is a field of
the configuration such as seed, optimizer or optimizer.hidden_size; besides = there are !=, <, >, <= and >= (in quotes).
STATE is running, finished, interrupted, cancelled, diverged, failed, lost (its process ended without a word), unknown
or unreadable (its config.json is broken).
`compare` shows the fields in which two configurations differ. `delete` asks first, unless --yes is given; it takes run
folders only, never one that is being trained. A folder called compare, rename or delete is listed as ./compare.
"""


def runs(arguments: list[str]) -> None:
    if any(word in ("-h", "--help") for word in arguments):
        print(USAGE, end="")
        return
    actions = {"compare": _compare, "rename": _rename, "delete": _delete}
    if arguments and arguments[0] in actions:
        actions[arguments[0]](arguments[1:])
    else:
        _list(arguments)


def _list(arguments: list[str]) -> None:
    from metaopt.cli import arguments as reader
    from metaopt.cli import run_folders
    from metaopt.errors import UserError
    from metaopt.runs import filters
    from metaopt.runs.console import make_console, say

    parsed = reader.parse(reader.RunsArguments, arguments, prog="metaopt runs")
    if "--where" in arguments and not parsed.where:
        raise UserError("--where has no value; write --where FIELD=VALUE, such as optimizer.hidden_size=20.")
    console = make_console()
    places = [Path(place) for place in parsed.folders or ("runs",)]
    if not parsed.folders and not places[0].is_dir():
        run_folders.list_runs(
            (), where=parsed.where, experiment=parsed.experiment, state=parsed.state
        )  # a mistake is told
        say(console, "there is no folder runs here; `metaopt train` makes one, or name a folder of runs.")
        return
    found = run_folders.list_runs(places, where=parsed.where, experiment=parsed.experiment, state=parsed.state)
    if not found:
        filtered = parsed.where or parsed.experiment or parsed.state
        words = " that fulfils the filters" if filtered else ""
        say(console, f"no run below {', '.join(map(str, places))}{words}.")
        return
    run_folders.print_runs(found, console, [name for name, _, _ in filters.where(parsed.where)])


def _compare(arguments: list[str]) -> None:
    from metaopt.cli import run_folders
    from metaopt.runs.console import make_console, say

    first, second = _words(arguments, 2, "metaopt runs compare RUN RUN")
    console = make_console()
    rows = run_folders.compare_runs(Path(first), Path(second))
    if not rows:
        say(console, "the two configurations are equal.")
        return
    table = [("field", first, second), *rows]
    run_folders.print_plain([tuple(map(run_folders.printable, row)) for row in table], console)


def _rename(arguments: list[str]) -> None:
    from metaopt.cli import run_folders

    run, name = _words(arguments, 2, "metaopt runs rename RUN NAME")
    print(run_folders.rename_run(Path(run), name))


def _delete(arguments: list[str]) -> None:
    from metaopt.cli import run_folders

    names = _words([word for word in arguments if word != "--yes"], None, "metaopt runs delete RUN ... [--yes]")
    yes = "--yes" in arguments
    gone = run_folders.delete_runs([Path(name) for name in names], agreed=(lambda _: True) if yes else run_folders.ask)
    print("\n".join(f"deleted {path}" for path in gone) if gone else "nothing was deleted.")


def _words(arguments: list[str], count: int | None, usage: str) -> list[str]:
    from metaopt.errors import UserError

    flags = [word for word in arguments if word.startswith("--")]
    if flags:
        raise UserError(f"unrecognized option {flags[0]}; write `{usage}`.")
    if not arguments or (count is not None and len(arguments) != count):
        raise UserError(f"write `{usage}`.")
    return arguments
