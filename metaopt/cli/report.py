"""What is made of runs for people and other programs: `metaopt report`, `dashboard` and `export`. None needs jax."""

from __future__ import annotations

from pathlib import Path

from metaopt.cli.arguments import ReportArguments
from metaopt.errors import UserError, printable
from metaopt.experiment.flags import parse
from metaopt.runs.index import is_folder_of_runs


def report(arguments: ReportArguments) -> None:
    """Writes the page of a run, or of several beside one another, and prints where it is.

    Raises:
      UserError: no run, or a page that cannot be written.
    """
    if not arguments.runs:
        raise UserError("name at least one run folder.")
    places, out = [Path(run) for run in arguments.runs], None if arguments.out is None else Path(arguments.out)
    if out is not None and (out.suffix.lower() not in (".html", ".htm") or out.is_dir()):
        raise UserError(f"--out {out} is no page; give a file whose name ends in .html.")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it, or give another --out.")
    from metaopt.report.comparison_page import write_comparison
    from metaopt.report.run_page import write_report

    one = len(places) == 1 and not is_folder_of_runs(places[0])
    print(printable(str(write_report(places[0], out) if one else write_comparison(places, out))))


def dashboard(words: list[str]) -> None:
    from metaopt.sinks import dashboard

    parsed = parse(dashboard.DashboardArguments, words, prog="metaopt dashboard")
    dashboard.show(parsed, lambda line: print(printable(line), flush=True))


def export(words: list[str]) -> None:
    from metaopt.sinks import export

    for line in export.export_runs(parse(export.ExportArguments, words, prog="metaopt export")):
        print(printable(line), flush=True)
