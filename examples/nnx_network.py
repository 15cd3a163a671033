"""A learned optimizer on a flax.nnx network: guarded, with decay on the kernels, and with steps that fall to 0.

python examples/nnx_network.py (README has the shortest such loop)
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import metaopt
from metaopt.data import load_dataset

STEPS = 150


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, images):
        return self.out(jnp.tanh(self.hidden(images)))


def loss_fn(network, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(network(images), labels).mean()


@nnx.jit
def step(network, optimizer, images, labels):
    loss, gradients = nnx.value_and_grad(loss_fn)(network, images, labels)
    optimizer.update(network, gradients, value=loss)  # the optimizer reads the loss, and the guard watches it
    return loss


def train(steps=STEPS):
    """The training loss, step by step, and how many steps the guard has made."""
    digits = load_dataset("digits")
    images, labels = jnp.asarray(digits.train.inputs), jnp.asarray(digits.train.targets)
    tx = metaopt.load(
        "controller",  # or a run folder, or a .safetensors file
        guard=True,
        learning_rate_multiplier=optax.cosine_decay_schedule(1.0, steps),
        weight_decay=1e-4,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )
    network = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, tx, wrt=nnx.Param)
    losses = []
    for number in range(steps):
        rows = jax.random.randint(jax.random.key(number), (128,), 0, len(labels))
        losses.append(float(step(network, optimizer, images[rows], labels[rows])))
    return losses, int(optax.tree.get(optimizer.opt_state, "steps_guarded")[...])


if __name__ == "__main__":
    losses, guarded = train()
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {STEPS} steps, {guarded} of them the guard's")
