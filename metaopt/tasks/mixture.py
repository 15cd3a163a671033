"""Multimodels: mixtures of linear experts with a gate or with constant weights, and partitions of the objects.

    p(y, W | X, V) = Π_k p(w_k) Π_i Σ_k π_k(x_i) N(y_i | w_kᵀx_i, 1/β),    π(x) = softmax(V1ᵀ σ(V2ᵀ x))

with p(w_k) = N(w⁰_k, I/a) and means that are drawn to each other, ε_kk' = w⁰_k - w⁰_k' ~ N(0, I/ξ) for each pair. x
ends with a 1. The reference without a gradient is expectation-maximisation, in
`metaopt.tasks.expectation_maximisation`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from metaopt.tasks.settings import check_count, check_option
from metaopt.types import Key, Params, Scalar

Gate = Literal["network", "constant", "partition"]
MOST_EXPERTS = 20


class Rows(NamedTuple):
    """Objects, or a batch of them."""

    X: Any  # [objects, inputs], the last input 1
    y: Any  # [objects]


@dataclass(frozen=True)
class Mixture:
    """The model, written for one task. Parameters are a dict:

    "experts" [K, inputs]; "means" [K, inputs], the w⁰_k, where `coupling` is above 0; "gate": {"V2" [inputs, width],
    "V1" [width, K]} of a network, "weights" [K] logits of a mixture with constant weights; "log_beta" where the noise
    is learned. One expert is the plain linear model, and has no gate.

    Raises:
      ValueError: settings out of range, a gate over one expert.
    """

    num_experts: int
    num_inputs: int  # with the 1
    gate: Gate = "network"
    gate_width: int = 4
    prior_precision: float = 1.0  # a
    coupling: float = 1.0  # ξ; 0: the means are 0, and no parameters
    gate_precision: float = 0.01  # of a normal prior on V; without one a gate that separates has no maximum
    noise: float = 0.3  # 1/√β, where a learned one begins
    learn_noise: bool = False

    def __post_init__(self) -> None:
        check_count("num_experts", self.num_experts, most=MOST_EXPERTS)
        check_option("gate", self.gate, get_args(Gate))
        check_count("gate_width", self.gate_width, most=1000)
        if self.num_experts == 1 and self.gate != "constant":
            raise ValueError(
                f"`num_experts` is 1, and one expert leaves nothing to a {self.gate}; give gate=constant for the plain "
                "linear model, or 2 experts or more."
            )
        for name, least in (("prior_precision", 0), ("noise", 0), ("coupling", None), ("gate_precision", None)):
            value = getattr(self, name)
            if not (0 <= value < math.inf and value != least):
                raise ValueError(f"`{name}` ({value}) must be {'above 0' if least == 0 else '0 or more'} and finite.")

    def init(self, key: Key) -> Params:
        """Experts, and both layers of the gate, from normal laws of outputs about 1."""
        expert_key, hidden_key, out_key = jax.random.split(key, 3)
        params: dict[str, Any] = {"experts": jax.random.normal(expert_key, (self.num_experts, self.num_inputs))}
        if self.coupling:
            params["means"] = jnp.zeros_like(params["experts"])
        if self.gate == "network":
            V2 = jax.random.normal(hidden_key, (self.num_inputs, self.gate_width))
            V1 = jax.random.normal(out_key, (self.gate_width, self.num_experts)) * self.gate_width**-0.5
            params["gate"] = {"V1": V1, "V2": V2}
        elif self.gate == "constant" and self.num_experts > 1:
            params["weights"] = jnp.zeros_like(params["experts"][:, 0])
        if self.learn_noise:
            params["log_beta"] = jnp.full_like(params["experts"][0, 0], -2 * math.log(self.noise))
        return params

    def log_gate(self, params: Params, X: jax.Array) -> jax.Array:
        """log π_k(x_i) [objects, K]; 0 for a partition, which has no weights."""
        if "gate" in params:
            V1, V2 = params["gate"]["V1"], params["gate"]["V2"]
            return jax.nn.log_softmax(jax.nn.sigmoid(X @ V2) @ V1)
        if "weights" in params:
            return jnp.broadcast_to(jax.nn.log_softmax(params["weights"]), (X.shape[0], self.num_experts))
        return jnp.zeros((X.shape[0], self.num_experts), X.dtype)

    def log_beta(self, params: Params) -> Any:
        return params["log_beta"] if self.learn_noise else -2 * math.log(self.noise)

    def log_densities(self, params: Params, rows: Rows) -> jax.Array:
        """log N(y_i | w_kᵀx_i, 1/β) [objects, K]."""
        errors = rows.y[:, None] - rows.X @ params["experts"].T
        log_beta = self.log_beta(params)
        return 0.5 * (log_beta - math.log(2 * math.pi) - jnp.exp(log_beta) * errors**2)

    def joint(self, params: Params, rows: Rows) -> jax.Array:
        """log π_k(x_i) N(y_i | w_kᵀx_i, 1/β) [objects, K]."""
        return self.log_gate(params, rows.X) + self.log_densities(params, rows)

    def log_likelihood(self, params: Params, rows: Rows) -> jax.Array:
        """Of each object [objects]; in a partition that of its own expert, the best."""
        joint = self.joint(params, rows)
        return jnp.max(joint, axis=1) if self.gate == "partition" else jax.nn.logsumexp(joint, axis=1)

    def responsibilities(self, params: Params, rows: Rows) -> jax.Array:
        """p(expert | x_i, y_i) [objects, K]; ones and zeros in a partition."""
        joint = self.joint(params, rows)
        if self.gate == "partition":
            return jax.nn.one_hot(jnp.argmax(joint, axis=1), self.num_experts, dtype=joint.dtype)
        return jax.nn.softmax(joint, axis=1)

    def penalty(self, params: Params) -> Scalar:
        """-log of the priors, without their constants: 0 or more."""
        experts, means = params["experts"], params.get("means", 0.0)
        penalty = 0.5 * self.prior_precision * jnp.sum((experts - means) ** 2)
        if self.coupling:  # Σ over pairs of |m_k - m_k'|² = K Σ_k |m_k - m̄|²
            spread = jnp.sum((means - jnp.mean(means, axis=0)) ** 2)
            penalty += 0.5 * self.coupling * self.num_experts * spread
        squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(params.get("gate", ()))]
        return penalty + 0.5 * self.gate_precision * sum(squares)

    def loss(self, params: Params, rows: Rows, num_objects: int) -> Scalar:
        """-(log p(y_i, ...) on average) + penalty/num_objects, which are those of the whole training sample."""
        return self.penalty(params) / num_objects - jnp.mean(self.log_likelihood(params, rows))

    def predictive(self, params: Params, rows: Rows, seen: Rows) -> Scalar:
        """Mean -log p(y | x) of rows that were not `seen` in training; a partition's weights are its parts' shares."""
        if self.gate != "partition":
            return -jnp.mean(self.log_likelihood(params, rows))
        shares = jnp.mean(self.responsibilities(params, seen), axis=0)
        return -jnp.mean(jax.nn.logsumexp(self.log_densities(params, rows), axis=1, b=shares))

    @property
    def lower_bound(self) -> float | None:
        """No density is above √(β/2π), and no penalty below 0. None where β is learned: it can grow."""
        return None if self.learn_noise else 0.5 * math.log(2 * math.pi) + math.log(self.noise)


def check_sample(mixture: Mixture, num_objects: int) -> None:
    """Refuses more experts than objects, and a learned noise that can go to 0.

    Raises:
      ValueError: with the remedy.
    """
    if mixture.num_experts > num_objects:
        raise ValueError(
            f"`num_experts` is {mixture.num_experts} and there are {num_objects} training examples; give at most as "
            "many experts as examples."
        )
    if mixture.learn_noise and mixture.num_experts * mixture.num_inputs >= num_objects:
        raise ValueError(
            f"{mixture.num_experts} experts of {mixture.num_inputs} coefficients pass through all {num_objects} "
            "training examples, and a learned noise goes to 0; give fewer experts, more examples, or learn_noise=false."
        )
