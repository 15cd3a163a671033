"""What looks at a run, an optimizer or what can be named, and trains nothing."""

from __future__ import annotations

from pathlib import Path

from metaopt.cli import devices


def evaluate(arguments: list[str]) -> None:
    from metaopt.cli import arguments as reader

    parsed = reader.parse(reader.EvaluateArguments, arguments, prog="metaopt evaluate")
    devices.configure_jax(parsed.num_devices)
    from metaopt.cli.evaluate import compare

    compare(parsed)


def report(arguments: list[str]) -> None:
    from metaopt.cli import arguments as reader
    from metaopt.errors import UserError
    from metaopt.runs.index import is_folder_of_runs

    parsed = reader.parse(reader.ReportArguments, arguments, prog="metaopt report")
    if not parsed.runs:
        raise UserError("name at least one run folder.")
    places, out = [Path(run) for run in parsed.runs], None if parsed.out is None else Path(parsed.out)
    if out is not None and (out.suffix.lower() not in (".html", ".htm") or out.is_dir()):
        raise UserError(f"--out {out} is no page; give a file whose name ends in .html.")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it, or give another --out.")
    from metaopt.report.comparison_page import write_comparison
    from metaopt.report.run_page import write_report

    one = len(places) == 1 and not is_folder_of_runs(places[0])
    print(write_report(places[0], out) if one else write_comparison(places, out))


def doctor(arguments: list[str]) -> None:
    from metaopt.cli import arguments as reader

    parsed = reader.parse(reader.DoctorArguments, arguments, prog="metaopt doctor")
    devices.configure_jax(parsed.num_devices)
    from metaopt.cli.examine import examine

    examine(parsed)


def replay(arguments: list[str]) -> None:
    from metaopt.cli import arguments as reader

    parsed = reader.parse(reader.ReplayArguments, arguments, prog="metaopt replay")
    devices.configure_jax(1)
    from metaopt.cli.examine import show_again

    if not show_again(Path(parsed.capsule)):
        raise SystemExit(1)


def show_list(arguments: list[str]) -> None:
    if any(word in ("-h", "--help") for word in arguments):
        print("usage: metaopt list [NAME ...]\n\nWithout a name: everything that can be named. With: its options.")
        return
    from metaopt.cli.listing import print_entry, print_listing

    for name in arguments:
        print_entry(name)
    if not arguments:
        print_listing()
