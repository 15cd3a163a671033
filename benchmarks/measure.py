"""What every part of benchmarks/bench measures with: rows, timing, the machine's bounds, the machine itself."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.cases import HIDDEN
from metaopt.inner.devices import COLUMNS, compiler_options
from metaopt.runs.environment import describe_environment

ROOT = Path(__file__).resolve().parent.parent
FEATURES = 10
# A bound below this share of what the 2048^3 product's rate implies is not valid: the pieces were disturbed.
VALID_SHARE = 0.55
FLOPS = 43_360  # of a coordinate-step's meta-gradient, its forward pass recomputed, with hidden 20 and ten features


@dataclass(frozen=True)
class Options:
    """How much a part does."""

    tasks: tuple[int, ...] = (64, 256)
    repeats: int = 7
    quick: bool = False


@dataclass(frozen=True)
class Row:
    """One figure. Ranges are over the repeats, `value` and `ratio` their medians."""

    part: str
    figure: str
    settings: dict[str, Any]
    unit: str
    value: float | None  # None: not measured, and the note says why
    range: tuple[float, float] | None = None
    bound: float | None = None  # in the unit of the value
    ratio: float | None = None  # of the bound's speed; where there is no bound, of what the note names
    ratio_range: tuple[float, float] | None = None
    note: str = ""

    def text(self) -> str:
        """One line for the console."""
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        if self.value is None:
            return f"  {self.figure} ({settings}): not measured: {self.note}"
        line = f"  {self.figure} ({settings}): {number(self.value)} {self.unit}{span(self.range)}"
        if self.bound is not None:
            line += f", bound {number(self.bound)}"
        if self.ratio is not None:
            line += f", ratio {self.ratio:.2f}{span(self.ratio_range)}"
        return line + (f"; {self.note}" if self.note else "")


def number(value: float) -> str:
    """Three digits, and no exponent where a human needs none."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1 else f"{value:.1e}"


def span(limits: tuple[float, float] | None) -> str:
    return f" ({number(limits[0])} to {number(limits[1])})" if limits else ""


def measured(
    part: str,
    figure: str,
    settings: dict[str, Any],
    unit: str,
    values: Sequence[float],
    *,
    bounds: Sequence[float] | None = None,
    ratios: Sequence[float] | None = None,
    note: str = "",
) -> Row:
    """A row from repeats; with `bounds`, one a repeat, for a unit where more is better, ratios are value/bound."""
    if bounds is not None and ratios is None:
        ratios = [value / bound for value, bound in zip(values, bounds, strict=True)]
    return Row(
        part,
        figure,
        settings,
        unit,
        statistics.median(values),
        (min(values), max(values)) if len(values) > 1 else None,
        None if bounds is None else statistics.median(bounds),
        None if ratios is None else statistics.median(ratios),
        (min(ratios), max(ratios)) if ratios is not None and len(ratios) > 1 else None,
        note,
    )


# ----- time -----------------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def repeated(
    fn: Callable, repeats: int, *args: jax.Array, options: dict[str, Any] | None = None
) -> Callable[[], jax.Array]:
    """One program that computes `fn` many times, each on inputs that depend on the last result.

    The whole result is carried from turn to turn: of a result read in one place only, XLA computes that place alone.
    """

    def program(*args: jax.Array) -> jax.Array:
        def body(_: int, last: jax.Array) -> jax.Array:
            return fn(args[0] + 1e-30 * jnp.ravel(last)[0], *args[1:])

        return jax.lax.fori_loop(0, repeats, body, jnp.zeros_like(fn(*args)))

    compiled = jax.jit(program, compiler_options=options or {}).lower(*args).compile()
    return lambda: compiled(*args)


# ----- bounds ---------------------------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """How often a piece occurs a coordinate-step under each bound."""

    recompute: float  # meta-gradient, the forward pass computed twice
    saved: float  # meta-gradient, every intermediate result kept
    forward: float  # use of an optimizer


class Bounds(NamedTuple):
    """Mcs/s if nothing but the products, each in its better layout, and the activations were to be done."""

    recompute: float
    saved: float
    forward: float


@dataclass(frozen=True)
class Piece:
    program: Callable[[], jax.Array]
    repeats: int  # inside the program
    counts: Counts


