# %% [markdown]
# # Your first learned optimizer
#
# A learned optimizer is a small network that reads gradients and says what step to take. Here one is meta-trained on
# random quadratics, put beside optimizers whose rates were tuned for the same task, and taken beyond the number of
# steps that it was trained for. The whole takes about a minute of one core.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import metaopt
from metaopt import Experiment, Validation, choice
from metaopt.evaluation.tuning import tune_baselines

plt.style.use("metaopt.report.house")

META_STEPS = 1000  # tests: 4
TASKS = 100  # tests: 2
HORIZON = 100  # tests: 10
RIVALS = ("sgd", "momentum", "adam")  # tests: ("sgd",)

# %% [markdown]
# ## What is to be learned
#
# An experiment names its parts. *Tasks*: quadratics of ten coordinates, drawn anew all the time. *Optimizer*: an LSTM
# that is run on every coordinate by itself, with a random step length while it is meta-trained (the thesis's RL model).
# *Estimator*: how the gradient with respect to the LSTM's weights, φ, is found; here through the noise, by
# reparameterisation. `horizon` is the number of inner steps of a run.

# %%
experiment = Experiment(
    tasks=(choice("quadratic", dim=10),),
    optimizer=choice(
        "lstm", step_rule="direct", features="scale_free", noise="per_step"
    ),
    estimator=choice("reparameterised"),
    num_meta_steps=META_STEPS,
    num_tasks=16,
    horizon=HORIZON,
    validation=Validation(every=0),
)

# %% [markdown]
# ## Meta-training
#
# `meta_train` runs in memory; callbacks see the metrics of each chunk of meta-steps. (`metaopt train` does the same
# with checkpoints, validation and a page about the run.)

# %%
losses = []


def keep(trainer, state, metrics):
    losses.append(metrics["meta_loss"])


state = metaopt.meta_train(experiment, callbacks=[keep])
meta_loss = np.concatenate(losses)
print(
    f"{int(state.meta_step)} meta-steps, {sum(leaf.size for leaf in jax.tree.leaves(state.meta_params)):,} weights"
)

# %%
fig, ax = plt.subplots()
width = min(20, len(meta_loss))
ax.plot(np.arange(len(meta_loss)), meta_loss, color="#d5d9de", linewidth=0.8)
smooth = np.exp(np.convolve(np.log(meta_loss), np.ones(width) / width, mode="valid"))
ax.plot(np.arange(len(smooth)) + width - 1, smooth, label=f"geometric mean of {width}")
ax.set(
    xlabel="meta-step",
    ylabel="meta-loss",
    yscale="log",
    title="Mean loss along the inner runs",
)
ax.legend()
plt.show()

# %% [markdown]
# ## Beside tuned optimizers
#
# A fair rival has its rate searched for this family and this number of steps, on tasks of its own. `evaluate` then
# gives everyone the same new tasks and the same starts.

# %%
family = metaopt.TASKS["quadratic"](dim=10)
tuning_key, test_key = jax.random.split(jax.random.key(1))
tuned = tune_baselines(
    family,
    tuning_key,
    horizon=HORIZON,
    num_tasks=TASKS // 2,
    names=RIVALS,
    budget="9x1",
)
for name, (_, _, record) in tuned.items():
    print(
        f"{name}: rate {record['learning_rate']:g}, found with {record['gradients']:,} gradients"
    )

# %%
learned = metaopt.build_optimizer(experiment.optimizer)
entries = {"learned": (learned, state.meta_params)}
entries |= {name: (optimizer, phi) for name, (optimizer, phi, _) in tuned.items()}
curves = metaopt.evaluate(
    entries,
    family,
    test_key,
    horizon=10 * HORIZON,
    num_tasks=TASKS,
    train_horizon=HORIZON,
)

# %%
metaopt.plots.curves(curves, baselines=tuned)

# %%
at_horizon = int(np.searchsorted(curves.steps, HORIZON))
for name, loss in curves.loss.items():
    print(
        f"{name:9} at {HORIZON}: {loss[:, at_horizon].mean():.2g}   at {10 * HORIZON}: {loss[:, -1].mean():.2g}"
    )

# %% [markdown]
# The rivals were tuned for the shorter number of steps, the learned optimizer was trained on it. Means over tasks and
# ratios task by task can tell different things, since a few tasks make most of a mean; [how optimizers are
# compared](../evaluation.md) says more. One seed is one seed: others come out differently.
#
# ## It is an optax transformation
#
# With φ bound, the optimizer goes into any training loop.

# %%
tx = learned.bind(state.meta_params)
params = {"w": jax.numpy.ones(3)}
gradients = jax.grad(lambda params: (params["w"] ** 2).sum())(params)
updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
print(updates)

# %% [markdown]
# Next: [your own task](own_task.ipynb), [which estimator, and why](estimators.ipynb), or the same from the command
# line in [ten minutes](../start.md).
