"""The parts of benchmarks/bench that time programs in this process: the meta-step, inference, scale."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metaopt
from benchmarks.cases import DIGITS_DIM, DIM, HIDDEN, HORIZON, chunks, digits, experiment, learned, outer_steps
from benchmarks.measure import COLUMNS, FEATURES, BoundMeter, Bounds, Options, Row, measured, number, seconds
from benchmarks.plain_reference import plain_chunks
from metaopt.choices import choice
from metaopt.experiment import Experiment
from metaopt.inner.devices import compiler_options
from metaopt.optimizers.network import LSTM, Head, forward, fuse, init_cells, init_params
from metaopt.shipped.loading import save_optimizer
from metaopt.training.trainer import Trainer

# ----- the meta-step --------------------------------------------------------------------------------------------------


def meta_step(options: Options) -> Iterator[Row]:
    """The meta-step as users run it (sampling, ten features, estimator, meta-Adam, metrics), beside the plain one."""
    # A call of about a third of a second: short, so that the bound is measured close to it.
    for num_tasks in options.tasks:
        steps = 2 if options.quick else max(2, 640 // num_tasks)
        models = {model: experiment(model, num_tasks, steps) for model in ("BP", "RL")}
        yield from _meta_step(options, models, {"tasks": num_tasks}, num_tasks * DIM)
    models = {"RL": digits(1 if options.quick else 2)}
    yield from _meta_step(options, models, {"tasks": 4, "of": "digits, T = 50"}, 4 * DIGITS_DIM)


def _meta_step(
    options: Options, models: dict[str, Experiment], where: dict[str, Any], coordinates: int
) -> Iterator[Row]:
    meter, defaults = BoundMeter(min(coordinates, COLUMNS)), BoundMeter(min(coordinates, COLUMNS), {})
    programs = {(model, "metaopt"): chunks(described) for model, described in models.items()}
    programs |= {(model, "plain"): plain_chunks(described) for model, described in models.items()}
    programs = {name: programs[name] for name in sorted(programs)}
    first = {name: seconds(program) for name, program in programs.items()}
    speeds: dict[tuple[str, str], list[float]] = {name: [] for name in programs}
    bounds: dict[tuple[str, str], list[Bounds]] = {name: [] for name in programs}
    for _ in range(options.repeats):
        meter.rate()
        defaults()
        for name, program in programs.items():
            elapsed, bound = meter.around(program)
            described = models[name[0]]
            speeds[name].append(described.log.every * coordinates * described.horizon / elapsed / 1e6)
            bounds[name].append(bound)
    valid, text = meter.validity()
    print(f"  {where}: {text}")
    for (model, program), values in speeds.items():
        settings = {"model": model, "program": program, **where}
        note = "" if valid else "bound not valid"
        for kind in ("recompute", "saved"):
            limits = [getattr(bound, kind) for bound in bounds[model, program]]
            figure = f"meta-step against the {kind} bound"
            yield measured("meta_step", figure, settings, "Mcs/s", values, bounds=limits, note=note)
        yield measured("meta_step", "first call", settings, "s", [first[model, program]])
    for model in models:
        both = zip(speeds[model, "metaopt"], speeds[model, "plain"], strict=True)
        ratios = [ours / theirs for ours, theirs in both]
        yield measured("meta_step", "speed over the plain reference's", {"model": model, **where}, "times", ratios)
    limits = [bound.recompute for bound in defaults.seen]
    yield measured("meta_step", "recompute bound under XLA's default options", where, "Mcs/s", limits)
    yield measured("meta_step", "2048^3 product", where, "GFLOP/s", meter.gflops)


# ----- particles ------------------------------------------------------------------------------------------------------


def particles(options: Options) -> Iterator[Row]:
    """An outer step of SOSMC with Langevin moves: 10,000 particles in the plane, one task and ten side by side."""
    steps = 5 if options.quick else 100
    programs = {num_tasks: outer_steps(num_tasks, steps, compiler_options=compiler_options()) for num_tasks in (1, 10)}
    for program in programs.values():
        program()
    times: dict[int, list[float]] = {num_tasks: [] for num_tasks in programs}
    for _ in range(options.repeats):
        for num_tasks, program in programs.items():
            times[num_tasks].append(1e3 * seconds(program) / steps)
    for num_tasks, values in times.items():
        yield measured("particles", "outer step of SOSMC, N = 10,000, d = 2", {"tasks": num_tasks}, "ms", values)
    ratios = [ten / one for one, ten in zip(times[1], times[10], strict=True)]
    yield measured("particles", "ten tasks over one", {}, "times", ratios)


# ----- the network alone ----------------------------------------------------------------------------------------------


def network(options: Options) -> Iterator[Row]:
    """The LSTM of the meta-step without features, task and estimator, its activations computed anew or kept."""
    shape = LSTM(HIDDEN, 2, (Head("direction"), Head("log_alpha", constant=True, bias=-3.0)))
    phi = init_params(shape, FEATURES, jax.random.key(0))
    steps = 20 if options.quick else HORIZON
    for columns in (640,) if options.quick else (96, 320, 640):
        meter = BoundMeter(columns)
        inputs = jax.random.normal(jax.random.key(1), (steps, FEATURES, columns))

        def total(phi: Any, inputs: jax.Array, anew: bool, columns: int = columns) -> jax.Array:
            weights = fuse(shape, phi)

            def step(cells: Any, x: jax.Array) -> tuple[Any, jax.Array]:
                outputs, cells = forward(weights, x, cells)
                return cells, jnp.sum(outputs)

            body = jax.checkpoint(step, prevent_cse=False) if anew else step
            return jnp.sum(jax.lax.scan(body, init_cells(shape, columns, jnp.dtype("float32")), inputs)[1])

        programs = {
            ("forward pass", "forward"): functools.partial(total, anew=False),
            ("meta-gradient, activations computed anew", "recompute"): jax.grad(functools.partial(total, anew=True)),
            ("meta-gradient, activations kept", "saved"): jax.grad(functools.partial(total, anew=False)),
        }
        for (name, kind), program in programs.items():
            compiled = jax.jit(program, compiler_options=compiler_options()).lower(phi, inputs).compile()
            run = functools.partial(compiled, phi, inputs)
            seconds(run)
            samples = [meter.around(run) for _ in range(options.repeats)]
            speeds = [steps * columns / elapsed / 1e6 for elapsed, _ in samples]
            bounds = [getattr(bound, kind) for _, bound in samples]
            figure = f"the network alone, {name}, against the {kind} bound"
            yield measured("network", figure, {"columns": columns}, "Mcs/s", speeds, bounds=bounds)


# ----- evolution strategies -------------------------------------------------------------------------------------------

EVOLUTION_COLUMNS = 640
# Dimensions of the quadratic; with 10, eight tasks share a perturbation by default (80 columns), else 64 columns do.
EVOLUTION_DIMS = (10, 16, 64)
# Estimator, steps of a window, windows of a horizon.
EVOLUTION = (
    ("evolution_strategies", HORIZON, 1),
    ("persistent_evolution_strategies", HORIZON, 2),
    ("persistent_evolution_strategies", HORIZON // 2, 2),
)


def evolution(options: Options) -> Iterator[Row]:
    """ES and PES, every unroll that they execute counted, beside the forward bound."""
    meter = BoundMeter(EVOLUTION_COLUMNS)
    steps = 2 if options.quick else 6
    programs: dict[tuple[str, int, int], Callable[[], object]] = {}
    for name, window, windows in EVOLUTION:
        for dim in EVOLUTION_DIMS:
            described = experiment(
                "RL",
                EVOLUTION_COLUMNS // dim,
                steps * HORIZON // window,
                choice("quadratic", dim=dim),
                estimator=choice(name),
                horizon=window * windows,
                unroll_length=window if windows > 1 else None,
            )
            programs[name, window, dim] = chunks(described)
    for program in programs.values():
        seconds(program)
    speeds: dict[tuple[str, int, int], list[float]] = {name: [] for name in programs}
    bounds: dict[tuple[str, int, int], list[float]] = {name: [] for name in programs}
    for _ in range(options.repeats):
        for name, program in programs.items():
            elapsed, bound = meter.around(program)
            executed = steps * 2 * (EVOLUTION_COLUMNS // name[2]) * name[2] * HORIZON
            speeds[name].append(executed / elapsed / 1e6)
            bounds[name].append(bound.forward)
    for (name, window, dim), values in speeds.items():
        settings = {"estimator": name, "D": dim, "window": window}
        figure = "executed unrolls against the forward bound"
        yield measured("evolution", figure, settings, "Mcs/s", values, bounds=bounds[name, window, dim])


# ----- inference ------------------------------------------------------------------------------------------------------


class Updater(NamedTuple):
    run: Callable[[], object]
    traces: list[int]  # one entry a tracing
    temporary: float  # bytes, as a multiple of the parameters'
    state: float  # bytes of the optimizer's state, likewise
    compilation: float  # s


def inference(options: Options) -> Iterator[Row]:
    """`metaopt.load(...)`'s update on a million parameters: an LSTM beside its bound, the controller beside Adam."""
    size = 100_000 if options.quick else 1_000_000
    key = jax.random.key(0)
    trees = {"one": _leaves(size, 1), "1000": _leaves(size, 1000)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.safetensors"
        described = experiment("BP", 16, 1)
        optimizer = Trainer(described).optimizer
        save_optimizer(path, optimizer.init(key), described, {})
        updaters = {name: _updater(metaopt.load(path), tree, size) for name, tree in trees.items()}
    meter = BoundMeter(options={})  # a user's loop is compiled under XLA's defaults
    for updater in updaters.values():
        seconds(updater.run)
    speeds: dict[str, list[float]] = {name: [] for name in updaters}
    bounds: dict[str, list[float]] = {name: [] for name in updaters}
    for _ in range(options.repeats):
        for name, updater in updaters.items():
            elapsed, bound = meter.around(updater.run)
            speeds[name].append(size / elapsed / 1e6)
            bounds[name].append(bound.forward)
    for name, updater in updaters.items():
        settings = {"parameters": size, "leaves": name}
        yield measured(
            "inference", "update against the forward bound", settings, "Mcs/s", speeds[name], bounds=bounds[name]
        )
        yield measured("inference", "compilations", settings, "", [len(updater.traces)])
        yield measured("inference", "temporary memory", settings, "times the parameters", [updater.temporary])
        yield measured("inference", "optimizer state", settings, "times the parameters", [updater.state])
    ratios = [one / many for one, many in zip(speeds["one"], speeds["1000"], strict=True)]
    yield measured("inference", "time of 1000 leaves over that of one", {"parameters": size}, "times", ratios)
    yield from _beside_adam(options, "controller", size)


def _beside_adam(options: Options, name: str, size: int) -> Iterator[Row]:
    """The update of what is shipped over `optax.adam`'s, both as a program of their own."""
    both = {name: metaopt.load(name), "adam": optax.with_extra_args_support(optax.adam(1e-3))}
    ours: dict[int, list[float]] = {}
    for leaves in (10, 1000):
        where = {"optimizer": name, "parameters": size, "leaves": leaves}
        updaters = {one: _updater(tx, _leaves(size, leaves), size) for one, tx in both.items()}
        for updater in updaters.values():
            seconds(updater.run)
        taken = [{one: seconds(updater.run) for one, updater in updaters.items()} for _ in range(3 * options.repeats)]
        ours[leaves] = [turn[name] for turn in taken]
        ratios = [turn[name] / turn["adam"] for turn in taken]
        yield measured("inference", "update over optax.adam's", where, "times", ratios)
        yield measured("inference", "update", where, "ms", [1e3 * turn for turn in ours[leaves]])
        yield measured("inference", "optimizer state", where, "times the parameters", [updaters[name].state])
        yield measured("inference", "compilation", where, "s", [updaters[name].compilation])
    ratios = [many / few for few, many in zip(ours[10], ours[1000], strict=True)]
    where = {"optimizer": name, "parameters": size}
    yield measured("inference", "time of 1000 leaves over that of ten", where, "times", ratios)


def _leaves(size: int, number: int) -> dict[str, jax.Array]:
    parts = jax.random.normal(jax.random.key(0), (number, size // number))
    return {f"w{index:03}": leaf for index, leaf in enumerate(parts)}


def _updater(tx: optax.GradientTransformationExtraArgs, params: Any, size: int) -> Updater:
    traces: list[int] = []

    def update(gradients: Any, state: Any, params: Any) -> Any:
        traces.append(1)
        return tx.update(gradients, state, params, value=jnp.float32(1.0))

    jitted = jax.jit(update, donate_argnums=1)
    carried = [jax.tree.map(jnp.copy, tx.init(params))]  # its zeros may share a buffer, which cannot be given away
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(carried[0]))
    lowered = jitted.lower(params, carried[0], params)
    began = time.perf_counter()
    temporary = _temporary(lowered.compile())
    compilation = time.perf_counter() - began

    def run() -> object:
        updates, carried[0] = jitted(params, carried[0], params)
        return updates

    return Updater(run, traces, temporary / (4 * size), state_bytes / (4 * size), compilation)


def _temporary(compiled: Any) -> int:
    """Bytes that a compiled program needs beside its arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


# ----- scale ----------------------------------------------------------------------------------------------------------

# Rosenbrock throughout: a quadratic's own matrix would grow as D². D grows on one task and few steps, else it takes too
# long and too much memory; the other axes are those of the meta-step's part.
AXES: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "D": ({"tasks": 1, "T": 10}, (10, 100, 1_000, 10_000, 100_000, 1_000_000)),
    "T": ({"tasks": 64, "D": 10}, (10, 100, 1_000, 10_000)),
    "tasks": ({"D": 10, "T": 100}, (1, 10, 100, 1_000, 10_000)),
}
QUICK_END = {"D": 10_000, "T": 100, "tasks": 100}
# The experiment's fields that bound memory, tried at the longest unroll: one line a setting, any fields together.
MEMORY_AXIS = {"tasks": 64, "D": 10, "T": 10_000}
MEMORY_SETTINGS: tuple[dict[str, Any], ...] = ({"chunk_size": 64}, {"chunk_size": 16}, {"memory": 0.05})
SAFE_SHARE = 0.6  # of the free memory; what needs more is not run
LONG_CALL = 2.0  # seconds; longer calls are run once, after a first one


def scale(options: Options) -> Iterator[Row]:
    """Cost and memory of the meta-gradient along D, T and tasks, one at a time, and under the settings for memory."""
    meter = BoundMeter()
    for axis, (base, points) in AXES.items():
        costs: list[float] = []
        reached = points[0]
        for point in points:
            if options.quick and point > QUICK_END[axis]:
                continue
            rows = list(_point(meter, options, axis, base | {axis: point}, {}))
            yield from rows
            reached = point if rows[-1].unit == "ns a coordinate-step" else reached
            costs.extend(row.value for row in rows if row.unit == "ns a coordinate-step" and row.value is not None)
        least = min(costs)
        figure = f"cost at the far end of {axis} over the least"
        note = f"{axis} from {points[0]}; least {number(least)} ns"
        yield Row("scale", figure, base | {axis: reached}, "times", costs[-1] / least, note=note)
    settings = MEMORY_AXIS | ({"T": 100} if options.quick else {})
    for fields in MEMORY_SETTINGS[: 1 if options.quick else None]:
        yield from _point(meter, options, "memory", settings, fields)
        jax.clear_caches()


def _point(
    meter: BoundMeter, options: Options, axis: str, settings: dict[str, int], fields: dict[str, Any]
) -> Iterator[Row]:
    gradient = MetaGradient(settings["tasks"], settings["D"], settings["T"], **fields)
    shown = {"axis": axis} | settings | fields
    work = settings["tasks"] * settings["D"] * settings["T"]
    available = _available_memory()
    note = "not run: more than the free memory allows" if gradient.temporary > SAFE_SHARE * available else ""
    yield measured("scale", "temporary memory", shown, "MB", [gradient.temporary / 1e6], note=note)
    if note:
        return
    once = seconds(gradient.run)  # warms up: memory that a process touches for the first time is dear
    repeats = 1 if once > LONG_CALL else 2 if options.quick else options.repeats
    samples = [meter.around(gradient.run) for _ in range(repeats)]
    costs = [1e9 * elapsed / work for elapsed, _ in samples]
    ratios = [1e3 / bound.recompute / cost for cost, (_, bound) in zip(costs, samples, strict=True)]
    limit = float(np.median([1e3 / bound.recompute for _, bound in samples]))
    row = measured("scale", "meta-gradient", shown, "ns a coordinate-step", costs, ratios=ratios)
    yield dataclasses.replace(row, bound=limit)


class MetaGradient:
    """One meta-gradient of the BP model on Rosenbrock functions, compiled: `run`, and `temporary` bytes."""

    def __init__(self, tasks: int, dim: int, horizon: int, *, hidden: int = 20, **fields: Any) -> None:
        settings: dict[str, Any] = {"horizon": horizon, "optimizer": learned("BP", hidden)} | fields
        described = experiment("BP", tasks, 1, choice("rosenbrock", pairs=dim // 2), **settings)
        trainer = Trainer(described)
        key = jax.random.key(0)
        meta_params = jax.jit(trainer.optimizer.init)(key)
        args = (key, meta_params, (), trainer.families)
        program = jax.jit(trainer.estimator.estimate, compiler_options=compiler_options())
        compiled = program.lower(*args).compile()
        self.temporary = _temporary(compiled)
        self.run: Callable[[], object] = lambda: compiled(*args)


def _available_memory() -> float:
    """Bytes that programs can have without swapping."""
    words = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    return 1024.0 * int(words["MemAvailable"].split()[0])
