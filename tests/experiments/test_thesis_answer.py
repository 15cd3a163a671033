"""What the thesis's page says first: planted effects of the three ingredients are found, each apart from the others."""

import itertools

import numpy as np
import pytest

from experiments.thesis import answer
from experiments.thesis.answer import FACTORS, arm_of, in_short, main_effect, pairs
from experiments.thesis.arms import STUDIES
from tests.experiments.test_thesis_claims import normal, study

EFFECTS = {"step length": 1.0, "state gradient": -0.5, "noise": 0.0}  # of the RL model's level, on the log of losses
TESTS = ["one", "two"]


def planted(name: str = "quadratic") -> dict:
    laws = {}
    for levels in itertools.product(*FACTORS.values()):
        mean = sum(
            effect * (level == FACTORS[factor][0])
            for (factor, effect), level in zip(EFFECTS.items(), levels, strict=True)
        )
        laws[arm_of(levels)] = normal(mean)
    laws |= {"adam@10": normal(-3.0)}
    return study(name, TESTS, laws, lost={"cross/direct,stopped,none": np.arange(5) < 2})


def test_arms_of_the_combinations_are_those_that_are_run() -> None:
    named = {arm_of(levels) for levels in itertools.product(*FACTORS.values())}
    assert {"rl", "bp"} < named
    assert named <= {arm.name for arm in STUDIES["quadratic"].arms}


@pytest.mark.parametrize("factor", FACTORS)
def test_pairs_differ_in_one_ingredient(factor: str) -> None:
    def levels(arm: str) -> tuple[str, ...]:
        return {"rl": answer.RL, "bp": answer.BP}.get(arm) or tuple(arm.removeprefix("cross/").split(","))

    at = list(FACTORS).index(factor)
    assert len(set(itertools.chain(*pairs(factor)))) == 8
    for first, second in pairs(factor):
        assert [a != b for a, b in zip(levels(first), levels(second), strict=True)] == [k == at for k in range(3)]
        assert (levels(first)[at], levels(second)[at]) == FACTORS[factor]


@pytest.mark.parametrize(("name", "tasks"), [("quadratic", TESTS[:1]), ("networks_digits", TESTS)])
def test_each_effect_is_found_apart_from_the_others(name: str, tasks: list[str]) -> None:
    record = planted(name)
    raw = record["raw"]
    whole = raw.runs["cross/direct,stopped,none"]
    for test in TESTS:  # failures have an effect of their own, which is not the planted one
        whole[test]["failed_10"][:] = False
    for factor, effect in EFFECTS.items():
        found = main_effect(record, factor, tasks)
        assert abs(found.mean - effect) < 4 * found.error
        assert found.error < 0.25


def test_the_answer_is_in_words_and_says_who_is_ahead() -> None:
    text = "\n".join(in_short({"quadratic": planted()}))
    assert "ends lower than both models in 2 of the 2" in text  # the tuned baseline
    assert "| RL ends |" in text and "higher" in text
    rows = [line for line in text.splitlines() if line.startswith("| noise: noise / none")]
    assert len(rows) == len(TESTS)
    assert "10%" in rows[0]  # lost: of four combinations one loses two seeds of five
    assert "not been run" in "\n".join(
        in_short({"quadratic": study("quadratic", TESTS, {"rl": normal(0.0), "bp": normal(0.0)})})
    )
    assert list(in_short({})) == ["Nothing has been run yet."]
