"""Devices, processes and the compilation cache, before jax touches a device."""

from __future__ import annotations

import os
from pathlib import Path


def configure_for_training(num_devices: int | None, before: int | None = None) -> None:
    """Devices as asked for, else as before; in a job of several processes they are shared out, and it is joined.

    Raises:
      UserError: the processes' shares of the devices are not equal.
      LostProcess: not all processes of the job came.
    """
    from metaopt.runs import processes

    job = processes.find_job(os.environ)
    if job is None:
        configure_jax(num_devices or before)
        return
    if before is not None and before % job.num_processes:
        before = None  # it was begun by fewer processes
    configure_jax(processes.devices_each(job, num_devices or before))
    processes.join(job)


def configure_jax(num_devices: int | None = None) -> None:
    """One CPU device for each core (or as many as asked for), and compiled code kept between runs.

    Has to come before jax touches a device; later it changes nothing.
    """
    import jax

    from metaopt.inner.devices import available_cores, use_cpu_devices

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            use_cpu_devices(num_devices or available_cores())
        except RuntimeError:
            pass  # devices are in use already
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metaopt" / "jax"
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
