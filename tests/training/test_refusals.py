"""What cannot be computed is refused at once, from shapes alone, before a run has a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from metaopt.choices import Choice, parse_choice
from metaopt.cli.entry import main
from metaopt.errors import UserError
from metaopt.experiment import Experiment, build_families, build_optimizer
from metaopt.experiment.flags import parse_experiment
from metaopt.inner import limits
from metaopt.numbers import divisors, largest_divisor
from metaopt.registry import ESTIMATORS, OBJECTIVES, OPTIMIZERS, ORACLES, TASKS
from metaopt.runs.train import prepare
from metaopt.training.loop import meta_train
from metaopt.training.size import check_size
from metaopt.types import Estimate, MetaGradient, Optimizer, Oracle


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every machine."""
    monkeypatch.setattr(limits, "total_memory", lambda: 8 * 2**30)


# ----- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "setting"),
    [
        ("--optimizer lstm:hidden_size=1000000000", "lstm:hidden_size"),
        ("--tasks quadratic:dim=1000000000", "quadratic:dim"),
        ("--tasks rosenbrock:pairs=1000000000", "rosenbrock:pairs"),
        ("--companion 1000000000", "companion"),
        ("--num-tasks 1000000000", "num_tasks"),
        ("--horizon 1000000000", "horizon"),
        ("--validation.num-tasks 2000000000", "validation.num_tasks"),
        ("--validation.multiples 1 1000000000", "validation.multiples.1"),
        ("--log.every 2000000000 --num-meta-steps 2000000001", "num_meta_steps"),
        ("--evaluation.num-tasks 1000000000", "evaluation.num_tasks"),
        ("--evaluation.horizons 4 2000000000", "evaluation.horizons"),
        ("--evaluation.tasks quadratic:dim=1000000000", "quadratic:dim"),
    ],
)
def test_what_has_no_room_is_refused_with_a_value_that_would_do(tiny: Experiment, flags: str, setting: str) -> None:
    base = dataclasses.replace(tiny, validation=dataclasses.replace(tiny.validation, every=1))
    experiment, _ = parse_experiment(flags.split(), prog="train", base=base)
    with pytest.raises(UserError, match=rf"`{setting}` is \d+; at most (\d+) would do") as caught:
        prepare(experiment)
    most = str(caught.value).rpartition("at most ")[2].split()[0]
    assert 1 <= int(most) < 10**9
    # It would: what the sentence says is put into the flag in the place of the number that was too large.
    too_large = str(caught.value).partition(f"`{setting}` is ")[2].partition(";")[0]
    words = [word.replace(too_large, most) for word in flags.split()]
    changed, _ = parse_experiment(words, prog="train", base=base)
    if not setting.startswith("evaluation") and "evaluation" not in flags:
        check_size(changed, build_optimizer(changed.optimizer), build_families(changed))


@pytest.mark.parametrize(
    "flags",
    [
        "--horizon 1000000000000000000",
        "--num-tasks 10000000000000000000000000000000000000000",
        "--optimizer lstm:hidden_size=1000000000000000000",
        "--companion 1000000000000",
        "--num-meta-steps 3000000000",
        "--meta-optimizer.learning-rate 1e39",
        "--optimizer lstm:alpha_bias=1e39",
        "--rescale 1e300",
    ],
)
def test_numbers_that_jax_does_not_hold_are_refused(tiny: Experiment, flags: str) -> None:
    with pytest.raises(UserError, match=r"give at most \d+|give a smaller number"):
        prepare(parse_experiment(flags.split(), prog="train", base=tiny)[0])


@pytest.mark.parametrize("flag", ["--horizon", "--num-tasks"])
@pytest.mark.parametrize("value", ["2000000000", str(10**18), str(10**40)])
def test_evaluate_refuses_as_train_does(
    finished: Path, flag: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished), flag, value, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "at most" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_config_json_is_held_to_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "big.json"
    config.write_text(
        f'{{"tasks": ["quadratic"], "optimizer": "lstm", "estimator": "truncated_backprop", "horizon": {10**40}}}'
    )
    assert main(["train", str(config), "--out", str(tmp_path / "run")]) == 2
    assert "`horizon` is about 10^40; give at most" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_fits_is_let_through(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sum(limits.sizes(build_optimizer(tiny.optimizer), build_families(tiny)[0]))
    assert 100 < needed < 1000
    prepare(tiny)
    monkeypatch.setattr(limits, "total_memory", lambda: 100)
    with pytest.raises(UserError, match="take a smaller task, optimizer"):
        prepare(tiny)


def test_divisors() -> None:
    for number in (1, 2, 12, 36, 97, 100):
        assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]
    assert divisors(10**12)[-2] == 5 * 10**11
    assert [largest_divisor(12, most) for most in (0, 1, 5, 7, 100)] == [1, 1, 4, 6, 12]


# ----- entries of one's own -------------------------------------------------------------------------------------------


def _transformation(
    update: Callable[..., Any], init: Callable[..., Any] = lambda params: ()
) -> Callable[[], Optimizer]:
    def bind(meta_params: Any) -> optax.GradientTransformationExtraArgs:
        return optax.GradientTransformationExtraArgs(init, lambda g, s, p=None, **extra: update(g, s, meta_params))

    return lambda: Optimizer(init=lambda key: {"a": jnp.float32(0.1)}, bind=bind)


def _raises(*args: Any, **kwargs: Any) -> Any:
    raise KeyError("what")


