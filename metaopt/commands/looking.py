"""What looks at a run, an optimizer or what can be named, and trains nothing."""

from __future__ import annotations

from pathlib import Path

from metaopt.commands import start


def evaluate(arguments: list[str]) -> None:
    from metaopt.runs import arguments as reader

    parsed = reader.parse(reader.EvaluateArguments, arguments, prog="metaopt evaluate")
    start.configure_jax(parsed.num_devices)
    from metaopt.runs.compare import compare

    compare(parsed)


def report(arguments: list[str]) -> None:
    from metaopt.experiment import UserError
    from metaopt.runs import arguments as reader

    runs = reader.parse(reader.ReportArguments, arguments, prog="metaopt report").runs
    if not runs:
        raise UserError("name at least one run folder.")
    from metaopt.runs.report import write_report

    for run in runs:
        print(write_report(Path(run)))


def doctor(arguments: list[str]) -> None:
    from metaopt.runs import arguments as reader

    parsed = reader.parse(reader.DoctorArguments, arguments, prog="metaopt doctor")
    start.configure_jax(parsed.num_devices)
    from metaopt.runs.diagnose import examine

    examine(parsed)


def replay(arguments: list[str]) -> None:
    from metaopt.runs import arguments as reader

    parsed = reader.parse(reader.ReplayArguments, arguments, prog="metaopt replay")
    start.configure_jax(1)
    from metaopt.runs.diagnose import show_again

    if not show_again(Path(parsed.capsule)):
        raise SystemExit(1)


def show_list(arguments: list[str]) -> None:
    if any(word in ("-h", "--help") for word in arguments):
        print("usage: metaopt list [NAME ...]\n\nWithout a name: everything that can be named. With: its options.")
        return
    from metaopt.runs.listing import print_entry, print_listing

    for name in arguments:
        print_entry(name)
    if not arguments:
        print_listing()
