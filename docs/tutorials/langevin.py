# %% [markdown]
# # Langevin and annealing
#
# Gradient descent with noise of a temperature does not settle in a point but in a law, ∝ exp(-f/T). Cooled slowly, the
# law gathers at the global minimum: annealing. Both are optimizers like any other here.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import metaopt

plt.style.use("metaopt.report.house")

CHAINS = 2000  # tests: 4
STEPS = 2000  # tests: 5
TASKS = 300  # tests: 3

# %% [markdown]
# ## The law
#
# The tilted double well has its global minimum near -1 and a wrong well near 1, higher by 0.6. Many chains at one
# temperature, begun all over, should end in the shares that exp(-f/T) says. `unroll` makes a run of many tasks at once;
# here the tasks are equal and only starts and noise differ.

# %%
family = metaopt.TASKS["tilted_double_well"]()
STEP = 0.02


def ends(temperature, keys):
    """Where chains are after `STEPS` steps."""
    optimizer = metaopt.OPTIMIZERS["langevin"](
        learning_rate=STEP, temperature=temperature
    )

    @jax.jit
    def run(phi):
        tx = metaopt.bind_tasks(optimizer, phi)
        task, state = metaopt.reset(tx, family, keys)
        state, _ = metaopt.unroll(tx, family, task, state, length=STEPS)
        return state.params[:, 0]

    return np.asarray(run(optimizer.init(jax.random.key(0))))


keys = jax.random.split(jax.random.key(0), CHAINS)
found = {temperature: ends(temperature, keys) for temperature in (1.0, 0.3, 0.05)}

# %%
grid = np.linspace(-2.2, 2.2, 400)
f = (grid**2 - 1) ** 2 + 0.3 * grid
fig, axes = plt.subplots(1, 3, sharex=True, figsize=(8.5, 3))
for ax, (temperature, z) in zip(axes, found.items(), strict=True):
    law = np.exp(-f / temperature)
    ax.hist(z, bins=60, range=(-2.2, 2.2), density=True, color="#d5d9de")
    ax.plot(grid, law / (law.sum() * (grid[1] - grid[0])))
    ax.set(title=f"T = {temperature:g}", xlabel="z", yticks=[])
plt.show()

# %%
for temperature, z in found.items():
    law = np.exp(-f / temperature)
    share = law[grid < 0].sum() / law.sum()
    print(
        f"T = {temperature:g}: in the global well {np.mean(z < 0):.2f}, by the law {share:.2f}"
    )

# %% [markdown]
# At the lowest temperature the chains have not crossed the barrier: each well keeps about what it got at the start,
# whatever the law says. To be cold and right one has to cool.
#
# ## Annealing
#
# `simulated_annealing` lowers T within the run. All start in the wrong well. Its rivals are gradient descent, and
# Langevin dynamics that keep their temperature.

# %%
wrong = metaopt.TASKS["tilted_double_well"](start="wrong_basin")
OPTIMIZERS = {
    "gradient descent": ("sgd", {"learning_rate": STEP}),
    "Langevin, T = 0.5": ("langevin", {"learning_rate": STEP, "temperature": 0.5}),
    "annealing from T = 1": (
        "simulated_annealing",
        {"learning_rate": STEP, "temperature": 1.0},
    ),
}
entries = {}
for label, (name, options) in OPTIMIZERS.items():
    optimizer = metaopt.OPTIMIZERS[name](**options)
    optimizer = optimizer.at_horizon(STEPS) if optimizer.at_horizon else optimizer
    entries[label] = (optimizer, optimizer.init(jax.random.key(0)))
curves = metaopt.evaluate(
    entries, wrong, jax.random.key(1), horizon=STEPS, num_tasks=TASKS
)

# %%
fig, ax = plt.subplots()
for label, loss in curves.loss.items():
    above = np.median(loss - curves.lower_bound[:, None], axis=0)
    ax.plot(curves.steps, above, label=label)
ax.set(
    xlabel="step",
    ylabel="f above its minimum",
    yscale="log",
    title=f"Median over {TASKS} runs",
)
ax.legend()
plt.show()

# %%
for label, splits in curves.final.items():
    share = splits["train"]["global"].mean()
    half = 1.96 * np.sqrt(share * (1 - share) / TASKS)
    print(f"{label:22} ends in the global well: {share:.2f} ± {half:.2f}")

# %% [markdown]
# ## In a loop of your own
#
# `langevin` is a transformation of optax too; `update` needs a new `key` at every step. The step itself has a bias: on
# f = x²/2 the variance is T/(1 - h/2) and not T.

# %%
from metaopt.optimizers.langevin import langevin  # noqa: E402

tx = langevin(0.5, 1.0)


def one(carry, key):
    x, state = carry
    updates, state = tx.update(x, state, x, key=key)  # the gradient of x²/2 is x
    return (x + updates, state), x


x = jnp.zeros(CHAINS)
_, path = jax.lax.scan(one, (x, tx.init(x)), jax.random.split(jax.random.key(3), 100))
print(f"variance {path[50:].var():.3f}, T/(1 - h/2) = {1 / (1 - 0.25):.3f}")

# %% [markdown]
# [Langevin dynamics, measured](../../experiments/langevin/README.md): is a minibatch's noise a temperature, and does
# SGD with a falling rate anneal? [Learned optimizers against annealing](../../experiments/multimodal/README.md) on
# functions of many minima.
