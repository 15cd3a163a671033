"""Chunks, segments and what XLA is told."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from metaopt.inner import devices as batching
from metaopt.inner.devices import (
    compiler_options,
    device_memory,
    matmul_precision,
    pick_chunk_size,
    pick_segment_lengths,
)


@pytest.mark.parametrize(
    ("tasks", "dim", "asked", "size"),
    [(64, 10, None, 64), (256, 10, None, 64), (12, 100, None, 6), (4, 10_000, None, 1), (12, 10, 5, 4), (7, 10, 99, 7)],
)
def test_a_chunk_is_the_largest_divisor_within_the_cache_or_the_wish(tasks, dim, asked, size):
    assert pick_chunk_size(tasks, dim, asked) == size


def test_an_unroll_is_cut_only_where_its_residuals_exceed_the_budget():
    assert pick_segment_lengths(100, 1000, 2000, budget=200_000) == ()
    assert pick_segment_lengths(100, 1000, 1000, budget=99_999) == (10,)
    assert pick_segment_lengths(1000, 1000, 1000, budget=31_000) == (100, 10)  # 10 states, 10 states, 10 steps
    with pytest.raises(ValueError, match="`memory` .* however its unroll is cut"):
        pick_segment_lengths(1000, 1000, 1000, budget=3000)
    assert device_memory() > 2**20


def test_without_a_budget_a_cpu_cuts_once_where_that_brings_residuals_near_its_cache():
    assert pick_segment_lengths(100, 2**18, 2**18) == ()  # 25 MiB
    assert pick_segment_lengths(10_000, 2**18, 2**18) == (100,)  # 2.4 GiB, cut: 50 MiB
    assert pick_segment_lengths(4, 2**28, 2**28) == ()  # 1 GiB, and no cut would help


def test_compiler_options_are_known_to_this_xla():
    assert jax.jit(lambda x: x + 1, compiler_options=compiler_options())(1) == 2


@pytest.mark.parametrize("setting", ["highest", "default"])
def test_products_on_accelerators_have_the_precision_that_was_set(monkeypatch, setting):
    def products():
        with matmul_precision(setting):
            return str(jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 2)), jnp.ones((2, 2))))

    assert "HIGHEST" not in products()  # a CPU has one precision, and other kernels for other wishes
    monkeypatch.setattr(batching.jax, "default_backend", lambda: "gpu")
    assert ("HIGHEST" in products()) == (setting == "highest")
