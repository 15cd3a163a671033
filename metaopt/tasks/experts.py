"""Families of multimodels: mixtures of experts and partitions, on data from known experts and on tables."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.data import load_dataset
from metaopt.registry import TASKS
from metaopt.tasks.examples import SPLITS, evaluated_on, source_of, to_device
from metaopt.tasks.mixture import MOST_EXPERTS, Gate, Mixture, Rows, check_sample
from metaopt.tasks.settings import check_batch_size, check_count
from metaopt.types import Batch, Data, DataSource, Key, Params, Scalar, Split, Task, TaskFamily

SHARPNESS = 4.0  # of the true gate's logits: regions with narrow borders
RECOVERED = 0.25  # root mean square over its coefficients that every true expert lies within


class ExpertsTask(NamedTuple):
    train: Rows
    validation: Rows
    test: Rows
    experts: Any  # [true experts, inputs] where the data were drawn from such; ()


def _matched(experts: jax.Array, truth: jax.Array) -> jax.Array:
    """[true experts] root mean squares over coefficients, to experts of their own, as the least sum of squares has it.

    Where there are fewer experts than true ones, one may stand for as many as it has to.
    """
    squares = jnp.mean((truth[:, None] - experts[None]) ** 2, axis=-1)
    squares = jnp.where(jnp.isfinite(squares), squares, 1e30)  # the assignment would search for ever
    squares = jnp.tile(squares, (1, math.ceil(len(truth) / len(experts))))
    rows, columns = optax.assignment.hungarian_algorithm(squares)
    return jnp.sqrt(squares[rows, columns])


def _family(mixture: Mixture, num_objects: int, batch_size: int | None, known: bool, **parts: Any) -> TaskFamily:
    check_sample(mixture, num_objects)
    if batch_size is not None:
        check_batch_size(batch_size, num_objects)

    def rows(task: ExpertsTask, batch: Batch) -> Rows:
        return batch if isinstance(batch, Rows) else task.train

    def batch(key: Key, task: ExpertsTask, data: Data) -> Batch:
        if batch_size is None:
            return ()
        drawn = jax.random.randint(key, (batch_size,), 0, num_objects)
        return jax.tree.map(lambda x: x.at[drawn].get(mode="promise_in_bounds"), task.train)

    def loss(params: Params, task: ExpertsTask, batch: Batch) -> Scalar:
        return mixture.loss(params, rows(task, batch), num_objects)

    def eval_batch(task: ExpertsTask, data: Data, split: Split) -> Batch:
        return () if batch_size is None and split == "train" else getattr(task, split)

    def metrics(params: Params, task: ExpertsTask, batch: Batch) -> dict[str, Scalar]:
        found = {"nll": mixture.predictive(params, rows(task, batch), task.train)}
        if known:
            apart = _matched(params["experts"], task.experts)
            found["expert_error"] = jnp.sqrt(jnp.mean(apart**2))
            found["recovered"] = jnp.all(apart < RECOVERED).astype(jnp.float32)
        return found

    return TaskFamily(
        init=lambda key, task: mixture.init(key),
        batch=batch,
        loss=loss,
        eval_batch=eval_batch,
        metrics=metrics,
        splits=SPLITS,
        lower_bound=mixture.lower_bound,
        events=("recovered",) if known else (),
        **parts,
    )


@TASKS.register
def mixture_of_experts(
    num_experts: int = 3,
    dim: int = 2,
    num_examples: int = 200,
    true_experts: int | None = None,
    gate: Gate = "network",
    gate_width: int = 4,
    prior_precision: float = 1.0,
    coupling: float = 1.0,
    gate_precision: float = 0.01,
    noise: float = 0.3,
    learn_noise: bool = False,
    batch_size: int | None = None,
) -> TaskFamily:
    """-(1/N) log p(y, W | X, V) of a mixture of linear experts, on data drawn from known ones.

    x ~ N(0, I) in `dim` dimensions, and a 1; w_k ~ N(0, I); object i belongs to expert k with probability
    softmax(4 Uᵀx), U ~ N(0, I), or with equal ones unless `gate` is network; y = w_kᵀx + N(0, noise²). Validation and
    test have `num_examples` each as well. Metrics: `nll`, mean -log p(y | x) without priors; `expert_error`, root mean
    square of w's coefficients with experts matched to the true ones; `recovered`, every true expert within 0.25.

    Args:
      true_experts: that the data come from; default: as many.
      gate: network: softmax(V1ᵀ σ(V2ᵀ x)); constant: weights that do not depend on x; partition: each object belongs
        to the expert that fits it best, and the loss is the likelihood of such a multi-level model.
      prior_precision: a of w_k ~ N(w⁰_k, I/a).
      coupling: ξ of w⁰_k - w⁰_k' ~ N(0, I/ξ), with the w⁰_k as parameters; 0: they are 0.
      gate_precision: of a normal prior on V, 0 for none.
      noise: of the data and of the model, 1/√β.
      learn_noise: β is a parameter that begins there; the loss then has no known bound.
      batch_size: of minibatches with replacement; default: all objects, a deterministic loss.

    Raises:
      ValueError: settings out of range; a gate over one expert (gate=constant makes it the plain linear model); more
        experts than examples.
    """
    check_count("dim", dim)
    check_count("num_examples", num_examples)
    mixture = Mixture(
        num_experts, dim + 1, gate, gate_width, prior_precision, coupling, gate_precision, noise, learn_noise
    )
    num_true = num_experts if true_experts is None else true_experts
    check_count("true_experts", num_true, most=MOST_EXPERTS)

    def sample(key: Key, data: Data) -> ExpertsTask:
        expert_key, gate_key, *split_keys = jax.random.split(key, 2 + len(SPLITS))
        experts = jax.random.normal(expert_key, (num_true, dim + 1))
        slopes = SHARPNESS * jax.random.normal(gate_key, (dim + 1, num_true)) * (gate == "network")

        def draw(key: Key) -> Rows:
            input_key, member_key, noise_key = jax.random.split(key, 3)
            X = jax.random.normal(input_key, (num_examples, dim))
            X = jnp.concatenate([X, jnp.ones_like(X[:, :1])], axis=1)
            members = jax.random.categorical(member_key, X @ slopes)
            y = jnp.sum(X * experts[members], axis=1) + noise * jax.random.normal(noise_key, (num_examples,))
            return Rows(X, y)

        train, validation, test = map(draw, split_keys)
        return ExpertsTask(train, validation, test, experts)

    words = {} if batch_size is None else {"evaluated_on": f"all {num_examples:,} examples of each task"}
    return _family(mixture, num_examples, batch_size, True, data=(), sample=sample, **words)


@TASKS.register(places=("data_dir",))
def table_experts(
    num_experts: int = 2,
    data: str = "diabetes",
    gate: Gate = "network",
    gate_width: int = 4,
    prior_precision: float = 1.0,
    coupling: float = 1.0,
    gate_precision: float = 0.01,
    noise: float = 0.7,
    learn_noise: bool = False,
    batch_size: int | None = None,
    data_dir: str | None = None,
    split_seed: int = 0,
) -> TaskFamily:
    """A mixture of linear experts on a table of numbers, as `mixture_of_experts` on data from known ones.

    Inputs and the one target are standardised. Tasks differ in their first parameters and minibatches only.

    Raises:
      ValueError: settings out of range, as there; an unknown data set, or one with several numbers to predict.
      FileNotFoundError: the data set is not on this machine.
    """
    dataset = load_dataset(data, data_dir, targets="numbers", split_seed=split_seed)
    outputs = dataset.train.targets.shape[1]
    if outputs != 1:
        raise ValueError(f"{data!r} has {outputs} numbers to predict an example; give a table with one.")
    mixture = Mixture(
        num_experts,
        dataset.num_inputs + 1,
        gate,
        gate_width,
        prior_precision,
        coupling,
        gate_precision,
        noise,
        learn_noise,
    )
    train, validation, test = (
        rows_of(part.inputs, part.targets[:, 0]) for part in (dataset.train, dataset.validation, dataset.test)
    )
    parts: dict[str, Any] = {} if batch_size is None else {"evaluated_on": evaluated_on(train)}
    sources: tuple[DataSource, ...] = (source_of(dataset),)
    task = to_device(ExpertsTask(train, validation, test, ()))
    return _family(
        mixture, len(dataset.train.inputs), batch_size, False, data=task, sample=_shared, sources=sources, **parts
    )


def rows_of(inputs: Any, targets: Any) -> Rows:
    """Rows of a table [objects, features] with the 1 that experts end with."""
    inputs = np.asarray(inputs, np.float32)
    return Rows(np.concatenate([inputs, np.ones_like(inputs[:, :1])], axis=1), np.asarray(targets, np.float32))


def _shared(key: Key, data: Data) -> Task:
    return data
