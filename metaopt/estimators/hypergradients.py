"""Hypergradients as estimators of the part of φ that is the task's hyperparameters h: dQ(θ*(h))/dh.

The inner runs are the optimizer's own, on the family's batches; Hessians and the validation loss Q are taken on all of
the training and validation data. Beside those below, exact reverse mode is back-propagation through the whole run,
`truncated_backprop:of=task,second_order=true` with objective `last` and no windows, and every other estimator with
`of=task` moves h as well. Where windows are shorter than the horizon, θ is kept from one meta-step to the next.

Costs are in gradients of the inner loss for a meta-step of K inner steps, D the numbers of θ, d those of h.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.estimators import bilevel
from metaopt.estimators.backprop import alive_sums
from metaopt.estimators.bilevel import Implicit, Problem, Solve
from metaopt.estimators.windows import How, Method, Run, Schedule, Sums, start_run, whole_chunk, windowed
from metaopt.inner.binding import bind_tasks, judged_params
from metaopt.inner.unroll import unroll
from metaopt.registry import ESTIMATORS
from metaopt.tasks.hyper import with_hyper
from metaopt.trees import usable_tasks
from metaopt.types import (
    Key,
    MetaGradient,
    MetaParams,
    Objective,
    Optimizer,
    Params,
    PyTree,
    Scalar,
    Task,
    TaskFamily,
    Trace,
    UnrollState,
)

INDEFINITE = "indefinite"  # the health of a solution: the share of tasks whose Hessian is not positive


def problem_of(family: TaskFamily, task: Task) -> Problem:
    """A task as (θ, free h) -> L on all of its training data, and Q on its validation data."""
    train, held_out = (family.eval_batch(task, family.data, split) for split in ("train", "validation"))

    def inner_loss(params: Params, free: dict[str, Any]) -> Scalar:
        return with_hyper(family, free).loss(params, task, train)

    return Problem(inner_loss, lambda params, free: family.judged_loss(params, task, held_out))


def descent_rate(optimizer: Optimizer, meta_params: MetaParams) -> jax.Array:
    """λ of an optimizer whose step is -λ∇, without a memory.

    Raises:
      ValueError: it has one.
    """
    tx, one = optimizer.bind(meta_params), jnp.ones((), jnp.float32)
    state: Any = tx.init(one)
    if jax.tree.leaves(state):
        raise ValueError("is about plain gradient descent at a constant rate; take --optimizer sgd without a schedule.")
    step: Any = tx.update(one, state, one)[0]
    return -step


def _refuse(optimizer: Optimizer, *, descent: bool = False) -> Callable[[MetaParams], dict[str, Any]]:
    """φ -> free h.

    Raises:
      ValueError: φ holds none, or the optimizer is not the plain descent that is wanted.
    """
    if optimizer.hyper is None:
        raise ValueError(
            "moves a family's hyperparameters, and φ holds none; in Python wrap the optimizer, "
            "metaopt.tasks.hyper.with_task(optimizer, family)."
        )
    if descent:
        jax.eval_shape(lambda key: descent_rate(optimizer, optimizer.init(key)), jax.random.key(0))
    return optimizer.hyper


def _run_on(
    optimizer: Optimizer, meta_params: MetaParams, family: TaskFamily, run: Run, length: int
) -> tuple[UnrollState, Trace]:
    return unroll(bind_tasks(optimizer, meta_params), family, run.task, run.state, length=length)


def _unrolled(
    optimizer: Optimizer, objective: Objective, family: TaskFamily, run: Run, length: int, how: How
) -> Callable[[MetaParams], tuple[Scalar, tuple[Sums, Run]]]:
    """φ -> the objective of `length` steps from `run`, with second derivatives; beside it the sums and the end."""

    def total(meta_params: MetaParams) -> tuple[Scalar, tuple[Sums, Run]]:
        tx = bind_tasks(optimizer, meta_params)
        final, trace = unroll(
            tx, family, run.task, run.state, length=length, second_order=True, objective_batch=how.objective_batch
        )
        sums = alive_sums(final.alive, objective(trace), trace)
        return sums.loss, (sums, Run(run.task, final))

    return total


# ----- after each inner step ------------------------------------------------------------------------------------------


@ESTIMATORS.register(differentiates=True, noise="never", cost=0.5, moves=("task",))
def greedy(optimizer: Optimizer, objective: Objective, schedule: Schedule) -> MetaGradient:
    """∇_h Q(T(θ)): through the last step of a window alone; with `unroll_length=1` h follows each step of θ.

    Biased: θ counts as given but for one step, so that a decay is judged by what it does at once. With sgd it is
    -λ(∂_h∂_θL)ᵀ∇Q. Cost: K + 3 gradients, nothing kept.
    """
    _refuse(optimizer)
    how = How(objective_batch="validation", differentiates=True)

    def gradient(meta_params: MetaParams, family: TaskFamily, memory: PyTree, keys: Key, run: Run) -> tuple[Sums, Run]:
        if schedule.unroll_length > 1:
            state, _ = _run_on(optimizer, meta_params, family, run, schedule.unroll_length - 1)
            run = jax.lax.stop_gradient(Run(run.task, state))

        total = _unrolled(optimizer, objective, family, run, 1, how)
        slope, (sums, after) = jax.grad(total, has_aux=True)(meta_params)
        return sums._replace(gradient=slope), after

    return windowed(Method(partial(start_run, optimizer), gradient, how, unrolls=whole_chunk), schedule)


@ESTIMATORS.register(differentiates=True, noise="never", cost=0.5, moves=("task",))
def t1_t2(optimizer: Optimizer, objective: Objective, schedule: Schedule, *, rate: float | None = None) -> MetaGradient:
    """-λ(∂_h∂_θL)ᵀ ∇Q at the window's end: the identity for λ times the Hessian (Luketina et al. 2016).

    Biased: right in sign where the Hessian is close to a multiple of the identity. Cost: K + 3 gradients. Q at the
    window's end, whatever the objective.

    Args:
      rate: λ; none: that of sgd.
    """
    hyper = _refuse(optimizer, descent=rate is None)

    def solve(meta_params: MetaParams, memory: PyTree) -> Solve:
        scale = descent_rate(optimizer, meta_params) if rate is None else rate
        return lambda product, b: jax.tree.map(lambda leaf: scale * leaf, bilevel.identity(product, b))

    return _at_the_end(optimizer, hyper, schedule, solve, checked=False)


# ----- by the implicit function theorem, near θ* ----------------------------------------------------------------------


@ESTIMATORS.register(differentiates=True, noise="never", cost=0.7, moves=("task",))
def hoag(
    optimizer: Optimizer,
    objective: Objective,
    schedule: Schedule,
    *,
    tolerance: float = 0.1,
    decay: float = 0.95,
    least: float = 1e-4,
    max_steps: int = 50,
    damping: float = 0.0,
) -> MetaGradient:
    """-(∂_h∂_θL)ᵀ v, (∇²L + damping) v = ∇Q, by conjugate gradients to a tolerance that falls (Pedregosa 2016).

    At meta-step k residuals are `tolerance`·`decay`ᵏ‖∇Q‖, not below `least`. θ is kept between meta-steps where
    `unroll_length` is below `horizon`, so that it comes near θ* with them. Biased by the order of θ's distance from θ*
    and of the residual; convergence is proved for tolerances of a finite sum, and below `least` they do not fall:
    rounding stops them near there. Tasks whose Hessian is not positive are left out and counted, and a run in which
    they are half is ended: `damping` is the remedy. Cost: K gradients and two to three for each of up to `max_steps` +
    5 products; memory a few θ, whatever d and K. Q, whatever the objective.
    """
    _in_range("tolerance", tolerance, 0 < tolerance < 1, "in (0, 1)")
    _in_range("decay", decay, 0 < decay <= 1, "in (0, 1]")
    _in_range("least", least, 0 < least <= tolerance, "above 0 and at most `tolerance`")
    _in_range("max_steps", max_steps, max_steps >= 1, "at least 1")

    def solve(meta_params: MetaParams, memory: jax.Array) -> Solve:
        now = jnp.maximum(tolerance * decay**memory, least)
        return partial(bilevel.conjugate_gradients, tolerance=now, max_steps=max_steps)

    return _at_the_end(optimizer, _refuse(optimizer), schedule, solve, damping=damping)


@ESTIMATORS.register(differentiates=True, noise="never", cost=0.7, moves=("task",))
def neumann(
    optimizer: Optimizer,
    objective: Objective,
    schedule: Schedule,
    *,
    terms: int = 20,
    rate: float | None = None,
    damping: float = 0.0,
) -> MetaGradient:
    """HOAG with α Σ_{i<k}(I - αH)ⁱ∇Q for the solution (Lorraine et al. 2020): as good as k more steps would be.

    Biased towards 0 along directions of curvature below 1/(αk). Cost: K gradients and two to three for each term.

    Args:
      rate: α, below 2 over the largest curvature; none: the rate of sgd.
    """
    _in_range("terms", terms, terms >= 1, "at least 1")
    hyper = _refuse(optimizer, descent=rate is None)

    def solve(meta_params: MetaParams, memory: PyTree) -> Solve:
        alpha = descent_rate(optimizer, meta_params) if rate is None else rate
        return partial(bilevel.neumann, rate=alpha, terms=terms)

    return _at_the_end(optimizer, hyper, schedule, solve, damping=damping)


def _in_range(name: str, value: float, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"`{name}` ({value}) must be {wanted}.")


def _at_the_end(
    optimizer: Optimizer,
    hyper: Callable[[MetaParams], dict[str, Any]],
    schedule: Schedule,
    solve: Callable[[MetaParams, PyTree], Solve],
    *,
    damping: float = 0.0,
    checked: bool = True,
) -> MetaGradient:
    """A window, and the implicit hypergradient where it ends; the method's memory is the number of meta-steps."""
    _in_range("damping", damping, damping >= 0, "at least 0")

    def gradient(meta_params: MetaParams, family: TaskFamily, memory: PyTree, keys: Key, run: Run) -> tuple[Sums, Run]:
        final, trace = _run_on(optimizer, meta_params, family, run, schedule.unroll_length)
        free, pulled = jax.vjp(hyper, meta_params)
        solver = solve(meta_params, memory)

        def one(params: Params, task: Task) -> tuple[Implicit, Scalar]:
            problem = problem_of(family, task)
            found = bilevel.implicit(problem, params, free, solver, damping=damping, checked=checked)
            return found, problem.validation_loss(params, free)

        found, value = jax.vmap(one)(judged_params(optimizer, final), run.task)
        alive = final.alive & found.positive & usable_tasks((found.gradient, value))
        sums = alive_sums(alive, value, trace)
        gradients = jax.tree.map(lambda leaf: _sum_where(alive, leaf), found.gradient)
        health = {**sums.health, "tasks": jnp.sum(jnp.ones_like(value))}
        if checked:
            health[INDEFINITE] = jnp.sum(jnp.where(final.alive, ~found.positive, False) * 1.0)
        sums = sums._replace(gradient=pulled(gradients)[0], last_loss=sums.loss, health=health)
        return sums, Run(run.task, final)

    def finish(sums: Sums, memory: jax.Array) -> tuple[MetaParams, jax.Array]:
        return jax.tree.map(lambda leaf: leaf / jnp.maximum(sums.alive, 1.0), sums.gradient), memory + 1

    method = Method(
        partial(start_run, optimizer),
        gradient,
        How(),
        memory=lambda meta_params: jnp.zeros((), jnp.float32),
        finish=finish,
        unrolls=whole_chunk,
    )
    return windowed(method, schedule)


