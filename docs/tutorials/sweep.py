# %% [markdown]
# # A sweep and its comparison
#
# Which learning rate of the meta-optimizer is good, and does it hold for other seeds? A sweep answers: every rate with
# every seed, evaluated on the same tasks. It is done here in memory; the last section has the commands that do the same
# with run folders, several at once or on Slurm.

# %%
import dataclasses
import itertools

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import metaopt
from metaopt import Experiment, Validation, choice
from metaopt.experiment import MetaOptimizer

plt.style.use("metaopt.report.house")

META_STEPS = 400  # tests: 2
TASKS = 64  # tests: 2
HORIZON = 50  # tests: 4
RATES = (3e-4, 1e-3, 1e-2)  # tests: (1e-3, 1e-2)
SEEDS = range(3)  # tests: range(1)

# %% [markdown]
# ## The grid

# %%
base = Experiment(
    tasks=(choice("quadratic", dim=10),),
    optimizer=choice("lstm", hidden_size=10),
    estimator=choice("reparameterised"),
    num_meta_steps=META_STEPS,
    num_tasks=16,
    horizon=HORIZON,
    validation=Validation(every=0),
)


def run(rate, seed):
    """(meta-losses [meta-steps], φ) of one point."""
    losses = []
    experiment = dataclasses.replace(
        base, seed=seed, meta_optimizer=MetaOptimizer(learning_rate=rate)
    )
    state = metaopt.meta_train(
        experiment,
        callbacks=[lambda trainer, state, metrics: losses.append(metrics["meta_loss"])],
    )
    return np.concatenate(losses), state.meta_params


runs = {(rate, seed): run(rate, seed) for rate, seed in itertools.product(RATES, SEEDS)}
print(len(runs), "runs")

# %% [markdown]
# ## Their curves

# %%
fig, ax = plt.subplots()
width = min(20, META_STEPS)
for (rate, seed), (losses, _) in runs.items():
    smooth = np.exp(np.convolve(np.log(losses), np.ones(width) / width, mode="valid"))
    colour = f"C{RATES.index(rate)}"
    ax.plot(
        smooth,
        color=colour,
        linewidth=1.2,
        label=f"rate {rate:g}" if seed == 0 else None,
    )
ax.set(
    xlabel="meta-step",
    ylabel="meta-loss",
    yscale="log",
    title=f"A line is a seed; geometric mean of {width}",
)
ax.legend()
plt.show()

# %% [markdown]
# ## On new tasks, at the horizon and at ten times it
#
# The curve of a meta-loss is of the tasks that were trained on, and ends at the horizon. What counts is how each φ does
# on new tasks, and further.

# %%
optimizer = metaopt.build_optimizer(base.optimizer)
family = metaopt.TASKS["quadratic"](dim=10)
entries = {
    f"{rate:g} / {seed}": (optimizer, phi) for (rate, seed), (_, phi) in runs.items()
}
curves = metaopt.evaluate(
    entries,
    family,
    jax.random.key(1),
    horizon=10 * HORIZON,
    num_tasks=TASKS,
    train_horizon=HORIZON,
)
at = {HORIZON: int(np.searchsorted(curves.steps, HORIZON)), 10 * HORIZON: -1}

# %%
fig, axes = plt.subplots(1, 2, sharey=True)
for ax, (step, index) in zip(axes, at.items(), strict=True):
    for column, rate in enumerate(RATES):
        means = [
            np.exp(np.log(curves.loss[f"{rate:g} / {seed}"][:, index]).mean())
            for seed in SEEDS
        ]
        ax.plot([column] * len(means), means, "o", color=f"C{column}")
    ax.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
    ax.set(xlabel="meta-optimizer's rate", yscale="log", title=f"at step {step}")
axes[0].set_ylabel("geometric mean of the loss")
plt.show()

# %% [markdown]
# ## Is the difference more than chance?
#
# Seeds are what a claim about a setting is over, not tasks: tasks of one φ share its luck. So one number a seed, and a
# t-interval of the ratio to the first rate, pair by pair. With three seeds it is wide, as it should be.

# %%
for step, index in at.items():
    logs = {
        rate: np.array(
            [np.log(curves.loss[f"{rate:g} / {s}"][:, index]).mean() for s in SEEDS]
        )
        for rate in RATES
    }
    for rate in RATES[1:]:
        differences = logs[rate] - logs[RATES[0]]
        half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
        mean, low, high = np.exp(
            [differences.mean(), differences.mean() - half, differences.mean() + half]
        )
        print(
            f"at {step}: rate {rate:g} over {RATES[0]:g}: loss times {mean:.2f} [{low:.2f}, {high:.2f}]"
        )

# %% [markdown]
# ## By commands
#
# The same as run folders, as many at once as there are cores, and a page that compares them:
#
# ```sh
# metaopt launch quadratic_rl --sweep meta_optimizer.learning_rate=3e-4,1e-3,1e-2 --seeds 3
# metaopt status
# metaopt report runs/quadratic_rl/sweep-001
# ```
#
# [Sweeps and Slurm](../sweeps.md) has the rest.
