"""Choosing a model's structure by the evidence lower bound: which of its candidate functions every edge carries.

f(x) = Σ_e Σ_k γ_ek u_ek g_k(x_e), γ_e on the simplex. The weight that an edge carries, w = γu, has the prior
N(0, γ²/α) of Bakhteev and Strijov (2018) where u has N(0, 1/α); γ_e follows a Gumbel-Softmax law. In u the model is
linear, so that with γ at the corners of its simplices the evidence of every structure is known in closed form.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.registry import TASKS
from metaopt.tasks.evidence import LOG_2PI, linear_posterior, normal_divergence
from metaopt.tasks.settings import check_count, check_positive
from metaopt.types import Data, Estimate, Key, Oracle, OracleState, Params, Scalar, Split, Task, TaskFamily

LEAST_LOG_SCALE = -6.0  # of q's widths: without a prior they would go to 0, and their logarithm has no minimum there
EVALUATION_DRAWS = 256
MOST_STRUCTURES = 4096  # that are enumerated

# Of u in [-1, 1], each of mean square 1 there.
CANDIDATES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "line": lambda u: math.sqrt(3.0) * u,
    "parabola": lambda u: math.sqrt(1.25) * (3 * u**2 - 1),
    "sine": lambda u: math.sqrt(2.0) * jnp.sin(math.pi * u),
    "wave": lambda u: math.sqrt(2.0) * jnp.sin(2 * math.pi * u),
}


class StructureTask(NamedTuple):
    inputs: jax.Array  # [examples, edges] uniform in [-1, 1]
    features: jax.Array  # [examples, edges, candidates] every candidate function of them
    y: jax.Array  # [examples]
    truth: jax.Array  # [edges] int32, the teacher's candidates


# ----- laws on the simplex --------------------------------------------------------------------------------------------


def gumbel_softmax(logits: jax.Array, gumbel: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Points of the simplex (the last axis): softmax((logits + gumbel)/temperature); corners as it goes to 0."""
    return jax.nn.softmax((logits + gumbel) / temperature)


def simplex_divergence(logits: jax.Array, others: jax.Array) -> jax.Array:
    """KL between Gumbel-Softmax laws of one temperature, over the last axis: on that it does not depend.

    With c = (others - logits) less its mean, KL = K ∫ (1 + e^u)^-K - Π_k 1/(1 + e^{u + c_k}) du. By the trapezoid rule,
    which is exact to rounding where no c is above 50.
    """
    ratio = others - logits
    ratio = ratio - jnp.mean(ratio, axis=-1, keepdims=True)
    nodes = jnp.linspace(-70.0, 20.0, 181, dtype=ratio.dtype)
    inner = jnp.exp(-jnp.sum(jax.nn.softplus(ratio[..., None] + nodes), axis=-2))
    size = ratio.shape[-1]
    return size * 0.5 * jnp.sum(jnp.exp(-size * jax.nn.softplus(nodes)) - inner, axis=-1)


# ----- the parts of the bound -----------------------------------------------------------------------------------------


def widths(params: Params) -> jax.Array:
    """log σ of q, above `LEAST_LOG_SCALE`: params["log_scale"] but close to there."""
    return LEAST_LOG_SCALE + jax.nn.softplus(params["log_scale"] - LEAST_LOG_SCALE)


def expected_fit(
    params: Params, task: StructureTask, gumbel: jax.Array, temperature: jax.Array | float, precision: float
) -> Scalar:
    """E_q log p(y|X, u, γ): over u in closed form, over γ by `gumbel` [samples, edges, candidates]."""
    gamma = gumbel_softmax(params["logits"], gumbel, temperature)
    flat = (gamma.shape[0], -1)
    features = task.features.reshape(task.y.shape[0], -1)
    predicted = (gamma * params["mean"]).reshape(flat) @ features.T
    variance = (gamma**2).reshape(flat) @ (jnp.exp(2 * widths(params)).ravel() * jnp.sum(features**2, axis=0))
    squares = jnp.mean(jnp.sum((task.y - predicted) ** 2, axis=1) + variance)
    return -0.5 * (precision * squares + task.y.shape[0] * (LOG_2PI - math.log(precision)))