def _sum_where(alive: jax.Array, leaf: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(alive.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0.0), axis=0)


# ----- over whole runs ------------------------------------------------------------------------------------------------


@ESTIMATORS.register(differentiates=True, noise="never", windows=False, moves=("task",))
def drmad(optimizer: Optimizer, objective: Objective, schedule: Schedule) -> MetaGradient:
    """Reverse mode on the straight line from θ_0 to θ_T in place of the run's path (Fu et al. 2016).

    For sgd at a constant rate. Biased by how far the derivatives on the line are from those on the path; on a quadratic
    in θ whose h enters linearly through θ alone by the path's bend only. Cost: about 4T gradients; memory two θ, where
    exact reverse mode holds T. Q at the end, whatever the objective.
    """
    hyper = _refuse(optimizer, descent=True)
    _whole(schedule)

    def gradient(meta_params: MetaParams, family: TaskFamily, memory: PyTree, keys: Key, run: Run) -> tuple[Sums, Run]:
        final, trace = _run_on(optimizer, meta_params, family, run, schedule.horizon)
        free, pulled = jax.vjp(hyper, meta_params)
        rate = descent_rate(optimizer, meta_params)

        def one(start: Params, end: Params, task: Task) -> tuple[PyTree, Scalar]:
            problem = problem_of(family, task)
            found = bilevel.drmad(problem, start, end, free, rate=rate, steps=schedule.horizon)
            return found, problem.validation_loss(end, free)

        found, value = jax.vmap(one)(run.state.params, final.params, run.task)
        alive = final.alive & usable_tasks((found, value))
        sums = alive_sums(alive, value, trace)
        gradients = jax.tree.map(lambda leaf: _sum_where(alive, leaf), found)
        return sums._replace(gradient=pulled(gradients)[0], last_loss=sums.loss), Run(run.task, final)

    return windowed(Method(partial(start_run, optimizer), gradient, How(), unrolls=whole_chunk), schedule)


