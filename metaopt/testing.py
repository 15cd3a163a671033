"""Smoke checks of an entry of one's own: a minute's work that finds what would go wrong an hour into meta-training.

    from metaopt import testing

    testing.check_task(rings(dim=3))
    testing.check_optimizer(my_optimizer())
    testing.check_estimator("my_estimator")

Each returns nothing, or raises AssertionError (ValueError where the inner loop itself refuses) with one sentence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.choices import Choice, build
from metaopt.estimators import Schedule
from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import compiler_options
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import sgd
from metaopt.registry import ESTIMATORS, OBJECTIVES, OPTIMIZERS, EstimatorTraits
from metaopt.tasks import quadratic, ridge_features
from metaopt.tasks.checks import check_family
from metaopt.tasks.hyper import OPTIMIZER, with_task
from metaopt.types import Key, MetaGradient, Optimizer, Params, PyTree, TaskFamily

TASKS_AT_ONCE, STEPS = 3, 20
MOST_CONSTANTS = 1000  # numbers that a family may close over; more belong into its `data`
RATES = 10.0 ** jnp.arange(-6.0, 2.0, 0.5)  # of SGD
FACTORS = 10.0 ** jnp.arange(-3.0, 2.0, 0.5)  # on a setting of an optimizer


# ----- task families --------------------------------------------------------------------------------------------------


def check_task(family: TaskFamily) -> None:
    """Checks a task family: shapes, types, gradients, splits, that it is traced once, and that SGD lowers its loss.

    Raises:
      AssertionError, ValueError: in one sentence, what is wrong.
    """
    if not isinstance(family, TaskFamily):
        raise ValueError(f"{family!r} is no task family; give one, such as metaopt.TASKS['quadratic']()")
    name = family.name or "the family"
    check_family(family)

    def run(family: TaskFamily, key: Key) -> dict[str, Any]:
        task_key, init_key, batch_key = jax.random.split(key, 3)
        task = family.sample(task_key, family.data)
        params = family.init(init_key, task)
        value, gradient = jax.value_and_grad(family.loss)(params, task, family.batch(batch_key, task, family.data))
        held_out = {split: family.eval_batch(task, family.data, split) for split in family.splits}
        metrics = family.metrics or (lambda params, task, batch: {})
        return {
            "params": params,
            "loss": value,
            "gradient": gradient,
            "loss on": {split: family.loss(params, task, batch) for split, batch in held_out.items()},
            "metrics on": {split: metrics(params, task, batch) for split, batch in held_out.items()},
        }

    keys = jax.random.split(jax.random.key(0), TASKS_AT_ONCE)
    shapes = jax.eval_shape(run, family, keys[0])
    _require_strong(shapes["params"], f"{name}: `init` gives parameters")
    _require_alike(shapes["gradient"], shapes["params"], f"{name}: the gradient", "the parameters")
    for path, leaf in jax.tree_util.tree_leaves_with_path((shapes["loss on"], shapes["metrics on"])):
        _require(leaf.shape == (), f"{name}: on a whole split, {_said(path)} has shape {leaf.shape} and is to be one.")
    constants = sum(np.size(constant) for constant in jax.make_jaxpr(run)(family, keys[0]).consts)
    _require(
        constants < MOST_CONSTANTS,
        f"{name}: its functions close over {constants:,} numbers, which would be compiled in; put them into `data`.",
    )

    single, traces = _counted(run)
    looped = [single(family, key) for key in keys]
    single(jax.tree.map(lambda leaf: leaf, family), keys[0])
    _require(len(traces) == 1, f"{name}: it is compiled anew for another task; let no shape depend on the task.")
    for part, values in looped[0].items():
        _require(_finite(values), f"{name}: its {part} is not finite at the first parameters.")
    again = single(family, keys[0])
    _require(_close(again, looped[0], 0.0), f"{name}: the same key gives another task; draw from the key alone.")
    batched = _once(jax.vmap(run, (None, 0)))(family, keys)
    for index, alone in enumerate(looped):
        for part, values in alone.items():
            _require(
                _close(jax.tree.map(lambda leaf, index=index: leaf[index], batched[part]), values, 1e-3),
                f"{name}: its {part} is another one under vmap over tasks; write it for one task, in jax.numpy alone.",
            )
    _require_that_sgd_lowers(family, keys, name)


def _require_that_sgd_lowers(family: TaskFamily, keys: Key, name: str) -> None:
    """Some learning rate lowers the mean loss over tasks; and no loss falls below the stated bound."""
    optimizer = sgd()

    @_once
    def losses(family: TaskFamily, rate: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        tx = bind_tasks(optimizer, {"learning_rate": jnp.log(rate)})
        task, state = reset(tx, family, keys)
        state, trace = unroll(tx, family, task, state, length=STEPS)
        first, last = trace.initial_loss, trace.loss[-STEPS // 4 :]
        # The bound is one of the loss that is judged by: an estimate on a batch may lie below it.
        judged = jax.vmap(lambda params, task: family.loss(params, task, family.eval_batch(task, family.data, "train")))
        return jnp.mean(first), jnp.mean(last), jnp.min(judged(state.params, task) - trace.lower_bound)

    first, last, gap = (np.stack(each) for each in zip(*(losses(family, rate) for rate in RATES), strict=True))
    best = np.nanmin(np.append(last, np.inf))
    _require(best < first[0], f"{name}: no learning rate of SGD lowers its loss of {first[0]:.4g} in {STEPS} steps.")
    below, scale = -np.nanmin(np.append(gap, 0.0)), max(1.0, abs(first[0]))
    _require(below < 1e-4 * scale, f"{name}: a loss lies {below:.4g} below its `lower_bound`; lower that.")


# ----- optimizers -----------------------------------------------------------------------------------------------------


def check_optimizer(optimizer: Optimizer) -> None:
    """Checks an optimizer: any pytree, one task as many, types that stay, a gradient in φ, and that it optimises.

    Raises:
      AssertionError, ValueError: in one sentence, what is wrong.
    """
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"{optimizer!r} is no optimizer; give one, such as metaopt.OPTIMIZERS['adam']()")
    if optimizer.at_horizon is not None:
        optimizer = optimizer.at_horizon(STEPS)
    meta_params = optimizer.init(jax.random.key(1))
    _require(bool(jax.tree.leaves(meta_params)), "the optimizer's φ is empty; give `init` something to meta-train.")
    _require_strong(meta_params, "the optimizer's `init` gives φ")
    for leaf in jax.tree.leaves(meta_params):
        real = jnp.issubdtype(leaf.dtype, jnp.floating)
        _require(real, f"the optimizer's φ holds {leaf.dtype}, which has no gradient; keep that out of φ.")
    for dtype in (jnp.float32, jnp.bfloat16):
        extra: dict[str, Any] = {"key": jax.random.key(3)} if optimizer.noise == "always" else {}
        extra |= {"value": jnp.ones(())} if optimizer.needs_value else {}
        _check_in_a_loop(optimizer.bind(meta_params), _tree(jax.random.key(0), dtype), extra)
    _check_tasks_alike(optimizer, meta_params)
    family = _quadratic()
    gradient, loss = _once(functools.partial(_meta_gradient, optimizer))(family, meta_params)
    _require_alike(gradient, meta_params, "the gradient in φ", "φ")
    _require(_finite((gradient, loss)), "the optimizer's gradient in φ, over five steps of a quadratic, is not finite.")
    for explore in (True, False) if optimizer.noise == "exploring" else (False,):
        optimised = _once(functools.partial(_optimised, optimizer, explore))
        before, after, moved = optimised(family, meta_params)
        _require(
            bool(jnp.isfinite(after)), f"the optimizer blows up on a quadratic within {STEPS} steps of its first φ."
        )
        _require(bool(moved > 0), "the optimizer's steps are all zero at its first φ, from where no gradient leads.")
    best = float(after)
    for setting, bijection in optimizer.tunable.items():
        for factor in FACTORS:
            tried = {**meta_params, setting: bijection.inverse(bijection.forward(meta_params[setting]) * factor)}
            best = np.fmin(best, optimised(family, tried)[1])
    if optimizer.tunable:
        _require(
            best < float(before), f"no value of {', '.join(optimizer.tunable)} lets the optimizer lower a quadratic."
        )


def _check_in_a_loop(tx: optax.GradientTransformationExtraArgs, params: Params, extra: dict[str, Any]) -> None:
    def loss(params: Params) -> jax.Array:
        return jnp.sum(jnp.stack([jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree.leaves(params)]))

    def update(params: Params, state: PyTree) -> tuple[Params, PyTree, Params]:
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params, **extra | ({"value": value} if "value" in extra else {}))
        return optax.apply_updates(params, updates), state, updates

    step, traces = _counted(update)
    first = state = tx.init(params)
    updates = params
    for _ in range(3):
        params, state, updates = step(params, state)
        _require_alike(state, first, "the optimizer's state after a step", "the one before")
    _require(len(traces) == 1, "the optimizer is compiled anew at another step; give every leaf of `init` its type.")
    shapes = [leaf.shape for leaf in jax.tree.leaves(updates)] == [leaf.shape for leaf in jax.tree.leaves(params)]
    _require(shapes, "the optimizer's steps have other shapes than the parameters.")
    kind = jax.tree.leaves(params)[0].dtype
    _require(_finite(params), f"the optimizer's steps on {kind} parameters are not finite.")


def _check_tasks_alike(optimizer: Optimizer, meta_params: PyTree) -> None:
    """`bind` on each task, under vmap, and `bind_tasks` on all tasks at once are the same steps."""
    one, many = optimizer.bind(meta_params), bind_tasks(optimizer, meta_params)
    one_update = _once(lambda g, s, p, k, v: one.update(g, s, p, key=k, value=v))
    vmapped = _once(jax.vmap(lambda g, s, p, k, v: one.update(g, s, p, key=k, value=v)))
    many_update = _once(lambda g, s, p, k, v: many.update(g, s, p, key=k, value=v))
    params = jax.vmap(lambda key: _tree(key, jnp.float32))(jax.random.split(jax.random.key(0), TASKS_AT_ONCE))
    state, mapped = many.init(params), jax.vmap(one.init)(params)
    alone = [one.init(_task(params, index)) for index in range(TASKS_AT_ONCE)]
    for step in range(3):
        keys = jax.random.split(jax.random.key(step), TASKS_AT_ONCE)
        gradients, values = jax.vmap(lambda key: _tree(key, jnp.float32))(keys), jnp.ones(TASKS_AT_ONCE)
        updates, state = many_update(gradients, state, params, keys, values)
        under_vmap, mapped = vmapped(gradients, mapped, params, keys, values)
        for index in range(TASKS_AT_ONCE):
            task = (_task(gradients, index), alone[index], _task(params, index))
            expected, alone[index] = one_update(*task, keys[index], values[index])
            said = "the optimizer's steps on one task are others"
            _require(_close(_task(under_vmap, index), expected, 1e-4), f"{said} under vmap over tasks.")
            _require(_close(_task(updates, index), expected, 1e-4), f"{said} than those of `bind_tasks` on several.")


def _meta_gradient(optimizer: Optimizer, family: TaskFamily, meta_params: PyTree) -> tuple[PyTree, jax.Array]:
    def loss(meta_params: PyTree) -> jax.Array:
        tx = bind_tasks(optimizer, meta_params)
        task, state = reset(tx, family, jax.random.split(jax.random.key(2), TASKS_AT_ONCE))
        return jnp.mean(unroll(tx, family, task, state, length=5)[1].loss)

    value, gradient = jax.value_and_grad(loss)(meta_params)
    return gradient, value


def _optimised(
    optimizer: Optimizer, explore: bool, family: TaskFamily, meta_params: PyTree
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean loss before and after, and the mean length of a step."""
    tx = bind_tasks(optimizer, meta_params)
    task, state = reset(tx, family, jax.random.split(jax.random.key(2), TASKS_AT_ONCE))
    _, trace = unroll(tx, family, task, state, length=STEPS, explore=explore)
    return jnp.mean(trace.initial_loss), jnp.mean(trace.loss[-1]), jnp.mean(trace.update_norm)


