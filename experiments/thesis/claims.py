"""The thesis's claims C1 to C5, judged on the reproduction's JSON in every setting that both models were trained in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Record = Mapping[str, Any]
FEW, MOST = 0.05, 0.5  # a share of runs that counts as "none", and one that counts as "it diverges"
OURS, THESIS = "several functions a meta-step", "one function a meta-step, as in the thesis"
NETWORKS = {
    "networks_digits": "digits",
    "networks_mnist_5k": "mnist_5k",
    "networks_fashion_mnist": "fashion_mnist after mnist_5k",
    "networks_cross": "digits, 2 networks",
}
SAME_PHI = ("networks_fashion_mnist",)  # as networks_mnist_5k, on other images
NEAR = 10.0  # an optimizer transfers when its median is within this factor of the best baseline of the figure


class Judged(NamedTuple):
    """A claim in one setting."""

    setting: str
    holds: bool
    figures: str
    counts: bool = True  # towards the verdict; the same φ on other data does not


class Claim(NamedTuple):
    """A claim, what it was taken to mean, and how it fared."""

    name: str
    text: str
    means: str
    judged: tuple[Judged, ...]
    ran: str  # settings, meta-seeds, functions

    @property
    def verdict(self) -> str:
        """holds / holds only if ... / does not hold."""
        if not self.judged:
            return "not run yet"
        counted = [one for one in self.judged if one.counts]
        held = [one.setting for one in counted if one.holds]
        if len(held) == len(counted):
            return "**holds**"
        if not held:
            return "**does not hold**"
        return f"**holds only with** {', '.join(held)} ({len(held)} of {len(counted)})"


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


def judge(records: Mapping[str, Record]) -> list[Claim]:
    """All claims; those whose study is not there yet have nothing judged."""
    quadratic, regression = records.get("quadratic"), records.get("linear_regression")
    nets = [records[name] for name in NETWORKS if name in records]
    rosenbrock = [test["task"] for test in (quadratic or {"tests": []})["tests"] if "rosenbrock" in test["task"]]
    return [
        Claim(
            "C1",
            "On quadratics BP is no worse than every hand-designed baseline, untuned (figure 3).",
            "at step 1000 it fails on no more than 5% and the interval of its mean does not lie above the best mean of "
            "the figure's baselines",
            tuple(_no_worse(quadratic, "quadratic:dim=10")),
            _ran(quadratic),
        ),
        Claim(
            "C1, tuned",
            "The same against the baselines at their best learning rates.",
            "the interval of the ratio of means to the best tuned baseline at step 1000 does not lie above 1",
            tuple(_no_worse(quadratic, "quadratic:dim=10", tuned=True)),
            _ran(quadratic),
        ),
        Claim(
            "C1b",
            "There, RL is worse than BP (figure 3).",
            "the interval of the ratio of means BP / RL at step 1000, on the same tasks, lies below 1",
            tuple(_paired(quadratic, "quadratic:dim=10", "10")),
            _ran(quadratic),
        ),
        Claim(
            "C2",
            "From quadratics to Rosenbrock BP does not transfer, RL does (figure 4).",
            "to transfer is to fail on at most 5% of the tasks and to end with a median at step 1000 within ten times "
            "that of the figure's best baseline",
            tuple(one for task in rosenbrock for one in _transfer(quadratic, task)),
            _ran(quadratic),
        ),
        Claim(
            "C3",
            "On linear regression BP converges fastest within its horizon of 100 (figure 5).",
            "its mean loss along the 100 steps is below those of RL (interval of the paired ratio below 1) and of the "
            "figure's baselines; by step 100 itself both models are at the noise of the data",
            tuple(_fastest(regression)),
            _ran(regression),
        ),
        Claim(
            "C4",
            "Beyond it, at 1000, BP diverges and RL does not (figure 6).",
            "more than half of BP's runs fail or rise, and at most 5% of RL's",
            tuple(_diverges(regression, "linear_regression")),
            _ran(regression),
        ),
        Claim(
            "C5a",
            "On networks BP falls fastest up to step 50 (figures 7, 8).",
            "its mean loss along the first 50 steps is below that of RL and of the figure's baselines",
            tuple(one for record in nets for one in _fast_networks(record)),
            _ran(*nets),
        ),
        Claim(
            "C5b",
            "Beyond it, BP diverges on networks (figures 7, 8).",
            "by step 500 more than half of its runs fail or rise",
            tuple(one for record in nets for one in _by_network(record, "bp")),
            _ran(*nets),
        ),
        Claim(
            "C5c",
            "RL keeps falling to step 500 on networks (figures 7, 8).",
            "at most 5% of its runs fail or rise, and at least 95% are lower at step 500 than at 50",
            tuple(one for record in nets for one in _by_network(record, "rl")),
            _ran(*nets),
        ),
    ]


def _ran(*records: Record | None) -> str:
    """Such as `5 settings of 3 to 5 meta-seeds, 400 functions`; a record of its own after `; `."""
    words = []
    for record in records:
        if record is None:
            continue
        pairs = list(_settings(record))
        if not pairs:
            continue
        seeds = [arm["seeds"] for _, rl, bp in pairs for arm in (rl, bp)]
        tasks = max(test["num_tasks"] for test in record["tests"])
        where = f"{NETWORKS[record['study']]}: " if record["study"] in NETWORKS else ""
        least, most = min(seeds), max(seeds)
        number_of = f"{least} to {most} meta-seeds" if least < most else f"{most} meta-seed{'s' * (most != 1)}"
        settings = f"{len(pairs)} setting{'s' * (len(pairs) != 1)}"
        functions = f"{tasks} functions" + (" a network" if where else "")
        words.append(f"{where}{settings}, {number_of}, {functions}")
    return "; ".join(words)


def setting_of(arm: str) -> str:
    """What an arm's setting is called; the thesis takes one function a meta-step."""
    name = arm.removeprefix("bp").removeprefix("rl").removeprefix("/")
    return {"": OURS, "num_tasks=1": THESIS}.get(name, name)


