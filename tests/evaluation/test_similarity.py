"""The s-score: known values, its six requirements on drawn laws, samples against closed forms, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from metaopt.evaluation.similarity import Box, Gaussian, Samples, embedded, s_score


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (Gaussian(0, 1), Gaussian(10, 1e10), 1.0),
        (Gaussian(0, 1), Gaussian(5, 400), 0.96931),
        (Gaussian(0, 1), Gaussian(5, 1), 0.00193),
        (Box(0, 1), Box(0.5, 1.5), 0.5),
        (Box(0, 1), Box(0, 1), 1.0),
        (Box(0, 1), Box(2, 3), 0.0),
        (Box([0, 0], [1, 2]), Box([0.5, 0], [1.5, 9]), 0.5),
    ],
)
def test_known_values(first, second, expected):
    assert s_score(first, second).value == pytest.approx(expected, abs=5e-6)
    assert s_score(second, first).error == 0


# ----- the six requirements -----------------------------------------------------------------------------------------

numbers = st.floats(-20, 20)
widths = st.floats(0.05, 20)


@st.composite
def gaussians(draw, dim):
    root = np.array(draw(st.lists(st.floats(-3, 3), min_size=dim * dim, max_size=dim * dim))).reshape(dim, dim)
    covariance = root @ root.T + np.diag(draw(st.lists(widths, min_size=dim, max_size=dim)))
    return Gaussian(np.array(draw(st.lists(numbers, min_size=dim, max_size=dim))), covariance)


@st.composite
def boxes(draw, dim):
    low = np.array(draw(st.lists(numbers, min_size=dim, max_size=dim)))
    return Box(low, low + np.array(draw(st.lists(widths, min_size=dim, max_size=dim))))


@st.composite
def pairs(draw):
    """Two laws of one dimension; a box beside a Gaussian without correlations."""
    dim = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["gaussians", "boxes", "both"]))
    if kind == "both":
        gaussian = draw(gaussians(dim))
        return draw(boxes(dim)), Gaussian(gaussian.mean, np.diag(np.diag(gaussian.covariance)))
    law = gaussians if kind == "gaussians" else boxes
    return draw(law(dim)), draw(law(dim))


@settings(max_examples=100, deadline=None)
@given(pairs())
def test_it_is_defined_bounded_symmetric_and_largest_for_equal_laws(pair):
    """Requirements 1 (other supports: boxes, and a box beside a Gaussian), 2, 3, 4 and 6."""
    first, second = pair
    value = s_score(first, second).value
    assert 0 <= value <= 1 + 1e-12
    assert value == pytest.approx(s_score(second, first).value, rel=1e-9, abs=1e-12)
    assert s_score(first, first).value == pytest.approx(1.0) and value <= s_score(first, first).value + 1e-12


@settings(max_examples=100, deadline=None)
@given(pairs())
def test_a_law_that_says_little_is_like_any_other(pair):
    """Requirement 5: made wider about its own centre, it comes near to 1."""
    first, second = pair
    if isinstance(second, Gaussian):
        wide = Gaussian(second.mean, 1e8 * second.covariance)
    else:
        centre, half = (second.low + second.high) / 2, 500 * (second.high - second.low) + 500
        wide = Box(centre - half, centre + half)
    assert s_score(first, wide).value > 0.999


@settings(max_examples=30, deadline=None)
@given(boxes(1), gaussians(1))
def test_a_box_beside_a_gaussian_by_quadrature(box, gaussian):
    mean, deviation = gaussian.mean[0], gaussian.covariance[0, 0] ** 0.5
    half = (box.high - box.low)[0] / 2
    mass = quad(lambda w: norm.pdf(w, mean, deviation), box.low[0], box.high[0])[0]
    most = quad(lambda w: norm.pdf(w, 0, deviation), -half, half)[0]
    assert s_score(box, gaussian).value == pytest.approx(mass / most, rel=1e-5, abs=1e-9)


# ----- samples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "shift"), [(1, 0.0), (1, 1.0), (1, 2.0), (2, 1.0)])
def test_samples_agree_with_the_closed_form_within_their_error(dim, shift):
    mean = np.zeros(dim)
    laws = Gaussian(mean, np.eye(dim)), Gaussian(mean + shift, 0.5 * np.eye(dim))
    expected = s_score(*laws).value
    off = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        one, two = (Samples(rng.multivariate_normal(*law, size=400)) for law in laws)
        for pair in ((one, two), (one, laws[1])):
            found = s_score(*pair)
            assert 0 <= found.value <= 1
            assert shift == 0 or 0 < found.error < 0.2
            off.append((found.value - expected) / max(found.error, 0.01))
    assert np.abs(off).max() < 6 and np.sqrt(np.mean(np.square(off))) < 3  # of six


def test_samples_of_laws_of_two_parts():
    """g2 of two equal parts, one where g1 is: the difference is as dense at 0 as anywhere; between them it is not."""
    rng = np.random.default_rng(0)
    two = Samples(np.concatenate([rng.normal(0, 1, 400), rng.normal(20, 1, 400)])[rng.permutation(800)])
    assert s_score(Samples(rng.normal(0, 1, 400)), two).value > 0.7
    assert s_score(Samples(rng.normal(10, 1, 400)), two).value < 0.4
    near_a_box = s_score(Samples(rng.uniform(0.5, 1.5, 400)), Box(0, 1))
    assert near_a_box.value == pytest.approx(0.5, abs=0.12)


# ----- other dimensions -----------------------------------------------------------------------------------------------


def test_models_of_different_features():
    """A feature that one model leaves out is 0 there: what the other says of it is all that counts in it."""
    small, large = Gaussian(1.0, 0.5), Gaussian([1.0, 3.0], np.diag([0.5, 4.0]))
    apart = embedded(small, [0], 2)
    assert s_score(apart, large).value == pytest.approx(np.exp(-0.5 * 9 / 4))
    assert s_score(embedded(Box(0, 1), [1], 2), Box([-1, 0], [1, 1])).value == 1
    assert s_score(embedded(Box(0, 1), [1], 2), Box([1, 0], [2, 1])).value == 0
    unlike = s_score(embedded(small, [0], 2), embedded(Gaussian(3.0, 4.0), [1], 2))  # no feature in common
    assert unlike.value == pytest.approx(np.exp(-0.5 * (1 / 0.5 + 9 / 4)))
    assert s_score(embedded(Samples(np.zeros((30, 1)) + np.arange(30)[:, None]), [0], 2), large).value > 0


# ----- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (Gaussian(0, 1), Gaussian([0, 0], np.eye(2)), "of 1 and 2 parameters; put them into one space with `embedded`"),
        (Gaussian([0, 0], np.ones((2, 2))), Gaussian([0, 1], np.ones((2, 2))), "sum of two covariances is singular"),
        (Gaussian(0, 0), Gaussian(1, 0), "sum of two covariances is singular.*add a prior's variance"),
        (Gaussian(0, -1), Gaussian(0, 1), "eigenvalues of 0 or more; take the inverse of the Hessian"),
        (Gaussian([0, 0], [[1, 2], [0, 1]]), Gaussian([0, 0], np.eye(2)), "not symmetric"),
        (Gaussian([0, 0], 1.0), Gaussian([0, 0], np.eye(2)), r"do not fit; give \[d\], \[d, d\]"),
        (Gaussian(np.nan, 1), Gaussian(0, 1), "not finite; leave such runs out"),
        (Box(1, 0), Box(0, 1), "give low ≤ high"),
        (Box([0, 0], [1, 1]), Gaussian([0, 0], [[1, 0.5], [0.5, 1]]), "no closed form; give Samples"),
        (Samples(np.zeros(5)), Gaussian(0, 1), "20 or more"),
        (Samples(np.zeros(50)), Samples(np.zeros(50)), "do not vary"),
        ((0, 1), Gaussian(0, 1), "a tuple is no law"),
    ],
)
def test_refuses_with_a_remedy(first, second, message):
    with pytest.raises(ValueError, match=message):
        s_score(first, second)


def test_coordinates_have_to_fit():
    for coordinates in ([0], [0, 0], [0, 3], [-1, 0], [0, 1, 2]):
        with pytest.raises(ValueError, match="do not place 2 parameters among 3"):
            embedded(Gaussian([0, 0], np.eye(2)), coordinates, 3)
