"""The untuned field: judged at its own parameters, taken as it comes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.choices import choice
from metaopt.errors import UserError
from metaopt.evaluation import evaluate, evaluate_run_on
from metaopt.inner.binding import bind_tasks, judged_params
from metaopt.inner.step import reset
from metaopt.optimizers import momo_adam, schedule_free_adamw, sgd
from metaopt.registry import OPTIMIZERS
from metaopt.shipped.loading import eval_params
from metaopt.types import Optimizer
from tests.toys import bowl

KEY = jax.random.key(0)
UNTUNED = [name for name in OPTIMIZERS if OPTIMIZERS.traits(name).untuned]


def test_schedule_free_is_judged_at_its_average() -> None:
    family, optimizer, horizon = bowl(), schedule_free_adamw(learning_rate=0.3), 6
    phi = optimizer.init(KEY)
    found = evaluate({"free": (optimizer, phi)}, family, KEY, horizon=horizon, num_tasks=2, record_every=1)
    # By hand: x averages z with equal weights, as the rate does not change; gradients are taken at y.
    task, state = reset(bind_tasks(optimizer, phi), family, jax.random.split(KEY, 2))
    assert np.allclose(judged_params(optimizer, state), state.params)
    loss = jax.vmap(lambda params, task: family.loss(params, task, ()))
    slope = jax.jit(jax.vmap(jax.grad(lambda params, task: family.loss(params, task, ()))))
    x = z = np.asarray(state.params, np.float64)
    nu, losses = 0.0, [loss(state.params, task)]
    for t in range(1, horizon + 1):
        gradient = np.asarray(slope(jnp.asarray(0.1 * z + 0.9 * x, jnp.float32), task), np.float64)
        nu = 0.999 * nu + 0.001 * gradient**2
        z = z - 0.3 * gradient / (np.sqrt(nu / (1 - 0.999**t)) + 1e-8)
        x = x + (z - x) / t
        losses.append(loss(jnp.asarray(x, jnp.float32), task))
    np.testing.assert_allclose(found.loss["free"], np.stack(losses, axis=1), rtol=1e-4)
    np.testing.assert_allclose(found.final["free"]["train"]["loss"], losses[-1], rtol=1e-4)
    # The same of optax, as it stands, with what it is to be judged at; and without, judged where gradients are taken.
    plain = optax.contrib.schedule_free_adamw(0.3)
    wrapped = Optimizer(
        lambda key: (),
        lambda phi: optax.with_extra_args_support(plain),
        eval_params=optax.contrib.schedule_free_eval_params,
    )
    others = evaluate({"own": (wrapped, ()), "y": plain}, family, KEY, horizon=horizon, num_tasks=2, record_every=1)
    np.testing.assert_allclose(others.loss["own"], found.loss["free"], rtol=1e-4)
    assert not np.allclose(others.loss["y"][:, 1:], found.loss["free"][:, 1:], rtol=1e-3)


def test_parameters_for_evaluation_asked_of_what_has_none() -> None:
    with pytest.raises(UserError, match="^lstm.* has no parameters for evaluation apart; judge its parameters.$"):
        eval_params("networks_rl")


def test_momo_needs_the_loss() -> None:
    tx = momo_adam().bind(momo_adam().init(KEY))
    with pytest.raises(UserError, match="momo_adam needs the loss of each step"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


def test_untuned_ones_are_taken_as_they_come_and_scored_apart() -> None:
    assert {"schedule_free_adamw", "prodigy", "dadapt_adamw", "momo_adam", "dowg", "cocob", "mechanize_adam"} < {
        *UNTUNED
    }
    names = ("sgd", "prodigy", "nadamw_calibrated")
    result = evaluate_run_on(
        {"mine": (sgd(), sgd(learning_rate=0.1).init(KEY))},
        choice("quadratic", dim=2),
        horizon=8,
        num_tasks=4,
        num_tuning_tasks=2,
        baselines=names,
    )
    assert result["best_baseline"] == "sgd"
    records = result["optimizers"]
    assert [records[name]["kind"] for name in ("mine", *names)] == ["learned", "baseline", "untuned", "untuned"]
    assert records["prodigy"]["tuned"] == {"untuned": True}
    assert records["nadamw_calibrated"]["tuned"] == {"untuned": True, "knows_horizon": True}
