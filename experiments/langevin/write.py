"""Langevin dynamics and what its source text claims, measured: `python -m experiments.langevin.write` (two minutes).

Writes results.json, the pictures and README.md beside itself; with `--page` the page alone, from the JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy.linalg import solve_discrete_lyapunov

from metaopt.evaluation.statistics import jsonable, wilson_interval
from metaopt.optimizers.langevin import falling_temperature, langevin, run_chains
from metaopt.report.panels import INK, frame
from metaopt.report.svg import save_png
from metaopt.tasks import multimodal
from metaopt.types import TaskFamily

HERE = Path(__file__).parent
CHAINS, STEPS = 400, 10_000
EXAMPLES, NOISE = 100, 20.0  # examples of the finite sums, and the size of their own slopes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6b6b6b")


# ----- the law of SGD on a small regression -----------------------------------------------------------------------


def regression() -> dict[str, Any]:
    """SGD with minibatches of n, against exp(-f/T) with T = η trace(C)/(2 n D), and against the linear recursion.

    f = mean_i ½ (a_i θ - b_i)² over 64 examples, curvatures about 1 and 9, the noise of a label growing with |a_i|, so
    that C, the covariance of an example's slope, is no multiple of the curvature A.
    """
    rng = np.random.default_rng(0)
    a = rng.normal(size=(64, 2)) * np.array([3.0, 1.0])
    b = a @ np.array([1.0, -1.0]) + rng.normal(size=64) * (0.2 + np.abs(a[:, 1]))
    best = np.linalg.lstsq(a, b, rcond=None)[0]
    curvature = a.T @ a / 64
    slopes = a * (a @ best - b)[:, None]
    covariance = slopes.T @ slopes / 64
    inputs, labels = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    rows = []
    for rate in (0.003, 0.01, 0.03):
        for batch in (1, 8):

            def slope(theta: jax.Array, key: jax.Array, batch: int = batch) -> jax.Array:
                picked = jax.random.randint(key, (theta.shape[0], batch), 0, 64)
                x, y = inputs[picked], labels[picked]
                return jnp.mean(x * (jnp.einsum("cnd,cd->cn", x, theta) - y)[..., None], axis=1)

            start = jnp.tile(jnp.asarray(best, jnp.float32), (4000, 1))
            run = jax.jit(
                lambda key, s=slope, r=rate, x=start: run_chains(optax.sgd(r), s, x, key, length=int(9 / r))[0]
            )
            theta = np.asarray(run(jax.random.key(1)), np.float64)
            kept = np.eye(2) - rate * curvature
            temperature = rate * np.trace(covariance) / (2 * batch * 2)
            rows.append(
                {
                    "rate": rate,
                    "batch": batch,
                    "temperature": temperature,
                    "measured": np.cov(theta.T),
                    "boltzmann": temperature * np.linalg.inv(curvature),
                    "recursion": solve_discrete_lyapunov(kept, rate**2 * covariance / batch),
                    "temperatures": np.diag(rate * covariance / (2 * batch)),
                }
            )
    return {"curvature": curvature, "covariance": covariance, "minimum": best, "rows": rows}


# ----- P(global) by schedule --------------------------------------------------------------------------------------


def landscapes() -> dict[str, tuple[TaskFamily, float, float]]:
    """name -> (family, step, the constant of the schedules, a temperature)."""
    return {
        "tilted double well": (multimodal.tilted_double_well(start="wrong_basin"), 0.02, 1.434),
        "Ackley, 2-D": (multimodal.ackley(), 0.01, 2.0),
        "Rastrigin, 2-D": (multimodal.rastrigin(), 0.001, 10.0),
    }


def decays() -> dict[str, Callable[[float], Callable[[Any], Any]]]:
    """How a number falls from its first value within the run."""
    return {
        "constant": lambda first: lambda n: jnp.float32(first),
        "C/log(n+2)": lambda first: lambda n: first / jnp.log(n + 2.0),
        "(1 + n/100)^-1/2": lambda first: lambda n: first * (1 + n / 100) ** -0.5,
        "(1 + n/100)^-1": lambda first: lambda n: first / (1 + n / 100),
        "linear to 0": lambda first: lambda n: first * (1 - n / STEPS),
    }


def finding() -> list[dict[str, Any]]:
    """Descent, annealing and SGD with a falling rate, at equal steps from equal starts.

    SGD's f is a mean over 100 examples f(x) + a_i x with Σ a_i = 0, one drawn a step: noise of one covariance
    everywhere, so that the rate η_n is Langevin dynamics of step η_n and temperature η_n σ²/2. Its rate begins where
    that temperature is the C/log 2 at which annealing begins.
    """
    offsets = np.random.default_rng(0).normal(size=(EXAMPLES, 2))
    offsets -= offsets.mean(0)
    offsets /= offsets.std(0)
    rows = []
    for where, (family, step, constant) in landscapes().items():
        keys = jax.random.split(jax.random.key(0), CHAINS)
        task = family.sample(keys[0], ())
        start = jax.vmap(lambda key, f=family, t=task: f.init(key, t))(keys)
        clean = jax.vmap(jax.grad(lambda x, f=family, t=task: f.loss(x, t, ())))
        hot = constant / np.log(2)
        sigma = np.sqrt(2 * hot / step)
        own = jnp.asarray(sigma * offsets[:, : start.shape[1]], jnp.float32)

        def noisy(x: jax.Array, key: jax.Array, clean: Any = clean, own: jax.Array = own) -> jax.Array:
            return clean(x) + own[jax.random.randint(key, x.shape[:1], 0, EXAMPLES)]

        def exact(x: jax.Array, key: jax.Array, clean: Any = clean) -> jax.Array:
            return clean(x)

        trials: dict[tuple[str, str], tuple[Any, Any]] = {
            ("gradient descent", "none"): (optax.sgd(step), exact),
            ("annealing", "geometric to C/1000"): (
                langevin(step, falling_temperature("geometric", hot, end=constant / 1000, steps=STEPS)),
                exact,
            ),
        }
        for name, decay in decays().items():
            first = constant if name == "C/log(n+2)" else hot
            trials["annealing", name] = langevin(step, decay(first)), exact
            rate = step * np.log(2) if name == "C/log(n+2)" else step
            trials["SGD", name] = optax.sgd(decay(rate)), noisy
        for (kind, schedule), (tx, slope) in trials.items():
            run = jax.jit(lambda x, key, tx=tx, s=slope: run_chains(tx, s, x, key, length=STEPS)[0])
            end = run(start, jax.random.key(1))
            inside = jax.vmap(lambda x, f=family, t=task: f.metrics(x, t, ())["global"])(end)  # pyright: ignore
            loss = np.asarray(jax.vmap(lambda x, f=family, t=task: f.loss(x, t, ()))(end), np.float64)
            found = int(np.asarray(inside).sum())
            rows.append(
                {
                    "landscape": where,
                    "kind": kind,
                    "schedule": schedule,
                    "share": found / CHAINS,
                    "interval": wilson_interval(found, CHAINS),
                    "above": np.median(loss) - family.lower_bound,  # pyright: ignore[reportOperatorIssue]
                    "step": step,
                    "C": constant,
                }
            )
            print(where, kind, schedule, found / CHAINS, flush=True)
    return rows


# ----- pictures ---------------------------------------------------------------------------------------------------


def draw_motion(path: Path) -> None:
    """Brownian motion as the text draws it, and the law of Langevin dynamics on the double well."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    walk = np.cumsum(np.random.default_rng(42).normal(size=(5000, 2)), axis=0)
    left.plot(*walk.T, color=COLOURS[0], linewidth=0.7)
    left.plot(*walk[[0, -1]].T, "o", color=COLOURS[1], markersize=5)
    left.set_aspect("equal", "datalim")
    left.set(xlabel="x", ylabel="y")
    left.set_title("Brownian motion, 5,000 steps from N(0, 1)", loc="left", fontsize=10.5, color=INK)
    grid = np.linspace(-2, 2, 400)
    for index, kelvin in enumerate((2.0, 0.5, 0.1)):
        density = np.exp(-((grid**2 - 1) ** 2 + 0.3 * grid) / kelvin)
        right.plot(grid, density / (density.sum() * (grid[1] - grid[0])), color=COLOURS[index], label=f"T = {kelvin}")

        def slope(x: jax.Array, key: jax.Array) -> jax.Array:
            return 4 * x * (x**2 - 1) + 0.3

        start = jnp.linspace(-2, 2, 10_000)
        # From hot to T, for at T = 0.1 no chain crosses the barrier within the run.
        cooling = lambda n, T=kelvin: jnp.maximum(2.0 * 0.998**n, T)  # noqa: E731, N803
        run = jax.jit(lambda x, key, T=cooling: run_chains(langevin(0.01, T), slope, x, key, length=4000)[0])  # noqa: N803
        x = np.asarray(run(start, jax.random.key(index)))
        right.hist(x, bins=80, range=(-2, 2), density=True, color=COLOURS[index], alpha=0.25)
    right.set(xlabel="x", ylabel="density")
    right.legend(frameon=False)
    right.set_title("tilted well: exp(-f/T), and 10,000 chains cooled to T", loc="left", fontsize=10.5, color=INK)
    _save(figure, path)


