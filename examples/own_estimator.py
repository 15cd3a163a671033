"""An estimator of one's own: the forward gradient, and with it an objective and an oracle. Try

metaopt train examples/own_estimator.py --num-meta-steps 20
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import metaopt
from metaopt import Estimate, Evaluation, Experiment, MetaGradient, Objective, Oracle, Schedule, Validation, choice
from metaopt.estimators.backprop import alive_sums
from metaopt.estimators.windows import How, Method, Run, start_run, whole_chunk, windowed


@metaopt.ESTIMATORS.register(differentiates=True, noise="never", cost=0.5)
def forward_gradient(optimizer, objective, schedule: Schedule) -> MetaGradient:
    """(v·∇L) v with v ~ N(0, I), by forward mode: no memory for the unroll, at the cost of variance (Baydin 2022).

    Unbiased for what `truncated_backprop` computes, of which it is one random direction in each chunk of tasks.
    """

    def gradient(phi, family, memory, keys, run):
        """A chunk's sums over its tasks, and where their runs stand at the window's end."""

        def total(phi):
            tx = metaopt.bind_tasks(optimizer, phi)
            end, trace = metaopt.unroll(tx, family, run.task, run.state, length=schedule.unroll_length)
            sums = alive_sums(end.alive, objective(trace), trace)
            return sums.loss, (sums, Run(run.task, end))

        flat, unflatten = ravel_pytree(phi)
        direction = unflatten(jax.random.normal(jax.random.fold_in(keys.ravel()[0], 1), flat.shape))
        _, slope, (sums, run) = jax.jvp(total, (phi,), (direction,), has_aux=True)
        return sums._replace(gradient=jax.tree.map(lambda leaf: slope * leaf, direction)), run

    # Windows of a horizon, chunks of tasks and devices are the same for all estimators.
    method = Method(partial(start_run, optimizer), gradient, How(differentiates=True), unrolls=whole_chunk)
    return windowed(method, schedule)


@metaopt.OBJECTIVES.register
def worst() -> Objective:
    """The largest loss of the run, smoothly: log Σ_t exp f(θ_t)."""
    return lambda trace: jax.nn.logsumexp(trace.loss, axis=0)  # [length, tasks] -> [tasks]


@metaopt.ORACLES.register
def signed() -> Oracle:
    """The sign of a minibatch's gradient."""

    def estimate(family, task, params, state, key):
        batch = family.batch(key, task, family.data)
        value, gradient = jax.value_and_grad(family.loss)(params, task, batch)
        return Estimate(jax.tree.map(jnp.sign, gradient), value), state

    return Oracle(lambda family, task, params, key: (), estimate)


EXPERIMENT = Experiment(
    tasks=(choice("quadratic", dim=5),),
    optimizer=choice("momentum", learning_rate=0.001),
    estimator=choice("forward_gradient"),
    oracle=choice("signed"),
    objective="worst",
    num_meta_steps=500,
    num_tasks=8,
    horizon=40,
    unroll_length=20,
    validation=Validation(every=0),
    evaluation=Evaluation(num_tasks=10, horizons=(40,), baselines=("sgd",)),
)
