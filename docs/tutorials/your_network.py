# %% [markdown]
# # Use it on your network
#
# A meta-trained optimizer is an ordinary optax transformation. Here those that come with metaopt train a classifier
# of real digits, written with flax, beside Adam.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import metaopt
from metaopt.data import load_dataset

plt.style.use("metaopt.report.house")

STEPS = 500  # tests: 3
BATCH = 64  # tests: 8

# %% [markdown]
# ## Data and a network

# %%
digits = load_dataset("digits")
images, labels = jnp.asarray(digits.train.inputs), jnp.asarray(digits.train.targets)
test_images, test_labels = (
    jnp.asarray(digits.test.inputs),
    jnp.asarray(digits.test.targets),
)
print(images.shape, test_images.shape)


def make_network():
    layers = (
        nnx.Linear(64, 32, rngs=nnx.Rngs(0)),
        nnx.tanh,
        nnx.Linear(32, 10, rngs=nnx.Rngs(1)),
    )
    return nnx.Sequential(*layers)


def loss_of(network, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(
        network(images), labels
    ).mean()


# %% [markdown]
# ## The loop
#
# Nothing in it knows that the optimizer was learned. It is told the loss, `value=`, which the controller reads.


# %%
@nnx.jit
def step(network, optimizer, images, labels):
    loss, gradients = nnx.value_and_grad(loss_of)(network, images, labels)
    optimizer.update(network, gradients, value=loss)
    return loss


def train(tx, steps=STEPS):
    network = make_network()
    tx = optax.with_extra_args_support(tx)  # Adam takes `value` too, and leaves it
    optimizer = nnx.Optimizer(network, tx, wrt=nnx.Param)
    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        rows = rng.integers(len(labels), size=BATCH)
        losses.append(step(network, optimizer, images[rows], labels[rows]))
    return network, np.array(losses)


# %% [markdown]
# `metaopt.load` takes the name of a shipped optimizer, a run's folder or a `.safetensors` file.

# %%
print(metaopt.pretrained())
contestants = {name: metaopt.load(name) for name in metaopt.pretrained()}
contestants |= {f"adam, {rate:g}": optax.adam(rate) for rate in (1e-3, 1e-2)}
found = {name: train(tx) for name, tx in contestants.items()}

# %%
fig, ax = plt.subplots()
width = min(20, STEPS)
for name, (_, losses) in found.items():
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    ax.plot(
        np.arange(len(smooth)) + width,
        smooth,
        "--" if "adam" in name else "-",
        label=name,
    )
ax.axvline(50, color="#57606a", linewidth=0.8, linestyle=":")
ax.set(
    xlabel="step",
    ylabel="training loss",
    yscale="log",
    title="Mean of 20 minibatches; dotted: 50 steps",
)
ax.legend()
plt.show()

# %%
print(f"{'':14} training loss  test loss  test accuracy")
for name, (network, _) in found.items():
    right = jnp.mean(jnp.argmax(network(test_images), axis=1) == test_labels)
    train_loss, test_loss = (
        loss_of(network, images, labels),
        loss_of(network, test_images, test_labels),
    )
    print(f"{name:14} {train_loss:13.4f} {test_loss:10.4f} {right:14.1%}")

# %% [markdown]
# The controller and the LSTM policy were meta-trained on nineteen settings of nine task families for up to 2,000 steps:
# their cards, [controller](../../metaopt/shipped/controller.md) and
# [lstm_policy](../../metaopt/shipped/lstm_policy.md), have their scores on tasks of other kinds. The other two were,
# for runs of 50 steps on small networks of this kind; [networks_rl](../../metaopt/shipped/networks_rl.md) and
# [networks_bp](../../metaopt/shipped/networks_bp.md) say how they did at 1, 10 and 100 times that on networks and on
# other tasks, beside tuned baselines, which are mostly ahead.
#
# ## Any pytree
#
# Without flax it is `init` and `update`, as for every transformation of optax; it can stand in `optax.chain`.

# %%
params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
tx = optax.chain(optax.clip_by_global_norm(1.0), metaopt.load("networks_rl"))
state = tx.init(params)
updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
print(jax.tree.map(jnp.shape, optax.apply_updates(params, updates)))

# %% [markdown]
# Next: [your own task](own_task.ipynb), to meta-train on what you really optimise.
