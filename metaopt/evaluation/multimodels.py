"""Multimodels judged by the s-score: adequacy, merging of experts, and which runs ended in the same model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import chdtri

from metaopt.evaluation.similarity import Gaussian, checked, dim_of, statistic
from metaopt.tasks.expectation_maximisation import em
from metaopt.tasks.mixture import Mixture, Rows
from metaopt.types import Params


class Adequacy(NamedTuple):
    """Which of several laws are told apart."""

    scores: np.ndarray  # [laws, laws] s
    threshold: float  # s at or below which two are told apart at level α: exp(-½ χ²_{d, 1-α})
    adequate: bool  # every pair is told apart: the multimodel is (s, α)-adequate
    groups: tuple[tuple[int, ...], ...]  # of laws no two of which are told apart; where all are, one each


def adequacy(laws: Sequence[Gaussian], alpha: float = 0.05) -> Adequacy:
    """Tests each pair: under equal parameters, estimated independently, -2 log s ~ χ²_d, and α is the test's level.

    That level is not kept by the experts of one mixture: which objects are whose was found on the same data, and
    experts that share one line are told apart far too often (experiments/model_selection/multimodels); what is not told
    apart can be merged all the same. No correction is made for the number of pairs. Groups come from complete linkage.

    Raises:
      ValueError: α outside (0, 1); no laws, laws that are not Gaussian or not of one dimension; a singular sum.
    """
    check_alpha(alpha)
    every = _gaussians(laws)
    statistics = np.zeros((len(every), len(every)))
    for i, first in enumerate(every):
        for j in range(i):
            statistics[i, j] = statistics[j, i] = statistic(first, every[j])
    least = float(chdtri(dim_of(every[0]), alpha))
    apart = statistics[np.triu_indices(len(statistics), 1)] >= least
    scores = np.exp(-0.5 * statistics)
    return Adequacy(scores, float(np.exp(-0.5 * least)), bool(apart.all()), _groups(statistics, least))


def _gaussians(laws: Sequence[Gaussian]) -> list[Gaussian]:
    every = [checked(law) for law in laws]
    if not every:
        raise ValueError("there are no laws; give one Gaussian for each expert.")
    gaussians = [law for law in every if isinstance(law, Gaussian)]
    if len(gaussians) < len(every):
        raise ValueError("the test's level is known of Gaussians; give Gaussian(mean, covariance) of the samples.")
    return gaussians


def _groups(statistics: np.ndarray, least: float) -> tuple[tuple[int, ...], ...]:
    if len(statistics) == 1:
        return ((0,),)
    # Here, since whoever imports an evaluation would wait for it.
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    finite = np.minimum(statistics, 1e300)
    tree = linkage(squareform(finite, checks=False), "complete")
    labels = fcluster(tree, np.nextafter(least, 0), "distance")
    found = [tuple(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)]
    return tuple(sorted(found))


def check_alpha(alpha: float) -> None:
    """Refuses a level outside (0, 1).

    Raises:
      ValueError: with the remedy.
    """
    if isinstance(alpha, bool) or not 0 < alpha < 1:
        raise ValueError(f"`alpha` ({alpha}) must lie between 0 and 1, both excluded; 0.05 is usual.")


def merged(laws: Sequence[Gaussian]) -> Gaussian:
    """One law for what several say of the same parameters: the normalised product of their densities.

    That of their samples together where the priors say little; a prior that each has counts as often.

    Raises:
      ValueError: no laws, or some that are certain of the same parameter.
    """
    whole, *others = _gaussians(laws)
    for law in others:
        statistic(whole, law)  # refuses a singular sum
        share = np.linalg.solve(whole.covariance + law.covariance, whole.covariance).T  # Σ1 (Σ1 + Σ2)⁻¹
        covariance = share @ law.covariance
        whole = Gaussian(whole.mean + share @ (law.mean - whole.mean), (covariance + covariance.T) / 2)
    return whole


def expert_laws(
    mixture: Mixture, params: Params, rows: Rows, information: Literal["observed", "complete"] = "observed"
) -> list[Gaussian]:
    """Laplace's law of each expert's coefficients, given gate, noise and prior means.

    Args:
      information: `observed`: from the Hessian of -log p(y, W | X, V) in all experts, which knows that no object's
        expert is known, and is positive near a maximum alone; `complete`: as if the responsibilities were known
        weights, β Xᵀ R_k X + a I, always positive, and too certain where experts overlap.

    Raises:
      ValueError: the Hessian is not positive; another word.
    """
    if information not in ("observed", "complete"):
        raise ValueError(f"`information` is {information!r}; give observed or complete.")
    experts = np.asarray(params["experts"], np.float64)
    K, n = experts.shape
    if information == "complete":
        X, r = (np.asarray(part, np.float64) for part in (rows.X, mixture.responsibilities(params, rows)))
        beta = float(np.exp(np.asarray(mixture.log_beta(params), np.float64)))
        precisions = beta * np.einsum("ik,ip,iq->kpq", r, X, X) + mixture.prior_precision * np.eye(n)
        return [Gaussian(mean, np.linalg.inv(precision)) for mean, precision in zip(experts, precisions, strict=True)]
    hessian = _hessian(mixture, params, rows)
    precision = np.asarray(hessian, np.float64).reshape(K * n, K * n)
    precision = (precision + precision.T) / 2
    # A direction in which less than a tenth of the prior is left is no maximum but a ridge, and no law at all.
    if not np.isfinite(precision).all() or np.linalg.eigvalsh(precision).min() <= 0.1 * mixture.prior_precision:
        raise ValueError(
            "the Hessian in the experts is not positive: this is no maximum. Run on, or take information='complete'."
        )
    covariance = np.linalg.inv(precision).reshape(K, n, K, n)
    return [Gaussian(experts[k], covariance[k, :, k]) for k in range(K)]


@functools.partial(jax.jit, static_argnames="mixture")
def _hessian(mixture: Mixture, params: Params, rows: Rows) -> jax.Array:
    """[K, inputs, K, inputs] of -log p(y, W | X, V)."""
    count = rows.X.shape[0]

    def loss(experts: jax.Array) -> jax.Array:
        return count * mixture.loss({**params, "experts": experts}, rows, count)

    return jax.hessian(loss)(params["experts"])


def prune(
    mixture: Mixture, params: Params, rows: Rows, *, alpha: float = 0.05, steps: int = 100
) -> tuple[Mixture, Params]:
    """Merges experts that are not told apart at level α and goes on with EM, until the multimodel is (s, α)-adequate.

    An expert without objects is as wide as its prior, contradicts nothing, and goes too. The laws are those of the
    observed information, or of the complete where that is not positive. A partition tears one line's objects apart into
    those above and below, and the test, which takes the parts as given, says that these differ: prune a mixture.

    Args:
      params: from which EM begins.
      steps: of EM, before each test.

    Returns:
      The mixture, of one expert if need be, and its parameters.

    Raises:
      ValueError: α outside (0, 1); more experts than rows.
    """
    check_alpha(alpha)
    while True:
        params, _ = _em(mixture, params, rows, steps=steps)
        try:
            laws = expert_laws(mixture, params, rows)
        except ValueError:
            laws = expert_laws(mixture, params, rows, "complete")
        groups = adequacy(laws, alpha).groups
        if len(groups) == mixture.num_experts:
            return mixture, params
        mixture, params = _merged_experts(mixture, params, laws, groups)


_em = jax.jit(em, static_argnames=("mixture", "steps"))


def _merged_experts(
    mixture: Mixture, params: Params, laws: Sequence[Gaussian], groups: Sequence[tuple[int, ...]]
) -> tuple[Mixture, Params]:
    """An expert a group, from which EM goes on."""
    join = np.zeros((len(groups), mixture.num_experts), np.float32)
    for row, group in enumerate(groups):
        join[row, list(group)] = 1 / len(group)
    experts = [merged([laws[k] for k in group]).mean for group in groups]
    new = dict(params) | {"experts": jnp.asarray(np.stack(experts), params["experts"].dtype)}
    if "means" in params:
        new["means"] = join @ params["means"]
    if "weights" in params:
        new["weights"] = jnp.log(jnp.sign(join) @ jax.nn.softmax(params["weights"]))
    if "gate" in params:
        new["gate"] = params["gate"] | {"V1": params["gate"]["V1"] @ join.T}
    if len(groups) == 1:
        for name in ("gate", "weights"):
            new.pop(name, None)
    gate = mixture.gate if len(groups) > 1 else "constant"
    return dataclasses.replace(mixture, num_experts=len(groups), gate=gate), new


class SameModels(NamedTuple):
    """Which runs ended in the same model."""

    names: tuple[str, ...]
    scores: np.ndarray  # [runs, runs]
    groups: tuple[tuple[str, ...], ...]


def same_models(runs: Mapping[str, Sequence[Gaussian]], alpha: float = 0.05) -> SameModels:
    """Groups runs whose models are not told apart at level α, whatever the order of their experts.

    Each run is a list of laws, one an expert, or one law in all. Experts are matched so that the scores' product is
    largest, and -2 log of that is compared with χ² of all their parameters together. Runs on one sample are not
    independent, so this asks whether they differ by more than the sample leaves open, and its level is below α.

    Raises:
      ValueError: as in `adequacy`, which each run's laws have to suit.
    """
    from scipy.optimize import linear_sum_assignment  # as in `_groups`

    check_alpha(alpha)
    names = tuple(runs)
    if not names:
        raise ValueError("there are no runs; give name -> laws.")
    laws = [_gaussians(runs[name]) for name in names]
    statistics = np.zeros((len(names), len(names)))
    far = statistics.copy()  # over the threshold of the pair, in units of it
    for i, first in enumerate(laws):
        for j, second in enumerate(laws[:i]):
            if len(first) == len(second):
                pairs = np.array([[statistic(one, two) for two in second] for one in first])
                statistics[i, j] = pairs[linear_sum_assignment(pairs)].sum()
            else:
                statistics[i, j] = np.inf
            statistics[j, i] = statistics[i, j]
            far[j, i] = far[i, j] = statistics[i, j] / chdtri(sum(map(dim_of, first)), alpha)
    groups = _groups(far, 1.0)
    return SameModels(names, np.exp(-0.5 * statistics), tuple(tuple(names[i] for i in group) for group in groups))
