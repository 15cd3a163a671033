"""`metaopt benchmark` as a page: performance profiles, scores, and every task with the ratio to tuned Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.benchmark import scores
from metaopt.report.page import drawings, write_page
from metaopt.report.panels import BASELINE_COLOURS, DASHES, MARKERS, Line, Panel, Style, panels_figure, run_style
from metaopt.report.words import flatten

FACTORS = np.geomspace(1, 1000, 100)
PAGE = "benchmark.html"
ABOUT = "Share of tasks on which an optimizer ends within a factor of the best; the data stand in the tables below."


def styles(records: scores.Records, own: Sequence[str]) -> dict[str, Style]:
    """Of one's own optimizers, which are coloured, and of the baselines."""
    found = {name: run_style(index, name)._replace(marker=None) for index, name in enumerate(own)}
    others = [name for name in next(iter(records.values()))["optimizers"] if name not in own]
    for index, name in enumerate(others):
        again, place = divmod(index, len(BASELINE_COLOURS))  # those after the first five have markers too
        marker = MARKERS[place] if again else None
        found[name] = Style(name, f"baseline-{place}", DASHES[place], marker, width=1.2, hollow=True)
    return found


def profile_panel(records: scores.Records, own: Sequence[str], horizon: int) -> Panel:
    """Performance profiles at one horizon (Dolan and Moré 2002)."""
    drawn = styles(records, own)
    lines = [Line(drawn[name], FACTORS, at) for name, at in scores.profile(records, drawn, FACTORS).items()]
    words = f"{horizon:,} steps, {len(records)} tasks", "loss over the best one's", "share of tasks within it"
    ticks = [(10.0**power, f"{10**power:,}×") for power in range(4)]
    return Panel(*words, lines, ticks, log_x=True, y_limits=(0.0, 1.02))


def write_benchmark(
    folder: Path,
    suite: str,
    by_horizon: Mapping[int, scores.Records],
    own: Sequence[str],
    environment: Mapping[str, Any],
) -> Path:
    """Writes the page into a benchmark's folder. Returns its path.

    Args:
      by_horizon: horizon -> records, as `scores.joined` has them; at least one.
      own: the optimizers that were asked for.
    """
    panels = [profile_panel(records, own, horizon) for horizon, records in by_horizon.items()]
    drawn = styles(next(iter(by_horizon.values())), own)
    return write_page(
        "benchmark.html",
        folder / PAGE,
        title=", ".join(own),
        subtitle=f"on the {suite} suite",
        suite=suite,
        horizons=[_horizon(records, drawn, own, horizon) for horizon, records in by_horizon.items()],
        profiles={
            "drawings": drawings(lambda narrow: panels_figure(panels, narrow=narrow), "p", ABOUT),
            "styles": list(drawn.values()),
            "panels": len(panels),
        },
        environment=flatten(environment),
    )


def _horizon(records: scores.Records, drawn: Mapping[str, Style], own: Sequence[str], horizon: int) -> dict[str, Any]:
    def row(name: str) -> dict[str, Any]:
        score = scores.score(records, name)
        return {
            "style": drawn[name],
            "score": score,
            "to_adam": np.exp(score.to_adam.mean),
            "interval": list(np.exp(score.to_adam.interval())),
            "middle": np.exp(score.middle),
            "test": np.exp(score.test.mean),
        }

    tasks = [
        {
            "name": task,
            "best": scores.best_in(record),
            "ratios": [np.exp(scores.ratio_to(record, o, scores.ADAM)) for o in own],
        }
        for task, record in records.items()
    ]
    runs = sum(len(record["initial"]) for record in records.values())
    return {"steps": horizon, "runs": runs, "tasks": tasks, "rows": [row(name) for name in drawn], "own": list(own)}
