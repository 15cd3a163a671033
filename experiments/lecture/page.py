"""README.md from results.json alone: every claim of the lecture with a verdict that its numbers decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.lecture.families import FAMILIES
from experiments.lecture.measure import BATCHES, FEW, SCHEDULES, STOPPING_TASKS
from experiments.lecture.search import CEILING, FLOOR, GRIDS, NAMES, best_of, log_ratio, ratio
from metaopt.evaluation.intervals import Mean, no_worse

Record = Mapping[str, Any]
NETWORKS = ("network", "sigmoid network")
DRIFTING = ("moving optimum", "changing regimes", "relabelled digits")
LECTURES = {"sgd": 0.01, "adagrad": 0.01, "rmsprop": 0.001, "adam": 0.001, "adamw": 0.001}  # its rates; torch's old SGD


class Ratio(NamedTuple):
    """Geometric mean over tasks with its interval, and what verdicts are made of."""

    value: float
    low: float
    high: float
    logs: Mean


class Claim(NamedTuple):
    words: str  # the lecture's
    verdict: str
    evidence: str
    figure: str
    part: str  # what measures it anew


# ----- verdicts -------------------------------------------------------------------------------------------------------


def against(record: Record, name: str, other: str, where: str) -> Ratio:
    """The loss of one optimizer over another's, of tuned ones."""
    found = record["families"][where]
    return compared(found[name]["logs"], found[other]["logs"])


def compared(values: Any, reference: Any) -> Ratio:
    """Of losses in logarithms, [tasks] each."""
    return Ratio(*ratio(values, reference), log_ratio(values, reference))


def kept(held: Sequence[float], tasks: int) -> Ratio:
    """A ratio that results.json has with its interval alone."""
    value, low, high = held
    error = float(np.log(high / low)) / 2 / 1.96
    return Ratio(value, low, high, Mean(float(np.log(value)), error, tasks - 1.0))


def where_lower(ratios: Mapping[str, Ratio]) -> str:
    """Of "the ratio is below 1" in each place: three words, corrected for the number of places (Holm)."""
    words: dict[str, list[str]] = {"holds": [], "undecided": [], "does not hold": []}
    for where, verdict in zip(ratios, no_worse([found.logs for found in ratios.values()]), strict=True):
        words[verdict.word].append(where)
    for word, places in words.items():
        if len(places) == len(ratios):
            return word
    unknown = f"; undecided: {_and(words['undecided'])}" if words["undecided"] else ""
    if words["holds"]:
        return f"only where: {_and(words['holds'])}{unknown}"
    return f"does not hold where: {_and(words['does not hold'])}{unknown}"


def judged(holds: bool | np.bool_) -> str:
    return "holds" if holds else "does not hold"


def partly(conditions: Mapping[str, bool | np.bool_]) -> str:
    """Of a claim with several parts."""
    held = [name for name, holds in conditions.items() if holds]
    failed = [name for name, holds in conditions.items() if not holds]
    if not failed:
        return "holds"
    return f"{_and(held)}: holds; {_and(failed)}: does not hold" if held else "does not hold"


