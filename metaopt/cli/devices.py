"""Devices, processes and the compilation cache, before jax touches a device."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from metaopt import files
from metaopt.errors import UserError

GUARDED = ("host_to_device", "device_to_device", "device_to_host")


def configure_for_training(num_devices: int | None, before: int | None = None) -> None:
    """Devices as asked for, else as before; in a job of several processes they are shared out, and it is joined.

    Raises:
      UserError: the processes' shares of the devices are not equal, or the devices that are asked for are not there.
      LostProcess: not all processes of the job came.
    """
    from metaopt.runs import processes

    job = processes.find_job(os.environ)
    if job is None:
        configure_jax(num_devices or before)
        see_devices(num_devices)
        return
    if before is not None and before % job.num_processes:
        before = None  # it was begun by fewer processes
    configure_jax(processes.devices_each(job, num_devices or before))
    processes.join(job)
    see_devices()


def configure_jax(num_devices: int | None = None) -> None:
    """One CPU device for each core (or as many as asked for), and compiled code kept between runs.

    Has to come before jax touches a device; later it changes nothing.
    """
    import jax

    from metaopt.inner.devices import available_cores, use_cpu_devices

    if not _forced():
        try:
            use_cpu_devices(num_devices or available_cores())
        except RuntimeError:
            pass  # devices are in use already
    for name in ("jax_transfer_guard", *(f"jax_transfer_guard_{way}" for way in GUARDED)):
        jax.config.update(name, "allow")  # of a shell that watches another program: a command reads and shows arrays
    folder = files.cache_home()
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None and folder is not None:
        cache = folder / "metaopt" / "jax"
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
            files.try_writing(cache)
            jax.config.update("jax_compilation_cache_dir", str(cache))


def see_devices(number: int | None = None) -> None:
    """Lets jax find its devices.

    Args:
      number: devices of this process, by who starts it now; a run that goes on may have begun with more.

    Raises:
      UserError: those that are asked for are not there.
    """
    import jax

    from metaopt.inner.devices import available_cores

    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter where jax knows a platform and has no plugin for it
        named = os.environ.get("JAX_PLATFORMS")
        asked = f"JAX_PLATFORMS={named}: " if named else ""
        remedy = "unset it to use what there is" if named else "see that its driver and the jax for it are installed"
        said = str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".") or "there is no such device here"
        raise UserError(f"{asked}{said}; {remedy}.") from None
    cores = available_cores()
    if number is not None and number > cores and jax.default_backend() == "cpu" and not _forced():
        raise UserError(
            f"`num_devices` ({number}) is more than the {cores} core{'s' * (cores > 1)} that there are, one device "
            f"each, and would only be slower; give at most {cores}, or leave it out."
        )


def _forced() -> bool:
    """Whether XLA is told how many devices a CPU is to be; who does that knows."""
    return "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")


def check_environment() -> None:
    """Reads the variables that jax and XLA read, which would end a command with a traceback, or the process itself.

    Raises:
      UserError: one has a value that cannot be.
    """
    try:
        import jax  # noqa: F401
    except ValueError as error:  # by a variable JAX_...
        raise UserError(f"{str(error).rstrip('.')}; unset the variable or mend it.") from None
    if not os.environ.get("XLA_FLAGS"):
        return
    # XLA ends the process at a flag it does not know, and tells of none beforehand: a child reads them first.
    code = "from jaxlib.xla_client import CompileOptions; CompileOptions().executable_build_options.debug_options"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, encoding="utf-8", errors="replace"
    )
    if done.returncode and "Traceback" not in done.stderr:  # of a jaxlib that is asked in another way
        said = done.stderr.partition("\n")[0].partition("] ")[2].rstrip(".") or "XLA does not take them"
        raise UserError(f"XLA_FLAGS={os.environ['XLA_FLAGS']}: {said}; unset the variable or mend it.")