def _oracle(gradient: Any, value: Any, info: dict[str, Any] | None = None) -> Callable[[], Oracle]:
    return lambda: Oracle(
        init=lambda *_: (),
        estimate=lambda family, task, params, state, key: (
            Estimate(params if gradient is None else gradient, value, info or {}),
            state,
        ),
    )


def _estimator(metrics: dict[str, Any], gradient: Any = None) -> Callable[..., MetaGradient]:
    def make(optimizer: Any, objective: Any, schedule: Any) -> MetaGradient:
        def estimate(key: Any, meta_params: Any, state: Any, families: Any) -> Any:
            return meta_params if gradient is None else gradient, state, metrics

        return MetaGradient(init=lambda *_: (), estimate=estimate)

    return make


ONE = {"meta_loss": jnp.zeros(()), "alive": jnp.ones(())}


@pytest.mark.parametrize(
    ("registry", "factory", "said"),
    [
        (OBJECTIVES, lambda: lambda trace: jnp.ones(3), r"makes \(3,\), and not"),
        (OBJECTIVES, lambda: lambda trace: trace.loss, r"makes \(2, 11\), and not"),
        (OBJECTIVES, lambda: lambda trace: jnp.mean(trace.loss), r"makes \(\), and not"),
        (OBJECTIVES, lambda: _raises, "raises KeyError: 'what'"),
        (OBJECTIVES, _raises, "raises KeyError: 'what'"),
        (OPTIMIZERS, _transformation(lambda g, s, phi: (jax.tree.map(lambda x: x[None], g), s)), "of float32.1, "),
        (OPTIMIZERS, _transformation(lambda g, s, phi: ((), s)), "has no leaf, and not"),
        (OPTIMIZERS, _transformation(lambda g, s, phi: (g, jnp.ones(2))), "a state of another structure"),
        (OPTIMIZERS, _transformation(_raises), "raises KeyError: 'what'"),
        (ORACLES, _oracle(jnp.zeros(77), jnp.zeros(())), r"float32\[77\]"),
        (ORACLES, _oracle(None, jnp.zeros(3)), r"gives value of shape \(3,\)"),
        (ORACLES, _oracle(None, None, {"ess": jnp.zeros(3)}), r"gives ess of shape \(3,\)"),
        (ESTIMATORS, _estimator(ONE, jnp.zeros(3)), "it has one array, and not"),
        (ESTIMATORS, _estimator({}), "lack meta_loss and alive"),
        (ESTIMATORS, _estimator({**ONE, "norms": jnp.zeros(3)}), r"norms is of shape \(3,\)"),
    ],
)
def test_an_own_entry_that_does_not_fit_is_one_line_and_no_folder(
    register: Callable[..., None],
    tiny: Experiment,
    registry: Any,
    factory: Callable[..., Any],
    said: str,
) -> None:
    register(registry, "misfit", factory)
    field = {id(OBJECTIVES): "objective", id(OPTIMIZERS): "optimizer", id(ORACLES): "oracle"}.get(id(registry))
    picked: Any = "misfit" if field == "objective" else Choice("misfit")
    with pytest.raises(UserError, match=f"{registry.kind} 'misfit'.*{said}") as caught:
        prepare(dataclasses.replace(tiny, **{field or "estimator": picked}))
    assert "\n" not in str(caught.value)


def test_own_entries_that_fit_are_let_through(register: Callable[..., None], tiny: Experiment) -> None:
    register(OBJECTIVES, "end", lambda: lambda trace: trace.loss[-1])
    register(ORACLES, "exactly", lambda: ORACLES["exact"]())
    trainer = prepare(dataclasses.replace(tiny, objective="end", oracle=parse_choice("exactly")))
    assert trainer.families[0].oracle is not None and trainer.experiment.objective == "end"


@pytest.mark.parametrize("where", ["optimizer", "baselines"])
def test_who_goes_by_losses_is_refused_where_there_are_none(
    tiny: Experiment, where: str, register: Callable[..., None]
) -> None:
    def estimate(family: Any, task: Any, params: Any, state: Any, key: Any) -> tuple[Estimate, Any]:
        return Estimate(params, None), state

    silent = Oracle(lambda *_: (), estimate)
    register(ORACLES, "silent", lambda: silent)
    built = build_families(tiny)[0]
    register(TASKS, "unvalued", lambda: dataclasses.replace(built, oracle=silent, name="unvalued"))
    if where == "optimizer":
        changed = {"optimizer": Choice("sgd", {"schedule": "plateau"}), "oracle": Choice("silent", {})}
        named = "sgd:schedule=plateau"
    else:
        picked = {"tasks": (Choice("unvalued", {}),), "baselines": ("momo_adam",)}
        changed, named = {"evaluation": dataclasses.replace(tiny.evaluation, **picked)}, "baseline 'momo_adam'"
    with pytest.raises(UserError, match=rf"^{named} goes by the loss of each step, and .* has none, for its oracle"):
        prepare(dataclasses.replace(tiny, **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"horizon": 0}, r"`horizon` \(0\) must be at least 1"),
        ({"horizon": "5"}, "`horizon` is '5'"),
        ({"tasks": "quadratic"}, "tasks"),
    ],
)
def test_meta_training_in_python_refuses_as_the_command_line_does(
    tiny: Experiment, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        meta_train(dataclasses.replace(tiny, **changed))
    assert "\n" not in str(caught.value)


def test_a_name_in_place_of_what_it_names_is_refused() -> None:
    with pytest.raises(UserError, match="`experiment` is a str; give an `Experiment`"):
        meta_train("quadratic_rl")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"'lstm' is no choice; give `choice\(name, option=value\)`"):
        build_optimizer("lstm")  # pyright: ignore[reportArgumentType]
