"""What the reproduction of the thesis runs: studies of arms, each arm one experiment with several meta-seeds.

An arm's experiment is a file of experiments/thesis/ with one thing changed. Of each study one arm a model bears the
thesis's setting: `rl` and `bp`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metaopt.choices import Choice, choice
from metaopt.experiment import Curriculum, Experiment, Validation
from metaopt.runs.experiments import load_experiment

THESIS = Path(__file__).resolve().parent
ROOT = THESIS.parent.parent
RESULTS = THESIS / "results"
EXACT = "exact"  # rl/exact and bp/exact: as the thesis has it, all at once
# Meta-seeds: of what decides on small functions (with five no share can be told from a half), of what decides on
# networks, and of the open choices, each alone.
MANY_SEEDS, SOME_SEEDS, FEW_SEEDS = 10, 5, 3
REMEDY = "remedy="  # rl/remedy=...: what might keep its steps from running off
RIVAL = "rival="  # bp/rival=...: another optimizer, meta-trained as the BP model is
# What the controller read when it was meta-trained here.
FEATURES = "size,cosine,ratio,last_step,second,gradient,params,alpha,time,coordinates,loss,others"
PICKS = ("1x", "10x")  # multiples of the horizon that a φ is picked at by validation, beside the last one


@dataclass(frozen=True)
class Test:
    """What every arm of a study is evaluated on: the same tasks, starts and minibatches for all."""

    task: Choice
    num_tasks: int
    multiples: tuple[int, ...]  # of the training horizon


@dataclass(frozen=True)
class Use:
    """A φ of an arm's meta-training, used in one way; `Use()` is the last one as it was meta-trained."""

    options: Mapping[str, Any] = field(default_factory=dict)  # of the optimizer, in place of its own
    pick: str = "last"  # or one of `PICKS`
    tests: tuple[str, ...] | None = None  # the tasks it is evaluated on; None: all of the study's

    def on(self, test: Test) -> Test | None:
        """The test as this use takes it, up to ten times the horizon where φ was picked; None where it does not."""
        if self.tests is not None and str(test.task) not in self.tests:
            return None
        if self.pick == "last":
            return test
        return dataclasses.replace(test, multiples=tuple(m for m in test.multiples if m <= 10))


@dataclass(frozen=True)
class Arm:
    """An experiment, meta-trained once a seed."""

    name: str
    experiment: Experiment
    seeds: int
    factor: str = ""  # what differs from the thesis's setting, in words
    uses: Mapping[str, Use] = field(default_factory=dict)  # other uses of what was meta-trained, by name

    def all_uses(self) -> dict[str, Use]:
        """Those and, as "", the last φ as it is."""
        return {"": Use(), **self.uses}


@dataclass(frozen=True)
class Study:
    """Arms and tests that one file of results holds."""

    name: str
    title: str
    arms: tuple[Arm, ...]
    tests: tuple[Test, ...]
    fixed: tuple[Choice, ...] = (  # the baselines of the thesis's figures
        choice("sgd", learning_rate=1.0),
        choice("momentum", learning_rate=0.1),
        choice("momentum", learning_rate=0.01),
        choice("adam", learning_rate=0.01),
    )
    # Tuned for every horizon, each as `tune_baselines` takes it; those that go by the length of the run are marked.
    tuned: tuple[str, ...] = (
        "sgd", "momentum", "rmsprop", "adam", "adamw:schedule=cosine", "nadamw:schedule=warmup_cosine",
    )  # fmt: skip
    tuning: str = "9x3"  # rates by momenta
    num_tuning_tasks: int = 400
    phi_of: str = ""  # the study whose φ the arms of the same names take, in place of meta-training

    @property
    def horizon(self) -> int:
        return self.arms[0].experiment.horizon


def figure(name: str) -> Experiment:
    """The experiment of one figure and model, such as `figure3_rl`."""
    return load_experiment(str(THESIS / f"{name}.py"))[1]


def vary(experiment: Experiment, optimizer: Mapping[str, Any] | None = None, **fields: Any) -> Experiment:
    """The experiment with options of its optimizer and fields of its own changed."""
    picked = Choice(experiment.optimizer.name, {**experiment.optimizer.options, **(optimizer or {})})
    return dataclasses.replace(experiment, optimizer=picked, **fields)


