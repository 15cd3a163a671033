"""What `metaopt list` says of an entry."""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal, get_args, get_origin

import pytest

from metaopt.choices import hints_of
from metaopt.cli.list import print_entry, print_listing
from metaopt.errors import UserError
from metaopt.registry import REGISTRIES


def test_an_entry_shows_its_options_with_defaults_and_values(capsys):
    print_entry("lstm")
    text = capsys.readouterr().out
    assert "features=scale_free  gradient | all | scale_free" in text
    assert "alpha_bias=none  number | none" in text
    print_entry("reparameterised")
    text = capsys.readouterr().out
    assert "state_gradient=full  full | stopped" in text
    assert "num_tasks" not in text  # a field of the experiment
    print_entry("quadratic")
    text = capsys.readouterr().out
    assert "every task family also takes" in text and "bfloat16=0.0  number" in text
    print_entry("quadratic_rl")
    text = capsys.readouterr().out
    assert text.startswith("experiment quadratic_rl: The thesis's") and "estimator: reparameterised" in text
    with pytest.raises(UserError, match="did you mean 'classifier'"):
        print_entry("classifer")


def test_the_listing_names_every_registry(capsys):
    print_listing()
    text = capsys.readouterr().out
    for word in ("digits_rl", "rosenbrock", "rnnprop", "truncated_backprop", "exact"):
        assert f"  {word} " in text


@pytest.mark.parametrize("kind", [registry.kind for registry in REGISTRIES])
def test_values_that_an_option_is_said_to_take_are_values_that_it_takes(kind: str) -> None:
    (registry,) = (registry for registry in REGISTRIES if registry.kind == kind)
    entries = {name for one in REGISTRIES for name in one}
    for name in registry:
        factory = registry.entry(name).factory
        doc, options = inspect.getdoc(factory) or "", inspect.signature(factory).parameters
        taken = {option: _values(hint) for option, hint in hints_of(factory).items()}
        known = {*entries, *options, *(value for values in taken.values() for value in values)}
        for option, values in taken.items():
            said = re.search(rf"^ +(?:\w+, )*{option}(?:, \w+)*: (.*?)(?=^ +\w[\w, ]*: |\n\n|\Z)", doc, re.S | re.M)
            if values and said:
                assert set(re.findall(r"`([a-z_0-9]+)`", said[1])) <= known, f"{kind} {name}: {option}"


def _values(hint: Any) -> set[str]:
    literals = [each for each in (hint, *get_args(hint)) if get_origin(each) is Literal]
    return {str(value) for each in literals for value in get_args(each)}
