"""The reproduction of the thesis: its arms, its queue, its page, and that every figure's experiment stands."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.thesis import answer, arms, choices, claims, raw, steps, work, write
from experiments.thesis.arms import EXACT, PICKS, REMEDY, RIVAL, STUDIES, Arm, Study, figure, picked
from experiments.thesis.collect import collect
from experiments.thesis.describe import described
from experiments.thesis.folders import phi_file, work_folder
from experiments.thesis.raw import Raw
from experiments.thesis.write import read_results
from metaopt.choices import choice
from metaopt.experiment.checks import validate
from metaopt.optimizers.lstms import lstm
from metaopt.shipped.loading import read_optimizer
from metaopt.training.loop import meta_train
from metaopt.training.trainer import Trainer
from metaopt.training.validation import Validator
from tests.toys import TINY, script


def test_remedies_stand_beside_the_model_and_decide_no_choice() -> None:
    """On runs made up: of two seeds of `rl` one runs off, of the remedy's none, which costs a tenth at the horizon."""
    start, ones = np.ones(3), np.ones((2, 3))

    def runs(at_1: float, at_10: Any, failed: Any) -> dict[str, np.ndarray]:
        lost = np.broadcast_to(np.array(failed)[:, None], (2, 3))
        none = np.zeros((2, 3), bool)
        words = {"failed_1": none, "rises_1": none, "failed_10": lost, "rises_10": none}
        return {"loss_1": at_1 * ones, "loss_10": np.array(at_10)[:, None] * ones, **words}

    held = {"rl": {"t": runs(0.1, [0.01, 5.0], [False, True])}}
    held["rl/remedy=windows"] = {"t": runs(0.11, [0.01, 0.01], [False, False])}
    kept = Raw({"t": {"initial": start, "bound": 0 * start}}, held)
    arms = {name: {"seeds": 2, "pick": "last"} for name in held}
    record = {"study": "one", "arms": arms, "raw": kept, "tests": [{"task": "t"}]}
    lines = list(write._beside({"one": record}, *answer.REMEDIES))
    assert len(lines) == 4 and "| t | rl | 2 | 50% [" in lines[2] and "| rl/remedy=windows | 2 | 0 [0, " in lines[3]
    assert "| 1.1 [" in lines[3]
    # The last seed failed and counts with ten times its start: a ratio of .01 to the mean of .01 and 10 in logarithms.
    assert f"| {(0.01 / 10) ** 0.5:.2g} [" in lines[3]
    assert lines[3].endswith("| undecided |")
    (said,) = answer.beside_in_short({"one": record}, *answer.REMEDIES)
    assert said.startswith("Of 1 pairs of arm and family 0 end lower than rl at ten times the horizon, 0 higher")
    for show in (write._beside, answer.beside_in_short):
        assert list(show({"one": {**record, "arms": {"rl": arms["rl"]}}}, *answer.REMEDIES)) == ["Not run yet."]
    held |= {
        "bp": {"t": runs(0.2, [0.1, 0.1], [False, False])},
        "bp/rival=adam": {"t": runs(0.1, [0.02] * 2, [False] * 2)},
    }
    both = {"one": {**record, "arms": {name: {"seeds": 2, "pick": "last"} for name in held}}}
    lines = list(write._beside(both, *answer.RIVALS))
    assert [line.split(" | ")[1] for line in lines[2:]] == ["bp", "rl", "bp/rival=adam"]
    assert "| 0.5 [" in lines[4] and "| 0.2 [" in lines[4] and lines[4].endswith("| lower |")
    assert lines[3].endswith("|  |")  # the two models are judged elsewhere
    said, _, *told = answer.beside_in_short(both, *answer.RIVALS)
    assert said.startswith("Of 1 pairs of arm and family 1 end lower than bp") and told[2:] == lines[4:]


