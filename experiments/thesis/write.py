"""Writes the reproduction's results, pictures and README from what is done; the README from the JSON alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from string import Template
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


def write_all(work: Path) -> list[str]:
    """Rewrites what has changed; returns a line for each file written."""
    lines = []
    for study in STUDIES.values():
        record = collect(study, work)
        if record is not None:
            RESULTS.mkdir(parents=True, exist_ok=True)
            path = RESULTS / f"{study.name}.json"
            if path.exists() and runs_in(json.loads(path.read_text(encoding="utf-8"))) > runs_in(record):
                lines.append(f"kept: {path.relative_to(ROOT)}, which holds more; remove it to begin anew")
                continue
            _write(path, record)
            lines.append(f"results: {path.relative_to(ROOT)}")
    for name in AFTER:
        if (work / f"{name}.json").exists() and not _fewer_rows(work / f"{name}.json", RESULTS / f"{name}.json"):
            _write(RESULTS / f"{name}.json", json.loads((work / f"{name}.json").read_text(encoding="utf-8")))
            lines.append(f"results: {(RESULTS / name).relative_to(ROOT)}.json")
    records = read_results()
    if records:
        lines += [f"picture: {path}" for path in _draw(records)]
        (THESIS / "README.md").write_text(page(records), encoding="utf-8")
        lines.append("page: experiments/thesis/README.md")
    return lines


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
    """The committed records by study."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


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


def page(records: Mapping[str, Record]) -> str:
    """The README: page.md with what the records say in it."""
    claims = judge(records)
    pictures = sorted((THESIS / "figures").glob("figure*.png"))
    studies = {name: records[name] for name in STUDIES if name in records}
    weighed, further = weigh(records), weigh(records, FURTHER)
    found = chosen(weighed)
    blocks: dict[str, Any] = {
        "outcome": [_outcome(claims)],
        "claims": _table(
            ("claim", "what was run", "verdict", "figures"),
            ((f"**{claim.name}** {claim.text}", claim.ran, claim.verdict, _first(claim)) for claim in claims),
        ),
        "figures": [
            f"**{_caption(path)}**\n\n![{path.stem.replace('_', ' ')}](figures/{path.name})\n" for path in pictures
        ],
        "step_lengths": _step_lengths(records["step_lengths"]) if "step_lengths" in records else (),
        "settings": (line for claim in claims if claim.judged for line in _settings(claim)),
        "ablations": (line for record in studies.values() for line in _ablation(record)),
        "choices": table(weighed, further),
        "variance": _variance(records["variance"]) if "variance" in records else (),
        "cost": _cost(studies),
    }
    values = {"multiple": MULTIPLE, "further": FURTHER, "few": f"{100 * FEW:.0f}", "alike": f"{100 * (1 - ALIKE):.0f}"}
    values["defaults"] = ", ".join(f"`{name}={found[name]}`" for name in DEFAULTS)
    filled = {name: "\n".join(lines).strip() for name, lines in blocks.items()} | values
    return Template((THESIS / "page.md").read_text(encoding="utf-8")).substitute(filled)


def _table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    columns = list(columns)
    for line in (columns, ["---"] * len(columns), *rows):
        yield "| " + " | ".join(map(str, line)) + " |"


def _settings(claim: Claim) -> Iterator[str]:
    yield f"**{claim.name}.** {claim.text} Taken to mean: {claim.means}.\n"
    rows = ((one.setting, "yes" if one.holds else "no", one.figures) for one in claim.judged)
    yield from _table(("setting", "holds", "figures"), rows)
    yield ""


def _outcome(claims: list[Claim]) -> str:
    """How many claims hold, and which."""
    words = {
        "holds": "hold",
        "holds only with": "hold only with some of the open choices",
        "does not hold": "do not hold",
    }
    judged = [claim for claim in claims if claim.judged]
    found = {
        said: [claim.name for claim in judged if claim.verdict.strip("*").partition("**")[0] == word]
        for word, said in words.items()
    }
    parts = [f"{len(names)} {said} ({'; '.join(names)})" for said, names in found.items() if names]
    return f"Of {len(judged)} claims: {', '.join(parts)}."


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
    yield f"### {record['title']}\n"
    yield from _networks(record) if len(record["tests"]) > 3 else _arms(record)
    yield ""


