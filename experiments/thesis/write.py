"""Writes the reproduction's results, pictures and README from what is done; the README from the JSON alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from experiments.thesis import answer, claims, raw
from experiments.thesis.answer import in_short, markdown
from experiments.thesis.arms import PICKS, RESULTS, ROOT, STUDIES, THESIS
from experiments.thesis.choices import ALIKE, DEFAULTS, FEW, FURTHER, MULTIPLE, chosen, table, weigh
from experiments.thesis.claims import MARGIN, NETWORKS, Claim, judge, number, ratio, rivals, share
from experiments.thesis.collect import PROTOCOL, collect
from experiments.thesis.cost import AFTER
from experiments.thesis.describe import described
from experiments.thesis.pictures import networks, one_task, step_lengths
from metaopt.evaluation.intervals import crossed_mean

Record = Mapping[str, Any]
PICTURES = {
    "figure3.png": ("quadratic", "quadratic:dim=10", 10, "Figure 3, quadratics"),
    "figure4_one_pair.png": ("quadratic", "rosenbrock:pairs=1", 10, "Figure 4, Rosenbrock, one pair"),
    "figure4_five_pairs.png": ("quadratic", "rosenbrock:pairs=5", 10, "Figure 4, Rosenbrock, five pairs"),
    "figure5.png": ("linear_regression", "linear_regression", 1, "Figure 5, linear regression"),
    "figure6.png": ("linear_regression", "linear_regression", 10, "Figure 6, linear regression"),
}
PAGES = {"README.md": "page.md", "SUMMARY.md": "short.md"}  # and their templates
MOST_FAILED = 0.9  # of whose survivors a mean says nothing


def write_all(work: Path) -> list[str]:
    """Rewrites what has changed; returns a line for each file written. Without a work folder, pictures and page."""
    lines = []
    for study in STUDIES.values():
        if not (work / study.name).exists():
            continue
        path = RESULTS / f"{study.name}.json"
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        raw_path = path.with_suffix(".npz")
        kept = (old, raw.read(raw_path)) if old is not None and raw_path.exists() else None
        found = collect(study, work, kept)
        if found is None:
            continue
        record, losses = found
        RESULTS.mkdir(parents=True, exist_ok=True)
        if old is not None and not _replaces(record, old):
            lines.append(f"kept: {path.relative_to(ROOT)}, which holds more; remove it to begin anew")
            continue
        raw.write(raw_path, losses)
        _write(path, record)
        lines.append(f"results: {path.relative_to(ROOT)} and .npz")
    for name in AFTER:
        if (work / f"{name}.json").exists() and not _fewer_rows(work / f"{name}.json", RESULTS / f"{name}.json"):
            _write(RESULTS / f"{name}.json", json.loads((work / f"{name}.json").read_text(encoding="utf-8")))
            lines.append(f"results: {(RESULTS / name).relative_to(ROOT)}.json")
    records = read_results()
    for path in sorted(RESULTS.glob("*.json")):
        if _waits(json.loads(path.read_text(encoding="utf-8"))):
            lines.append(f"not on the page: {path.stem}, of which only one model is done")
    if records:
        lines += [f"picture: {path}" for path in _draw(records)]
        for name, words in pages(records).items():
            (THESIS / name).write_text(words, encoding="utf-8")
            lines.append(f"page: experiments/thesis/{name}")
    return lines


def _replaces(new: Record, old: Record) -> bool:
    """Whether a record is to stand in another's place.

    Of the same protocol the one with more runs stays; one of the first gives way where both models have no fewer seeds.
    """
    if old.get("protocol") != PROTOCOL:
        return all(new["arms"].get(name, {"seeds": 0})["seeds"] >= old["arms"][name]["seeds"] for name in ("rl", "bp"))
    return runs_in(new) >= runs_in(old)


def _write(path: Path, record: Record) -> None:
    path.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")


def _fewer_rows(new: Path, old: Path) -> bool:
    return old.exists() and len(json.loads(new.read_text(encoding="utf-8"))["rows"]) < len(
        json.loads(old.read_text(encoding="utf-8"))["rows"]
    )


def runs_in(record: Record) -> int:
    """How many meta-training runs, and uses of their φ, a record holds."""
    return sum(arm["seeds"] for arm in record["arms"].values())


def read_results() -> dict[str, Record]:
    """The committed records by study; with their losses, and figures of these, where they have any.

    A study of which one model is done waits for the other, and is not among them.
    """
    found = {}
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if _waits(record):
            continue
        held = record.get("protocol") == PROTOCOL
        found[path.stem] = described(record, raw.read(path.with_suffix(".npz"))) if held else record
    return found


def _waits(record: Record) -> bool:
    """Whether it is of a study of which one model is not done yet."""
    return "arms" in record and not {"rl", "bp"} <= record["arms"].keys()


def for_choices(records: Mapping[str, Record]) -> dict[str, Record]:
    """What the open choices are weighed on: where not all of a study's arms are run again, the first protocol's record.

    Such records lie in results/first; one that is made up for is to be deleted.
    """
    found = dict(records)
    for path in sorted((RESULTS / "first").glob("*.json")):
        old = json.loads(path.read_text(encoding="utf-8"))
        if path.stem not in records or len(records[path.stem]["arms"]) < len(old["arms"]):
            found[path.stem] = old
    return found


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


def pages(records: Mapping[str, Record]) -> dict[str, str]:
    """The README and the summary: their templates with what the records say in them."""
    filled = _filled(records)
    return {
        name: Template((THESIS / template).read_text(encoding="utf-8")).substitute(filled)
        for name, template in PAGES.items()
    }


def _filled(records: Mapping[str, Record]) -> dict[str, str]:
    """What stands for a template's words."""
    judged = judge(records)
    pictures = sorted((THESIS / "figures").glob("figure*.png"))
    studies = {name: records[name] for name in STUDIES if name in records}
    new = {name: record for name, record in studies.items() if "raw" in record}
    whole = for_choices(records)
    weighed, further = weigh(whole), weigh(whole, FURTHER)
    first = {name: record for name, record in whole.items() if record is not records.get(name)}
    found = chosen(weighed)
    blocks: dict[str, Any] = {
        "in_short": in_short(new),
        "outcome": _outcome(judged),
        "waiting": _waiting(studies, new, first),
        "lacking": _lacking(new),
        "claims": markdown(
            ("claim", "what was run", "verdict", "figures"),
            ((f"**{claim.name}** {claim.text}", claim.ran, claim.verdict, _first(claim)) for claim in judged),
        ),
        "figures": [
            f"**{_caption(path)}**\n\n![{path.stem.replace('_', ' ')}](figures/{path.name})\n" for path in pictures
        ],
        "step_lengths": _step_lengths(records["step_lengths"]) if "step_lengths" in records else (),
        "settings": (line for claim in judged if claim.judged for line in _settings(claim)),
        "picks": _picks(new),
        "remedies": _beside(new, *answer.REMEDIES),
        "rivals": _beside(new, *answer.RIVALS),
        "remedies_in_short": answer.beside_in_short(new, *answer.REMEDIES),
        "rivals_in_short": answer.beside_in_short(new, *answer.RIVALS),
        "gap": _gap(new),
        "ablations": (
            line
            for name, record in studies.items()
            for one in (record, *([first[name]] if name in first else []))
            for line in _ablation(one)
        ),
        "choices": table(weighed, further),
        "variance": _variance(records["variance"]) if "variance" in records else (),
        "provenance": _provenance(new),
        "cost": _cost(studies),
    }
    values = {"multiple": MULTIPLE, "further": FURTHER, "few": f"{100 * FEW:.0f}", "alike": f"{100 * (1 - ALIKE):.0f}"}
    values |= {"margin": f"{MARGIN:g}", "near": f"{claims.NEAR:g}"}
    numbers = {name: _seeds(record) for name, record in new.items()}
    values["seeds"] = ", ".join(f"{n} meta-seed{'s' * (n != 1)} on `{name}`" for name, n in numbers.items())
    values["defaults"] = ", ".join(f"`{name}={found[name]}`" for name in DEFAULTS)
    return {name: "\n".join(lines).strip() for name, lines in blocks.items()} | values


