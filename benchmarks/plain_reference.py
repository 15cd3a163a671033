"""Meta-training as one writes it first in JAX: what benchmarks/bench compares the framework with.

One task at a time on rows: flax cells on [D, features], `vmap` over tasks, a plain `lax.scan` without checkpoints,
`jax.grad` through it, optax for the meta-step, no guard against divergence. The draws are the framework's own, key by
key, so that both compute the same meta-gradient, which tests/benchmarks/test_plain_reference.py holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from metaopt.experiment import Experiment, build_families
from metaopt.training.trainer import Trainer
from metaopt.types import Families, Key, MetaParams, TaskFamily

# What the reference has; every other option of the optimizer must stay at its default.
OPTIONS = {"step_rule", "hidden_size", "features", "noise", "alpha_bias"}
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Network(nn.Module):
    """Two LSTM layers and two scalar heads; names as in the framework, so that φ fits both."""

    hidden_size: int
    scale_head: str

    @nn.compact
    def __call__(self, carry: list[Any], x: jax.Array) -> tuple[list[Any], jax.Array, jax.Array]:
        states = []
        for layer, state in enumerate(carry):
            state, x = nn.OptimizedLSTMCell(self.hidden_size, name=f"lstm_{layer}")(state, x)
            states.append(state)
        return states, nn.Dense(1, name="direction")(x)[:, 0], nn.Dense(1, name=self.scale_head)(x)[:, 0]


class Moments(NamedTuple):
    m: jax.Array  # [D]
    v: jax.Array  # [D]


def _moments(old: Moments, x: jax.Array) -> Moments:
    return Moments(BETA1 * old.m + (1 - BETA1) * x, BETA2 * old.v + (1 - BETA2) * x**2)


def _ratio(moments: Moments, count: jax.Array) -> jax.Array:
    return moments.m / (1 - BETA1**count) / (jnp.sqrt(moments.v / (1 - BETA2**count)) + EPS)


def _step_keys(run_key: Key, horizon: int) -> tuple[Key, Key]:
    """Keys of every step's update, [horizon], and of the minibatches at θ_0 ... θ_T, [horizon + 1]."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(run_key, jnp.arange(horizon + 1, dtype=jnp.int32))
    update, batch = (jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in (1, 0))
    return update[:-1], batch


def inner_loss(
    family: TaskFamily,
    meta_params: MetaParams,
    key: Key,
    *,
    horizon: int,
    hidden_size: int,
    recursive: bool,
    noise: bool,
) -> jax.Array:
    """(1/T) Σ_t f(θ_t) of one task, []; the step length `recursive` (BP model) or direct (RL model)."""
    network = Network(hidden_size, "log_gamma" if recursive else "log_alpha")
    task_key, init_key, run_key, _ = jax.random.split(key, 4)
    task = family.sample(task_key, family.data)
    theta, unravel = ravel_pytree(family.init(init_key, task))
    update_keys, batch_keys = _step_keys(run_key, horizon)
    dtype = jax.tree.leaves(meta_params)[0].dtype
    xi = jnp.ones(horizon, dtype)
    if noise:
        xi = jax.vmap(lambda key: jnp.sum(jax.random.exponential(key, (2,), dtype)))(update_keys)
    log_alpha = jax.random.uniform(jax.random.fold_in(update_keys[0], 1), (), dtype, -6.0, -2.0)

    @jax.value_and_grad
    def value_and_gradient(theta: jax.Array, key: Key) -> jax.Array:
        return family.loss(unravel(theta), task, family.batch(key, task, family.data))

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
        theta, gradient, cells, raw, unit, log_alpha = carry
        count, batch_key, xi = inputs
        n = gradient / jnp.linalg.norm(gradient)
        raw, unit = _moments(raw, gradient), _moments(unit, n)
        raw_features = [gradient, gradient**2, raw.m, raw.v, _ratio(raw, count)]
        unit_features = [n, n**2, unit.m, unit.v, _ratio(unit, count)]
        x = jnp.stack([*raw_features, *unit_features], axis=1)
        cells, direction, scale = network.apply({"params": meta_params}, cells, x)  # pyright: ignore
        log_alpha = jnp.clip(jnp.mean(scale) + (log_alpha if recursive else 0.0), -30.0, 15.0)
        theta = theta + jnp.exp(log_alpha) * xi * direction / jnp.linalg.norm(direction)
        loss, gradient = value_and_gradient(theta, batch_key)
        return (theta, jax.lax.stop_gradient(gradient), cells, raw, unit, log_alpha), loss

    zeros = jnp.zeros((theta.size, hidden_size), dtype)
    still = Moments(jnp.zeros_like(theta), jnp.zeros_like(theta))
    start = (theta, value_and_gradient(theta, batch_keys[0])[1], [(zeros, zeros)] * 2, still, still, log_alpha)
    counts = jnp.arange(1, horizon + 1).astype(dtype)
    return jnp.mean(jax.lax.scan(step, start, (counts, batch_keys[1:], xi))[1])


