"""Fine-tuning a part: a new last layer by a learned optimizer, the one below by small steps of Adam, the first frozen.

python examples/fine_tuning.py
"""

import jax
import jax.numpy as jnp
import optax

import metaopt
from metaopt.data import load_dataset

STEPS = 150
SIZES = (64, 32, 16, 10)


def init(key):
    keys = jax.random.split(key, len(SIZES) - 1)
    shapes = zip(keys, SIZES, SIZES[1:], strict=False)
    return [{"w": jax.random.normal(key, (a, b)) / a**0.5, "b": jnp.zeros(b)} for key, a, b in shapes]


def loss_fn(params, images, labels):
    for layer in params[:-1]:
        images = jnp.tanh(images @ layer["w"] + layer["b"])
    logits = images @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(params, tx, images, labels, steps=STEPS):
    """Parameters after training, and the loss on all the data there."""

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(loss_fn)(params, images, labels)
        updates, state = tx.update(gradients, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, float(loss_fn(params, images, labels))


def fine_tune():
    """(loss on all digits before fine-tuning, and after; parameters before, and after)."""
    digits = load_dataset("digits")
    images, labels = jnp.asarray(digits.train.inputs), jnp.asarray(digits.train.targets)
    old = labels < 5  # what the network is trained on first; the others come as new classes
    before, _ = train(init(jax.random.key(0)), metaopt.load("controller"), images[old], labels[old])
    before[-1] = init(jax.random.key(1))[-1]
    parts = {"new": metaopt.load("controller", guard=True), "slow": optax.adam(1e-3), "frozen": optax.set_to_zero()}
    tx = optax.multi_transform(parts, ["frozen", "slow", "new"])  # by layers
    after, loss = train(before, tx, images, labels)
    return float(loss_fn(before, images, labels)), loss, before, after


if __name__ == "__main__":
    print("loss {:.3f} before fine-tuning, {:.3f} after".format(*fine_tune()[:2]))
