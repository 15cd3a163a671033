"""Chains from a replay buffer."""

from __future__ import annotations

from typing import Any

import jax
import pytest

from metaopt.oracles import pcd
from metaopt.tasks.energy import tuned_mixture


@pytest.mark.parametrize("fresh", [0, 1])
def test_a_share_of_fresh_chains_may_be_a_whole_number(fresh: Any) -> None:
    family, oracle = tuned_mixture(), pcd(num_particles=4, steps=1, replay=4, fresh=fresh)
    key = jax.random.key(0)
    task = family.sample(key, ())
    params = family.init(key, task)

    def one(key: jax.Array) -> Any:
        return oracle.estimate(family, task, params, oracle.init(family, task, params, key), key)[0].gradient

    assert jax.eval_shape(one, key).shape == params.shape
