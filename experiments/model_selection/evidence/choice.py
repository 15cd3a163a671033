"""Accuracy against stability: linear models chosen by five criteria, over data drawn again and again.

A candidate is a set of features with a prior precision α of its weights; the noise is known. Cross-validation, evidence
and the evidence lower bound (of a diagonal q) choose both, AIC and BIC the features of least squares alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from metaopt.evaluation.intervals import mean_of
from metaopt.evaluation.statistics import wilson_interval

CRITERIA = ("cross-validation", "evidence", "ELBO", "AIC", "BIC")
ALPHAS = np.geomspace(1e-2, 1e4, 13)  # prior precisions that are tried
FOLDS = 5


class Fit(NamedTuple):
    """What every criterion says of one set of features, more is better, and the weights it would take."""

    score: dict[str, float]
    weights: dict[str, np.ndarray]


def fit(X: np.ndarray, y: np.ndarray, noise: float) -> Fit:
    """All criteria for one set of features, X [examples, features]; no features: the model that says 0."""
    examples, size = X.shape
    beta = noise**-2
    constant = 0.5 * examples * np.log(beta / (2 * np.pi))
    if size == 0:
        value = constant - 0.5 * beta * y @ y
        return Fit(dict.fromkeys(CRITERIA, float(value)), dict.fromkeys(CRITERIA, np.zeros(0)))
    # In the axes of the Gram matrix every α is a division.
    left, singular, axes = np.linalg.svd(X, full_matrices=False)
    seen, curvature = left.T @ y, beta * singular**2
    rank = singular > 1e-10 * singular[0]
    unexplained = y @ y - np.sum(seen[rank] ** 2)
    best = float(constant - 0.5 * beta * unexplained)
    least_squares = axes.T[:, rank] @ (seen[rank] / singular[rank])
    precision = curvature[None] + ALPHAS[:, None]  # [alphas, rank] of the posterior, along its axes
    means = (beta * singular * seen)[None] / precision
    residual = y @ y - np.sum((2 * singular * seen)[None] * means - (singular * means) ** 2, axis=1)
    at_mean = constant - 0.5 * beta * residual - 0.5 * ALPHAS * np.sum(means**2, axis=1)
    missing = size - len(singular)  # directions that fewer examples than features leave to the prior
    half_volumes = 0.5 * (size * np.log(ALPHAS) - np.sum(np.log(precision), axis=1) - missing * np.log(ALPHAS))
    evidence = at_mean + half_volumes
    # Mean field: the posterior's diagonal precisions in the features' own axes, ½ (Σ log P_jj - log|P|) below.
    diagonal = beta * np.sum(X**2, axis=0)[None] + ALPHAS[:, None]
    gap = 0.5 * (np.sum(np.log(diagonal), axis=1) - np.sum(np.log(precision), axis=1) - missing * np.log(ALPHAS))
    bound = evidence - gap
    out = _held_out(X, y, beta)
    picked = {"cross-validation": int(out.argmax()), "evidence": int(evidence.argmax()), "ELBO": int(bound.argmax())}
    values = {"cross-validation": out, "evidence": evidence, "ELBO": bound}
    score = {name: float(values[name][index]) for name, index in picked.items()}
    weights = {name: axes.T @ means[index] for name, index in picked.items()}
    score |= {"AIC": best - size, "BIC": best - 0.5 * size * np.log(examples)}
    return Fit(score, weights | {"AIC": least_squares, "BIC": least_squares})


def _held_out(X: np.ndarray, y: np.ndarray, beta: float) -> np.ndarray:
    """[alphas] log p of each fold under the weights of the others, summed."""
    total = np.zeros(len(ALPHAS))
    for fold in range(FOLDS):
        kept = np.arange(len(y)) % FOLDS != fold
        left, singular, axes = np.linalg.svd(X[kept], full_matrices=False)
        weights = axes.T @ ((beta * singular * (left.T @ y[kept]))[None] / (beta * singular**2 + ALPHAS[:, None])).T
        squares = np.sum((y[~kept, None] - X[~kept] @ weights) ** 2, axis=0)
        total -= 0.5 * (beta * squares + np.sum(~kept) * np.log(2 * np.pi / beta))
    return total


def choose(X: np.ndarray, y: np.ndarray, models: Sequence[Sequence[int]], noise: float) -> dict[str, Any]:
    """criterion -> (the chosen features, weights of all features)."""
    fits = [fit(X[:, list(chosen)], y, noise) for chosen in models]
    found = {}
    for name in CRITERIA:
        best = int(np.argmax([each.score[name] for each in fits]))
        weights = np.zeros(X.shape[1])
        weights[list(models[best])] = fits[best].weights[name]
        found[name] = tuple(models[best]), weights
    return found


# ----- complexity and sample size -------------------------------------------------------------------------------------

NOISE, DEGREES = 0.5, 12
GRID = np.linspace(-1, 1, 201)
SIZES, RESAMPLES = (16, 32, 64, 128, 256), 200


def truth(x: np.ndarray) -> np.ndarray:
    """No polynomial, so that every degree leaves something."""
    return np.sin(3 * x) + 0.5 * np.abs(x)


def features(x: np.ndarray) -> np.ndarray:
    """[examples, degrees] Legendre polynomials of mean square 1 on [-1, 1]."""
    return np.polynomial.legendre.legvander(x, DEGREES - 1) * np.sqrt(2 * np.arange(DEGREES) + 1)


def _summary(predicted: np.ndarray) -> dict[str, Any]:
    """Of predictions [resamples, grid]: the mean squared error, its spread, and that of the predictions."""
    errors = np.mean((predicted - truth(GRID)) ** 2, axis=1)
    return {
        "error": errors.mean(),
        "interval": mean_of(errors).interval(),
        "median": np.median(errors),
        "spread": errors.std(ddof=1),
        "variance": np.mean(predicted.var(axis=0, ddof=1)),
    }


def sample_size(examples: int) -> dict[str, Any]:
    """Models of the first k polynomials: what each criterion chooses, and what each k would have given."""
    rng = np.random.default_rng(examples)
    models = [tuple(range(size)) for size in range(1, DEGREES + 1)]
    on_grid = features(GRID)
    chosen: dict[str, list[Any]] = {name: [] for name in CRITERIA}
    fixed: dict[str, list[np.ndarray]] = {"least squares": [], "evidence": []}
    for _ in range(RESAMPLES):
        x = rng.uniform(-1, 1, examples)
        X, y = features(x), truth(x) + NOISE * rng.normal(size=examples)
        for name, (model, weights) in choose(X, y, models, NOISE).items():
            chosen[name].append((len(model), on_grid @ weights))
        each = [fit(X[:, : len(model)], y, NOISE).weights for model in models]
        for kind, key in (("least squares", "AIC"), ("evidence", "evidence")):
            fixed[kind].append(np.stack([on_grid[:, : len(w[key])] @ w[key] for w in each]))
    return {
        "examples": examples,
        "chosen": {
            name: {"size": np.mean([size for size, _ in rows]), **_summary(np.stack([line for _, line in rows]))}
            for name, rows in chosen.items()
        },
        "fixed": {
            kind: [_summary(np.stack(rows)[:, index]) for index in range(DEGREES)] for kind, rows in fixed.items()
        },
    }


# ----- configurations of features (Katrutsa and Strijov 2017) ---------------------------------------------------------

OBSERVED, FEATURES = 40, 8
SIGNAL = np.array([1.0, 1.0])


def _inadequate(rng: np.random.Generator, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Copies of one thing, which the target has nothing to do with."""
    common = rng.normal(size=(examples, 1))
    return common + 0.2 * rng.normal(size=(examples, FEATURES)), rng.normal(size=examples) * np.sqrt(2)


