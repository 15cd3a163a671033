"""Writes the reproduction's results, pictures and README from what is done; the README from the JSON alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.thesis.arms import RESULTS, ROOT, STUDIES, THESIS
from experiments.thesis.choices import ALIKE, DEFAULTS, FEW, FURTHER, MULTIPLE, chosen, table, weigh
from experiments.thesis.claims import OURS, Claim, between, judge, number, share
from experiments.thesis.claims import THESIS as ONE
from experiments.thesis.collect import collect
from experiments.thesis.cost import AFTER
from experiments.thesis.pictures import networks, one_task, step_lengths

Record = Mapping[str, Any]
PICTURES = {
    "figure3.png": ("quadratic", "quadratic:dim=10", 10, "Figure 3, quadratics"),
    "figure4_one_pair.png": ("quadratic", "rosenbrock:pairs=1", 10, "Figure 4, Rosenbrock, one pair"),
    "figure4_five_pairs.png": ("quadratic", "rosenbrock:pairs=5", 10, "Figure 4, Rosenbrock, five pairs"),
    "figure5.png": ("linear_regression", "linear_regression", 1, "Figure 5, linear regression"),
    "figure6.png": ("linear_regression", "linear_regression", 10, "Figure 6, linear regression"),
}
MOST_FAILED = 0.9  # of whose survivors a mean says nothing
HEAD = """\
# The thesis, claim by claim

A bachelor's thesis (in Russian) on learned optimizers as stochastic policies meta-trains one LSTM optimizer in two
ways: by back-propagation with a recursive step length (the BP model), and by a reparameterised policy gradient with a
direct step length and Gamma noise (the RL model). It claims that the RL model goes on improving at ten times its
training horizon, where the BP model overfits. This page says what of it was found again, and on which of the choices
that the thesis leaves open it hangs.

It is written by `experiments/thesis/reproduce --write` from the JSON files in `results/`; nothing here is typed by
hand.
"""
HOW = """\
## How to read it

φ are the weights of the LSTM, T the training horizon (100 steps; 50 on networks), 1×, 10× and 100× multiples of it.
K is the window of back-propagation, d the direction that the network gives and α its step length; `features` is what
the network reads of a gradient, s one of them, m̂/√v̂ (`printed`: without the root). `in_use` says what stands for the
noise when φ is used. A setting is named after what differs from the thesis's.

Every φ comes from 2000 meta-steps of Adam (rate 1e-3, norm of the meta-gradient clipped at 1), and the last one is
evaluated: no validation picks one, since that would look beyond the horizon. All optimizers run on the same tasks,
starts and minibatches. **Failed**: a loss that is not finite or above 10 f(θ_0) at any step. **Rises**: the mean of the
last 5% of the curve above twice the loss at the training horizon. **Improves**: lower at ten times the horizon than at
it. Means are over the runs that did not fail, the share that failed stands beside them, and where more than 90%
failed no mean is shown. Intervals are 95% bootstrap intervals over meta-seeds and tasks; from three meta-seeds they are
too short, so mind the single seeds where they are given, and with one meta-seed there are none. The figure's
baselines have the thesis's rates; the tuned ones the best rate for that family and horizon, found on other tasks.
"""
STEPS = """\
## The length of the steps beyond the horizon

Both models give the length of a step themselves: RL as an output, BP by multiplying the last one (with a floor of
e^-30 = 9.4e-14). Solid: median over the tasks that are alive at the horizon, a line for every meta-seed. Dotted, from
the horizon on: the network reads the inputs of the last 20 steps before it over and over, so that nothing new comes in
and what the length does is the network's own doing. A run can fail at any length; a length that has gone to nothing has
stopped, and one that grows without end fails on everything.

![step lengths](figures/step_lengths.png)
"""
COMMANDS = """\
## Commands

```sh
experiments/thesis/reproduce --dry-run                                   # what is left to do, and how long it takes
experiments/thesis/reproduce                                             # everything, resumable; Ctrl-C loses nothing
experiments/thesis/reproduce --only quadratic/rl quadratic/bp --seeds 1  # figure 3, one seed
experiments/thesis/reproduce --minutes 60                                # as much as fits
experiments/thesis/reproduce --write                                     # results, pictures, this page
metaopt train experiments/thesis/figure3_rl.py                           # one of the models as an ordinary run
```

