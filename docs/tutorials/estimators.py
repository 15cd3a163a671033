# %% [markdown]
# # Which estimator, and why
#
# Meta-training needs the gradient of a meta-loss with respect to φ, the optimizer's own parameters. There are many ways
# to estimate it; they differ in what they cost, in how noisy they are, and in whether their mean is the gradient at
# all. This tutorial measures the last two, on problems that are small enough to know the truth.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree

import metaopt
from metaopt import Experiment, Trainer, Validation, choice

plt.style.use("metaopt.report.house")

DRAWS = 40  # tests: 3
HORIZON, WINDOW = 60, 10  # tests: 4, 2
RATES = np.geomspace(0.02, 0.3, 10)  # tests: np.geomspace(0.1, 1, 2)

# %% [markdown]
# ## One number to move
#
# The smallest φ there is: the logarithm of gradient descent's learning rate. The task has one steep direction with
# noisy gradients, in which a large rate does harm, and one flat direction, in which only a large rate gets anywhere,
# and that not at once.


# %%
@metaopt.TASKS.register
def steep_and_flat() -> metaopt.TaskFamily:
    """½ Σ h_i θ_i² with h = (1, 0.02); the gradient of the first is noisy."""
    curvatures, noise = np.float32([1.0, 0.02]), np.float32([0.7, 0.0])
    return metaopt.make_task(
        lambda params, batch: jnp.sum(curvatures * params**2 / 2 + batch * params),
        lambda key: jnp.array([0.3, 3.0]),
        batch=lambda key: noise * jax.random.normal(key, (2,)),
    )


# %% [markdown]
# The meta-loss is the mean loss along 60 steps. Its exact gradient is back-propagation through the whole run, second
# derivatives included.

# %%
base = Experiment(
    tasks=(choice("steep_and_flat"),),
    optimizer=choice("sgd"),
    estimator=choice("truncated_backprop", second_order=True),
    num_tasks=256,
    horizon=HORIZON,
    validation=Validation(every=0),
)

# %% [markdown]
# Beside it stand four estimators. *First order*: through the whole run too, but a task's gradients count as constants,
# so that no second derivative is needed. *Truncated*: through windows of ten steps; what a window does to later ones is
# cut off. *ES*: the run twice, with φ moved a little either way, and no differentiation at all. *PES*: ES by windows,
# with a memory that takes the truncation's bias away.

# %%
windowed = {"unroll_length": WINDOW}
es, pes = "evolution_strategies", "persistent_evolution_strategies"
experiments = {
    "exact": base,
    "first order": dataclasses.replace(base, estimator=choice("truncated_backprop")),
    "truncated": dataclasses.replace(base, **windowed),
    "ES": dataclasses.replace(base, estimator=choice(es, sigma=0.1)),
    "PES": dataclasses.replace(base, estimator=choice(pes, sigma=0.1), **windowed),
}


def estimates(experiment, phi, draws=DRAWS):
    """[φ, draws, numbers in φ]: meta-gradients, each of new tasks."""
    trainer = Trainer(experiment)
    windows = HORIZON // (experiment.unroll_length or HORIZON)

    @jax.jit
    def one(phi, key):
        init_key, *keys = jax.random.split(key, windows + 1)
        state, total = trainer.estimator.init(init_key, phi, trainer.families), 0.0
        for key in keys:
            gradient, state, _ = trainer.estimator.estimate(
                key, phi, state, trainer.families
            )
            total = total + ravel_pytree(gradient)[0] / windows
        return total

    keys = jax.random.split(jax.random.key(1), draws)
    return np.stack([[one(each, key) for key in keys] for each in phi])


phis = [{"learning_rate": jnp.log(rate)} for rate in RATES]
found = {
    name: estimates(experiment, phis)[..., 0]
    for name, experiment in experiments.items()
}

# %% [markdown]
# ## Bias
#
# A positive gradient says that the rate should fall, a negative one that it should rise. Where a line crosses zero, its
# estimator would come to rest.

# %%
fig, ax = plt.subplots()
for name, draws in found.items():
    mean, error = draws.mean(1), draws.std(1, ddof=1) / DRAWS**0.5
    ax.plot(RATES, mean, label=name)
    ax.fill_between(RATES, mean - 2 * error, mean + 2 * error, alpha=0.15)
ax.axhline(0, color="#24292f", linewidth=0.8)
ax.set(
    xscale="log",
    ylim=(-0.02, 0.04),
    xlabel="learning rate",
    ylabel="gradient in log rate",
)
ticks = (0.02, 0.05, 0.1, 0.2, 0.3)
ax.set_xticks(ticks, map(str, ticks))
ax.set_xticks([], minor=True)
ax.set_title("Means, and twice their errors")
ax.legend()
plt.show()

# %%
for name, draws in found.items():
    rest = np.exp(np.interp(0, draws.mean(1), np.log(RATES)))
    print(f"{name:12} comes to rest at a rate of about {rest:.3f}")

# %% [markdown]
# ES and PES come to rest where the exact gradient does: they are unbiased, but for their smoothing. Windows do not see
# what the flat direction gains later, and settle for a smaller rate; so, to a lesser degree, does the gradient of first
# order, which does not see how a step changes the gradients that follow.
#
# ## Noise
#
# With one number in φ evolution strategies are nearly free of noise, and need no derivative. The weights of a network
# are another matter: every draw looks along one random direction of many. Noise over signal is the variance of one draw
# over the squared length of the mean; so many draws have to be averaged before the two are equal.

# %%
network = {
    "tasks": (choice("quadratic", dim=5),),
    "optimizer": choice("rnnprop", hidden_size=4),
    "num_tasks": 16,
}
phi = Trainer(dataclasses.replace(base, **network)).optimizer.init(jax.random.key(0))
for name in ("exact", "ES"):
    wide = estimates(dataclasses.replace(experiments[name], **network), [phi])[0]
    for what, draws in zip(
        ("learning rate", "network"), (found[name][-1][:, None], wide), strict=True
    ):
        ratio = draws.var(0, ddof=1).sum() / np.square(draws.mean(0)).sum()
        print(
            f"{name:6} {what:14} {draws.shape[1]:4} numbers: noise over signal {ratio:.2g}"
        )

# %% [markdown]
# (A ratio near the number of draws says that the mean itself is lost in noise, and that the truth is higher.)
#
# ## What to take
#
# * The run is short and its second derivatives are cheap: `truncated_backprop:second_order=true`, one window.
# * Usually: `truncated_backprop`, or `reparameterised` for an optimizer with step noise.
# * Few numbers in φ, or a loss that cannot be differentiated through: `evolution_strategies`.
# * Long runs in windows, no bias wanted: `persistent_evolution_strategies`, or `noise_reuse_evolution_strategies`.
#
# `metaopt doctor RUN` makes such measurements for your run, with a φ that was trained. [Which settings for
# what](../settings.md) has figures from larger experiments, and [the table of estimators](../idea.md#estimators) their
# costs.
