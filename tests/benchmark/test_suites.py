"""The suites: how many of how many kinds, nothing in common, and every family one that can be optimised."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import testing
from metaopt.benchmark import sources
from metaopt.benchmark.suites import DEVELOPMENT, SUITES, TEST, Entry
from metaopt.data.images import DATASETS
from metaopt.registry import TASKS
from metaopt.tasks.checks import check_family
from metaopt.types import Key, TaskFamily

ENTRIES = [entry for suite in SUITES.values() for entry in suite.values()]
EVERY = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
# Compilation is what costs: the first of every other kind.
SOME = list({entry.kind: entry for entry in reversed(ENTRIES)}.values())[::2]
KEY = jax.random.key(0)
STEPS = 20


def data_of(suite: Any) -> set[str]:
    return {source.name for entry in suite.values() for source in entry.family.sources}


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_enough_tasks_of_enough_kinds(suite: Any) -> None:
    assert len(suite) >= 25
    assert len({entry.kind for entry in suite.values()}) >= 10
    assert all(entry.name == name == entry.family.name and entry.summary for name, entry in suite.items())


def test_the_suites_share_nothing_with_each_other_or_with_what_is_trained_on() -> None:
    kinds = [{entry.kind for entry in suite.values()} for suite in (DEVELOPMENT, TEST)]
    assert not kinds[0] & kinds[1]
    assert not data_of(DEVELOPMENT) & data_of(TEST)
    assert not (data_of(DEVELOPMENT) | data_of(TEST)) & set(DATASETS)
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names) and not set(names) & set(TASKS)


@EVERY
def test_shapes_alone(entry: Entry) -> None:
    family = entry.family
    assert family is entry.family  # kept, and so is what was compiled for it
    check_family(family)
    params = jax.eval_shape(lambda key: family.init(key, family.sample(key, family.data)), KEY)
    leaves = jax.tree.leaves(params)
    assert 10 <= sum(leaf.size for leaf in leaves) <= 1e5
    assert all(leaf.dtype == jnp.float32 and not leaf.weak_type for leaf in leaves)


def descent(family: TaskFamily, key: Key, rate: jax.Array) -> tuple[Any, ...]:
    """Losses on all of the training data before and after steps of Adam; the first gradient, the task, its bound."""
    task_key, init_key, *keys = jax.random.split(key, STEPS + 2)
    task = family.sample(task_key, family.data)
    params, tx = family.init(init_key, task), optax.adam(rate)

    def step(state: Any, key: Key) -> tuple[Any, Any]:
        params, slow = state
        gradient = jax.grad(family.loss)(params, task, family.batch(key, task, family.data))
        updates, slow = tx.update(gradient, slow, params)
        return (optax.apply_updates(params, updates), slow), gradient

    (after, _), gradients = jax.lax.scan(step, (params, tx.init(params)), jnp.stack(keys))
    held = family.eval_batch(task, family.data, "train")
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, after)
    losses = jax.lax.map(lambda params: family.loss(params, task, held), both)
    bound = family.lower_bound(task) if callable(family.lower_bound) else family.lower_bound
    return losses, jax.tree.map(lambda leaf: leaf[0], gradients), (task, params), bound


@pytest.mark.parametrize("entry", SOME, ids=lambda entry: entry.name)
def test_adam_lowers_the_loss_and_not_below_the_bound(entry: Entry) -> None:
    run = jax.jit(descent)
    slow, fast, other = (
        run(entry.family, jax.random.key(key), rate) for key, rate in ((0, 3e-3), (0, 3e-2), (1, 3e-3))
    )
    losses, gradient, start, bound = slow
    assert np.isfinite(losses).all() and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
    lowest = np.nanmin([losses[1], fast[0][1]])
    assert bound - 1e-5 * (1 + abs(bound)) <= lowest < losses[0]
    # A key decides the task and the start.
    same(start, fast[2])
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (start, other[2])), strict=True))


def same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", ["completion", "deblurred_flower"])
def test_checks_of_ones_own_entries_pass(name: str) -> None:
    testing.check_task({**DEVELOPMENT, **TEST}[name].family)


def test_no_example_is_in_two_splits() -> None:
    """A licence repeats itself, and tables have equal rows: of these, only places and counts are known."""
    made = [sources.patches("china"), sources.patches("flower"), sources.glyphs(), sources.character_names()]
    for source in made:
        rows = [np.asarray(jax.tree.leaves(source.splits[split])[0]) for split in ("train", "test")]
        train, test = ({row.tobytes() for row in part} for part in rows)
        assert not train & test, source.source.name
    for name in ("iris", "wine", "breast_cancer"):
        sizes = [len(part.targets) for part in sources.table(name).splits.values()]
        assert sum(sizes) == {"iris": 150, "wine": 178, "breast_cancer": 569}[name]


def test_what_is_read_is_what_it_was() -> None:
    """Texts and counts are the same on every installation; the first words of each."""
    text, source = sources.licence()
    assert text.startswith("terms and conditions for use") and source.sha256[:8] == LICENCE
    assert sources.character_names().source.sha256[:8] == NAMES
    friends, sides, _ = sources.club()
    assert friends.sum() == 2 * 78 and sides.sum() == 17


LICENCE, NAMES = "f91ab51c", "4e571113"
