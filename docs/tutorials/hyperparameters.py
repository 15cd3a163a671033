# %% [markdown]
# # Hyperparameters by gradient
#
# Some numbers are not chosen by the training loss but by data that were held out: the strength of a prior, a decay, a
# learning rate. Their gradient, the *hypergradient*, can be had. For metaopt they are one more part of φ, and the
# estimators that move an optimizer's weights move them, beside others that were made for just this.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import metaopt
from metaopt import Experiment, Log, Validation, choice
from metaopt.estimators import bilevel
from metaopt.experiment import MetaOptimizer

plt.style.use("metaopt.report.house")

META_STEPS = 40  # tests: 2
STEPS = 200  # tests: 5

# %% [markdown]
# ## Twelve prior precisions
#
# `ridge_features` fits a line with twelve features, ten powers and two waves, from 40 points. Each weight has a prior
# precision of its own; the precisions are to be chosen by 40 other points. A family states such settings as `hyper`,
# and what judges them as `validation_loss`.

# %%
family = metaopt.TASKS["ridge_features"](seed=0)
print({name: np.shape(one.start) for name, one in family.hyper.items()})
task = family.sample(jax.random.key(0), ())
theta = family.init(jax.random.key(0), task)


# %% [markdown]
# ## One hypergradient, several ways
#
# The functions behind the estimators work on any two functions of (θ, h). The exact one goes back through all of the
# inner steps; HOAG solves a linear system at the end instead; T1-T2 puts the identity for the Hessian, and greedy
# looks at one step.


# %%
def inner_loss(theta, h):
    return family.loss(theta, task, (), hyper={"precision": jax.numpy.exp(h)})


def validation_loss(theta, h):
    return family.validation_loss(
        theta, task, family.eval_batch(task, (), "validation")
    )


problem = bilevel.Problem(inner_loss, validation_loss)
h = jax.numpy.zeros(12)
steepest = np.linalg.eigvalsh(jax.hessian(inner_loss)(theta, h + 4)).max()
rate = 1 / float(steepest)  # for precisions up to e⁴
end = bilevel.descend(problem, theta, h, rate=rate, steps=STEPS)
ways = {
    "exact": lambda: bilevel.unrolled(problem, theta, h, rate=rate, steps=STEPS),
    "HOAG": lambda: bilevel.hoag(problem, end, h).gradient,
    "DrMAD": lambda: bilevel.drmad(problem, theta, end, h, rate=rate, steps=STEPS),
    "T1-T2": lambda: bilevel.implicit(problem, end, h, bilevel.identity).gradient,
    "greedy": lambda: bilevel.greedy(problem, end, h, rate=rate)[0],
}
found = {name: np.asarray(way()) for name, way in ways.items()}
for name, gradient in found.items():
    cosine = (
        gradient
        @ found["exact"]
        / np.linalg.norm(gradient)
        / np.linalg.norm(found["exact"])
    )
    print(f"{name:7} cosine with the exact one: {cosine:.3f}")

# %% [markdown]
# ## Choosing them in meta-training
#
# As an experiment: φ holds the task's settings beside the optimizer's, and under these estimators only they move
# (others are told so, `of=task`). Random search draws its φ instead, one a meta-step.

# %%
common = {
    "tasks": (choice("ridge_features", seed=0),),
    "optimizer": choice("sgd", learning_rate=rate),
    "num_tasks": 1,
    "num_meta_steps": META_STEPS,
    "horizon": STEPS,
    "objective": "last",
    "validation": Validation(every=0),
    "log": Log(every=max(META_STEPS // 10, 1)),
    "meta_optimizer": MetaOptimizer(learning_rate=0.1),
}
experiments = {
    "exact": Experiment(
        estimator=choice("truncated_backprop", of="task", second_order=True), **common
    ),
    "hoag": Experiment(estimator=choice("hoag"), **common),
    "greedy": Experiment(estimator=choice("greedy"), **common),
}
plain = {**common, "meta_optimizer": MetaOptimizer("sgd", 1.0, clip_norm=None)}
experiments["random search"] = Experiment(estimator=choice("random_search"), **plain)

paths = {}
for name, experiment in experiments.items():
    paths[name] = [h]

    def keep(trainer, state, metrics, path=paths[name]):
        path.append(np.asarray(state.meta_params["task"]["precision"]))

    metaopt.meta_train(experiment, callbacks=[keep])

# %% [markdown]
# ## Judged exactly
#
# Here θ*(h) is a linear system, so that every h can be judged without an inner run.


# %%
def judged(h, split):
    inputs, answers = task.train
    weights = np.linalg.solve(
        inputs.T @ inputs + np.diag(np.exp(h)), inputs.T @ answers
    )
    return float(
        family.validation_loss(weights, task, family.eval_batch(task, (), split))
    )


fig, ax = plt.subplots()
for name, path in paths.items():
    ax.plot(
        np.arange(len(path)) * common["log"].every,
        [judged(h, "validation") for h in path],
        label=name,
    )
ax.set(
    xlabel="meta-step",
    ylabel="validation loss at θ*(h)",
    title="Twelve precisions, chosen by gradient",
)
ax.legend()
plt.show()

# %%
print(f"{'':14} validation     test")
print(f"{'h = 0':14} {judged(h, 'validation'):10.2f} {judged(h, 'test'):8.2f}")
for name, path in paths.items():
    print(
        f"{name:14} {judged(path[-1], 'validation'):10.2f} {judged(path[-1], 'test'):8.2f}"
    )

# %% [markdown]
# Whole-run methods minimise the validation loss at the θ that their run reaches, HOAG at the minimum. The test points
# were seen by no one: what is won on 40 validation points is not all won there.
#
# At equal cost, from twelve numbers to ten thousand: [hypergradients,
# measured](../../experiments/model_selection/hypergradients/README.md). On two functions of your own, without a
# family: [`own_hypergradients.py`](../../examples/own_hypergradients.py). The settings of a hand-designed optimizer,
# such as those of `adam:tunes=all`, are moved by any other estimator: [how much of “learned” is
# tuning](../../experiments/hypertuned/README.md).
