"""What `metaopt list` says of an entry."""

from __future__ import annotations

import pytest

from metaopt.cli.list import print_entry, print_listing
from metaopt.errors import UserError


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