def _settings(record: Record | None) -> Iterator[tuple[str, Record, Record]]:
    """(setting, RL arm, BP arm)."""
    if record is None:
        return
    arms = record["arms"]
    for name, arm in arms.items():
        twin = "rl" + name.removeprefix("bp")
        if name.startswith("bp") and twin in arms:
            setting = setting_of(name)
            # Some studies of networks have no other.
            alone = setting == OURS and record["study"] in NETWORKS and arm["config"]["num_tasks"] == 1
            yield THESIS if alone else setting, arms[twin], arm


def _best(record: Record, task: str, multiple: str, which: str, tuned: bool = False) -> tuple[str, float]:
    """(name, value) of the best baseline that does not fail on more than 5%."""
    found = {}
    for name, baseline in record["baselines"][task].items():
        at = baseline["at"].get(multiple)
        wanted = name.endswith(f"@{multiple}") if tuned else "@" not in name
        if wanted and at and at["failed"] <= FEW and at[which] is not None:
            rate = f" {baseline['record']['learning_rate']:.3g}" if tuned else ""
            found[name.partition("@")[0] + rate] = float(at[which])
    return min(found.items(), key=lambda item: item[1], default=("none", float("inf")))


def _no_worse(record: Record | None, task: str, tuned: bool = False) -> Iterator[Judged]:
    for setting, _, bp in _settings(record):
        assert record is not None
        at = bp["tests"][task]["at"]["10"]
        name, best = _best(record, task, "10", "mean")
        low, ratio = at["interval"][0], at["to_best_tuned"]
        words = f"BP {number(at['mean'])} {between(at['interval'])}, {share(at['failed'])} failed; "
        if tuned:
            low, limit = ratio["interval"][0], 1.0
            name, best = _best(record, task, "10", "mean", tuned=True)
            words += f"{name} {number(best)}; ratio {number(ratio['ratio'])} {between(ratio['interval'])}"
        else:
            limit = best
            words += f"{name} {number(best)}"
        yield Judged(setting, at["failed"] <= FEW and low is not None and low <= limit, words)


def _pair(record: Record, setting: str, task: str, multiple: str) -> Record:
    name = {OURS: "thesis", THESIS: "num_tasks=1"}.get(setting, setting)
    return record["pairs"][name][task][multiple]


def _paired(record: Record | None, task: str, multiple: str) -> Iterator[Judged]:
    for setting, rl, bp in _settings(record):
        assert record is not None
        pair = _pair(record, setting, task, multiple)
        means = [number(arm["tests"][task]["at"][multiple]["mean"]) for arm in (bp, rl)]
        failed = [share(arm["tests"][task]["at"][multiple]["failed"]) for arm in (bp, rl)]
        yield Judged(
            setting,
            pair["interval"][1] is not None and pair["interval"][1] < 1,
            f"BP {means[0]}, RL {means[1]}; BP / RL {number(pair['ratio'])} {between(pair['interval'])}; "
            f"failed {failed[0]} and {failed[1]}",
        )


