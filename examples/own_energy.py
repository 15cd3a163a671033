"""A particle oracle by itself, on an energy of your own with an optax optimizer: `python examples/own_energy.py`."""

import jax
import jax.numpy as jnp
import optax

import metaopt
from metaopt.oracles import family_of, sosmc

# Of all laws ∝ exp(a x + b x² - x⁴), that of these means of x and x²: min over (a, b) of log Z - a m_1 - b m_2.
MOMENTS = jnp.array([0.4, 0.7])


def energy(theta, task, x):
    return x[0] ** 4 - theta[0] * x[0] - theta[1] * x[0] ** 2


def surrogate(theta, task, x, weights, batch):  # at fixed particles, its gradient is E[(x, x²)] - moments
    return -theta @ MOMENTS - weights @ jax.vmap(lambda x: energy(theta, task, x))(x)


law = metaopt.Law(dim=1, energy=energy, start=lambda key, *_: 0.6 * jax.random.normal(key, (1,)), surrogate=surrogate)
family, oracle = family_of(law), sosmc(kernel="mala", num_particles=2000)
adam = optax.adam(optax.cosine_decay_schedule(0.05, 600))


@jax.jit
def step(carry, key):
    theta, particles, moments = carry
    found, particles = oracle.estimate(family, (), theta, particles, key)
    updates, moments = adam.update(found.gradient, moments)
    return (optax.apply_updates(theta, updates), particles, moments), found.info


theta = jnp.zeros(2)
start = (theta, oracle.init(family, (), theta, jax.random.key(0)), adam.init(theta))
(theta, *_), info = jax.lax.scan(step, start, jax.random.split(jax.random.key(1), 600))
print(
    "theta", theta, "effective particles, at least", float(info["ess"].min()), "collapsed", int(info["collapsed"].sum())
)
