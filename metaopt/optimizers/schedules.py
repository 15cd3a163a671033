"""How a learning rate falls over a run: schedules by name, as factors on the rate, which itself stays free."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import optax

from metaopt.errors import UserError, warn
from metaopt.types import Optimizer

Name = Literal["constant", "power", "step", "exponential", "cosine", "linear", "warmup_cosine", "plateau", "knots"]
# The options that each reads. What reads `steps` knows how long the run is.
READS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "power": ("power",),
    "step": ("steps", "every", "factor"),
    "exponential": ("steps", "every", "factor"),
    "cosine": ("steps", "final"),
    "linear": ("steps", "final"),
    "warmup_cosine": ("steps", "final", "warmup"),
    "plateau": ("every", "factor", "patience"),
    "knots": ("steps", "knots"),
}


@dataclass(frozen=True)
class Schedule:
    """The rate α_t of step t = 0, 1, ... of T, in units of the learning rate.

    constant 1 · power (t+1)^-power · step factor^⌊t/every⌋ · exponential factor^(t/every) ·
    cosine final + (1 - final)(1 + cos πt/T)/2 · linear 1 + (final - 1) t/T · warmup_cosine from 0 to 1, straight,
    over the first `warmup` of the run, then the cosine · plateau times `factor` after more than `patience` losses in
    a row that were no better, by 1e-4 of the best, than the best; each the mean of `every` steps · knots: a curve in
    log α_t, straight between values at equal distances over t/T, which are a part of φ.

    Raises:
      ValueError: a value that makes no schedule, or an option that the schedule does not read.
    """

    schedule: Name = "constant"
    steps: int | None = None  # T; None: told by whoever runs it
    every: int | None = None  # steps; None: a third of T, under plateau 1
    factor: float = 0.1
    final: float = 0.0  # of the rate, at step T
    warmup: float = 0.1  # of T
    power: float = 0.0
    patience: int = 10
    knots: int = 5

    def __post_init__(self) -> None:
        if self.schedule == "constant" and self.power:
            object.__setattr__(self, "schedule", "power")
        for field in dataclasses.fields(self)[1:]:
            if getattr(self, field.name) != field.default and field.name not in READS[self.schedule]:
                raise ValueError(f"`{field.name}` says nothing under schedule={self.schedule}; leave it out.")
        if None not in (self.every, self.steps):
            raise ValueError("`every` says it all; leave `steps` out.")
        for name, least in (("steps", 1), ("every", 1), ("patience", 0), ("knots", 2), ("power", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` ({value}) must be at least {least}.")
        for name, holds, range_ in (
            ("factor", 0 < self.factor < 1, "between 0 and 1"),
            ("final", 0 <= self.final <= 1, "in [0, 1]"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
        ):
            if not holds:
                raise ValueError(f"`{name}` ({getattr(self, name)}) must be {range_}.")

    @property
    def knows_horizon(self) -> bool:
        """Whether what it does hangs on how long the run is."""
        return "steps" in READS[self.schedule] and self.every is None

    def rate(self, learning_rate: Any, knots: Any = None) -> Any:
        """What optax takes as a learning rate: the number itself, or step -> rate.

        Args:
          knots: [knots] logarithms of factors on the rate, at equal distances from step 0 to T.
        """
        relative = self._relative(knots)
        return learning_rate if relative is None else lambda count: learning_rate * relative(count)

    def _relative(self, knots: Any) -> Callable[[jax.Array], Any] | None:
        if self.schedule in ("constant", "plateau"):
            return None
        if self.schedule == "power":
            return lambda count: (count + 1.0) ** -self.power
        steps = self.steps or 1  # where no one has said it yet, and no step will be taken
        if self.schedule in ("step", "exponential"):
            every = self.every or -(-steps // 3)
            return optax.exponential_decay(1.0, every, self.factor, staircase=self.schedule == "step")
        if self.schedule == "cosine":
            return optax.cosine_decay_schedule(1.0, steps, alpha=self.final)
        if self.schedule == "linear":
            return optax.linear_schedule(1.0, self.final, steps)
        if self.schedule == "warmup_cosine":
            warmup = min(round(self.warmup * steps), steps - 1)
            return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps, end_value=self.final)
        where = jnp.linspace(0.0, steps, self.knots)
        return lambda count: jnp.exp(jnp.interp(jnp.asarray(count, jnp.float32), where, knots))

    def after(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer with its steps scaled, where the schedule looks at losses."""
        if self.schedule != "plateau":
            return tx
        # optax falls at loss number `patience` that is no better; torch, as here, lets so many pass.
        scale = optax.contrib.reduce_on_plateau(
            self.factor, self.patience + 1, rtol=1e-4, accumulation_size=self.every or 1
        )
        return optax.chain(tx, scale)


# ----- the length of a run --------------------------------------------------------------------------------------------

Told = Callable[[int], Optimizer]


def lasting(name: str, schedule: str, steps: int | None, make: Callable[[int | None, Told], Optimizer]) -> Optimizer:
    """An entry whose schedule has an end: after `steps`, or where those are None at the end of the run, once told.

    Args:
      make: (steps, what the optimizer has as `at_horizon`) -> the optimizer.
    """

    @functools.cache  # the compiled code hangs on the Optimizer's identity
    def told(horizon: int) -> Optimizer:
        if steps is None:
            return make(horizon, told)
        if steps > horizon:
            warn(
                f"{name}: schedule={schedule} lasts {steps} steps and the run {horizon}, so that it never comes to its "
                "end; leave `steps` out."
            )
        return asked

    asked = make(steps, told)
    return asked


def refuse_untold(name: str, schedule: str) -> NoReturn:
    """Where a step is to be made, and no one has said how long the run is."""
    raise UserError(
        f"{name}: schedule={schedule} goes by the length of the run, which is not known here; write steps=N."
    )
