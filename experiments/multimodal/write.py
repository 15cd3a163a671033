"""Can a learned optimizer with its noise on beat annealing? `python -m experiments.multimodal.write`, an hour at most.

Meta-trains, tunes, measures, and writes results.json, the pictures and README.md beside itself. What is done is kept in
phi/ and runs/multimodal, so that the command goes on where it was stopped; with `--page` the page alone, from the JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.multimodal import arms, page
from experiments.multimodal.measure import (
    ADAM,
    ADAM_GRID,
    GRIDS,
    Reached,
    as_phi,
    best_of,
    dynamics,
    measure,
)
from metaopt.choices import Choice
from metaopt.evaluation.landscape import landscape
from metaopt.evaluation.statistics import bootstrap_interval, jsonable, wilson_interval
from metaopt.experiment import build_family, build_optimizer
from metaopt.optimizers.noise import with_noise

HERE, WORK = Path(__file__).parent, Path("runs/multimodal")
SHORT, LONG = arms.HORIZON, 10 * arms.HORIZON
TASKS, COARSE, FINE, KEPT = 160, 64, 512, 8  # tasks: reported, to tune on, to choose on among the best so many
MODES = ("100 steps", "1000 steps", "10 × 100 steps")
FAMILIES = tuple(task for task in arms.TRAINED if task != arms.family("tilted_double_well", 5)) + arms.NEW
PICTURED = arms.family("ackley", 2)


def keys() -> tuple[Any, Any, Any]:
    """Of the tasks that are reported, tuned on, chosen on."""
    return tuple(jax.random.split(jax.random.fold_in(jax.random.key(0), 0x6D6D), 3))


def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
    """Arrays by name, computed unless they are there."""
    path = WORK / f"{name}.npz"
    if not path.exists():
        print(name, flush=True)
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **made)
        part.rename(path)
    return dict(np.load(path))


def called(task: Choice) -> str:
    """Rastrigin, 2-D."""
    name = task.name.replace("_", " ").capitalize().replace("Styblinski tang", "Styblinski-Tang")
    return f"{name}, {task.options['dim']}-D"


def stem(task: Choice) -> str:
    return f"{task.name}-{task.options['dim']}"


# ----- tuning -----------------------------------------------------------------------------------------------------


def score(reached: Reached) -> tuple[np.ndarray, np.ndarray]:
    """[points] P(global), ties by the gap; and minus the mean logarithm of the gap; more is better."""
    gap = np.clip(reached.gap[-1], 1e-6, 10.0)
    return reached.found[-1].mean(-1) - 1e-3 * np.log(gap).mean(-1), -np.log(gap).mean(-1)


def coarse(task: Choice, steps: int) -> dict[str, np.ndarray]:
    """method -> [2, points] the scores of its grid."""

    def make() -> dict[str, Any]:
        family, key = build_family(task), keys()[1]
        rows = [row for grid in GRIDS.values() for row in grid]
        reached = measure(dynamics(steps), as_phi(rows), family, key, tasks=COARSE, steps=steps, anew=False)
        scores = np.stack(score(reached))
        ends = np.cumsum([len(grid) for grid in GRIDS.values()])
        found = dict(zip(GRIDS, np.split(scores, ends[:-1], axis=1), strict=True))
        reached = measure(ADAM, as_phi(ADAM_GRID), family, key, tasks=COARSE, steps=steps, anew=False)
        return {**found, "Adam": np.stack(score(reached))}

    return kept(f"coarse-{stem(task)}-{steps}", make)


def tuned(task: Choice, steps: int) -> dict[str, np.ndarray]:
    """method -> [2, settings]: rows that are best by P(global) and by the gap, of the `KEPT` best, on other tasks."""

    def make() -> dict[str, Any]:
        first, found = coarse(task, steps), {}
        for names, optimizer, grids in (
            (list(GRIDS), dynamics(steps), GRIDS), (["Adam"], ADAM, {"Adam": ADAM_GRID}),
        ):  # fmt: skip
            chosen = {
                name: np.concatenate([np.argsort(-first[name][i], kind="stable")[:KEPT] for i in (0, 1)])
                for name in names
            }
            rows = [grids[name][i] for name in names for i in chosen[name]]
            reached = measure(
                optimizer, as_phi(rows), build_family(task), keys()[2], tasks=FINE, steps=steps, anew=False
            )
            scores = np.stack(score(reached)).reshape(2, len(names), 2 * KEPT)
            for at, name in enumerate(names):
                best = scores[:, at].argmax(-1)
                found[name] = np.array([grids[name][chosen[name][i]] for i in best])
        return found

    return kept(f"tuned-{stem(task)}-{steps}", make)


def one_setting(steps: int) -> tuple[float, ...]:
    """The annealing whose mean P(global) over the families of meta-training is highest: what needs no tuning either."""
    mean = np.mean([coarse(task, steps)["annealing"][0] for task in arms.TRAINED], axis=0)
    return GRIDS["annealing"][int(mean.argmax())]


# ----- runs -------------------------------------------------------------------------------------------------------


def hand_designed(task: Choice, steps: int, *, anew: bool) -> dict[str, Reached]:
    """method -> [segments, 2, tasks] by P(global) and by gap."""

    def make() -> dict[str, Any]:
        best, family, key = tuned(task, steps), build_family(task), keys()[0]
        names = [*GRIDS, ONE]
        rows = [tuple(row) for name in GRIDS for row in best[name]] + [one_setting(steps)] * 2
        long = LONG if anew else steps
        found = measure(dynamics(steps), as_phi(rows), family, key, tasks=TASKS, steps=long, anew=anew)
        adam = measure(ADAM, as_phi([tuple(r) for r in best["Adam"]]), family, key, tasks=TASKS, steps=long, anew=anew)
        parts = {
            name: (found.found[:, 2 * i : 2 * i + 2], found.gap[:, 2 * i : 2 * i + 2]) for i, name in enumerate(names)
        }
        parts["Adam"] = tuple(adam)
        return {
            f"{name}/{what}": part for name, pair in parts.items() for what, part in zip(("f", "g"), pair, strict=True)
        }

    held = kept(f"hand-{stem(task)}-{steps}-{'anew' if anew else 'once'}", make)
    return {name: Reached(held[f"{name}/f"], held[f"{name}/g"]) for name in (*GRIDS, ONE, "Adam")}


ONE = "annealing, one setting"


def learned(task: Choice, arm: str, noise: bool, *, anew: bool) -> Reached:
    """[segments, seeds, tasks]."""

    def make() -> dict[str, Any]:
        phi, _ = arms.trained(arm)
        grid = jax.tree.map(lambda *leaves: jnp.stack(leaves), *phi)
        found = measure(optimizer(arm, noise), grid, build_family(task), keys()[0], tasks=TASKS, steps=LONG, anew=anew)
        return found._asdict()

    name = (
        f"learned-{stem(task)}-{arms.place(arm, 0).stem[:-2]}-{'on' if noise else 'off'}-{'anew' if anew else 'once'}"
    )
    return Reached(**kept(name, make))


def optimizer(arm: str, noise: bool) -> Any:
    """The arm's optimizer, its noise on or off."""
    built = build_optimizer(arms.ARMS[arm][0])
    return with_noise(built) if noise else built