NOISE_AT_TEST = {f"in_use={how}": Use({"noise_in_use": how}) for how in ("two", "on")}


def picked(arm: Arm, every: int, num_tasks: int, tests: tuple[str, ...] | None = None) -> Arm:
    """The arm with validation as it is meta-trained, and the two φ that this picks among its uses."""
    validation = Validation(every=every, num_tasks=num_tasks, multiples=tuple(int(pick[:-1]) for pick in PICKS))
    uses = {f"pick={pick}": Use(pick=pick, tests=tests) for pick in PICKS}
    return dataclasses.replace(arm, experiment=vary(arm.experiment, validation=validation), uses={**arm.uses, **uses})


def exact(rl: Experiment, bp: Experiment, seeds: int) -> Iterator[Arm]:
    """Both models with every choice that the thesis's text and formulas make, at once.

    One function a meta-step, s without the root, of the policy gradient the formula that is printed, which cuts θ at
    every step; noise a step, whole unrolls and the features of each task are the experiments' own.
    """
    options, words = {"s_form": "printed"}, "as in the thesis: one function a meta-step, s as printed"
    stopped = choice("reparameterised", state_gradient="stopped")
    yield Arm(
        f"rl/{EXACT}", vary(rl, options, num_tasks=1, estimator=stopped), seeds, f"{words}, the gradient as printed"
    )
    yield Arm(f"bp/{EXACT}", vary(bp, options, num_tasks=1), seeds, words)


def crossed(rl: Experiment, bp: Experiment, seeds: int) -> Iterator[Arm]:
    """Step rule × meta-gradient × noise without the two corners that are the models themselves."""
    words = {"per_step": "Gamma noise", "none": "no noise"}
    for rule, base in (("direct", rl), ("recursive", bp)):
        bias = {"alpha_bias": rl.optimizer.options["alpha_bias"]} if "alpha_bias" in rl.optimizer.options else {}
        for state_gradient in ("full", "stopped"):
            for noise in ("per_step", "none"):
                if (rule, state_gradient, noise) in (("direct", "full", "per_step"), ("recursive", "full", "none")):
                    continue
                name = "reparameterised" if noise == "per_step" else "truncated_backprop"
                options = {"step_rule": rule, "noise": noise, **(bias if rule == "direct" else {})}
                yield Arm(
                    f"cross/{rule},{state_gradient},{'noise' if noise == 'per_step' else 'none'}",
                    vary(base, options, estimator=choice(name, state_gradient=state_gradient)),
                    seeds,
                    f"{rule} step length, {state_gradient} state gradient, {words[noise]}",
                )


def remedies(rl: Experiment, seeds: int) -> Iterator[Arm]:
    """The RL model with what might keep its steps from running off beyond the horizon, each alone, at the same cost."""
    window, far = rl.horizon, 10 * rl.horizon
    longer = vary(rl, horizon=far, unroll_length=window)
    yield Arm(f"rl/{REMEDY}windows", longer, seeds, "runs ten times as long, in windows of T")
    drawn = vary(longer, curriculum=Curriculum("log_uniform"))
    yield Arm(f"rl/{REMEDY}horizons", drawn, seeds, "horizons drawn from T to ten times it, in windows of T")
    decayed = dataclasses.replace(rl.meta_optimizer, name="adamw", weight_decay=0.5)
    yield Arm(f"rl/{REMEDY}decay", vary(rl, meta_optimizer=decayed), seeds, "φ decays by half of the rate a meta-step")


def rivals(bp: Experiment, seeds: int) -> Iterator[Arm]:
    """Other optimizers, meta-trained on the same tasks for as long, by the BP model's meta-gradient."""
    for picked in (choice("lstm_log_sign"), choice("rnnprop"), choice("controller", features=FEATURES)):
        yield Arm(f"bp/{RIVAL}{picked.name}", dataclasses.replace(bp, optimizer=picked), seeds, picked.name)
    # Of few settings, in logarithms: as experiments/hypertuned has it, a larger rate.
    few = dataclasses.replace(bp.meta_optimizer, learning_rate=0.03)
    for name in ("adam", "momentum"):
        tuned = dataclasses.replace(bp, optimizer=choice(name, tunes="all"), meta_optimizer=few)
        yield Arm(f"bp/{RIVAL}{name}", tuned, seeds, f"all settings of {name} tuned by gradient")


