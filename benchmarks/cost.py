"""A model of the meta-gradient's cost: seconds and bytes as functions of tasks, D, T and hidden size."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from benchmarks.measure import BoundMeter, Options, Row, measured
from benchmarks.parts import MetaGradient
from metaopt.inner.devices import pick_chunk_size


class Setting(NamedTuple):
    tasks: int
    dim: int
    horizon: int
    hidden: int

    @property
    def chunk(self) -> int:
        """Tasks whose residuals are held at once: the largest divisor of `tasks` within the cache's columns."""
        return pick_chunk_size(self.tasks, self.dim)


# Every factor takes several values apart from the others; the points left out lie inside, at the edge and beyond.
FITTED = tuple(
    Setting(*point)
    for point in (
        (1, 10, 100, 20),
        (8, 10, 50, 20),
        (64, 10, 20, 20),
        (64, 10, 200, 20),
        (64, 10, 100, 8),
        (64, 10, 100, 32),
        (16, 100, 20, 20),
        (4, 400, 50, 32),
        (4, 400, 50, 8),
        (1, 4000, 20, 20),
        (1, 4000, 50, 8),
        (256, 10, 50, 20),
        (16, 10, 200, 32),
        (2, 10, 400, 8),
    )
)
LEFT_OUT = tuple(
    Setting(*point) for point in ((64, 10, 100, 20), (32, 50, 60, 16), (2, 2000, 40, 24), (256, 10, 150, 20))
)
SECONDS = ("call", "T", "n·T", "n·T·hidden", "n·T·hidden²")
BYTES = ("program", "hidden²", "held", "held·hidden", "held·T", "held·T·hidden")
KINDS = {"seconds": SECONDS, "bytes": BYTES}


def terms(kind: str, at: Setting) -> list[float]:
    """What each coefficient of `KINDS[kind]` is multiplied with; n = tasks·D, held = columns of one chunk."""
    n, held = at.tasks * at.dim, at.chunk * at.dim
    chunks = at.tasks // at.chunk
    if kind == "seconds":
        work = float(n * at.horizon)
        return [1.0, float(at.horizon * chunks), work, work * at.hidden, work * at.hidden**2]
    return [1.0, at.hidden**2, held, held * at.hidden, held * at.horizon, held * at.horizon * at.hidden]


def fit(kind: str, points: list[Setting], values: list[float]) -> dict[str, float]:
    """Coefficients, none below zero, by least squares on the relative error."""
    rows = np.array([terms(kind, point) for point in points]) / np.array(values)[:, None]
    # Columns of one size: they differ by many orders of magnitude.
    sizes = np.linalg.norm(rows, axis=0)
    solution, _ = nnls(rows / sizes, np.ones(len(values)))
    return dict(zip(KINDS[kind], (solution / sizes).tolist(), strict=True))


def predict(model: dict[str, dict[str, float]], at: Setting) -> dict[str, float]:
    """{"seconds", "bytes"} of one meta-gradient."""
    return {kind: float(np.dot([model[kind][name] for name in KINDS[kind]], terms(kind, at))) for kind in KINDS}


def cost_model(options: Options) -> Iterator[Row | dict[str, Any]]:
    """Fits the model on a grid and checks it on points left out; yields the model, a dict, first."""
    fitted, left_out = (FITTED[:9], LEFT_OUT[:1]) if options.quick else (FITTED, LEFT_OUT)
    meter = BoundMeter()
    found = {point: _measure(meter, point, 2 if options.quick else options.repeats) for point in fitted + left_out}
    model = {kind: fit(kind, list(fitted), [found[point][kind] for point in fitted]) for kind in KINDS}
    yield model
    for group, points in (("fitted on", fitted), ("left out", left_out)):
        for kind in KINDS:
            errors = [predict(model, point)[kind] / found[point][kind] for point in points]
            yield measured("cost_model", f"predicted over measured {kind}", {"points": group}, "times", errors)
    for point in left_out:
        for kind, unit in (("seconds", "s"), ("bytes", "B")):
            predicted = predict(model, point)[kind]
            yield Row(
                "cost_model",
                f"{kind} of a point left out",
                point._asdict(),
                unit,
                found[point][kind],
                ratio=predicted / found[point][kind],
                note=f"ratio is predicted ({predicted:.3g}) over measured",
            )


def _measure(meter: BoundMeter, at: Setting, repeats: int) -> dict[str, float]:
    gradient = MetaGradient(at.tasks, at.dim, at.horizon, hidden=at.hidden, chunk_size=at.chunk)
    meter.around(gradient.run)
    elapsed = [meter.around(gradient.run)[0] for _ in range(repeats)]
    return {"seconds": statistics.median(elapsed), "bytes": float(gradient.temporary)}
