"""The slides' theorem of the criteria that do not generalise: for each, on one small example, what it cannot be.

A problem generalises if it has metaparameters at which it is the likelihood (condition 5), at which of two models of
equal likelihood the simpler wins (6), at which it is the evidence (7), and if its optimum is continuous in them (3).
Thirty observations with noise of 1 and three orthogonal features of mean square 1: least squares give them 1, .32
and exactly 0. Models are sets of features, weights have the prior N(0, 1).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

EXAMPLES, WEIGHTS, PRECISION = 30, np.array([1.0, 0.32, 0.0]), 1.0
LEAST_LOG_SCALE = -6.0  # of q, as in the families
MODELS = [chosen for size in range(4) for chosen in itertools.combinations(range(3), size)]
DATA = EXAMPLES * PRECISION  # what the data add to a weight's precision
SMALL, LARGE, REDUNDANT = (0,), (0, 1), (0, 1, 2)


def example() -> tuple[np.ndarray, np.ndarray]:
    """X [30, 3] with orthogonal columns, and y [30] whose residuals are orthogonal to them."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(EXAMPLES, 4)))
    X = np.sqrt(EXAMPLES) * q[:, :3]
    return X, X @ WEIGHTS + np.sqrt(EXAMPLES) * q[:, 3]


def log_likelihood(residual: np.ndarray) -> float:
    return float(-0.5 * (PRECISION * residual @ residual + len(residual) * np.log(2 * np.pi / PRECISION)))


def likelihood(chosen: tuple[int, ...]) -> float:
    """max_w log p(y|X, w)."""
    X, y = example()
    return log_likelihood(y - X[:, chosen] @ WEIGHTS[list(chosen)])


def evidence(chosen: tuple[int, ...], prior: float = 1.0) -> float:
    """log p(y|X) with prior precisions `prior`; the bound's maximum too, for the posterior is diagonal."""
    _, y = example()
    w = WEIGHTS[list(chosen)]
    return log_likelihood(y) + float(np.sum(0.5 * (np.log(prior / (prior + DATA)) + (DATA * w) ** 2 / (prior + DATA))))


def posterior(chosen: tuple[int, ...], prior: float) -> float:
    """max_w log p(y|X, w) p(w|prior)."""
    X, y = example()
    w = DATA * WEIGHTS[list(chosen)] / (DATA + prior)
    return log_likelihood(y - X[:, chosen] @ w) + float(np.sum(0.5 * (np.log(prior / (2 * np.pi)) - prior * w**2)))


def held_out(chosen: tuple[int, ...]) -> float:
    """Σ_i log p(y_i|x_i, w of the others), w at the maximum of the posterior."""
    X, y = example()
    hat = X[:, chosen] @ X[:, chosen].T / (DATA + 1.0)
    return log_likelihood((y - hat @ y) / (1 - np.diagonal(hat)))


def information(chosen: tuple[int, ...], price: float) -> float:
    """The textbooks' AIC (price 1) and BIC (½ log N), halved and signed so that more is better."""
    return likelihood(chosen) - price * len(chosen)


# ----- AIC and BIC as the slides have them ----------------------------------------------------------------------------


def divergence(mean: np.ndarray, log_scale: np.ndarray) -> np.ndarray:
    """KL(N(mean, scale²)‖N(0, 1))."""
    return 0.5 * (mean**2 + np.exp(2 * log_scale) - 1) - log_scale


def counted(threshold: float, price: float, *, below: bool) -> tuple[float, float]:
    """(mean, log scale) of q of the weak weight that maximises E_q log p - price·1{KL < threshold}.

    Args:
      below: as printed; False: 1{KL > threshold}, a weight counts if the data have moved it.
    """
    mean, log_scale = np.meshgrid(np.linspace(0, 1, 501), np.linspace(LEAST_LOG_SCALE, 0, 601), indexing="ij")
    fit = -0.5 * DATA * ((mean - WEIGHTS[1]) ** 2 + np.exp(2 * log_scale))
    apart = divergence(mean, log_scale)
    value = fit - price * ((apart < threshold) if below else (apart > threshold))
    best = np.unravel_index(np.argmax(value), value.shape)
    return float(mean[best]), float(log_scale[best])


def jump(price: float, *, below: bool) -> dict[str, Any]:
    """Where q's optimum is not continuous in λ: the threshold, and q on its two sides, by bisection."""
    # Between these the optimum goes from keeping to its side of the threshold to paying, or back.
    free = float(divergence(WEIGHTS[1], np.array(LEAST_LOG_SCALE)))
    low, high = (free + 0.01, free + 2.0) if below else (0.05, free - 0.01)
    paid = (WEIGHTS[1], LEAST_LOG_SCALE)

    def pays(threshold: float) -> bool:
        return bool(np.allclose(counted(threshold, price, below=below), paid, atol=5e-3))

    at_low = pays(low)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if pays(middle) == at_low else (low, middle)
    return {"threshold": high, "before": counted(low, price, below=below), "after": counted(high, price, below=below)}


# ----- the theorem ----------------------------------------------------------------------------------------------------


def theorem() -> list[dict[str, Any]]:
    """A row for each criterion: the condition that it misses, and the numbers that show it."""
    gain = likelihood(LARGE) - likelihood(SMALL)
    bayes = evidence(LARGE) - evidence(SMALL)
    useless = evidence(REDUNDANT) - evidence(LARGE)
    priors = {str(prior): posterior(LARGE, float(prior)) for prior in ("1", "1e4", "1e8", "1e12")}
    slide = {
        name: {form: jump(price, below=form == "printed") for form in ("printed", "meant")}
        for name, price in (("AIC", 1.0), ("BIC", 0.5 * np.log(len(WEIGHTS))))
    }
    rows: list[dict[str, Any]] = [
        {"criterion": "likelihood", "misses": [6, 7], "gain": gain, "bayes": bayes,
         "tie": likelihood(REDUNDANT) - likelihood(LARGE), "useless": useless},
        {"criterion": "posterior", "misses": [7], "at": priors,
         "evidence": {prior: evidence(LARGE, float(prior)) for prior in priors}},
        {"criterion": "ELBO", "misses": [5], "bayes": bayes, "gain": gain},
        {"criterion": "cross-validation", "misses": [7], "held_out": held_out(LARGE) - held_out(SMALL), "bayes": bayes},
        {"criterion": "AIC", "misses": [3], **slide["AIC"]},
        {"criterion": "BIC", "misses": [3], **slide["BIC"]},
        {"criterion": "enumeration", "misses": [3, 7],
         "best": list(max(MODELS, key=likelihood)), "evidence_best": list(max(MODELS, key=evidence))},
    ]  # fmt: skip
    return rows