def prior_divergence(params: Params, precisions: jax.Array, logits: jax.Array) -> Scalar:
    """KL(q‖p) of weights and structure; p: N(0, 1/precisions) and the Gumbel-Softmax law of `logits`."""
    of_weights = jnp.sum(normal_divergence(params["mean"], widths(params), precisions))
    return of_weights + jnp.sum(simplex_divergence(params["logits"], logits))


# ----- what is known of the structures --------------------------------------------------------------------------------


def structures(edges: int, candidates: int) -> np.ndarray:
    """[candidates^edges, edges] every choice of one candidate an edge, the last edge's fastest.

    Raises:
      ValueError: there are more than `MOST_STRUCTURES`.
    """
    if candidates**edges > MOST_STRUCTURES:
        raise ValueError(f"{edges} edges of {candidates} candidates have {candidates**edges:,} structures, and at most "
                         f"{MOST_STRUCTURES:,} are enumerated; give fewer edges.")  # fmt: skip
    return np.array(list(itertools.product(range(candidates), repeat=edges)), np.int32)


def structure_evidence(task: StructureTask, chosen: np.ndarray, precisions: jax.Array, noise: float) -> jax.Array:
    """[structures] log p(y|X, structure) of rows of `chosen` [structures, edges], in closed form.

    `precisions` [edges, candidates] of the weights' prior; `noise` as a standard deviation.
    """

    def one(which: jax.Array) -> Scalar:
        edge = jnp.arange(which.shape[0])
        return linear_posterior(task.features[:, edge, which], task.y, precisions[edge, which], noise**-2).log_evidence

    return jax.vmap(one)(jnp.asarray(chosen))


# ----- the family -----------------------------------------------------------------------------------------------------


@TASKS.register
def elbo_structure(
    num_examples: int = 40,
    edges: int = 2,
    candidates: int = 3,
    noise: float = 0.5,
    temperature: float = 0.5,
    start_temperature: float | None = None,
    anneal_steps: int = 100,
    num_samples: int = 8,
) -> TaskFamily:
    """The negative evidence lower bound of an additive model whose edges choose among functions by Gumbel-Softmax.

    f(x) = Σ_e Σ_k γ_ek u_ek g_k(x_e), g a line, parabola, sine and wave of x ~ U[-1, 1]; y of a teacher that has one
    candidate an edge, with a weight of either sign and a size from U[.5, 1.5], and N(0, noise²). Priors: u ~ N(0, 1),
    γ_e of the Gumbel-Softmax law with even logits. q: u ~ N(μ, σ²), γ_e Gumbel-Softmax of the same temperature;
    parameters are {"mean": μ, "log_scale": log σ (held above -6), "logits": ...}, each [edges, candidates]. A batch are
    Gumbel draws; over u, and in the divergences, the expectation is exact. The event `recovered`: each edge's largest
    logit is the teacher's candidate.

    Args:
      num_examples: of the data.
      edges: inputs, each with an edge of its own.
      candidates: functions an edge, the first of line, parabola, sine, wave.
      noise: standard deviation.
      temperature: of the Gumbel-Softmax laws, and of evaluations.
      start_temperature: the gradient's temperature falls from here to `temperature`, geometrically, within
        `anneal_steps` inner steps; None: it is `temperature` throughout.
      num_samples: Gumbel draws in a batch.

    Raises:
      ValueError: settings out of range.
    """
    _check(num_examples, edges, candidates, noise, num_samples)
    check_temperature("temperature", temperature)
    check_count("anneal_steps", anneal_steps)
    if start_temperature is not None:
        check_temperature("start_temperature", start_temperature)
    precision = noise**-2

    def negative_bound(params: Params, task: StructureTask, batch: jax.Array, temperature: jax.Array | float) -> Scalar:
        even = jnp.zeros_like(params["logits"])
        fit = expected_fit(params, task, batch, temperature, precision)
        return prior_divergence(params, jnp.ones_like(even), even) - fit

    def loss(params: Params, task: StructureTask, batch: jax.Array) -> Scalar:
        return negative_bound(params, task, batch, temperature)

    family = _family(num_examples, edges, candidates, noise, num_samples, loss)
    if start_temperature is None:
        return family
    hot = start_temperature

    def estimate(
        family: TaskFamily, task: Task, params: Params, state: OracleState, key: Key
    ) -> tuple[Estimate, OracleState]:
        left = jnp.maximum(1 - state / anneal_steps, 0.0)
        now = temperature * (hot / temperature) ** left
        drawn = family.batch(key, task, family.data)
        value, gradient = jax.value_and_grad(negative_bound)(params, task, drawn, now)
        return Estimate(gradient, value, {"temperature": now}), state + 1

    oracle = Oracle(lambda family, task, params, key: jnp.zeros((), jnp.int32), estimate)
    return dataclasses.replace(family, oracle=oracle)


