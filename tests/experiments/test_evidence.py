"""The outer loop on a model of four structures, whose evidences are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.model_selection.evidence.outer import solve
from metaopt.tasks import elbo_structure, structure
from metaopt.tasks.generalising import Metaparameters, corner, even

NOISE, CORNERS = 1.0, structure.structures(2, 2)
LAW = {"shape": 2.0, "rate": 2.0}


def problem(law, weight=0.0, **changed):
    return Metaparameters(laws=law[None], struct=np.array([weight]), **LAW, **changed)


EVEN = (0.0, 0.3, 3.0, 300.0)
SWEEP = [
    *[problem(even(2, 2), weight) for weight in EVEN],
    *[problem(corner(each, 2), 10.0) for each in CORNERS],
    problem(even(2, 2), prior_l=0.0),
]


@pytest.fixture(scope="module")
def solved():
    family = elbo_structure(candidates=2, num_examples=20, noise=NOISE)
    task = family.sample(jax.random.key(1), ())
    begin = np.zeros((len(SWEEP), 2, 2), np.float32)
    begin[len(EVEN) : len(EVEN) + 4] = 0.5 * np.stack([corner(each, 2) for each in CORNERS])
    found, from_even = (
        solve(task, NOISE, SWEEP, outer_steps=120, inner_steps=30, begin=each) for each in (begin, 0 * begin)
    )
    assert np.all(found.value > from_even.value - 0.5)  # no better maximum was missed by where it began
    return task, found


def chances(found, index):
    """[edges, candidates] of the prior and of q."""
    return tuple(np.asarray(jax.nn.softmax(part["logits"][index])) for part in (found.hyper, found.params))


def test_the_evidence_bound_chooses_the_structure_of_the_largest_evidence(solved):
    task, found = solved
    evidence = structure.structure_evidence(task, CORNERS, jnp.ones((2, 2)), NOISE)
    best = CORNERS[int(jnp.argmax(evidence))]
    prior, q = chances(found, 0)
    np.testing.assert_array_equal(prior.argmax(-1), best)
    np.testing.assert_array_equal(q.argmax(-1), best)
    assert prior.max(-1).min() > 0.9
    # Of a candidate that is not used, q is the prior, and h* is where its law is largest: (λ1 + 1)/λ2.
    unused = found.hyper["precision"][0][np.arange(2), 1 - best]
    np.testing.assert_allclose(unused, 1.5, rtol=0.05)


def test_a_growing_weight_of_the_even_law_adds_structure(solved):
    _, found = solved
    largest = [chances(found, index)[0].max(-1).mean() for index in range(len(EVEN))]
    assert largest == sorted(largest, reverse=True) and largest[-1] < 0.51


def test_a_sweep_over_corners_visits_every_structure_and_is_exhaustive_search(solved):
    """Without its last terms Q is then the bound of each structure, in the order of their evidences."""
    task, found = solved
    bound, evidence = [], []
    for index, each in enumerate(CORNERS):
        at = len(EVEN) + index
        for part in chances(found, at):
            np.testing.assert_array_equal(part.argmax(-1), each)
            assert part.max(-1).min() > 0.99
        bound.append(found.fit[at] - found.divergence[at])
        precisions = jnp.asarray(found.hyper["precision"][at])
        evidence.append(float(structure.structure_evidence(task, each[None], precisions, NOISE)[0]))
    assert np.all(np.array(bound) < np.array(evidence) + 0.05)
    assert np.array_equal(np.argsort(bound), np.argsort(evidence))


def test_no_inner_prior_is_least_squares_of_the_chosen_structure(solved):
    task, found = solved
    params = jax.tree.map(lambda leaf: leaf[-1], found.params)
    gamma = chances(found, -1)[1]
    assert gamma.max(-1).min() > 0.9
    assert float(found.fit[-1]) >= max(float(value) for value in found.fit[:-1]) - 1e-3
    used = np.take_along_axis(np.asarray(structure.widths(params)), gamma.argmax(-1)[:, None], 1)
    assert used.max() < -4.5
