"""The parts of the experiment beside the table of families; each returns what results.json holds of it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from experiments.lecture.families import FAMILIES, FREQUENCY, Entry, Rows, cell_table
from experiments.lecture.search import (
    GRIDS,
    NAMES,
    REPORTED,
    TUNING,
    Runs,
    family_of,
    logs,
    on_grid,
    optimizer_of,
    phi_of,
    ratio,
    runs,
)
from metaopt import Optimizer, TaskFamily, choice, make_task
from metaopt.evaluation.curves import evaluate
from metaopt.evaluation.early_stopping import EarlyStopping
from metaopt.experiment import build_family
from metaopt.microscope.inspection import follow, planes
from metaopt.optimizers.settings import LOG
from metaopt.oracles.gradient import exact

HALF_DECADES = tuple(10 ** (exponent / 2) for exponent in range(-6, 2))

# ----- landscapes in the plane ----------------------------------------------------------------------------------------

VIEWS = {  # name -> (x from, to, y from, to), start
    "ravine": ((-2.8, 1.0, -1.9, 1.1), (-2.2, -0.4)),
    "Rosenbrock": ((-2.0, 2.0, -1.0, 3.0), (-1.2, 1.0)),
    "saddle": ((-2.0, 1.0, -1.6, 1.6), (-1.6, 0.002)),
    "plateau": ((-3.6, 1.6, -1.6, 3.2), (-3.0, 2.4)),
    "two minima": ((-2.0, 2.4, -1.6, 1.8), (1.9, 1.2)),
}
LANDSCAPE_STEPS = 200
USUAL = {"momentum": {"mu": 0.9}, "nesterov": {"mu": 0.9}, "rmsprop": {"decay": 0.99}, "adam": {"beta1": 0.9},
         "adamw": {"weight_decay": 0.01}}  # fmt: skip
TILTED = 0.305368  # what the tilted well lies below 0
# Between two minima a large step ends in either by chance; these are small.
SMALL = {"sgd": 0.02, "momentum": 0.02, "nesterov": 0.02, "adagrad": 0.2, "rmsprop": 0.02, "adam": 0.05, "adamw": 0.05}


@functools.cache
def _plane() -> TaskFamily:
    def heights(params: jax.Array) -> list[jax.Array]:
        x, y = params
        along, across = 0.8776 * x + 0.4794 * y, 0.8776 * y - 0.4794 * x  # the ravine lies in no one's axes
        return [
            0.5 * (along**2 + 50 * across**2),
            (1 - x) ** 2 + 100 * (y - x**2) ** 2,
            0.5 * x**2 + 0.1 * (y**2 - 1) ** 2,
            -jnp.expm1(-0.5 * (x**2 + 0.3 * y**2)),
            (x**2 - 1) ** 2 + 0.3 * x + 0.5 * y**2 + TILTED,
        ]

    return planes(heights, [start for _, start in VIEWS.values()])


def view(name: str) -> TaskFamily:
    return dataclasses.replace(_plane(), data=jnp.int32(list(VIEWS).index(name)))


def _path(optimizer: Optimizer, point: dict[str, float], family: TaskFamily) -> dict[str, Any]:
    phi = {name: value[0] for name, value in phi_of(optimizer, [point]).items()}
    stream, end, loss = follow(optimizer, phi, family, jax.random.key(0), length=LANDSCAPE_STEPS)
    path = np.concatenate([stream.params, end[None]])
    return {"rate": point["learning_rate"], "path": path, "loss": loss}


def landscapes() -> dict[str, Any]:
    """Paths of all optimizers at their usual settings, and, of the rates at which f never rises above twice its first,
    the one whose log f is lowest on average over the run; between two minima at small rates."""
    found: dict[str, Any] = {name: {} for name in VIEWS}
    for where in VIEWS:
        family = view(where)
        entry = Entry(_plane, LANDSCAPE_STEPS, 1, "")
        for name in GRIDS:
            usual: dict[str, float] = USUAL.get(name, {})
            optimizer = optimizer_of(name, *usual)
            points = [{"learning_rate": 10 ** (i / 4), **usual} for i in range(-16, 12)]
            curve = runs(optimizer, points, family, entry, 0, every=1).loss[:, 0]
            score = np.log(np.maximum(curve, 1e-8)).mean(axis=1)
            best = int(np.argmin(np.where((curve <= 2 * curve[:, :1]).all(axis=1), score, np.inf)))
            point = {"learning_rate": SMALL[name], **usual} if where == "two minima" else points[best]
            found[where][name] = _path(optimizer, point, family)
    return found


def steps() -> dict[str, Any]:
    """Gradient descent in the ravine (largest curvature 50) at four rates, and what the scale of features does."""
    optimizer, family = optimizer_of("sgd"), view("ravine")
    paths = [_path(optimizer, {"learning_rate": rate / 50}, family) for rate in (0.02, 1.0, 1.9, 2.03)]
    scales = {}
    for name in ("raw", "standardised"):
        inputs, signs = cell_table(name == "standardised")
        best = np.linalg.lstsq(inputs, signs, rcond=None)[0]
        slope = inputs.T @ signs
        cosine = slope @ best / np.linalg.norm(slope) / np.linalg.norm(best)
        scales[name] = {"condition": np.linalg.cond(inputs) ** 2, "cosine": cosine}
    return {"descent": paths, "scales": scales}


# ----- batch, stochastic, mini-batch ----------------------------------------------------------------------------------

BATCHES: dict[str, tuple[int, np.ndarray, int]] = {  # batch size, recorded steps, examples a step
    "1": (1, np.r_[0:300:20, 300:28_741:948], 1),
    "32": (32, np.r_[0:300:10, 300:901:20], 32),
    "all": (1, np.r_[0:20:4, 20:301:14], 1437),
}
EQUAL_STEPS, EQUAL_EXAMPLES = 300, 28_740  # 20 passes
BATCH_TASKS = 4


def batches() -> dict[str, Any]:
    """SGD on digits with one hidden layer, at the rate that is best for the batch size and the budget."""
    optimizer = optimizer_of("sgd")
    points = [{"learning_rate": rate} for rate in HALF_DECADES[2:]]
    found = {}
    for name, (size, steps, examples) in BATCHES.items():
        family = build_family(choice("classifier", batch_size=size))
        family = dataclasses.replace(family, oracle=exact()) if name == "all" else family
        tuning, reported = (
            on_grid(optimizer, phi_of(optimizer, points), family, jax.random.key(seed), steps, BATCH_TASKS).loss
            for seed in (TUNING, REPORTED)
        )
        views = {}
        for budget, end in (("steps", EQUAL_STEPS), ("examples", EQUAL_EXAMPLES)):
            last = int(np.flatnonzero(steps * (1 if budget == "steps" else examples) <= end * 1.01)[-1])
            best = int(np.argmin(tuning[..., last].mean(axis=1)))
            curve = reported[best, :, : last + 1]
            views[budget] = {
                "rate": points[best]["learning_rate"],
                "steps": steps[: last + 1],
                "examples": steps[: last + 1] * examples,
                "mean": curve.mean(axis=0),
                "last": curve[:, -1],
                # How unsteady: recorded losses that lie above the one before.
                "rises": float(np.mean(np.diff(curve[:, curve.shape[1] // 2 :], axis=1) > 0)),
            }
        found[name] = views
    return found


# ----- momentum and Nesterov at one rate ------------------------------------------------------------------------------


def nesterov() -> dict[str, Any]:
    """Both at μ = .9 in the ravine (largest curvature 1), rate by rate: what they end at, and how much f rises."""
    family, entry = family_of("ravine"), FAMILIES["ravine"]
    rates = np.round(np.arange(0.1, 4.05, 0.1), 3)
    found: dict[str, Any] = {"rates": rates}
    for name in ("momentum", "nesterov"):
        optimizer = optimizer_of(name, "mu")
        points = [{"learning_rate": float(rate), "mu": 0.9} for rate in rates]
        curves = runs(optimizer, points, family, entry, REPORTED, every=1)
        rise = np.maximum(np.diff(np.minimum(curves.loss, 1e6), axis=-1), 0).sum(axis=-1) / curves.loss[..., 0]
        end = curves.loss[..., -1] / curves.loss[..., 0]
        found[name] = {
            "end": np.exp(np.log(np.clip(end, 1e-12, 1e12)).mean(axis=1)),
            "rise": np.median(rise, axis=1),
            # Stable: the end is below the start in every task.
            "largest": float(rates[np.flatnonzero((end < 1).all(axis=1))[-1]]),
        }
    found["turns"] = {
        where: {
            "sgd": _turns("sgd", where, {"learning_rate": rate}),
            "momentum": _turns("momentum", where, {"learning_rate": rate / 10, "mu": 0.9}),
        }
        for where, rate in (("ravine", 1.9), ("noise", 0.01), ("network", 0.1))
    }
    return found


def _turns(name: str, where: str, point: dict[str, float]) -> float:
    """The share of steps that turn by more than a right angle."""
    _, update = _followed(name, where, point, 300)
    return float(np.mean(np.sum(update[1:] * update[:-1], axis=1) < 0))


# ----- what adaptive methods do to each parameter's rate --------------------------------------------------------------


def _followed(name: str, where: str, point: dict[str, float], length: int) -> Any:
    """Gradients and steps [length, D] of one run."""
    optimizer = optimizer_of(name, *(key for key in point if key != "learning_rate"))
    phi = {key: value[0] for key, value in phi_of(optimizer, [point]).items()}
    stream, _, _ = follow(optimizer, phi, family_of(where), jax.random.key(REPORTED), length=length)
    return np.asarray(stream.gradient, np.float64), np.asarray(stream.update, np.float64)


def rates() -> dict[str, Any]:
    """Steps over gradients: by a word's frequency at the end of a run, and over time."""
    words = {}
    for name, rate in (("sgd", 0.1), ("adagrad", 0.1), ("rmsprop", 0.01)):
        gradient, update = _followed(name, "rare words", {"learning_rate": rate}, 2000)
        step = np.abs(update) / np.where(np.abs(gradient) > 1e-8, np.abs(gradient), np.nan)
        # Of the last steps on which the word occurred; one or two words never do.
        seen = [column[np.isfinite(column)][-50:] for column in step.T]
        last = np.array([np.median(column) if len(column) else np.nan for column in seen])
        bins = np.unique(np.geomspace(1, len(FREQUENCY), 12).astype(int))
        parts = [slice(low - 1, high - 1) for low, high in zip(bins[:-1], bins[1:], strict=True)]
        known = np.isfinite(last)
        words[name] = {
            "frequency": [float(FREQUENCY[part].mean()) for part in parts],
            "rate": [float(np.nanmedian(last[part])) for part in parts],
            "slope": float(np.polyfit(np.log(FREQUENCY[known]), np.log(last[known]), 1)[0]),
        }
    over_time = {}
    for where in ("moving optimum", "changing regimes"):
        length = FAMILIES[where].horizon
        marks = np.unique(np.geomspace(1, length, 40).astype(int))
        over_time[where] = {"steps": marks}
        for name, rate in (("adagrad", 0.3), ("rmsprop", 0.03)):
            gradient, update = _followed(name, where, {"learning_rate": rate}, length)
            size = np.linalg.norm(update, axis=1) / np.maximum(np.linalg.norm(gradient, axis=1), 1e-30)
            over_time[where][name] = [float(np.median(size[max(0, mark - 1 - mark // 5) : mark])) for mark in marks]
    return {"words": words, "time": over_time}


# ----- weight decay ---------------------------------------------------------------------------------------------------

DECAYS = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
DECAY_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FEW, DECAY_STEPS, DECAY_TASKS = 100, 1000, 4


def few_digits(width: int = 32) -> TaskFamily:
    """A classifier of digits with one hidden layer, of 100 examples: it learns them by heart."""
    images, labels = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(labels))
    x, y = (images / 16).astype(np.float32), labels.astype(np.int32)
    parts = {"train": rows[:FEW], "validation": rows[FEW:400], "test": rows[400:]}

    def logits(params: Any, batch: Rows) -> jax.Array:
        return jax.nn.relu(batch.x @ params["w"] + params["b"]) @ params["v"] + params["c"]

    def init(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        w = jax.random.normal(first, (64, width)) * (2 / 64) ** 0.5
        v = jax.random.normal(second, (width, 10)) * (1 / width) ** 0.5
        return {"w": w, "b": jnp.zeros(width), "v": v, "c": jnp.zeros(10)}

    def loss(params: Any, batch: Rows) -> jax.Array:
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits(params, batch)) * jax.nn.one_hot(batch.y, 10), axis=-1))

    def metrics(params: Any, batch: Rows) -> dict[str, jax.Array]:
        right = jnp.mean(jnp.argmax(logits(params, batch), axis=-1) == batch.y)
        return {"accuracy": right, "norm": optax.tree.norm({"w": params["w"], "v": params["v"]})}

    return make_task(
        loss, init, data={split: Rows(x[part], y[part]) for split, part in parts.items()}, batch_size=20,
        metrics=metrics, lower_bound=0.0, name="few digits",
    )  # fmt: skip


def _penalised(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
    """Adam on the loss with λ‖θ‖²/2 added: torch's Adam(weight_decay=λ)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_adam(), optax.scale_by_learning_rate(learning_rate)
    )


def _decayed(penalised: bool) -> Optimizer:
    make = _penalised if penalised else lambda rate, decay: optax.adamw(rate, weight_decay=decay)
    return Optimizer(
        init=lambda key: {},
        bind=lambda phi: optax.with_extra_args_support(
            make(LOG.forward(phi["learning_rate"]), LOG.forward(phi["weight_decay"]))
        ),
        tunable={"learning_rate": LOG, "weight_decay": LOG},
    )


def decay() -> dict[str, Any]:
    """Adam with a penalty in the loss against AdamW, on every rate and decay; and the decay alone."""
    family = few_digits()
    entry = Entry(few_digits, DECAY_STEPS, DECAY_TASKS, "")
    points = [{"learning_rate": rate, "weight_decay": max(value, 1e-12)} for rate in DECAY_RATES for value in DECAYS]
    shape = (len(DECAY_RATES), len(DECAYS), DECAY_TASKS)
    found: dict[str, Any] = {"rates": DECAY_RATES, "decays": DECAYS}
    for name, penalised in (("penalty", True), ("decoupled", False)):
        curves = runs(_decayed(penalised), points, family, entry, REPORTED, every=DECAY_STEPS)
        final = {split: {k: v.reshape(shape) for k, v in values.items()} for split, values in curves.final.items()}
        found[name] = {
            "validation": final["validation"]["loss"].mean(axis=-1),
            "test": final["test"]["loss"],
            "accuracy": final["test"]["accuracy"],
            "norm": final["test"]["norm"],
            "training": final["train"]["loss"].mean(axis=-1),
        }
    # Weights of 1 under gradients of pure noise of several sizes: what is left of them is the decay's work.
    sizes = jnp.array([1e-3, 1e-2, 1e-1, 1.0, 10.0])
    noise = jax.random.normal(jax.random.key(0), (1000, 400, 5)) * sizes

    def left(tx: optax.GradientTransformation) -> jax.Array:
        def step(carry: Any, gradient: jax.Array) -> Any:
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.ones((400, 5))
        return jax.lax.scan(step, (start, tx.init(start)), noise)[0][0].mean(axis=0)

    alone = {"penalty": _penalised(1e-2, 1e-1), "decoupled": optax.adamw(1e-2, weight_decay=1e-1)}
    found["alone"] = {"sizes": sizes, **{name: jax.jit(left, static_argnums=0)(tx) for name, tx in alone.items()}}
    return found


# ----- schedules ------------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "step": {"schedule": "step"},
    "exponential": {"schedule": "exponential"},
    "cosine": {"schedule": "cosine"},
    "linear": {"schedule": "linear"},
    "warm-up, cosine": {"schedule": "warmup_cosine"},
    "(t+1)^-1/2": {"power": 0.5},
    "plateau": {"schedule": "plateau", "every": 10, "patience": 3, "factor": 0.3},
}
SCHEDULED = {"noise": ("sgd", FAMILIES["noise"]), "network": ("adam", FAMILIES["network"]._replace(tasks=12))}


def schedules() -> dict[str, Any]:
    """Every schedule at its own best rate, against the constant rate at its own; and α_t as it was."""
    found: dict[str, Any] = {}
    for where, (name, entry) in SCHEDULED.items():
        family, kept = family_of(where), {}
        points = [{"learning_rate": rate} for rate in HALF_DECADES]
        for label, options in SCHEDULES.items():
            optimizer = optimizer_of(name, **options)
            optimizer = optimizer.at_horizon(entry.horizon) if optimizer.at_horizon else optimizer
            tuning, reported = (runs(optimizer, points, family, entry, seed) for seed in (TUNING, REPORTED))
            best = int(np.argmin(logs(tuning, entry).mean(axis=1)))
            kept[label] = logs(reported, entry)[best], points[best], _median(reported, best)
        steps = reported.steps  # pyright: ignore[reportPossiblyUnboundVariable]
        found[where] = {"optimizer": name, "steps": steps} | {
            label: {
                "rate": point["learning_rate"],
                "ratio": ratio(value, kept["constant"][0]),
                "median": median,
                "inside": HALF_DECADES[0] < point["learning_rate"] < HALF_DECADES[-1],
            }
            for label, (value, point, median) in kept.items()
        }
    relative = {}
    for label, options in SCHEDULES.items():
        optimizer = optimizer_of("sgd", **options)
        optimizer = optimizer.at_horizon(500) if optimizer.at_horizon else optimizer
        phi = {
            "learning_rate": phi_of(optimizer, [{"learning_rate": found["noise"][label]["rate"]}])["learning_rate"][0]
        }
        stream, _, _ = follow(optimizer, phi, family_of("noise"), jax.random.key(REPORTED), length=500)
        gradient, update = (np.asarray(part, np.float64) for part in (stream.gradient, stream.update))
        rate = np.linalg.norm(update, axis=1) / np.linalg.norm(gradient, axis=1)
        relative[label] = (rate / found["noise"][label]["rate"])[::5]
    return found | {"relative": {"steps": np.arange(0, 500, 5), **relative}}


def _median(found: Runs, best: int) -> np.ndarray:
    return np.median(found.loss[best] - found.bound[:, None], axis=0)


# ----- early stopping -------------------------------------------------------------------------------------------------

PATIENCE, STOPPING_STEPS, STOPPING_TASKS = (3, 10, 30), 2000, 16


def stopping() -> dict[str, Any]:
    """Test loss and accuracy with and without early stopping on validation data, and the steps saved."""
    family, rows = few_digits(), {}
    for name, rate in (("sgd", 0.3), ("adam", 0.003), ("adam", 0.03)):
        optimizer = optimizer_of(name)
        phi = {"learning_rate": LOG.inverse(jnp.float32(rate))}
        rows[f"{NAMES[name]} {rate:g}"] = []
        for patience in PATIENCE:
            curves = evaluate(
                {name: (optimizer, phi)}, family, jax.random.key(REPORTED), horizon=STOPPING_STEPS,
                num_tasks=STOPPING_TASKS, early_stopping=EarlyStopping(patience, every=10), num_devices=1,
            )  # fmt: skip
            stopped = curves.stopped[name]
            assert stopped is not None
            end, restored = curves.final[name]["test"], stopped.final["test"]
            rows[f"{NAMES[name]} {rate:g}"].append(
                {
                    "patience": patience,
                    "ratio": ratio(np.log(restored["loss"]), np.log(end["loss"])),
                    "loss": [float(end["loss"].mean()), float(restored["loss"].mean())],
                    "accuracy": [float(end["accuracy"].mean()), float(restored["accuracy"].mean())],
                    "saved": float(np.mean(1 - np.asarray(stopped.step) / STOPPING_STEPS)),
                    "best_step": float(np.mean(stopped.best_step)),
                }
            )
    return {"horizon": STOPPING_STEPS, "runs": rows}