def test_every_arm_is_a_sound_experiment_of_its_own() -> None:
    for study in STUDIES.values():
        names = [arm.name for arm in study.arms]
        assert len(set(names)) == len(names) and {"rl", "bp"} <= set(names)
        for arm in study.arms:
            experiment = validate(arm.experiment)
            window = experiment.unroll_length if REMEDY in arm.name else experiment.horizon
            assert (RIVAL in arm.name) == (experiment.optimizer.name != "lstm")
            assert (window or experiment.horizon) == study.horizon
            assert arm.seeds >= 3 or study.name == "networks_fashion_mnist"
    for name in ("quadratic", "linear_regression", "networks_cross"):
        known = {arm.name: arm.experiment for arm in STUDIES[name].arms}
        for model in ("rl", "bp"):
            one = known[f"{model}/{EXACT}"]
            assert one.num_tasks == 1 and one.optimizer.options["s_form"] == "printed" and one.unroll_length is None
        assert known[f"rl/{EXACT}"].estimator.options == {"state_gradient": "stopped"}
        assert known[f"rl/{EXACT}"].optimizer.options["noise"] == "per_step"
    # All eight corners of step rule × meta-gradient × noise.
    corners = {
        (
            arm.experiment.optimizer.options["step_rule"],
            arm.experiment.estimator.options.get("state_gradient", "full"),
            arm.experiment.optimizer.options.get("noise", "none"),
        )
        for arm in STUDIES["quadratic"].arms
        if arm.name in ("rl", "bp") or arm.name.startswith("cross/")
    }
    assert len(corners) == 8


@pytest.mark.parametrize("number", range(3, 9))
@pytest.mark.parametrize("model", ["rl", "bp"])
def test_each_figure_has_an_experiment_for_each_model(number: int, model: str) -> None:
    experiment = validate(figure(f"figure{number}_{model}"))
    assert experiment.num_meta_steps == 2000
    assert experiment.horizon == (100 if number < 7 else 50)
    assert experiment.optimizer.options["step_rule"] == {"rl": "direct", "bp": "recursive"}[model]
    assert max(experiment.evaluation.horizons) == {5: 100, 7: 500, 8: 500}.get(number, 1000)


@pytest.mark.parametrize("rule", ["direct", "recursive"])
def test_lengths_go_on_with_the_inputs_held_as_the_optimizer_s_own_would(rule: Literal["direct", "recursive"]) -> None:
    optimizer = lstm(step_rule=rule, features="gradient", initial_alpha="median")
    phi = optimizer.init(jax.random.key(1))
    size = 0.3 if rule == "direct" else 0.03  # a recursion multiplies its factors
    phi = jax.tree.map(lambda leaf: leaf + size * jax.random.normal(jax.random.key(2), leaf.shape), phi)
    # With the gradient as its only input, the optimizer itself can be fed the same gradients again.
    horizon, tasks, dim = 30, 2, 5
    gradients = jax.random.normal(jax.random.key(3), (horizon, tasks, dim))
    assert optimizer.bind_tasks is not None
    tx = optimizer.bind_tasks(phi)
    state, own = tx.init(gradients[0]), []
    update = jax.jit(tx.update)
    for index in range(steps.BEYOND * horizon):
        repeated = horizon - steps.HELD + (index - horizon) % steps.HELD
        step, state = update(gradients[index if index < horizon else repeated], state)
        own.append(jnp.linalg.norm(step, axis=1))
    held = steps.held_lengths(phi, gradients[..., None], own[horizon - 1])
    np.testing.assert_allclose(held, jnp.stack(own[horizon:]), rtol=2e-3)
    assert np.ptp(np.log(held)) > 0.1  # it does move


def test_the_page_says_what_the_records_say() -> None:
    records = write.read_results()
    if not records:
        pytest.skip("no results are committed")
    page = (write.THESIS / "README.md").read_text()
    assert page == write.pages(records)["README.md"]
    assert (write.THESIS / "SUMMARY.md").read_text(encoding="utf-8") == write.pages(records)["SUMMARY.md"]


def test_the_defaults_are_those_that_the_ablation_chose() -> None:
    found = choices.chosen(choices.weigh(write.for_choices(read_results())))
    defaults = {name: parameter.default for name, parameter in inspect.signature(lstm).parameters.items()}
    assert {name: found[name] for name in choices.DEFAULTS} == {name: defaults[name] for name in choices.DEFAULTS}


