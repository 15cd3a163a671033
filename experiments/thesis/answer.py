"""What a reader wants to know first: does RL generalise further than BP, how often, by how much, what does it, and what
to use. All at ten times the training horizon, of the last φ."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.thesis.arms import PICKS, REMEDY, RIVAL
from experiments.thesis.claims import (
    NETWORKS,
    SAME_PHI,
    mean_ratio,
    models,
    ratio,
    rivals,
    share_of_words,
    shares,
    tasks_of,
    words_of_runs,
)
from experiments.thesis.judging import below, share_of, words
from metaopt.evaluation.intervals import Mean, Word, crossed_mean

Record = Mapping[str, Any]
Row = tuple[str, ...]
QUANTITY = "loss_10"
LOWER: dict[Word, str] = {"holds": "lower", "does not hold": "higher", "undecided": "undecided"}
# Of every factor the level that is the RL model's, then the BP model's; names of arms as `arms.crossed` has them.
FACTORS = {
    "step length": ("direct", "recursive"),
    "state gradient": ("full", "stopped"),
    "noise": ("noise", "none"),
}
RL, BP = ("direct", "full", "noise"), ("recursive", "full", "none")
ALIKE = 0.01  # of a logarithm


class Compared(NamedTuple):
    """Both models in one setting on one family."""

    where: str
    setting: str
    lost: tuple[str, str]  # shares of RL's and BP's runs
    mean: Mean  # of the logarithm of RL / BP
    beside: Mean  # of the better one's over the best tuned baseline's


def in_short(records: Mapping[str, Record]) -> Iterator[str]:
    """Sentences and the two tables; the same φ on other networks is no further evidence, and left out."""
    records = {name: record for name, record in records.items() if name not in SAME_PHI}
    found = [one for record in records.values() for one in _compared(record)]
    if not found:
        yield "Nothing has been run yet."
        return
    said = [LOWER[word] for word in words([below(one.mean, 0.0) for one in found])]
    yield (
        f"**Does the RL model generalise further than the BP model?** At ten times the horizon it ends lower in "
        f"{said.count('lower')} of {len(said)} pairs of setting and family, higher in {said.count('higher')}, and in "
        f"{said.count('undecided')} the meta-seeds do not tell. Lost are runs that fail or rise; the interval of a "
        "ratio is a t-interval over meta-seeds and tasks, and the words are corrected over the rows (Holm).\n"
    )
    ahead = [LOWER[word] for word in words([below(one.beside, 0.0) for one in found])]
    yield (
        "**What to use?** The best baseline that was tuned for the family and horizon, and not told the horizon, ends "
        f"lower than both models in {ahead.count('higher')} of the {len(ahead)}, higher than the better of them in "
        f"{ahead.count('lower')}.\n"
    )
    heads = ("family", "setting", "RL lost", "BP lost", "RL / BP", "RL ends", "better of both / best tuned baseline")
    rows = (
        (one.where, one.setting, *one.lost, ratio(one.mean), word, ratio(one.beside))
        for one, word in zip(found, said, strict=True)
    )
    yield from markdown(heads, rows)
    yield ""
    yield from _ingredients(records)


def markdown(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """The lines of a table."""
    columns = list(columns)
    for line in (columns, ["---"] * len(columns), *rows):
        yield "| " + " | ".join(map(str, line)) + " |"


def groups(record: Record) -> dict[str, list[str]]:
    """Families by name: networks are taken together, all else alone."""
    tasks = tasks_of(record)
    return {NETWORKS[record["study"]]: tasks} if record["study"] in NETWORKS else {task: [task] for task in tasks}


def _compared(record: Record) -> Iterator[Compared]:
    for where, tasks in groups(record).items():
        for setting, rl, bp in models(record):
            lost = [shares(share_of_words(record, arm, tasks, "failed", "rises")) for arm in (rl, bp)]
            mean = mean_ratio(record["raw"], rl, bp, tasks, QUANTITY)
            nearest = [_beside_tuned(record, arm, tasks) for arm in (rl, bp)]
            yield Compared(where, setting, (lost[0], lost[1]), mean, min(nearest, key=lambda one: one.mean))


def _beside_tuned(record: Record, arm: str, tasks: Sequence[str]) -> Mean:
    """Beside the best, by its mean, of the baselines that are tuned and not told the horizon."""
    names = rivals(record, tasks[0], "tuned")
    return max((mean_ratio(record["raw"], arm, name, tasks, QUANTITY) for name in names), key=lambda one: one.mean)


# ----- arms of one kind beside a model --------------------------------------------------------------------------------

# A model, the kind of arm, and others that belong to it.
REMEDIES = "rl", REMEDY, tuple(f"rl/pick={pick}" for pick in PICKS)
RIVALS = "bp", RIVAL, ("rl",)


class Beside(NamedTuple):
    """An arm on one family, or on the networks of a study."""

    where: str
    arm: str
    seeds: int
    lost: str  # its share of runs that fail or rise by ten times the horizon
    ratios: tuple[Mean, Mean] | None  # to the model at the horizon and at ten times it, logarithms; None: the model
    ends: str = ""  # lower or higher at ten times, alike (the interval within 1% of 1), or undecided


def beside(records: Mapping[str, Record], model: str, kind: str, others: Iterable[str]) -> list[Beside]:
    """The model and arms beside it, of studies that have any; words are corrected over all rows (Holm).

    The other model is shown and gets none: the two are compared elsewhere.
    """
    rows = []
    for record in records.values():
        found = [name for name in record["arms"] if kind in name]
        names = [model, *others, *found] if found else []
        for (where, tasks), name in itertools.product(groups(record).items(), names):
            if name not in record["arms"] or not all(task in record["raw"].runs.get(name, {}) for task in tasks):
                continue
            lost = shares(share_of_words(record, name, tasks, "failed", "rises"))
            to = [mean_ratio(record["raw"], name, model, tasks, f"loss_{multiple}") for multiple in (1, 10)]
            ratios = None if name == model else (to[0], to[1])
            rows.append(Beside(where, name, record["arms"][name]["seeds"], lost, ratios))
    judged = {at: row.ratios[1] for at, row in enumerate(rows) if row.ratios and "/" in row.arm}
    said = dict(zip(judged, words([below(mean, 0.0) for mean in judged.values()]), strict=True))
    return [row._replace(ends=_ends(judged[at], said[at])) if at in judged else row for at, row in enumerate(rows)]


def _ends(mean: Mean, word: Word) -> str:
    return "alike" if np.abs(mean.interval()).max() < ALIKE else LOWER[word]


def beside_table(rows: Iterable[Beside], model: str) -> Iterator[str]:
    """As a table."""
    to = (f"to {model} at {multiple}× [95%]" for multiple in (1, 10))
    cells = (
        (one.where, one.arm, one.seeds, one.lost, *(map(ratio, one.ratios) if one.ratios else ("", "")), one.ends)
        for one in rows
    )
    yield from markdown(("family", "arm", "seeds", "failed or rises by 10×", *to, "ends"), cells)


def beside_in_short(records: Mapping[str, Record], model: str, kind: str, others: Iterable[str]) -> Iterator[str]:
    """How many rows are told, and these."""
    rows = beside(records, model, kind, others)
    if not rows:
        yield "Not run yet."
        return
    told = [row for row in rows if row.ends in ("lower", "higher")]
    lower, higher, alike = (sum(row.ends == word for row in rows) for word in ("lower", "higher", "alike"))
    pairs, seeds = (sum(bool(row.ends) for row in rows), min(row.seeds for row in rows if row.ends))
    yield (
        f"Of {pairs} pairs of arm and family {lower} end lower than {model} at ten times the horizon, {higher} higher, "
        f"{alike} within 1% of it, and of the others the meta-seeds do not tell: words are corrected for all pairs "
        f"(Holm), and {seeds} meta-seeds, as few as some have, tell only what hardly varies."
    )
    if told:
        yield ""
        yield from beside_table(told, model)


# ----- the ingredients ------------------------------------------------------------------------------------------------


def arm_of(levels: Row) -> str:
    """The arm with these levels of `FACTORS`."""
    named: dict[Row, str] = {RL: "rl", BP: "bp"}
    return named.get(levels, f"cross/{','.join(levels)}")


def _ingredients(records: Mapping[str, Record]) -> Iterator[str]:
    crossed = [arm_of(levels) for levels in itertools.product(*FACTORS.values())]
    whole = [record for record in records.values() if all(arm in record["arms"] for arm in crossed)]
    if not whole:
        yield (
            "**Which ingredient does it?** The three crossed (step length, state gradient, noise) have not been run "
            "again with their losses kept; [what the first protocol showed]"
            "(README.md#the-open-choices-one-at-a-time-and-the-three-ingredients-crossed) is not judged."
        )
        return
    found = [
        (factor, where, record, tasks)
        for factor in FACTORS
        for record in whole
        for where, tasks in groups(record).items()
    ]
    means = [main_effect(record, factor, tasks) for factor, _, record, tasks in found]
    said = [LOWER[word] for word in words([below(mean, 0.0) for mean in means])]
    yield (
        "**Which ingredient does it?** All eight combinations were meta-trained; each row is what the RL model's level "
        "of one ingredient does beside the BP model's, over the four combinations of the other two. Of "
        f"{len(said)} rows {said.count('lower')} end lower, {said.count('higher')} higher; the others are not told.\n"
    )
    rows = (
        (f"{factor}: {' / '.join(FACTORS[factor])}", where, *lost_by(record, factor, tasks), ratio(mean), word)
        for (factor, where, record, tasks), mean, word in zip(found, means, said, strict=True)
    )
    yield from markdown(("ingredient", "family", "lost with the first", "with the second", "ratio", "ends"), rows)


def pairs(factor: str) -> list[tuple[str, str]]:
    """The four pairs of arms that differ in one factor alone."""
    at = list(FACTORS).index(factor)
    others = itertools.product(*(levels for name, levels in FACTORS.items() if name != factor))
    made = [tuple((*rest[:at], level, *rest[at:]) for level in FACTORS[factor]) for rest in others]
    return [(arm_of(first), arm_of(second)) for first, second in made]


def main_effect(record: Record, factor: str, tasks: Sequence[str]) -> Mean:
    """Of log ratios, over the four pairs, the meta-seeds that all have, and tasks."""
    per_pair = [np.stack([record["raw"].log_ratios(*pair, task, QUANTITY) for task in tasks]) for pair in pairs(factor)]
    seeds = min(one.shape[1] for one in per_pair)
    mean = np.mean([one[:, :seeds] for one in per_pair], axis=0)  # [tests, seeds, tasks]
    return crossed_mean(mean[0] if len(mean) == 1 else mean.mean(axis=2).T)


def lost_by(record: Record, factor: str, tasks: Sequence[str]) -> tuple[str, str]:
    """The share of runs lost with either level, over the four combinations of the others."""
    found = []
    for level in zip(*pairs(factor), strict=True):
        values = [words_of_runs(record, arm, tasks, "failed", "rises") for arm in level]
        seeds = min(len(one) for one in values)
        found.append(shares(share_of(np.mean([one[:seeds] for one in values], axis=0))))
    return found[0], found[1]
