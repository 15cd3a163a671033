"""README.md from results.json; verdicts are computed from its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.smc import learned, mixtures, planar
from experiments.smc.mixtures import FORWARD, LARGE, LONG, METHODS, REVERSE, ROWS, STEPS
from experiments.smc.pictures import FLOOR
from metaopt.evaluation.intervals import crossed_mean, mean_of
from metaopt.runs.metrics import number

HERE = Path(__file__).parent
Parts = Mapping[str, Any]  # part -> {"found": ..., "core_seconds": ...}
ULA = "SOSMC-ULA"
# Row -> (published reward by the source's own code or an independent rerun) of ImpDiff, SOSMC-ULA, SOUL.
REPORTED = {
    f"dual, smooth, {REVERSE}": (0.6026, 0.6484, 0.6477),
    f"dual, smooth, {FORWARD}": (0.578, 0.603, 0.452),
    f"dual, hard, {REVERSE}": (0.0169, 0.0186, 0.0187),
    f"dual, hard, {FORWARD}": (0.0173, 0.0181, 0.0129),
    f"hexagon, sparse, {REVERSE}": (0.0363, 0.0369, 0.0365),
    f"hexagon, sparse, {FORWARD}": (0.0361, 0.0362, 0.0331),
    f"hexagon, tight, {REVERSE}": (0.0142, 0.2497, 0.0),
    f"hexagon, tight, {FORWARD}": (0.0133, 0.2815, 0.0),
}
RIVALS = ("ImpDiff", "SOUL", "PCD")
ALIKE = 1e-3  # of the reference's regret: what lies closer is as good
CURRENCIES = ("steps", "gradients", "seconds")


def array(values: Any) -> np.ndarray:
    """Numbers out of JSON, whose infinities are words there and whose nan is null."""
    if isinstance(values, list):
        return np.array([array(each) for each in values])
    return np.array(np.nan if values is None else number(values))


def found(parts: Parts, name: str) -> Any:
    return parts[name]["found"]


def methods(parts: Parts) -> list[str]:
    return [name for name in METHODS if name in parts]


def complete(record: Mapping[str, Any]) -> dict[str, Parts]:
    """The rows that can be shown."""
    return {name: record[name] for name in ROWS if ULA in record.get(name, {}) and len(record[name]) > 2}


def text(value: float, digits: int = 3) -> str:
    return f"{round(value, 6) + 0:.{digits}g}" if np.isfinite(value) else "∞"


def span(values: Sequence[float] | np.ndarray, digits: int = 3) -> str:
    return f"[{', '.join(text(float(value), digits) for value in values)}]"


# ----- mixtures -------------------------------------------------------------------------------------------------------


def price(entry: Mapping[str, Any], currency: str) -> float:
    """What one step of one seed costs."""
    return {"steps": 1.0, "gradients": entry["gradients"], "seconds": entry["seconds"]}[currency]


def regrets(parts: Parts, method: str, currency: str, row: str) -> np.ndarray:
    """[seeds] regret when all have spent what the thriftiest has in all."""
    entry, truth = found(parts, method), found(parts, "optimum")
    if currency == "steps":
        return truth["value"] - (array(entry["reward"]) - ROWS[row].beta * array(entry["kl"]))
    each = price(entry, currency)
    least = min(price(found(parts, name), currency) or np.inf for name in methods(parts))
    spent = least * STEPS / each if each else STEPS
    steps = array(entry["steps"])
    recent = (steps <= spent * (1 + 1e-9)) & (steps > 0.8 * spent)
    recent[np.searchsorted(steps, spent * (1 + 1e-9), side="right") - 1] = True
    return array(entry["regret"])[:, recent].mean(axis=1)


def against(parts: Parts, method: str, currency: str, row: str) -> tuple[float, tuple[float, float]]:
    """(regret, the interval of its difference to that of SOSMC-ULA)."""
    mine, other = (regrets(parts, name, currency, row) for name in (method, ULA))
    return float(mine.mean()), mean_of(mine - other).interval()


def scale(parts: Parts) -> float:
    """The reference's regret."""
    truth = found(parts, "optimum")
    return truth["value"] - truth["reference_reward"]