def _seeds(record: Record) -> int:
    """Of the two models."""
    return min(record["arms"][name]["seeds"] for name in ("rl", "bp"))


def _settings(claim: Claim) -> Iterator[str]:
    yield f"**{claim.name}.** {claim.text} Taken to mean: {claim.means}.\n"
    rows = ((one.setting, one.word, one.figures) for one in claim.judged)
    yield from markdown(("setting", "verdict", "figures"), rows)
    yield ""


SHOWN = (claims.THESIS, claims.OURS, claims.ONE)  # the settings that stand in the first table


def _outcome(judged: list[Claim]) -> Iterator[str]:
    """Which claims hold, of the settings that stand first."""
    for setting in SHOWN:
        found: dict[str, list[str]] = {}
        for claim in judged:
            for one in claim.judged:
                where, _, own = one.setting.rpartition(": ")
                if own == setting:
                    found.setdefault(one.word, []).append(f"{claim.name} ({where})" if where else claim.name)
        parts = [
            f"{word}: {', '.join(found[word])}" for word in ("holds", "does not hold", "undecided") if word in found
        ]
        if parts:
            yield f"- **{setting[0].upper()}{setting[1:]}**: {'; '.join(parts)}."


def _waiting(studies: Mapping[str, Record], new: Mapping[str, Record], first: Mapping[str, Record]) -> Iterator[str]:
    old = [name for name in studies if name not in new]
    if old:
        yield (
            f"Of the first protocol, and not judged: {', '.join(old)}. Their losses of single tasks were not kept; "
            "their figures stand below until they are run again."
        )
    again = [name for name in first if name in new]
    if again:
        yield (
            f"\nOf {', '.join(again)} not every arm is run again yet; the open choices stand on those of the first "
            "protocol until all are."
        )
    yield from _lacking(studies)


