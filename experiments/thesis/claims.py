"""The thesis's claims C1 to C5, judged on the reproduction's raw losses in every setting of both models.

A setting is an arm of the BP model and the same of the RL model, the last φ of each. What is compared are logarithms of
ratios on the same tasks, means over tasks and meta-seeds, and shares of runs; see `judging` for the three words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.thesis.arms import EXACT
from experiments.thesis.judging import Share, Sides, all_of, below, share_of, words
from experiments.thesis.raw import Raw
from metaopt.evaluation.intervals import Mean, Word, crossed_mean
from metaopt.experiment import MOMENTA

Record = Mapping[str, Any]
MARGIN = 1.1  # a geometric mean of ratios that counts as no worse
NEAR = 10.0  # one within which an optimizer transfers
MOST, FEW = 0.5, 0.05  # shares of runs: "it diverges", and "hardly ever"
OURS, ONE, THESIS = "several functions a meta-step", "one function a meta-step", "as in the thesis"
NETWORKS = {
    "networks_digits": "digits",
    "networks_mnist_5k": "mnist_5k",
    "networks_fashion_mnist": "fashion_mnist",
    "networks_widths": "digits, other widths",
    "networks_cross": "digits, 2 networks",
}
SAME_PHI = ("networks_widths",)  # as another study's, on other networks
QUADRATIC, REGRESSION = "quadratic:dim=10", "linear_regression"


class Case(NamedTuple):
    """A claim in one setting, before its word is known."""

    setting: str
    sides: Sides
    figures: str
    counts: bool = True  # towards the verdict; the same φ on other networks does not


class Judged(NamedTuple):
    """A claim in one setting."""

    setting: str
    word: Word
    figures: str
    counts: bool


class Claim(NamedTuple):
    """A claim, what it was taken to mean, and how it fared."""

    name: str
    text: str
    means: str
    judged: tuple[Judged, ...]
    ran: str  # settings, meta-seeds, functions

    def settings(self) -> dict[Word, list[str]]:
        """Those that count, by word."""
        found: dict[Word, list[str]] = {"holds": [], "does not hold": [], "undecided": []}
        for one in self.judged:
            if one.counts:
                found[one.word].append(one.setting)
        return {word: settings for word, settings in found.items() if settings}

    @property
    def verdict(self) -> str:
        """One word for all settings, or which hold, which do not and which are undecided."""
        found = self.settings()
        if not found:
            return "not run yet"
        if len(found) == 1:
            ((word, settings),) = found.items()
            return f"**{word}**" + (f" in all {len(settings)} settings" if len(settings) > 1 else "")
        return "<br>".join(f"**{word}** with {', '.join(settings)}" for word, settings in found.items())


def number(value: Any) -> str:
    """Two significant digits; `inf` and `?` as they come."""
    if value is None:
        return "?"
    value = float(value)
    if value != value or value in (float("inf"), float("-inf")):
        return "∞" if value == float("inf") else "?"
    if 0.001 <= abs(value) < 1000 or value == 0:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def between(interval: Any) -> str:
    """`[low, high]`."""
    return f"[{number(interval[0])}, {number(interval[1])}]"


def share(value: Any) -> str:
    """Per cent, `<1%` for less."""
    if value is None:
        return "?"
    return "0" if value == 0 else "<1%" if value < 0.01 else ">99%" if 0.995 <= value < 1 else f"{value:.0%}"


def ratio(mean: Mean) -> str:
    """Geometric mean and interval of what has this mean logarithm."""
    low, high = np.exp(mean.interval())
    return f"{number(np.exp(mean.mean))} {between((low, high))}"


def shares(found: Share) -> str:
    """Per cent with the interval."""
    low, high = found.interval()
    return f"{share(found.mean)} [{share(low)}, {share(high)}]"


def judge(records: Mapping[str, Record]) -> list[Claim]:
    """All claims; those whose study has no raw losses yet have nothing judged."""
    known = {name: record for name, record in records.items() if "raw" in record}
    quadratic, regression = known.get("quadratic"), known.get("linear_regression")
    nets = [known[name] for name in NETWORKS if name in known]
    rosenbrock = [test["task"] for test in (quadratic or {"tests": []})["tests"] if "rosenbrock" in test["task"]]
    geometric = "over tasks and meta-seeds the geometric mean of the ratio of its loss at step 1000 to"
    return [
        _claim(
            "C1",
            "On quadratics BP is no worse than every hand-designed baseline, untuned (figure 3).",
            f"{geometric} that of each of the figure's baselines lies below {MARGIN}",
            _no_worse(quadratic, "fixed"),
            quadratic,
        ),
        _claim(
            "C1 tuned",
            "The same against baselines whose settings are tuned for the horizon.",
            f"{geometric} that of each tuned baseline that is not told the horizon lies below {MARGIN}",
            _no_worse(quadratic, "tuned"),
            quadratic,
        ),
        _claim(
            "C1 told",
            "The same against tuned baselines that are told the horizon too.",
            f"{geometric} that of each tuned baseline lies below {MARGIN}",
            _no_worse(quadratic, "all tuned"),
            quadratic,
        ),
        _claim(
            "C1b",
            "There, RL is worse than BP (figure 3).",
            "the geometric mean of BP / RL at step 1000 lies below 1",
            _bp_lower(quadratic),
            quadratic,
        ),
        _claim(
            "C2",
            "From quadratics to Rosenbrock BP does not transfer, RL does (figure 4).",
            f"to transfer is to end, at step 1000, within {NEAR:g} times (geometric mean) of each of the figure's "
            "baselines",
            (one for task in rosenbrock for one in _transfer(quadratic, task)),
            quadratic,
        ),
        _claim(
            "C3",
            "On linear regression BP converges fastest within its horizon of 100 (figure 5).",
            "the geometric means of the ratios of its mean loss along the 100 steps to RL's, and to that of each of "
            "the figure's baselines, lie below 1; by step 100 itself both models are at the noise of the data",
            _fastest(regression),
            regression,
        ),
        _claim(
            "C4",
            "Beyond it, at 1000, BP diverges and RL does not (figure 6).",
            "to diverge is to fail or to rise in more than half of the runs",
            _diverges(regression),
            regression,
        ),
        _claim(
            "C4 never",
            "Beyond it RL hardly ever diverges.",
            f"less than {FEW:.0%} of its runs fail or rise",
            _rarely_lost(regression),
            regression,
        ),
        _claim(
            "C4 ahead",
            "Beyond it RL ends lower than BP.",
            "the geometric mean of RL / BP at step 1000 lies below 1",
            _rl_lower([regression] if regression else [], [REGRESSION]),
            regression,
        ),
        _claim(
            "C5a",
            "On networks BP falls fastest up to step 50 (figures 7, 8).",
            "the geometric means, over networks too, of the ratios of its mean loss along the first 50 steps to RL's, "
            "and to that of each of the figure's baselines, lie below 1",
            (one for record in nets for one in _fast_networks(record)),
            *nets,
        ),
        _claim(
            "C5b",
            "Beyond it, BP diverges on networks (figures 7, 8).",
            "by step 500 more than half of its runs fail or rise",
            (one for record in nets for one in _lost_on_networks(record)),
            *nets,
        ),
        _claim(
            "C5c",
            "RL keeps falling to step 500 on networks (figures 7, 8).",
            "more than half of its runs are lower at step 500 than at 50 and neither fail nor rise",
            (one for record in nets for one in _falls_on_networks(record, MOST)),
            *nets,
        ),
        _claim(
            "C5c always",
            "It does so nearly always.",
            f"at least {1 - FEW:.0%} of its runs do",
            (one for record in nets for one in _falls_on_networks(record, 1 - FEW)),
            *nets,
        ),
        _claim(
            "C5 ahead",
            "At step 500 RL is lower than BP on networks.",
            "the geometric mean of RL / BP, over networks too, lies below 1",
            _rl_lower(nets, None),
            *nets,
        ),
    ]


def _claim(name: str, text: str, means: str, cases: Iterator[Case], *records: Record | None) -> Claim:
    found = list(cases)
    judged = {}
    for counts in (True, False):  # what does not count is no reason to correct what does
        own = [one for one in found if one.counts == counts]
        named = zip(own, words([one.sides for one in own]), strict=True)
        judged |= {one.setting: Judged(one.setting, word, one.figures, counts) for one, word in named}
    return Claim(name, text, means, tuple(judged[one.setting] for one in found), _ran(*records))


def _ran(*records: Record | None) -> str:
    """Such as `5 settings of 3 to 5 meta-seeds, 400 functions`; a record of its own after `; `."""
    said = []
    for record in records:
        pairs = [] if record is None else list(models(record))
        if record is None or not pairs:
            continue
        seeds = [arm["seeds"] for _, *names in pairs for arm in (record["arms"][name] for name in names)]
        tasks = max(test["num_tasks"] for test in record["tests"])
        where = f"{NETWORKS[record['study']]}: " if record["study"] in NETWORKS else ""
        least, most = min(seeds), max(seeds)
        number_of = f"{least} to {most} meta-seeds" if least < most else f"{most} meta-seed{'s' * (most != 1)}"
        settings = f"{len(pairs)} setting{'s' * (len(pairs) != 1)}"
        functions = f"{tasks} functions" + (" a network" if where else "")
        said.append(f"{where}{settings}, {number_of}, {functions}")
    return "; ".join(said)


def models(record: Record | None) -> Iterator[tuple[str, str, str]]:
    """(setting, RL arm, BP arm) of the last φ of every arm that both models have."""
    if record is None:
        return
    for name, arm in record["arms"].items():
        twin = "rl" + name.removeprefix("bp")
        if name.partition("/")[0] == "bp" and twin in record["arms"] and arm["pick"] == "last":
            yield setting_of(name, arm["config"]["num_tasks"]), twin, name


def setting_of(arm: str, num_tasks: int) -> str:
    """What an arm's setting is called; some studies of networks take one function a meta-step throughout."""
    name = arm.partition("/")[2]
    return {"": ONE if num_tasks == 1 else OURS, "num_tasks=1": ONE, EXACT: THESIS}.get(name, name)


