"""A task family of one's own: fitting sine waves with a small network. Try

    metaopt train examples/own_task.py --num-meta-steps 20

Everything is written for one task; metaopt runs many at once. Make arrays inside functions, not at the top of the file:
devices are chosen after it is read.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import metaopt
from metaopt import Evaluation, Experiment, TaskFamily, Validation, choice


class Wave(NamedTuple):
    amplitude: jax.Array
    phase: jax.Array


@metaopt.TASKS.register
def sine_waves(hidden: int = 16, batch_size: int = 32) -> TaskFamily:
    """Mean squared error of a network 1-`hidden`-1 on a·sin(x + p), with a ~ U[0.5, 2], p ~ U[0, π], x ~ U[-3, 3]."""

    def sample(key, data):
        amplitude_key, phase_key = jax.random.split(key)
        amplitude = jax.random.uniform(amplitude_key, minval=0.5, maxval=2.0)
        return Wave(amplitude, jax.random.uniform(phase_key, maxval=jnp.pi))

    def init(key, task):
        first, second = jax.random.split(key)
        return {
            "w": jax.random.normal(first, (hidden,)),
            "b": jnp.zeros(hidden),
            "out": jax.random.normal(second, (hidden,)) / hidden**0.5,
        }

    def batch(key, task, data):
        return jax.random.uniform(key, (batch_size,), minval=-3.0, maxval=3.0)

    def loss(params, task, x):
        layer = jnp.tanh(x[:, None] * params["w"] + params["b"])  # [examples, hidden]
        return jnp.mean((layer @ params["out"] - task.amplitude * jnp.sin(x + task.phase)) ** 2)

    def eval_batch(task, data, split):
        return jnp.linspace(-3.0, 3.0, 200)

    return TaskFamily((), sample, init, batch, loss, eval_batch, evaluated_on="200 points of [-3, 3]")


# An experiment's file is its own plugin: no --plugin is needed to train it, only to come back to the run.
EXPERIMENT = Experiment(
    tasks=(choice("sine_waves", hidden=8),),
    optimizer=choice("rnnprop", hidden_size=8),
    estimator=choice("truncated_backprop"),
    num_meta_steps=500,
    num_tasks=8,
    horizon=40,
    unroll_length=20,
    validation=Validation(every=0),
    evaluation=Evaluation(num_tasks=10, horizons=(40,), baselines=("adam",)),
)
