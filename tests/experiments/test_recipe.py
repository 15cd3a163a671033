"""The recipe study: its settings are sound, and its page says what was measured."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.recipe import arms, write
from experiments.recipe.page import page
from experiments.recipe.union import union
from metaopt.experiment.checks import validate
from metaopt.optimizers.controllers import controller
from metaopt.runs.optimizer_file import SHIPPED, read_optimizer


def test_every_setting_is_an_experiment_in_whole_windows() -> None:
    for what, setting in write.SETTINGS.items():
        asked = validate(write.experiment(setting))
        assert (asked.unroll_length or asked.horizon) == setting.window and asked.horizon % setting.window == 0, what
    assert all(phi is None or phi.is_file() for phi in write.PHIS.values())


def test_the_page_is_of_the_numbers_beside_it() -> None:
    record, held = (json.loads(path.read_text(encoding="utf-8")) for path in (write.RESULTS, write.ARMS))
    assert (write.HERE / "README.md").read_text(encoding="utf-8") == page(record, held)
    assert all(phi.is_file() for phi, _ in arms.RUNS.values())


def test_a_union_acts_as_the_mean_of_what_its_parts_put_out() -> None:
    """Of two alike as each does; and the one that is scored is that of its parts."""
    files = [
        SHIPPED / "controller.safetensors",
        *(write.HERE / f"{name}.safetensors" for name in ("recipe_0", "third_form_2")),
    ]
    parts = [read_optimizer(file).meta_params for file in files]
    held = read_optimizer(write.HERE / "union_of_three.safetensors").meta_params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), union(parts), held)
    moved = []
    for phi, size in ((parts[0], 16), (union([parts[0]] * 2), 32)):
        tx = controller(**arms.RECIPE.optimizer.options, hidden_size=size).bind(phi)
        params = {"w": jnp.linspace(-1.0, 2.0, 6).reshape(2, 3), "b": jnp.ones(3)}
        state = tx.init(params)
        for _ in range(12):
            loss, slope = jax.value_and_grad(lambda p: sum(jnp.sum((leaf - 3) ** 4) for leaf in p.values()))(params)
            steps, state = tx.update(slope, state, params, value=loss)
            params = optax.apply_updates(params, steps)
        moved.append(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *moved)


def test_the_page_names_the_estimator_whose_single_meta_step_is_nearest() -> None:
    def measured(cosine: float, one: float) -> dict[str, Any]:
        figure = {"value": cosine, "error": 0.1}
        rest = {"norm_ratio": None, "snr": {"value": 2.0, "error": 0.5}, "nonfinite": 0.25, "core_seconds": 61.0}
        return {"cosine": figure, "one_step_cosine": one, **rest}

    exploded = {**measured(0.0, 0.0), "cosine": None, "one_step_cosine": None}
    held = {"NRES, σ = .03": measured(1.0, 0.1), "first order, windows of 50": measured(0.6, 0.5)}
    text = page({"fresh": {**held, "second order, windows of 100": exploded}}, {})
    assert "first order, windows of 50 (cosine 0.50; NRES itself 0.10)" in " ".join(text.split())
    assert "| first order, windows of 50 | 0.6 ± 0.1 | 0.5 | – | 2 ± 0.5 | 25% | 61 |" in text
    assert "| second order, windows of 100 | – | – | – | 2 ± 0.5 | 25% | 61 |" in text


def test_every_arm_differs_in_one_thing_and_the_page_sets_them_beside_the_first_part() -> None:
    first = validate(arms.START)
    for name, arm in arms.ARMS.items():
        asked = validate(arm)
        differing = {
            field.name
            for field in dataclasses.fields(asked)
            if getattr(asked, field.name) != getattr(first, field.name)
        }
        things = 2 if name == arms.POLICY else name != arms.FIRST  # an estimator of its own goes with the noise
        assert len(differing - {"num_tasks"}) == things, name
        assert "num_tasks" not in differing or name == "ten families"

    def scored(adam: float, best: float) -> dict[str, Any]:
        return {"adam": adam, "best": best, "untold": best - 1, "failed": 0.125}

    held = {"50": {"a": scored(-1.0, 0.0), "b": scored(0.0, 0.5)}}
    worse = {"50": {"a": scored(0.0, 1.0), "b": scored(1.0, 1.5)}}
    text = page({}, {"without a gain": {"scores": worse}, arms.FIRST: {"scores": held}})
    assert "| the first part | 1 of 2 | 2 of 2 | 0.61 |  | 12.5% |" in text
    assert "| without a gain | 0 of 2 | 1 of 2 | 1.6 | 2.7 [2.7, 2.7] | 12.5% |" in text
    assert text.index("| the first part |") < text.index("| without a gain |")
    assert "| without a gain | 0 of 2 | 1 of 2 | 1.6 |  | 12.5% |" in page({}, {"without a gain": {"scores": worse}})