# ----- what is compared -----------------------------------------------------------------------------------------------


def mean_ratio(raw: Raw, name: str, other: str, tasks: Sequence[str], quantity: str) -> Mean:
    """Of log ratios over meta-seeds and tasks; over several tests, as networks are, of their means on each."""
    found = [raw.log_ratios(name, other, task, quantity) for task in tasks]
    return crossed_mean(found[0] if len(found) == 1 else np.stack([one.mean(axis=1) for one in found], axis=1))


def rivals(record: Record, task: str, which: str, multiple: int = 10) -> dict[str, str]:
    """Baseline -> how it is called: `fixed`, at the thesis's rates; `tuned` for a multiple of the horizon; `all tuned`,
    with those that are told it."""
    found = {}
    for name, baseline in record["baselines"][task].items():
        about = baseline["record"]
        if which == "fixed":
            if "@" not in name:
                found[name] = name
        elif name.endswith(f"@{multiple}") and (which == "all tuned" or not about.get("knows_horizon")):
            settings = [
                f"{about['learning_rate']:.3g}",
                *(f"{key} {about[key]:.3g}" for key in MOMENTA if key in about),
            ]
            told = ["told the horizon"] if about.get("knows_horizon") else []
            found[name] = ", ".join([f"{name.partition('@')[0].partition(':')[0]} {settings[0]}", *settings[1:], *told])
    return found


