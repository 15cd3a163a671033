"""Two CPU devices, so that sharding is tested everywhere; programs that run once are not optimised."""

from __future__ import annotations

import jax

from metaopt.batching import use_cpu_devices

use_cpu_devices(2)
jax.config.update("jax_disable_most_optimizations", True)
