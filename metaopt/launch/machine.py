"""What there is on this machine for a job: cores and accelerators. To ask jax would be to take them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Collection, Mapping
from pathlib import Path

# jax's plugin -> the device files that it looks for, under /dev
DEVICE_FILES = {"cuda": ("nvidia[0-9]*", "dxg"), "rocm": ("kfd",), "libtpu": ("accel*", "vfio/[0-9]*")}


def plugins() -> set[str]:
    """The accelerators' plugins for jax that are installed."""
    named = {entry.name for entry in importlib.metadata.entry_points(group="jax_plugins")}
    named |= {"libtpu"} if importlib.util.find_spec("libtpu") else set()
    return {plugin for plugin in DEVICE_FILES if any(plugin in name for name in named)}


def accelerator(environment: Mapping[str, str], plugins: Collection[str], devices: Path = Path("/dev")) -> str | None:
    """What jax would take by the look of this machine, None: the CPU. To ask jax would be to take it."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms:
        first = platforms.split(",")[0]
        return None if first == "cpu" else first
    found = (name for name in sorted(plugins) if any(any(devices.glob(file)) for file in DEVICE_FILES[name]))
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return next((name for name in found if not (hidden and name == "cuda")), None)


def shares(count: int) -> list[list[int]]:
    """The cores of each process: equal shares, so that none waits for another's threads; all where they are too few."""
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // count
    return [cores[i * each : (i + 1) * each] if each else cores for i in range(count)]
