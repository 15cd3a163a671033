# %% [markdown]
# # A gradient that cannot be computed
#
# Some losses have no gradient that could be had: a simulator, a rule with thresholds, an expectation under a law that
# moves with θ. In metaopt the gradient comes from an *oracle*, which is exchangeable; every optimizer and every
# estimator of the meta-gradient works on what it says. This tutorial writes an oracle for a black box, and ends with
# those that use particles.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import metaopt
from metaopt import Estimate, Experiment, Oracle, Validation, choice

plt.style.use("metaopt.report.house")

META_STEPS = 500  # tests: 2
TASKS = 64  # tests: 2
HORIZON = 60  # tests: 4
ORACLES = ("minibatch", "sosmc", "impdiff")  # tests: ("sosmc",)

# %% [markdown]
# ## A loss without a slope
#
# A staircase over a bowl: flat nearly everywhere, so that its derivative is 0 wherever it exists. Tasks differ in where
# the bowl lies.


# %%
@metaopt.TASKS.register
def staircase(dim: int = 5, height: float = 0.05) -> metaopt.TaskFamily:
    """A bowl in steps of `height`: its gradient is 0 almost everywhere."""

    def loss(params, task):
        return jnp.ceil(jnp.mean((params - task) ** 2) / height) * height

    return metaopt.make_task(
        loss,
        lambda key: 2 * jax.random.normal(key, (dim,)),
        sample=lambda key: jax.random.normal(key, (dim,)),
        lower_bound=0.0,
    )


def steps_of(task, x):
    return np.ceil((x - task) ** 2 / 0.05) * 0.05


x = np.linspace(-1, 1, 1000)
fig, ax = plt.subplots(figsize=(6.4, 2.6))
ax.plot(x, steps_of(0.2, x))
ax.set(xlabel="θ", ylabel="f", title="One coordinate of it")
plt.show()
print(
    "largest gradient:",
    float(
        jnp.abs(
            jax.grad(lambda p: staircase().loss(p, jnp.zeros(5), ()))(jnp.ones(5))
        ).max()
    ),
)

# %% [markdown]
# ## An oracle
#
# Smoothing helps: the mean of f over a small cloud around θ has a gradient, which differences of values estimate,
# E[(f(θ + σε) - f(θ - σε)) ε]/(2σ). An oracle is two functions, written for one task: `init` gives what it carries from
# step to step (nothing here), `estimate` gives gradient, value, and what should be logged.


# %%
@metaopt.ORACLES.register
def two_points(pairs: int = 8, sigma: float = 0.3) -> Oracle:
    """Differences of f in random directions: no derivative is taken."""

    def estimate(family, task, params, state, key):
        batch_key, key = jax.random.split(key)
        batch = family.batch(batch_key, task, family.data)
        directions = jax.random.normal(key, (pairs, *params.shape))

        def difference(direction):
            up, down = (
                family.loss(params + s * sigma * direction, task, batch)
                for s in (1, -1)
            )
            return (up - down) / (2 * sigma) * direction

        gradient = jax.vmap(difference)(directions).mean(axis=0)
        value = family.loss(params, task, batch)
        return Estimate(gradient, value, {"values": jnp.float32(2 * pairs + 1)}), state

    return Oracle(lambda family, task, params, key: (), estimate)


# %% [markdown]
# ## Optimizers under it
#
# Under `minibatch`, the usual oracle, nothing moves. Under `two_points` Adam does.

# %%
from metaopt.experiment import build_family  # noqa: E402

usual, family = (
    build_family(choice("staircase"), oracle=choice(oracle))
    for oracle in ("minibatch", "two_points")
)
make_adam = metaopt.OPTIMIZERS["adam"]
adam = make_adam(learning_rate=0.2)
rivals = {"adam, 0.2": (adam, adam.init(jax.random.key(0)))}
for label, each in (("minibatch", usual), ("two_points", family)):
    loss = metaopt.evaluate(
        rivals, each, jax.random.key(1), horizon=HORIZON, num_tasks=TASKS
    ).loss["adam, 0.2"]
    print(f"Adam under {label}: {loss[:, 0].mean():.2f} -> {loss[:, -1].mean():.2f}")

# %% [markdown]
# ## Meta-training under it
#
# The inner gradients are noisy now, and an optimizer can be learned for just that. The meta-loss is the staircase
# itself, which back-propagation cannot see either; evolution strategies only need values.

# %%
experiment = Experiment(
    tasks=(choice("staircase"),),
    optimizer=choice("rnnprop", hidden_size=8, output_scale=0.3),
    estimator=choice("evolution_strategies", sigma=0.05),
    oracle=choice("two_points"),
    num_meta_steps=META_STEPS,
    num_tasks=32,
    horizon=HORIZON,
    validation=Validation(every=0),
)
state = metaopt.meta_train(experiment)

# %%
entries = {
    "learned": (metaopt.build_optimizer(experiment.optimizer), state.meta_params)
}
for rate in (0.03, 0.1, 0.3):
    phi = make_adam(learning_rate=rate).init(jax.random.key(0))
    entries[f"adam, {rate:g}"] = (adam, phi)  # the rate is in φ: one program for all
curves = metaopt.evaluate(
    entries, family, jax.random.key(2), horizon=2 * HORIZON, num_tasks=TASKS
)
fig, ax = plt.subplots()
for name, loss in curves.loss.items():
    ax.plot(
        curves.steps, loss.mean(axis=0), "-" if name == "learned" else "--", label=name
    )
ax.axvline(HORIZON, color="#57606a", linewidth=0.8, linestyle=":")
ax.set(
    xlabel="inner step",
    ylabel="f",
    yscale="log",
    title=f"Mean over {TASKS} new tasks; dotted: trained to here",
)
ax.legend()
plt.show()

# %% [markdown]
# Adam at the best of these rates is ahead: on so small a problem a rate that was searched is hard to beat.
#
# ## An expectation under a law that moves
#
# Where ∇f = E[H_θ(X)] under π_θ ∝ exp(-U_θ), as in energy-based models and latent variables, particles follow the law
# from step to step. Here `latent_gaussian`, whose loss is known in closed form, so that the particles can be judged.

# %%
for name in ORACLES:  # `minibatch` is exact here
    known = build_family(choice("latent_gaussian"), oracle=choice(name))
    loss = metaopt.evaluate(
        rivals, known, jax.random.key(3), horizon=HORIZON, num_tasks=TASKS
    ).loss["adam, 0.2"]
    ends = f"{loss[:, 0].mean():.3f} -> {loss[:, -1].mean():.3f}"
    print(f"Adam with gradients from {name:9}: loss {ends}")

# %% [markdown]
# [Gradients that cannot be computed](../../experiments/smc/README.md) compares such oracles at equal cost;
# [`own_energy.py`](../../examples/own_energy.py) takes one into a loop of your own; [write entries of your
# own](../extending.md) has the protocol of each registry.
