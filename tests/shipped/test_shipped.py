"""The optimizers that come with metaopt: what they are, and that they train users' own networks."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen

import metaopt
from metaopt.data import load_dataset
from metaopt.shipped.loading import SHIPPED, read_optimizer

ROOT = Path(__file__).resolve().parents[2]
NAMES = metaopt.pretrained()
if not NAMES:
    pytest.skip("no optimizer comes with this version", allow_module_level=True)


def test_both_models_of_the_thesis_are_shipped() -> None:
    files = [SHIPPED / f"{name}.safetensors" for name in NAMES]
    rules = {read_optimizer(path).experiment.optimizer.options["step_rule"] for path in files}
    assert rules == {"direct", "recursive"}


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_it_is_and_how_it_did(name: str) -> None:
    trained = read_optimizer(SHIPPED / f"{name}.safetensors")
    rows = trained.card["evaluated"]
    assert {row["of T"] for row in rows} >= {"1×", "10×", "100×"}
    page = (SHIPPED / f"{name}.md").read_text()
    for row in rows:
        assert row["mean loss"] in page and row["best tuned baseline"] in page
    for task in trained.experiment.tasks:
        assert f"`{task}`" in page


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


def test_the_readmes_example_runs_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.S)
    assert found, "README.md has no example"
    code = found[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    exec(compile(code, "README.md", "exec"), {})
    assert float(capsys.readouterr().out.split()[-1]) < 0.5
