"""The optimizers that come with metaopt: what they are, and that they train users' own networks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import metaopt
from metaopt.choices import parse_choice
from metaopt.data import load_dataset
from metaopt.evaluation.record import evaluation_keys
from metaopt.experiment import build_family
from metaopt.shipped.loading import SHIPPED, read_optimizer
from tests.toys import script

ROOT = Path(__file__).resolve().parents[2]
NAMES = metaopt.pretrained()
if not NAMES:
    pytest.skip("no optimizer comes with this version", allow_module_level=True)
THESIS = ["networks_rl", "networks_bp"]


def test_both_models_of_the_thesis_are_shipped() -> None:
    picked = [read_optimizer(SHIPPED / f"{name}.safetensors").experiment.optimizer for name in THESIS]
    assert [one.options["step_rule"] for one in picked] == ["direct", "recursive"]


@pytest.fixture(scope="module")
def ship() -> Any:
    return script("scripts/ship")


@pytest.fixture(scope="module")
def evaluated(ship: Any) -> dict[str, Any]:
    return json.loads(ship.EVALUATED.read_text(encoding="utf-8"))


def test_what_was_evaluated_is_what_is_shipped(ship: Any, evaluated: dict[str, Any]) -> None:
    assert evaluated["sha256"] == {name: ship.sha256(name) for name in THESIS}
    done = {(result["task"], result["horizon"] // result["train_horizon"]) for result in evaluated["results"]}
    planned = {(task, m) for task, _, largest in ship.PLAN for m in ship.MULTIPLES if m <= largest}
    assert done == planned and {multiple for _, multiple in planned} == {1, 10, 100}


@pytest.mark.parametrize("name", sorted({*NAMES} - {*THESIS}))
def test_what_was_scored_is_what_is_shipped(name: str, ship: Any) -> None:
    held = json.loads(ship.suite_file(name).read_text(encoding="utf-8"))
    assert held["sha256"] == ship.sha256(name) and held["suite"] == "test" and held["scored"]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_written_from_that_alone(name: str, ship: Any, evaluated: dict[str, Any]) -> None:
    trained = read_optimizer(SHIPPED / f"{name}.safetensors")
    page = (SHIPPED / f"{name}.md").read_text(encoding="utf-8")
    assert page == ship.card(name, trained, evaluated, ship.suite_scores(name))
    assert all(f"`{task}`" in page for task in trained.experiment.tasks)


def test_the_table_of_readme_and_docs_is_of_the_same_scores(ship: Any) -> None:
    for place in ship.SHORT:
        page = place.read_text(encoding="utf-8")
        found = re.search(r"<!-- controller -->\n(.*?)\n<!-- end of controller -->", page, re.DOTALL)
        assert found and found[1].splitlines() == ship.in_short(ship.suite_scores("controller"))


def test_scores_on_the_suite_are_told_with_every_task_where_tuned_adam_is_ahead(ship: Any) -> None:
    def optimizer(*final: float, tuned: dict | None = None) -> dict[str, Any]:
        held = {"final": list(final), "failed": [False] * 2, "test": None, "steps": [0, 50], "curve": [0.0, -1.0]}
        return {**held, "tuned": tuned} if tuned is not None else held

    def entry(own: float) -> dict[str, Any]:
        others = {name: optimizer(0.5, 0.5) for name in ship.running.UNTUNED}
        tuned = {"adam": optimizer(0.1, 0.1, tuned={}), "nadamw": optimizer(0.05, 0.05, tuned={"knows_horizon": True})}
        learned = {"mine": optimizer(own, own), "mine:guard=true": optimizer(0.2, 0.2)}
        return {"initial": [1.0, 1.0], "bound": [0.0, 0.0], "optimizers": {**tuned, **others, **learned}}

    bare = entry(0.1)
    bare["optimizers"] = {"mine": {**optimizer(1.0, 1.0), "failed": [True, False]}, "mine:guard=true": optimizer(0, 0)}
    both = {"equilibrium": entry(0.08), "ordinal": entry(0.3)}
    text = ship._scores("mine", {50: both, 500: {**both, "ordinal": bare}, 5000: {"ordinal": bare}})
    failed = "of the runs on all {}.0% failed, with the guard 0.0%."
    assert f"At 5,000 steps baselines were tuned for 0 of 1 tasks; {failed.format(50)}" in text
    assert f"At 500 steps baselines were tuned for 1 of 2 tasks, the table's; {failed.format(25)}" in text
    assert "| 500 | mine | 0% [0%, 79%] |" in text and "| 5,000 |" not in text
    assert "of 2 kinds" in text and "At 50 steps tuned Adam is ahead on 1 of 2: ordinal (3)." in text
    assert "| 50 | mine | 0% [0%, 66%] | 50% [9%, 91%] | 1.5 [" in text
    assert "| 50 | with the guard | 0% [0%, 66%] | 0% [0%, 66%] | 2 [" in text


@pytest.mark.parametrize("name", THESIS)
@pytest.mark.parametrize("task", ["classifier", "linear_regression"])
def test_a_row_comes_out_again(name: str, task: str, evaluated: dict[str, Any]) -> None:
    trained = read_optimizer(SHIPPED / f"{name}.safetensors")
    (row,) = (r for r in evaluated["results"] if (r["task"], r["horizon"]) == (task, trained.experiment.horizon))
    key, _ = evaluation_keys(row["seed"])
    entry = {name: (trained.optimizer, trained.meta_params)}
    how = {"horizon": row["horizon"], "train_horizon": row["train_horizon"], "num_tasks": row["num_tasks"]}
    found = metaopt.evaluate(entry, build_family(parse_choice(task)), key, **how)
    held = row["optimizers"][name]
    # Another CPU rounds differently, and a run amplifies it.
    np.testing.assert_allclose(found.loss[name][:, -1], held["per_task"]["final"], rtol=0.05, atol=1e-6)
    if held["test"]:
        tested = found.final[name]["test"]
        assert float(tested["loss"].mean()) == pytest.approx(held["test"]["loss"], rel=0.02)
        assert float(tested["accuracy"].mean()) == pytest.approx(held["test"]["accuracy"], abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_a_linen_network_of_the_user(name: str) -> None:
    digits = load_dataset("digits")
    images, labels = jnp.asarray(digits.train.inputs), jnp.asarray(digits.train.targets)

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return linen.Dense(10)(linen.tanh(linen.Dense(32)(x)))

    network, tx = Network(), metaopt.load(name)
    params = network.init(jax.random.key(1), images[:1])

    def loss(params: dict, rows: jax.Array) -> jax.Array:
        logits = network.apply(params, images[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    @jax.jit
    def run(params: dict) -> tuple[jax.Array, jax.Array]:
        def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            params, state = carry
            rows = jax.random.randint(key, (64,), 0, len(labels))
            updates, state = tx.update(jax.grad(loss)(params, rows), state, params)
            return (optax.apply_updates(params, updates), state), None

        (after, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(jax.random.key(2), 200))
        everything = jnp.arange(len(labels))
        return loss(params, everything), loss(after, everything)

    before, after = run(params)
    assert before > 2.0 and after < 0.5


def test_the_documented_example_runs_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "use.md").read_text()
    found = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.S)
    assert found, "docs/use.md has no example"
    code = found[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    exec(compile(code, "use.md", "exec"), {})
    assert float(capsys.readouterr().out.split()[-1]) < 0.5
