"""Two CPU devices, so that sharding is tested everywhere; programs that run once are compiled in the shortest time."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jaxlib.xla_client import CompileOptions

from metaopt.experiment import Experiment
from metaopt.inner.devices import use_cpu_devices
from metaopt.registry import REGISTRIES
from tests.toys import OLDER_EMITTERS

use_cpu_devices(2)
jax.config.update("jax_disable_most_optimizations", True)
# XLA's older emitters compile in half the time, to programs up to 1.7 times as slow. XLA reads its variable once, here.
# Processes that tests start do not see it, but where their numbers are compared with those of this one bit by bit.
with pytest.MonkeyPatch.context() as given:
    given.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {OLDER_EMITTERS}".strip())
    options = CompileOptions()  # held by a name, for what comes of it does not hold it
    options.executable_build_options.debug_options  # noqa: B018

# Under nohup, and in a shell's background, these are ignored, and so they would be in every process that a test starts;
# a handler is not inherited.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every run compiles the same few programs: they are kept for the time of the tests."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(autouse=True)
def imports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test's own files were imported as, and where from, is gone after it."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path_factory.getbasetemp())):
            del sys.modules[name]


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """`register(TASKS, name, factory, **traits)`, as a user's file would, for the time of one test."""
    before = [(registry, dict(registry._all())) for registry in REGISTRIES]

    def put(registry: Any, name: str, factory: Any, **traits: Any) -> None:
        registry._entries.pop(name, None)
        registry.register(factory, name=name, **traits)

    yield put
    for registry, entries in before:
        registry._entries.clear()
        registry._entries.update(entries)


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    from tests.toys import TINY

    return TINY


@pytest.fixture(scope="session")
def finished(tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `tiny` that nothing disturbed; tests only read it."""
    from metaopt.cli.train import train_with_everything

    return train_with_everything(tiny, tmp_path_factory.mktemp("finished") / "run", name="tiny")


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads the rows of a run folder without their times."""

    def read(path: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]

    return read


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test."""
    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