def test_choices_are_weighed_where_nothing_else_differs() -> None:
    def arm(mean: float, failed: float, seeds: int = 3, **options: str) -> dict[str, Any]:
        options = {"features": "all", "noise": "none", **options}
        config = {
            "optimizer": {"options": options},
            "estimator": {"options": {}},
            "unroll_length": None,
            "num_tasks": 1,
        }
        at = {"10": {"per_seed": {"mean": [mean, mean, 100.0][:seeds], "failed": [failed, failed, 0.0][:seeds]}}}
        return {"config": config, "use": {}, "seeds": seeds, "tests": {"a": {"at": at}}}

    arms = {
        "base": arm(1.0, 0.0),
        "lower": arm(0.5, 0.0, seeds=2, features="gradient"),  # against the base's first two seeds
        "near": arm(0.95, 0.04, alpha="per_coordinate"),
        "fails": arm(0.1, 0.5, normalisation="rms"),
        "both": arm(0.1, 0.0, features="scale_free", s_form="printed"),
    }
    found = {(one.choice, one.other): one for one in choices.weigh({"study": {"arms": arms}})}
    assert set(found) == {("features", "gradient"), ("alpha", "per_coordinate"), ("normalisation", "rms")}
    assert found["features", "gradient"].better == ["lower on a"]
    assert found["alpha", "per_coordinate"].alike and found["normalisation", "rms"].worse
    assert choices.chosen(list(found.values()))["features"] == "gradient"
    found["features", "gradient"].worse.append("elsewhere")  # better once for each time worse
    found["features", "gradient"].better.append("there")
    assert choices.chosen(list(found.values()))["features"] == "all"


@pytest.fixture(scope="module")
def queue() -> Any:
    return script("experiments/thesis/reproduce")


def test_parts_that_take_the_phi_of_others_come_after_them(queue: Any) -> None:
    named = queue.parts(["after/variance", "quadratic/rl", "linear_regression"])
    assert named[0] == ("quadratic", "rl") and named[-1] == ("after", "variance")
    everything = queue.parts([])
    assert everything[0] == ("quadratic", "baselines")
    phases = {part.study: part.phase for part in everything}
    assert phases["networks_digits"] < phases["networks_widths"] < phases["after"]
    assert [part.phase for part in everything] == sorted(part.phase for part in everything)
    with pytest.raises(ValueError, match="no part"):
        queue.parts(["quadratic/nothing"])