# ----- estimators -----------------------------------------------------------------------------------------------------


def check_estimator(
    estimator: str | Callable[..., MetaGradient], *, optimizer: Optimizer | None = None, **options: Any
) -> None:
    """Checks an estimator of the meta-gradient: finite, of φ's structure, decided by its key, carried and traced once.

    Args:
      estimator: the factory, or the name of an entry.
      optimizer: what it is to meta-train; default: momentum, a small LSTM where the entry needs step noise, or sgd
        where it moves hyperparameters of the task alone.
      options: the estimator's own.

    Raises:
      AssertionError: in one sentence, what is wrong.
      ValueError: the estimator refuses its settings.
    """
    name = estimator if isinstance(estimator, str) else getattr(estimator, "__name__", "the estimator")
    traits = ESTIMATORS.traits(name) if name in ESTIMATORS else EstimatorTraits()
    objective, family = OBJECTIVES["mean"](), _quadratic()
    if OPTIMIZER not in traits.moves:
        family = cast(TaskFamily, ridge_features(num_examples=20))
        optimizer = with_task(optimizer or build(Choice("sgd", {"learning_rate": 1e-3}), OPTIMIZERS), family)
    if optimizer is None:
        noisy = Choice("lstm", {"hidden_size": 2, "num_layers": 1, "noise": "per_coordinate"})
        optimizer = build(noisy if traits.noise == "needed" else Choice("momentum"), OPTIMIZERS)
    assert optimizer is not None
    for unroll_length in (2, 4) if traits.windows else (4,):
        schedule = Schedule(num_tasks=4, horizon=4, unroll_length=unroll_length, num_devices=1)
        if isinstance(estimator, str):
            made = build(Choice(estimator, options), ESTIMATORS, optimizer, objective, schedule)
        else:
            made = estimator(optimizer, objective, schedule, **options)
        _require(isinstance(made, MetaGradient), f"{name}: it makes {type(made).__name__}; return a MetaGradient.")
        _check_estimates(made, optimizer, family, f"{name} in windows of {unroll_length} steps of 4")