def learned_ways() -> dict[str, tuple[str, bool]]:
    """What is shown -> (arm, whether its noise is on)."""
    on = {arm: (arm, picked.options["noise"] != "none") for arm, (picked, *_) in arms.ARMS.items()}
    return on | {f"{arm}, off": (arm, False) for arm, (_, noise) in on.items() if noise}


def ends(task: Choice) -> dict[str, dict[str, Reached]]:
    """mode -> method -> [points, tasks]: of hand-designed ones two points, by P(global) and by gap; else the seeds."""
    ways = learned_ways()
    short = {name: learned(task, *way, anew=True) for name, way in ways.items()}
    long = {name: learned(task, *way, anew=False) for name, way in ways.items()}
    hand = hand_designed(task, SHORT, anew=True)
    whole = hand_designed(task, LONG, anew=False)

    def at(reached: Reached, segment: int) -> Reached:
        return Reached(*(part[segment] for part in reached))

    return {
        MODES[0]: {name: at(reached, 0) for name, reached in {**short, **hand}.items()},
        MODES[1]: {name: at(reached, -1) for name, reached in {**long, **whole}.items()},
        MODES[2]: {name: best_of(reached) for name, reached in {**short, **hand}.items()},
    }


# ----- numbers ----------------------------------------------------------------------------------------------------


def difference(hits: np.ndarray, rival: np.ndarray) -> list[float]:
    """How much more often a method [points, tasks] hits than a rival [tasks] on the same tasks, with 95% interval."""
    each = hits.mean(0).astype(float) - rival
    return [float(each.mean()), *bootstrap_interval(each, seed=0)]


