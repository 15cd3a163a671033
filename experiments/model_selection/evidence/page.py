"""README.md from results.json alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.model_selection.evidence import choice, recovery


def page(record: Mapping[str, Any]) -> str:
    shown = {part: held["found"] for part, held in record.items()}
    minutes = sum(held["core_seconds"] for held in record.values()) / 60
    words = {
        "minutes": f"{minutes:.0f}",
        "seeds": recovery.SEEDS,
        "horizon": recovery.HORIZON,
        "annealed": recovery.ANNEALED,
        "theorem": _theorem({row["criterion"]: row for row in shown["theorem"]}),
        "linear": _linear(shown["linear"]),
        "corners": _corners(shown["sweep"]),
        "slides": _slides(shown["sweep"]["slides"]),
        "even": _even(shown["sweep"]["even"]),
        "recovery": _recovery(shown),
        "hard": _hard(shown),
        "hard_seeds": recovery.HARD_SEEDS,
        "sizes": _sizes(shown),
        "configurations": _configurations(shown),
        "claim": _claim(shown),
        "redundant": _redundant(shown["redundant"]["rows"]),
        "resamples": choice.RESAMPLES,
        "trials": choice.TRIALS,
    }
    text = (Path(__file__).parent / "page.md").read_text(encoding="utf-8")
    return "<!-- written by experiments/model_selection/evidence/write.py from page.md and results.json -->\n" + (
        text.format(**words)
    )


def _table(head: str, rows: Iterable[Iterable[Any]]) -> str:
    columns = head.count(" | ") + 1
    lines = [f"| {head} |", "| " + " | ".join(["---"] * columns) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def _share(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['share']:.2f} [{low:.2f}, {min(high, 1):.2f}]"


def _theorem(rows: Mapping[str, Any]) -> str:
    likelihood, posterior, held_out = (rows[name] for name in ("likelihood", "posterior", "cross-validation"))
    at, known = posterior["at"], posterior["evidence"]

    def jumps(name: str) -> str:
        printed, meant = rows[name]["printed"], rows[name]["meant"]
        return (
            "as printed (a parameter counts whose KL to the prior is *below* λ): at "
            f"λ = {printed['threshold']:.3f} q's mean jumps from {printed['before'][0]:.2f} to "
            f"{printed['after'][0]:.2f}; counting those above λ: at {meant['threshold']:.3f} log σ jumps from "
            f"{meant['before'][1]:.1f} to {meant['after'][1]:.2f}"
        )

    gain, bayes = likelihood["gain"], likelihood["bayes"]
    best, evident = rows["enumeration"]["best"], rows["enumeration"]["evidence_best"]
    return _table(
        "criterion | cannot | on the example",
        [
            (
                "maximum likelihood",
                "be the evidence, prefer the simpler of equals",
                f"the second feature gains {gain:+.2f} of log likelihood, {bayes:+.2f} of log evidence; "
                f"the useless third {likelihood['tie']:+.2f} and {likelihood['useless']:+.2f}",
            ),
            (
                "maximum of the posterior",
                "be the evidence: h* runs to the edge of any set",
                f"at prior precisions 1, 10^4, 10^8, 10^12: {at['1']:.1f}, {at['1e4']:.1f}, {at['1e8']:.1f}, "
                f"{at['1e12']:.1f}, and on without end; log evidence {known['1']:.1f}, {known['1e4']:.1f}, "
                f"{known['1e8']:.1f}, {known['1e12']:.1f}",
            ),
            ("ELBO", "be the likelihood", f"orders the two models by {bayes:+.2f}, the likelihood by {gain:+.2f}"),
            (
                "cross-validation",
                "be the evidence",
                f"leave-one-out gains {held_out['held_out']:+.2f}, the evidence {held_out['bayes']:+.2f}",
            ),
            ("AIC, in the slides' form", "be continuous in λ", jumps("AIC")),
            ("BIC, in the slides' form", "be continuous in λ", jumps("BIC")),
            (
                "enumeration of structures",
                "be the evidence, be continuous",
                f"features {[j + 1 for j in best]} by likelihood, {[j + 1 for j in evident]} by evidence; between two "
                "structures there is nothing",
            ),
        ],
    )


def _linear(found: Mapping[str, Any]) -> str:
    names = sorted(found["any"]["gap"])
    rows = []
    for kind, words in (("orthogonal", "orthogonal columns"), ("any", "columns as drawn")):
        row = found[kind]
        rows.append([words, f"{max(row['least'], 0):.3g}", *(f"{row['gap'][name][-1]:.3g}" for name in names)])
    return _table(f"data | least gap of a diagonal q | {' | '.join(names)}", rows)


def _corners(found: Mapping[str, Any]) -> str:
    rows = sorted(found["corners"], key=lambda row: -row["evidence"])
    return _table(
        "structure | log evidence, closed form | bound at its λ | q is there",
        [
            (
                str(row["structure"]) + (", the teacher's" if row["structure"] == found["truth"] else ""),
                f"{row['evidence']:.2f}",
                f"{row['bound']:.2f}",
                "yes" if row["visited"] else "no",
            )
            for row in rows
        ],
    )


def _even(found: Mapping[str, Any]) -> str:
    pairs = zip(found["weights"], found["candidates"], strict=True)
    return ", ".join(f"{candidates:.2f} at {weight:g}" for weight, candidates in pairs)


def _slides(rows: Iterable[Mapping[str, Any]]) -> str:
    return _table(
        "λ_struct | " + " | ".join(f"p(Γ\\|h*) of edge {edge + 1}" for edge in range(recovery.EDGES)),
        [
            (
                "[" + " ".join(f"{weight:g}" for weight in row["weights"]) + "]",
                *(" ".join(f"{chance:.2f}" for chance in edge) for edge in row["end"]),
            )
            for row in rows
        ],
    )


def _recovery(shown: Mapping[str, Any]) -> str:
    def row(label: str, parts: list[Mapping[str, Any]]) -> list[str]:
        return [label, *(cell for part in parts for cell in (_share(part), f"{part['loss']:.1f}"))]

    noises = recovery.NOISES
    known = [shown[f"enumeration {noise}"] for noise in noises]
    rows = [["all 64 structures, by evidence", *(cell for part in known for cell in (_share(part), "-"))]]
    rows += [
        row(f"Adam, τ = {name}", [shown[f"schedule {name}, {noise}"] for noise in noises])
        for name in recovery.SCHEDULES
    ]
    rows += [
        row(f"{name}, τ = 2 to 0.5", [shown[f"optimizers {noise}"][name] for noise in noises])
        for name in shown[f"optimizers {noises[0]}"]
    ]
    head = " | ".join(f"recovered, noise {noise:g} | loss" for noise in noises)
    return _table(f"method | {head}", rows)


def _hard(shown: Mapping[str, Any]) -> str:
    rows = [("all 256 structures, by evidence", _share(shown["hard, enumeration"]), "-")]
    rows += [
        (f"Adam, τ = {name}", _share(shown[f"hard, {name}"]), f"{shown[f'hard, {name}']['loss']:.1f}")
        for name in recovery.HARD_SCHEDULES
    ]
    return _table("method | recovered | loss", rows)


def _sizes(shown: Mapping[str, Any]) -> str:
    rows = []
    for name in choice.CRITERIA:
        each = [shown[f"size {examples}"]["chosen"][name] for examples in choice.SIZES]
        rows.append([name, *(f"{row['median']:.3g} / {row['spread']:.2g} / {row['size']:.1f}" for row in each)])
    return _table("chosen by | " + " | ".join(f"N = {examples}" for examples in choice.SIZES), rows)


def _configurations(shown: Mapping[str, Any]) -> str:
    rows = []
    for name in choice.CONFIGURATIONS:
        for criterion in choice.CRITERIA:
            row = shown[name][criterion]
            exact = "-" if row["exact"] is None else _share({"share": row["exact"], "interval": row["exact_interval"]})
            low, high = row["interval"]
            rows.append(
                (
                    name,
                    criterion,
                    f"{row['size']:.2f}",
                    exact,
                    f"{row['error']:.3f} [{low:.3f}, {high:.3f}]",
                    f"{row['spread']:.3f}",
                    f"{row['weights_spread']:.3f}",
                    f"{row['condition']:.1f}",
                )
            )
    return _table("features are | chosen by | how many | exactly those that made the target | error | its spread | "
                  "spread of the weights | condition of XᵀX", rows)  # fmt: skip


def _claim(shown: Mapping[str, Any]) -> str:
    """Where models chosen by the bound have a higher error than cross-validated ones, and where they are steadier."""
    settings = {f"N = {examples}": shown[f"size {examples}"]["chosen"] for examples in choice.SIZES}
    settings |= {name: shown[name] for name in choice.CONFIGURATIONS}
    higher, steadier, medians = [], [], []
    for name, row in settings.items():
        bound, other = row["ELBO"], row["cross-validation"]
        if bound["error"] > other["error"]:
            higher.append(name)
        if bound["spread"] < other["spread"]:
            steadier.append(name)
        if "median" in bound and bound["median"] > other["median"]:
            medians.append(name)
    by_median = f", the higher median, of the table above, at {', '.join(medians)}" if medians else ""
    return (
        f"Of {len(settings)} settings (sample sizes above and configurations below) the bound's models have the "
        f"smaller spread in {len(steadier)} and the higher mean error in {len(higher)} ({'; '.join(higher) or 'none'})"
        f"{by_median}."
    )


def _redundant(rows: Iterable[Mapping[str, Any]]) -> str:
    return _table(
        "copy differs by | removed | Δ log likelihood | Δ log evidence | Δ bound",
        [
            (f"{row['apart']:g}", row["removed"], *(f"{row[key]:+.3f}" for key in ("likelihood", "evidence", "ELBO")))
            for row in rows
        ],
    )