def test_a_study_whose_images_are_missing_is_left_out_with_one_line(
    queue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere(name: str, data_dir: str | None = None, **how: Any) -> None:
        raise FileNotFoundError(f"data set {name!r} is not on this machine\nplaces tried: none")

    monkeypatch.setattr("metaopt.tasks.images.load_dataset", nowhere)
    wanted = queue.parts(["networks_fashion_mnist", "after"])
    left = dict(queue.costs(wanted, tmp_path, None))
    assert {part.study for part in left} == {"after"}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("networks_fashion_mnist is left out: ") and "not on this machine" in line


# ----- the parts, on a study that compiles in no time -----------------------------------------------------------------


def _tiny_arm(name: str, seeds: int) -> Arm:
    log = dataclasses.replace(TINY.log, every=2)
    arm = Arm(name, dataclasses.replace(TINY, log=log), seeds)
    return picked(arm, 4, 2)


SMALL = Study(
    "quadratic",
    "small",
    (_tiny_arm("rl", 2), _tiny_arm("bp", 2)),
    (arms.Test(choice("quadratic", dim=10), 4, (1, 10)),),
    fixed=(choice("sgd", learning_rate=1.0),),
    tuned=("adamw:schedule=cosine",),
    tuning="3x1",
    num_tuning_tasks=8,
)


COSINE = "adamw:schedule=cosine@1"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with all parts of `SMALL`, and its results beside it."""
    path = tmp_path_factory.mktemp("thesis")
    clock = work.Clock(None)
    for arm in SMALL.arms:
        work.run_arm(SMALL, arm, arm.seeds, path / "work", clock)
    work.run_baselines(SMALL, path / "work", clock)
    found = collect(SMALL, path / "work")
    assert found is not None
    (path / "results").mkdir()
    (path / "results" / "quadratic.json").write_text(json.dumps(found[0]))
    raw.write(path / "results" / "quadratic.npz", found[1])
    return path


def test_parts_leave_losses_figures_and_where_they_come_from(done: Path) -> None:
    record = json.loads((done / "results" / "quadratic.json").read_text())
    losses = raw.read(done / "results" / "quadratic.npz")
    task = str(SMALL.tests[0].task)
    assert set(record["arms"]) == {f"{model}{use}" for model in ("rl", "bp") for use in ("", "/pick=1x", "/pick=10x")}
    assert losses.runs["rl"][task]["loss_10"].shape == (2, 4) and losses.runs[COSINE][task]["along_1"].shape == (1, 4)
    assert "loss_10" not in losses.runs[COSINE][task] and "loss_1" in losses.runs["sgd_lr=1.0000"][task]
    assert record["baselines"][task]["adamw:schedule=cosine@10"]["record"]["knows_horizon"]
    # Each φ bears the environment that it was meta-trained in.
    (where,) = record["environments"]
    assert where["cpu"] and where["versions"]["jax"] == jax.__version__ and where["cpu_count"] >= 1
    assert record["arms"]["rl"]["trained_in"] == [[0], [0]] and record["arms"]["rl"]["evaluated_in"] == [0]
    assert "host" not in where and "command" not in where  # of nobody's machine
    # Figures of the tables are those of the losses.
    at = described(record, losses)["arms"]["bp"]["tests"][task]["at"]["10"]
    assert at["mean"] == pytest.approx(losses.runs["bp"][task]["loss_10"].mean(), rel=1e-9)
    (case,) = claims._bp_lower(described(record, losses))
    assert case.setting == claims.OURS and case.figures.startswith("BP / RL ")


def test_arms_made_elsewhere_stay_beside_new_ones(done: Path, tmp_path: Path) -> None:
    """What another machine did is the committed result; a work folder adds to it, and takes nothing away."""
    result = done / "results" / "quadratic.json"
    whole = json.loads(result.read_text()), raw.read(result.with_suffix(".npz"))
    folder = work_folder(tmp_path, SMALL.name, "bp")
    shutil.copytree(work_folder(done / "work", SMALL.name, "bp"), folder)
    assert collect(SMALL, tmp_path) is None  # without baselines
    without = {name: arm for name, arm in whole[0]["arms"].items() if not name.startswith("bp")}
    elsewhere = [{"cpu": "another"}]
    kept = {**whole[0], "arms": without, "environments": elsewhere}, whole[1]
    found = collect(SMALL, tmp_path, kept)
    assert found is not None
    assert list(found[0]["arms"]) == list(whole[0]["arms"])
    assert found[0]["environments"] == [*whole[0]["environments"], *elsewhere]
    assert found[0]["arms"]["bp"]["trained_in"] == [[0], [0]] and found[0]["arms"]["rl"]["trained_in"] == [[1], [1]]
    again = tmp_path / "again.npz"
    raw.write(again, found[1])
    with np.load(again) as ours, np.load(result.with_suffix(".npz")) as theirs:
        order = [np.argsort(one["names"], kind="stable") for one in (ours, theirs)]
        for name in theirs.files:
            one, other = (file[name] for file in (ours, theirs))
            if one.ndim == 2 or name == "names":
                one, other = one[order[0]], other[order[1]]
            np.testing.assert_array_equal(one, other)
    shutil.rmtree(folder / "seed-1")
    fewer = collect(SMALL, tmp_path, whole)
    assert fewer is not None and fewer[0]["arms"]["bp"]["seeds"] == 2
    # On other tests nothing can stand side by side.
    assert collect(dataclasses.replace(SMALL, tuning="5x1"), tmp_path, whole) is None


def test_three_phi_are_kept_of_one_run(done: Path) -> None:
    """The last and the best at each multiple, as a validation by hand has them."""
    folder = work_folder(done / "work", SMALL.name, "rl") / "seed-1"
    trainer = Trainer(validate(dataclasses.replace(SMALL.arms[0].experiment, seed=1)))
    validator, scores, phis = Validator(trainer), {}, {}

    def look(trainer: Trainer, state: Any, metrics: Any) -> None:
        step = int(state.meta_step)
        phis[step] = jax.device_get(state.meta_params)
        if step % 4 == 0:
            scores[step] = list(validator(state.meta_params)[0].values())

    meta_train(trainer, callbacks=[look])
    assert sorted(scores) == [4, 8]
    for index, pick in enumerate(("last", *PICKS)):
        best = 8 if pick == "last" else min(scores, key=lambda step: scores[step][index - 1])
        found = read_optimizer(phi_file(folder, pick))
        assert found.card["meta_step"] == best
        np.testing.assert_array_equal(jax.tree.leaves(found.meta_params), jax.tree.leaves(phis[best]))
    card = json.loads((folder / "training.json").read_text())
    assert card["picked"] == {pick: read_optimizer(phi_file(folder, pick)).card["meta_step"] for pick in PICKS}


def test_what_is_stopped_goes_on_with_the_best_so_far(done: Path, tmp_path: Path) -> None:
    arm = SMALL.arms[0]
    trainer = Trainer(validate(arm.experiment))
    clock = work.Clock(None)
    checks = iter([False, False, True])  # after meta-step 6: the checkpoint of the signal holds what step 4 was
    clock.check = lambda: (_ for _ in ()).throw(work.Stop) if next(checks, False) else None  # type: ignore[method-assign]
    with pytest.raises(work.Stop):
        work.train(trainer, 0, tmp_path, clock)
    assert not (tmp_path / "phi.safetensors").exists()
    work.train(trainer, 0, tmp_path, work.Clock(None))
    whole = work_folder(done / "work", SMALL.name, "rl") / "seed-0"
    for pick in ("last", *PICKS):
        one, other = (read_optimizer(phi_file(folder, pick)) for folder in (whole, tmp_path))
        assert one.card.get("meta_step") == other.card.get("meta_step")
        np.testing.assert_array_equal(jax.tree.leaves(one.meta_params), jax.tree.leaves(other.meta_params))


def test_verifying_says_how_far_figures_move(
    done: Path, tmp_path: Path, queue: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(queue, "RESULTS", done / "results")
    monkeypatch.setitem(STUDIES, "quadratic", SMALL)
    assert queue.verify(["quadratic/rl"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("quadratic/rl")]
    assert len(lines) == 3 and lines[0].startswith("quadratic/rl: committed ")
    # On the same machine, up to the digits that are kept of the losses.
    for line, multiple in zip(lines[1:], (1, 10), strict=True):
        assert f"at {multiple}×: mean loss " in line and "committed 1 (geometric mean)" in line
        assert float(line.rpartition(" ")[2]) < 2e-4
    monkeypatch.setattr(queue, "RESULTS", tmp_path)
    assert queue.verify(["quadratic/rl"]) == 2
    assert "there are no losses of quadratic/rl" in capsys.readouterr().err


def test_a_study_of_which_one_model_is_done_is_not_on_the_page_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, models in {"whole": ("rl", "bp"), "half": ("rl",)}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"arms": {model: {} for model in models}}))
    (tmp_path / "variance.json").write_text("{}")
    seen: list[set[str]] = []
    monkeypatch.setattr(write, "RESULTS", tmp_path)
    monkeypatch.setattr(write, "_draw", lambda records: seen.append({*records}) or [])
    monkeypatch.setattr(write, "pages", lambda records: seen.append({*records}) or {})
    assert write.write_all(tmp_path / "work") == ["not on the page: half, of which only one model is done"]
    assert seen == [{"whole", "variance"}] * 2


@pytest.mark.parametrize(("protocol", "seeds", "stays"), [(2, 5, True), (None, 5, True), (None, 1, False)])
def test_a_part_of_the_work_takes_no_place_of_the_whole(
    protocol: int | None, seeds: int, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But one of the first protocol, of which nothing is judged, gives way to one with as many seeds of both models."""
    whole, part = ({"protocol": 2, "arms": {name: {"seeds": n} for name in ("rl", "bp")}} for n in (seeds, 1))
    whole["protocol"] = protocol
    whole["arms"]["rl/d=rms"] = {"seeds": 5}
    (tmp_path / "quadratic.json").write_text(json.dumps(whole))
    monkeypatch.setattr(write, "RESULTS", tmp_path)
    monkeypatch.setattr(write, "ROOT", tmp_path)
    losses = Raw({}, {})
    monkeypatch.setattr(write, "collect", lambda study, work, kept: (part, losses))
    (tmp_path / "quadratic").mkdir()
    monkeypatch.setattr(write, "read_results", dict)
    (line,) = write.write_all(tmp_path)
    assert line.startswith("kept: quadratic.json" if stays else "results: quadratic.json")
    assert json.loads((tmp_path / "quadratic.json").read_text()) == (whole if stays else part)
    assert (tmp_path / "quadratic.npz").exists() != stays
