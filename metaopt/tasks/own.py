"""A researcher's own loss as a family of tasks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.data.dataset import hash_of, split_rows
from metaopt.tasks.checks import check_arrays, check_family, explained
from metaopt.tasks.examples import (
    SPLITS,
    eval_examples,
    evaluated_on,
    num_examples,
    sample_examples,
    to_device,
)
from metaopt.tasks.modules import is_linen, model_of
from metaopt.tasks.settings import check_batch_size
from metaopt.types import Batch, Data, DataSource, Key, Oracle, Params, Split, Task, TaskFamily

BATCH_SIZE = 32
NUM_DRAWS = 16  # batches of a family with a `batch` of its own that it is evaluated on


class Draws(NamedTuple):
    """Several batches, to be evaluated on together: the mean of theirs."""

    batches: Batch  # [draws, ...]


def make_task(
    loss: Callable[..., Any],
    init: Any,
    *,
    data: Any = None,
    batch: Callable[..., Any] | None = None,
    batch_size: int | Literal["all"] | None = None,
    sample: Callable[..., Any] | None = None,
    eval_batch: Callable[..., Any] | None = None,
    metrics: Callable[..., Mapping[str, Any]] | None = None,
    split: Sequence[float] | None = (0.8, 0.1, 0.1),
    seed: int | None = 0,
    lower_bound: float | Callable[[Any], Any] | None = None,
    oracle: Oracle | None = None,
    name: str = "",
) -> TaskFamily:
    """A family of tasks from a loss of your own, on your own arrays if it has any.

    A deterministic loss, minibatches of arrays, and tasks that are drawn:

        make_task(lambda params: jnp.sum(params**2), lambda key: jax.random.normal(key, (5,)), lower_bound=0.0)
        make_task(loss, init, data={"x": x, "y": y}, batch_size=64)               # loss(params, batch)
        make_task(loss, init, sample=lambda key: jax.random.uniform(key, (5,)))   # loss(params, task)

    In a function that is registered with `@metaopt.TASKS.register` it can be trained on by name, and takes options.

    Your functions are written for one task in jax.numpy, and are given, by position, what there is of

    - `loss(params, task, batch)`: no task without `sample`, no batch without `data` and `batch`; one real number.
    - `metrics(params, task, batch)`: likewise, a dict of numbers, for reports.
    - `init(key)` or `init(key, task)`: the parameters, any pytree of real floating arrays.
    - `sample(key)` or `sample(key, data)`: what makes a task one of its own, any pytree of arrays.
    - `batch(key, task, data)`: in place of minibatches, drawn by `key`: numpy's random numbers would be the same in
      every step. The `data` of `sample` and `batch` are the training split.
    - `eval_batch(task, data)`: what is evaluated on, with each split's `data` in turn.

    flax: `init` returns an nnx module (`lambda key: MLP(rngs=nnx.Rngs(key))`) or is a linen module (`MLP(32)`), and the
    loss is given the module in place of parameters: `lambda net, batch: jnp.mean((net(batch["x"]) - batch["y"])**2)`
    What is trained is `nnx.Param` or the collection "params". Normalisations use the statistics of the batch at hand;
    their running averages stay as they are made. Other state, Dropout's for one, is refused.

    Args:
      data: an array or a pytree (dict, tuple) of arrays with one leading axis of examples, which `split` and `seed`
        divide; or {"train": ..., "validation": ..., "test": ...} of such, the last two optional. Their hash is recorded
        with a run.
      batch_size: examples of a minibatch of `data`, drawn with replacement; 32 unless given; "all": the training split.
      eval_batch: without it, all of a split (at most 10,000 examples), or the mean over 16 batches of a `batch` of your
        own, which are the same each time.
      split: fractions for training, validation and test, each example in one of them; 0 leaves a split out, None
        leaves the data whole (a series that `batch` cuts windows from).
      seed: of the permutation before the split; None: in the given order.
      lower_bound: what the loss never falls below, a number or a function of the task. Losses that are means of squares
        or cross-entropies have 0.0. None, not known, is right for every loss, hence the default; with a bound, reports
        have ratios in place of differences, a loss that rises is told sooner, and objectives that divide by the loss
        can be used.
      oracle: where the gradient comes from, if not from `loss`.
      name: what reports call it; the registry names what it makes.

    Raises:
      ValueError: arguments that do not go together, functions that do not take what they are given, arrays that are
        no numbers or of different lengths or not finite, and what no inner loop can run on; one line each.
    """
    has_batch = data is not None or batch is not None
    if batch_size is not None and (data is None or batch is not None):
        raise ValueError("`batch_size` is of minibatches of `data`; leave it out where there are none.")
    if eval_batch is not None and not has_batch:
        raise ValueError("`eval_batch` is given, but the loss has no batch; give `batch` or `data`, or leave it out.")
    number = isinstance(lower_bound, float | int) and not isinstance(lower_bound, bool) and math.isfinite(lower_bound)
    if not (number or lower_bound is None or callable(lower_bound)):
        raise ValueError(f"`lower_bound` is {lower_bound!r}; give a finite number, a function of the task, or None.")
    tasked, whole = ("task",) if sample else (), ("data",) if data is not None else ()
    seen = "module" if is_linen(init) else "params"
    _check_arguments("loss", loss, (seen, *tasked, *(("batch",) if has_batch else ())))
    for called, function, arguments in (
        ("metrics", metrics, (seen, *tasked, *(("batch",) if has_batch else ()))),
        ("batch", batch, ("key", *tasked, *whole)),
        ("eval_batch", eval_batch, (*tasked, *whole)),
        ("lower_bound", lower_bound if callable(lower_bound) else None, ("task",)),
    ):
        if function is not None:
            _check_arguments(called, function, arguments)
    init_task = not is_linen(init) and not isinstance(init, type) and _takes("init", init, ("key", *tasked)) == 2
    sample_data = sample is not None and _takes("sample", sample, ("key", *whole)) == 2

    splits, source = _splits(data, split, seed)
    train = splits["train"]
    size = BATCH_SIZE if batch_size is None else batch_size
    if data is not None and batch is None and size != "all":
        check_batch_size(size, num_examples(train), " in `data`")

    def with_data(task: Task, part: Data) -> tuple[Any, ...]:
        return (*((task,) if sample else ()), *((part,) if data is not None else ()))

    def with_batch(task: Task, drawn: Batch) -> tuple[Any, ...]:
        return (*((task,) if sample else ()), *((drawn,) if has_batch else ()))

    def draw_task(key: Key, data: Data) -> Task:
        return () if sample is None else sample(key, data["train"]) if sample_data else sample(key)

    def draw(key: Key, task: Task, part: Data) -> Batch:
        """A batch of one split."""
        if batch is not None:
            return batch(key, *with_data(task, part))
        return () if data is None else part if size == "all" else sample_examples(key, part, size)

    def held_out(task: Task, part: Data) -> Batch:
        if eval_batch is not None:
            return eval_batch(*with_data(task, part))
        if batch is None:
            return () if data is None else eval_examples(part)
        return Draws(jax.vmap(lambda key: draw(key, task, part))(jax.random.split(jax.random.key(0), NUM_DRAWS)))

    def example() -> Any:
        key = jax.random.key(0)
        task = explained("`sample`", draw_task, key, splits)
        drawn = explained("`batch`", draw, key, task, train)
        check_arrays("`sample`", task)
        check_arrays("`batch`", drawn)
        return task, drawn

    task, drawn = jax.eval_shape(example)
    model = model_of(init, loss, (task,) if init_task else (), with_batch(task, drawn))

    def calling(function: Callable[..., Any]) -> Callable[[Params, Task, Batch], Any]:
        def call(params: Params, task: Task, batch: Batch) -> Any:
            if isinstance(batch, Draws):
                each = jax.vmap(lambda drawn: call(params, task, drawn))(batch.batches)
                return jax.tree.map(lambda x: jnp.mean(x, axis=0), each)
            return model.call(function, params, *with_batch(task, batch))

        return call

    words = "the exact loss" if not has_batch else f"the mean of {NUM_DRAWS} batches, the same each time"
    if eval_batch is not None:
        words = "its own batch for evaluation"
    elif batch is None and data is not None:
        words = evaluated_on(train)
    family = TaskFamily(
        data=splits,
        sample=draw_task,
        init=lambda key, task: model.init(key, task) if init_task else model.init(key),
        batch=lambda key, task, data: draw(key, task, data["train"]),
        loss=calling(loss),
        eval_batch=lambda task, data, split: held_out(task, data[split]),
        metrics=None if metrics is None else calling(metrics),
        oracle=oracle,
        name=name,
        splits=tuple(splits),
        evaluated_on=words,
        lower_bound=lower_bound,
        sources=source,
    )
    check_family(family)
    return family


# ----- what the user's functions take ---------------------------------------------------------------------------------


def _check_arguments(name: str, function: Any, arguments: tuple[str, ...]) -> None:
    """Refuses a function that cannot be called with these, by position."""
    if not callable(function):
        raise ValueError(f"`{name}` is {function!r}; give a function.")
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some built-in functions
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ValueError(
            f"`{name}` is called as {name}({', '.join(arguments)}), but is written as {name}{signature}; a task comes "
            "with `sample`, a batch with `data` or `batch`, and each is passed if there is one."
        ) from None


def _takes(name: str, function: Any, arguments: tuple[str, ...]) -> int:
    """How many of a key and one thing more a function takes: the second if it cannot do without."""
    if len(arguments) == 2 and callable(function):
        try:
            inspect.signature(function).bind(*arguments[:1])
        except TypeError:
            _check_arguments(name, function, arguments)
            return 2
        except ValueError:
            return 1
    _check_arguments(name, function, arguments[:1])
    return 1


# ----- the user's arrays ----------------------------------------------------------------------------------------------


def _splits(
    data: Any, fractions: Sequence[float] | None, seed: int | None
) -> tuple[dict[Split, Data], tuple[DataSource, ...]]:
    """The arrays on the device, by split, and what a run records of them."""
    if data is None:
        return {"train": ()}, ()
    if isinstance(data, Mapping) and "train" in data and set(data) <= set(SPLITS):
        parts = {split: _arrays(data[split], f"data[{split!r}]") for split in SPLITS if split in data}
        shapes = {split: jax.tree.map(lambda x: (x.shape[1:], str(x.dtype)), part) for split, part in parts.items()}
        for split, shape in shapes.items():
            if shape != shapes["train"]:
                raise ValueError(f"`data` of {split} and of train differ in more than their number of examples.")
        hashed = parts
    else:
        hashed = _arrays(data, "data")
        if fractions is None:
            parts: dict[Split, Any] = {"train": hashed}
        else:
            if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
                raise ValueError(
                    f"`split` is {fractions!r}; give three fractions that sum to 1, of training, validation and test."
                )
            try:
                rows = split_rows(num_examples(hashed), fractions, seed)
            except ValueError as error:
                raise ValueError(f"`data`: {error}.") from error
            parts = {
                split: jax.tree.map(lambda x, part=part: x[part], hashed)
                for split, part in zip(SPLITS, rows, strict=True)
                if len(part)
            }
    source = DataSource("", "arrays in Python", hash_of(jax.tree.leaves(hashed)))
    return {split: to_device(part) for split, part in parts.items()}, (source,)


def _arrays(data: Any, where: str) -> Any:
    """The pytree with numpy arrays of numbers that have one leading axis."""
    lengths: dict[int, str] = {}

    def check(path: Any, leaf: Any) -> np.ndarray:
        name = f"`{where}{jax.tree_util.keystr(path)}`"
        array = np.asarray(leaf)
        if array.dtype.kind not in "buif" and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} is of type {array.dtype}; give numbers, and words as whole numbers.")
        if not array.ndim or not array.size:
            raise ValueError(f"{name} has shape {array.shape}; give arrays with a leading axis of examples.")
        if array.dtype.kind in "ui" and array.dtype != jax.dtypes.canonicalize_dtype(array.dtype):
            held = np.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
            if not held.min <= array.min() <= array.max() <= held.max:
                raise ValueError(f"{name} holds whole numbers beyond {held.max:,}; make them floats or smaller ones.")
        if array.dtype.kind not in "bui":
            bad = int(np.sum(~np.isfinite(array.astype(jax.dtypes.canonicalize_dtype(array.dtype)))))
            if bad:
                raise ValueError(f"{name} holds {bad:,} numbers that are nan or infinite; fill in or drop them.")
        lengths.setdefault(len(array), name)
        return array

    checked = jax.tree_util.tree_map_with_path(check, data)
    if not lengths:
        raise ValueError(f"`{where}` holds no arrays; leave it out, or give some.")
    if len(lengths) > 1:
        held = " and ".join(f"{length:,} in {name}" for length, name in lengths.items())
        raise ValueError(f"the arrays of `{where}` hold different numbers of examples ({held}); give as many in each.")
    return checked