def row_table(name: str, parts: Parts) -> Iterator[str]:
    row, truth = ROWS[name], found(parts, "optimum")
    yield f"### {name.replace(', KL', ': KL')}"
    yield ""
    told = f"N = {row.num_particles:,}, h = {row.step_size:g}, β = {row.beta:g}"
    line = f"{told}; the optimum has E R = {text(truth['reward'], 4)} and KL = {text(truth['kl'])}, the reference"
    line += f" E R = {text(truth['reference_reward'])}."
    if name in REPORTED:
        line += " Published rewards: ImpDiff {:g}, SOSMC-ULA {:g}, SOUL {:g}.".format(*REPORTED[name])
    yield line
    yield ""
    yield "| method | exact E R | particles said | off by | regret at the end | at equal gradients | at equal seconds | settled | gradients to it | core ms to it | least ESS/N | collapsed seeds |"  # noqa: E501
    yield "| --- " * 12 + "|"
    for method in methods(parts):
        entry = found(parts, method)
        cells = [method, text(array(entry["reward"]).mean(), 4), text(array(entry["said"]).mean(), 4)]
        cells.append(text(array(entry["error"]).mean(), 2))
        for currency in CURRENCIES:
            if currency == "gradients" and not entry["gradients"]:
                cells.append("takes none")
                continue
            mean, interval = against(parts, method, currency, name)
            cells.append(text(mean, 2) + ("" if method == ULA else f" {span(interval, 2)}"))
        when = array(entry["settled"])
        done = when[np.isfinite(when)]
        if len(done):
            middle = float(np.median(done))
            cells += [f"{middle:.0f}, {len(done)}/{len(when)}", f"{middle * entry['gradients']:,.0f}"]
            cells.append(text(1e3 * middle * entry["seconds"], 2))
        else:
            cells += [f"never, 0/{len(when)}", "-", "-"]
        weighted = method.startswith("SOSMC")
        cells.append(text(array(entry["least_ess"]).min(), 2) if weighted else "-")
        lost = (array(entry["collapsed"]) > 0) | (array(entry["nonfinite"]) > 0)
        cells.append(f"{lost.sum()}/{len(lost)}")
        yield "| " + " | ".join(cells) + " |"
    yield ""


def cycle_table(record: Mapping[str, Any]) -> Iterator[str]:
    yield "| method | h | Adam's rate | lowest | mean | highest |"
    yield "| --- " * 6 + "|"
    for line in found(record["cycles"], "swings"):
        values = [array(line[name]).mean() for name in ("least", "mean", "most")]
        yield f"| {line['method']} | {line['step']:g} | {line['rate']:g} | " + " | ".join(map(text, values)) + " |"


# ----- the text's claims ----------------------------------------------------------------------------------------------


