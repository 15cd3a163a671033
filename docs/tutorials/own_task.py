# %% [markdown]
# # Your own task
#
# What you bring is a loss and a start. This tutorial makes a family of tasks of them, checks it, meta-trains on it, and
# brings data of your own.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes

import metaopt
from metaopt import Experiment, Validation, choice, testing

META_STEPS = 500  # tests: 2
TASKS = 100  # tests: 2
HORIZON = 50  # tests: 4

# %% [markdown]
# ## A loss, a start, and what makes tasks differ
#
# Suppose that you fit the frequency and the phase of a wave over and over again, each time to other measurements. One
# such fit is a *task*; everything below is written for one, and metaopt runs many at once. `sample` draws what makes a
# task one of its own, `init` draws a start, `loss` is what is minimised.

# %%
X = np.linspace(-1, 1, 20)


def sample(key):
    a, b = jax.random.uniform(key, (2,), minval=0.5, maxval=2.0)
    return {"frequency": 2 * a, "phase": b, "y": jnp.sin(2 * a * X + b)}


def init(key):
    return 1.0 + 0.5 * jax.random.normal(key, (2,))


def loss(params, task):
    return jnp.mean((jnp.sin(params[0] * X + params[1]) - task["y"]) ** 2)


# %% [markdown]
# A function that returns the family, under a decorator, gives it a name, which an experiment and the command line can
# take. `lower_bound` says what the loss never falls below; a mean of squares has 0.


# %%
@metaopt.TASKS.register
def waves() -> metaopt.TaskFamily:
    """Fits a sine to 20 points: frequency and phase."""
    return metaopt.make_task(loss, init, sample=sample, lower_bound=0.0)


# Shapes and types, gradients, one task as many, SGD lowers its loss.
testing.check_task(waves())

# %% [markdown]
# ## Meta-training on it

# %%
experiment = Experiment(
    tasks=(choice("waves"),),
    optimizer=choice("lstm", features="all", hidden_size=10),
    estimator=choice("reparameterised"),
    num_meta_steps=META_STEPS,
    num_tasks=16,
    horizon=HORIZON,
    validation=Validation(every=0),
)
state = metaopt.meta_train(experiment)
learned = metaopt.build_optimizer(experiment.optimizer)

# %% [markdown]
# Adam at four rates stands beside it, on the same new tasks. Rates are part of an optimizer's φ, so that every rate
# is the same compiled program.

# %%
make_adam, key = metaopt.OPTIMIZERS["adam"], jax.random.key(0)
adam = make_adam()
rivals = {
    f"Adam, {rate:g}": (adam, make_adam(learning_rate=rate).init(key))
    for rate in (0.01, 0.03, 0.1, 0.3)
}
everyone = {"learned": (learned, state.meta_params), **rivals}
curves = metaopt.evaluate(
    everyone,
    waves(),
    jax.random.key(1),
    horizon=2 * HORIZON,
    num_tasks=TASKS,
    train_horizon=HORIZON,
)

# %%
metaopt.plots.curves(curves, baselines=rivals)

# %% [markdown]
# ## Data of your own
#
# Where a loss is a mean over examples, give the arrays: they are divided into training, validation and test data, and
# minibatches are drawn. A table that comes with scikit-learn stands for yours here. The model may be any pytree of
# parameters, or a flax module.

# %%
table = load_diabetes()
x = ((table.data - table.data.mean(0)) / table.data.std(0)).astype(np.float32)
y = ((table.target - table.target.mean()) / table.target.std()).astype(np.float32)


def start(key):
    first, second = jax.random.split(key)
    return {
        "w": jax.random.normal(first, (10, 16)) / 10**0.5,
        "out": jax.random.normal(second, (16,)) / 4,
    }


def squared_error(params, batch):
    return jnp.mean(
        (jnp.tanh(batch["x"] @ params["w"]) @ params["out"] - batch["y"]) ** 2
    )


family = metaopt.make_task(
    squared_error,
    start,
    data={"x": x, "y": y},
    batch_size=64,
    lower_bound=0.0,
    name="diabetes",
)
found = metaopt.evaluate(
    everyone,
    family,
    jax.random.key(2),
    horizon=2 * HORIZON,
    num_tasks=max(TASKS // 10, 2),
)
for name, splits in found.final.items():
    print(
        f"{name:11} training {splits['train']['loss'].mean():.3f}   test {splits['test']['loss'].mean():.3f}"
    )

# %% [markdown]
# The learned optimizer has never seen a network here, only waves of two parameters; how far it carries is what
# evaluation is for.
#
# To train on your family from the command line, put `waves` into a file and give it with `--plugin`; a whole one is
# [`examples/own_task.py`](../../examples/own_task.py). More: [write entries of your own](../extending.md), [bring
# data](../data.md).