def draw_regression(record: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, batch in zip(figure.subplots(1, 2), (1, 8), strict=True):
        rows = [row for row in record["rows"] if row["batch"] == batch]
        rates = [row["rate"] for row in rows]
        for index in (0, 1):
            for kind, style in (("measured", "o"), ("recursion", "-"), ("boltzmann", ":")):
                values = [row[kind][index][index] for row in rows]
                axes.loglog(rates, values, style, color=COLOURS[index], label=f"θ{index + 1}, {WORDS[kind]}")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.set(xlabel="rate η", ylabel="stationary variance")
        axes.set_title(f"minibatches of {batch}", loc="left", fontsize=10.5, color=INK)
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


WORDS = {"measured": "measured", "recursion": "linear recursion", "boltzmann": "one temperature"}


def draw_finding(rows: list[Mapping[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    names = list(dict.fromkeys(f"{row['kind']}, {row['schedule']}" for row in rows))
    for axes, where in zip(figure.subplots(1, 3, sharey=True), landscapes(), strict=True):
        for row in (row for row in rows if row["landscape"] == where):
            at = len(names) - names.index(f"{row['kind']}, {row['schedule']}")
            colour = COLOURS[("annealing", "SGD", "gradient descent").index(row["kind"])]
            axes.plot(row["interval"], [at, at], color=colour, linewidth=2)
            axes.plot([row["share"]], [at], "o", color=colour, markersize=5)
        axes.set(xlim=(-0.03, 1.03), xlabel="P(global)")
        axes.set_yticks(range(len(names), 0, -1), names, fontsize=8)
        axes.set_title(where, loc="left", fontsize=10.5, color=INK)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        frame(axes)
    path.parent.mkdir(exist_ok=True)
    save_png(figure, path)


# ----- the page ---------------------------------------------------------------------------------------------------


def page(record: Mapping[str, Any]) -> str:
    """README.md from the JSON alone."""
    law = [
        "| rate | batch | T = η tr C/(2nD) | var θ1: measured / one temperature / recursion | var θ2: the same |",
        "| --- | --- | --- | --- | --- |",
    ]
    worst = {"boltzmann": 0.0, "recursion": 0.0}
    for row in record["regression"]["rows"]:
        cells = []
        for i in (0, 1):
            values = [row[kind][i][i] for kind in ("measured", "boltzmann", "recursion")]
            cells.append(" / ".join(f"{value:.3g}" for value in values))
            for kind in worst:
                worst[kind] = max(worst[kind], abs(row[kind][i][i] / row["measured"][i][i] - 1))
        law.append(f"| {row['rate']} | {row['batch']} | {row['temperature']:.3g} | {' | '.join(cells)} |")
    found = ["| landscape | method | schedule | P(global), 95% | median above the minimum |", "| --- " * 5 + "|"]
    for row in record["finding"]:
        low, high = row["interval"]
        found.append(
            f"| {row['landscape']} | {row['kind']} | {row['schedule']} | {row['share']:.3f} [{low:.3f}, {high:.3f}] "
            f"| {row['above']:.3g} |"
        )
    covariance = record["regression"]["covariance"]
    each = [covariance[i][i] for i in (0, 1)]
    return PAGE.format(
        law="\n".join(law),
        found="\n".join(found),
        boltzmann=f"{worst['boltzmann']:.0%}",
        recursion=f"{worst['recursion']:.0%}",
        anisotropy=f"{max(each) / min(each):.1f}",
        chains=CHAINS,
        steps=f"{STEPS:,}",
    )


PAGE = """# Langevin dynamics, and what is claimed of it

Written by `python -m experiments.langevin.write` from `results.json`; the pictures come with it.

## Motion and law

![Brownian motion, and the law on the tilted well](figures/motion.png)

θ ← θ - h ∇f + √(2hT) ξ settles at exp(-f/T), which gathers at the global minimum as T falls. At T = 0.1 the share in
each well is the one that the cooling left behind, not Boltzmann's: below the barrier's scale nothing crosses any more.

## "A minibatch's noise is a temperature"

A regression with 64 examples and two parameters, 4,000 chains of SGD, minibatches drawn with replacement. C is the
covariance of one example's gradient at the minimum. One temperature T = η tr C/(2nD) would give the law exp(-f/T).

{law}

![Stationary variances](figures/regression.png)

The noise grows with the rate and falls with the batch as the claim has it, but it is no single temperature: C's two
variances differ by a factor of {anisotropy}, and the law of one temperature is off by up to {boltzmann}. The stationary
law of the linear recursion with the whole matrix C is right within {recursion}, worst at the largest rate with single
examples, where C at the minimum is no longer C where the chain is.

## "SGD with a falling rate finds the global minimum"

{chains} chains of {steps} steps from equal starts: the tilted well from the wrong well, the others uniformly from their
box. Annealing holds h and lowers T; SGD's noise has one covariance everywhere, and a falling rate η lowers the
temperature η σ²/2 and the step together. Both begin at the same temperature. Intervals are Wilson's.

{found}

At one step and one number of steps, no schedule of SGD beat the same schedule of annealing by more than the
intervals: as the rate falls, so does the time that passes. The claim holds where the schedule is slow enough; a
C/log(n+2) rate from so low a start is not, and on Rastrigin nothing was within these {steps} steps.

![P(global) by schedule](figures/finding.png)
"""


def main() -> None:
    file = HERE / "results.json"
    if "--page" not in sys.argv:
        record = jsonable({"regression": regression(), "finding": finding()})
        file.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
        draw_motion(HERE / "figures" / "motion.png")
    record = json.loads(file.read_text(encoding="utf-8"))
    draw_regression(record["regression"], HERE / "figures" / "regression.png")
    draw_finding(record["finding"], HERE / "figures" / "finding.png")
    (HERE / "README.md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