def _lacking(studies: Mapping[str, Record]) -> Iterator[str]:
    lacking = [name for name in STUDIES if name not in studies]
    if lacking:
        yield f"\nNot run under this protocol yet: {', '.join(lacking)}."
    fewer: dict[tuple[int, int, tuple[str, ...]], list[str]] = {}
    for study, record in studies.items():
        found: dict[tuple[int, int], list[str]] = {}
        for arm in STUDIES[study].arms:
            seeds = record["arms"].get(arm.name, {"seeds": 0})["seeds"]
            if 0 < seeds < arm.seeds:
                found.setdefault((seeds, arm.seeds), []).append(f"`{arm.name}`")
        for numbers, arms in found.items():
            fewer.setdefault((*numbers, tuple(arms)), []).append(study)
    if fewer:
        each = (f"{seeds} for {of} of {', '.join(arms)} ({', '.join(on)})" for (seeds, of, arms), on in fewer.items())
        yield f"\nFewer meta-seeds than were meant, for time: {'; '.join(each)}."


def _picks(studies: Mapping[str, Record]) -> Iterator[str]:
    """Beside the last φ the two that validation picked: what failed, and the ratio to the last."""
    rows = []
    for study, record in studies.items():
        for name in record["arms"]:
            picks = {pick: f"{name}/pick={pick}" for pick in PICKS if f"{name}/pick={pick}" in record["arms"]}
            if not picks:
                continue
            tasks = list(record["arms"][next(iter(picks.values()))]["tests"])
            groups = [tasks] if study in NETWORKS else [[task] for task in tasks]
            rows += [
                (study, name, group[0] if len(group) == 1 else f"{len(group)} networks", f"{multiple}×")
                + _picked_cells(record, name, picks, group, multiple)
                for group in groups
                for multiple in ("1", "10")
            ]
    if rows:
        heads = [f"{what} best at {pick[:-1]}×" for pick in PICKS for what in ("failed,", "ratio to the last [95%],")]
        at = [f"its meta-steps, best at {pick[:-1]}×: median [least, most]" for pick in PICKS]
        yield from markdown(("study", "arm", "on", "at", "failed, last", *heads, *at), rows)