def verdicts(record: Mapping[str, Any]) -> Iterator[str]:
    rows = {name: parts for name, parts in complete(record).items() if not name.startswith((LARGE, LONG))}
    yield from weight_of_dual(rows)
    yield (
        "- “Higher” and “lower” below: the 95% interval of the paired difference lies beyond a thousandth of the "
        "reference's regret."
    )
    for kl in (FORWARD, REVERSE):
        own = {name: parts for name, parts in rows.items() if name.endswith(kl)}
        told, worse, total = [], 0, 0
        for currency in CURRENCIES:
            each = []
            for rival in RIVALS:
                pairs = [
                    np.array(against(parts, rival, currency, name)[1]) / scale(parts)
                    for name, parts in own.items()
                    if rival in parts
                ]
                higher, lower = sum(low > ALIKE for low, _ in pairs), sum(high < -ALIKE for _, high in pairs)
                worse, total = worse + higher, total + len(pairs)
                each.append(f"{rival} {higher}, {lower}")
            told.append(f"At equal {currency}: {'; '.join(each)}")
        yield (
            f"- **“More efficient”, under {kl}: {part(worse, total)}.** On how many of {len(own)} rows a rival's "
            f"regret is higher, and on how many lower, than SOSMC-ULA's. {'. '.join(told)}."
        )
    faster, pairs = 0, 0
    for parts in rows.values():
        for rival in RIVALS:
            if rival in parts:
                mine, other = (settle(found(parts, name)) for name in (ULA, rival))
                faster, pairs = faster + (mine < other), pairs + 1
    yield (
        f"- **“Faster to settle”: {part(faster, pairs)}.** SOSMC-ULA settles in fewer steps than a rival, or where the "
        f"rival does not, in {faster} of {pairs} comparisons (medians over seeds)."
    )
    near = [
        (array(found(parts, ULA)["error"]).mean(), array(found(parts, "ImpDiff")["error"]).mean())
        for parts in rows.values()
        if "ImpDiff" in parts
    ]
    closer = sum(mine < other for mine, other in near)
    yield (
        "- **“The weighted estimate of the reward is much nearer to the truth”: "
        f"{part(closer, len(near))}.** The particles' worst error of a run is smaller "
        f"under SOSMC-ULA than under ImpDiff on {closer} of {len(near)} rows; the median ratio is "
        f"{text(float(np.median([mine / other for mine, other in near])), 2)}."
    )
    yield (
        "- **“ESS = N/(1 + 1/W)”: not the standard formula, nor an effective sample size.** With N = 1,000 equal "
        f"weights W = 1/N it gives {text(1000 / (1 + 1000), 3)} and with all weight on one particle 500; the standard "
        "(Σw)²/Σw² = 1/ΣW², which is used here and in the paper, gives 1,000 and 1."
    )
    yield from regularises(record, rows)
    yield from models(record)
    yield from shrinking(rows)


def shrinking(rows: Mapping[str, Parts]) -> Iterator[str]:
    """What the paper's rule does to h: it falls wherever .9 N to .95 N particles rest effective."""
    ends = ", ".join(text(found(parts, ULA)["curves"]["step_size"][-1], 2) for parts in rows.values())
    yield (
        "- **The paper's step rule** shortens ULA's h wherever ESS rests between .9 N, where it is resampled, and "
        f".95 N, where h grows: h ends at {ends} on the rows below, in their order. Under the other kernels "
        f"weights do not depend on h, so that ESS cannot tell a good one: {frozen(rows)}."
    )


def frozen(rows: Mapping[str, Parts]) -> str:
    told = []
    for name in (f"dual, smooth, {FORWARD}", f"hexagon, tight, {REVERSE}"):
        if name in rows and "SOSMC-MALA" in rows[name]:
            entry = found(rows[name], "SOSMC-MALA")
            share = text(entry["acceptance"], 2)
            told.append(f"MALA's h ends at {text(entry['curves']['step_size'][-1], 2)} with {share} accepted on {name}")
    return ", and ".join(told)


def part(held: int, of: int) -> str:
    return "holds" if held == of else "holds in part" if held else "does not hold"


def weight_of_dual(rows: Mapping[str, Parts]) -> Iterator[str]:
    for kl in (FORWARD, REVERSE):
        name = f"dual, smooth, {kl}"
        if name in rows:
            best = array(found(rows[name], "optimum")["weights"]).max()
            mine = array(found(rows[name], ULA)["likely"])
            off = abs(mine.mean() - best)
            yield (
                f"- **SOSMC-ULA finds the optimum's weight under {kl}: {'yes' if off < 0.01 else 'no'}.** "
                f"{text(mine.mean(), 4)} for {text(best, 4)}, the mean over the second half (single seeds "
                f"{span((mine.min(), mine.max()), 4)})" + swings(rows[name])
            )