def _check_estimates(estimator: MetaGradient, optimizer: Optimizer, family: TaskFamily, name: str) -> None:
    meta_params = optimizer.init(jax.random.key(0))
    first = state = _once(estimator.init)(jax.random.key(1), meta_params, (family,))
    estimate, traces = _counted(estimator.estimate)
    found = []
    for step in (0, 1, 2, 0):  # 0 again, from the first state
        state = first if len(found) == 3 else state
        gradient, state, metrics = estimate(jax.random.key(step), meta_params, state, (family,))
        _require_alike(gradient, meta_params, f"{name}: the meta-gradient", "φ")
        _require_alike(state, first, f"{name}: its state after a meta-step", "the one before, which a scan demands")
        _require(_finite(gradient), f"{name}: its meta-gradient on a quadratic is not finite.")
        _require("meta_loss" in metrics, f"{name}: its metrics lack `meta_loss`, by which a run is followed.")
        _require(_finite(metrics["meta_loss"]), f"{name}: its `meta_loss` on a quadratic is not finite.")
        shapes = {key: jnp.shape(value) for key, value in metrics.items() if jnp.shape(value)}
        _require(not shapes, f"{name}: these of its metrics are no single numbers: {shapes}.")
        found.append(gradient)
    _require(len(traces) == 1, f"{name}: it is compiled anew at another meta-step.")
    _require(_close(found[3], found[0], 0.0), f"{name}: the same key and state give another gradient.")
    _require(not _close(found[1], found[0], 0.0), f"{name}: another key gives the same gradient; draw tasks from it.")
    _require(any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(found[0])), f"{name}: its meta-gradient is zero.")


