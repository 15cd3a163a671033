"""Expectation-maximisation for mixtures of experts: the reference that needs no gradient of the likelihood.

Dempster, Laird and Rubin 1977; Jordan and Jacobs 1994. Each step raises log p(y, W | X, V) or leaves it: experts, their
prior means, the noise and constant weights have closed forms, each given the others (conditional maximisation, Meng and
Rubin 1993); the gate network takes steps of Fisher scoring whose length is chosen by the value (generalised EM). On a
partition this is classification EM (Celeux and Govaert 1992): k-means with lines for centres.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metaopt.tasks.mixture import Mixture, Rows, check_sample
from metaopt.types import Estimate, Key, Oracle, OracleState, Params, Task, TaskFamily

GATE_STEPS = 3
LENGTHS = (1.0, 0.5, 0.25, 0.125, 1 / 16, 1 / 64, 1 / 256, 1 / 1024, 0.0)  # of a gate's step; 0: nothing is better
LEAST_WEIGHT = 1e-30


def em_step(mixture: Mixture, params: Params, rows: Rows) -> Params:
    """One step on all `rows`; needs O(N K inputs²) for the experts and O(N K P²) for a gate of P parameters."""
    r = mixture.responsibilities(params, rows)
    params = dict(params)
    a, beta = mixture.prior_precision, jnp.exp(mixture.log_beta(params))

    def expert(weights: jax.Array, mean: jax.Array) -> jax.Array:
        weighted = beta * weights[:, None] * rows.X
        precision = weighted.T @ rows.X + a * jnp.eye(mixture.num_inputs, dtype=rows.X.dtype)
        return jax.scipy.linalg.solve(precision, weighted.T @ rows.y + a * mean, assume_a="pos")

    means = params["means"] if mixture.coupling else jnp.zeros_like(params["experts"])
    experts = params["experts"] = jax.vmap(expert)(r.T, means)
    if mixture.coupling:
        centre = jnp.mean(experts, axis=0)
        params["means"] = centre + a / (a + mixture.coupling * mixture.num_experts) * (experts - centre)
    if mixture.learn_noise:
        errors = rows.y[:, None] - rows.X @ experts.T
        params["log_beta"] = -jnp.log(jnp.mean(jnp.sum(r * errors**2, axis=1)))
    if "weights" in params:
        params["weights"] = jnp.log(jnp.maximum(jnp.mean(r, axis=0), LEAST_WEIGHT))
    if "gate" in params:
        params["gate"] = _gate(mixture, params["gate"], r, rows.X)
    return params


def _gate(mixture: Mixture, gate: Params, r: jax.Array, X: jax.Array) -> Params:
    """Σ_ik r_ik log π_k(x_i) - ½ g |V|², raised by a few steps of Fisher scoring."""
    flat, unravel = ravel_pytree(gate)
    g = mixture.gate_precision

    def log_gate(flat: jax.Array, X: jax.Array) -> jax.Array:
        return mixture.log_gate({"gate": unravel(flat)}, X)

    def value(flat: jax.Array) -> jax.Array:
        return jnp.sum(r * log_gate(flat, X)) - 0.5 * g * jnp.sum(flat**2)

    def step(flat: jax.Array, _: Any) -> tuple[jax.Array, None]:
        # Fisher's matrix is E[s sᵀ] with s = ∇ log π_k, k ~ π: never indefinite, so that its steps lead upwards.
        scores = jax.vmap(lambda x: jax.jacobian(lambda f: log_gate(f, x[None])[0])(flat))(X)  # [N, K, P]
        probabilities = jnp.exp(log_gate(flat, X))
        fisher = jnp.einsum("nk,nkp,nkq->pq", probabilities, scores, scores)
        damping = g + 1e-4 * jnp.trace(fisher) / flat.size + 1e-12
        direction = jax.scipy.linalg.solve(
            fisher + damping * jnp.eye(flat.size, dtype=flat.dtype), jax.grad(value)(flat), assume_a="pos"
        )
        tried = flat + jnp.asarray(LENGTHS, flat.dtype)[:, None] * direction
        values = jax.lax.map(value, tried)
        return tried[jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))], None

    return unravel(jax.lax.scan(step, flat, length=GATE_STEPS)[0])


def em(mixture: Mixture, params: Params, rows: Rows, *, steps: int) -> tuple[Params, jax.Array]:
    """(parameters after so many steps, losses [steps + 1] as `Mixture.loss` has them, from the first parameters').

    Raises:
      ValueError: more experts than rows; a learned noise that can go to 0.
    """
    check_sample(mixture, rows.X.shape[0])

    def body(params: Params, _: Any) -> tuple[Params, jax.Array]:
        return em_step(mixture, params, rows), mixture.loss(params, rows, rows.X.shape[0])

    params, losses = jax.lax.scan(body, params, length=steps)
    return params, jnp.append(losses, mixture.loss(params, rows, rows.X.shape[0]))


def em_oracle(mixture: Mixture) -> Oracle:
    """θ - M(θ) for a gradient: under `optax.sgd(1.0)` an inner loop over a deterministic family is EM.

    `dataclasses.replace(family, oracle=em_oracle(mixture))` has the family's tasks, starts and curves.
    """

    def init(family: TaskFamily, task: Task, params: Params, key: Key) -> OracleState:
        return ()

    def estimate(
        family: TaskFamily, task: Task, params: Params, state: OracleState, key: Key
    ) -> tuple[Estimate, OracleState]:
        moved = em_step(mixture, params, task.train)
        gradient = jax.tree.map(jnp.subtract, params, moved)
        return Estimate(gradient, mixture.loss(params, task.train, task.train.X.shape[0])), state

    return Oracle(init, estimate)