def swings(parts: Parts) -> str:
    if "ImpDiff" not in parts:
        return "."
    low, high = array(found(parts, "ImpDiff")["swing"]).mean(axis=0)
    return f"; ImpDiff's runs from {text(low, 4)} to {text(high, 4)} in the same steps."


def settle(entry: Mapping[str, Any]) -> float:
    return float(np.median(array(entry["settled"])))


def regularises(record: Mapping[str, Any], rows: Mapping[str, Parts]) -> Iterator[str]:
    told = []
    for name in ("dual, smooth", "hexagon, tight"):
        pair = [rows.get(f"{name}, {kl}") for kl in (FORWARD, REVERSE)]
        if all(pair):
            least = [array(found(parts, "optimum")["weights"]).min() for parts in pair]  # pyright: ignore
            told.append((name, *least))
    if told:
        keeps = all(forward > reverse for _, forward, reverse in told)
        each = "; ".join(f"{name}: {text(f, 2)} under {FORWARD}, {text(r, 2)} under {REVERSE}" for name, f, r in told)
        yield (
            f"- **“Reverse KL regularises”, more than KL(ref‖π): {'no' if keeps else 'in part'}.** At the same β the "
            f"optimum's smallest weight is {each}: the reverse direction lets modes go that the other keeps."
        )
    sweep = beta_sweep(record)
    if len(sweep) > 1:
        rewards, kls = ([value[i] for _, *value in sweep] for i in (0, 1))
        falls = all(np.diff(kls) < 0) and all(np.diff(rewards) < 0)
        yield (
            f"- **“Reverse KL regularises”, by β: {'holds' if falls else 'holds in part'}.** On the tuned energy model "
            f"KL goes from {text(kls[0])} to {text(kls[-1])} and E R from {text(rewards[0])} to {text(rewards[-1])} "
            f"as β goes from {sweep[0][0]:g} to {sweep[-1][0]:g}. Generalisation, which the text adds, is not measured "
            "here."
        )


def beta_sweep(record: Mapping[str, Any]) -> list[tuple[float, float, float]]:
    """(β, E R, KL) at the end under SOSMC-ULA."""
    parts, lines = record.get("energy model, tuned", {}), []
    for beta in sorted((*planar.BETAS, planar.BETA)):
        name = ULA if beta == planar.BETA else f"β = {beta:g}"
        if name in parts:
            entry = found(parts, name)
            lines.append((beta, *(float(array(entry[name])[:, -1].mean()) for name in ("reward", "kl"))))
    return lines


def models(record: Mapping[str, Any]) -> Iterator[str]:
    groups = {data: record.get(f"energy model, {data}", {}) for data in planar.DATA}
    groups = {data: parts for data, parts in groups.items() if all(method in parts for method in planar.FITTING)}
    if groups:
        ends = {
            data: {m: array(found(parts, m)["loss"])[:, -1].mean() for m in planar.FITTING}
            for data, parts in groups.items()
        }
        best = {data: min(values, key=lambda m, values=values: values[m]) for data, values in ends.items()}
        won = sum(name == ULA for name in best.values())
        yield (
            f"- **“Better trained energy models”: {part(won, len(best))}, at this size.** Lowest held-out loss at "
            "equal energy gradients: " + ", ".join(f"{name} on {data}" for data, name in best.items()) + "."
        )


# ----- models in the plane, learned optimizers ------------------------------------------------------------------------


