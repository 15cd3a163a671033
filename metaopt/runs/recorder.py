"""What happens at the end of every chunk of meta-steps: metrics, validation, checkpoints, the stop on a signal."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from metaopt.errors import UserError
from metaopt.experiment import Experiment
from metaopt.runs import folder, own_entries
from metaopt.runs.checkpoints import Checkpoints
from metaopt.runs.environment import provenance
from metaopt.runs.interrupts import SignalGuard
from metaopt.runs.metrics import JsonLines, Row, cut_back, read_rows, train_rows
from metaopt.runs.optimizer_file import read_optimizer, refuse_nonfinite, save_optimizer
from metaopt.training.trainer import Trainer, TrainState, averaged
from metaopt.training.validation import Stage, Validator, after_validation
from metaopt.types import MetaParams


class Logger(Protocol):
    """Takes the rows of a chunk, in the order of their meta-steps."""

    def log(self, rows: list[Row]) -> None: ...

    def close(self) -> None: ...


class Pick(NamedTuple):
    """The φ that validated best at a multiple of the horizon so far."""

    step: int
    score: float
    meta_params: MetaParams
    environment: dict[str, Any] | None  # of the process that made it; None: that was not recorded


class Recorder:
    """A callback of `meta_train` that keeps a run folder; `resume` takes it up where a checkpoint left it."""

    def __init__(self, path: Path, trainer: Trainer, guard: SignalGuard) -> None:
        self.path = path
        self.best: dict[int, Pick] = {}  # by the multiple of the horizon; the run's own is the last
        self.stage = Stage()
        self.history: list[tuple[bool, bool]] = []  # of each meta-step before a resumption: none alive, skipped
        self._elapsed = 0.0
        self._clock = time.monotonic()  # when `elapsed` was last asked for
        self._experiment: Experiment = trainer.experiment
        self._guard = guard
        self._environment: dict[str, Any] | None = provenance()
        self._made_in = self._environment  # the state at hand, which may be that of a process before
        self._multiples = trainer.experiment.validation.multiples or (1,)
        self._levels = trainer.levels if self._experiment.curriculum.kind == "validation" else ()
        self._validate = Validator(trainer)
        self._checkpoints: Checkpoints[TrainState] = Checkpoints(path / folder.CHECKPOINTS)
        self._lines: JsonLines | None = None
        self._loggers: list[Logger] = []
        self._validation_due = False  # a signal came between a chunk's end and its validation
        self._chunk_began = 0.0  # on the clock of `elapsed`

    # ----- before the first chunk -------------------------------------------------------------------------------------

    def resume(self, trainer: Trainer) -> tuple[TrainState | None, list[str]]:
        """(the state to go on from, remarks); None where no checkpoint was reached. Cuts metrics.jsonl back to it."""
        target = trainer.init()
        if any(family.batch_size for family in trainer.families) or jax.tree.leaves(target.estimator_state):
            self._checkpoints.refuse_first = (
                "was written by a version whose inner steps drew other minibatches and whose windows carried other "
                f"states, so that this would become another run; begin anew: `metaopt train --from {self.path}`."
            )
        restored = self._checkpoints.restore_latest(target)
        if restored is None:
            if (self.path / folder.LATEST_OPTIMIZER).exists():  # written after the first checkpoint
                raise UserError(
                    f"the checkpoints of {self.path} are gone, and beginning anew would overwrite its optimizer; "
                    f"repeat it in a new folder with `metaopt train --from {self.path}`."
                )
            rows = (self.path / folder.METRICS).exists()
            cut_back(self.path / folder.METRICS, 0)
            return None, ["no checkpoint was reached; beginning anew"] if rows else []
        state, record, remarks = restored
        step = int(state.meta_step)
        for meta_params in (state.meta_params, averaged(state)):
            here = jax.tree.map(lambda leaf: leaf.addressable_data(0), meta_params)
            where = f"the checkpoint of meta-step {step} in {self.path / folder.CHECKPOINTS}"
            refuse_nonfinite(here, where, f"delete its folder {step} to go on from one before, or begin a new run")
        if remarks:
            remarks = [*remarks, f"going on from the one before, at meta-step {step}"]
        before, now = record.get("num_devices", 0), state.meta_step.sharding.num_devices
        if before and before != now:
            remarks = [
                *remarks,
                f"saved on {before} devices, going on with {now}: φ will differ in its last digits from that of an "
                f"undisturbed run, which --num-devices {before} avoids",
            ]
        self._elapsed, self._clock = float(record["elapsed"]), time.monotonic()
        self._validation_due = bool(record["validation_due"])
        if self._levels:
            level, best, waited = record["curriculum"]
            self.stage = Stage(level, float("inf") if best is None else best, waited)
        cut_back(self.path / folder.METRICS, step, validation_due=self._validation_due)
        lines = [row for row in read_rows(self.path / folder.METRICS) if row.get("kind") == "train"]
        if len(lines) < step:
            remarks = [*remarks, f"metrics.jsonl lacks {step - len(lines)} of the {step} meta-steps done"]
        self.history = [(row.get("alive") == 0, row.get("skipped", 0) > 0) for row in lines]
        self._made_in = record.get("environment")
        held = {int(multiple): pick for multiple, pick in record.get("best_at", {}).items()}
        if record["best_step"] is not None:
            held.setdefault(self._multiples[-1], [record["best_step"], record["best_score"], None])
        for multiple, (best, score, made_in) in held.items():
            try:
                self.best[multiple] = Pick(best, float(score), self._best_of(best, multiple, state, target), made_in)
            except Exception as error:  # orbax raises many kinds
                remarks.append(f"the best checkpoint, of meta-step {best}, cannot be read ({error})")
        return state, remarks

    def _best_of(self, step: int, multiple: int, state: TrainState, target: TrainState) -> MetaParams:
        """φ of the best meta-step, from the state just restored, its own checkpoint, or the optimizer saved of it."""
        if step == int(state.meta_step):
            return jax.device_get(averaged(state))
        try:
            return jax.device_get(averaged(self._checkpoints.restore(step, target)[0]))
        except Exception:
            with contextlib.suppress(UserError):
                trained = read_optimizer(self.path / self._file(multiple))
                if trained.card.get("meta_step") == step:
                    return jax.device_get(trained.meta_params)
            raise

    def start(self, state: TrainState | None, loggers: list[Logger]) -> None:
        """Opens metrics.jsonl and does a validation that the last stop left undone."""
        self._lines = JsonLines(self.path / folder.METRICS)
        self._loggers = [self._lines, *loggers]
        if state is not None and self._validation_due:
            self._run_validation(state)
        self._chunk_began = self.elapsed

    # ----- after every chunk ------------------------------------------------------------------------------------------

    def __call__(self, trainer: Trainer, state: TrainState, metrics: dict[str, np.ndarray]) -> bool:
        self._made_in = self._environment
        steps = metrics["meta_step"]
        before, step, last = int(steps[0]) - 1, int(steps[-1]), self._experiment.num_meta_steps
        self._log(train_rows(metrics, began=self._chunk_began, ended=self.elapsed))

        every = self._experiment.validation.every
        self._validation_due = every > 0 and (_crosses(before, step, every) or step == last)
        stop = self._guard.received is not None
        improved = False
        # On a signal there may be seconds left: the state is saved first, and the validation done on resuming.
        if self._validation_due and not stop:
            improved = self._run_validation(state)
            trainer.level = self.stage.level
            stop = self._guard.received is not None  # validation may take longer than a chunk
        if improved or stop or step == last or _crosses(before, step, self._experiment.checkpoint_every):
            self._save(step, state)
        self._chunk_began = self.elapsed
        return stop

    def _run_validation(self, state: TrainState) -> bool:
        began = self.elapsed
        step = int(state.meta_step)
        scores, values = self._validate(state.meta_params)
        meta_params = averaged(state)
        if meta_params is not state.meta_params:
            scores, more = self._validate(meta_params, "validation_ema")
            values |= more
        if self._levels:
            values |= self._validate_next(meta_params)
        improved = [multiple for multiple, score in scores.items() if score < self._score(multiple)]
        if improved:
            held = jax.device_get(meta_params)
            self.best |= {multiple: Pick(step, scores[multiple], held, self._made_in) for multiple in improved}
        self._validation_due = False
        times = {"time/elapsed": round(self.elapsed, 3), "time/validation": round(self.elapsed - began, 3)}
        best = self._multiples[-1] in improved
        self._log([{"kind": "validation", "meta_step": step, **values, "best": best, **times}])
        return bool(improved)

    def _validate_next(self, meta_params: MetaParams) -> dict[str, Any]:
        """At the next horizon of the curriculum, if there is one; the stage goes on by it."""
        values: dict[str, Any] = {"validation/level": self.stage.level}
        if self.stage.level + 1 < len(self._levels):
            horizon = self._levels[self.stage.level + 1]
            score = self._validate.score_at(horizon, meta_params)
            values |= {"validation/next/horizon": horizon, "validation/next/median": score}
            self.stage = after_validation(self.stage, score, self._experiment.curriculum.patience)
        return values

    def _save(self, step: int, state: TrainState) -> None:
        assert self._lines is not None
        self._lines.sync()
        own = self.best.get(self._multiples[-1])
        record: dict[str, Any] = {
            "best_step": own and own.step,
            "best_score": own and own.score,
            "best_at": {str(each): [pick.step, pick.score, pick.environment] for each, pick in self.best.items()},
            "environment": self._made_in,
            "elapsed": self.elapsed,
            "validation_due": self._validation_due,
        }
        if self._levels:
            level, best, waited = self.stage
            record["curriculum"] = [level, best if np.isfinite(best) else None, waited]
        self._checkpoints.save(step, state, record)
        self._export_all(state)

    def _export_all(self, state: TrainState) -> None:
        last = self._last(state)
        self._export(folder.LATEST_OPTIMIZER, last)
        # Where no validation was any good, the last.
        for multiple, pick in {self._multiples[-1]: last, **self.best}.items():
            self._export(self._file(multiple), pick)

    def _last(self, state: TrainState) -> Pick:
        return Pick(int(state.meta_step), float("inf"), averaged(state), self._made_in)

    def _file(self, multiple: int) -> str:
        return folder.OPTIMIZER if multiple == self._multiples[-1] else folder.BEST_AT.format(multiple)

    def _score(self, multiple: int) -> float:
        return self.best[multiple].score if multiple in self.best else float("inf")

    def _export(self, name: str, pick: Pick) -> None:
        score = pick.score if np.isfinite(pick.score) else None
        card: dict[str, Any] = {"meta_step": pick.step, "validation": score, "environment": pick.environment}
        card |= own_entries.record(self._experiment)
        decay = self._experiment.meta_optimizer.ema
        if decay is not None:
            card["averaged"] = f"over meta-steps, with a decay of {decay:g}"
        save_optimizer(self.path / name, jax.device_get(pick.meta_params), self._experiment, card)

    def _log(self, rows: list[Row]) -> None:
        for logger in self._loggers:
            logger.log(rows)

    @property
    def elapsed(self) -> float:
        """Seconds of work on this run, those before a resumption included."""
        now = time.monotonic()
        self._elapsed += max(0.0, now - self._clock)  # whatever clocks do, no step goes back
        self._clock = now
        return self._elapsed

    # ----- at the end -------------------------------------------------------------------------------------------------

    def finish(self, state: TrainState) -> dict[str, tuple[int, MetaParams]]:
        """Writes what the run leaves, and returns (meta-step, φ) by how it was picked; one that is another is left out.

        First stands the run's own, the best by validation at the last multiple, or the last where none was any good.
        """
        self._export_all(state)  # once more: a process killed in between left one behind, or a validation was done
        found: dict[str, tuple[int, MetaParams]] = {}
        picks = {folder.best_at(each): self.best[each] for each in self._multiples[::-1] if each in self.best}
        for how, pick in {**picks, folder.LAST: self._last(state)}.items():
            if pick.step not in [step for step, _ in found.values()]:
                found[how] = pick.step, jax.device_get(pick.meta_params)
        return found

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()
        self._checkpoints.close()


def _crosses(before: int, step: int, every: int) -> bool:
    """Whether a multiple of `every` lies in before+1 ... step."""
    return step // every > before // every
