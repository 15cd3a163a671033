"""Meta-training under settings of jax that an ordinary program passes."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.choices import choice
from metaopt.cli import devices
from metaopt.errors import UserError
from metaopt.experiment import Experiment, build_family, build_optimizer
from metaopt.microscope.inner_runs import watch
from metaopt.microscope.jacobian_growth import growth_along
from metaopt.registry import ESTIMATORS
from metaopt.runs.checkpoints import Checkpoints
from metaopt.training import trainer as trainer_module
from metaopt.training.trainer import Trainer
from tests.toys import GENERAL, OF_TASK, TINY, in_x64

LSTM = choice("lstm", hidden_size=2, num_layers=1, noise="per_coordinate", step_rule="recursive")
SETTINGS = {
    "x64": in_x64,
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
}
# Every estimator in double precision, where sums over tasks are wider than φ; every kind of task under every setting.
CASES = [("x64", name, "quadratic") for name in GENERAL] + [("x64", name, "ridge_features") for name in OF_TASK]
CASES += [
    (setting, "truncated_backprop", task)
    for setting in SETTINGS
    for task in ("linear_regression", "classifier:width=2:batch_size=4")
]


def experiment(estimator: str, task: str = "quadratic") -> Experiment:
    name, *options = task.split(":")
    pairs = dict(option.split("=") for option in options)
    settings = {key: int(value) if value.isdigit() else value for key, value in pairs.items()}
    windows = {"unroll_length": 2} if ESTIMATORS.traits(estimator).windows else {}
    optimizer = choice("sgd", learning_rate=1e-3) if estimator in OF_TASK else LSTM
    return dataclasses.replace(
        TINY,
        tasks=(choice(name, **settings),),
        estimator=choice(estimator),
        optimizer=optimizer,
        num_tasks=4,
        **windows,
    )


@pytest.mark.parametrize(("setting", "estimator", "task"), CASES)
def test_meta_steps_keep_the_types_of_what_they_carry(
    setting: str, estimator: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trainer_module, "compiler_options", lambda **_: None
    )  # on shapes alone, where nothing is compiled
    with SETTINGS[setting]():
        trainer = Trainer(experiment(estimator, task))
        state = jax.eval_shape(trainer.init)
        after, _ = jax.eval_shape(
            lambda state, families: trainer._run(state, families, jnp.int32(2), None, length=2), state, trainer.families
        )
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after.meta_params))


@pytest.mark.parametrize(
    "setting", [lambda: jax.debug_key_reuse(True), lambda: jax.transfer_guard("disallow")], ids=["keys", "transfers"]
)
def test_meta_steps_under_checks_at_run_time(setting) -> None:
    def phi() -> list:
        trainer = Trainer(TINY)
        return jax.tree.leaves(jax.device_get(trainer.run_chunk(trainer.init())[0].meta_params))

    wanted = phi()
    with setting():
        assert all(map(np.array_equal, phi(), wanted))


def test_a_checkpoint_in_another_precision_names_the_setting() -> None:
    one, two = {"a": jnp.zeros(2)}, {"a": "float64[2]"}
    check = functools.partial(Checkpoints._check, SimpleNamespace(_folder="run"), 4)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="written with double precision; resume with JAX_ENABLE_X64=1"):
        check(two, one)
    with in_x64(), pytest.raises(UserError, match="written without .* resume with JAX_ENABLE_X64=0"):
        check({"a": "float32[2]"}, {"a": jnp.zeros(2, jnp.float64)})


def test_the_doctor_follows_runs_in_double_precision() -> None:
    picked = choice("lstm", hidden_size=2, num_layers=1)
    with in_x64():
        optimizer, family = build_optimizer(picked), build_family(TINY.tasks[0])

        def measured(key: jax.Array) -> tuple:
            phi, keys = optimizer.init(key), jax.random.split(key, 2)
            growth = growth_along(optimizer, phi, family, keys, num_starts=1, spacing=2, length=2)
            return growth, watch(optimizer, phi, family, keys, horizon=2, explore=False, num_coordinates=2)

        (growth, _), seen = jax.eval_shape(measured, jax.random.key(0))
    assert growth.shape == (2, 1) and seen.inputs is not None and seen.inputs.dtype == jnp.float32


@pytest.mark.parametrize("variable", ["jax_transfer_guard", "jax_transfer_guard_host_to_device"])
def test_commands_lift_a_transfer_guard_of_the_shell(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = jax.config.values[variable]
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    jax.config.update(variable, "disallow")
    try:
        devices.configure_jax(1)
        assert jax.config.values[variable] == "allow"
        assert float(jnp.zeros(()) + 1) == 1.0
    finally:
        jax.config.update(variable, before)