def fit_table(record: Mapping[str, Any]) -> Iterator[str]:
    yield "| data | oracle | held-out loss: middle | end | core ms a step | least ESS/N | collapsed seeds | diverged |"
    yield "| --- " * 8 + "|"
    for data in planar.DATA:
        group = record.get(f"energy model, {data}", {})
        for method in (name for name in planar.FITTING if name in group):
            entry = found(group, method)
            loss = array(entry["loss"])
            middle, end = loss[:, loss.shape[1] // 2 - 1], loss[:, -1]
            lost = (array(entry["collapsed"]) > 0) | (array(entry["nonfinite"]) > 0)
            yield (
                f"| {data} | {method} | {text(middle.mean())} | {text(end.mean())} {span((end.min(), end.max()))} "
                f"| {text(1e3 * entry['seconds'], 2)} | "
                f"{text(array(entry['least_ess']).min(), 2) if method == ULA else '-'} | {lost.sum()}/{len(lost)} "
                f"| {(end > loss[:, 0]).sum()}/{len(lost)} |"
            )


def tuned_table(record: Mapping[str, Any]) -> Iterator[str]:
    heads = (
        "oracle | β | exact E R | optimum | particles said | off by | exact KL | optimum | core ms a step | collapsed"
    )
    yield f"| {heads} |"
    yield "| --- " * 10 + "|"
    for name, held in record.get("energy model, tuned", {}).items():
        entry = held["found"]
        method, beta = (name, planar.BETA) if name in planar.TUNING else (ULA, float(name.split("= ")[1]))
        reward, kl = array(entry["reward"])[:, -1], array(entry["kl"])[:, -1]
        interval = mean_of(reward).interval()
        lost = (array(entry["collapsed"]) > 0) | (array(entry["nonfinite"]) > 0)
        yield (
            f"| {method} | {beta:g} | {text(reward.mean())} {span(interval)} | {text(entry['best_reward'])} "
            f"| {text(array(entry['said']).mean())} | {text(array(entry['error']).mean(), 2)} | {text(kl.mean())} "
            f"| {text(entry['best_kl'])} | {text(1e3 * entry['seconds'], 2)} | {lost.sum()}/{len(lost)} |"
        )


def learned_groups(record: Mapping[str, Any]) -> dict[str, Parts]:
    names = {name: record.get(f"learned, {name}", {}) for name in learned.ORACLES}
    return {name: parts for name, parts in names.items() if all(arm in parts for arm in ("Adam", *learned.ARMS))}


def adam(parts: Parts, multiple: int) -> np.ndarray:
    """[1, tasks]"""
    return regret(found(parts, "Adam")[f"for {multiple}x"], multiple)


def regret(entry: Any, multiple: int) -> np.ndarray:
    """[meta-seeds, tasks]; single precision tells no less than `FLOOR` apart."""
    return np.maximum(array(entry[f"{multiple}x"]), FLOOR)


def compared(mine: np.ndarray, other: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Geometric mean of the ratio of regrets [meta-seeds, tasks], with its interval over both, crossed."""
    logs = crossed_mean(np.log(mine / other))
    low, high = logs.interval()
    return float(np.exp(logs.mean)), (float(np.exp(low)), float(np.exp(high)))


def learned_table(record: Mapping[str, Any]) -> Iterator[str]:
    groups = learned_groups(record)
    if not groups:
        return
    yield "| gradients | arm | " + " | ".join(f"at {m} T" for m in learned.MULTIPLES) + " | diverged |"
    yield "| --- " * (3 + len(learned.MULTIPLES)) + "|"
    for name, parts in groups.items():
        cells = []
        for multiple in learned.MULTIPLES:
            entry = found(parts, "Adam")[f"for {multiple}x"]
            cells.append(
                f"{text(adam(parts, multiple).mean())} (rate {entry['learning_rate']:g}, β1 {entry['beta1']:g})"
            )
        yield f"| {name} | Adam, tuned | {' | '.join(cells)} | - |"
        for arm in (*learned.ARMS, *learned.VALUED):
            if arm in parts:
                entry, cells = found(parts, arm), []
                for multiple in learned.MULTIPLES:
                    lost = regret(entry, multiple)
                    means = lost.mean(axis=1)
                    ratio, interval = compared(lost, adam(parts, multiple))
                    cells.append(
                        f"{text(float(np.median(means)))} {span((means.min(), means.max()))} "
                        f"({text(ratio, 2)} × Adam {span(interval, 2)})"
                    )
                yield f"| {name} | {arm} | {' | '.join(cells)} | {entry['diverged']} |"
    yield ""
    yield from noise_verdict(groups)
    yield from exact_verdict(*list(groups.items())[-1])


def noise_verdict(groups: Mapping[str, Parts]) -> Iterator[str]:
    for multiple in learned.MULTIPLES:
        told = []
        for name, parts in groups.items():
            rl, bp = (regret(found(parts, arm), multiple) for arm in ("RL", "BP"))
            told.append((name, *compared(rl, bp)))
        last = groups[told[-1][0]]
        arms = [f"{arm}, exact meta-loss" for arm in ("RL", "BP")]
        if all(arm in last for arm in arms):
            told.append(("by an exact meta-loss", *compared(*(regret(found(last, arm), multiple) for arm in arms))))
        words = {
            name: "yes" if high < 1 else "no, it hurts" if low > 1 else "not measurably"
            for name, _, (low, high) in told
        }
        each = "; ".join(
            f"{name}: **{words[name]}**, {text(ratio, 2)} {span(interval, 2)}" for name, ratio, interval in told
        )
        yield f"- **Does RL's noise help, at {multiple} T?** RL's regret over BP's, in the geometric mean: {each}."


def exact_verdict(name: str, parts: Parts) -> Iterator[str]:
    """Where the particles' error does its harm: in what is learned from, or in what is learned to be done."""
    multiple = learned.MULTIPLES[0]
    start = array(found(parts, "BP")["start"]).mean()
    told = []
    for arm in ("BP", *learned.VALUED, "RL"):
        if arm in parts:
            told.append(f"{arm} {text(regret(found(parts, arm), multiple).mean(), 2)}")
    exact = [arm for arm in learned.VALUED if arm in parts]
    if exact:
        rest = regret(found(parts, "BP"), multiple)
        better = sum(compared(regret(found(parts, arm), multiple), rest)[1][1] < 1 for arm in exact)
        verdict = "Yes" if better == len(exact) else "In part" if better else "No"
        yield (
            f"- **Is it the meta-loss that the noise spoils, more than what the optimizer reads? {verdict}.** {name}, "
            f"mean regrets at {multiple} T from {text(start, 2)} at the start: {'; '.join(told)}. Under particles the "
            "meta-loss is their own word. A likely reason: particles are kept, so that their error at one step is "
            "there at the next as well, and a step along it looks like a gain."
        )


# ----- the page -------------------------------------------------------------------------------------------------------


def page(record: Mapping[str, Any]) -> str:
    """README.md from the JSON alone."""
    rows = complete(record)
    first = f"dual, smooth, {FORWARD}"
    values = {
        "claims": "\n".join(verdicts(record)),
        "tables": "\n".join(line for name, parts in rows.items() for line in row_table(name, parts)),
        "cycles": "\n".join(cycle_table(record)) if "cycles" in record else "",
        "optimum": text(array(found(rows[first], "optimum")["weights"]).max(), 4),
        "fits": "\n".join(fit_table(record)),
        "tuned": "\n".join(tuned_table(record)),
        "learned": "\n".join(learned_table(record)),
    }
    settings = {
        "seeds": mixtures.SEEDS,
        "steps": f"{STEPS:,}",
        "rate": mixtures.RATE,
        "fit_steps": f"{planar.FIT_STEPS:,}",
        "fit_seeds": planar.FIT_SEEDS,
        "beta": planar.BETA,
        "tune_seeds": planar.SEEDS,
        "tune_steps": f"{planar.STEPS:,}",
        "horizon": learned.HORIZON,
        "meta_seeds": learned.SEEDS,
        "meta_steps": learned.META_STEPS,
        "num_tasks": learned.NUM_TASKS,
        "tested": learned.TESTED,
    }
    return (HERE / "page.md").read_text(encoding="utf-8").format(**values, **settings)
