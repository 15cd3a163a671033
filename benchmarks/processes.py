"""The parts of benchmarks/bench that time processes of their own: two devices against one, the start of a run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.cases import chunks, experiment, first_row, serve
from benchmarks.measure import ROOT, Options, Row, measured
from metaopt.inner.devices import use_cpu_devices

# ----- devices --------------------------------------------------------------------------------------------------------

BUSY_SHARE = 0.05  # of all cores' time: what others may use for the figure to count


class Load:
    """What the rest of the machine does from here to `others`, by /proc/stat: a share of all cores' time."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.perf_counter(), _busy_seconds(), 0.0

    def others(self, own: float) -> float:
        """Share that processes other than ours took; `own` is the core-seconds that ours used meanwhile."""
        elapsed = time.perf_counter() - self._began
        return max(0.0, _busy_seconds() - self._busy - own) / (elapsed * (os.cpu_count() or 1))


def _busy_seconds() -> float:
    """Core-seconds since boot that were not idle, time stolen by the host included."""
    fields = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
    idle, waiting = fields[3], fields[4]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A process of its own that times calls when told to: a program of Python that ends in `cases.serve`."""

    def __init__(self, program: list[str], environment: Mapping[str, str]) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, *program]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, cwd=ROOT, encoding="utf-8")
        self.first = self._read()  # {"seconds"} of the first call, compilation and all

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker {self._process.args} ended early")
        return json.loads(line)

    def begin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, float]:
        """{"seconds", "core_seconds"} of the call that was begun."""
        return self._read()

    def time(self) -> dict[str, float]:
        self.begin()
        return self.end()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def on_devices(num_devices: int, num_tasks: int, meta_steps: int, core: int = 0) -> Worker:
    """With so many CPU devices, one thread and one core each, from `core` on."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "NPROC": "1",  # the size of jaxlib's own pool
        "OMP_NUM_THREADS": "1",
    }
    return Worker(["-m", "benchmarks.processes", *map(str, (num_devices, num_tasks, meta_steps, core))], environment)


def work(num_devices: int, num_tasks: int, meta_steps: int, core: int) -> None:
    """What such a worker does."""
    os.sched_setaffinity(0, set(range(core, core + num_devices)))
    use_cpu_devices(num_devices)
    serve(chunks(experiment("BP", num_tasks, meta_steps, num_devices=num_devices)))


def devices(options: Options) -> Iterator[Row]:
    """Two CPU devices against one, one thread and one core a device; the machine has to be otherwise idle.

    Beside them two processes with half of the tasks each, which share nothing but the machine.
    """
    for num_tasks in options.tasks:
        settings = {"tasks": num_tasks, "model": "BP"}
        figures = ("speed of two CPU devices over one", "speed of two separate processes over one")
        if (os.cpu_count() or 1) < 2 or num_tasks % 2:
            why = "an odd number of tasks" if num_tasks % 2 else "one core only"
            for figure in figures:
                yield Row("devices", figure, settings, "times", None, note=why)
            continue
        steps = 2 if options.quick else max(2, 1280 // num_tasks)
        workers: list[Worker] = []
        try:
            workers.extend(on_devices(count, num_tasks, steps) for count in (1, 2))
            workers.extend(on_devices(1, num_tasks // 2, steps, core) for core in (0, 1))
            ratios: tuple[list[float], list[float]] = ([], [])
            shares = []
            for _ in range(options.repeats):
                load = Load()
                one, two = (worker.time() for worker in workers[:2])
                for worker in workers[2:]:
                    worker.begin()
                halves = [worker.end() for worker in workers[2:]]
                shares.append(load.others(sum(report["core_seconds"] for report in (one, two, *halves))))
                ratios[0].append(one["seconds"] / two["seconds"])
                ratios[1].append(one["seconds"] / max(half["seconds"] for half in halves))
        finally:
            for worker in workers:
                worker.close()
        share = statistics.median(shares)
        for figure, values in zip(figures, ratios, strict=True):
            note = f"others used {share:.0%} of the cores' time"
            if share > BUSY_SHARE:
                yield Row("devices", figure, settings, "times", None, note=note)
            else:
                yield measured("devices", figure, settings, "times", values, note=note)


# ----- start ----------------------------------------------------------------------------------------------------------


# Experiments and, for a mixture of families, what is added to one.
_NETWORKS = ("classifier:hidden_layers=1", "classifier:hidden_layers=1,batch_norm=true", "autoencoder:hidden_layers=1")
_FUNCTIONS = ("quadratic", "rosenbrock", "linear_regression", "logistic_regression")
_EIGHT = (*_NETWORKS, "classifier:hidden_layers=1,data=mnist_5k,width=10", *_FUNCTIONS)
STARTS: dict[str, tuple[str, ...]] = {
    "quadratic_rl": (),
    "quadratic_bp": (),
    "networks_bp": ("--tasks", *_EIGHT, "--num-tasks", "8", "--log.every", "1", "--validation.every", "0"),
}


def start(options: Options) -> Iterator[Row]:
    """Seconds from `metaopt train` to the first logged meta-steps, the compilation cache empty and warm.

    On all cores of the machine, whatever this process is pinned to (in quick form on this process's).
    """
    affinity = os.sched_getaffinity(0)
    if not options.quick:
        os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))  # the children inherit it
    for name, flags in list(STARTS.items())[: 1 if options.quick else None]:
        found: dict[str, list[float]] = {"empty cache": [], "warm cache": []}
        for _ in range(1 if options.quick else 3):
            with tempfile.TemporaryDirectory() as scratch:
                fresh = {"XDG_CACHE_HOME": scratch, "JAX_COMPILATION_CACHE_DIR": f"{scratch}/jax", "XLA_FLAGS": ""}
                for index, seconds in enumerate(found.values()):
                    out, variables = Path(scratch) / str(index), {**fresh, "PYTHONPATH": str(ROOT)}
                    seconds.append(first_row(name, out, *flags, **variables))
        settings = {"experiment": name, "cores": len(os.sched_getaffinity(0))}
        what = "first meta-step of eight families" if flags else "first logged meta-steps"
        for cache, seconds in found.items():
            yield measured("start", f"{what}, {cache}", settings, "s", seconds)
    os.sched_setaffinity(0, affinity)


if __name__ == "__main__":
    work(*map(int, sys.argv[1:]))
