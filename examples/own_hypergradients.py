"""Hypergradients on a problem of your own, without a family or a run: `python examples/own_hypergradients.py`.

A weight for each training example, a third of whose labels are wrong; the weights are chosen by clean validation data.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from metaopt.estimators import bilevel

keys = jax.random.split(jax.random.key(0), 3)
x, truth = jax.random.normal(keys[0], (160, 5)), jax.random.normal(keys[1], (5,))
y = jnp.sign(x @ truth)
train_x, held_x, held_y = x[:60], x[60:], y[60:]
wrong = jax.random.bernoulli(keys[2], 1 / 3, (60,))
train_y = jnp.where(wrong, -y[:60], y[:60])


def inner_loss(theta, h):  # h: [60] free numbers, the weights are their sigmoids
    losses = jax.nn.softplus(-train_y * (train_x @ theta))
    return jnp.sum(jax.nn.sigmoid(h) * losses) + 0.5 * jnp.sum(theta**2)


def validation_loss(theta, h):
    return jnp.mean(jax.nn.softplus(-held_y * (held_x @ theta)))


problem, rate = bilevel.Problem(inner_loss, validation_loss), 0.05
theta = start = jnp.zeros(5)
h = jnp.zeros(60)

# One hypergradient by each way, at the same h.
end = bilevel.descend(problem, start, h, rate=rate, steps=200)
found = {
    "exact, reverse": bilevel.unrolled(problem, start, h, rate=rate, steps=200),
    "exact, forward": bilevel.unrolled(problem, start, h, rate=rate, steps=200, forward=True),
    "HOAG": bilevel.hoag(problem, end, h).gradient,
    "Neumann, 20": bilevel.implicit(problem, end, h, partial(bilevel.neumann, rate=rate, terms=20)).gradient,
    "DrMAD": bilevel.drmad(problem, start, end, h, rate=rate, steps=200),
    "T1-T2": bilevel.implicit(problem, end, h, bilevel.identity).gradient,
    "greedy": bilevel.greedy(problem, end, h, rate=rate)[0],
}
cosines = {name: float(optax.losses.cosine_similarity(g, found["exact, reverse"])) for name, g in found.items()}
for name, value in cosines.items():
    print(f"{name:15} {value:.4f}")

# h by HOAG: θ goes on from where it is, and the tolerance falls.
tx = optax.adam(0.3)


@jax.jit
def step(carry, k):
    theta, h, moments = carry
    theta = bilevel.descend(problem, theta, h, rate=rate, steps=20)
    gradient = bilevel.hoag(problem, theta, h, tolerance=0.1 * 0.9**k).gradient
    updates, moments = tx.update(gradient, moments)
    return (theta, optax.apply_updates(h, updates), moments), validation_loss(theta, h)


(theta, h, _), losses = jax.lax.scan(step, (start, h, tx.init(h)), jnp.arange(100))
weights = jax.nn.sigmoid(h)
kept, dropped = float(weights[~wrong].mean()), float(weights[wrong].mean())
print(
    f"validation loss {losses[0]:.3f} -> {losses[-1]:.3f}; mean weight of right labels {kept:.2f}, wrong {dropped:.2f}"
)
