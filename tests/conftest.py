"""Two CPU devices, so that sharding is tested everywhere; programs that run once are not optimised."""

from __future__ import annotations

import signal

import jax

from metaopt.batching import use_cpu_devices

use_cpu_devices(2)
jax.config.update("jax_disable_most_optimizations", True)

# Under nohup, and in a shell's background, these are ignored, and so they would be in every process that a test starts;
# a handler is not inherited.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)