def _nearest(means: Mapping[str, Mean]) -> str:
    """The rival that is worst to compare with, and the ratio to it."""
    name = max(means, key=lambda name: means[name].mean)
    return f"{name} {ratio(means[name])}"


def _against(record: Record, arm: str, tasks: Sequence[str], which: str, quantity: str) -> dict[str, Mean]:
    multiple = int(quantity.rpartition("_")[2])
    named = [rivals(record, task, which, multiple) for task in tasks]
    means = {}
    for name in named[0]:
        label = named[0][name] if len(tasks) == 1 else name.partition("@")[0]
        means[label] = mean_ratio(record["raw"], arm, name, tasks, quantity)
    return means


def share_of_words(record: Record, arm: str, tasks: Sequence[str], *names: str) -> Share:
    """The share of runs of which one of the words is true at ten times the horizon."""
    return share_of(words_of_runs(record, arm, tasks, *names))


def words_of_runs(record: Record, arm: str, tasks: Sequence[str], *names: str) -> np.ndarray:
    """[meta-seeds, tasks] whether one of the words is true; of several tests [meta-seeds, tests], how often."""
    found = []
    for task in tasks:
        runs = record["raw"].runs[arm][task]
        found.append(np.any([runs[f"{name}_10"] for name in names], axis=0))
    return found[0] if len(found) == 1 else np.stack([one.mean(axis=1) for one in found], axis=1)


def _failed(record: Record, arm: str, task: str) -> str:
    return f"failed {shares(share_of_words(record, arm, [task], 'failed'))}"


def tasks_of(record: Record) -> list[str]:
    return [test["task"] for test in record["tests"]]


# ----- claims on one family -------------------------------------------------------------------------------------------


def _no_worse(record: Record | None, which: str) -> Iterator[Case]:
    for setting, _, bp in models(record):
        assert record is not None
        means = _against(record, bp, [QUADRATIC], which, "loss_10")
        sides = all_of([below(mean, np.log(MARGIN)) for mean in means.values()])
        said = f"BP / {_nearest(means)}; BP {_failed(record, bp, QUADRATIC)}"
        yield Case(setting, sides, said)


def _bp_lower(record: Record | None) -> Iterator[Case]:
    for setting, rl, bp in models(record):
        assert record is not None
        mean = mean_ratio(record["raw"], bp, rl, [QUADRATIC], "loss_10")
        lost = f"BP {_failed(record, bp, QUADRATIC)}, RL {_failed(record, rl, QUADRATIC)}"
        yield Case(setting, below(mean, 0.0), f"BP / RL {ratio(mean)}; {lost}")


