"""The examples run as they say."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from metaopt import testing
from metaopt.cli.entry import main
from metaopt.registry import OBJECTIVES, REGISTRIES
from metaopt.runs.experiments import load_experiment

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(autouse=True)
def no_entry_stays() -> Iterator[None]:
    held = [dict(registry._entries) for registry in REGISTRIES if len(registry)]
    yield
    for registry, entries in zip(REGISTRIES, held, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


def imported(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_own_entries_pass_the_checks_that_people_call() -> None:
    testing.check_task(imported("own_task").sine_waves(hidden=4))
    testing.check_optimizer(imported("own_optimizer").tiny_mlp(hidden=2))
    imported("own_estimator")
    testing.check_estimator("forward_gradient")


def test_the_forward_gradient_is_the_gradient_on_the_average() -> None:
    own = imported("own_estimator")
    from metaopt.estimators import Schedule, truncated_backprop
    from metaopt.optimizers import momentum
    from metaopt.tasks import quadratic

    optimizer, families = momentum(learning_rate=0.01), (quadratic(dim=2),)
    schedule = Schedule(num_tasks=4, horizon=3, unroll_length=3, num_devices=1)
    phi = optimizer.init(jax.random.key(0))
    exact, found = (
        jax.jit(
            lambda key, make=make: make(optimizer, OBJECTIVES["mean"](), schedule).estimate(key, phi, (), families)[0]
        )
        for make in (truncated_backprop, own.forward_gradient)
    )
    ratios = [
        found(key)["learning_rate"] / exact(key)["learning_rate"] for key in jax.random.split(jax.random.key(1), 400)
    ]
    assert all(ratio >= 0 for ratio in ratios)  # v² of one number
    mean = sum(map(float, ratios)) / len(ratios)
    assert abs(mean - 1) < 4 * (2 / len(ratios)) ** 0.5  # v² has the variance 2


@pytest.mark.parametrize("name", ["own_task", "own_optimizer", "own_estimator"])
def test_an_own_entry_is_meta_trained(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jax.devices()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "run"
    words = ["--num-meta-steps", "2", "--log.every", "2", "--num-tasks", "2", "--evaluation.num-tasks", "2"]
    words += ["--evaluation.baselines", "sgd", "--num-devices", "1", "--out", str(out)]
    assert main(["train", str(EXAMPLES / f"{name}.py"), *words]) == 0
    assert (out / "report.html").exists()
    assert load_experiment(str(out))[1].num_meta_steps == 2


def test_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = imported("by_hand").train(num_meta_steps=100)
    assert after < 0.7 * before
    assert "meta-step 0: loss" in capsys.readouterr().out
    assert len((EXAMPLES / "by_hand.py").read_text().splitlines()) < 70


def test_networks_of_flax() -> None:
    losses, guarded = imported("nnx_network").train(steps=40)
    assert losses[-1] < 0.5 * losses[0] and guarded == 0
    losses = imported("linen_network").train(steps=60)
    assert losses[-1] < 0.5 * losses[0]


def test_fine_tuning_leaves_the_frozen_part_be() -> None:
    first, last, before, after = imported("fine_tuning").fine_tune()
    assert last < 0.3 * first
    moved = [float(jnp.max(jnp.abs(a["w"] - b["w"]))) for a, b in zip(before, after, strict=True)]
    assert moved[0] == 0 < moved[1] < 0.2 < moved[2]


@pytest.mark.parametrize("name", ["nnx_network", "linen_network", "fine_tuning"])
def test_an_example_for_users_is_read_in_one_sitting(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60


def test_hypergradients_on_an_own_problem() -> None:
    own = imported("own_hypergradients")
    assert min(own.cosines[name] for name in ("exact, forward", "HOAG", "Neumann, 20", "DrMAD")) > 0.999
    assert own.cosines["T1-T2"] > 0.9 and own.kept > 0.7 and own.dropped < 0.1
    assert own.losses[-1] < 0.6 * own.losses[0]


def test_an_oracle_by_itself_finds_the_law_of_given_moments() -> None:
    own = imported("own_energy")
    x = jnp.linspace(-4.0, 4.0, 4001)
    weights = jax.nn.softmax(own.theta[0] * x + own.theta[1] * x**2 - x**4)
    moments = jnp.stack([weights @ x, weights @ x**2])
    assert jnp.allclose(moments, own.MOMENTS, atol=0.02) and own.info["collapsed"].sum() == 0
