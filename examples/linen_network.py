"""A learned optimizer trains a network of flax.linen by TrainState, on sums of gradients over several minibatches.

python examples/linen_network.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import metaopt
from metaopt.data import load_dataset

STEPS = 200


class Network(nn.Module):
    @nn.compact
    def __call__(self, images):
        hidden = nn.tanh(nn.Dense(32)(images))
        return nn.Dense(10)(hidden)


@jax.jit
def step(state, images, labels):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=gradients), loss


def train(steps=STEPS):
    """The training loss, step by step."""
    digits = load_dataset("digits")
    images, labels = jnp.asarray(digits.train.inputs), jnp.asarray(digits.train.targets)
    # TrainState tells an optimizer no loss, and `networks_rl` reads none. Gradients are clipped, and it makes a step
    # every two minibatches, of their mean gradient.
    tx = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), metaopt.load("networks_rl")), every_k_schedule=2)
    network = Network()
    params = network.init(jax.random.key(0), images[:1])["params"]
    state, losses = TrainState.create(apply_fn=network.apply, params=params, tx=tx), []
    for number in range(steps):
        rows = jax.random.randint(jax.random.key(number), (128,), 0, len(labels))
        state, loss = step(state, images[rows], labels[rows])
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {STEPS} minibatches")