mnist_5k comes with the extra `mnist` of the package, Fashion-MNIST as files (on Debian, `dataset-fashion-mnist`); a
study whose images are not on the machine is left out.
"""


def write_all(work: Path) -> list[str]:
    """Rewrites what has changed; returns a line for each file written."""
    lines = []
    for study in STUDIES.values():
        record = collect(study, work)
        if record is not None:
            RESULTS.mkdir(parents=True, exist_ok=True)
            path = RESULTS / f"{study.name}.json"
            if path.exists() and runs_in(json.loads(path.read_text())) > runs_in(record):
                lines.append(f"kept: {path.relative_to(ROOT)}, which holds more; remove it to begin anew")
                continue
            _write(path, record)
            lines.append(f"results: {path.relative_to(ROOT)}")
    for name in AFTER:
        if (work / f"{name}.json").exists() and not _fewer_rows(work / f"{name}.json", RESULTS / f"{name}.json"):
            _write(RESULTS / f"{name}.json", json.loads((work / f"{name}.json").read_text()))
            lines.append(f"results: {(RESULTS / name).relative_to(ROOT)}.json")
    records = read_results()
    if records:
        lines += [f"picture: {path}" for path in _draw(records)]
        (THESIS / "README.md").write_text("\n".join(_page(records)).rstrip() + "\n")
        lines.append("page: experiments/thesis/README.md")
    return lines


def _write(path: Path, record: Record) -> None:
    path.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")


def _fewer_rows(new: Path, old: Path) -> bool:
    return old.exists() and len(json.loads(new.read_text())["rows"]) < len(json.loads(old.read_text())["rows"])


def runs_in(record: Record) -> int:
    """How many meta-training runs, and uses of their φ, a record holds."""
    return sum(arm["seeds"] for arm in record["arms"].values())


def read_results() -> dict[str, Record]:
    """The committed records by study."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def _draw(records: Mapping[str, Record]) -> Iterator[str]:
    folder = THESIS / "figures"
    for name, (study, task, multiple, title) in PICTURES.items():
        if study in records:
            one_task(records[study], task, multiple, title, folder / name)
            yield name
    for study in ("networks_digits", "networks_mnist_5k", "networks_fashion_mnist"):
        if study in records:
            for figure, batch_norm in (("figure7", False), ("figure8", True)):
                name = f"{figure}_{study.removeprefix('networks_')}.png"
                networks(records[study], batch_norm, folder / name)
                yield name
    if "step_lengths" in records:
        step_lengths(records["step_lengths"], folder / "step_lengths.png")
        yield "step_lengths.png"


def _page(records: Mapping[str, Record]) -> Iterator[str]:
    claims = judge(records)
    yield HEAD
    yield _outcome(claims)
    yield "| claim | what was run | verdict | figures |"
    yield "| --- | --- | --- | --- |"
    for claim in claims:
        yield f"| **{claim.name}** {claim.text} | {claim.ran} | {claim.verdict} | {_first(claim)} |"
    yield "\n" + HOW
    yield "## Figures\n"
    yield "Dashed: the training horizon. Left as in the thesis, right with baselines tuned for the horizon; of networks"
    yield "medians, with baselines tuned for the horizon.\n"
    for path in sorted((THESIS / "figures").glob("figure*.png")):
        yield f"**{_caption(path)}**\n"
        yield f"![{path.stem.replace('_', ' ')}](figures/{path.name})\n"
    if "step_lengths" in records:
        yield from _step_lengths(records["step_lengths"])
    yield "## Every claim in every setting\n"
    for claim in claims:
        if not claim.judged:
            continue
        yield f"**{claim.name}.** {claim.text} Taken to mean: {claim.means}.\n"
        yield "| setting | holds | figures |"
        yield "| --- | --- | --- |"
        for one in claim.judged:
            yield f"| {one.setting} | {'yes' if one.holds else 'no'} | {one.figures} |"
        yield ""
    yield "## The open choices, one at a time, and the three ingredients crossed\n"
    yield "Mean loss (share that failed) at multiples of the training horizon; `cross` rows change only step rule,"
    yield "state gradient and noise. Rows named after a use (`in_use`, `alpha_0`) evaluate the same φ in another way.\n"
    for name in STUDIES:
        if name in records:
            yield from _ablation(records[name])
    yield from _choices(records)
    if "variance" in records:
        yield from _variance(records["variance"])
    yield "## What it cost\n"
    yield from _cost(records)
    yield COMMANDS