def _picked_cells(
    record: Record, name: str, picks: Mapping[str, str], tasks: list[str], multiple: str
) -> tuple[str, ...]:
    def failed(arm: str) -> str:
        return share(float(np.mean([record["arms"][arm]["tests"][task]["at"][multiple]["failed"] for task in tasks])))

    cells = [failed(name)]
    for arm in picks.values():
        logs = [record["raw"].log_ratios(arm, name, task, f"loss_{multiple}") for task in tasks]
        mean = crossed_mean(logs[0] if len(logs) == 1 else np.stack([one.mean(axis=1) for one in logs], axis=1))
        cells += [failed(arm), ratio(mean)]
    return (*cells, *(_spread(record["arms"][arm]["picked"]) for arm in picks.values()))


def _spread(steps: list[int | None]) -> str:
    """Of the meta-steps that were picked, a meta-seed each; None: none was any good, so that the last stands there."""
    found = [step for step in steps if step]
    none = f", {len(steps) - len(found)} none" if len(found) < len(steps) else ""
    return f"{int(np.median(found))} [{min(found)}, {max(found)}]{none}" if found else "none"


def _beside(studies: Mapping[str, Record], model: str, kind: str, others: Iterable[str]) -> Iterator[str]:
    rows = answer.beside(studies, model, kind, others)
    return answer.beside_table(rows, model) if rows else iter(("Not run yet.",))


def _gap(studies: Mapping[str, Record]) -> Iterator[str]:
    """Of families with a test split: what the loss there is to that on the training split, and accuracies."""
    rows = []
    for study, record in studies.items():
        tasks = [task for task in claims.tasks_of(record) if _tested(record, "rl", task)]
        if not tasks:
            continue
        for multiple in ("1", "10"):
            arms = [name for name, arm in record["arms"].items() if not arm["use"] and arm["pick"] == "last"]
            names = {name: name for name in arms if name.count("/") == 0 or name.endswith("/exact")}
            tuned = rivals(record, tasks[0], "all tuned", int(multiple))
            names |= {name: name.partition("@")[0] + _told(record, tasks[0], name) for name in tuned}
            for name, label in names.items():
                gaps = np.stack([record["raw"].gap(name, task, multiple).mean(axis=1) for task in tasks], axis=1)
                cells = [number(np.exp(gaps.mean()))]
                for which in ("train_accuracy", "test_accuracy"):
                    found = [_at(record, name, task, multiple).get(which) for task in tasks]
                    found = [one for one in found if one is not None]
                    cells.append(share(float(np.mean(found))) if found else "–")
                rows.append((study, f"{multiple}×", label, *cells))
    if rows:
        heads = ("study", "at", "optimizer", "test loss / train loss", "train accuracy", "test accuracy")
        yield from markdown(heads, rows)


def _told(record: Record, task: str, name: str) -> str:
    return ", told the horizon" if record["baselines"][task][name]["record"].get("knows_horizon") else ""


def _at(record: Record, name: str, task: str, multiple: str) -> Record:
    """The figures of an arm or a baseline."""
    one = record["arms"][name]["tests"][task] if name in record["arms"] else record["baselines"][task][name]
    return one["at"][multiple]


def _tested(record: Record, name: str, task: str) -> bool:
    return "test_loss" in _at(record, name, task, "1")


def _provenance(studies: Mapping[str, Record]) -> Iterator[str]:
    rows = []
    for name, record in studies.items():
        trained = [number for arm in record["arms"].values() for seed in arm["trained_in"] for number in seed]
        evaluated = [number for arm in record["arms"].values() for number in arm["evaluated_in"]]
        evaluated += [n for task in record["baselines"].values() for one in task.values() for n in one["evaluated_in"]]
        for what, numbers in (("meta-trained", trained), ("evaluated", evaluated)):
            for index in sorted(set(numbers)):
                rows.append((name, what, *_environment(record["environments"][index])))
    if rows:
        yield from markdown(("study", "what", "commit", "processor", "jax"), rows)


