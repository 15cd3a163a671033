"""Two CPU devices, so that sharding is tested everywhere."""

from __future__ import annotations

from metaopt.batching import use_cpu_devices

use_cpu_devices(2)