def _whole(schedule: Schedule) -> None:
    if schedule.unroll_length != schedule.horizon:
        raise ValueError(f"goes over whole runs; leave `unroll_length` out, or set it to {schedule.horizon}.")


@ESTIMATORS.register(differentiates=True, noise="never", cost=4.0, moves=("task", "both"))
def forward_mode(optimizer: Optimizer, objective: Objective, schedule: Schedule) -> MetaGradient:
    """The exact derivative of the unrolled objective, by a run of tangents for each number of φ that moves.

    As exact as reverse mode with second derivatives, and as biased where windows are shorter than the horizon. Cost:
    about 3dK gradients, all tangents at once; memory d θ, whatever K: for few hyperparameters and long runs.
    """
    _refuse(optimizer)
    how = How(objective_batch="validation", differentiates=True)

    def gradient(meta_params: MetaParams, family: TaskFamily, memory: PyTree, keys: Key, run: Run) -> tuple[Sums, Run]:
        total = _unrolled(optimizer, objective, family, run, schedule.unroll_length, how)
        slope, (sums, after) = jax.jacfwd(total, has_aux=True)(meta_params)
        return sums._replace(gradient=slope), after

    return windowed(Method(partial(start_run, optimizer), gradient, how, unrolls=whole_chunk), schedule)