def _outcome(claims: list[Claim]) -> str:
    """How many claims hold, and which."""
    words = {
        "holds": "hold",
        "holds only with": "hold only with some of the open choices",
        "does not hold": "do not hold",
    }
    found = {
        said: [claim.name for claim in claims if claim.judged and claim.verdict.strip("*").partition("**")[0] == word]
        for word, said in words.items()
    }
    judged = sum(bool(claim.judged) for claim in claims)
    parts = [f"{len(names)} {said} ({'; '.join(names)})" for said, names in found.items() if names]
    return f"Of {judged} claims: {', '.join(parts)}.\n"


def _caption(path: Path) -> str:
    if path.name in PICTURES:
        return PICTURES[path.name][-1] + "."
    figure, _, data = path.stem.partition("_")
    normalised = "with" if figure == "figure8" else "without"
    return f"Figure {figure.removeprefix('figure')}, networks on {data}, {normalised} batch normalisation."


def _first(claim: Claim) -> str:
    shown = [one for one in claim.judged if one.setting.endswith((OURS, ONE))]
    return "<br>".join(f"{one.setting}: {one.figures}" for one in shown) or "not run yet"


def _ablation(record: Record) -> Iterator[str]:
    tests = record["tests"] if len(record["tests"]) <= 3 else []
    if not tests:
        yield from _networks(record)
        return
    yield f"### {record['title']}\n"
    columns = [(test["task"], multiple) for test in tests for multiple in test["multiples"]]
    yield "| arm | what differs | seeds | " + " | ".join(f"{task} {multiple}×" for task, multiple in columns) + " |"
    yield "| --- | --- | --- |" + " --- |" * len(columns)
    for name, arm in record["arms"].items():
        cells = [_cell(arm["tests"][task]["at"][str(multiple)]) for task, multiple in columns]
        diverged = f" ({arm['diverged_in_training']} diverged in meta-training)" if arm["diverged_in_training"] else ""
        yield f"| {name} | {arm['factor']}{diverged} | {arm['seeds']} | " + " | ".join(cells) + " |"
    cells = []
    for task, multiple in columns:
        tuned = {name: at for name, at in record["baselines"][task].items() if name.endswith(f"@{multiple}")}
        best = min(tuned, key=lambda name: _rank(tuned[name]["at"][str(multiple)]))
        cells.append(f"{_cell(tuned[best]['at'][str(multiple)])} {best.partition('@')[0]}")
    yield "| best tuned | tuned for each column | | " + " | ".join(cells) + " |"
    yield ""


def _rank(at: Record) -> tuple[float, float]:
    return at["failed"], float("inf") if at["mean"] is None else float(at["mean"])


def _cell(at: Record) -> str:
    failed = f" ({share(at['failed'])})" if at["failed"] else ""
    return f"{number(at['mean']) if at['failed'] <= MOST_FAILED else '–'}{failed}"


def _networks(record: Record) -> Iterator[str]:
    yield f"### {record['title']}\n"
    horizon = record["horizon"]
    yield f"Mean loss at step {10 * horizon} [its interval] (share that failed; share that rises), and the best tuned"
    yield "baseline.\n"
    names = list(record["arms"])
    yield "| network | " + " | ".join(names) + " | best tuned |"
    yield "| --- |" + " --- |" * (len(names) + 1)
    for test in record["tests"]:
        task = test["task"]
        cells = []
        for name in names:
            at = record["arms"][name]["tests"][task]["at"]["10"]
            enough = record["arms"][name]["seeds"] >= 3 and at["mean"] is not None
            interval = f" {between(at['interval'])}" if enough else ""
            cells.append(f"{number(at['mean'])}{interval} ({share(at['failed'])}; {share(at['rises'])})")
        tuned = {key: at for key, at in record["baselines"][task].items() if key.endswith("@10")}
        best = min(tuned, key=lambda key: _rank(tuned[key]["at"]["10"]))
        words = f"{_cell(tuned[best]['at']['10'])} {best.partition('@')[0]}"
        yield f"| {task} | " + " | ".join(cells) + f" | {words} |"
    yield ""