def _environment(found: Record) -> tuple[str, ...]:
    git = found.get("git") or {}
    commit = f"`{git['commit'][:10]}`" + (" with changes" if git["dirty"] else "") if git else "?"
    return commit, f"{found['cpu']}, {found['cpu_count']} cores", found["versions"].get("jax", "?")


def _caption(path: Path) -> str:
    if path.name in PICTURES:
        return PICTURES[path.name][-1] + "."
    figure, _, data = path.stem.partition("_")
    normalised = "with" if figure == "figure8" else "without"
    return f"Figure {figure.removeprefix('figure')}, networks on {data}, {normalised} batch normalisation."


def _first(claim: Claim) -> str:
    shown = [one for setting in SHOWN for one in claim.judged if one.setting.rpartition(": ")[2] == setting]
    return "<br>".join(f"{one.setting}: {one.figures}" for one in shown) or "not run yet"


def _ablation(record: Record) -> Iterator[str]:
    old = "raw" not in record
    yield f"### {record['title']}{', of the first protocol' if old else ''}\n"
    if old:
        yield "Not judged.\n"
    yield from _networks(record) if len(record["tests"]) > 3 else _arms(record)
    yield ""


def _arms(record: Record) -> Iterator[str]:
    columns = [(test["task"], str(multiple)) for test in record["tests"] for multiple in test["multiples"]]
    rows = []
    for name, arm in _last(record).items():
        cells = [_cell(arm["tests"][task]["at"][multiple]) for task, multiple in columns]
        diverged = f" ({arm['diverged_in_training']} diverged in meta-training)" if arm["diverged_in_training"] else ""
        rows.append((name, arm["factor"] + diverged, arm["seeds"], *cells))
    for which, said in _fields(record).items():
        best = [_best_tuned(record, task, multiple, which) for task, multiple in columns]
        rows.append((f"best tuned, {said}", "for each column", "", *best))
    heads = (f"{task} {multiple}×" for task, multiple in columns)
    yield from markdown(("arm", "what differs", "seeds", *heads), rows)


def _last(record: Record) -> dict[str, Record]:
    """Arms and uses of the last φ."""
    return {name: arm for name, arm in record["arms"].items() if arm.get("pick", "last") == "last"}


def _fields(record: Record) -> dict[str, str]:
    """The fields of tuned baselines that there are: those not told the horizon, and all."""
    baselines = next(iter(record["baselines"].values())).values()
    told = any(one["record"].get("knows_horizon") for one in baselines)
    return {"tuned": "not told the horizon", **({"all tuned": "told the horizon or not"} if told else {})}


def _best_tuned(record: Record, task: str, multiple: str, which: str) -> str:
    """Of the baselines tuned for this multiple the one that fails least, then the lowest."""

    def rank(name: str) -> tuple[float, float]:
        at = _at(record, name, task, multiple)
        return at["failed"], float("inf") if at["mean"] is None else float(at["mean"])

    best = min(rivals(record, task, which, int(multiple)), key=rank)
    return f"{_cell(_at(record, best, task, multiple))} {best.partition('@')[0].partition(':')[0]}"


def _cell(at: Record) -> str:
    """Mean loss (share that failed); of networks also loss and accuracy on the test split."""
    failed = f" ({share(at['failed'])})" if at["failed"] else ""
    loss = number(at["mean"]) if at["failed"] <= MOST_FAILED else "–"
    tested = [f(at[name]) for name, f in (("test_loss", number), ("test_accuracy", share)) if at.get(name) is not None]
    return " · ".join([f"{loss}{failed}", *(tested if at["failed"] <= MOST_FAILED else ())])