def one_at_a_time(
    model: str, base: Experiment, features: tuple[str, ...], seeds: int, base_seeds: int
) -> Iterator[Arm]:
    """The model itself and its open choices, each alone."""
    own = base.optimizer.options["features"]
    uses = NOISE_AT_TEST if model == "rl" else {"alpha_0=median": Use({"initial_alpha": "median"})}
    yield Arm(model, base, base_seeds, "16 functions a meta-step", uses)
    yield Arm(f"{model}/num_tasks=1", vary(base, num_tasks=1), seeds, "one function a meta-step")
    yield Arm(f"{model}/K=20", vary(base, unroll_length=20), seeds, "windows of 20 steps")
    for name in features:
        if name != own:
            yield Arm(f"{model}/features={name}", vary(base, {"features": name}), seeds, f"features: {name}")
    printed = {"features": "all", "s_form": "printed"}
    yield Arm(f"{model}/s=printed", vary(base, printed), seeds, "all features, s without the root")
    yield Arm(f"{model}/alpha=per_coordinate", vary(base, {"alpha": "per_coordinate"}), seeds, "α a coordinate")
    yield Arm(f"{model}/d=rms", vary(base, {"normalisation": "rms"}), seeds, "d over its RMS")
    both = {"features": "scale_free", "normalisation": "rms"}
    yield Arm(f"{model}/features=scale_free,d=rms", vary(base, both), seeds, "features: scale_free, d over its RMS")
    if model == "rl":
        noisy = vary(base, {"noise": "per_coordinate"})
        yield Arm("rl/noise=per_coordinate", noisy, seeds, "noise a coordinate", NOISE_AT_TEST)


def _convex(name: str, title: str, rl: Experiment, bp: Experiment, tests: tuple[Test, ...]) -> Study:
    features = ("gradient", "all", "scale_free")
    models = (
        *one_at_a_time("rl", rl, features, FEW_SEEDS, MANY_SEEDS),
        *one_at_a_time("bp", bp, features, FEW_SEEDS, MANY_SEEDS),
        *exact(rl, bp, MANY_SEEDS),
    )
    shown = ("rl", "bp", f"rl/{EXACT}", f"bp/{EXACT}")
    first = [picked(arm, 100, 32) for arm in models if arm.name in shown]
    rest = [arm for arm in models if arm.name not in shown]
    more = (*remedies(rl, SOME_SEEDS), *rivals(bp, SOME_SEEDS), *crossed(rl, bp, FEW_SEEDS))
    return Study(name, title, (*first, *more, *rest), tests)


def _images(study: Study, data: str, num_tasks: int, seeds: int, depths: tuple[int, ...] = ()) -> Study:
    """Figures 7 and 8 on larger images; a family is drawn each meta-step, as in the thesis.

    Args:
      depths: of the networks that are tested; none: all of the study's.
    """

    def on(task: Choice) -> Choice:
        return choice(task.name, **task.options, data=data) if task.name in ("classifier", "autoencoder") else task

    tests = tuple(
        Test(on(test.task), num_tasks, test.multiples)
        for test in study.tests
        if not depths or test.task.options["hidden_layers"] in depths
    )
    arms = tuple(
        picked(
            Arm(
                arm.name,
                vary(arm.experiment, tasks=tuple(map(on, arm.experiment.tasks)), num_tasks=1),
                seeds,
                "one function a meta-step",
            ),
            500,
            4,
            of_depths(tests, (1, 6)),
        )
        for arm in study.arms
        if arm.name in ("rl", "bp")
    )
    title = f"Figures 7 and 8 on {data}, 28×28, one function a meta-step"
    return dataclasses.replace(
        study, name=f"networks_{data}", title=title, arms=arms, tests=tests, num_tuning_tasks=8, tuning="9x1"
    )