def _choices(records: Mapping[str, Record]) -> Iterator[str]:
    weighed, further = weigh(records), weigh(records, FURTHER)
    found = chosen(weighed)
    defaults = ", ".join(f"`{name}={found[name]}`" for name in DEFAULTS)
    yield f"""\
## What each choice did, and the defaults that follow

Every two arms that differ in one choice alone, on every test, at {MULTIPLE} and {FURTHER} times the training horizon.
**Better**: the share that failed is lower by more than {100 * FEW:.0f} points, or else the mean loss by more than
{100 * (1 - ALIKE):.0f}%, over the meta-seeds that both have. Pairs share seeds and tasks with other pairs: these are
counts, not a test. Two choices bring another along: noise the reparameterised gradient in place of plain
back-propagation, which differ in nothing but the draw; and on networks d over an RMS the bias that α starts from
(-5 for -2), since α is then the length of a coordinate's step. Pairs in which both state gradients are stopped have
rows of their own and decide nothing: what goes with a greedy gradient need not go with the full one.
"""
    yield from table(weighed, further)
    yield f"""
A default of the framework's `lstm` gives way to a value that was better more than twice as often as worse at
{MULTIPLE} times the horizon: {defaults}.
What a meta-step costs is for an experiment to choose (`num_tasks`, `unroll_length`), and so is the model's step rule.
The thesis's experiments name all of theirs.
"""


STOPPED, GREW = 1e-3, 10.0  # length at ten times the horizon over that at it


def _step_lengths(record: Record) -> Iterator[str]:
    """What became of the lengths, counted; then every model and meta-seed at the horizon and at ten times it."""
    yield STEPS
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in record["rows"]:
        groups.setdefault((row["task"], row["model"]), []).append(row)
    for model in ("rl", "bp"):
        words = []
        for name, held in (("length", "in use"), ("held", "with the inputs held")):
            ratios = [
                row[name][-1] / row["length"][row["steps"].index(row["horizon"])]
                for row in record["rows"]
                if row["model"] == model and row["alive"] and row[name][-1] is not None
            ]
            stopped, grew = sum(ratio < STOPPED for ratio in ratios), sum(ratio > GREW for ratio in ratios)
            words.append(
                f"{held}, of {len(ratios)} pairs of φ and family {stopped} end below a thousandth of the length at the "
                f"horizon and {grew} above {GREW:.0f} times it"
            )
        yield f"{model.upper()} model: {'; '.join(words)}.\n"
    columns_of = (
        "alive at 1× | length at 1×, each meta-seed | at 10× | at 10×, inputs held | median loss at 1× | at 10×"
    )
    yield f"| tasks | model | {columns_of} |"
    yield "| --- |" + " --- |" * 7
    for (task, model), rows in groups.items():
        near = [row["steps"].index(row["horizon"]) for row in rows]
        columns = [[row[name][at] for row, at in zip(rows, near, strict=True)] for name in ("length", "loss")]
        ends = [[row[name][-1] for row in rows] for name in ("length", "held", "loss")]
        lists = [columns[0], ends[0], ends[1], columns[1], ends[2]]
        cells = [", ".join("–" if value is None else number(value) for value in column) for column in lists]
        alive = ", ".join(f"{row['alive']}/{row['tasks']}" for row in rows)
        yield f"| {task} | {model} | {alive} | " + " | ".join(cells) + " |"
    yield ""


def _variance(record: Record) -> Iterator[str]:
    yield "## Reparameterised against score-function gradients\n"
    yield record["about"] + " Lost: the mean cannot be told from zero in that many draws.\n"
    yield "| tasks | φ | estimator | norm of the mean | noise / signal | variance, to reparameterised |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in record["rows"]:
        yield (
            f"| {row['task']} | {row['phi']} | {row['estimator']} | {number(row['norm']) if row['norm'] else 'lost'} | "
            f"{number(row['noise_to_signal']) if row['norm'] else 'lost'} | {number(row['variance_ratio'])} |"
        )
    yield ""


def _cost(records: Mapping[str, Record]) -> Iterator[str]:
    yield "| study | arms | core-minutes of meta-training | of evaluation | of tuning and running the baselines |"
    yield "| --- | --- | --- | --- | --- |"
    whole = 0.0
    for name in STUDIES:
        if name not in records:
            continue
        arms = records[name]["arms"].values()
        trained = [arm["core_seconds"].get("training", 0.0) * arm["seeds"] for arm in arms if not arm["use"]]
        evaluated = [
            seconds * arm["seeds"]
            for arm in arms
            for part, seconds in arm["core_seconds"].items()
            if part != "training"
        ]
        tuned = [at["core_seconds"] or 0.0 for task in records[name]["baselines"].values() for at in task.values()]
        parts = [sum(trained) / 60, sum(evaluated) / 60, sum(tuned) / 60]
        whole += sum(parts)
        yield (
            f"| {name} | {sum(not arm['use'] for arm in arms)} | " + " | ".join(f"{part:.0f}" for part in parts) + " |"
        )
    yield f"\nIn all {whole:.0f} core-minutes, {whole / 120:.1f} hours of two cores.\n"
