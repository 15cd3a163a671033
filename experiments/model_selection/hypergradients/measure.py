"""Hypergradients at equal cost: all methods on the 12 precisions and on a digits network, each for so many CPU-seconds.

Plain problems and `metaopt.estimators.bilevel`, so that what is timed is the method. A part of the results is a
function here; parts that are there already are left alone.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")  # a second is one of one core

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.flatten_util import ravel_pytree

from metaopt.data import load_dataset
from metaopt.estimators import bilevel
from metaopt.estimators.bilevel import Problem
from metaopt.tasks import regularised_classifier, ridge_features

SEEDS, TUNING_SEED = 5, 100
RATES = (0.004, 0.02, 0.1, 0.5, 2.5)  # of Adam in h, one chosen for each method on a seed apart
POINTS = 12  # of a curve
WINDOW = 10  # inner steps between the hypergradients of those that keep θ


class Method(NamedTuple):
    """`step(problem, start, θ, h, k, key) -> (θ, gradient in h)`; θ stays with those that begin at `start` again."""

    step: Callable[..., tuple[Any, Any]]
    few: bool = False  # only for few hyperparameters


def methods(rate: float, whole: int, *, damping: float = 0.0) -> dict[str, Method]:
    """By name; `whole` is the number of inner steps of the runs from the start, `rate` that of every inner step."""
    descend = partial(bilevel.descend, rate=rate)

    def greedy(problem: Problem, start: Any, theta: Any, h: Any, k: Any) -> tuple[Any, Any]:
        gradient, theta = bilevel.greedy(problem, theta, h, rate=rate)
        return theta, gradient

    def near(solve: Any) -> Callable[..., tuple[Any, Any]]:
        def step(problem: Problem, start: Any, theta: Any, h: Any, k: Any) -> tuple[Any, Any]:
            theta = descend(problem, theta, h, steps=WINDOW)
            found = bilevel.implicit(problem, theta, h, solve(k), damping=damping, checked=False)
            return theta, found.gradient

        return step

    def drmad(problem: Problem, start: Any, theta: Any, h: Any, k: Any) -> tuple[Any, Any]:
        end = descend(problem, start, h, steps=whole)
        return theta, bilevel.drmad(problem, start, end, h, rate=rate, steps=whole)

    def unrolled(problem: Problem, start: Any, theta: Any, h: Any, k: Any, *, forward: bool) -> tuple[Any, Any]:
        return theta, bilevel.unrolled(problem, start, h, rate=rate, steps=whole, forward=forward)

    def cg(k: Any) -> Any:
        return partial(bilevel.conjugate_gradients, tolerance=jnp.maximum(0.1 * 0.95**k, 1e-4), max_steps=30)

    return {
        "greedy": Method(greedy),
        "T1-T2": Method(near(lambda k: bilevel.identity)),
        "Neumann": Method(near(lambda k: partial(bilevel.neumann, rate=rate, terms=20))),
        "HOAG": Method(near(cg)),
        "DrMAD": Method(drmad),
        "reverse": Method(partial(unrolled, forward=False)),
        "forward": Method(partial(unrolled, forward=True), few=True),
    }


SEARCH = "random search"


def curve(
    make: Callable[[Any], Problem],
    data: Any,
    start: Any,
    h: Any,
    method: Method | None,
    *,
    rate: float,
    inner: tuple[float, int],
    seconds: float,
    box: tuple[float, float],
    compiled: dict[Any, Any],
    name: str,
) -> dict[str, Any]:
    """{seconds [points], h [points, ...], hypergradients}: Adam in h, held to a box, until the seconds are over.

    Args:
      make: data -> the problem, so that one program serves all seeds.
      method: none: random search, h + N(0, 2²) cut at the box.
      inner: (rate, steps) of random search's runs.
    """
    tx = optax.adam(1.0)

    def body(data: Any, start: Any, k: Any, carry: Any, rate: Any) -> Any:
        theta, h, moments, best = carry
        problem = make(data)
        if method is None:
            new = jnp.clip(bilevel.shaken(start[1], jax.random.fold_in(jax.random.key(0), k), 2.0), *box)
            end = bilevel.descend(problem, start[0], new, rate=inner[0], steps=inner[1])
            value = problem.validation_loss(end, new)
            return theta, jnp.where(value < best, new, h), moments, jnp.minimum(value, best)
        theta, gradient = method.step(problem, start[0], theta, h, k)
        updates, moments = tx.update(gradient, moments)
        return theta, jnp.clip(h + rate * updates, *box), moments, best

    if name not in compiled:

        @jax.jit
        def run(data: Any, start: Any, first: Any, number: Any, carry: Any, rate: Any) -> Any:
            return jax.lax.fori_loop(first, first + number, lambda k, c: body(data, start, k, c, rate), carry)

        compiled[name] = run
    run = compiled[name]
    begin = (start, h, tx.init(h), jnp.asarray(jnp.inf))
    at = (data, (start, h))
    jax.block_until_ready(run(*at, 0, 1, begin, rate))  # compiles
    before = time.process_time()
    jax.block_until_ready(run(*at, 0, 1, begin, rate))
    number = max(1, int(seconds / POINTS / max(time.process_time() - before, 1e-5)))
    carry, done, spent = begin, 0, 0.0
    found: dict[str, Any] = {"seconds": [0.0], "h": [np.asarray(h)], "number": [0]}
    while spent < seconds and len(found["seconds"]) < 4 * POINTS:
        before = time.process_time()
        carry = jax.block_until_ready(run(*at, done, number, carry, rate))
        spent, done = spent + time.process_time() - before, done + number
        found["seconds"].append(spent)
        found["h"].append(np.asarray(carry[1]))
        found["number"].append(done)
        number = max(1, int(seconds / POINTS / max(spent / done, 1e-7)))
    return found


def compared(
    make: Callable[[Any], Problem],
    case: Callable[[int], tuple[Any, Any, Any]],
    judge: Callable[[int, Any, np.ndarray], Any],
    every: dict[str, Method | None],
    **settings: Any,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """name -> {rate, seeds: [{seconds, number, value}]}; `judge(seed, data, h [points, ...])` -> numbers by name."""
    compiled: dict[Any, Any] = {}
    for name, method in every.items():
        best = RATES[0]
        if method is not None:
            data, start, h = case(TUNING_SEED)
            half = {**settings, "seconds": settings["seconds"] / 2}
            ends = []
            for rate in RATES:
                tried = curve(make, data, start, h, method, rate=rate, compiled=compiled, name=name, **half)
                ends.append(judge(TUNING_SEED, data, np.stack(tried["h"][-1:]))["validation"][-1])
            best = RATES[int(np.nanargmin(ends))]
        seeds = []
        for seed in range(SEEDS):
            data, start, h = case(seed)
            found = curve(make, data, start, h, method, rate=best, compiled=compiled, name=name, **settings)
            judged = judge(seed, data, np.stack(found.pop("h")))
            seeds.append({**found, **judged})
        yield name, {"rate": None if method is None else best, "seeds": seeds}
        print(name, best, [round(float(s["validation"][-1]), 4) for s in seeds], flush=True)


# ----- the 12 precisions ----------------------------------------------------------------------------------------------


def ridge_problem(data: Any) -> Problem:
    """As `ridge_features` has it, of its data."""
    (X, y), (V, z) = data

    def inner_loss(theta: Any, h: Any) -> Any:
        return 0.5 * jnp.sum((y - X @ theta) ** 2) + 0.5 * jnp.sum(jnp.exp(h) * theta**2)

    return Problem(inner_loss, lambda theta, h: 0.5 * jnp.sum((z - V @ theta) ** 2))


def ridge(seed: int) -> tuple[Any, Any, Any]:
    """(data, θ_0, h)."""
    task = ridge_features(seed=seed).sample(jax.random.key(0), ())
    return (task.train, task.validation), jnp.zeros(12), jnp.zeros(12)


def exact_value(data: Any, h: Any) -> Any:
    """Q(θ*(h)) in closed form."""
    (X, y), _ = data
    theta = jnp.linalg.solve(X.T @ X + jnp.diag(jnp.exp(h)), X.T @ y)
    return ridge_problem(data).validation_loss(theta, h)


def cosines() -> dict[str, Any]:
    """The cosine of each to the exact hypergradient at h = θ_0 = 0, η = 1000, λ = 1/λ_max; 20 seeds, in float64."""
    with jax.enable_x64(True):  # from jax 0.8 on

        @jax.jit
        def one(data: Any) -> tuple[dict[str, Any], Any]:
            h, start, problem = jnp.zeros(12), jnp.zeros(12), ridge_problem(data)
            (X, _), _ = data
            rate = 1 / jnp.linalg.eigvalsh(X.T @ X + jnp.eye(12))[-1]
            exact = jax.grad(lambda h: exact_value(data, h))(h)
            end = bilevel.descend(problem, start, h, rate=rate, steps=1000)
            implicit = partial(bilevel.implicit, problem, end, h, checked=False)
            found = {
                "greedy": bilevel.greedy(problem, end, h, rate=rate)[0],
                "T1-T2": implicit(bilevel.identity).gradient,
                "Neumann, 20": implicit(partial(bilevel.neumann, rate=rate, terms=20)).gradient,
                "Neumann, 1000": implicit(partial(bilevel.neumann, rate=rate, terms=1000)).gradient,
                "HOAG": implicit(partial(bilevel.conjugate_gradients, tolerance=1e-6)).gradient,
                "DrMAD": bilevel.drmad(problem, start, end, h, rate=rate, steps=1000),
                "reverse": bilevel.unrolled(problem, start, h, rate=rate, steps=1000),
                "forward": bilevel.unrolled(problem, start, h, rate=rate, steps=1000, forward=True),
            }
            cosine = {name: g @ exact / jnp.linalg.norm(g) / jnp.linalg.norm(exact) for name, g in found.items()}
            steps = 1e-5 * jnp.eye(12)
            shaken = jnp.stack([(exact_value(data, step) - exact_value(data, -step)) / 2e-5 for step in steps])
            return cosine, jnp.max(jnp.abs(shaken - exact)) / jnp.max(jnp.abs(exact))

        rows = [one(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), ridge(seed)[0])) for seed in range(20)]
        by_name = {name: [float(row[0][name]) for row in rows] for name in rows[0][0]}
        return {"cosines": by_name, "differences": max(float(row[1]) for row in rows)}


def benchmark(seconds: float = 0.4) -> dict[str, Any]:
    """All methods on 12 precisions: Q(θ*(h)), exactly, above its minimum over the box, against seconds."""
    began, box = time.process_time(), (-6.0, 5.0)
    lowest: dict[int, float] = {}
    value = jax.jit(jax.vmap(exact_value, (None, 0)))
    slope = jax.jit(jax.value_and_grad(exact_value, argnums=1))

    def judge(seed: int, data: Any, h: np.ndarray) -> dict[str, Any]:
        if seed not in lowest:
            ends = []
            for first in (0.0, 2.0, -2.0):
                end = scipy.optimize.minimize(
                    lambda h, data=data: tuple(np.asarray(x, np.float64) for x in slope(data, jnp.asarray(h, "f4"))),
                    np.full(12, first),
                    jac=True,
                    bounds=[box] * 12,
                )
                ends.append(float(end.fun))
            lowest[seed] = min(ends)
        found = np.asarray(value(data, jnp.asarray(h)), np.float64)
        return {"validation": found.tolist(), "gap": (found - lowest[seed]).tolist()}

    rate, whole = 0.003, 1000
    every = {SEARCH: None, **methods(rate, whole)}
    settings = {"inner": (rate, whole), "seconds": seconds, "box": box}
    return {
        "methods": dict(compared(ridge_problem, ridge, judge, every, **settings)),
        "budget": seconds,
        "whole": whole,
        "cpu_seconds": time.process_time() - began,
    }


# ----- a digits network -----------------------------------------------------------------------------------------------

EXAMPLES, WIDTH, RATE, WHOLE = 100, 134, 0.2, 200
FAMILY = {"num_examples": EXAMPLES, "width": WIDTH, "batch_size": None}


def digits(per: str, seconds: float) -> dict[str, Any]:
    """A 64-134-10 network on 100 digits, λ per layer or per coordinate: accuracy of what is trained anew with h."""
    family = regularised_classifier(per=per, decay=1e-3, **FAMILY)  # type: ignore[arg-type]
    parts = [family.eval_batch((), family.data, split) for split in ("train", "validation", "test")]
    dataset = load_dataset("digits")
    every_input, every_target = jnp.asarray(dataset.train.inputs), jnp.asarray(dataset.train.targets)
    _, unravel = ravel_pytree(family.init(jax.random.key(0), ()))

    def make(train: Any) -> Problem:
        def inner_loss(theta: Any, h: Any) -> Any:
            return family.loss(unravel(theta), (), train, hyper={"decay": jnp.exp(h)})

        return Problem(inner_loss, lambda theta, h: family.judged_loss(unravel(theta), (), parts[1]))

    def case(seed: int) -> tuple[Any, Any, Any]:
        """Other training digits and other first weights with each seed."""
        rows = jax.random.permutation(jax.random.key(seed), len(every_input))[:EXAMPLES]
        train = type(parts[0])(every_input[rows], every_target[rows])
        start = ravel_pytree(family.init(jax.random.key(1000 + seed), ()))[0]
        return train, start, jnp.log(jnp.asarray(family.hyper["decay"].start))

    @jax.jit
    def trained(train: Any, start: Any, h: Any) -> dict[str, Any]:
        def one(h: Any) -> dict[str, Any]:
            end = bilevel.descend(make(train), start, h, rate=RATE, steps=WHOLE)
            assert family.metrics is not None
            held = [family.metrics(unravel(end), (), part)["accuracy"] for part in parts[1:]]
            return {"validation": make(train).validation_loss(end, h), "held_out": held[0], "accuracy": held[1]}

        return jax.lax.map(one, h)

    def judge(seed: int, train: Any, h: np.ndarray) -> dict[str, Any]:
        shown = sorted({*np.linspace(0, len(h) - 1, min(len(h), 6)).round().astype(int).tolist()})
        # From the same first weights: a decay for each coordinate means another thing on others.
        found = trained(train, case(seed)[1], jnp.asarray(h[shown]))
        return {"shown": shown, **{name: np.asarray(x, np.float64).tolist() for name, x in found.items()}}

    every = {SEARCH: None, **methods(RATE, WHOLE, damping=0.1)}
    every = {name: m for name, m in every.items() if m is None or not m.few or per == "layer"}
    settings = {"inner": (RATE, WHOLE), "seconds": seconds, "box": (-14.0, 0.0)}
    return {
        "methods": dict(compared(make, case, judge, every, **settings)),
        "budget": seconds,
        "hyperparameters": int(np.size(family.hyper["decay"].start)),
    }


def speed() -> dict[str, Any]:
    """HOAG at 10,060 hyperparameters: CPU-seconds of a step of CG, in gradients of the inner loss on the same data."""
    family = regularised_classifier(per="coordinate", decay=1e-3, **FAMILY)  # type: ignore[arg-type]
    train, held_out, _ = (family.eval_batch((), family.data, split) for split in ("train", "validation", "test"))
    theta, unravel = ravel_pytree(family.init(jax.random.key(0), ()))
    h = jnp.log(jnp.asarray(family.hyper["decay"].start))
    problem = Problem(
        lambda theta, h: family.loss(unravel(theta), (), train, hyper={"decay": jnp.exp(h)}),
        lambda theta, h: family.judged_loss(unravel(theta), (), held_out),
    )

    def seconds(function: Callable[[], Any], repeats: int) -> float:
        function()
        taken = []
        for _ in range(repeats):
            before = time.process_time()
            function()
            taken.append(time.process_time() - before)
        return float(np.median(taken))

    gradient = jax.jit(jax.grad(problem.inner_loss))

    def hypergradient(steps: int) -> Any:
        return jax.jit(
            lambda theta, h: bilevel.hoag(problem, theta, h, tolerance=1e-30, max_steps=steps, damping=1e-3).gradient
        )

    one = seconds(lambda: gradient(theta, h).block_until_ready(), 200)
    few, many = hypergradient(2), hypergradient(12)
    short, long = (seconds(lambda f=f: f(theta, h).block_until_ready(), 20) for f in (few, many))
    return {
        "hyperparameters": h.size,
        "gradient": one,
        "step": (long - short) / 10,
        "ratio": (long - short) / 10 / one,
        "whole": long,
        "whole_per_step": long / 12 / one,
    }


PARTS: dict[str, Callable[[], Any]] = {
    "cosines": cosines,
    "benchmark": benchmark,
    "speed": speed,
    "layer": lambda: digits("layer", 1.0),
    "coordinate": lambda: digits("coordinate", 2.0),
}