def check_temperature(name: str, value: float) -> None:
    """Refuses a temperature at which the Gumbel-Softmax law is none, or has no usable gradient."""
    if not 0.01 <= value < math.inf:
        raise ValueError(f"`{name}` is {value}; give 0.01 or more: at 0 the law sits on the corners of the simplex and "
                         "has no gradient, and .1 to 1 is usual.")  # fmt: skip


def _check(num_examples: int, edges: int, candidates: int, noise: float, num_samples: int) -> None:
    check_count("num_examples", num_examples)
    check_count("edges", edges)
    check_count("candidates", candidates, most=len(CANDIDATES), why=f": the first of {', '.join(CANDIDATES)}")
    check_positive("noise", noise)
    check_count("num_samples", num_samples)


def _family(
    num_examples: int,
    edges: int,
    candidates: int,
    noise: float,
    num_samples: int,
    loss: Callable[[Params, StructureTask, jax.Array], Scalar],
) -> TaskFamily:
    """The data of a teacher, q at its start, and batches of Gumbel draws."""
    shape = (edges, candidates)

    def sample(key: Key, data: Data) -> StructureTask:
        input_key, truth_key, weight_key, sign_key, noise_key = jax.random.split(key, 5)
        inputs = jax.random.uniform(input_key, (num_examples, edges), minval=-1.0)
        features = jnp.stack([CANDIDATES[name](inputs) for name in list(CANDIDATES)[:candidates]], axis=-1)
        truth = jax.random.randint(truth_key, (edges,), 0, candidates, jnp.int32)
        sizes = jax.random.uniform(weight_key, (edges,), minval=0.5, maxval=1.5)
        weights = sizes * jax.random.rademacher(sign_key, (edges,), sizes.dtype)
        y = jnp.einsum("nek,ek->n", features, weights[:, None] * jax.nn.one_hot(truth, candidates, dtype=sizes.dtype))
        return StructureTask(inputs, features, y + noise * jax.random.normal(noise_key, (num_examples,)), truth)

    def init(key: Key, task: StructureTask) -> Params:
        mean = 0.1 * jax.random.normal(key, shape)
        return {"mean": mean, "log_scale": jnp.full_like(mean, -2.0), "logits": jnp.zeros_like(mean)}

    def batch(key: Key, task: StructureTask, data: Data) -> jax.Array:
        return jax.random.gumbel(key, (num_samples, *shape))

    def eval_batch(task: StructureTask, data: Data, split: Split) -> jax.Array:
        return jax.random.gumbel(jax.random.key(0), (EVALUATION_DRAWS, *shape))

    def metrics(params: Params, task: StructureTask, batch: jax.Array) -> dict[str, Scalar]:
        found = jnp.argmax(params["logits"], axis=-1) == task.truth
        return {"recovered": jnp.all(found).astype(jnp.float32)}

    def lower_bound(task: StructureTask) -> Scalar:
        """No bound is above the largest likelihood, that of least squares on all candidates."""
        q, _ = jnp.linalg.qr(task.features.reshape(num_examples, -1))
        squares = jnp.sum((task.y - q @ (q.T @ task.y)) ** 2)
        return 0.5 * (noise**-2 * squares + num_examples * (LOG_2PI + 2 * math.log(noise)))

    return TaskFamily(
        data=(),
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics,
        events=("recovered",),
        lower_bound=lower_bound,
        evaluated_on=f"{EVALUATION_DRAWS} fixed draws of the structure",
    )