class TrainState(NamedTuple):
    meta_params: MetaParams
    opt_state: Any
    key: Key
    meta_step: jax.Array  # [] int32


class PlainTrainer:
    """An experiment's meta-training, written plainly; `init` takes φ, so that two trainers can start from the same."""

    def __init__(self, experiment: Experiment) -> None:
        options = dict(experiment.optimizer.options)
        whole = experiment.unroll_length in (None, experiment.horizon)
        if len(experiment.tasks) != 1 or experiment.optimizer.name != "lstm" or set(options) - OPTIONS or not whole:
            raise ValueError(f"the plain reference has one family, lstm with {sorted(OPTIONS)} and full unrolls.")
        if options.get("features") != "all":
            raise ValueError("the plain reference has all features; set features=all.")
        self.experiment = experiment
        self.families: Families = build_families(experiment)
        recursive = options.get("step_rule", "direct") == "recursive"
        noise = options.get("noise", "per_step") == "per_step"
        settings = {"hidden_size": options.get("hidden_size", 20), "recursive": recursive, "noise": noise}

        def meta_loss(meta_params: MetaParams, family: TaskFamily, keys: Key) -> jax.Array:
            def one(key: Key) -> jax.Array:
                return inner_loss(family, meta_params, key, horizon=experiment.horizon, **settings)

            return jnp.mean(jax.vmap(one)(keys))

        config = experiment.meta_optimizer
        clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
        self.meta_optimizer = optax.chain(clip, optax.adam(config.learning_rate))
        self.gradient: Callable = jax.value_and_grad(meta_loss)
        self.step = jax.jit(self._step, donate_argnums=0)

    def task_keys(self, key: Key) -> Key:
        """[tasks] keys of a meta-step with this key."""
        return jax.random.split(jax.random.fold_in(key, 0), self.experiment.num_tasks)

    def init(self, meta_params: MetaParams) -> TrainState:
        run_key = jax.random.split(jax.random.key(self.experiment.seed), 3)[2]
        meta_params = jax.tree.map(jnp.copy, meta_params)  # the step gives its arguments away
        return TrainState(meta_params, self.meta_optimizer.init(meta_params), run_key, jnp.zeros((), jnp.int32))

    def _step(self, state: TrainState, family: TaskFamily) -> tuple[TrainState, jax.Array]:
        keys = self.task_keys(jax.random.fold_in(state.key, state.meta_step))
        loss, gradient = self.gradient(state.meta_params, family, keys)
        updates, opt_state = self.meta_optimizer.update(gradient, state.opt_state, state.meta_params)
        meta_params: Any = optax.apply_updates(state.meta_params, updates)
        return TrainState(meta_params, opt_state, state.key, state.meta_step + 1), loss

    def run(self, state: TrainState, length: int) -> tuple[TrainState, jax.Array]:
        """`length` meta-steps: the next state and the last one's meta-loss."""
        loss = jnp.zeros(())
        for _ in range(length):
            state, loss = self.step(state, self.families[0])
        return state, loss


def plain_chunks(experiment: Experiment) -> Callable[[], MetaParams]:
    """As `cases.chunks`, from the same φ."""
    trainer = PlainTrainer(experiment)
    state = [trainer.init(Trainer(experiment).init().meta_params)]

    def run() -> MetaParams:
        state[0], _ = trainer.run(state[0], experiment.log.every)
        return state[0].meta_params

    return run
