"""Runs on a dashboard, and as files for other programs. Neither needs jax."""

from __future__ import annotations


def dashboard(arguments: list[str]) -> None:
    from metaopt.cli import arguments as reader
    from metaopt.sinks import dashboard

    parsed = reader.parse(dashboard.DashboardArguments, arguments, prog="metaopt dashboard")
    dashboard.show(parsed, lambda line: print(line, flush=True))


def export(arguments: list[str]) -> None:
    from metaopt.cli import arguments as reader
    from metaopt.sinks import export

    parsed = reader.parse(export.ExportArguments, arguments, prog="metaopt export")
    for line in export.export_runs(parsed):
        print(line, flush=True)
