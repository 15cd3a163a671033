# %% [markdown]
# # Beyond the horizon
#
# A learned optimizer is meta-trained on runs of some length, and used on longer ones. What happens there is the
# question that most of this framework is about. This tutorial trains two models on 50 steps and follows them to 1,000.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import metaopt
from metaopt import Experiment, Validation, choice

plt.style.use("metaopt.report.house")

META_STEPS = 600  # tests: 2
TASKS = 64  # tests: 2
HORIZON = 50  # tests: 4

# %% [markdown]
# ## Two models, three seeds
#
# *Recursive*: the step length is the last one times a factor (the thesis's BP model). *Direct*: the network gives the
# step length itself, with noise in meta-training (its RL model). All else is equal.

# %%
MODELS = {
    "recursive": (
        choice("lstm", step_rule="recursive", noise="none"),
        choice("truncated_backprop"),
    ),
    "direct, noise": (
        choice("lstm", step_rule="direct", noise="per_step"),
        choice("reparameterised"),
    ),
}
SEEDS = range(3)  # tests: range(1)


def train(optimizer, estimator, seed):
    experiment = Experiment(
        tasks=(choice("quadratic", dim=10),),
        optimizer=optimizer,
        estimator=estimator,
        seed=seed,
        num_meta_steps=META_STEPS,
        num_tasks=16,
        horizon=HORIZON,
        validation=Validation(every=0),
    )
    return metaopt.build_optimizer(optimizer), metaopt.meta_train(
        experiment
    ).meta_params


entries = {
    f"{name} {seed}": train(*model, seed)
    for name, model in MODELS.items()
    for seed in SEEDS
}

# %% [markdown]
# ## To twenty times the horizon
#
# Every φ goes over the same new tasks. Two rivals at a usual rate show what no training at all gives.

# %%
family = metaopt.TASKS["quadratic"](dim=10)
for name, rate in (("momentum", 1.0), ("adam", 0.03)):
    optimizer = metaopt.OPTIMIZERS[name](learning_rate=rate)
    entries[f"{name}, {rate:g}"] = (optimizer, optimizer.init(jax.random.key(0)))
curves = metaopt.evaluate(
    entries,
    family,
    jax.random.key(1),
    horizon=20 * HORIZON,
    num_tasks=TASKS,
    train_horizon=HORIZON,
)

# %%
fig, ax = plt.subplots()
for name, loss in curves.loss.items():
    model = name.rsplit(" ", 1)[0]
    colour = {"recursive": "C1", "direct, noise": "C0"}.get(model, "#57606a")
    style = "-" if model in MODELS else {"momentum, 1": "--"}.get(name, ":")
    label = model if name.endswith(" 0") else name if model not in MODELS else None
    ax.plot(
        curves.steps[1:],
        np.median(loss, axis=0)[1:],
        style,
        color=colour,
        label=label,
        linewidth=1.3,
    )
ax.axvline(HORIZON, color="#57606a", linewidth=0.8, linestyle=":")
ax.set(xscale="log", yscale="log", xlabel="inner step", ylabel="loss")
ax.set_title(f"Median over {TASKS} tasks; dotted upright: the training horizon")
ax.legend()
plt.show()

# %% [markdown]
# A line is a meta-seed. Up to the horizon they can hardly be told apart; beyond it they can.
#
# ## Three questions of every task
#
# A mean hides what single tasks do. *Failed*: not finite, or above ten times the loss at the start, at any step.
# *Rises*: at the end above twice the loss at the training horizon. *Improves*: lower at the end than there.

# %%
at = int(np.searchsorted(curves.steps, HORIZON))
print(f"{'':16} failed  rises  improves")
for name, loss in curves.loss.items():
    failed = (~np.isfinite(loss[:, -1])) | (curves.peak[name][:, -1] > 10 * loss[:, 0])
    tail = loss[:, -max(len(curves.steps) // 20, 1) :].mean(axis=1)
    rises, improves = tail > 2 * loss[:, at], loss[:, -1] < loss[:, at]
    print(f"{name:16} {failed.mean():6.0%} {rises.mean():6.0%} {improves.mean():9.0%}")

# %% [markdown]
# ## Why: the length of the steps
#
# On a quadratic the remaining distance shrinks, and steps must shrink with it. How far a step goes at the horizon, and
# at the end, tells the two models apart.

# %%
keys = jax.random.split(jax.random.key(2), 16)


def step_lengths(optimizer):
    """φ -> [steps, tasks] the norm of every step."""

    @jax.jit
    def run(phi):
        tx = metaopt.bind_tasks(optimizer, phi)
        task, state = metaopt.reset(tx, family, keys)
        return metaopt.unroll(tx, family, task, state, length=20 * HORIZON)[
            1
        ].update_norm

    return run


fig, ax = plt.subplots()
for name, colour in (("recursive", "C1"), ("direct, noise", "C0")):
    run = step_lengths(entries[f"{name} 0"][0])
    for seed in SEEDS:
        lengths = np.median(run(entries[f"{name} {seed}"][1]), axis=1)
        ax.plot(
            np.arange(len(lengths)) + 1,
            lengths,
            color=colour,
            linewidth=1.3,
            label=name if seed == 0 else None,
        )
ax.axvline(HORIZON, color="#57606a", linewidth=0.8, linestyle=":")
ax.set(
    xscale="log",
    yscale="log",
    xlabel="inner step",
    ylabel="‖step‖",
    title="Median length of a step",
)
ax.legend()
plt.show()

# %% [markdown]
# ## What helps
#
# * Look at ten times the horizon while you train: `metaopt train` validates there (`validation.multiples`) and keeps
#   the φ that is best there.
# * Train several meta-seeds: they differ beyond the horizon although their meta-losses are alike.
# * Train on longer runs in windows: `horizon` above `unroll_length`, or a `curriculum`.
#
# [When meta-training fails](../failures.md) goes on from here; the [thesis, claim by
# claim](../../experiments/thesis/README.md) has step lengths on other families.
