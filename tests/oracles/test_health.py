"""What particles say of themselves arrives: in metrics, on the console, on the page."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from metaopt import TASKS, choice
from metaopt.cli.train import train_with_everything
from metaopt.report.run_page import write_report
from metaopt.runs.metrics import grouped
from metaopt.tasks import latent_gaussian


@pytest.mark.parametrize("steep", [1e-3, 1e6])
def test_health_and_collapse_reach_metrics_console_and_page(tiny, tmp_path, rows, register, capsys, steep):
    """With a million times the energy all but one particle are out of the question as soon as θ moves."""
    family = latent_gaussian()
    law = family.law._replace(energy=lambda params, task, x: steep * family.law.energy(params, task, x))
    register(TASKS, "steep", lambda: dataclasses.replace(family, law=law, name="steep"))
    oracle = choice("sosmc", num_particles=20, kernel="random_walk")
    given = dataclasses.replace(tiny, tasks=(choice("steep"),), oracle=oracle)
    given = dataclasses.replace(given, validation=dataclasses.replace(given.validation, every=0))
    run = train_with_everything(given, tmp_path / "run", name="steep")
    trained = [row for row in rows(run) if row["kind"] == "train"]
    assert all(0 < row["oracle/ess"] <= 1 and row["oracle/energy_gradients"] == 0 for row in trained)
    # Dashboards (wandb, trackio, TensorBoard) show rows by these names.
    shown, held = ({name for name in row if name.startswith("oracle/")} for row in (grouped(trained[-1]), trained[-1]))
    assert shown == held >= {"oracle/ess", "oracle/acceptance", "oracle/collapsed"}
    page = re.sub(r"\s+", " ", write_report(run).read_text())
    assert "The oracle's particles" in page and "energy gradients" in page
    # Its gradients come without values, and evaluations take them too.
    assert all(row["meta_loss"] is None and row["last_loss"] is None for row in trained)
    (result,) = json.loads((run / "evaluation.json").read_text())["results"]
    assert result["oracle"] == str(oracle) and "Gradients are those of the oracle" in page
    collapsed, said = any(row["oracle/collapsed"] > 0 for row in trained), capsys.readouterr()
    assert collapsed == (steep > 1) and "loss unknown" in said.out + said.err
    assert ("Particles collapsed in" in page) == collapsed == ("particles collapsed in" in said.out + said.err)
    assert ("They collapsed nowhere" in page) == (not collapsed)
