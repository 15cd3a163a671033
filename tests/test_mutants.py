"""The mutants of scripts/mutants can be tried: their places are there once, their code compiles, their tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from tests.toys import script

ROOT = Path(__file__).resolve().parent.parent


MUTANTS = script("scripts/mutants")


def test_they_are_some_forty_of_every_operator_and_at_most_two_are_explained() -> None:
    names = [mutant.name for mutant in MUTANTS.MUTANTS]
    assert len(names) == len(set(names)) >= 40
    assert {mutant.operator for mutant in MUTANTS.MUTANTS} == {*MUTANTS.OPERATORS}
    assert sum(bool(mutant.survives) for mutant in MUTANTS.MUTANTS) <= 2


@pytest.mark.parametrize("mutant", MUTANTS.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_tried(mutant: Any) -> None:
    assert MUTANTS.stale(mutant) is None
    sound = (ROOT / mutant.file).read_text(encoding="utf-8")
    spoilt = sound.replace(mutant.old, mutant.new)
    compile(spoilt, mutant.file, "exec")
    assert ast.dump(ast.parse(spoilt)) != ast.dump(ast.parse(sound))
    for test in mutant.tests.split():
        file, _, function = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not function or re.search(rf"^def {re.escape(function)}\(", text, re.MULTILINE), test


def test_a_place_that_is_gone_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    first, other = MUTANTS.MUTANTS[:2]
    monkeypatch.setattr(MUTANTS, "MUTANTS", [first._replace(old="no such text"), other])
    monkeypatch.setattr("sys.argv", ["mutants"])
    assert MUTANTS.main() == 2
    told = capsys.readouterr().err
    assert told == f"{first.name} is stale: its old text is 0 times in {first.file}.\n"
    monkeypatch.setattr("sys.argv", ["mutants", "nobody"])
    assert MUTANTS.main() == 2 and "no mutant is called nobody; see --list." in capsys.readouterr().err
