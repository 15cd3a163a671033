"""An optimizer of one's own: a small network that sees each coordinate's gradient and momentum. Try

metaopt train examples/own_optimizer.py --num-meta-steps 20
metaopt train quadratic_bp --optimizer tiny_mlp:hidden=4 --plugin examples/own_optimizer.py
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import metaopt
from metaopt import Evaluation, Experiment, Optimizer, Validation, choice


class Memory(NamedTuple):
    mean: Any  # of the gradient
    square: Any  # of its square


# The advice of `metaopt doctor` names the option that makes a fresh network's steps shorter.
@metaopt.OPTIMIZERS.register(shorter_steps=lambda options: "scale", scale_free=lambda options: None)
def tiny_mlp(hidden: int = 8, scale: float = 0.01, decay: float = 0.9) -> Optimizer:
    """θ += `scale`·tanh(network(∇/√v, m/√v)), with m, v running means of ∇ and ∇²."""

    def init(key):  # φ, any pytree of floating arrays
        first, second = jax.random.split(key)
        return {
            "w": jax.random.normal(first, (2, hidden)) / 2**0.5,
            "b": jnp.zeros(hidden),
            "out": jax.random.normal(second, (hidden,)) / hidden**0.5,
        }

    def bind(phi):  # φ -> a transformation of optax, for one task and any pytree of parameters
        def init(params):
            return Memory(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

        def step(gradient, mean, square):
            root = jnp.sqrt(square) + 1e-8
            inputs = jnp.stack([gradient / root, mean / root], axis=-1)  # [..., 2]
            output = jnp.tanh(inputs @ phi["w"] + phi["b"]) @ phi["out"]
            return (scale * jnp.tanh(output)).astype(gradient.dtype)

        def update(updates, state, params=None, **extra):  # `updates` are optax's word for gradients
            def mix(old, new):
                return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)

            memory = Memory(mix(state.mean, updates), mix(state.square, jax.tree.map(jnp.square, updates)))
            return jax.tree.map(step, updates, memory.mean, memory.square), memory

        return optax.GradientTransformationExtraArgs(init, update)

    return Optimizer(init, bind)


EXPERIMENT = Experiment(
    tasks=(choice("quadratic", dim=5),),
    optimizer=choice("tiny_mlp"),
    estimator=choice("truncated_backprop"),
    num_meta_steps=500,
    num_tasks=8,
    horizon=40,
    validation=Validation(every=0),
    evaluation=Evaluation(num_tasks=10, horizons=(40,), baselines=("adam",)),
)
