"""Hand-designed optimizers at the settings that are best for the family and horizon at hand.

Rates, momenta and schedules are searched by successive halving (Jamieson & Talwalkar 2016; Hyperband, Li et al. 2018)
over tasks: every run goes to the horizon, so that no schedule is judged before its end, and only settings that did well
on a few tasks are tried on more. The best is then shown to lie inside: its neighbours are run on as many tasks.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.choices import Choice, parse_choice
from metaopt.errors import UserError
from metaopt.evaluation import statistics
from metaopt.evaluation.outcomes import Outcome, run_each, task_keys
from metaopt.evaluation.recording import plan
from metaopt.experiment import BASELINES, MOMENTA, TUNING, build_optimizer
from metaopt.optimizers.schedules import Schedule
from metaopt.registry import OPTIMIZERS
from metaopt.types import Key, MetaParams, Optimizer, TaskFamily

TUNED = "learning_rate"
SCHEDULES = ("constant", "step", "cosine", "warmup_cosine")  # of a full search, where none is asked for
RATE = -3  # the middle of the rates, in half-decades as all exponents here: 10^(-3/2)
BOUNDS = (-12, 6)  # how far the rates may be extended: 1e-6 to 1e3
LEAST_DECAY = -7  # of 1 - momentum: 3e-4
MOST_MOMENTA = 9
HALVING = 3  # of all settings a third goes on
FEWEST_TASKS = 8  # that anything is thrown away by
RECORDS = 10  # points of a tuning curve; a failure between them is seen all the same
MOST_KNOTS = 1001  # of a schedule while it is searched

Tuned = tuple[Optimizer, MetaParams, dict[str, Any]]
Criterion = Literal["geometric mean", "mean"]


@dataclass(frozen=True)
class Budget:
    """What is tried of each baseline: so many rates and momenta, half-decades apart, and every schedule or its own."""

    rates: int = 9
    momenta: int = 3
    schedules: bool = False

    @staticmethod
    def parse(text: str) -> Budget:
        """`9x3`: 9 rates by 3 momenta (where an optimizer has one); `full`: these under every schedule of `SCHEDULES`.

        Raises:
          UserError: anything else.
        """
        if text == "full":
            return Budget(schedules=True)
        most = BOUNDS[1] - BOUNDS[0] + 1
        found = re.fullmatch(r"(\d{1,2})x(\d{1,2})", text, re.ASCII)
        rates, momenta = map(int, found.groups()) if found else (0, 0)
        if not (3 <= rates <= most and 1 <= momenta <= MOST_MOMENTA):
            raise UserError(
                f"tuning {text!r}: write RATESxMOMENTA such as 9x1, with 3 to {most} rates and 1 to {MOST_MOMENTA} "
                "momenta, or full."
            )
        return Budget(rates, momenta)


class Point(NamedTuple):
    """One setting: exponents in half-decades, of the rate and of (1 - momentum) over its default, and a schedule."""

    schedule: str | None  # None: the baseline's own
    momentum: int
    rate: int


def tune_baselines(
    family: TaskFamily,
    key: Key,
    *,
    horizon: int,
    num_tasks: int,
    names: Sequence[str] = BASELINES,
    budget: str = TUNING,
    by: Criterion = "geometric mean",
    num_devices: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Tuned]:
    """name -> (optimizer, φ with the best settings, record of the search).

    A name may carry options as a choice does; what is given is kept as it is: `sgd:schedule=cosine` is searched under
    this schedule only, `momentum:mu=0.99` with this momentum. What is registered as untuned is taken as it comes, its
    record {"untuned": True}; the record of one that is told the horizon says so, {"knows_horizon": True, ...}.
    Settings are chosen by the geometric mean of the final loss over its bound (`statistics.rank`), the measure of
    ratios, over `num_tasks` tasks with a failed one counted as infinite; by the median where every setting that got so
    far has a failure. Rates and momenta go beyond the budget's until every neighbour of the best has run on all tasks,
    or the bounds are reached. `key` must not be the one whose curves are reported.

    Args:
      by: `mean` where means are what is to be compared.
      budget: `9x1`, 9 rates; `9x3`, 9 rates by 3 momenta; `full`, these under every schedule. See `Budget`.
      progress: called with each name before it is searched.

    Raises:
      UserError: a name that is no hand-designed optimizer; an unreadable budget.
    """
    what = Budget.parse(budget)
    tuned = {}
    for name in names:
        if progress is not None:
            progress(name)
        tuned[name] = _tune(name, family, key, horizon, num_tasks, what, by, num_devices)
    return tuned


def _tune(
    name: str,
    family: TaskFamily,
    key: Key,
    horizon: int,
    num_tasks: int,
    budget: Budget,
    by: Criterion,
    num_devices: int | None,
) -> Tuned:
    picked = parse_choice(name)
    optimizer = build_optimizer(picked)
    if OPTIMIZERS.traits(picked.name).untuned:
        told = {"knows_horizon": True} if optimizer.knows_horizon else {}
        return optimizer, optimizer.init(jax.random.key(0)), {"untuned": True, **told}
    if TUNED not in optimizer.tunable:
        raise UserError(f"baseline {name!r} has no learning rate to tune; choose from {', '.join(BASELINES)}.")
    space = _Space(picked, budget, horizon)
    search = _Search(space, family, task_keys(key, num_tasks), horizon, by, num_devices)
    points = space.points(budget)
    asked, tasks = len(points), min(num_tasks, max(FEWEST_TASKS, math.ceil(num_tasks / HALVING**2)))
    while True:
        search.run(points, tasks)
        if tasks == num_tasks:
            break
        points = search.ranking(tasks)[: math.ceil(len(points) / HALVING)]
        tasks = min(num_tasks, HALVING * tasks)
    while True:
        criterion, best = search.best(num_tasks)
        beside = [point for point in space.neighbours(best) if search.tasks(point) < num_tasks]
        if not beside:
            break
        search.run(beside, num_tasks)
    optimizer, meta_params, settings = space.setting(best)
    finalists = search.ranking(num_tasks)
    _, _, means, medians = search.scores(finalists, num_tasks)
    record = {
        **settings,
        "criterion": criterion,  # over tasks, of the final loss, a failed task counted as infinite
        "asked": asked,  # settings at first, and those beyond them
        "tried": len(search.losses),
        "finalists": [
            {**space.setting(point)[2], "mean": mean, "median": median}
            for point, mean, median in zip(finalists, means.tolist(), medians.tolist(), strict=True)
        ],
        "inside": space.inside(best),  # False: the best lies at the bound of the search
        "gradients": search.runs * horizon,  # inner steps that the search took
        "num_tasks": num_tasks,
        "horizon": horizon,
        **({"knows_horizon": True} if optimizer.knows_horizon else {}),
    }
    return optimizer, meta_params, record


def lowered(tuned: Tuned) -> Tuned | None:
    """The same baseline at a rate lower by half a decade; None where it was not tuned, or this is out of bounds."""
    optimizer, meta_params, record = tuned
    if record.get("untuned"):
        return None
    rate = record[TUNED]
    lower = _number(rate / math.sqrt(10))
    if lower < 10 ** (BOUNDS[0] / 2) * (1 - 1e-3):
        return None
    meta_params = {**meta_params, TUNED: optimizer.tunable[TUNED].inverse(jnp.float32(lower))}
    return optimizer, meta_params, {**record, TUNED: lower, "lowered_from": rate}


# ----- what is searched -----------------------------------------------------------------------------------------------


class _Space:
    """The settings of one baseline that are searched, and how φ holds them."""

    def __init__(self, picked: Choice, budget: Budget, horizon: int) -> None:
        options = inspect.signature(OPTIMIZERS[picked.name]).parameters
        free = "tunes" in options and "tunes" not in picked.options
        momentum = next((name for name in MOMENTA if name in options), None)
        self.momentum, self.decay = None, math.nan  # the setting that is searched, and 1 - its default
        if free and budget.momenta > 1 and momentum is not None and momentum not in picked.options:
            self.momentum, self.decay = momentum, 1 - float(options[momentum].default)
        if self.momentum is not None:
            picked = _with(picked, tunes=f"{TUNED},{self.momentum}")
        own = any(field.name in picked.options for field in dataclasses.fields(Schedule))
        constant = "schedule" in options and options["schedule"].default == "constant"
        self.schedules = SCHEDULES if budget.schedules and constant and not own else (None,)
        self.picked, self.horizon = picked, horizon
        # One program for all schedules: while they are searched they are curves of knots, which φ holds.
        self.knots = min(horizon + 1, MOST_KNOTS)
        self.optimizer = build_optimizer(picked)
        if self.schedules != (None,):
            self.optimizer = build_optimizer(_with(picked, schedule="knots", knots=self.knots))

    def points(self, budget: Budget) -> list[Point]:
        least = RATE - (budget.rates - 1) // 2
        momenta = [0]
        if self.momentum is not None:
            momenta = sorted(k for k in range(-(budget.momenta // 2), (budget.momenta + 1) // 2) if self._allowed(k))
        rates = range(least, least + budget.rates)
        return [Point(schedule, k, rate) for schedule in self.schedules for k in momenta for rate in rates]

    def neighbours(self, point: Point) -> list[Point]:
        found = [point._replace(rate=point.rate + step) for step in (-1, 1)]
        if self.momentum is not None:
            found += [point._replace(momentum=point.momentum + step) for step in (-1, 1)]
        return [p for p in found if BOUNDS[0] <= p.rate <= BOUNDS[1] and self._allowed(p.momentum)]

    def inside(self, point: Point) -> bool:
        bounded = self.momentum is not None and not self._allowed(point.momentum - 1)
        return BOUNDS[0] < point.rate < BOUNDS[1] and not bounded

    def _allowed(self, momentum: int) -> bool:
        return self.momentum is None or LEAST_DECAY <= 2 * math.log10(self.decay) + momentum <= 1e-9

    def _values(self, point: Point) -> dict[str, float]:
        values = {TUNED: _number(10 ** (point.rate / 2))}
        if self.momentum is not None:
            values[self.momentum] = max(0.0, round(1 - self.decay * 10 ** (point.momentum / 2), 6))
        return values

    def rows(self, points: Sequence[Point]) -> MetaParams:
        """φ of every point, stacked."""
        meta_params = self.optimizer.init(jax.random.key(0))
        rows = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (len(points), *leaf.shape)), meta_params)
        settings = [self._values(point) for point in points]
        for name in settings[0]:
            values = jnp.asarray([setting[name] for setting in settings], jnp.float32)
            rows[name] = np.asarray(self.optimizer.tunable[name].inverse(values))
        if self.schedules != (None,):
            curves = {schedule: self._curve(schedule) for schedule in self.schedules}
            rows["knots"] = np.stack([curves[point.schedule] for point in points])
        return rows

    def _curve(self, schedule: Any) -> np.ndarray:
        """[knots] logarithms of the factors on the rate, from step 0 to the horizon."""
        rate = Schedule(schedule, steps=None if schedule == "constant" else self.horizon).rate(1.0)
        if not callable(rate):
            return np.zeros(self.knots, np.float32)
        factors = jax.vmap(rate)(jnp.linspace(0, self.horizon, self.knots))
        return np.log(np.maximum(np.asarray(factors, np.float32), 1e-30))

    def setting(self, point: Point) -> tuple[Optimizer, MetaParams, dict[str, Any]]:
        """(optimizer, its φ, what a record says of it)."""
        picked, said = self.picked, {}
        if point.schedule is not None:
            said = {"schedule": point.schedule}
            picked = _with(picked, schedule=point.schedule) if point.schedule != "constant" else picked
        optimizer = build_optimizer(picked)
        values = self._values(point)
        meta_params = optimizer.init(jax.random.key(0))
        meta_params |= {name: optimizer.tunable[name].inverse(jnp.float32(value)) for name, value in values.items()}
        return optimizer, meta_params, {**values, **said}


def _with(picked: Choice, **options: Any) -> Choice:
    return Choice(picked.name, {**picked.options, **options})


def _number(value: float) -> float:
    return float(f"{value:.6g}")


# ----- the runs -------------------------------------------------------------------------------------------------------


class _Search:
    """Final losses of the points run so far; each was run on the first tasks, and no run is made twice."""

    def __init__(
        self, space: _Space, family: TaskFamily, keys: Key, horizon: int, by: Criterion, num_devices: int | None
    ) -> None:
        self.space, self.family, self.keys, self.by, self.num_devices = space, family, keys, by, num_devices
        self.steps = plan(family, horizon, every=max(1, horizon // RECORDS))
        self.losses: dict[Point, np.ndarray] = {}  # [tasks so far, points of the curve]
        self.peaks: dict[Point, np.ndarray] = {}
        self.bound = np.full(len(keys), np.nan)
        self.block: int | None = None
        self.runs = 0

    def tasks(self, point: Point) -> int:
        return len(self.losses.get(point, ()))

    def run(self, points: Iterable[Point], tasks: int) -> None:
        """Runs each point on the tasks that it still lacks of the first so many."""
        missing = [(point, task) for point in points for task in range(self.tasks(point), tasks)]
        if not missing:
            return
        rows, where = self.space.rows([point for point, _ in missing]), np.array([task for _, task in missing])
        self.block = self.block or len(missing)
        found: Outcome = run_each(
            self.space.optimizer,
            rows,
            self.family,
            self.keys[where],
            steps=self.steps,
            at_once=self.block,
            num_devices=self.num_devices,
        )
        self.runs += len(missing)
        self.bound[where] = found.lower_bound
        starts = [i for i, (point, _) in enumerate(missing) if i == 0 or missing[i - 1][0] != point]
        for start, end in zip(starts, [*starts[1:], len(missing)], strict=True):
            point = missing[start][0]
            for kept, new in ((self.losses, found.loss), (self.peaks, found.peak)):
                kept[point] = np.concatenate([kept[point], new[start:end]]) if point in kept else new[start:end]

    def scores(self, points: Sequence[Point], tasks: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        """(criterion, its values, means, medians) over the first so many tasks, which all points were run on."""
        losses = np.stack([self.losses[point][:tasks] for point in points])
        known = [loss[:tasks] for loss in self.losses.values() if len(loss) >= tasks]
        scale = statistics.scale(self.bound[:tasks], losses[0, :, 0], known)
        failed = np.stack([statistics.failed(self.peaks[point][:tasks], scale) for point in points])
        ranked = [("mean", final) if self.by == "mean" else statistics.rank(final, scale) for final in losses[..., -1]]
        values = np.where(failed, np.inf, np.stack([each for _, each in ranked])).mean(axis=1)
        return ranked[0][0], values, *statistics.score(losses[..., -1], failed)

    def ranking(self, tasks: int) -> list[Point]:
        """The points that were run on so many tasks, the best first."""
        points = [point for point in self.losses if self.tasks(point) >= tasks]
        _, values, _, medians = self.scores(points, tasks)
        # Lower rates first where nothing else tells points apart: only these can help where everything failed.
        order = np.lexsort(np.array([[point.rate for point in points], medians, values]))
        return [points[index] for index in order]

    def best(self, tasks: int) -> tuple[str, Point]:
        """What decides, a mean or the median, and the best point by it."""
        first = self.ranking(tasks)[0]
        criterion, values, _, _ = self.scores([first], tasks)
        return (criterion if np.isfinite(values).all() else "median"), first