class Best(NamedTuple):
    """What random search remembers."""

    centre: MetaParams  # φ where it began
    best: MetaParams
    value: jax.Array  # the objective there
    count: jax.Array  # [] int32 draws


@ESTIMATORS.register(noise="never", windows=False, cost=0.3, moves=("task", "both"))
def random_search(
    optimizer: Optimizer, objective: Objective, schedule: Schedule, *, scale: float = 2.0, seed: int = 0
) -> MetaGradient:
    """The way from the best of all draws to φ, as if that were a gradient: with meta-sgd at rate 1 φ is the best draw.

    Each meta-step draws φ_0 + scale·N(0, I), on the free numbers (a standard deviation of 2 in log λ), and runs its
    tasks with that. No gradient at all, and in many dimensions hopeless. Clip nothing: --meta-optimizer.name sgd
    --meta-optimizer.learning-rate 1 --meta-optimizer.clip-norm none. Cost: T gradients a draw.
    """
    _refuse(optimizer)
    _whole(schedule)
    _in_range("scale", scale, scale > 0, "above 0")
    how = How(objective_batch="validation")

    def drawn(memory: Best) -> MetaParams:
        return bilevel.shaken(memory.centre, jax.random.fold_in(jax.random.key(seed), memory.count), scale)

    def gradient(meta_params: MetaParams, family: TaskFamily, memory: Best, keys: Key, run: Run) -> tuple[Sums, Run]:
        tx = bind_tasks(optimizer, drawn(memory))
        final, trace = unroll(
            tx, family, run.task, run.state, length=schedule.horizon, objective_batch=how.objective_batch
        )
        sums = alive_sums(final.alive, objective(trace), trace)
        held = jax.tree.map(lambda leaf: sums.alive * leaf, meta_params)  # divided by the same again
        return sums._replace(gradient=held, extra=jnp.sum(1.0 - final.alive)), Run(run.task, final)

    def finish(sums: Sums, memory: Best) -> tuple[MetaParams, Best]:
        alive = jnp.maximum(sums.alive, 1.0)
        value = jnp.where(sums.extra > 0, jnp.inf, sums.loss / alive)
        better = value < memory.value
        new = drawn(memory)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, memory.best)
        # Where no task was alive nothing is known of φ; there is no way from it.
        way = jax.tree.map(lambda held, best: jnp.where(sums.alive > 0, held / alive - best, 0.0), sums.gradient, best)
        return way, Best(memory.centre, best, jnp.where(better, value, memory.value), memory.count + 1)

    def memory(meta_params: MetaParams) -> Best:
        return Best(meta_params, meta_params, jnp.asarray(jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))

    method = Method(partial(start_run, optimizer), gradient, how, memory=memory, finish=finish)
    return windowed(method, schedule)