def _random(rng: np.random.Generator, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent features, two of which make the target."""
    X = rng.normal(size=(examples, FEATURES))
    return X, X[:, :2] @ SIGNAL


def _redundant(rng: np.random.Generator, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Every feature is the target, but for a little noise of its own."""
    target = rng.normal(size=examples) * np.sqrt(2)
    return target[:, None] / np.sqrt(2) + 0.2 * rng.normal(size=(examples, FEATURES)), target


def _correlated(rng: np.random.Generator, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Four independent features, two of which make the target, and a copy of each."""
    X = rng.normal(size=(examples, 4))
    return np.concatenate([X, X + 0.2 * rng.normal(size=(examples, 4))], axis=1), X[:, :2] @ SIGNAL


Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
# Name -> what draws features [examples, 8] and a target without noise; the set that made it, where one set did; and the
# noise that the criteria are told of: what the features leave of the target.
CONFIGURATIONS: dict[str, tuple[Draw, tuple[int, ...] | None, float]] = {
    "inadequate, correlated": (_inadequate, (), float(np.hypot(np.sqrt(2), NOISE))),
    "adequate, random": (_random, (0, 1), NOISE),
    "adequate, redundant": (_redundant, None, NOISE),
    "adequate, correlated": (_correlated, (0, 1), NOISE),
}
TRIALS, NEW = 100, 1000


def configuration(name: str) -> dict[str, Any]:
    """All 256 sets of features, on data drawn again and again: what each criterion chooses and what it is worth."""
    draw, made, told = CONFIGURATIONS[name]
    rng = np.random.default_rng(7)
    models = [each for size in range(FEATURES + 1) for each in itertools.combinations(range(FEATURES), size)]
    rows: dict[str, list[Any]] = {criterion: [] for criterion in CRITERIA}
    for _ in range(TRIALS):
        X, target = draw(rng, OBSERVED)
        new, wanted = draw(rng, NEW)
        y = target + NOISE * rng.normal(size=OBSERVED)
        for criterion, (chosen, weights) in choose(X, y, models, told).items():
            error = np.mean((new @ weights - wanted) ** 2)
            condition = np.linalg.cond(X[:, list(chosen)]) ** 2 if chosen else 1.0
            rows[criterion].append((chosen, error, condition, weights))
    found = {}
    for criterion, each in rows.items():
        errors = np.array([error for _, error, _, _ in each])
        exact = sum(chosen == made for chosen, _, _, _ in each)
        found[criterion] = {
            "size": np.mean([len(chosen) for chosen, _, _, _ in each]),
            "exact": None if made is None else exact / TRIALS,
            "exact_interval": None if made is None else wilson_interval(exact, TRIALS),
            "error": errors.mean(),
            "interval": mean_of(errors).interval(),
            "spread": errors.std(ddof=1),
            "condition": np.median([condition for _, _, condition, _ in each]),
            "weights_spread": np.sqrt(np.mean(np.var([w for _, _, _, w in each], axis=0, ddof=1))),
            "often": [np.mean([feature in chosen for chosen, _, _, _ in each]) for feature in range(FEATURES)],
        }
    return found


# ----- a redundant parameter ------------------------------------------------------------------------------------------


def redundant_parameter() -> dict[str, Any]:
    """What removing a parameter does to the likelihood and to the evidence: a copy's, a useless one's, a needed one's.

    Features a, a copy of a but for `apart`, b that the target has nothing to do with, and c that it needs.
    """
    rng = np.random.default_rng(3)
    a, b, c = rng.normal(size=(3, OBSERVED))
    y = a + c + NOISE * rng.normal(size=OBSERVED)
    rows = []
    for apart in (0.0, 0.01, 0.1):
        X = np.stack([a, a + apart * rng.normal(size=OBSERVED), b, c], axis=1)
        whole = fit(X, y, NOISE).score
        for name, kept in (("copy", [0, 2, 3]), ("useless", [0, 1, 3]), ("needed", [0, 1, 2])):
            less = fit(X[:, kept], y, NOISE).score
            rows.append({
                "apart": apart, "removed": name,
                "likelihood": less["AIC"] + 3 - (whole["AIC"] + 4), "evidence": less["evidence"] - whole["evidence"],
                "ELBO": less["ELBO"] - whole["ELBO"],
            })  # fmt: skip
    return {"rows": rows}