@dataclass
class BoundMeter:
    """Times the products of the real shapes and the activations, a few milliseconds each.

    Each LSTM layer has one product forward, run twice under recomputation, and two of its size backward (to inputs, to
    weights), each in two layouts. Activations: 5·hidden tanh a layer, forward and recomputed. `options` are those that
    the program beside it is compiled with: None for the framework's own, {} for XLA's defaults.
    """

    columns: int = COLUMNS
    options: dict[str, Any] | None = None
    gflops: list[float] = field(default_factory=list)  # of the 2048^3 product, one a `rate`
    seen: list[Bounds] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = compiler_options() if self.options is None else self.options
        self._pieces = _pieces(self.columns, options)
        square = jnp.ones((2048, 2048), jnp.float32)
        self._square = repeated(jnp.matmul, 1, square, square, options=options)
        for piece in self._pieces.values():
            seconds(piece.program)
        seconds(self._square)

    def __call__(self) -> Bounds:
        best: dict[str, float] = {}
        for (name, _), piece in self._pieces.items():
            cost = seconds(piece.program) / piece.repeats
            best[name] = min(cost, best.get(name, cost))
        counts = {name: piece.counts for (name, _), piece in self._pieces.items()}
        totals = [sum(getattr(counts[name], kind) * best[name] for name in best) for kind in Bounds._fields]
        bounds = Bounds(*(self.columns / total / 1e6 for total in totals))
        self.seen.append(bounds)
        return bounds

    def around(self, run: Callable[[], object]) -> tuple[float, Bounds]:
        """Seconds of `run`, and the bounds as they were just before and just after it."""
        before = self()
        elapsed = seconds(run)
        after = self()
        return elapsed, Bounds(*((a + b) / 2 for a, b in zip(before, after, strict=True)))

    def rate(self) -> float:
        """GFLOP/s of the 2048^3 product."""
        self.gflops.append(2 * 2048**3 / seconds(self._square) / 1e9)
        return self.gflops[-1]

    def validity(self) -> tuple[bool, str]:
        """Whether the bounds seen so far hold up against the 2048^3 product's rate, and that in words."""
        bound = statistics.median(bounds.recompute for bounds in self.seen)
        gflops = statistics.median(self.gflops)
        implied = gflops * 1e9 / FLOPS / 1e6
        valid = bound >= VALID_SHARE * implied
        text = (
            f"recompute bound {bound:.2f} Mcs/s; 2048^3 product {gflops:.0f} GFLOP/s, a rate that would give"
            f" {implied:.2f} Mcs/s"
        )
        return valid, text + ("" if valid else f": the bound is below {VALID_SHARE:.0%} of that and not valid")


def _pieces(columns: int, options: dict[str, Any]) -> dict[tuple[str, int], Piece]:
    """(name, layout) -> piece."""
    key = jax.random.key(0)

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(key, shape, jnp.float32)

    pieces = {}
    for name, inputs in (("layer 1", FEATURES + HIDDEN), ("layer 2", 2 * HIDDEN)):
        weights, x, cotangent = normal(4 * HIDDEN, inputs), normal(inputs, columns), normal(4 * HIDDEN, columns)
        layouts = {
            "forward": (
                Counts(2.0, 1.0, 1.0),
                [(jnp.matmul, weights, x), (lambda w, x: x.T @ w.T, weights, x)],
            ),
            "to inputs": (
                Counts(1.0, 1.0, 0.0),
                [(lambda w, c: w.T @ c, weights, cotangent), (lambda w, c: c.T @ w, weights, cotangent)],
            ),
            "to weights": (
                Counts(1.0, 1.0, 0.0),
                [(lambda x, c: c @ x.T, x, cotangent), (lambda x, c: x @ c.T, x, cotangent)],
            ),
        }
        repeats = max(4, 80_000_000 // (4 * HIDDEN * inputs * columns))
        for direction, (counts, candidates) in layouts.items():
            for layout, (product, a, b) in enumerate(candidates):
                pieces[f"{name} {direction}", layout] = Piece(
                    repeated(product, repeats, a, b, options=options), repeats, counts
                )
    repeats = max(4, 8_000_000 // (5 * HIDDEN * columns))
    activations = repeated(lambda x: jnp.tanh(x), repeats, normal(5 * HIDDEN, columns), options=options)
    pieces["activations", 0] = Piece(activations, repeats, Counts(4.0, 2.0, 2.0))  # two layers
    return pieces


# ----- the machine ----------------------------------------------------------------------------------------------------


def describe_machine() -> dict[str, Any]:
    """What a part's figures stood on."""
    found = describe_environment("bench", [])
    return {
        **{name: found["versions"][name] for name in ("jax", "jaxlib", "python")},
        "platform": found["device"]["platform"],
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cores_of_machine": found["cpu_count"],
        "date": found["started"],
        **(found["git"] or {"commit": None, "dirty": False}),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    words = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in words.items()}
    return f"{found.get('model name', '?')} (family {found.get('cpu family', '?')}, model {found.get('model', '?')})"