def _transfer(record: Record | None, task: str) -> Iterator[Case]:
    for setting, rl, bp in models(record):
        assert record is not None
        does, said = [], []
        for model, arm in (("RL", rl), ("BP", bp)):
            means = _against(record, arm, [task], "fixed", "loss_10")
            does.append(all_of([below(mean, np.log(NEAR)) for mean in means.values()]))
            said.append(f"{model} / {_nearest(means)}, {_failed(record, arm, task)}")
        yield Case(f"{task}: {setting}", all_of([does[0], -does[1]]), "; ".join(said))


def _fastest(record: Record | None) -> Iterator[Case]:
    for setting, rl, bp in models(record):
        assert record is not None
        means = _against(record, bp, [REGRESSION], "fixed", "along_1")
        pair = mean_ratio(record["raw"], bp, rl, [REGRESSION], "along_1")
        tuned = _against(record, bp, [REGRESSION], "tuned", "along_1")
        said = (
            f"along the run BP / RL {ratio(pair)}; BP / {_nearest(means)}; tuned (not judged): BP / {_nearest(tuned)}"
        )
        yield Case(setting, all_of([below(mean, 0.0) for mean in (pair, *means.values())]), said)


def _diverges(record: Record | None) -> Iterator[Case]:
    for setting, rl, bp in models(record):
        assert record is not None
        lost = [share_of_words(record, arm, [REGRESSION], "failed", "rises") for arm in (bp, rl)]
        said = []
        for model, arm, found in (("BP", bp, lost[0]), ("RL", rl, lost[1])):
            improves = share(share_of_words(record, arm, [REGRESSION], "improves").mean)
            said.append(f"{model} fails or rises {shares(found)}, improves {improves}")
        yield Case(setting, all_of([-lost[0].under(MOST), lost[1].under(MOST)]), "; ".join(said))


def _rarely_lost(record: Record | None) -> Iterator[Case]:
    for setting, rl, _ in models(record):
        assert record is not None
        lost = share_of_words(record, rl, [REGRESSION], "failed", "rises")
        yield Case(setting, lost.under(FEW), f"RL fails or rises {shares(lost)}")


def _rl_lower(records: Sequence[Record], tasks: Sequence[str] | None) -> Iterator[Case]:
    for record in records:
        for setting, rl, bp in models(record):
            on = tasks or tasks_of(record)
            mean = mean_ratio(record["raw"], rl, bp, on, "loss_10")
            said = f"RL / BP {ratio(mean)}"
            if all("test_loss_10" in record["raw"].runs[arm][task] for arm in (rl, bp) for task in on):
                said += f"; on the test split {ratio(mean_ratio(record['raw'], rl, bp, on, 'test_loss_10'))}"
            yield _on_networks(record, setting, below(mean, 0.0), said)


# ----- claims on networks ---------------------------------------------------------------------------------------------


def _on_networks(record: Record, setting: str, sides: Sides, figures: str) -> Case:
    where = f"{NETWORKS[record['study']]}: " if record["study"] in NETWORKS else ""
    return Case(where + setting, sides, figures, record["study"] not in SAME_PHI)


def _fast_networks(record: Record) -> Iterator[Case]:
    tasks = tasks_of(record)
    for setting, rl, bp in models(record):
        means = _against(record, bp, tasks, "fixed", "along_1")
        pair = mean_ratio(record["raw"], bp, rl, tasks, "along_1")
        # On which networks BP is ahead of all: [seeds, networks].
        others = [rl, *rivals(record, tasks[0], "fixed")]
        seeds = min(record["arms"][name]["seeds"] for name in (rl, bp))
        each = [
            [record["raw"].log_ratios(bp, name, task, "along_1").mean(axis=1)[:seeds] for name in others]
            for task in tasks
        ]
        ahead = share_of(np.all(np.array(each) < 0, axis=1).T)
        said = f"along the run BP / RL {ratio(pair)}; BP / {_nearest(means)}; ahead on {shares(ahead)} of networks"
        sides = all_of([below(mean, 0.0) for mean in (pair, *means.values())])
        yield _on_networks(record, setting, sides, said)


def _lost_on_networks(record: Record) -> Iterator[Case]:
    for setting, _, bp in models(record):
        lost = share_of_words(record, bp, tasks_of(record), "failed", "rises")
        yield _on_networks(record, setting, -lost.under(MOST), f"BP fails or rises {shares(lost)}")


def _falls_on_networks(record: Record, limit: float) -> Iterator[Case]:
    for setting, rl, _ in models(record):
        falls = []
        for task in tasks_of(record):
            runs = record["raw"].runs[rl][task]
            falls.append((runs["improves_10"] & ~runs["failed_10"] & ~runs["rises_10"]).mean(axis=1))
        values = np.stack(falls, axis=1)
        steadily = share_of(values >= 1 - FEW)
        said = f"{shares(share_of(values))} of runs; at least {1 - FEW:.0%} of runs on {shares(steadily)} of networks"
        yield _on_networks(record, setting, -share_of(values).under(limit), said)