def _transfer(record: Record | None, task: str) -> Iterator[Judged]:
    for setting, rl, bp in _settings(record):
        assert record is not None
        name, best = _best(record, task, "10", "median")
        does, words = [], []
        for arm in (rl, bp):
            at = arm["tests"][task]["at"]["10"]
            does.append(at["failed"] <= FEW and float(at["median"]) <= NEAR * best)
            words.append(f"median {number(at['median'])}, {share(at['failed'])} failed")
        yield Judged(
            f"{task}: {setting}", does[0] and not does[1], f"RL {words[0]}; BP {words[1]}; {name} {number(best)}"
        )


def _fastest(record: Record | None) -> Iterator[Judged]:
    task = "linear_regression"
    for setting, rl, bp in _settings(record):
        assert record is not None
        at, pair = bp["tests"][task]["at"]["1"], _pair(record, setting, task, "area")
        name, best = _best(record, task, "1", "area")
        tuned, best_tuned = _best(record, task, "1", "area", tuned=True)
        faster = pair["interval"][1] is not None and pair["interval"][1] < 1
        yield Judged(
            setting,
            faster and at["failed"] <= FEW and at["area"] < best,
            f"along the run BP {number(at['area'])}, RL {number(rl['tests'][task]['at']['1']['area'])}, BP / RL "
            f"{number(pair['ratio'])} {between(pair['interval'])}; {name} {number(best)}; tuned: {tuned} "
            f"{number(best_tuned)}; at step 100 BP {number(at['mean'])}",
        )


def _lost(arm: Record, task: str) -> tuple[float, str]:
    at = arm["tests"][task]["at"]["10"]
    words = f"failed {share(at['failed'])}, rises {share(at['rises'])}, improves {share(at['improves'])}"
    return at["failed_or_rises"], words


def _diverges(record: Record | None, task: str) -> Iterator[Judged]:
    for setting, rl, bp in _settings(record):
        (lost_bp, bp_words), (lost_rl, rl_words) = (_lost(arm, task) for arm in (bp, rl))
        yield Judged(setting, lost_bp > MOST and lost_rl <= FEW, f"BP {bp_words}; RL {rl_words}")


def _fast_networks(record: Record) -> Iterator[Judged]:
    for setting, rl, bp in _settings(record):
        held, tasks = 0, [test["task"] for test in record["tests"]]
        for task in tasks:
            mine, other = (arm["tests"][task]["at"]["1"] for arm in (bp, rl))
            fixed = _best(record, task, "1", "area")[1]
            areas = [float("inf") if at["area"] is None else float(at["area"]) for at in (mine, other)]
            held += mine["failed"] <= FEW and areas[0] < min(areas[1], fixed)
        where = f"{NETWORKS[record['study']]}: {setting}"
        words = f"on {held} of {len(tasks)} networks"
        yield Judged(where, held == len(tasks), words, record["study"] not in SAME_PHI)


def _by_network(record: Record, model: str) -> Iterator[Judged]:
    for setting, rl, bp in _settings(record):
        arm, tasks = (rl if model == "rl" else bp), [test["task"] for test in record["tests"]]
        held, shares = 0, []
        for task in tasks:
            at = arm["tests"][task]["at"]["10"]
            shares.append(at["failed_or_rises"])
            lost = at["failed_or_rises"]
            held += lost > MOST if model == "bp" else (lost <= FEW and (at["improves"] or 0.0) >= 1 - FEW)
        mean = sum(shares) / len(shares)
        yield Judged(
            f"{NETWORKS[record['study']]}: {setting}",
            held == len(tasks),
            f"on {held} of {len(tasks)} networks; {share(mean)} of all runs fail or rise; "
            f"lower at step {10 * record['horizon']} than at {record['horizon']} with at most {100 * FEW:.0f}% failed, "
            f"each meta-seed alone: on {_by_seed(arm)} networks",
            record["study"] not in SAME_PHI,
        )


def _by_seed(arm: Record) -> str:
    """On how many networks each meta-seed alone goes on falling without failing, such as `20, 0 and 18`."""
    counts = []
    for seed in range(arm["seeds"]):
        near, far = ([test["at"][multiple]["per_seed"] for test in arm["tests"].values()] for multiple in ("1", "10"))
        counts.append(
            sum(
                two["failed"][seed] <= FEW and (two["mean"][seed] or 0.0) < (one["mean"][seed] or 0.0)
                for one, two in zip(near, far, strict=True)
            )
        )
    return " and ".join([", ".join(map(str, counts[:-1])), str(counts[-1])]) if len(counts) > 1 else str(counts[0])
