"""One inner loop: reset, step, unroll; objectives; tasks over devices."""