# ----- parts ----------------------------------------------------------------------------------------------------------


def _require(holds: bool, sentence: str) -> None:
    if not holds:  # and no `assert`, which goes under `python -O`
        raise AssertionError(sentence)


def _require_alike(found: PyTree, wanted: PyTree, what: str, than: str) -> None:
    """The same structure, shapes and types."""
    trees = [jax.tree.structure(tree) for tree in (found, wanted)]
    _require(trees[0] == trees[1], f"{what} has another structure than {than}: {trees[0]}, and not {trees[1]}.")
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, leaf), other in pairs:
        kinds = [f"{jnp.result_type(each)}{list(jnp.shape(each))}" for each in (leaf, other)]
        _require(kinds[0] == kinds[1], f"{what} at {_said(path)} is {kinds[0]}, and {kinds[1]} in {than}.")


def _require_strong(tree: PyTree, what: str) -> None:
    """Every leaf says its type: a weak one changes with the first step, and what is compiled with it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        weak = getattr(leaf, "weak_type", not hasattr(leaf, "dtype"))
        _require(not weak, f"{what} whose type is not said, at {_said(path)}; write jnp.asarray(value, jnp.float32).")


def _said(path: Any) -> str:
    return jax.tree_util.keystr(path) or "its only leaf"


def _counted(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """The function jitted, and a list that grows whenever it is traced."""
    traces: list[int] = []

    @functools.wraps(function)
    def counting(*args: Any) -> Any:
        traces.append(1)
        return function(*args)

    return _once(counting), traces


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jitted for a few calls."""
    return jax.jit(function, compiler_options=compiler_options(runs_once=True))


def _finite(tree: PyTree) -> bool:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)


def _close(found: PyTree, wanted: PyTree, rtol: float) -> bool:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return all(np.allclose(a, b, rtol=rtol, atol=rtol / 100, equal_nan=True) for a, b in pairs)


def _tree(key: Key, dtype: Any) -> Params:
    """Parameters of several shapes."""
    keys = jax.random.split(key, 3)
    shapes = {"w": (3, 2), "b": (4,), "scale": ()}
    return {name: jax.random.normal(k, shape, dtype) for (name, shape), k in zip(shapes.items(), keys, strict=True)}


def _task(tree: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _quadratic() -> TaskFamily:
    return cast(TaskFamily, quadratic(dim=3))
