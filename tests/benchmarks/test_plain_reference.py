"""The bench's plain reference computes what the framework computes: meta-gradients, and whole meta-training."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks.plain_reference import PlainTrainer
from metaopt.choices import Choice, choice
from metaopt.experiment import Experiment, Log
from metaopt.training.trainer import Trainer

BP: dict[str, Any] = {
    "optimizer": choice("lstm", hidden_size=5, features="all", step_rule="recursive", noise="none"),
    "estimator": choice("truncated_backprop"),
}
RL: dict[str, Any] = {
    "optimizer": choice("lstm", hidden_size=5, features="all", noise="per_step"),
    "estimator": choice("reparameterised"),
}
QUADRATIC = choice("quadratic", dim=6)
DIGITS = choice("classifier", width=3, batch_size=8)


def experiment(model: dict[str, Any], task: Choice) -> Experiment:
    return Experiment(
        tasks=(task,), num_meta_steps=100, num_tasks=4, horizon=12, num_devices=1, log=Log(every=3), seed=2, **model
    )


def gradients(described: Experiment, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """The framework's and the reference's, at a φ with nothing special, as vectors."""
    trainer, plain = Trainer(described), PlainTrainer(described)
    flat, unravel = ravel_pytree(jax.jit(trainer.optimizer.init)(jax.random.key(0)))
    noise = jax.random.normal(jax.random.key(1), flat.shape)
    meta_params = jax.tree.map(lambda leaf: leaf.astype(dtype), unravel((flat + 0.1 * noise).astype(flat.dtype)))
    key = jax.random.key(3)
    ours, _, _ = jax.jit(trainer.estimator.estimate)(key, meta_params, (), trainer.families)
    _, theirs = jax.jit(plain.gradient)(meta_params, plain.families[0], plain.task_keys(key))
    return ravel_pytree(ours)[0], ravel_pytree(theirs)[0]


CASES = {"RL": (RL, QUADRATIC), "BP, digits": (BP, DIGITS)}  # BP on the quadratic: in x64, and the meta-training


@pytest.mark.parametrize("case", CASES)
def test_the_meta_gradient_is_the_frameworks(case: str) -> None:
    ours, theirs = gradients(experiment(*CASES[case]), jnp.dtype(jnp.float32))
    assert np.linalg.norm(theirs) > 1e-6
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize("model", [BP, RL], ids=["BP", "RL"])
def test_the_meta_gradient_is_the_frameworks_in_x64(x64: None, model: dict[str, Any]) -> None:
    ours, theirs = gradients(experiment(model, QUADRATIC), jnp.dtype(jnp.float64))
    assert ours.dtype == jnp.float64
    assert np.linalg.norm(ours - theirs) <= 1e-10 * np.linalg.norm(theirs)


def test_meta_training_is_the_frameworks() -> None:
    described = experiment(BP, QUADRATIC)
    trainer, plain = Trainer(described), PlainTrainer(described)
    state = trainer.init()
    theirs, loss = plain.run(plain.init(state.meta_params), 3)
    state, metrics = trainer.run_chunk(state)
    ours = ravel_pytree(state.meta_params)[0]
    np.testing.assert_allclose(metrics["meta_loss"][-1], loss, rtol=1e-5)
    # Adam's first steps are signs, which a gradient near zero may flip: the steps are 3e-3 at most.
    assert np.abs(ours - ravel_pytree(theirs.meta_params)[0]).max() < 1e-4


def test_what_the_reference_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="the plain reference has"):
        PlainTrainer(dataclasses.replace(experiment(BP, QUADRATIC), unroll_length=6))
