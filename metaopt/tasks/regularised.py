"""Losses with a prior or a decay that is left to be chosen, by the loss on validation data without it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from metaopt.data import Examples
from metaopt.registry import TASKS
from metaopt.tasks.examples import num_examples as count_examples
from metaopt.tasks.images import classifier
from metaopt.tasks.regression import Observations
from metaopt.tasks.settings import check_batch_size, check_count, check_option
from metaopt.types import Batch, Data, Hyper, Key, Params, Scalar, Split, Task, TaskFamily

Per = Literal["network", "layer", "coordinate"]

POWERS = 10  # x⁰ ... x⁹
FEATURES = POWERS + 2  # and sin x, cos x


class Parts(NamedTuple):
    """A task: features [examples, 12] and answers of each part."""

    train: Observations
    validation: Observations
    test: Observations


@TASKS.register
def ridge_features(num_examples: int = 40, seed: int | None = None, noise_precision: bool = False) -> TaskFamily:
    """L = ½‖y - Φθ‖² + ½Σ e^{h_i} θ_i², h by Q = ½‖y - Φθ‖² on other points: 12 prior precisions to choose.

    x ~ N(0, 1), y = x + ε, ε ~ N(0, 1); features x⁰ ... x⁹, sin x, cos x, standardised on the training part (raw powers
    have a condition number of 5e6); `num_examples` points each for training, validation and test. θ_0 = 0; precisions
    start at 1, h = 0. Tasks differ in their points.

    Args:
      seed: of one set of points for all tasks, for which h is then chosen; none: every task draws its own, and h is
        one for all such.
      noise_precision: to be chosen too: β in L = ½β‖y - Φθ‖² + ..., from 1.

    Raises:
      ValueError: `num_examples` is below 2.
    """
    check_count("num_examples", num_examples, least=2)

    def sample(key: Key, data: Data) -> Parts:
        x_key, noise_key = jax.random.split(key if seed is None else jax.random.key(seed))
        x = jax.random.normal(x_key, (3, num_examples))
        y = x + jax.random.normal(noise_key, x.shape)
        raw = jnp.stack([*(x**power for power in range(POWERS)), jnp.sin(x), jnp.cos(x)], axis=-1)
        # The constant stays 1.
        centre = raw[0].mean(axis=0).at[0].set(0.0)
        features = (raw - centre) / raw[0].std(axis=0).at[0].set(1.0)
        return Parts(*(Observations(*part) for part in zip(features, y, strict=True)))

    def errors(params: Params, batch: Observations) -> Scalar:
        return 0.5 * jnp.sum((batch.y - batch.X @ params) ** 2)

    def loss(params: Params, task: Parts, batch: Any, *, hyper: dict[str, Any] | None = None) -> Scalar:
        hyper = {} if hyper is None else hyper
        seen = task.train if batch == () else batch
        prior = 0.5 * jnp.sum(hyper.get("precision", 1.0) * params**2)
        return hyper.get("noise_precision", 1.0) * errors(params, seen) + prior

    starts = {"precision": Hyper(np.ones(FEATURES, np.float32))}
    if noise_precision:
        starts["noise_precision"] = Hyper(np.float32(1.0))
    return TaskFamily(
        data=(),
        sample=sample,
        init=lambda key, task: jnp.zeros(FEATURES, jnp.float32),
        batch=lambda key, task, data: (),
        loss=loss,
        eval_batch=lambda task, data, split: getattr(task, split),
        splits=("train", "validation", "test"),
        evaluated_on=f"the {num_examples:,} validation points of each task, without the prior",
        hyper=starts,
        validation_loss=lambda params, task, batch: errors(params, batch),
    )


class Noisy(NamedTuple):
    """Examples to train on; those that are judged come without the noise."""

    examples: Examples
    noise: jax.Array  # ε ~ N(0, 1), of the inputs' shape


def _noisy(key: Key, examples: Examples) -> Noisy:
    return Noisy(examples, jax.random.normal(key, examples.inputs.shape, examples.inputs.dtype))


def _plain(batch: Batch) -> Examples:
    return batch.examples if isinstance(batch, Noisy) else batch


@TASKS.register(places=("data_dir",))
def regularised_classifier(
    data: str = "digits",
    per: Per = "layer",
    decay: float = 1e-3,
    input_noise: float | None = None,
    num_examples: int | None = None,
    hidden_layers: int = 1,
    width: int = 20,
    batch_size: int | None = 64,
    data_dir: str | None = None,
    split_seed: int = 0,
) -> TaskFamily:
    """`classifier` with ½Σ λ_i θ_i² added, λ to be chosen by cross-entropy on the validation data.

    λ is one number for the network, one per layer (its weights and biases), or one per coordinate: with `width=134` on
    the 64 pixels of `digits` that is 10,060. All start at `decay`.

    Args:
      input_noise: an augmentation whose scale is to be chosen too, from here: training inputs are x + σε, ε ~ N(0, I)
        anew with every batch, validation and test inputs as they are. Losses on all of the training data, which `hoag`,
        `neumann`, `t1_t2` and `drmad` differentiate, have one fixed ε an example. None: no noise.
      num_examples: of the training data, the first so many; none: all of them. Fewer are overfitted sooner.
      batch_size: none: all of the training data at every step, so that tasks differ in their first weights alone.

    Raises:
      ValueError: settings out of range, or as `classifier`.
    """
    check_option("per", per, get_args(Per))
    for name, start in (("decay", decay), ("input_noise", 1.0 if input_noise is None else input_noise)):
        if not 0 < start < math.inf:
            raise ValueError(f"`{name}` is {start}; give a finite number above 0, whose logarithm can be moved.")
    plain = classifier(
        data=data,
        hidden_layers=hidden_layers,
        width=width,
        batch_size=batch_size or 1,
        data_dir=data_dir,
        split_seed=split_seed,
    )
    held = count_examples(plain.data["train"])
    if num_examples is not None:
        check_count("num_examples", num_examples, most=held, why=f" (there are {held:,} training examples in {data})")
        held = num_examples
        plain = dataclasses.replace(
            plain, data={**plain.data, "train": jax.tree.map(lambda x: x[:held], plain.data["train"])}
        )
    if batch_size is not None:
        check_batch_size(batch_size, held)
    layers = jax.eval_shape(plain.init, jax.random.key(0), ())
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(layer)) for layer in layers]
    shape = {"network": (), "layer": (len(sizes),), "coordinate": (sum(sizes),)}[per]

    def penalty(params: Params, rates: Any) -> Scalar:
        squares = ravel_pytree(params)[0] ** 2  # layer by layer
        if per == "layer" and jnp.ndim(rates):
            rates = jnp.repeat(rates, np.asarray(sizes), total_repeat_length=sum(sizes))
        return 0.5 * jnp.sum(rates * squares)

    starts = {"decay": Hyper(np.full(shape, decay, np.float32))}
    if input_noise is not None:
        starts["input_noise"] = Hyper(np.float32(input_noise))

    def draw(key: Key, task: Task, data: Data) -> Batch:
        draw_key, noise_key = (key, key) if input_noise is None else jax.random.split(key)
        drawn = data["train"] if batch_size is None else plain.batch(draw_key, task, data)
        return drawn if input_noise is None else _noisy(noise_key, drawn)

    def eval_batch(task: Task, data: Data, split: Split) -> Batch:
        held_out = plain.eval_batch(task, data, split)
        return held_out if input_noise is None or split != "train" else _noisy(jax.random.key(0), held_out)

    def loss(params: Params, task: Task, batch: Batch, *, hyper: dict[str, Any] | None = None) -> Scalar:
        hyper = {"decay": decay, "input_noise": input_noise} if hyper is None else hyper
        seen = _plain(batch)
        if isinstance(batch, Noisy):
            seen = seen._replace(inputs=seen.inputs + hyper["input_noise"] * batch.noise)
        return plain.loss(params, task, seen) + penalty(params, hyper["decay"])

    def metrics(params: Params, task: Task, batch: Batch) -> dict[str, Scalar]:
        assert plain.metrics is not None
        return plain.metrics(params, task, _plain(batch))

    without = "decay" if input_noise is None else "decay and noise"
    judged = count_examples(plain.data["validation"])
    return dataclasses.replace(
        plain,
        batch=draw,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics,
        name="",
        evaluated_on=f"the full validation set ({judged:,} examples), without {without}",
        hyper=starts,
        validation_loss=lambda params, task, batch: plain.loss(params, task, _plain(batch)),
    )