def _arms(record: Record) -> Iterator[str]:
    columns = [(test["task"], multiple) for test in record["tests"] for multiple in test["multiples"]]
    rows = []
    for name, arm in record["arms"].items():
        cells = [_cell(arm["tests"][task]["at"][str(multiple)]) for task, multiple in columns]
        diverged = f" ({arm['diverged_in_training']} diverged in meta-training)" if arm["diverged_in_training"] else ""
        rows.append((name, arm["factor"] + diverged, arm["seeds"], *cells))
    best = (_best_tuned(record, task, str(multiple)) for task, multiple in columns)
    last = "| best tuned | tuned for each column | | " + " | ".join(best) + " |"
    heads = (f"{task} {multiple}×" for task, multiple in columns)
    yield from _table(("arm", "what differs", "seeds", *heads), rows)
    yield last


def _best_tuned(record: Record, task: str, multiple: str) -> str:
    """Of the baselines tuned for this multiple the one that fails least, then the lowest."""

    def rank(name: str) -> tuple[float, float]:
        at = tuned[name]
        return at["failed"], float("inf") if at["mean"] is None else float(at["mean"])

    baselines = record["baselines"][task]
    tuned = {name: baselines[name]["at"][multiple] for name in baselines if name.endswith(f"@{multiple}")}
    best = min(tuned, key=rank)
    return f"{_cell(tuned[best])} {best.partition('@')[0]}"


def _cell(at: Record) -> str:
    failed = f" ({share(at['failed'])})" if at["failed"] else ""
    return f"{number(at['mean']) if at['failed'] <= MOST_FAILED else '–'}{failed}"


def _networks(record: Record) -> Iterator[str]:
    end = 10 * record["horizon"]
    yield f"Mean loss at step {end} [its interval] (share that failed; share that rises), and the best tuned"
    yield "baseline.\n"
    rows = []
    for test in record["tests"]:
        task, cells = test["task"], []
        for arm in record["arms"].values():
            at = arm["tests"][task]["at"]["10"]
            enough = arm["seeds"] >= 3 and at["mean"] is not None
            interval = f" {between(at['interval'])}" if enough else ""
            cells.append(f"{number(at['mean'])}{interval} ({share(at['failed'])}; {share(at['rises'])})")
        rows.append((task, *cells, _best_tuned(record, task, "10")))
    yield from _table(("network", *record["arms"], "best tuned"), rows)


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
    yield from _table((*columns, "median loss at 1×", "at 10×"), cells)


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
    yield from _table(columns, rows)


def _cost(studies: Mapping[str, Record]) -> Iterator[str]:
    rows, whole = [], 0.0
    for name, record in studies.items():
        arms = record["arms"].values()
        trained = [arm["core_seconds"].get("training", 0.0) * arm["seeds"] for arm in arms if not arm["use"]]
        evaluated = [
            seconds * arm["seeds"]
            for arm in arms
            for part, seconds in arm["core_seconds"].items()
            if part != "training"
        ]
        tuned = [at["core_seconds"] or 0.0 for task in record["baselines"].values() for at in task.values()]
        parts = [sum(seconds) / 60 for seconds in (trained, evaluated, tuned)]
        whole += sum(parts)
        rows.append((name, sum(not arm["use"] for arm in arms), *(f"{part:.0f}" for part in parts)))
    of = ("core-minutes of meta-training", "of evaluation", "of tuning and running the baselines")
    yield from _table(("study", "arms", *of), rows)
    yield f"\nIn all {whole:.0f} core-minutes, {whole / 120:.1f} hours of two cores."