def _other_widths(study: Study, widths: tuple[int, ...], depths: tuple[int, ...]) -> Study:
    """The same φ on networks of other widths than it was meta-trained on."""
    tests = tuple(
        Test(choice("classifier", hidden_layers=depth, width=width), study.tests[0].num_tasks, study.tests[0].multiples)
        for depth in depths
        for width in widths
    )
    title = f"Networks on digits, {' and '.join(map(str, widths))} units wide: the φ of {study.name}, which saw 20"
    return _same_phi(study, "networks_widths", title, tests)


def _same_phi(study: Study, name: str, title: str, tests: tuple[Test, ...]) -> Study:
    arms = tuple(dataclasses.replace(arm, uses={}) for arm in study.arms)
    return dataclasses.replace(study, name=name, title=title, arms=arms, tests=tests, phi_of=study.name)


def of_depths(tests: tuple[Test, ...], depths: tuple[int, ...]) -> tuple[str, ...]:
    """The names of those tests whose networks are so deep."""
    return tuple(str(test.task) for test in tests if test.task.options["hidden_layers"] in depths)


def _studies() -> dict[str, Study]:
    all_of_it, beyond = (1, 10, 100), (1, 10)
    quadratic = _convex(
        "quadratic",
        "Figures 3 and 4: quadratics, and Rosenbrock after quadratics",
        figure("figure3_rl"),
        figure("figure3_bp"),
        (
            Test(choice("quadratic", dim=10), 400, all_of_it),
            *(Test(task, 400, all_of_it) for task in figure("figure4_rl").evaluation.tasks),
        ),
    )
    regression = _convex(
        "linear_regression",
        "Figures 5 and 6: linear regression",
        figure("figure5_rl"),
        figure("figure5_bp"),
        (Test(choice("linear_regression"), 400, all_of_it),),
    )
    rl, bp = figure("figure7_rl"), figure("figure7_bp")
    networks = (*rl.evaluation.tasks, *figure("figure8_rl").evaluation.tasks)
    tests = tuple(Test(task, 16, beyond) for task in networks)
    words = "one function of each family a meta-step"
    digits = Study(
        "networks_digits",
        "Figures 7 and 8: networks on 8×8 digits",
        tuple(
            picked(Arm(name, base, SOME_SEEDS, words), 200, 8, of_depths(tests, (1, 6)))
            for name, base in (("rl", rl), ("bp", bp))
        ),
        tests,
        tuning="5x3",
        num_tuning_tasks=16,
    )
    one = [vary(base, num_tasks=1) for base in (rl, bp)]
    few = (choice("classifier", hidden_layers=1), choice("classifier", hidden_layers=3, batch_norm=True))
    cross = Study(
        "networks_cross",
        "Networks on digits, one function a meta-step: the ingredients, and the choices that matter for size",
        (
            *(picked(Arm(name, base, SOME_SEEDS, "one function a meta-step", uses), 200, 8) for name, base, uses in (
                ("rl", one[0], NOISE_AT_TEST), ("bp", one[1], {}))),
            *exact(one[0], one[1], SOME_SEEDS),
            *remedies(one[0], SOME_SEEDS),
            *rivals(one[1], SOME_SEEDS),
            *crossed(one[0], one[1], FEW_SEEDS),
            *(Arm(f"{name}/features=scale_free", vary(base, {"features": "scale_free"}), FEW_SEEDS,
                  "features: scale_free")
              for name, base in (("rl", one[0]), ("bp", one[1]))),
            *(Arm(f"rl/d={how}", vary(one[0], {"normalisation": how, "alpha_bias": -5.0}), FEW_SEEDS, f"d over {words}")
              for how, words in (("rms", "its RMS"), ("tensor_rms", "each tensor's RMS"))),
            Arm("rl/features=scale_free,d=rms",
                vary(one[0], {"features": "scale_free", "normalisation": "rms", "alpha_bias": -5.0}), FEW_SEEDS,
                "features: scale_free, d over its RMS"),
        ),
        tuple(Test(task, 8, beyond) for task in few),
        tuning="5x3",
        num_tuning_tasks=16,
    )  # fmt: skip
    images = _images(digits, "mnist_5k", 8, FEW_SEEDS), _images(digits, "fashion_mnist", 8, 1, depths=(1, 3))
    studies = (quadratic, regression, digits, cross, *images, _other_widths(digits, (10, 80), (1, 3)))
    return {study.name: study for study in studies}


STUDIES = _studies()
