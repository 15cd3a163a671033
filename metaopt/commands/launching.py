"""Jobs of several processes."""

from __future__ import annotations


def launch(arguments: list[str]) -> None:
    from metaopt import launch as launcher

    launcher.launch(arguments)
