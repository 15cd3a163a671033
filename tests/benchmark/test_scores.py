"""Scores against numbers by hand."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import optax
import pytest

from metaopt.benchmark import functions, running, scores
from metaopt.benchmark.suites import Entry

INF = "inf"


def record(test: bool = True, **ends: tuple[list, list]) -> dict:
    """Two tasks of bound 0 that start at 1; name -> (final losses, curve)."""
    optimizers = {}
    for name, (final, curve) in ends.items():
        held = {"final": final, "failed": [value == INF for value in final], "curve": curve, "steps": [0, 50, 100]}
        held["test"] = final if test else None
        if name != "learned":
            held["tuned"] = {"knows_horizon": True} if name == "told" else {}
        optimizers[name] = held
    return {"initial": [1.0, 1.0], "bound": [0.0, 0.0], "optimizers": optimizers}


WON = record(learned=([0.1, 0.4], [0, -1, -2]), adam=([0.4, 0.4], [0, -0.5, -0.9]), told=([0.1, 0.1], [0, -1, -3]))
LOST = record(test=False, learned=([0.5, INF], [0, 0, 0]), adam=([0.1, 0.1], [0, -1, -2]), told=([0.5, 0.5], [0, 0, 0]))


def test_ratios_are_geometric_means_over_tasks_and_a_failure_counts_ten_times_the_start() -> None:
    assert scores.ratio_to(WON, "learned", "adam") == pytest.approx(np.log(0.5), abs=1e-4)
    assert scores.ratio_to(LOST, "learned", "adam") == pytest.approx(np.log(np.sqrt(5 * 100)), abs=1e-4)
    assert scores.best_in(WON) == "told" and scores.best_in(WON, told=False) == "adam"


def test_one_optimizer_over_a_suite() -> None:
    found = scores.score({"won": WON, "lost": LOST}, "learned")
    assert (found.at_best.count, found.at_best_untold.count, found.at_best.of) == (0, 1, 2)
    assert found.lost == ("lost",) and found.failed == 0.25
    assert found.to_adam.mean == pytest.approx((np.log(0.5) + np.log(500) / 2) / 2, abs=1e-4)
    assert found.test.mean == pytest.approx(np.log(0.5), abs=1e-4)  # the other has no test split
    # The end of tuned Adam is passed half-way on the first, and never on the second.
    assert scores.score({"won": WON}, "learned").to_target == 0.5
    assert scores.score({"lost": LOST}, "learned").to_target == np.inf
    # What passes it and rises again has not reached it; what comes back has, where it stays.
    for curve, share in (([0, -1, -0.5], np.inf), ([-1, 0, -1], 1.0), ([-1, -1, -1], 0.0)):
        again = record(learned=([0.1, 0.1], curve), adam=([0.4, 0.4], [0, -0.5, -0.9]))
        assert scores.score({"again": again}, "learned").to_target == share
    low, high = found.at_best_untold.interval
    assert 0 < low < 0.5 < high < 1


def test_what_differs_by_rounding_is_a_tie() -> None:
    for factor, ties in ((1.0005, 1), (1.01, 0)):
        near = record(learned=([0.1 * factor] * 2, [0, -1, -2]), adam=([0.1, 0.1], [0, -1, -2]))
        found = scores.score({"near": near}, "learned")
        assert found.at_best.count == ties and len(found.lost) == 1 - ties


def test_a_record_tells_losses_near_a_bound_that_is_not_0_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many digits as float32 has: of fewer, what lies above the bound would be the rounding."""
    entry = Entry("thomson", "particles", functions.thomson)
    seen = []

    def evaluate(*args, **options):
        seen.append(evaluated(*args, **options))
        return seen[-1]

    evaluated = running.evaluate
    monkeypatch.setattr(running, "evaluate", evaluate)
    found = running.measure(entry, 50, MappingProxyType({"sgd": optax.sgd(0.01)}))
    np.testing.assert_array_equal(np.float32(found["optimizers"]["sgd"]["final"]), seen[0].loss["sgd"][:, -1])
    np.testing.assert_array_equal(np.float32(found["bound"]), seen[0].lower_bound)


@pytest.mark.parametrize(
    ("values", "mean"),
    [([1, 2, 3, 4], 2.5), ([9, 0, 1, 2, 3, 4, 5, 8], 3.5), ([0, 1, 5], (0.25 * 0 + 1 + 0.25 * 5) / 1.5)],
)
def test_the_interquartile_mean_takes_the_middle_half(values: list, mean: float) -> None:
    assert scores.interquartile_mean(np.array(values)) == pytest.approx(mean)


def test_profiles_and_joined_records() -> None:
    drawn = scores.profile({"won": WON, "lost": LOST}, ["learned", "adam"], np.array([1.0, 2.1, 30.0]))
    np.testing.assert_allclose(drawn["learned"], [0.5, 0.5, 1.0])
    np.testing.assert_allclose(drawn["adam"], [0.5, 1.0, 1.0])
    apart = {"initial": [1.0, 1.0], "bound": [0.0, 0.0], "optimizers": {"learned": WON["optimizers"]["learned"]}}
    both = scores.joined({"won": {"50": WON}, "other": {"50": WON}}, {"won": {"50": apart, "500": apart}}, 50)
    assert list(both) == ["won"] and both["won"]["optimizers"]["adam"] == WON["optimizers"]["adam"]
    assert scores.joined({}, {"lost": {"50": LOST}}, 50) == {"lost": LOST}


def test_other_tasks_are_known_by_where_they_begin() -> None:
    record = {"initial": [1.0, None]}
    assert scores.same_starts(record, {"initial": [1.0001, None]})
    assert not any(scores.same_starts(record, {"initial": other}) for other in ([1.01, None], [1.0], [1.0, 2.0]))