def rows_of(task: Choice) -> list[dict[str, Any]]:
    """One row for each mode and method."""
    rows, reached = [], ends(task)
    # At equal gradients annealing may take the better way of the two, chosen here on the reported tasks.
    equal = max(MODES[1:], key=lambda mode: reached[mode]["annealing"].found[0].mean())
    for mode, methods in reached.items():
        hand = [name for name in methods if name not in learned_ways()]
        for name, (found, gap) in methods.items():
            own = name in learned_ways()
            # A hand-designed one's P is that of its tuning by P, its gap that of its tuning by gap.
            hits, gaps = (found, gap) if own else (found[:1], gap[1:])
            successes = int(hits.sum())
            row = {
                "family": called(task),
                "new": task in arms.NEW,
                "mode": mode,
                "method": name,
                "learned": own,
                "share": successes / hits.size,
                "interval": wilson_interval(successes, hits.size),
                "seeds": hits.mean(-1) if own else None,
                "gap": float(np.median(gaps)),
                "failed": float(np.mean(gap > 10) if own else np.mean(gaps > 10)),
            }
            rivals = {MODES[0]: [MODES[0]], MODES[1]: [MODES[1], equal], MODES[2]: [equal]}[mode]
            pairs = [(where, "annealing") for where in dict.fromkeys(rivals)]
            # And the hand-designed one that did best on the reported tasks, whatever it is.
            hardest = max(hand, key=lambda rival: methods[rival].found[0].mean())
            row["paired"] = [
                {"with": where, "rival": rival, "share": difference(hits, reached[where][rival].found[0])}
                for where, rival in [*pairs, (mode, hardest)]
            ]
            rows.append(row)
    return rows


def settings_of(task: Choice) -> dict[str, Any]:
    """What tuning chose for annealing, and whether inside of its grid of steps."""
    found = {}
    for steps in (SHORT, LONG):
        row = tuned(task, steps)["annealing"][0]
        hs, ts = ({r[i] for r in GRIDS["annealing"]} for i in (0, 1))
        inside = all(min(v) < x < max(v) for v, x in ((hs, row[0]), (ts, row[1])))
        found[f"{steps}"] = {**dict(zip(("h", "T", "end", "falls"), row, strict=True)), "inside": inside}
    return found


def pictured() -> dict[str, Any]:
    """Paths of a short run on the first of the reported tasks, for the moving picture."""
    best, arm = tuned(PICTURED, SHORT), "RL, evolution"
    phi = arms.trained(arm)[0][0]
    entries = {"learned, noise on": (optimizer(arm, True), phi), "learned, noise off": (optimizer(arm, False), phi)}
    for name, made in (("annealing", dynamics(SHORT)), ("Adam", ADAM)):
        entries[name] = made, {key: column[0] for key, column in as_phi([tuple(best[name][0])]).items()}
    seen = landscape(entries, build_family(PICTURED), keys()[0], horizon=SHORT, num_tasks=TASKS)
    assert seen is not None
    return {"title": called(PICTURED), **seen}


def compute() -> dict[str, Any]:
    """Everything, as results.json holds it."""
    for arm, seed in arms.every():
        arms.train(arm, seed)
    for task in FAMILIES:
        for steps, anew in ((SHORT, True), (LONG, False)):
            hand_designed(task, steps, anew=anew)
    for way in learned_ways().values():
        for task in FAMILIES:
            for anew in (True, False):
                learned(task, *way, anew=anew)
    return {
        "tasks": TASKS,
        "tuning": {"coarse": COARSE, "fine": FINE, "kept": KEPT, "points": len(GRIDS["annealing"])},
        "rows": [row for task in FAMILIES for row in rows_of(task)],
        "tuned": {called(task): settings_of(task) for task in FAMILIES},
        "one_setting": {str(steps): one_setting(steps) for steps in (SHORT, LONG)},
        "training": {arm: arms.trained(arm)[1] for arm in arms.ARMS},
        "view": pictured(),
    }


def main() -> None:
    file, figures = HERE / "results.json", HERE / "figures"
    if "--page" not in sys.argv:
        text = json.dumps(jsonable(compute()), separators=(",", ":"), allow_nan=False)
        file.write_text(text + "\n", encoding="utf-8")
    record = json.loads(file.read_text(encoding="utf-8"))
    page.draw_shares(record["rows"], figures / "shares.png")
    view = record["view"]
    page.draw_paths(view, view["title"], figures / "paths.gif", figures / "paths.png")
    (HERE / "README.md").write_text(page.write(record), encoding="utf-8")


if __name__ == "__main__":
    main()