def _networks(record: Record) -> Iterator[str]:
    arms, fields = _last(record), _fields(record)
    yield "Mean training loss (share that failed) · loss on the test split · accuracy there; last, tuned baselines.\n"
    rows = []
    for test in record["tests"]:
        for multiple in map(str, test["multiples"]):
            task = test["task"]
            cells = [_cell(arm["tests"][task]["at"][multiple]) for arm in arms.values()]
            best = [_best_tuned(record, task, multiple, which) for which in fields]
            rows.append((task, f"{multiple}×", *cells, *best))
    yield from markdown(("network", "at", *arms, *(f"best tuned, {said}" for said in fields.values())), rows)


STOPPED, GREW = 1e-3, 10.0  # length at ten times the horizon over that at it


def _step_lengths(record: Record) -> Iterator[str]:
    """What became of the lengths, counted; then every model and meta-seed at the horizon and at ten times it."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in record["rows"]:
        groups.setdefault((row["task"], row["model"]), []).append(row)
    for model in ("rl", "bp"):
        words = []
        for name, held in (("length", "in use"), ("held", "with the inputs held")):
            ratios = [
                row[name][-1] / _near(row, "length")
                for row in record["rows"]
                if row["model"] == model and row["alive"] and row[name][-1] is not None
            ]
            stopped, grew = sum(ratio < STOPPED for ratio in ratios), sum(ratio > GREW for ratio in ratios)
            words.append(
                f"{held}, of {len(ratios)} pairs of φ and family {stopped} end below a thousandth of the length at the "
                f"horizon and {grew} above {GREW:.0f} times it"
            )
        yield f"{model.upper()} model: {'; '.join(words)}.\n"
    columns = "tasks", "model", "alive at 1×", "length at 1×, each meta-seed", "at 10×", "at 10×, inputs held"
    cells = []
    for names, rows in groups.items():
        lists = [
            [f"{row['alive']}/{row['tasks']}" for row in rows],
            [_value(_near(row, "length")) for row in rows],
            *([_value(row[name][-1]) for row in rows] for name in ("length", "held")),
            [_value(_near(row, "loss")) for row in rows],
            [_value(row["loss"][-1]) for row in rows],
        ]
        cells.append((*names, *(", ".join(values) for values in lists)))
    yield from markdown((*columns, "median loss at 1×", "at 10×"), cells)


def _near(row: Record, name: str) -> Any:
    """What a row has at the training horizon."""
    return row[name][row["steps"].index(row["horizon"])]


def _value(value: Any) -> str:
    return "–" if value is None else number(value)


def _variance(record: Record) -> Iterator[str]:
    yield record["about"] + " Lost: the mean cannot be told from zero in that many draws.\n"
    columns = "tasks", "φ", "estimator", "norm of the mean", "noise / signal", "variance, to reparameterised"
    rows = []
    for row in record["rows"]:
        signal = [number(row[name]) if row["norm"] else "lost" for name in ("norm", "noise_to_signal")]
        rows.append((row["task"], row["phi"], row["estimator"], *signal, number(row["variance_ratio"])))
    yield from markdown(columns, rows)


def _cost(studies: Mapping[str, Record]) -> Iterator[str]:
    rows, whole = [], 0.0
    for name, record in studies.items():
        arms = record["arms"].values()
        trained = [arm["core_seconds"].get("training", 0.0) * arm["seeds"] for arm in arms if _trained(arm)]
        evaluated = [
            seconds * arm["seeds"]
            for arm in arms
            for part, seconds in arm["core_seconds"].items()
            if part != "training"
        ]
        tuned = [at["core_seconds"] or 0.0 for task in record["baselines"].values() for at in task.values()]
        parts = [sum(seconds) / 60 for seconds in (trained, evaluated, tuned)]
        whole += sum(parts)
        rows.append((name, sum(_trained(arm) for arm in arms), *(f"{part:.0f}" for part in parts)))
    of = ("core-minutes of meta-training", "of evaluation", "of tuning and running the baselines")
    yield from markdown(("study", "arms", *of), rows)
    yield f"\nIn all {whole:.0f} core-minutes, {whole / 120:.1f} hours of two cores."


def _trained(arm: Record) -> bool:
    """Whether it is an arm of its own, and no use of another's φ."""
    return not arm["use"] and arm.get("pick", "last") == "last"
