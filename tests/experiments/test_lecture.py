"""The lecture's experiment: its families are as they say, a search finds what is known, its page is of its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lecture import families, page, search, write

HERE = Path(write.__file__).parent


def test_the_page_is_of_the_numbers_beside_it() -> None:
    record = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    text = page.page(record)
    assert (HERE / "README.md").read_text(encoding="utf-8") == text
    assert {name for name, _, _ in write.pieces()} == {*families.FAMILIES, *write.PARTS}
    for claim in page.claims(record):
        assert claim.part in {name for name, _, _ in write.pieces()}
        assert (HERE / "figures" / f"{claim.figure}.png").exists() and "|" not in claim.evidence


def test_a_search_is_extended_until_the_best_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient descent on ½ Σ h z², h from .001 to 1, is stable below a rate of 2; the grid begins at 1e-7."""
    monkeypatch.setitem(search.FAMILIES, "ravine", families.FAMILIES["ravine"]._replace(horizon=100, tasks=4))
    monkeypatch.setattr(search, "FIRST", -14)
    found = search.search("sgd", "ravine")
    assert found["inside"] and found["rate"] == pytest.approx(1.0) and found["failed"] == 0
    assert len(found["rates"]) == len(found["by_rate"]) == 16
    # One half-decade on every task's run has failed.
    assert found["by_rate"][found["rates"].index(found["rate"]) + 1] == pytest.approx(search.CEILING)


@pytest.mark.parametrize("make", [families.moving, families.regimes, families.relabelled])
def test_the_data_of_drifting_families_drift_where_they_say(make: object) -> None:
    family = make()  # type: ignore[operator]
    assert family.oracle is not None
    task = family.sample(jax.random.key(0), family.data)
    params = family.init(jax.random.key(1), task)
    state = family.oracle.init(family, task, params, jax.random.key(2))
    key = jax.random.key(3)
    moved = {}
    for step in (1, families.EVERY):
        there = state._replace(step=jnp.int32(step))
        found, after = family.oracle.estimate(family, task, params, there, key)
        moved[step] = any(
            np.any(a != b) for a, b in zip(jax.tree.leaves(after.world), jax.tree.leaves(task), strict=True)
        )
        assert int(after.step) == step + 1 and np.isfinite(found.info["error"])
    assert moved[families.EVERY] and moved[1] == (make is families.moving)