def _and(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _number(value: float) -> str:
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if value >= 1e3 else f"{value:.3g}"


def _ratio(found: Ratio) -> str:
    return f"{_number(found.value)} [{_number(found.low)}, {_number(found.high)}]"


def _listed(ratios: Mapping[str, Ratio]) -> str:
    return "; ".join(f"{where} {_ratio(found)}" for where, found in ratios.items())


# ----- the claims -----------------------------------------------------------------------------------------------------


def claims(record: Record) -> Iterator[Claim]:
    yield from _descent(record)
    yield from _batches(record)
    yield from _problems(record)
    yield from _momentum(record)
    yield from _adaptive(record)
    yield from _adam(record)
    yield from _rate(record)
    yield from _stopping(record)


def _descent(record: Record) -> Iterator[Claim]:
    falls = {}
    for entry in record["steps"]["descent"]:
        loss = np.array([np.nan if value is None else float(value) for value in entry["loss"]])
        falls[f"{entry['rate'] * 50:.3g}/L"] = float(np.mean(np.diff(loss) < 0))
    yield Claim(
        "Each step of gradient descent comes nearer to the optimum",
        f"only where: the rate lies below 2/L (here {_and(name for name, share in falls.items() if share > 0.99)})",
        "Steps on which f falls in the ravine, curvature at most L, by rate: "
        + ", ".join(f"{name} {share:.0%}" for name, share in falls.items()),
        "steps",
        "steps",
    )


def _batches(record: Record) -> Iterator[Claim]:
    found = record["batches"]
    end = {
        budget: {name: float(np.mean(found[name][budget]["last"])) for name in BATCHES}
        for budget in ("steps", "examples")
    }
    steps, examples = end["steps"], end["examples"]
    rises = {name: found[name]["steps"]["rises"] for name in BATCHES}

    def told(losses: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {_number(loss)}" for name, loss in losses.items())

    yield Claim(
        "Batch descent: exact, but slow",
        partly(
            {
                "exact": steps["all"] < min(steps["1"], steps["32"]),
                "slow": examples["all"] > max(examples["1"], examples["32"]),
            }
        ),
        f"Training loss on digits by batch, after 300 steps: {told(steps)}; after 28,740 gradients of examples: "
        f"{told(examples)}",
        "batches",
        "batches",
    )
    yield Claim(
        "Stochastic descent (one example a step): fast, but noisy",
        partly({"fast": examples["1"] < examples["all"], "noisy": rises["1"] > rises["all"]}),
        f"The same; the loss rises from one record to the next in {rises['1']:.0%} of the second half at batch 1, in "
        f"{rises['32']:.0%} at 32, in {rises['all']:.0%} at all. Fast by gradients of examples, the slowest by steps",
        "batches",
        "batches",
    )
    between = {
        "at equal steps": steps["all"] < steps["32"] < steps["1"],
        "at equal gradients": examples["1"] < examples["32"] < examples["all"],
    }
    yield Claim(
        "Minibatches of 32 to 256: a compromise",
        judged(all(between.values())),
        "32 lies between the other two both ways. Counted in gradients of examples single ones are the cheapest; what "
        "makes 32 pay is a machine that takes 32 at once for little more than one",
        "batches",
        "batches",
    )


def _problems(record: Record) -> Iterator[Claim]:
    families = record["families"]
    wells = {NAMES[name]: found["event"] for name, found in families["two minima"].items()}
    yield Claim(
        "Local minima: the model gets stuck in a solution that is not the best",
        judged(wells["SGD"] < 0.95),
        "Two minima in each of two directions, uniform starts; share of 64 runs that end in the global one: "
        + ", ".join(f"{name} {share:.0%}" for name, share in wells.items())
        + " (27% of the starts lie in its basin). No optimizer of the lecture mends it; with large steps some jump",
        "landscape_two_minima",
        "two minima",
    )
    stuck = {
        where: float(np.exp(np.mean(families[where]["sgd"]["logs"])))
        for where in ("plateau", "saddle", "sigmoid network")
    }
    mended = {
        where: (NAMES[best_of(record, where)], float(np.exp(np.mean(families[where][best_of(record, where)]["logs"]))))
        for where in stuck
    }
    yield Claim(
        "Plateaus and saddles: the gradient is almost zero and learning stands still",
        "holds, for SGD" if min(stuck[where] / mended[where][1] for where in stuck) > 3 else "only in part",
        "f at the end over the start with SGD at its best rate, and with the best optimizer: "
        + "; ".join(
            f"{where} {_number(stuck[where])}, {mended[where][0]} {_number(mended[where][1])}" for where in stuck
        ),
        "landscape_plateau",
        "plateau",
    )
    descent = record["steps"]["descent"]
    yield Claim(
        "Too large a step jumps over the minimum; too small a one learns very slowly",
        judged(float(descent[-1]["loss"][-1]) > 1e3 and float(descent[0]["loss"][-1]) > 1),
        f"In the ravine from 14.6, after 200 steps: rate .02/L {_number(descent[0]['loss'][-1])}, 1/L "
        f"{_number(descent[1]['loss'][-1])}, 1.9/L {_number(descent[2]['loss'][-1])}, 2.03/L "
        f"{_number(descent[3]['loss'][-1])}. The best rate stands next to those that fail",
        "steps",
        "steps",
    )
    scales = record["steps"]["scales"]
    raw, plain = (float(np.exp(np.mean(families[f"cells, {name}"]["sgd"]["logs"]))) for name in ("raw", "standardised"))
    best = best_of(record, "cells, raw")
    yield Claim(
        "The scale of features bears on the direction of descent",
        judged(scales["raw"]["cosine"] < scales["standardised"]["cosine"] and plain < raw),
        "10 measures of cells, as they are and standardised: condition number "
        f"{_number(scales['raw']['condition'])} and "
        f"{_number(scales['standardised']['condition'])}, cosine between descent and the way to the optimum "
        f"{_number(scales['raw']['cosine'])} and {_number(scales['standardised']['cosine'])}; SGD's loss over the "
        f"start {_number(raw)} and {_number(plain)}. On the raw measures {NAMES[best]} is best, at "
        f"{_ratio(against(record, best, 'sgd', 'cells, raw'))} of SGD's",
        "curves",
        "cells, raw",
    )


def _momentum(record: Record) -> Iterator[Claim]:
    speed = {
        where: against(record, "momentum", "sgd", where)
        for where in ("ravine", "Rosenbrock", "cells, standardised", "noise", "network")
    }
    yield Claim(
        "Momentum speeds learning up",
        where_lower(speed),
        f"Loss over SGD's: {_listed(speed)}",
        "families",
        "ravine",
    )
    turns = record["nesterov"]["turns"]
    yield Claim(
        "It smooths oscillations",
        judged(all(found["momentum"] < 0.8 * found["sgd"] for found in turns.values())),
        "Steps that turn by more than a right angle, with SGD at rate α and with μ = .9 at α/10, which go equally far: "
        + "; ".join(f"{where} {found['sgd']:.0%} and {found['momentum']:.0%}" for where, found in turns.items())
        + ". The path is smoother; f itself rises and falls as it did not without (picture)",
        "landscape_ravine",
        "nesterov",
    )
    pits = {
        where: against(record, "momentum", "sgd", where)
        for where in ("two minima", "plateau", "saddle", "sigmoid network")
    }
    wells = record["families"]["two minima"]
    yield Claim(
        "Momentum helps through pits and plateaus",
        where_lower(pits),
        f"Loss over SGD's: {_listed(pits)}. In the global minimum end {wells['momentum']['event']:.0%} with momentum, "
        f"{wells['sgd']['event']:.0%} without; at one small rate it passes a pit that SGD stays in (picture)",
        "landscape_two_minima",
        "two minima",
    )
    bent = max(speed["ravine"][0], speed["Rosenbrock"][0])
    yield Claim(
        "Most of all on bent surfaces",
        judged(bent < min(speed["cells, standardised"][0], speed["network"][0], speed["noise"][0])),
        f"The same ratios: at most {_number(bent)} in the ravine and on Rosenbrock's, at least "
        f"{_number(min(speed['cells, standardised'][0], speed['network'][0], speed['noise'][0]))} elsewhere",
        "landscape_Rosenbrock",
        "Rosenbrock",
    )
    both = {where: against(record, "nesterov", "momentum", where) for where in FAMILIES}
    yield Claim(
        "Nesterov's look ahead improves on momentum",
        where_lower(both),
        f"Loss over momentum's, both tuned: {_listed(both)}",
        "families",
        "ravine",
    )
    found = record["nesterov"]
    at = found["rates"].index(1.0)
    rise = {name: float(found[name]["rise"][at]) for name in ("momentum", "nesterov")}
    yield Claim(
        "It corrects the motion before the minimum is jumped over; it makes learning more stable and exact",
        partly(
            {
                "corrects": rise["nesterov"] < rise["momentum"] / 2,
                "more stable": found["nesterov"]["largest"] > found["momentum"]["largest"],
            }
        ),
        f"In the ravine at μ = .9 and rate 1/L all rises of f sum to {_number(rise['nesterov'])} of its start, "
        f"momentum's to {_number(rise['momentum'])}; yet its largest stable rate is "
        f"{found['nesterov']['largest']}/L and momentum's {found['momentum']['largest']}/L (theory: "
        "2(1+μ)/(1+2μ) = 1.36 and 2(1+μ) = 3.8)",
        "nesterov",
        "nesterov",
    )


def _adaptive(record: Record) -> Iterator[Claim]:
    families = record["families"]
    wide = {NAMES[name]: np.median([_near_best(families[where][name]) for where in FAMILIES]) for name in GRIDS}
    spread = {NAMES[name]: _spread([families[where][name]["rate"] for where in FAMILIES]) for name in GRIDS}
    adaptive = ("AdaGrad", "RMSProp", "Adam", "AdamW")
    plain = ("SGD", "momentum", "Nesterov")
    yield Claim(
        "A rate of its own for every parameter: less tuning by hand",
        partly(
            {
                "one rate serves more families": max(spread[name] for name in adaptive)
                < min(spread[name] for name in plain),
                "more rates are good enough": min(wide[name] for name in adaptive) > max(wide[name] for name in plain),
            }
        ),
        "Best rates lie within (decades, over all families): "
        + ", ".join(f"{name} {_number(value)}" for name, value in spread.items())
        + ". Rates within twice the best loss (median number of half-decades): "
        + ", ".join(f"{name} {value:.0f}" for name, value in wide.items()),
        "rates_matter",
        "noise",
    )
    faster = {where: against(record, "adam", "momentum", where) for where in FAMILIES}
    yield Claim(
        "Adaptive methods converge faster",
        where_lower(faster),
        f"Adam's loss over momentum's: {_listed(faster)}",
        "families",
        "Rosenbrock",
    )
    words, time = record["rates"]["words"], record["rates"]["time"]["moving optimum"]
    dying = {
        name: float(time[name][-1])
        / float(time[name][time["steps"].index(100) if 100 in time["steps"] else len(time["steps"]) // 2])
        for name in ("adagrad", "rmsprop")
    }
    yield Claim(
        "AdaGrad takes smaller steps as gradients accumulate",
        judged(dying["adagrad"] < 0.7),
        f"Step over gradient at the end, over that around step 100, where the optimum moves on: AdaGrad "
        f"{_number(dying['adagrad'])}, RMSProp {_number(dying['rmsprop'])}",
        "rates",
        "rates",
    )
    yield Claim(
        "Parameters that are updated often get smaller steps, rare ones larger",
        judged(words["adagrad"]["slope"] < -0.3),
        f"Rate of a word's weight ∝ frequency^s: s = {words['adagrad']['slope']:.2f} with AdaGrad (-½ by its formula), "
        f"{words['rmsprop']['slope']:.2f} with RMSProp, 0 with SGD",
        "rates",
        "rates",
    )
    rare = {
        f"over {NAMES[name]}": against(record, "adagrad", name, "rare words") for name in GRIDS if name != "adagrad"
    }
    yield Claim(
        "AdaGrad works well on sparse data",
        where_lower({"over SGD": rare["over SGD"]}),
        f"Its loss on rare words, of others': {_listed(rare)}",
        "curves",
        "rare words",
    )
    mended = {
        where: against(record, "rmsprop", "adagrad", where) for where in (*DRIFTING, *NETWORKS, "Rosenbrock, long")
    }
    yield Claim(
        "RMSProp forgets old gradients and keeps the step alive: it mends AdaGrad",
        where_lower(mended),
        f"Loss over AdaGrad's: {_listed(mended)}",
        "curves",
        "changing regimes",
    )
    drift = {where: against(record, "rmsprop", "sgd", where) for where in DRIFTING}
    best = {where: NAMES[best_of(record, where)] for where in DRIFTING}
    yield Claim(
        "RMSProp works well where the distribution of the data changes",
        where_lower(drift),
        f"Loss over SGD's: {_listed(drift)}. Best: " + "; ".join(f"{where}, {name}" for where, name in best.items()),
        "curves",
        "changing regimes",
    )
    nets = {where: against(record, "rmsprop", "sgd", where) for where in NETWORKS}
    yield Claim(
        "RMSProp works well in training networks",
        where_lower(nets),
        f"Loss over SGD's: {_listed(nets)}",
        "curves",
        "network",
    )


def _near_best(found: Mapping[str, Any]) -> int:
    values = np.asarray(found["by_rate"], float)
    return int(np.sum(values <= 2 * values.min()))


def _spread(rates: Sequence[float]) -> float:
    return float(np.ptp(np.log10(rates)))


def _adam(record: Record) -> Iterator[Claim]:
    families = record["families"]
    both = {where: against(record, "adam", "rmsprop", where) for where in FAMILIES}
    yield Claim(
        "Adam joins momentum and RMSProp: it converges fast",
        where_lower(both),
        f"Loss over RMSProp's: {_listed(both)}",
        "families",
        "Rosenbrock",
    )
    level = float(np.exp(np.mean(families["noise"]["adam"]["logs"])))
    noise = {f"over {NAMES[name]}": against(record, "adam", name, "noise") for name in ("sgd", "momentum", "rmsprop")}
    yield Claim(
        "Adam is robust to noise",
        where_lower(noise),
        f"With minibatches of 4 its excess loss comes down to {_number(level)} of the start. Over others': "
        f"{_listed(noise)}",
        "curves",
        "noise",
    )
    lost = {
        NAMES[name]: [_at_rate(families[where][name], rate) for where in FAMILIES] for name, rate in LECTURES.items()
    }
    yield Claim(
        "Adam needs almost no tuning by hand",
        judged(np.median(lost["Adam"]) < 2),
        "On runs this short: loss at the rate of the lecture's line (Adam and RMSProp .001, AdaGrad and SGD .01) over "
        "that at the best rate, median over families: "
        + ", ".join(f"{name} {_number(float(np.median(values)))}" for name, values in lost.items())
        + f"; Adam at .01 {_number(float(np.median([_at_rate(families[where]['adam'], 0.01) for where in FAMILIES])))}",
        "rates_matter",
        "network",
    )
    found = record["decay"]
    alone = {name: [float(value) for value in found["alone"][name]] for name in ("penalty", "decoupled")}
    yield Claim(
        "AdamW is a correct regularisation of the weights",
        judged(np.ptp(alone["decoupled"]) < 0.1 < np.ptp(alone["penalty"])),
        "What is left of a weight after 1,000 steps of noise, with gradients of .001 to 10: AdamW "
        f"{min(alone['decoupled']):.2f} to {max(alone['decoupled']):.2f} (exp(-αλt) = .37), a penalty in Adam's loss "
        f"{abs(min(alone['penalty'])):.2f} to {max(alone['penalty']):.2f}: it hardly decays what has large gradients",
        "decay",
        "decay",
    )
    picked = {name: _picked(found[name]) for name in ("penalty", "decoupled")}
    none = _picked({key: [row[:1] for row in value] for key, value in found["decoupled"].items()})
    norm = {name: float(np.mean(found[name]["norm"][row][column])) for name, (row, column) in picked.items()}
    bare = float(np.mean(found["decoupled"]["norm"][none[0]][0]))
    yield Claim(
        "It mends the swelling of weights",
        judged(norm["decoupled"] < 0.9 * bare),
        f"Norm of a network's weights after 1,000 steps on {FEW} digits, rate and λ best by validation: Adam "
        f"{bare:.1f}, AdamW {norm['decoupled']:.1f}, penalty {norm['penalty']:.1f} (at the start 8.6)",
        "decay",
        "decay",
    )
    test = {name: np.log(found[name]["test"][row][column]) for name, (row, column) in picked.items()}
    plain = np.log(found["decoupled"]["test"][none[0]][0])
    over = {
        "over Adam": compared(test["decoupled"], plain),
        "over a penalty in the loss": compared(test["decoupled"], test["penalty"]),
    }
    accuracy = {name: float(np.mean(found[name]["accuracy"][row][column])) for name, (row, column) in picked.items()}
    yield Claim(
        "It generalises better",
        where_lower(over),
        f"Test loss of the same: {_listed(over)} (4 starts). Test accuracy: Adam "
        f"{float(np.mean(found['decoupled']['accuracy'][none[0]][0])):.3f}, AdamW {accuracy['decoupled']:.3f}, penalty "
        f"{accuracy['penalty']:.3f}",
        "decay",
        "decay",
    )
    training = {where: against(record, "adamw", "adam", where) for where in FAMILIES}
    yield Claim(
        "(AdamW as an optimizer of the training loss)",
        where_lower(training),
        f"Loss over Adam's, β2 tuned for both, β1 for Adam and λ for AdamW: {_listed(training)}",
        "families",
        "network",
    )


def _at_rate(found: Mapping[str, Any], rate: float) -> float:
    """Loss at a rate of the grid over that at the best."""
    at = int(np.argmin(np.abs(np.log(found["rates"]) - np.log(rate))))
    return float(found["by_rate"][at]) / min(map(float, found["by_rate"]))


def _picked(found: Mapping[str, Any]) -> tuple[int, int]:
    """(rate, decay) with the lowest validation loss."""
    table = np.array(found["validation"], float)
    row, column = np.unravel_index(np.argmin(table), table.shape)
    return int(row), int(column)


def _rate(record: Record) -> Iterator[Claim]:
    families = record["families"]
    sgd = [families[where]["sgd"]["rate"] for where in FAMILIES]
    edge = sum(
        _half_decades_to_failure(families[where]["sgd"]) <= 2 for where in FAMILIES if not FAMILIES[where].online
    )
    still = sum(not FAMILIES[where].online for where in FAMILIES)
    yield Claim(
        "Small rates are slow, large ones blow the loss up; the best is found by experiment",
        judged(_spread(sgd) > 1),
        f"SGD's best rates go from {_number(min(sgd))} to {_number(max(sgd))} by family; on {edge} of {still} families "
        "without drift the next half-decade or the one after ends above its start",
        "rates_matter",
        "ravine",
    )
    found = record["schedules"]
    for where, title in (("noise", "SGD on minibatches of 4"), ("network", "Adam on digits")):
        tasks = FAMILIES[where].tasks
        ratios = {name: kept(found[where][name]["ratio"], tasks) for name in SCHEDULES if name != "constant"}
        yield Claim(
            f"Schedules are of use ({title})",
            where_lower(ratios),
            f"Loss at the end over that of the constant rate, each at its own best: {_listed(ratios)}",
            "schedules",
            "schedules",
        )


def _stopping(record: Record) -> Iterator[Claim]:
    found = record["stopping"]
    ratios = {
        f"{name} ({row['patience']})": kept(row["ratio"], STOPPING_TASKS)
        for name, rows in found["runs"].items()
        for row in rows
    }
    yield Claim(
        "Early stopping prevents overfitting",
        where_lower(ratios),
        f"By rate (patience): test loss of the parameters restored over those after {found['horizon']:,} steps, "
        f"{FEW} digits, 16 starts: "
        f"{_listed(ratios)}. Test accuracy at the end and restored: "  # pyright: ignore[reportArgumentType]
        + "; ".join(
            f"{name}, {row['patience']}: {row['accuracy'][0]:.3f}, {row['accuracy'][1]:.3f}"
            for name, rows in found["runs"].items()
            for row in rows
        ),
        "stopping",
        "stopping",
    )
    saved = [row["saved"] for rows in found["runs"].values() for row in rows]
    yield Claim(
        "It saves resources",
        judged(min(saved) > 0.1),
        "Steps that need not have been made, by patience (checks, every 10 steps): "
        + "; ".join(
            f"{name} " + ", ".join(f"{row['patience']}: {row['saved']:.0%}" for row in rows)
            for name, rows in found["runs"].items()
        ),
        "stopping",
        "stopping",
    )


def _half_decades_to_failure(found: Mapping[str, Any]) -> int:
    values = np.asarray(found["by_rate"], float)
    best = int(np.argmin(values))
    after = np.flatnonzero(values[best:] >= 1)
    return int(after[0]) if len(after) else 99


# ----- the page -------------------------------------------------------------------------------------------------------


def families_table(record: Record) -> list[str]:
    lines = [f"| family | steps | what is hard | {' | '.join(NAMES.values())} |", "| --- " * (3 + len(NAMES)) + "|"]
    for where, entry in FAMILIES.items():
        best = best_of(record, where)
        cells = []
        for name in GRIDS:
            text = "**1**" if name == best else _ratio(against(record, name, best, where))
            failed = record["families"][where][name]["failed"]
            cells.append(text + (f", {failed:.0%} failed" if failed else ""))
        lines.append(f"| {where} | {entry.horizon:,} | {entry.hard} | {' | '.join(cells)} |")
    return lines


def mending(record: Record) -> list[str]:
    """Who fails where, and the plainest optimizer that is near the best."""
    lines = [
        "| family | SGD over the best | clearly worse than the best | mended first by | best |",
        "| --- " * 5 + "|",
    ]
    for where in FAMILIES:
        best = best_of(record, where)
        ratios = {name: against(record, name, best, where) for name in GRIDS}
        worse = [NAMES[name] for name, found in ratios.items() if found[1] > 1.5]
        first = next(name for name, found in ratios.items() if found[0] <= 1.1)
        lines.append(
            f"| {where} | {_ratio(ratios['sgd'])} | {', '.join(worse) or 'none'} | "
            f"{'nothing to mend' if first == 'sgd' else NAMES[first]} | {NAMES[best]} |"
        )
    return lines


def settings_table(record: Record) -> list[str]:
    lines = [f"| family | {' | '.join(NAMES.values())} |", "| --- " * (1 + len(NAMES)) + "|"]
    for where in FAMILIES:
        cells = []
        for name in GRIDS:
            found = record["families"][where][name]
            chosen = "".join(f", {LETTERS[key]} {_number(value)}" for key, value in found["setting"].items())
            cells.append(_number(found["rate"]) + chosen + ("" if found["inside"] else " (edge)"))
        lines.append(f"| {where} | {' | '.join(cells)} |")
    return lines


LETTERS = {"mu": "μ", "decay": "β", "beta1": "β1", "beta2": "β2", "weight_decay": "λ"}


def page(record: Record) -> str:
    lines = [
        "| the lecture says | measured | by what | picture | `python -m experiments.lecture.write` |",
        "| --- " * 5 + "|",
    ]
    for claim in claims(record):
        lines.append(
            f"| {claim.words} | **{claim.verdict}** | {claim.evidence} | "
            f'[{claim.figure}](figures/{claim.figure}.png) | `"{claim.part}"` |'
        )
    seconds = sum(record["core seconds"].values())
    return PAGE.format(
        claims="\n".join(lines),
        families="\n".join(families_table(record)),
        mending="\n".join(mending(record)),
        settings="\n".join(settings_table(record)),
        minutes=f"{seconds / 60:.0f}",
        few=FEW,
        floor=_number(FLOOR),
        ceiling=f"{CEILING:.0f}",
    )


PAGE = """# The lecture's claims, measured

Written by `python -m experiments.lecture.write` from `results.json`, and the pictures with it. What results.json lacks
is measured part by part ({minutes} minutes of one core for all), so that a run that was cut off goes on; a part's name
measures it anew: `python -m experiments.lecture.write "rare words" batches`.

The lecture goes from gradient descent to AdamW and says of each method what it mends. Here every optimizer is an entry
of the registry with optax's arithmetic and torch's settings, and has its best rate and settings: μ of momentum and
Nesterov .5, .9, .99; β of RMSProp and β2 of Adam and AdamW .9, .99, .999; β1 of Adam .5, .9, .99; λ of AdamW .001, .1.
Best is the lowest geometric mean of f/f(θ_0) on tasks of their own; other tasks are reported. Rates are half-decades,
searched until the best is inside: a ratio within some 1.3 of 1 may be the grid's, which its interval, over tasks, does
not know of.

## Claim by claim

A claim that one method beats another *holds* where the ratio of losses, below, is shown to lie under 1 on all families
that are named, *does not hold* where it is shown to lie above, and is *undecided* otherwise: paired t-tests of the
logarithms over tasks at 95%, corrected for the number of families (Holm); *only where* says on which it holds.
What the lecture says of popularity and of standards is
left out.

{claims}

## Where each fails, and which one mends it

Geometric mean over tasks of the loss over that of the best optimizer, with a 95% t-interval over tasks. Losses
are f less its lower bound at the last step, over f(θ_0), and counted from {floor} up to {ceiling}; a run that passed
ten times its start on the way has failed and counts as {ceiling}. Where data drift, the loss is the mean over the
whole run of what the oracle says of θ_t: its distance from the optimum of now, or the loss on the next batch before it
is learned from. The networks have 6 tasks.

{families}

![Ratios to the best](figures/families.png)

"Clearly worse": the interval lies above 1.5. "Mended first by": the first in the lecture's order whose loss is at most
1.1 times the best.

{mending}

![Median losses](figures/curves.png)

Best rates and settings (edge: the best rate tried was the largest or smallest allowed):

{settings}

![How much the rate matters](figures/rates_matter.png)

## Landscapes

Paths of 200 steps from one start at usual settings (μ = .9, β = .99, β1 = .9, β2 = .999, λ = .01). The rate is the one,
of those at which f never passes twice its start, whose log f is lowest on average over the run; with two minima all
have small rates, for a large one ends in either by chance.

![Ravine](figures/landscape_ravine.png)

![Rosenbrock](figures/landscape_Rosenbrock.png)

![Saddle](figures/landscape_saddle.png)

![Plateau](figures/landscape_plateau.png)

![Two minima](figures/landscape_two_minima.png)

Steps too large and too small:

![Gradient descent at four rates](figures/steps.png)

## Batch sizes

SGD on digits with one hidden layer, each batch size at its best rate for the budget.

![Batch sizes](figures/batches.png)

## Momentum and Nesterov at one rate

![Momentum and Nesterov](figures/nesterov.png)

## A rate for every parameter

![Rates](figures/rates.png)

## Weight decay

![Weight decay](figures/decay.png)

## Schedules

![Schedules](figures/schedules.png)

## Early stopping

A classifier of {few} digits, judged on 300 others every 10 steps, and in the end on 1,397 more.

![Early stopping](figures/stopping.png)
"""
